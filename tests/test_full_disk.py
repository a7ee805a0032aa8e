"""A full disk costs no checkpoint: training goes on, and resuming writes what is lacking."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine.run_files
from config.files import write_atomically
from config.schema import ModelConfig
from engine.checkpoint import save_checkpoint
from engine.metrics import Record, append_line
from engine.state import TrainState
from model import GPT
from tests.conftest import call
from tests.one_run import RUN, files, files_of_at_most, resume, steps, train
from tests.processes import assert_same_checkpoints, read_checkpoint

EVALUATED = [0, 1, 2, 4, 6]  # the steps of such a run before which its model is measured

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with files_of_at_most(100):
        append_line(path, {"step": 0, "train_nll": 1.5})
        before = path.read_bytes()
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                append_line(path, {"step": 1, "text": "long" * 25})
            assert path.read_bytes() == before
    append_line(path, {"step": 2})
    assert steps(tmp_path) == [0, 2]


def test_a_full_disk_is_told_once_and_training_continues(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of two steps are lost, and the lines after them are written."""

    def fail(path: Path, record: Record) -> None:
        if path.name == "metrics.jsonl" and record["step"] in (2, 3):
            raise OSError(28, "No space left on device")
        append_line(path, record)

    monkeypatch.setattr(engine.run_files, "append_line", fail)
    printed = train().stdout
    warning = "warning: out/run/metrics.jsonl could not be written (No space left on device)"
    assert printed.count(warning) == 1
    assert steps(data_dir / "out/run") == [0, 1, 4, 5, 6, 6]


def test_a_full_disk_is_told_with_the_name_of_the_file(data_dir: Path) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as raised:
        write_atomically(Path("page.html"), bytes(1000))
    assert raised.value.filename == "page.html"
    assert not Path("page.html").exists()


def test_a_full_disk_costs_no_checkpoint_and_training_continues(data_dir: Path) -> None:
    train("--schedule=constant", "--max_iters=3")
    run = data_dir / "out/run"
    names = ("last.safetensors", "previous.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    # a little less than a checkpoint needs: the numbers in it have more digits or fewer
    room = len(before["last.safetensors"]) - 500
    with files_of_at_most(room):
        done = resume("--schedule=constant", returns=2)
    assert done.stdout.count("warning: out/run/last.safetensors could not be written (") == 1
    assert "File too large" in done.stdout
    assert done.stderr.startswith(
        "error: out/run: the last checkpoint could not be written; make room, or move"
    )
    assert steps(run) == [*range(7)]
    assert {name: (run / name).read_bytes() for name in names} == before
    assert not list(run.glob(".*"))
    assert "resuming out/run at step 3\n" in resume("--schedule=constant").stdout
    call("train.py", *RUN, "--schedule=constant", "--out_dir=out/roomy")
    assert_same_checkpoints(run / "last.safetensors", data_dir / "out/roomy/last.safetensors")


@pytest.fixture
def best_fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the disk full when the best model of some steps is saved; sets validation losses."""
    count_evaluation = TrainState.count_evaluation

    def choose(losses: dict[int, float], *steps: int) -> None:
        def save(path: Path, model: GPT, state: TrainState, *arguments: Any) -> None:
            if path.name == "best.safetensors" and state.step in steps:
                raise OSError(28, "No space left on device")
            save_checkpoint(path, model, state, *arguments)

        def count(self: TrainState, record: Record, epochs: float) -> bool:
            record["val_nll"] = losses[self.step]
            return count_evaluation(self, record, epochs)

        monkeypatch.setattr(engine.run_files, "save_checkpoint", save)
        monkeypatch.setattr(TrainState, "count_evaluation", count)

    return choose


def test_the_best_model_is_the_one_on_disk(data_dir: Path, best_fails: Callable[..., None]) -> None:
    """One that could not be written does not count: the next that is better than it is saved."""
    losses = {0: 3.0, 1: 3.0, 2: 2.5, 4: 2.0, 6: 2.2}
    best_fails(losses, 4)
    printed = train().stdout
    warning = "warning: out/run/best.safetensors could not be written (No space left on device)"
    assert warning in printed
    assert "The best model, of step 6 of 6, has a loss of " in printed
    state = read_checkpoint(data_dir / "out/run/best.safetensors")[1]
    assert (state["step"], state["best_nll"]) == (6, 2.2)


@pytest.mark.parametrize("steps", [[6], EVALUATED])
def test_a_best_model_that_could_not_be_written_at_the_end_is_written_on_resuming(
    data_dir: Path, best_fails: Callable[..., None], steps: list[int]
) -> None:
    losses = {0: 3.0, 1: 3.0, 2: 2.5, 4: 2.4, 6: 2.0}
    best_fails(losses, *steps)
    told = train(returns=2).stderr
    assert told.startswith("error: out/run: the best checkpoint could not be written; make room")
    assert not (data_dir / "out/run/verdict.txt").exists()
    best_fails(losses)
    assert "The best model, of step 6 of 6, has a loss of " in resume().stdout
    assert "it is finished" in resume().stdout


def test_errors_of_a_disk_say_what_the_system_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do errors of safetensors, and of a line whose file could not be made."""
    cfg = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16)
    model = GPT(cfg, 13)
    path = tmp_path / "best.safetensors"
    with files_of_at_most(2000), pytest.raises(OSError, match="File too large") as raised:
        save_checkpoint(path, model, TrainState())
    assert raised.value.errno == 27
    assert raised.value.filename == str(path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="No space left on device") as raised:
        append_line(tmp_path / "history.jsonl", {"step": 0})
    assert raised.value.filename == str(tmp_path / "history.jsonl")


def test_directories_that_cannot_be_written_are_one_clear_line(
    example: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test holds for root too, who may write anywhere but in /proc."""
    for out in ("/proc/run", "/proc/self/run"):
        assert "/proc" in train(f"--out_dir={out}", returns=2).stderr
    shutil.copytree(example / "out", data_dir / "out")
    rename = os.replace

    def refuse(old: Path, new: Path) -> None:
        if "out/run" in str(new):
            raise PermissionError(13, "Permission denied", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "replace", refuse)
    before = files(data_dir / "out")
    told = resume("--max_iters=9", returns=2).stderr
    assert told == "error: out/run/config.toml: Permission denied\n"
    assert files(data_dir / "out") == before
