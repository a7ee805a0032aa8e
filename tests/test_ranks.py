"""Several ranks give the curve of one process, also after one of them was killed."""

import os
import re
import shutil
import signal
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
KINDS = {
    "muon": [],
    "adamw": ["--optimizer=adamw"],
    "tables": ["--max_ngram=4", "--table_rows=500"],
}


def wait(ranks: list[Process]) -> None:
    for rank in ranks:
        rank.succeed()


def assert_same_curve(one: Path, other: Path, rel: float = 1e-5) -> None:
    for alone, together in zip(without_clocks(one), without_clocks(other), strict=True):
        for name in ("val_accuracy", "best_val_accuracy"):
            # rounding may decide which of two tokens is first
            expected = alone.pop(name, 0)
            assert together.pop(name, 0) == pytest.approx(expected, abs=0.005)
        assert together == pytest.approx(alone, rel=rel)


@pytest.fixture(scope="module")
def alone(clone: Path) -> dict[str, Path]:
    """A run of one process for each kind of optimizer."""
    for kind, options in KINDS.items():
        wait([Process(clone, *OPTIONS, *options, f"--out_dir=out/alone_{kind}")])
    return {kind: clone / f"out/alone_{kind}" for kind in KINDS}


TWO_RANKS = [("muon", 2), ("adamw", 2), ("tables", 2)]
FOUR_RANKS = pytest.param("muon", 4, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "size"), [*TWO_RANKS, FOUR_RANKS])
def test_the_curve_is_that_of_one_process(
    kind: str, size: int, clone: Path, alone: dict[str, Path]
) -> None:
    name = f"{kind}_{size}"
    wait(start_ranks(clone, *OPTIONS, *KINDS[kind], f"--out_dir=out/{name}", size=size))
    assert_same_curve(alone[kind], clone / "out" / name)
    together = clone / "out" / name
    assert sorted(os.listdir(together)) == sorted(os.listdir(alone[kind]))


def test_dropout_is_that_of_one_process(clone: Path) -> None:
    """The tolerance is for AdamW, which enlarges a gradient that is only rounding."""
    wait([Process(clone, *OPTIONS, "--dropout=0.3", "--out_dir=out/dropout_alone")])
    wait(start_ranks(clone, *OPTIONS, "--dropout=0.3", "--out_dir=out/dropout_ranks"))
    assert_same_curve(clone / "out/dropout_alone", clone / "out/dropout_ranks", rel=2e-3)


@pytest.mark.slow
def test_two_machines(clone: Path, alone: dict[str, Path]) -> None:
    """Two torchruns on this machine, which start a rank each, meet at an address."""
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
        paths = [clone / f"machine_{number}.log" for number in range(2)]
        logs = [files.enter_context(path.open("w+b")) for path in paths]
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
        printed = [path.read_text(encoding="utf-8") for path in paths]
    assert codes == [0, 0], printed
    assert sorted("A sample:" in text for text in printed) == [False, True]
    assert_same_curve(alone["muon"], clone / "out/two_machines")


@pytest.fixture(scope="module")
def killed(clone: Path) -> tuple[Path, list[str]]:
    """A run of two ranks, one of which was killed; and how to take three more steps.

    A copy, out/killed_alone, has taken them in one process.
    """
    path = clone / "out/killed"
    ranks = start_ranks(clone, *OPTIONS, f"--out_dir={path}", "--max_iters=100000")
    ranks[0].wait_until(lambda: len(read_metrics(path)) > 3)
    ranks[1].kill()
    code, printed = ranks[0].wait()
    assert code == 2, printed
    assert "another process of this training is gone" in printed
    step = int(read_checkpoint(path / "last.safetensors")[1]["step"])
    again = ["--init_from=resume", f"--max_iters={step + 3}"]
    alone = clone / "out/killed_alone"
    shutil.copytree(path, alone)
    Process(clone, str(alone), *again).succeed()
    return path, again


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_another_number_of_ranks_resumes_after_a_kill(
    size: int, clone: Path, killed: tuple[Path, list[str]]
) -> None:
    path, again = killed
    copy = clone / f"out/killed_{size}"
    shutil.copytree(path, copy)
    wait(start_ranks(clone, str(copy), *again, size=size))
    assert_same_curve(clone / "out/killed_alone", copy)


def test_only_rank_0_has_watchers(clone: Path) -> None:
    pytest.importorskip("tensorboard")
    options = [*OPTIONS, "--max_iters=2", "--watchers=page,tensorboard"]
    wait(start_ranks(clone, *options, "--out_dir=out/watched"))
    assert len(list((clone / "out/watched/tensorboard").iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGTERM")
def test_two_ranks_stopped_and_resumed_equal_one_process(clone: Path) -> None:
    """Metrics, checkpoints and words.

    With two micro-batches on two ranks everything should be equal bit for bit: of two addends the
    order does not matter. The tolerance is for matrix products that depend on where in memory a
    gradient lies.
    """
    options = [
        "--corpus=text.txt",
        *TINY,
        "--device=cpu",
        "--micro_batch_size=2",
        "--dropout=0.1",
        "--val_fraction=0.5",
        "--eval_tokens=0",
        "--eval_interval=16",
        "--schedule=constant",
        "--patience=0",
    ]
    two = clone / "out/two"
    one = clone / "out/one"
    ranks = start_ranks(clone, *options, "--out_dir=out/two", "--max_iters=100000")
    ranks[0].wait_until(lambda: len(read_metrics(two)) > 3)
    ranks[1].send_signal(signal.SIGTERM)
    (code, printed), (_, nothing) = (rank.wait() for rank in ranks)
    step = int(read_metrics(two)[-1]["step"])
    assert code == 143
    assert (
        f"Stopped by SIGTERM at step {step:,}. To resume:\n"
        "  torchrun --standalone --nproc_per_node=2 train.py out/two --init_from=resume\n"
    ) in printed
    assert len(re.findall(r"2 ranks of cpu with \d+ threads?, ", printed)) == 1
    assert nothing == ""

    last = f"--max_iters={step + 3}"
    ranks = start_ranks(clone, *options, "--out_dir=out/two", last, "--init_from=resume")
    (code, printed), (_, nothing) = (rank.wait() for rank in ranks)
    assert code == 0, printed
    for said in (f"resuming out/two at step {step:,}", "The best model, of step", "A sample:"):
        assert printed.count(said) == 1
    assert nothing == ""

    Process(clone, *options, "--out_dir=out/one", last).succeed()
    assert len(without_clocks(one)) == step + 5
    for together, alone in zip(without_clocks(two), without_clocks(one), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    assert sorted(os.listdir(two)) == sorted(os.listdir(one))
