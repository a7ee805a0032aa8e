"""Steps, optimizers, schedules, evaluation, checkpoints, resuming."""

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.evaluation
from config.errors import UserError
from config.schema import Config, OptimConfig
from data.batches import IGNORE_INDEX, Batch, TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from engine.checkpoint import load_model, read_model, save_checkpoint
from engine.device import Device, setup_device
from engine.evaluation import measure_loss, measure_training_text, standard_error
from engine.metrics import Record, find_best
from engine.optim import Muon, get_lr_scale, make_optimizers, set_lr
from engine.run import open_run
from engine.run_text import make_eval_text, open_corpus
from engine.state import StepResult, TrainState
from loss import LossSums, mean_loss, sum_losses
from model import GPT
from report.gpu import find_peak, measure_gpus
from report.picture import Picture
from tests.conftest import (
    TINY,
    Done,
    call,
    load_checkpoint,
    make_model,
    only_numbers,
    other_dtype,
    read_metrics,
    take_step,
    trained_dtype,
    without_clocks,
)
from tests.processes import assert_same_checkpoints, read_checkpoint

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    only_numbers(monkeypatch)


def make_batch(seed: int = 0) -> list[Batch]:
    tokens = np.random.default_rng(seed).integers(13, size=500)
    get_batch = TrainBatches(Split(tokens), 8, 6, seed)
    return get_batch(0)


def without_targets(batch: list[Batch]) -> list[Batch]:
    return [micro._replace(targets=np.full_like(micro.targets, IGNORE_INDEX)) for micro in batch]


AS_TRAINED = Device(torch.device("cpu"), getattr(torch, trained_dtype()))


def train(*arguments: str) -> Done:
    return call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, *arguments)


# Steps.


def test_a_batch_without_targets_changes_nothing() -> None:
    """Neither weights, nor momentum, nor weight decay: as if there had been no step."""
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    assert take_step(model, optimizers, make_batch(), Config(), CPU).is_valid
    before = copy.deepcopy(state_of(model, optimizers))
    batch = without_targets(make_batch())
    result = take_step(model, optimizers, batch, Config(), CPU, step=1)
    assert (result.num_targets, result.is_valid, result.is_finite) == (0, False, True)
    assert result.lr > 0
    torch.testing.assert_close(state_of(model, optimizers), before, rtol=0, atol=0)


def state_of(model: GPT, optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """Return the weights, and what each optimizer keeps of the steps before."""
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    return [model.state_dict(), *states]


SOME_STEPS = {1, 2, 5}
ALL_STEPS = set(range(6))


@pytest.mark.parametrize("empty", [SOME_STEPS, ALL_STEPS], ids=["some", "all"])
def test_skipped_steps_are_counted_also_after_a_resume(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, empty: set[int]
) -> None:
    get_batch = TrainBatches.__call__

    def get_some(self: TrainBatches, first_window: int) -> list[Batch]:
        batch = get_batch(self, first_window)
        if first_window // self.batch_size in empty:
            batch = without_targets(batch)
        return batch

    monkeypatch.setattr(TrainBatches, "__call__", get_some)
    printed = train("--max_iters=4").stdout
    skipped = len(empty & set(range(4)))
    assert printed.count("the step is skipped, and counts in skipped_steps") == skipped
    printed = train("--init_from=resume").stdout
    assert f"Steps that had no target, and were skipped: {len(empty)}." in printed
    assert "diverged" not in printed
    *records, _ = read_metrics(data_dir / "out/run")
    assert [record["step"] for record in records] == list(range(7))
    for done, record in enumerate(records):
        assert record.get("skipped_steps", 0) == len(empty & set(range(done)))
    for record in records[1:]:
        assert ("train_nll" in record) == (record["step"] - 1 not in empty)


def test_evaluation_is_exact_and_unsmoothed() -> None:
    """It equals the loss of each token on its own window, one at a time, without dropout."""
    model = make_model(dropout=0.5)
    tokens = make_batch()[0].inputs.reshape(-1)
    loss = measure_loss(model, EvalText(Split(tokens), 8), CPU)
    model.eval()
    nll = correct = 0.0
    for i in range(1, len(tokens)):
        start = (i - 1) // 8 * 8
        window = torch.from_numpy(tokens[None, start:i])
        hidden = model.hidden_states(window)
        logits = model.logits(hidden)[0, -1].double().detach()
        nll -= float(logits.log_softmax(-1)[tokens[i]])
        correct += float(logits.argmax() == tokens[i])
    assert loss.num_targets == len(tokens) - 1
    assert loss.nll == pytest.approx(nll / loss.num_targets, rel=1e-5)
    assert loss.accuracy == pytest.approx(correct / loss.num_targets)


def test_every_parameter_has_one_optimizer() -> None:
    model = make_model(form="gpt2", ngram_embedding=2)
    for kind in ("muon", "adamw"):
        decays = []
        for optimizer in make_optimizers(model, OptimConfig(optimizer=kind, weight_decay=0.1)):
            for group in optimizer.param_groups:
                decays += [(id(p), group["weight_decay"]) for p in group["params"]]
        expected = []
        for p in model.parameters():
            is_matrix = p.ndim == 2
            expected.append((id(p), 0.1 * is_matrix))
        assert sorted(decays) == sorted(expected)
    adamw, muon = make_optimizers(model, OptimConfig())
    assert isinstance(muon, Muon)
    assert len(muon.param_groups[0]["params"]) == 2 * 4
    cfg = OptimConfig(warmup_iters=3, learning_rate=0.4, muon_learning_rate=0.8)
    assert set_lr([adamw, muon], cfg, 0) == 0.1
    assert adamw.param_groups[0]["lr"] == 0.1
    assert muon.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_go_from_the_peak_to_the_lowest_lr(schedule: str) -> None:
    cfg = OptimConfig(max_iters=100, warmup_iters=10, schedule=schedule, min_lr_ratio=0.2)
    scales = [get_lr_scale(cfg, step) for step in range(100)]
    assert scales[10] == max(scales) == 1.0
    assert scales[:10] == sorted(scales[:10])
    assert scales[10:] == sorted(scales[10:], reverse=True)
    lowest = {"cosine": 0.2, "linear": 0.2, "constant": 1.0}
    assert get_lr_scale(cfg, 100) == pytest.approx(lowest[schedule])
    if schedule == "cosine":
        assert get_lr_scale(cfg, 55) == pytest.approx(0.6)


def test_tokens_per_second_are_those_of_the_steps(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations, samples and checkpoints take an hour each here, and do not count."""
    now = 0.0

    def takes(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **keywords: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments, **keywords)

        return slow

    import engine.run_files
    import train as script

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for module, name, seconds in (
        (script, "validate", 3600),
        (script, "generate_texts", 3600),
        (engine.run_files, "save_checkpoint", 3600),
        (script, "seed_dropout", 0.5),
        # the last two are called in each step
        (TrainBatches, "__call__", 0.25),
    ):
        monkeypatch.setattr(module, name, takes(seconds, getattr(module, name)))
    intervals = ["--log_interval=2", "--checkpoint_interval=1", "--eval_interval=3"]
    train(*intervals, "--micro_batch_size=4")
    records = read_metrics(data_dir / "out/run")
    rates = [record["tokens_per_second"] for record in records if "train_nll" in record]
    assert rates == [4 * 8 / 0.75] * 6
    assert records[-2]["seconds"] > 3600


def test_what_each_gpu_does_is_logged(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of two GPUs is made up here."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", {torch.device("cuda:1"): 33_100_000_000}.__getitem__
    )
    monkeypatch.setattr(Device, "max", lambda self, number: number)
    two = Device(torch.device("cuda:1"), torch.bfloat16, 0, 2)
    steps = [StepResult(None, 1.0, 0.1, 0.001)] * 3  # type: ignore[arg-type]
    numbers = {"step_positions": 2048, "flops_per_position": 1000, "steps_left": 100}
    assert measure_gpus(two, steps, **numbers) == pytest.approx(
        {
            "gpu_tokens_per_second": 1_024_000,
            "gpu_gigabytes": 33.1,
            "seconds_left": 0.1,
            "mfu": 1_024_000 * 1000 / 989e12,
        }
    )
    assert measure_gpus(two, [], **numbers) == measure_gpus(CPU, steps, **numbers) == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
    ],
)
def test_the_best_of_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert find_peak(name) == peak


def test_what_each_gpu_does_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"gpu_tokens_per_second": 1e6, "gpu_gigabytes": 33.1, "mfu": 0.41, "seconds_left": 3.0}

    def measure(device: Device, results: list[StepResult], **_: int) -> Record:
        return found if results else {}

    monkeypatch.setattr("report.trainlog.measure_gpus", measure)
    says = "each GPU: 1,000,000 tokens/s, 41% of its best (MFU), 33.1 GB at the peak; 0:00:03 left"
    assert train("--max_iters=8").stdout.count(says) == 5  # after steps 1, 2, 4, 6 and 8
    assert {record.get("mfu") for record in read_metrics(data_dir / "out/run")} == {None, 0.41}


# What is measured.


def test_the_loss_on_training_text_is_of_what_was_read_and_of_what_was_not() -> None:
    tokens = np.random.default_rng(0).integers(13, size=4001)
    get_batch = TrainBatches(Split(tokens), 8, 10, seed=1)
    model = make_model()
    text = EvalText(Split(tokens), 8)

    def measure_after(windows: int) -> dict[str, float]:
        return measure_training_text(model, text, *get_batch.read_and_unread(windows), CPU)

    found = measure_after(100)
    sums = []
    for first_window in range(0, 100, 10):
        (batch,) = get_batch(first_window)
        inputs, targets = CPU.to_device(batch.inputs, batch.targets)
        sums.append(model(inputs, targets))
    read = mean_loss(sum_losses(sums)).nll
    assert found["train_read_nll"] == pytest.approx(read, rel=1e-5)
    both = np.concatenate(get_batch.read_and_unread(100))
    whole = measure_loss(model, replace(text, only=both), CPU).nll
    share = 100 / get_batch.windows_per_epoch
    mean = share * read + (1 - share) * found["train_unread_nll"]
    assert mean == pytest.approx(whole, rel=1e-5)
    assert set(measure_after(20)) == {"train_unread_nll", "train_unread_error"}
    assert set(measure_after(480)) == {"train_read_nll", "train_read_error"}


def test_the_standard_error_is_that_of_many_texts() -> None:
    """The parts of these texts differ, and have unequal numbers of targets."""
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 10, size=50)
    nothing = LossSums._make([torch.zeros(())] * len(LossSums._fields))
    means = []
    errors = []
    for _ in range(300):
        parts = []
        total = 0.0
        for n in targets:
            nll = rng.normal(0, 1, size=n).sum()
            total += nll
            part = {"nll": torch.tensor(nll), "num_targets": torch.tensor(n)}
            parts.append(nothing._replace(**part))
        means.append(total / targets.sum())
        errors.append(standard_error(parts))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


# Checkpoints.


def test_a_checkpoint_restores_all_of_a_training(tmp_path: Path) -> None:
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig())
    take_step(model, optimizers, make_batch(), Config(), CPU)
    saved = TrainState(step=7, tokens=123, best_nll=1.5, variance=0.1 + 0.2)
    save_checkpoint(tmp_path / "last.safetensors", model, saved, optimizers)
    other = make_model()
    restored = make_optimizers(other, OptimConfig())
    assert load_checkpoint(tmp_path / "last.safetensors", other, restored) == saved
    for m, o in ((model, optimizers), (other, restored)):
        take_step(m, o, make_batch(1), Config(), CPU, step=1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="needs Linux's /proc",
)
def test_saving_copies_and_reads_nothing(tmp_path: Path) -> None:
    """A large model fits in memory once, not twice: it is written from where it lies."""
    model = make_model(ngram_embedding=2, ngram_rows=400_000)
    # so that everything is imported
    save_checkpoint(tmp_path / "best.safetensors", model, TrainState())
    state = 4 * model.num_params()
    Path("/proc/self/clear_refs").write_text("5")  # peak = now
    before = proc("status", "VmRSS") * 1024
    read = proc("io", "rchar")
    save_checkpoint(tmp_path / "last.safetensors", model, TrainState())
    assert proc("status", "VmHWM") * 1024 - before < state / 4
    assert proc("io", "rchar") - read < state / 4
    assert (tmp_path / "last.safetensors").stat().st_size > state


def proc(file: str, name: str) -> int:
    """Read a number that Linux knows of this process."""
    lines = (line.split() for line in Path(f"/proc/self/{file}").read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{name}:")


# Resuming.


@pytest.mark.parametrize(
    "options", [["--optimizer=muon"], ["--optimizer=adamw"], ["--ngram_embedding=3"]]
)
def test_resuming_continues_bit_for_bit(data_dir: Path, options: list[str]) -> None:
    """6 steps at once equal 4 and 2: weights, optimizers, metrics; with dropout, over epochs."""
    options += ["--dropout=0.2", "--batch_size=8", "--schedule=constant", "--val_fraction=0.99"]
    train(*options, "--out_dir=out/whole")
    train(*options, "--max_iters=4")
    stopped, _ = read_checkpoint(data_dir / "out/run/last.safetensors")
    train(*options, "--init_from=resume")
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_checkpoints(data_dir / "out/run" / name, data_dir / "out/whole" / name)
    resumed, _ = read_checkpoint(data_dir / "out/run/last.safetensors")
    assert not np.array_equal(stopped["model.wte.weight"], resumed["model.wte.weight"])
    assert without_clocks(data_dir / "out/run") == without_clocks(data_dir / "out/whole")


STOPS = [
    pytest.param(0, [], id="before the first step"),
    pytest.param(2, [], id="after a line"),
    pytest.param(3, ["--log_interval=2"], id="between two lines"),
]


@pytest.mark.parametrize(("stop_at", "options"), STOPS)
def test_a_run_stopped_at_any_step_can_be_resumed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, options: list[str]
) -> None:
    """Before the first step, right after a line of metrics, and between two lines."""
    asked = iter(range(100))

    def requested(self: Any) -> bool:
        self.received = 15 * (next(asked) >= stop_at)
        return self.received > 0

    with monkeypatch.context() as patch:
        patch.setattr("engine.signals.StopSignal.requested", requested)
        done = call(
            "train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, *options, check=False
        )
    assert done.returncode == 143
    assert read_checkpoint(data_dir / "out/run/last.safetensors")[1]["step"] == stop_at
    train("--init_from=resume")
    steps = [record["step"] for record in read_metrics(data_dir / "out/run")]
    assert steps == ([0, 1, 2, 3, 4, 5, 6, 6])


@pytest.mark.parametrize("change", ["--eval_tokens=100", f"--dtype={other_dtype()}"])
def test_the_best_model_is_measured_again_where_losses_do_not_compare(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Its targets and dtype are those of the new start: else a worse model would replace it."""
    losses = {0: 3.0, 1: 2.9, 2: 2.0, 4: 2.5, 6: 2.4}
    now = {2: 2.2, 8: 2.1, 10: 2.3}  # the same model is measured as 2.2 now

    def set_losses(found: dict[int, float]) -> None:
        def count(self: TrainState, record: dict[str, float], epochs: float) -> bool:
            record["val_nll"] = found[self.step]
            return count_evaluation(self, record, epochs)

        monkeypatch.setattr(TrainState, "count_evaluation", count)

    def best() -> tuple[int, float]:
        state = read_checkpoint(data_dir / "out/run/best.safetensors")[1]
        return state["step"], state["best_nll"]

    count_evaluation = TrainState.count_evaluation
    set_losses(losses)
    train()
    assert best() == (2, 2.0)
    set_losses({2: 2.2, 8: 2.3, 10: 2.25})
    validated = vars(engine.evaluation)["validate"]
    monkeypatch.setattr(
        engine.evaluation, "validate", lambda *arguments: validated(*arguments) | {"val_nll": 2.2}
    )
    resumed = train("--init_from=resume", "--max_iters=8", change).stdout
    assert "the best model, of step 2, has 2.2000 as this start measures it" in resumed
    assert best()[0] == 2  # not replaced by step 8 with 2.3, and its star is at its step
    curve = Picture([open_run(data_dir / "out/run")], "step", "log", "nats").curves[0]
    assert curve.best[0] == [2]
    find = find_best(read_metrics(data_dir / "out/run")[:-1])
    assert (find["step"], find["val_nll"]) == (2, 2.2)
    set_losses(now)
    # nothing changes: it is not measured again
    train("--init_from=resume", "--max_iters=10", change)
    records = read_metrics(data_dir / "out/run")
    (line,) = [record for record in records if "remeasured_val_nll" in record]
    assert (line["step"], line["remeasured_step"]) == (6, 2)


def test_a_run_of_an_earlier_edition_measures_its_best_model_again(data_dir: Path) -> None:
    """Its checkpoints do not say on what the loss was measured, nor at which step."""
    train("--max_iters=30", "--eval_interval=10")
    run = open_run(data_dir / "out/run")
    new = {
        "best_step",
        "measured_on",
        "mean_before_best",
        "mean_after_best",
        "peak",
        "recovered",
        "eval_step",
        "overfitting_step",
    }
    last, _ = read_model(run, "last")
    state = load_checkpoint(run.path / "last.safetensors", last)
    saved = read_checkpoint(run.path / "best.safetensors")[1]
    old = TrainState.model_validate(state.model_dump(exclude=new))
    text = make_eval_text(run, open_corpus(run).val, run.cfg.run.eval_tokens)
    record = engine.evaluation.remeasure_best(run, old, text, open_corpus(run), AS_TRAINED)
    assert record["remeasured_step"] == old.best_step == state.best_step
    assert old.best_nll == pytest.approx(state.best_nll, rel=1e-6)
    assert old.mean_after_best == saved["mean"]
    assert old.measured_on == state.measured_on


def test_resuming_with_fewer_targets_measures_what_it_says(data_dir: Path) -> None:
    train()
    path = data_dir / "out/run"
    train("--init_from=resume", "--eval_tokens=100", "--max_iters=8")
    records = read_metrics(path)
    (line,) = [record for record in records if "remeasured_val_nll" in record]
    run = open_run(path)
    model, _ = load_model(run, "last", AS_TRAINED)
    text = make_eval_text(run, open_corpus(run).val, 100)
    by_hand = measure_loss(model, text, AS_TRAINED).nll
    before = next(record for record in records if record["step"] == 6)
    last = next(record for record in records if record["step"] == 8)
    assert last["val_nll"] == pytest.approx(by_hand, rel=1e-6)
    assert line["remeasured_val_nll"] != pytest.approx(before["val_nll"], rel=1e-6)


def test_a_finished_run_is_evaluated_on_the_targets_of_its_best_model(data_dir: Path) -> None:
    """It was killed after its last step, and resumed with other targets.

    Else the verdict would compare two texts.
    """
    train()
    path = data_dir / "out/run"
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    train("--init_from=resume", "--eval_tokens=100")
    run = open_run(path)
    model, state = load_model(run, "last", AS_TRAINED)
    *_, evaluation, _ = run.read_metrics()
    by_hand = measure_loss(model, make_eval_text(run, open_corpus(run).val, 100), AS_TRAINED).nll
    assert evaluation["step"] == 6
    assert evaluation["val_nll"] == pytest.approx(by_hand, rel=1e-6)
    assert state.eval_step == 6


def test_a_run_stopped_by_patience_can_be_resumed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with more patience; without, it is evaluated again, and stays as it is."""
    import train as script

    losses = iter([3.0, 2.0, *[2.5] * 100])
    validate = vars(script)["validate"]
    monkeypatch.setattr(
        script, "validate", lambda *arguments: validate(*arguments) | {"val_nll": next(losses)}
    )
    # what else shows overfitting needs more steps
    monkeypatch.setattr("engine.state.SMOOTHED_STEPS", 1)
    monkeypatch.setattr(TrainBatches, "epochs", lambda self, step: 2.0)
    monkeypatch.setattr(TrainState, "train_rise", -1.0)
    train("--patience=2")
    before = without_clocks(data_dir / "out/run")
    steps = [record["step"] for record in before]
    assert steps == [0, 1, 2, 3, 4, 4]
    train("--patience=2", "--init_from=resume")
    assert without_clocks(data_dir / "out/run") == before
    train("--patience=0", "--init_from=resume")
    steps = [record["step"] for record in read_metrics(data_dir / "out/run")]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 6]


def test_resuming_another_model_or_text_is_refused(data_dir: Path) -> None:
    train("--max_iters=2")
    before = {path: path.read_bytes() for path in (data_dir / "out/run").iterdir()}

    def refusal(*arguments: str) -> str:
        done = call("train.py", "out/run", "--init_from=resume", *arguments, check=False)
        assert done.returncode == 2
        return done.stderr

    for option, says in (
        ("--n_layer=3", "n_layer was 2 and is now 3"),
        ("--optimizer=adamw", "optimizer was muon"),
        ("--val_fraction=0.5", "val_fraction was 0.1"),
    ):
        assert says in refusal(option)
    (data_dir / "text.txt").write_text("Something else entirely.\n" * 50, encoding="utf-8")
    assert "its text has changed (sha256 was " in refusal()
    assert {path: path.read_bytes() for path in (data_dir / "out/run").iterdir()} == before


def test_ranks_compare_weights_that_they_loaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[torch.Tensor] = []

    def check(device: Device, model: GPT, sha256: str) -> None:
        compared.append(model.wte.weight.detach().clone())

    monkeypatch.setattr(Device, "check_same_start", check)
    train("--max_iters=2")
    train("--max_iters=3", "--init_from=resume")
    # what the second started from
    tensors, _ = read_checkpoint(data_dir / "out/run/previous.safetensors")
    assert len(compared) == 2
    assert np.array_equal(compared[1].numpy(), tensors["model.wte.weight"])
    assert not torch.equal(*compared)


def test_devices() -> None:
    assert setup_device("cpu", "float32") == CPU
    assert setup_device("cpu", "bfloat16").dtype == torch.bfloat16
    assert setup_device("auto", "auto").torch_device.type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no cuda"):
            setup_device("cuda:1", "auto")
    with pytest.raises(UserError, match=r"^device=tpu: should be auto, cpu, mps, cuda or cuda:N$"):
        setup_device("tpu", "auto")
