"""A damaged file of a run is noticed, and the checkpoint before it is used."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import call
from tests.one_run import STEPS, files, flip, resume, steps
from tests.processes import assert_same_checkpoints, read_checkpoint
from tests.test_checkpoints import forge

pytestmark = pytest.mark.usefixtures("numbers_only")


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(finished: Path, cut: bool) -> None:
    """previous.safetensors leads to the same end; if it is damaged too, best stands in."""

    def damage(path: Path, at: int) -> None:
        if cut:
            path.write_bytes(path.read_bytes()[:-7])
        else:
            flip(path, at)

    last = finished / "last.safetensors"
    shutil.copy(last, "whole")
    damage(last, -20)
    printed = resume().stdout
    assert "out/run/last.safetensors: damaged (" in printed
    assert "using previous.safetensors instead" in printed
    assert "the optimizers start anew" not in printed
    assert_same_checkpoints(last, Path("whole"))
    assert steps(finished) == STEPS

    damage(last, -20)
    damage(finished / "previous.safetensors", -40)
    printed = resume("--max_iters=8").stdout
    assert "out/run/last.safetensors: damaged (" in printed
    assert "out/run/previous.safetensors: damaged (" in printed
    assert "using best.safetensors instead" in printed
    assert "the optimizers start anew" in printed
    assert read_checkpoint(last)[1]["step"] == 8
    assert steps(finished) == [*range(9), 8]


def test_forged_optimizer_states_are_damage(finished: Path) -> None:
    """Their hash is right, but fused AdamW would read and write beyond them: SIGSEGV, at best."""
    forge(finished / "last.safetensors", {"optimizer.0.0.exp_avg": torch.zeros(1)})
    forge(finished / "previous.safetensors", {}, {"skipped_steps": "5"})
    printed = resume("--max_iters=8").stdout
    damage = "out/run/last.safetensors: damaged (optimizer.0.0.exp_avg is torch.float32 (1,)"
    assert damage in printed
    assert "out/run/previous.safetensors: damaged (" in printed
    assert "using best.safetensors instead; the optimizers start anew" in printed


def test_where_no_checkpoint_is_whole_nothing_is_touched(finished: Path) -> None:
    for name in ("last", "previous", "best"):
        flip(finished / f"{name}.safetensors", -100)
    before = files(finished)
    said = resume(returns=2).stderr
    for name in ("last", "previous", "best"):
        assert f"out/run/{name}.safetensors: damaged" in said
    assert said.endswith("; no whole checkpoint is left: start again without --init_from=resume\n")
    assert files(finished) == before


def test_a_run_whose_checkpoints_are_gone_keeps_its_metrics(finished: Path) -> None:
    for name in ("last", "previous", "best"):
        (finished / f"{name}.safetensors").unlink()
    before = files(finished)
    said = resume(returns=2).stderr
    assert "out/run: its checkpoints are gone; no whole checkpoint is left: start again" in said
    assert files(finished) == before


@pytest.mark.parametrize(("checkpoint", "other"), [("best", "last"), ("last", "best")])
def test_a_damaged_checkpoint_is_not_sampled(finished: Path, checkpoint: str, other: str) -> None:
    flip(finished / f"{checkpoint}.safetensors", -1)
    done = call("sample.py", "out/run", f"--checkpoint={checkpoint}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: out/run/{checkpoint}.safetensors: damaged (")
    assert done.stderr.endswith(f"; try --checkpoint={other}\n")
    assert call("sample.py", "out/run", f"--checkpoint={other}", "--max_new_tokens=5").stdout


@pytest.mark.parametrize("file", ["config.toml", "corpus.json", "tokenizer.json"])
def test_a_run_of_which_a_file_is_cut_off_is_refused(finished: Path, file: str) -> None:
    path = finished / file
    path.write_bytes(path.read_bytes()[:35])
    for command in (["sample.py", "out/run"], ["evaluate.py", "out/run"]):
        done = call(*command, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"out/run/{file}: " in done.stderr
