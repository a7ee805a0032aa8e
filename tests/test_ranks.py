"""Several ranks: the same curve as one process, from any number of them, also after a rank was
killed.
"""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import TINY, read_metrics, without_clocks
from tests.processes import Process, free_port, read_checkpoint, start_ranks

# Most of the text is masked, so micro-batches have uneven numbers of targets; 5 sequences are 3
# micro-batches.
OPTIONS = [
    "--corpus=text.txt",
    *TINY,
    "--device=cpu",
    "--batch_size=5",
    "--micro_batch_size=2",
    "--mask=[a-m]+.*",
    "--eval_tokens=0",
    "--schedule=constant",
    "--patience=0",
    "--weight_decay=0.1",
]
KINDS = {"muon": [], "adamw": ["--optimizer=adamw"]}


def wait(ranks: list[Process]) -> None:
    for rank in ranks:
        code, printed = rank.wait()
        assert code == 0, printed


def assert_same_curve(one: Path, other: Path, rel: float = 1e-5) -> None:
    for alone, together in zip(without_clocks(one), without_clocks(other), strict=True):
        # where rounding decides which of two tokens is first
        for name in ("val_accuracy", "best_val_accuracy"):
            assert together.pop(name, 0) == pytest.approx(alone.pop(name, 0), abs=0.005)
        assert together == pytest.approx(alone, rel=rel)


@pytest.fixture(scope="module")
def alone(clone: Path) -> dict[str, Path]:
    """A run of one process for each kind of optimizer."""
    for kind, options in KINDS.items():
        wait([Process(clone, *OPTIONS, *options, f"--out_dir=out/alone_{kind}")])
    return {kind: clone / f"out/alone_{kind}" for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "size"), [("muon", 2), ("adamw", 2), pytest.param("muon", 4, marks=pytest.mark.slow)]
)
def test_the_curve_is_that_of_one_process(
    kind: str, size: int, clone: Path, alone: dict[str, Path]
) -> None:
    name = f"{kind}_{size}"
    wait(start_ranks(clone, *OPTIONS, *KINDS[kind], f"--out_dir=out/{name}", size=size))
    assert_same_curve(alone[kind], clone / "out" / name)
    assert {path.name for path in (clone / "out" / name).iterdir()} == {
        path.name for path in alone[kind].iterdir()
    }


def test_dropout_is_that_of_one_process(clone: Path) -> None:
    """The tolerance is for AdamW, which makes a gradient that is only rounding as large as any
    other.
    """
    wait([Process(clone, *OPTIONS, "--dropout=0.3", "--out_dir=out/dropout_alone")])
    wait(start_ranks(clone, *OPTIONS, "--dropout=0.3", "--out_dir=out/dropout_ranks"))
    assert_same_curve(clone / "out/dropout_alone", clone / "out/dropout_ranks", rel=2e-3)


@pytest.mark.slow
def test_two_machines(clone: Path, alone: dict[str, Path]) -> None:
    """Two torchruns, which start a rank each, meet at an address. Both are on this machine."""
    agents = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
        "--local_addr=127.0.0.1",
    ]
    command = [*agents, "train.py", *OPTIONS, "--out_dir=out/two_machines"]
    with ExitStack() as files:
        logs = [
            files.enter_context((clone / f"machine_{number}.log").open("w+b"))
            for number in range(2)
        ]
        both = [
            subprocess.Popen(
                command,
                cwd=clone,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for log in logs
        ]
        try:
            codes = [agent.wait(timeout=120) for agent in both]
        finally:
            for agent in both:
                agent.terminate()  # ends its rank too
        printed = [Path(log.name).read_text(encoding="utf-8") for log in logs]
    assert codes == [0, 0], printed
    assert sorted("A sample:" in each for each in printed) == [False, True]
    assert_same_curve(alone["muon"], clone / "out/two_machines")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_another_number_of_ranks_resumes_after_a_kill(size: int, clone: Path) -> None:
    """From the checkpoint of two ranks, one of which was killed."""
    name = f"killed_{size}"
    path = clone / "out" / name
    ranks = start_ranks(clone, *OPTIONS, f"--out_dir=out/{name}", "--max_iters=100000")
    ranks[0].wait_until(lambda: len(read_metrics(path)) > 3)
    ranks[1].kill()
    code, printed = ranks[0].wait()
    assert code == 2, printed
    assert "another process of this training is gone" in printed
    shutil.copytree(path, copy := clone / "out" / f"{name}_copy")
    step = int(read_checkpoint(path / "last.safetensors")[1]["step"])
    again = [f"out/{name}", "--init_from=resume", f"--max_iters={step + 3}"]
    wait(start_ranks(clone, *again, size=size) if size > 1 else [Process(clone, *again)])
    wait([Process(clone, f"out/{copy.name}", "--init_from=resume", f"--max_iters={step + 3}")])
    assert_same_curve(copy, path)
