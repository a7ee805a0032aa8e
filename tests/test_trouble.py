"""What may go wrong while a run goes on: bad numbers, full disks, damage, two at once, other settings, no memory."""

import copy
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import report
import sample
from config.cli import load_config
from config.schema import Config, ModelConfig, OptimConfig
from data.batches import Batch
from engine.begin import begin_run, create_run, hold_run
from engine.distributed import World
from engine.optim import make_optimizers
from engine.progress import WARM, Progress
from engine.runlog import RunLog
from engine.step import StepResult, train_step
from errors import UserError, out_of_memory
from loss import LossSums
from model import GPT
from runs import open_run, read_metrics
from tests.conftest import TINY
from train import train

CPU = World(torch.device("cpu"), torch.float32)
RUN = ["--corpus=text.txt", "--out_dir=out/run", *TINY]


# Bad numbers.


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_with_bad_numbers_is_not_taken(monkeypatch, bad, where) -> None:
    """Neither weights nor optimizers notice it."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), 13)
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    tokens = np.random.default_rng(0).integers(13, size=(4, 9))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.zeros((4, 8), dtype=np.int64))
    assert train_step(model, optimizers, batch, Config(), CPU, 0).taken
    before = copy.deepcopy([model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    with monkeypatch.context() as patch:
        if where == "loss":
            original = LossSums.__init__

            def init(self, objective, *rest) -> None:
                original(self, objective + bad, *rest)
            patch.setattr(LossSums, "__init__", init)
        else:
            clip = torch.nn.utils.clip_grad_norm_
            patch.setattr("torch.nn.utils.clip_grad_norm_", lambda *arguments: clip(*arguments) + bad)
        result = train_step(model, optimizers, batch, Config(), CPU, 1)
    assert (result.bad, result.taken, result.skipped) == (True, False, False)
    after = [model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    assert train_step(model, optimizers, batch, Config(), CPU, 2).taken


@pytest.fixture
def spoiled(monkeypatch):
    """Makes the loss of some steps not a number."""
    import engine.step

    def spoil(*steps: int) -> None:
        original = engine.step.train_step

        def step(model, optimizers, batch, config, world, step, teacher=None) -> StepResult:
            if step not in steps:
                return original(model, optimizers, batch, config, world, step, teacher)
            weight = model.embed.weight.detach().clone()
            model.embed.weight.data.fill_(math.nan)
            result = original(model, optimizers, batch, config, world, step, teacher)
            model.embed.weight.data.copy_(weight)
            return result

        monkeypatch.setattr("engine.step.train_step", step)

    return spoil


def test_bad_steps_are_counted_said_and_survived(data_dir, spoiled, capsys) -> None:
    spoiled(1, 2, 4)
    assert train(load_config(RUN)) == 0
    printed = capsys.readouterr().out
    assert "step 2: the loss is nan and the gradient's norm nan: the step is not taken, and counted" in printed
    assert "3 of the steps were not taken: their loss or gradient was not a number" in printed
    records = read_metrics(Path("out/run/metrics.jsonl"))
    assert [record.get("bad_steps", 0) for record in records] == [0, 0, 1, 2, 2, 3, 3]
    assert [record.get("bad_in_a_row", 0) for record in records] == [0, 0, 1, 2, 0, 1, 0]
    assert [number for number, record in enumerate(records) if "train_nll" in record] == [1, 4, 6]
    assert all(math.isfinite(record["val_nll"]) for record in records if "val_nll" in record)


def test_too_many_in_a_row_stop_training_with_what_to_try(data_dir, spoiled, capsys) -> None:
    spoiled(3, 4)
    assert train(load_config([*RUN, "--max_bad_steps=2"])) == 1
    printed = capsys.readouterr().out
    assert "It diverged: the last 2 step(s) had a loss or gradient that is not a number. best/ keeps" in printed
    assert "Try a lower --learning_rate" in printed
    assert read_metrics(Path("out/run/metrics.jsonl"))[-1]["step"] == 5
    for checkpoint in ("best", "last"):  # nothing of it is in the weights
        run = open_run(Path("out/run"))
        from engine.checkpoint import load_model

        model, _ = load_model(run, checkpoint, CPU)
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert train(load_config([*RUN, "--max_bad_steps=2", "--init_from=resume"])) == 0


def test_a_validation_loss_that_is_no_number_is_never_the_best(data_dir, monkeypatch, capsys) -> None:
    import engine.step

    original, calls = engine.step.evaluate, iter(range(100))

    def evaluate(*arguments):
        loss = original(*arguments)
        return loss if next(calls) == 0 else replace(loss, nll=math.nan)

    monkeypatch.setattr("engine.step.evaluate", evaluate)
    assert train(load_config(RUN)) == 0
    assert json.loads(Path("out/run/best/progress.json").read_text())["step"] == 0


def result(nll: float) -> StepResult:
    sums = LossSums(*(torch.tensor(value) for value in (nll * 10, nll * 10, 0.0, 0.0, 0.0, 5.0, 10.0)))
    return StepResult(sums, 1.0, 0.1)


def test_a_spike_is_a_jump_above_the_noise() -> None:
    """Not the noise itself, nor the fall at the beginning, nor the first steps; and once, not as long as it lasts."""
    rng = np.random.default_rng(0)
    calm = [2 + 2 * math.exp(-step / 30) + 0.1 * rng.standard_normal() for step in range(400)]
    progress = Progress()
    assert [spike for nll in calm if (spike := progress.count(result(nll)))] == []
    assert progress.count(result(3.0)) == pytest.approx(1.0, abs=0.1)
    for _ in range(10):
        progress.count(result(3.0))
    assert progress.loss_spikes <= 2
    assert progress.record()["loss_spikes"] == progress.loss_spikes
    young = Progress()
    assert [young.count(result(nll)) for nll in [1.0, *[9.0] * (WARM - 1)]] == [None] * WARM
    assert Progress().count(result(math.nan)) is None


def test_spikes_are_said(data_dir, monkeypatch, capsys) -> None:
    def count(self: Progress, result: StepResult) -> float | None:
        self.step += 1
        self.loss_spikes += self.step == 3
        return 0.75 if self.step == 3 else None

    monkeypatch.setattr(Progress, "count", count)
    train(load_config(RUN))
    printed = capsys.readouterr().out
    assert printed.count("step 3: a spike: the loss is ") == 1
    assert "0.75 nats above the mean of those before" in printed
    assert "The training loss spiked 1 time(s)" in printed


def test_troubles_are_told_ten_times_then_now_and_then() -> None:
    progress = Progress()
    told = []
    for _ in range(300):
        bad = StepResult(result(math.nan).sums, math.nan, 0.1)
        progress.count(bad)
        told.append(report.trouble(progress, bad, None))
    assert [number for number, line in enumerate(told, 1) if line] == [*range(1, 11), 100, 200, 300]


# Disks.


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does: a write fails in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_metrics_that_did_not_fit_are_written_once_they_do(data_dir) -> None:
    config = load_config(RUN)
    said: list[str] = []
    from data.prepare import prepare_corpus

    run = create_run(config, prepare_corpus(config.data))
    log = RunLog(run, CPU, 0, said.append)
    with files_of_at_most(100):
        for step in range(7):
            log.write({"step": step, "train_nll": 1.5})
        kept = [record["step"] for record in read_metrics(run.path / "metrics.jsonl")]
        assert kept == [*range(len(kept))]
        assert 0 < len(kept) < 7
    log.write({"step": 7, "train_nll": math.nan})
    assert said == ["warning: out/run/metrics.jsonl could not be written (File too large); going on",
                    "out/run/metrics.jsonl could be written again"]
    assert [record["step"] for record in read_metrics(run.path / "metrics.jsonl")] == list(range(8))
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 8


def limited(size: int):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return limit


def test_a_full_disk_costs_no_checkpoint_and_training_goes_on(run, clone) -> None:
    """Stopped by a limit in the middle of optimizer.safetensors, by the real command."""
    arguments = ["--corpus=text.txt", "--out_dir=out/full", *TINY, "--schedule=constant"]
    run("train.py", *arguments, "--max_iters=3")
    before = {path.name: path.read_bytes() for path in (clone / "out/full/last").iterdir()}
    smallest = min(len(before["model.safetensors"]), len(before["optimizer.safetensors"]))
    done = subprocess.run([sys.executable, "train.py", *arguments, "--init_from=resume"], cwd=clone, text=True,
                          capture_output=True, preexec_fn=limited(smallest - 1),
                          env=os.environ | {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(clone)})
    assert done.returncode == 2
    assert "warning: out/full/last/ could not be written (File too large); going on" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: out/full: its last checkpoint could not be written; make")
    assert "Traceback" not in done.stderr
    assert [record["step"] for record in read_metrics(clone / "out/full/metrics.jsonl")] == list(range(7))
    assert {path.name: path.read_bytes() for path in (clone / "out/full/last").iterdir()} == before
    assert not list((clone / "out/full").glob("*.new"))
    printed = run("train.py", *arguments, "--init_from=resume").stdout
    assert "going on from step 3 of out/full" in printed
    run("train.py", *arguments, "--out_dir=out/roomy")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (clone / "out/full/last" / name).read_bytes() == (clone / "out/roomy/last" / name).read_bytes()


def test_directories_that_cannot_be_written_are_one_clear_line(run, clone, tmp_path) -> None:
    """For root too, who may write anywhere but in /proc."""
    trained = clone / "out/locked"
    run("train.py", "--corpus=text.txt", f"--out_dir={trained}", *TINY, "--max_iters=2")
    for out in ("/proc/run", "/proc/self/run"):
        done = run("train.py", "--corpus=text.txt", f"--out_dir={out}", *TINY, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "/proc" in done.stderr
    if os.geteuid() == 0:
        return
    trained.chmod(0o555)
    try:
        done = run("train.py", "--corpus=text.txt", f"--out_dir={trained}", *TINY, "--init_from=resume", check=False)
    finally:
        trained.chmod(0o755)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Permission denied" in done.stderr


# Damage.


@pytest.fixture
def finished(data_dir) -> Path:
    train(load_config(RUN))
    return data_dir / "out/run"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json", "SHA256SUMS"])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_damaged_checkpoint_falls_back_and_says_so(finished, capsys, file, truncated) -> None:
    """First to previous/, from which the end is the same; then to best/."""
    whole = (finished / "last/model.safetensors").read_bytes()
    for damaged, instead in ((["last"], "previous"), (["last", "previous"], "best")):
        for checkpoint in damaged:
            path = finished / checkpoint / file
            if truncated:
                path.write_bytes(path.read_bytes()[:-7])
            else:
                flip(path, -20)
        capsys.readouterr()
        assert train(load_config([*RUN, "--init_from=resume"])) == 0
        printed = capsys.readouterr().out
        for checkpoint in damaged:
            assert f"out/run/{checkpoint}/" in printed
            assert (finished / f"{checkpoint}.damaged").exists()
        assert f"going on from {instead}/ instead" in printed
        assert ("the optimizers start anew" in printed) == (instead == "best")
        assert json.loads((finished / "last/progress.json").read_text())["step"] == 6
        if instead == "previous":
            assert (finished / "last/model.safetensors").read_bytes() == whole
        assert [record["step"] for record in read_metrics(finished / "metrics.jsonl")] == list(range(7))


def test_where_no_checkpoint_is_whole_nothing_is_touched(finished) -> None:
    for checkpoint in ("last", "previous", "best"):
        flip(finished / checkpoint / "model.safetensors", 100)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"last/.*; .*previous/.*; .*best/.*; no checkpoint is whole: start again"):
        train(load_config([*RUN, "--init_from=resume"]))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["config.toml", "corpus.json", "tokenizer.json"])
def test_a_run_of_which_a_file_is_damaged_is_refused(finished, run, file) -> None:
    flip(finished / file, 40)
    for command in (["sample.py", str(finished)], ["evaluate.py", str(finished)]):
        done = run(*command, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{file}: damaged (not what was written" in done.stderr
        assert "have it from a copy, or train again" in done.stderr


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_damaged_checkpoint_is_not_sampled(finished, run, checkpoint) -> None:
    flip(finished / checkpoint / "model.safetensors", -1)
    other = "last" if checkpoint == "best" else "best"
    done = run("sample.py", str(finished), f"--checkpoint={checkpoint}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{checkpoint}/model.safetensors: damaged" in done.stderr
    assert f"--checkpoint={other}" in done.stderr
    assert run("sample.py", str(finished), f"--checkpoint={other}", "--max_new_tokens=5").stdout


# Two at once.


def test_a_second_training_in_the_same_directory_is_refused(run, clone) -> None:
    """At once, whatever it wants, and without harm to the first; once that is dead, it may."""
    out = clone / "out/shared"
    arguments = ["--corpus=text.txt", "--out_dir=out/shared", *TINY]
    first = subprocess.Popen([sys.executable, "train.py", *arguments, "--max_iters=100000", "--patience=0"], cwd=clone,
                             stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while len(read_metrics(out / "metrics.jsonl")) < 4:
            assert first.poll() is None
        for extra in ((), ("--init_from=resume",), ("--init_from=auto",), (f"--out_dir={out}/../shared",)):
            done = run("train.py", *arguments, *extra, check=False)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert "is being trained in, wait for that to end, or choose another --out_dir" in done.stderr
            assert f"by process {first.pid} on " in done.stderr
        assert first.poll() is None
        assert not list(clone.glob("out/shared.*"))
        assert run("sample.py", "out/shared", "--max_new_tokens=5").stdout  # looking on is allowed
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = run("train.py", *arguments, "--max_iters=2")
    assert f"process {first.pid} on " in done.stdout
    assert "was cut off" in done.stdout
    assert "the run that was in out/shared/ is now in out/shared.1/" in done.stdout
    assert not list(clone.glob("out/.shared*"))


def test_two_preparations_at_once_do_not_disturb_each_other(clone) -> None:
    folder = clone / "data"
    text = (clone / "text.txt").read_text(encoding="utf-8") * 20
    (clone / "twice.txt").write_text(text, encoding="utf-8")
    both = [subprocess.Popen([sys.executable, "data/prepare.py", "twice.txt"], cwd=clone, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in both:
        printed, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert "6-gram" in printed
    made = next(folder.glob("twice-*"))
    assert [path.name for path in made.iterdir()] == ["char"]
    shutil.rmtree(made)


# Other settings.


def test_what_may_change_changes_and_is_noted(finished, capsys) -> None:
    changed = ["--max_iters=9", "--learning_rate=0.02", "--eval_interval=3", "--log_interval=2", "--micro_batch_size=2",
               "--dropout=0.1", "--device=cpu"]
    assert train(load_config([*RUN, "--init_from=resume", *changed])) == 0
    printed = capsys.readouterr().out
    for said in ("max_iters was 6 and is now 9", "learning_rate was 0.01 and is now 0.02",
                 "device was auto and is now cpu"):
        assert f"\n  {said}\n" in printed
    first, second = map(json.loads, (finished / "history.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 6)
    assert "changes" not in first
    assert second["changes"]["max_iters"] == [6, 9]
    assert set(second["changes"]) == {change[2:].split("=")[0] for change in changed}
    assert open_run(finished).config.optim.max_iters == 9
    assert open_run(finished).config.run.init_from == "scratch"
    assert read_metrics(finished / "metrics.jsonl")[-1]["step"] == 9


@pytest.mark.parametrize("knob", ["seed", "batch_size"])
def test_a_new_seed_or_batch_size_has_to_be_asked_for_by_name(finished, knob, tmp_path) -> None:
    section = "run" if knob == "seed" else "optim"
    saved = (finished / "config.toml").read_text()
    value = next(line for line in saved.splitlines() if line.startswith(f"{knob} = "))
    recipe = tmp_path / "other.toml"
    recipe.write_text(saved.replace(value, f"{knob} = 5").replace("max_iters = 6", "max_iters = 8"))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"out/run: {knob} was \d+ and is now 5: .*; if that is meant, say --{knob}=5"):
        train(load_config([str(recipe), "--init_from=resume"]))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    assert train(load_config([str(recipe), "--init_from=resume", f"--{knob}=5"])) == 0
    assert getattr(getattr(open_run(finished).config, section), knob) == 5


def test_auto_goes_on_where_a_run_is_and_else_starts_one(data_dir, capsys) -> None:
    assert train(load_config([*RUN, "--init_from=auto", "--max_iters=2"])) == 0
    assert "going on" not in capsys.readouterr().out
    assert train(load_config([*RUN, "--init_from=auto", "--max_iters=4"])) == 0
    assert "going on from step 2 of out/run\n  max_iters was 2 and is now 4" in capsys.readouterr().out
    assert not (data_dir / "out/run.1").exists()


# Memory.


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17 GB, ...). Tried to allocate 5 GB on private pool."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError()])
def test_out_of_memory_says_which_knob_to_turn(error) -> None:
    config = load_config(["--batch_size=64"])
    with pytest.raises(UserError, match=r"out of memory: use --micro_batch_size=32, half of what it is, which does "), \
            out_of_memory(report.less_memory(config)):
        raise error
    assert "--micro_batch_size=8," in report.less_memory(load_config(["--micro_batch_size=16"]))
    assert report.less_memory(load_config(["--micro_batch_size=1"])).startswith("use a smaller --block_size")
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory("never"):
        raise RuntimeError("a bug")


def test_what_it_says_can_be_done_and_changes_nothing(data_dir, monkeypatch) -> None:
    """A run out of memory after three steps goes on in micro-batches of half the size, to the same losses."""
    import engine.step

    assert train(load_config([*RUN, "--out_dir=out/roomy"])) == 0
    original = engine.step.train_step

    def step(*arguments):
        if arguments[5] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(*arguments)

    config = load_config(RUN)
    with monkeypatch.context() as patch:
        patch.setattr("engine.step.train_step", step)
        with pytest.raises(UserError, match=r"--micro_batch_size=2, .* --init_from=resume"), \
                out_of_memory(report.less_memory(config)):
            train(config)
    assert train(load_config([*RUN, "--micro_batch_size=2", "--init_from=resume"])) == 0
    narrow, roomy = (read_metrics(Path(f"out/{out}/metrics.jsonl")) for out in ("run", "roomy"))
    assert [record["step"] for record in narrow] == list(range(7))
    for one, other in zip(narrow, roomy, strict=True):
        for key in {"train_nll", "val_nll", "grad_norm"} & set(one):
            assert one[key] == pytest.approx(other[key], rel=1e-5)


@pytest.mark.slow
def test_a_real_lack_of_memory_is_one_clear_line(clone) -> None:
    """An address space too small for the attention of long sequences."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))

    done = subprocess.run([sys.executable, "train.py", "--corpus=text.txt", *TINY, "--out_dir=out/large",
                           "--max_iters=1", "--batch_size=256", "--block_size=512", "--n_embd=256", "--n_layer=6"],
                          cwd=clone, text=True, capture_output=True, preexec_fn=limit,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: out of memory: use --micro_batch_size=128, half of what it is")
    assert done.stderr.count("\n") == 1


# What users do to runs by hand.


def test_a_damaged_line_of_metrics_takes_no_other_with_it(finished) -> None:
    metrics = finished / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"step", b"st\xb3p")
    lines[3] = lines[3].replace(b'"step": 3', b'"step": 73')
    metrics.write_bytes(b"\n".join(lines))
    assert train(load_config([*RUN, "--init_from=resume", "--max_iters=8"])) == 0
    assert metrics.read_bytes().startswith(b"\n".join(lines))
    assert [record["step"] for record in read_metrics(metrics)] == [0, 1, 73, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("line", [b"", b'{"step": "x", "val_nll": "y", "seconds": 1, "tokens": 1}', b"[[" * 10**5,
                                  b"\xff", b'{"step": 5}', b'{"val_nll": 5}', b'{"step": true}', b"null"])
def test_odd_metrics_are_drawn_as_far_as_they_go(finished, line, run) -> None:
    metrics = finished / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + line + b"\n")
    for x in ("step", "tokens"):
        run("curves.py", str(finished), f"--x={x}", "--terminal")
    metrics.write_bytes(line)
    assert run("curves.py", str(finished), "--terminal", check=False).returncode in (0, 2)
    assert train(load_config([*RUN, "--init_from=resume"])) == 0
    metrics.unlink()
    assert train(load_config([*RUN, "--init_from=resume"])) == 0


def test_a_copied_or_moved_run_goes_on_where_it_is(finished) -> None:
    """By its own config.toml, which still has the old out_dir; the original is not touched."""
    copied = finished.with_name("copied")
    shutil.copytree(finished, copied)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert train(load_config(["out/copied/config.toml", "--init_from=resume", "--max_iters=8"])) == 0
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    assert read_metrics(copied / "metrics.jsonl")[-1]["step"] == 8
    assert load_config(["out/copied/config.toml", "--out_dir=out/new"]).run.out_dir == "out/new"


def test_what_is_not_ours_is_left_alone(data_dir) -> None:
    new, lock = data_dir / "out/.run.new", data_dir / "out/.run.lock"
    new.mkdir(parents=True)
    (new / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"\.run\.new: is in the way: it has files that are not ours"):
        train(load_config(RUN))
    lock.write_text("mine")
    with pytest.raises(UserError, match=r"\.run\.lock: is in the way"), hold_run(load_config(RUN)):
        pass
    assert ((new / "thesis.txt").read_text(), lock.read_text()) == ("years of work", "mine")


def test_a_run_inside_a_run_is_refused(finished) -> None:
    """The next checkpoint would replace it."""
    with pytest.raises(UserError, match=r"out_dir=out/run/best/student: is inside of another run, .*out/run, which"):
        train(load_config([*RUN, "--out_dir=out/run/best/student"]))


def test_a_run_whose_checkpoints_are_gone_keeps_its_metrics(finished) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    for checkpoint in ("last", "previous", "best"):
        shutil.rmtree(finished / checkpoint)
    with pytest.raises(UserError, match="out/run: its checkpoints are gone; start again"):
        train(load_config([*RUN, "--init_from=resume"]))
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("out_dir", ["/", "//", ".."])
def test_directories_that_cannot_be_runs(data_dir, out_dir) -> None:
    config = load_config([*RUN, f"--out_dir={out_dir}"])
    with pytest.raises(UserError, match="should be a directory of its own"), hold_run(config):
        train(config)


def test_links_stay_links(data_dir) -> None:
    """Of the directory, and of a checkpoint on another disk."""
    (data_dir / "disk/real").mkdir(parents=True)
    (data_dir / "out").mkdir()
    (data_dir / "out/run").symlink_to(data_dir / "disk/real")
    for _ in range(2):
        assert train(load_config(RUN)) == 0
        assert (data_dir / "out/run").is_symlink()
        assert (data_dir / "disk/real/last").is_dir()
    assert (data_dir / "disk/real.1/last").is_dir()
    (data_dir / "disk/real/last").rename(data_dir / "disk/last")
    (data_dir / "out/run/last").symlink_to(data_dir / "disk/last")
    assert train(load_config([*RUN, "--init_from=resume", "--max_iters=12"])) == 0
    assert json.loads((data_dir / "out/run/last/progress.json").read_text())["step"] == 12


def test_killed_between_moving_the_old_run_aside_and_naming_the_new_one(data_dir) -> None:
    config = load_config([*RUN, "--init_from=resume"])
    from data.prepare import prepare_corpus

    create_run(config, prepare_corpus(config.data)).path.rename(data_dir / "out/.run.new")
    assert train(config) == 0
    assert json.loads((data_dir / "out/run/last/progress.json").read_text())["step"] == 6


def test_restarts_of_one_job_are_told_from_other_jobs(finished, monkeypatch) -> None:
    """Although torchrun may call all of them "none"."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    config = load_config([*RUN, "--max_iters=8"])
    assert train(config) == 0
    data = json.loads((finished / "history.jsonl").read_text())
    assert data["job"].startswith("none, started by process ")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begin_run(config, open_run(finished).corpus).changes == {}
    (finished / "history.jsonl").write_text(json.dumps(data | {"job": "none, started by process 1 on moon"}) + "\n")
    assert begin_run(config, open_run(finished).corpus).changes is None
    assert (finished.with_name("run.2") / "last").exists()


@pytest.mark.parametrize("lost", [">/dev/full", "2>/dev/full", ">&-", "2>&-", "<&-", "| head -1"])
def test_a_log_that_cannot_be_written_stops_nothing(clone, lost) -> None:
    shutil.rmtree(clone / "out/unheard", ignore_errors=True)
    words = " ".join(["--corpus=text.txt", "--out_dir=out/unheard", *TINY])
    subprocess.run(["bash", "-c", f"{sys.executable} train.py {words} {lost}; exit ${{PIPESTATUS[0]}}"], cwd=clone,
                   check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert read_metrics(clone / "out/unheard/metrics.jsonl")[-1]["step"] == 6
    assert json.loads((clone / "out/unheard/last/progress.json").read_text())["step"] == 6


def test_devices_are_no_texts(run) -> None:
    for path in ("/dev/zero", "/dev/null"):
        done = run("train.py", f"--corpus={path}", check=False)
        assert (done.returncode, done.stderr) == (2, f"error: corpus {path}: a device, not a file\n")


def test_signals_before_there_is_something_to_save(data_dir) -> None:
    with hold_run(load_config(RUN)):
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


def test_a_model_cannot_command_a_terminal(monkeypatch) -> None:
    assert sample.harmless("\x1bP\n\x9b") == "\x1bP\n\x9b"  # a file has what was written
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert sample.harmless("\x1b]0;evil\x07 naïve 🎉\n\t\x9b1m\r") == "\ufffd]0;evil\ufffd naïve 🎉\n\t\ufffd1m\ufffd"
