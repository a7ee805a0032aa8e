"""A lack of memory ends in one line that names the option to change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from config.cli import load_config
from config.errors import UserError, out_of_memory
from engine.state import StepResult, TrainState
from report.words import advise_less_memory
from tests.conftest import TINY, call, read_metrics
from tests.one_run import RUN, STEPS, resume, train
from tests.processes import Process
from train import train_step

pytestmark = pytest.mark.usefixtures("numbers_only")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 17 GB, ...). "
            "Tried to allocate 5 GB on private pool."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_option_to_change(error: Exception) -> None:
    cfg, _ = load_config(["--batch_size=64", "--block_size=64"])
    advice = advise_less_memory(cfg)
    says = "^out of memory: use --micro_batch_size=8, which gives the same result"
    with pytest.raises(UserError, match=says), out_of_memory(advice):
        raise error


@pytest.mark.parametrize(
    ("size", "says"), [(16, "use --micro_batch_size=8, which"), (1, "use a smaller --block_size")]
)
def test_the_advice_depends_on_the_micro_batch(size: int, says: str) -> None:
    cfg, _ = load_config(["--batch_size=64", f"--micro_batch_size={size}"])
    assert advise_less_memory(cfg).startswith(says)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory("never"):
        raise RuntimeError("a bug")


def test_a_run_out_of_memory_continues_with_less(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the error says: after three steps, with smaller micro-batches, to the same losses."""
    call("train.py", *RUN, "--out_dir=out/roomy", "--dtype=float32")

    def step(*arguments: Any, state: TrainState, **options: Any) -> StepResult:
        if state.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return train_step(*arguments, state=state, **options)

    with monkeypatch.context() as patch:
        patch.setattr("train.train_step", step)
        told = train("--dtype=float32", returns=2).stderr
    assert "use --micro_batch_size=1, which gives the same result" in told
    assert "--init_from=resume" in told
    resume("--micro_batch_size=1", "--dtype=float32")
    narrow, roomy = (read_metrics(data_dir / "out" / name) for name in ("run", "roomy"))
    assert [record["step"] for record in narrow] == STEPS
    for one, other in zip(narrow, roomy, strict=True):
        for key in {"train_nll", "val_nll", "grad_norm", "best_val_nll"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-5)


@pytest.mark.slow
def test_a_real_lack_of_memory_is_one_clear_line(clone: Path) -> None:
    """An address space too small for the attention of long sequences."""
    prelude = (
        "import resource, torch; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)); "
        "torch.set_num_threads(1)"
    )  # with more cores, more micro-batches are in memory
    code, printed = Process(
        clone,
        "--corpus=text.txt",
        *TINY,
        "--out_dir=out/large",
        "--device=cpu",
        "--max_iters=1",
        "--batch_size=256",
        "--block_size=512",
        "--n_embd=256",
        "--n_layer=6",
        "--micro_batch_size=256",
        prelude=prelude,
    ).wait()
    assert code == 2, printed
    assert printed.splitlines()[-1].startswith(
        "error: out of memory: use --micro_batch_size=128, which gives the same"
    )
    assert "Traceback" not in printed
