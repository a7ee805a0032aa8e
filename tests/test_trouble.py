"""What may go wrong while a run trains: bad numbers, full disks, damage, two at once, other
options, no memory.
"""

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import engine.evaluation
import engine.run_files
from config.cli import load_config
from config.errors import UserError, out_of_memory
from config.files import write_atomically
from config.schema import Config, ModelConfig, OptimConfig
from data.batches import Batch, TrainBatches
from engine.checkpoint import load_model, save_checkpoint
from engine.device import Device
from engine.metrics import Record, append_line
from engine.optim import make_optimizers
from engine.run import lock_run, open_run
from engine.run_files import RunFiles
from engine.state import SPIKE_STEPS, StepResult, TrainState
from loss import LossMeans, LossSums
from model import GPT
from report.outcome import measure_best
from report.progress import describe_trouble
from report.trainlog import OUTCOME
from report.words import advise_less_memory
from tests.conftest import (
    TINY,
    Done,
    call,
    make_text,
    only_numbers,
    other_dtype,
    read_metrics,
    take_step,
    trained_dtype,
    without_clocks,
    write_checkpoint,
)
from tests.processes import Process, assert_same_checkpoints, read_checkpoint
from tests.test_checkpoints import forge
from train import train_step

CPU = Device(torch.device("cpu"), torch.float32)
RUN = ["--corpus=text.txt", "--out_dir=out/run", *TINY]
STEPS = [*range(7), 6]  # in the lines of metrics of such a run; the last line is the best model's


@pytest.fixture(autouse=True)
def numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    only_numbers(monkeypatch)


def train(*arguments: str, returns: int = 0) -> Done:
    done = call("train.py", *RUN, *arguments, check=False)
    assert done.returncode == returns, done.stderr
    assert not done.stderr or (done.stderr.startswith("error: ") and done.stderr.count("\n") == 1)
    return done


def resume(*arguments: str, returns: int = 0) -> Done:
    return train("--init_from=resume", *arguments, returns=returns)


def steps(run: Path) -> list[float]:
    return [record["step"] for record in read_metrics(run)]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run in out/run/, and what it was prepared from."""
    folder = tmp_path_factory.mktemp("example")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.prepare.DATA", folder / "data")
        patch.chdir(folder)
        (folder / "text.txt").write_text(make_text(), encoding="utf-8")
        train()
    return folder


@pytest.fixture
def finished(example: Path, data_dir: Path) -> Path:
    """A finished run of one's own, in the current directory."""
    shutil.copytree(example, data_dir, dirs_exist_ok=True)
    return data_dir / "out/run"


# Bad numbers.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_with_bad_numbers_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, bad: float, where: str
) -> None:
    """Neither weights nor optimizers."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), 13)
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    tokens = np.random.default_rng(0).integers(13, size=(4, 9))
    batch = [Batch(tokens[:, :-1], tokens[:, 1:])]
    assert take_step(model, optimizers, batch, Config(), CPU).is_valid
    before = copy.deepcopy(
        [model.state_dict(), *(optimizer.state_dict()["state"] for optimizer in optimizers)]
    )
    with monkeypatch.context() as patch:
        if where == "loss":
            forward = model.forward

            def fail(*arguments: Any) -> LossSums:
                sums = forward(*arguments)
                assert isinstance(sums, LossSums)
                return sums._replace(objective=sums.objective + bad)

            patch.setattr(model, "forward", fail)
        else:
            clip = torch.nn.utils.clip_grad_norm_
            patch.setattr(
                "torch.nn.utils.clip_grad_norm_", lambda *arguments: clip(*arguments) + bad
            )
        result = take_step(model, optimizers, batch, Config(), CPU, step=1)
    assert (result.is_finite, result.is_valid, result.num_targets) == (False, False, 32)
    after = [model.state_dict(), *(optimizer.state_dict()["state"] for optimizer in optimizers)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    assert take_step(model, optimizers, batch, Config(), CPU, step=2).is_valid


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the loss of some steps NaN."""

    def choose(*chosen: int) -> None:
        def step(model: GPT, *others: Any, state: TrainState, **options: Any) -> StepResult:
            if state.step not in chosen:
                return train_step(model, *others, state=state, **options)
            weight = model.wte.weight.detach().clone()
            model.wte.weight.data.fill_(math.nan)
            result = train_step(model, *others, state=state, **options)
            model.wte.weight.data.copy_(weight)
            return result

        monkeypatch.setattr("train.train_step", step)

    return choose


def test_nonfinite_steps_are_counted_and_told(data_dir: Path, spoil: Callable[..., None]) -> None:
    spoil(1, 2, 4)
    printed = train().stdout
    assert (
        "step 2: the loss is nan and the norm of the gradient nan: the step changes nothing, and counts in "
        "nonfinite_steps"
    ) in printed
    assert "because their loss or gradient was not finite: 3." in printed
    *records, _ = read_metrics(data_dir / "out/run")
    assert [record.get("nonfinite_steps", 0) for record in records] == [0, 0, 1, 2, 2, 3, 3]
    assert [record.get("nonfinite_in_a_row", 0) for record in records] == [0, 0, 1, 2, 0, 1, 0]
    assert [number for number, record in enumerate(records) if "train_nll" in record] == [1, 4, 6]


def test_too_many_nonfinite_steps_stop_training(data_dir: Path, spoil: Callable[..., None]) -> None:
    """With a word on what to try, and weights that are as before. Resuming gives it a new chance."""
    spoil(3, 4)
    printed = train("--max_nonfinite_steps=2", returns=1).stdout
    assert (
        "the last 2 steps had no finite loss and gradient. best.safetensors has the model from "
        "before.\nTry smaller steps: --learning_rate="
    ) in printed
    assert steps(data_dir / "out/run") == [*range(6), 5]
    for checkpoint in ("best", "last"):
        model, _ = load_model(open_run(data_dir / "out/run"), checkpoint, CPU)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    resume("--max_nonfinite_steps=2")


def test_a_validation_loss_that_is_not_finite_is_never_the_best(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_loss, calls = engine.evaluation.measure_loss, iter(range(100))

    def fail(*arguments: Any) -> LossMeans:
        loss = measure_loss(*arguments)
        return loss if next(calls) == 1 else loss._replace(nll=math.nan)

    monkeypatch.setattr(engine.evaluation, "measure_loss", fail)
    train()
    assert read_checkpoint(data_dir / "out/run/best.safetensors")[1]["step"] == 1


def count(state: TrainState, nll: float) -> float | None:
    """Count a step with this loss; returns its spike."""
    state.step += 1
    return state.count_step(result(nll))


def result(nll: float) -> StepResult:
    """Of a step with 10 targets."""
    return StepResult(
        LossSums(*(torch.tensor(value) for value in (nll * 10, nll * 10, 0, 0, 0, 5, 10))), 1.0, 0.1
    )


def test_a_spike_is_a_jump_above_the_noise() -> None:
    """Not the noise itself, nor the fall at the beginning, nor the first steps; and it is told
    once.
    """
    rng = np.random.default_rng(0)
    calm = [2 + 2 * math.exp(-step / 30) + 0.1 * rng.standard_normal() for step in range(400)]
    state = TrainState()
    assert not any(count(state, nll) for nll in calm)
    assert count(state, 3.0) == pytest.approx(1.0, abs=0.1)
    for _ in range(10):
        count(state, 3.0)
    assert state.loss_spikes <= 2
    assert state.record()["loss_spikes"] == state.loss_spikes
    young = TrainState()
    for nll in [1.0, *[9.0] * (SPIKE_STEPS - 1)]:
        assert count(young, nll) is None
    assert count(TrainState(), math.nan) is None


def test_spikes_are_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(self: TrainState, result: StepResult) -> float | None:
        self.loss_spikes += self.step == 3
        return 0.75 if self.step == 3 else None

    monkeypatch.setattr(TrainState, "count_step", count)
    printed = train().stdout
    assert printed.count("step 3: a spike: the training loss is ") == 1
    assert "0.75 nats above the mean of the steps before" in printed
    assert "Spikes of the training loss (a lower --learning_rate" in printed


def test_troubles_are_told_ten_times() -> None:
    state, told = TrainState(), []
    for _ in range(300):
        spike = count(state, math.nan)
        told.append(describe_trouble(state, result(math.nan), spike))
    assert [number for number, line in enumerate(told, 1) if line] == [*range(1, 11), 100, 200, 300]


# Disks.


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does: a write fails in the middle of a file."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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

    def fail(path: Path, record: Record) -> None:
        if path.name == "metrics.jsonl" and record["step"] in (2, 3):
            raise OSError(28, "No space left on device")
        append_line(path, record)

    monkeypatch.setattr(engine.run_files, "append_line", fail)
    printed = train().stdout
    assert (
        printed.count(
            "warning: out/run/metrics.jsonl could not be written (No space left on device)"
        )
        == 1
    )
    assert steps(data_dir / "out/run") == [0, 1, 4, 5, 6, 6]


def test_a_full_disk_is_told_with_the_name_of_the_file(data_dir: Path) -> None:
    with files_of_at_most(100), pytest.raises(OSError, match="File too large") as raised:
        write_atomically(Path("page.html"), bytes(1000))
    assert raised.value.filename == "page.html"
    assert not Path("page.html").exists()


def test_a_full_disk_costs_no_checkpoint_and_training_continues(data_dir: Path) -> None:
    train("--schedule=constant", "--max_iters=3")
    run = data_dir / "out/run"
    before = {
        name: (run / name).read_bytes() for name in ("last.safetensors", "previous.safetensors")
    }
    # the numbers in it have more digits or fewer
    with files_of_at_most(len(before["last.safetensors"]) - 500):
        done = resume("--schedule=constant", returns=2)
    assert done.stdout.count("warning: out/run/last.safetensors could not be written (") == 1
    assert "File too large" in done.stdout
    assert done.stderr.startswith(
        "error: out/run: the last checkpoint could not be written; make room, or move"
    )
    assert steps(run) == [*range(7)]
    assert {name: (run / name).read_bytes() for name in before} == before
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
    best_fails({0: 3.0, 1: 3.0, 2: 2.5, 4: 2.0, 6: 2.2}, 4)
    printed = train().stdout
    assert (
        "warning: out/run/best.safetensors could not be written (No space left on device)"
        in printed
    )
    assert "The best model, of step 6 of 6, has a loss of " in printed
    state = read_checkpoint(data_dir / "out/run/best.safetensors")[1]
    assert (state["step"], state["best_nll"]) == (6, 2.2)


@pytest.mark.parametrize("steps", [(6,), (0, 1, 2, 4, 6)])
def test_a_best_model_that_could_not_be_written_at_the_end_is_written_on_resuming(
    data_dir: Path, best_fails: Callable[..., None], steps: tuple[int, ...]
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
    """Also of safetensors, and of a line whose file could not be made."""
    model = GPT(ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), 13)
    with files_of_at_most(2000), pytest.raises(OSError, match="File too large") as raised:
        save_checkpoint(tmp_path / "best.safetensors", model, TrainState())
    assert (raised.value.errno, raised.value.filename) == (27, str(tmp_path / "best.safetensors"))

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="No space left on device") as raised:
        append_line(tmp_path / "history.jsonl", {"step": 0})
    assert raised.value.filename == str(tmp_path / "history.jsonl")


def test_directories_that_cannot_be_written_are_one_clear_line(
    example: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root too, who may write anywhere but in /proc."""
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
    assert (
        resume("--max_iters=9", returns=2).stderr
        == "error: out/run/config.toml: Permission denied\n"
    )
    assert files(data_dir / "out") == before


# Damage.


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(finished: Path, cut: bool) -> None:
    """By previous.safetensors, from which the end is the same; if that is damaged too, by
    best.safetensors.
    """
    shutil.copy(finished / "last.safetensors", "whole")
    for damaged, instead, last_step in (
        (["last"], "previous", 6),
        (["last", "previous"], "best", 8),
    ):
        for name in damaged:
            path = finished / f"{name}.safetensors"
            if cut:
                path.write_bytes(path.read_bytes()[:-7])
            else:
                flip(path, -20 if name == "last" else -40)
        printed = resume(f"--max_iters={last_step}").stdout
        assert f"using {instead}.safetensors instead" in printed
        assert ("the optimizers start anew" in printed) == (instead == "best")
        for name in damaged:
            assert f"out/run/{name}.safetensors: damaged (" in printed
        assert read_checkpoint(finished / "last.safetensors")[1]["step"] == last_step
        if instead == "previous":
            assert_same_checkpoints(finished / "last.safetensors", Path("whole"))
        assert steps(finished) == [*range(last_step + 1), last_step]


def test_forged_optimizer_states_are_damage(finished: Path) -> None:
    """With the right hash. Fused AdamW would read and write behind them: SIGSEGV, at best."""
    forge(finished / "last.safetensors", {"optimizer.0.0.exp_avg": torch.zeros(1)})
    forge(finished / "previous.safetensors", {}, {"skipped_steps": "5"})
    printed = resume("--max_iters=8").stdout
    assert (
        "out/run/last.safetensors: damaged (optimizer.0.0.exp_avg is torch.float32 (1,)" in printed
    )
    assert "out/run/previous.safetensors: damaged (" in printed
    assert "using best.safetensors instead; the optimizers start anew" in printed


def test_where_no_checkpoint_is_whole_nothing_is_touched(finished: Path) -> None:
    for name in ("last", "previous", "best"):
        flip(finished / f"{name}.safetensors", -100)
    before = files(finished)
    said = resume(returns=2).stderr
    assert all(
        f"out/run/{name}.safetensors: damaged" in said for name in ("last", "previous", "best")
    )
    assert said.endswith("; no whole checkpoint is left: start again without --init_from=resume\n")
    assert files(finished) == before


def test_a_run_whose_checkpoints_are_gone_keeps_its_metrics(finished: Path) -> None:
    for name in ("last", "previous", "best"):
        (finished / f"{name}.safetensors").unlink()
    before = files(finished)
    assert (
        "out/run: its checkpoints are gone; no whole checkpoint is left: start again"
        in resume(returns=2).stderr
    )
    assert files(finished) == before


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_damaged_checkpoint_is_not_sampled(finished: Path, checkpoint: str) -> None:
    flip(finished / f"{checkpoint}.safetensors", -1)
    other = "last" if checkpoint == "best" else "best"
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


# Two at once.


def test_a_second_training_in_the_same_directory_is_refused(finished: Path) -> None:
    """Whatever it wants, and without harm to the first; but one may look at the run."""
    before = files(finished.parent)
    with lock_run(load_config(RUN)[0]):
        for options in (
            (),
            ("--init_from=resume",),
            ("--init_from=auto",),
            (f"--out_dir={finished}/../run",),
        ):
            assert (
                "another process is training there; wait for it, or choose another --out_dir"
                in (train(*options, returns=2).stderr)
            )
        assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    assert files(finished.parent) == before
    assert "the run that was in out/run is now in out/run.1\n" in train("--max_iters=1").stdout
    assert not list(Path("out").glob(".*"))
    assert sorted(files(Path("out/run.1")).values()) == sorted(before.values())


def test_preparations_at_once_do_not_disturb_each_other(clone: Path) -> None:
    (clone / "twice.txt").write_text(make_text() * 20, encoding="utf-8")
    processes = [
        subprocess.Popen(
            [sys.executable, "data/prepare.py", "--corpus=twice.txt"],
            cwd=clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    for process in processes:
        printed, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert "6-gram" in printed
    assert len(list((clone / "data").glob("twice.txt-*"))) == 1
    assert not list((clone / "data").glob(".*"))


# Other options on resume.


def test_what_may_change_is_changed_and_noted(finished: Path) -> None:
    changes = {
        "max_iters": 9,
        "learning_rate": 0.012,
        "eval_interval": 3,
        "log_interval": 2,
        "micro_batch_size": 2,
        "dropout": 0.1,
        "device": "cpu",
        "eval_tokens": 100,
    }
    printed = resume(*(f"--{name}={value}" for name, value in changes.items())).stdout
    for said in (
        "max_iters was 6 and is now 9",
        f"learning_rate was {Config().optim.learning_rate} and is now 0.012",
        "device was auto and is now cpu",
    ):
        assert f"\n  {said}\n" in printed
    first, second = map(json.loads, (finished / "history.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 6)
    assert "changes" not in first
    assert {name: now for name, (_, now) in second["changes"].items()} == changes
    assert second["changes"]["max_iters"] == [6, 9]
    cfg = open_run(finished).cfg
    assert (cfg.optim.max_iters, cfg.run.init_from) == (9, "scratch")
    assert steps(finished)[-1] == 9
    assert read_metrics(finished)[-1]["best_step"] > 6  # losses on other targets do not compare


@pytest.mark.parametrize("option", ["seed", "batch_size"])
def test_a_new_seed_or_batch_size_has_to_be_named(finished: Path, option: str) -> None:
    saved = (finished / "config.toml").read_text()
    value = next(line for line in saved.splitlines() if line.startswith(f"{option} = "))
    recipe = Path("other.toml")
    recipe.write_text(
        saved.replace(value, f"{option} = 5").replace("max_iters = 6", "max_iters = 8")
    )
    before = files(finished)
    done = call("train.py", "other.toml", "--out_dir=out/run", "--init_from=resume", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: out/run: {value.replace('=', 'was')} and is now 5: ")
    assert done.stderr.endswith(f"; if you want that, add --{option}=5\n")
    assert files(finished) == before
    call("train.py", "other.toml", "--out_dir=out/run", "--init_from=resume", f"--{option}=5")
    assert open_run(finished).cfg.options()[option] == 5


def forget_windows(path: Path) -> None:
    """Make a checkpoint one of an earlier edition, which did not count windows."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata["sha256"]
    state = json.loads(metadata["state"])
    del state["windows"]
    metadata["state"] = json.dumps(state)
    tensors = load_file(path)
    write_checkpoint(path, tensors, metadata)


@pytest.mark.parametrize("edition", ["this", "earlier"])
def test_another_batch_size_skips_and_repeats_no_window(
    finished: Path, monkeypatch: pytest.MonkeyPatch, edition: str
) -> None:
    assert read_checkpoint(finished / "last.safetensors")[1]["windows"] == 6 * 4
    if edition == "earlier":
        forget_windows(finished / "last.safetensors")
    read: list[int] = []
    get_batch = TrainBatches.__call__

    def note(self: TrainBatches, first_window: int) -> list[Batch]:
        read.append(first_window)
        return get_batch(self, first_window)

    monkeypatch.setattr(TrainBatches, "__call__", note)
    resume("--max_iters=8", "--batch_size=5")
    assert read == [24, 29]
    assert read_checkpoint(finished / "last.safetensors")[1]["windows"] == 34
    resume("--max_iters=9", "--batch_size=2")
    assert read == [24, 29, 34]


def test_a_jump_of_the_learning_rate_is_told(finished: Path) -> None:
    """A finished run goes on: its last step had 1/6 of the peak, and the next has 3/9 of it."""
    peak = Config().optim.learning_rate
    printed = resume("--max_iters=9").stdout
    assert (
        f"\n  the learning rate rises from {peak / 6:.2g} to {peak / 3:.2g}, because its schedule now ends at "
        "step 9\n"
    ) in printed
    constant = ["--learning_rate=0.001", "--schedule=constant"]
    told = resume("--max_iters=10", *constant).stdout
    assert (
        f"\n  the learning rate falls from {peak / 9:.2g} to 0.001, because its schedule now ends"
        in told
    )
    assert "the learning rate" not in resume("--max_iters=12", *constant).stdout


def test_a_new_dtype_has_to_be_named(finished: Path) -> None:
    (finished / "config.toml").rename("other.toml")
    shutil.copy("other.toml", finished / "config.toml")
    was, now = trained_dtype(), other_dtype()
    Path("other.toml").write_text(Path("other.toml").read_text().replace(was, now))
    options = ["other.toml", "--out_dir=out/run", "--init_from=resume", "--max_iters=8"]
    done = call("train.py", *options, check=False)
    assert (
        f"error: out/run: dtype was {was} and is now {now}: the arithmetic changes; if you want"
        in done.stderr
    )
    assert open_run(finished).cfg.run.dtype == was
    printed = call("train.py", *options, f"--dtype={now}").stdout
    assert f"\n  dtype was {was} and is now {now}\n" in printed
    assert open_run(finished).cfg.run.dtype == now


def test_auto_resumes_a_run_or_starts_one(data_dir: Path) -> None:
    assert "resuming" not in train("--init_from=auto", "--max_iters=2").stdout
    assert "resuming out/run at step 2\n  max_iters was 2 and is now 4\n" in (
        train("--init_from=auto", "--max_iters=4").stdout
    )
    assert not (data_dir / "out/run.1").exists()


@pytest.mark.parametrize("options", [[], ["--seed=3"]])
def test_a_finished_run_is_left_as_it_is(finished: Path, options: list[str]) -> None:
    before = files(finished.parent)
    printed = resume(*options).stdout
    assert printed.endswith(
        "it is finished: it has taken 6 steps; to train longer, add --max_iters=12\n"
    )
    assert files(finished.parent) == before
    assert "resuming out/run at step 6\n" in resume("--max_iters=7").stdout


def test_a_run_that_stopped_early_is_finished_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting it again adds no sample. With --patience=0 it goes on as one that never stopped."""
    options = ["--init_from=auto", "--schedule=constant"]
    count_evaluation = TrainState.count_evaluation

    def count(self: TrainState, record: Record, epochs: float) -> bool:
        is_best = count_evaluation(self, record, epochs)
        self.overfitting = int(record["step"] >= 4)
        return is_best

    monkeypatch.setattr(TrainState, "count_evaluation", count)
    train(*options, "--patience=1")
    assert steps(data_dir / "out/run") == [*range(5), 4]
    before = files(data_dir / "out")
    assert train(*options, "--patience=1").stdout.endswith(
        "it is finished: it stopped early at step 4, because it overfitted; to train longer, add "
        "--patience=0\n"
    )
    assert files(data_dir / "out") == before
    train(*options, "--patience=0")
    call("train.py", *RUN, *options, "--patience=0", "--out_dir=out/whole")
    assert without_clocks(data_dir / "out/run") == without_clocks(data_dir / "out/whole")
    run, whole = data_dir / "out/run", data_dir / "out/whole"
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_run_without_a_finite_loss_is_finished_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no best model. Starting it again adds neither a line nor a sample."""
    measure_loss = engine.evaluation.measure_loss
    monkeypatch.setattr(
        engine.evaluation,
        "measure_loss",
        lambda *arguments: measure_loss(*arguments)._replace(nll=math.nan),
    )
    assert "No loss was finite" in train().stdout
    assert steps(data_dir / "out/run") == STEPS
    before = files(data_dir / "out")
    assert "it is finished" in resume().stdout
    assert files(data_dir / "out") == before


@pytest.mark.parametrize("name", [*OUTCOME, "metrics.jsonl", "report.html", "report.js"])
def test_an_outcome_that_could_not_be_written_is_written_on_resuming(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = RunFiles.attempt
    is_at_the_end = False

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def measure(*arguments: Any) -> Record:
        nonlocal is_at_the_end
        is_at_the_end = True
        return measure_best(*arguments)

    def fail(self: RunFiles, file: str, write: Callable[..., object], *arguments: Any) -> bool:
        fails = file == name and is_at_the_end
        return attempt(self, file, refuse if fails else write, *arguments)

    def fail_of_page(path: Path, content: bytes) -> None:
        (refuse if path.name == name else write_atomically)(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("train.measure_best", measure)
        patch.setattr(RunFiles, "attempt", fail)
        patch.setattr("page.page.write_atomically", fail_of_page)
        told = train(returns=2).stderr
    assert (
        f"error: out/run: {name} could not be written; make room, and finish the run with: "
        "python train.py"
    ) in told
    assert "it is finished" not in resume().stdout
    assert "it is finished" in resume().stdout
    call("train.py", *RUN, "--out_dir=out/whole")
    run, whole = data_dir / "out/run", data_dir / "out/whole"
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    for file in ("evaluation.json", "curves.png", "verdict.txt", "samples.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert without_clocks(run)[-1] == without_clocks(whole)[-1]


def test_a_finished_run_of_an_earlier_edition_is_finished(finished: Path) -> None:
    """Its last line says so, whatever else is there."""
    (finished / "verdict.txt").unlink()
    assert "it is finished" in resume().stdout


def test_a_config_that_was_edited_by_hand_still_works(finished: Path) -> None:
    path = finished / "config.toml"
    saved = path.read_text()
    path.write_text(
        "# my best run\n"
        + saved.replace("max_iters = 6", "max_iters = 7").replace(
            "eval_interval = 2", "eval_interval = 7"
        )
    )
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    call("train.py", "out/run", "--init_from=resume")
    assert steps(finished) == [*range(8), 7]
    assert open_run(finished).cfg.run.eval_interval == 7
    for old, new, says in (
        ("max_iters = 7", 'max_iters = "many"', "error: out/run/config.toml: max_iters=many: "),
        ("seed = ", "sead = ", "error: out/run/config.toml: run.sead: no such option"),
        ("[model]", "[model", "error: out/run/config.toml: not a readable TOML file: "),
    ):
        path.write_text(saved.replace("max_iters = 6", "max_iters = 7").replace(old, new))
        before = files(finished)
        done = call("train.py", "out/run", "--init_from=resume", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(says)
        assert files(finished) == before


def edit(run: Path, name: str, value: str) -> None:
    """Replace the value of an option in config.toml, as a user does in an editor."""
    path = run / "config.toml"
    text = path.read_text(encoding="utf-8")
    edited = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    assert edited != text
    path.write_text(edited, encoding="utf-8")


EDITS = {
    "n_head": "4",
    "form": '"gpt2"',
    "qk_norm": "false",
    "embedding_norm": "false",
    "block_size": "16",
    "softcap": "3.0",
    "tied": "true",
    "n_layer": "999999",
    "n_embd": "32",
    "ngram_embedding": "2",
    "mask": '"the"',
    "val_fraction": "0.5",
    "documents": '"lines"',
}


@pytest.mark.parametrize("name", EDITS)
def test_a_config_edited_to_another_model_or_text_is_refused(finished: Path, name: str) -> None:
    """Before a model of that size is built; the same weights would have another loss."""
    edit(finished, name, EDITS[name])
    before = files(finished)
    done = call("sample.py", "out/run", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: out/run/best.safetensors: its weights belong to {name}=")
    value = {"true": "True", "false": "False"}.get(EDITS[name], EDITS[name].strip('"'))
    assert f", not {name}={value}; set that back in out/run/config.toml, or train " in done.stderr
    assert files(finished) == before


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "out/run", "--init_from=resume", "--max_iters=9"],
        ["evaluate.py", "out/run"],
        ["evaluate.py", "out/run", "--checkpoint=last", "--explain=the cat"],
        ["compress.py", "out/run", "text.txt"],
        ["convert.py", "out/run", "model"],
        ["evaluate.py", "out/other", "--against=out/run"],
        ["train.py", "--corpus=text.txt", "--init_from=out/run", "--out_dir=out/finer", *TINY],
        ["train.py", "--corpus=text.txt", "--teacher=out/run", "--out_dir=out/student", *TINY],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("n_head", ["4", "3"])
def test_every_command_notices_an_edited_config(
    finished: Path, command: list[str], n_head: str
) -> None:
    """With 3 heads, n_embd=16 does not make sense at all."""
    shutil.copytree(finished, finished.with_name("other"))
    edit(finished, "n_head", n_head)
    before = files(finished)
    if "--init_from=out/run" in command:
        command = [word for word in command if "n_head" not in word]  # it comes from the source
    done = call(*command, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    says = {
        "4": "its weights belong to n_head=2, not n_head=4; set that back in out/run/config.toml",
        "3": "n_embd=16 is not a multiple of 2 n_head = 6; try n_embd=18",
    }
    assert says[n_head] in done.stderr
    assert files(finished) == before
    assert not (finished / "../finer/config.toml").exists()


def test_what_may_be_edited_in_a_config(finished: Path) -> None:
    edits = {
        "dropout": "0.1",
        "learning_rate": "0.02",
        "corpus": '"text.txt#"',
        "watchers": '"page,mlflow"',
        "teacher": '"out/gone"',
    }
    for name, value in edits.items():
        edit(finished, name, value)
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout


def test_a_checkpoint_of_an_earlier_edition_is_read(finished: Path) -> None:
    """It does not say which options its weights belong to."""
    for path in finished.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        del metadata["sha256"], metadata["options"]
        write_checkpoint(path, tensors, metadata)
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    assert "resuming out/run at step 6" in resume("--max_iters=7").stdout


# Memory.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 17 GB, ...). Tried to allocate 5 GB on private pool."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_option_to_change(error: Exception) -> None:
    advice = advise_less_memory(load_config(["--batch_size=64", "--block_size=64"])[0])
    with (
        pytest.raises(
            UserError,
            match=r"^out of memory: use --micro_batch_size=8, which gives the same result",
        ),
        out_of_memory(advice),
    ):
        raise error
    for size, says in ((16, "use --micro_batch_size=8, which"), (1, "use a smaller --block_size")):
        advice = advise_less_memory(
            load_config(["--batch_size=64", f"--micro_batch_size={size}"])[0]
        )
        assert advice.startswith(says)
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory("never"):
        raise RuntimeError("a bug")


def test_a_run_out_of_memory_continues_with_less(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three steps, as the error says: in micro-batches of half the size, to the same losses."""
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


# What users do to runs by hand.


def test_a_damaged_line_of_metrics_takes_no_other_with_it(finished: Path) -> None:
    metrics = finished / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"step", b"st\xb3p")
    lines[3] = lines[3].replace(b'"step": 3', b'"step": 73')
    metrics.write_bytes(b"\n".join(lines))
    resume("--max_iters=8")
    assert metrics.read_bytes().startswith(b"\n".join(lines[:7]))
    assert steps(finished) == [0, 1, 73, 4, 5, 6, 7, 8, 8]


ODD_LINES = [
    b"",
    b'{"step": "x", "val_nll": "y", "seconds": 1, "tokens": 1}',
    b"[[" * 10**5,
    b"\xff",
    b'{"step": 5}',
    b'{"val_nll": 5}',
    b'{"step": true}',
    b"null",
]


def test_odd_metrics_stop_nothing(finished: Path) -> None:
    metrics = finished / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b"\n".join(ODD_LINES) + b"\n")
    for x in ("step", "tokens"):
        assert call("curves.py", "out/run", f"--x={x}", "--terminal").stdout
    resume("--max_iters=7")
    for line in ODD_LINES:
        metrics.write_bytes(line)
        assert call("curves.py", "out/run", "--terminal", check=False).returncode in (0, 2)
    resume("--max_iters=8")
    metrics.unlink()
    resume("--max_iters=9")


def test_a_copied_or_moved_run_continues_where_it_is(finished: Path) -> None:
    """The original is not touched."""
    copied = finished.with_name("copied")
    shutil.copytree(finished, copied)
    before = files(finished)
    call("train.py", "out/copied", "--init_from=resume", "--max_iters=8")
    assert files(finished) == before
    assert steps(copied)[-1] == 8
    shutil.move(copied, "moved")
    call("train.py", "moved/config.toml", "--init_from=resume", "--max_iters=9")
    assert steps(Path("moved"))[-1] == 9
    assert load_config(["moved/config.toml", "--out_dir=out/new"])[0].run.out_dir == "out/new"


def test_what_is_not_ours_is_left_alone(data_dir: Path) -> None:
    thesis = data_dir / "out/run/thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    for name in ("corpus.json", "config.toml"):  # with which it looks a little like a run
        assert (
            "out_dir=out/run: exists and is not a run; choose another --out_dir"
            in train(returns=2).stderr
        )
        (thesis.parent / name).touch()
    thesis.unlink()
    assert "exists and is not a run" in train(returns=2).stderr
    assert {path.name for path in thesis.parent.iterdir()} == {"corpus.json", "config.toml"}


@pytest.mark.parametrize("out_dir", ["/", "//", ".."])
def test_directories_that_cannot_be_runs(data_dir: Path, out_dir: str) -> None:
    assert "should be a directory of its own" in train(f"--out_dir={out_dir}", returns=2).stderr


def test_a_run_may_be_a_link_to_another_disk(data_dir: Path) -> None:
    """A link stays a link, and the run that it led to is renamed beside where it was."""
    real = data_dir / "disk/real"
    real.mkdir(parents=True)
    (data_dir / "out").mkdir()
    (data_dir / "out/run").symlink_to(real)
    train()
    assert (real / "last.safetensors").is_file()
    resume("--max_iters=8")
    before = [*files(real).values()]
    train()
    assert (data_dir / "out/run").is_symlink()
    assert [*files(data_dir / "disk/real.1").values()] == before
    assert read_checkpoint(real / "last.safetensors")[1]["step"] == 6


def test_two_trainings_by_different_names_of_one_directory(data_dir: Path) -> None:
    (data_dir / "out").mkdir()
    (data_dir / "out/link").symlink_to(data_dir / "out/run")
    with lock_run(load_config(["--out_dir=out/run"])[0]):
        assert "another process is training there" in train("--out_dir=out/link", returns=2).stderr


def test_a_best_model_of_steps_that_are_taken_anew_is_no_best_model(finished: Path) -> None:
    """previous.safetensors is of step 4, best.safetensors of step 6; the learning rate is another
    now.
    """
    os.replace(finished / "previous.safetensors", finished / "last.safetensors")
    resume("--max_iters=5", "--learning_rate=0", "--muon_learning_rate=0")
    assert read_checkpoint(finished / "best.safetensors")[1]["step"] == 5
    (finished / "best.safetensors").unlink()
    resume("--max_iters=6")
    assert read_checkpoint(finished / "best.safetensors")[1]["step"] == 6


def test_a_damaged_best_model_does_not_keep_a_run_from_its_end(finished: Path) -> None:
    """Its header is whole. Measured only after the last step, it would end every start with an
    error.
    """
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    flip(finished / "best.safetensors", -20)
    printed = resume().stdout
    assert (
        "best.safetensors: damaged (its content does not match its sha256): the next model that is"
        in printed
    )
    assert "The best model, of step 6 of 6" in printed
    assert "becomes the best" not in resume("--max_iters=7").stdout


def test_a_finished_run_without_its_metrics_or_tokenizer(finished: Path) -> None:
    (finished / "metrics.jsonl").unlink()
    assert "The best model, of step 6 of 6" in resume().stdout
    (finished / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: " in resume(returns=2).stderr
