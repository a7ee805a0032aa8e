"""Losses and gradients that are not finite change nothing, and spikes of the loss are told."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.evaluation
from config.schema import Config, ModelConfig, OptimConfig
from data.batches import Batch
from engine.checkpoint import load_model
from engine.device import Device
from engine.optim import make_optimizers
from engine.run import open_run
from engine.state import SPIKE_STEPS, StepResult, TrainState
from loss import LossMeans, LossSums
from model import GPT
from report.progress import describe_trouble
from tests.conftest import read_metrics, take_step
from tests.one_run import resume, steps, train
from tests.processes import read_checkpoint
from train import train_step

pytestmark = pytest.mark.usefixtures("numbers_only")

CPU = Device(torch.device("cpu"), torch.float32)


def all_states(model: GPT, optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    """Weights, and what the optimizers remember."""
    return [model.state_dict(), *[optimizer.state_dict()["state"] for optimizer in optimizers]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_with_bad_numbers_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, bad: float, where: str
) -> None:
    """Neither weights nor optimizers."""
    torch.manual_seed(0)
    cfg = ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16)
    model = GPT(cfg, 13)
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    tokens = np.random.default_rng(0).integers(13, size=(4, 9))
    batch = [Batch(tokens[:, :-1], tokens[:, 1:])]
    assert take_step(model, optimizers, batch, Config(), CPU).is_valid
    before = copy.deepcopy(all_states(model, optimizers))
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
    after = all_states(model, optimizers)
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
        "step 2: the loss is nan and the norm of the gradient nan: the step changes nothing, "
        "and counts in nonfinite_steps"
    ) in printed
    assert "because their loss or gradient was not finite: 3." in printed
    *records, _ = read_metrics(data_dir / "out/run")
    so_far = [record.get("nonfinite_steps", 0) for record in records]
    in_a_row = [record.get("nonfinite_in_a_row", 0) for record in records]
    with_loss = [record["step"] for record in records if "train_nll" in record]
    assert so_far == [0, 0, 1, 2, 2, 3, 3]
    assert in_a_row == [0, 0, 1, 2, 0, 1, 0]
    assert with_loss == [1, 4, 6]


def test_too_many_nonfinite_steps_stop_training(data_dir: Path, spoil: Callable[..., None]) -> None:
    """Training says what to try and keeps the weights from before; resuming tries again."""
    spoil(3, 4)
    printed = train("--max_nonfinite_steps=2", returns=1).stdout
    assert (
        "the last 2 step(s) had no finite loss and gradient. best.safetensors has the model from "
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
    """Only the second evaluation, after step 1, is finite."""
    measure_loss = engine.evaluation.measure_loss
    evaluations = 0

    def fail(*arguments: Any) -> LossMeans:
        nonlocal evaluations
        evaluations += 1
        loss = measure_loss(*arguments)
        if evaluations == 2:
            return loss
        return loss._replace(nll=math.nan)

    monkeypatch.setattr(engine.evaluation, "measure_loss", fail)
    train()
    assert read_checkpoint(data_dir / "out/run/best.safetensors")[1]["step"] == 1


def count(state: TrainState, nll: float) -> float | None:
    """Count a step with this loss; returns its spike."""
    state.step += 1
    return state.count_step(result(nll))


def result(nll: float) -> StepResult:
    """Make the result of a step with 10 targets."""
    zero = torch.tensor(0.0)
    sums = LossSums(
        objective=torch.tensor(nll * 10),
        nll=torch.tensor(nll * 10),
        smoothing=zero,
        z_loss=zero,
        teacher_kl=zero,
        correct=torch.tensor(5),
        num_targets=torch.tensor(10),
    )
    return StepResult(sums, 1.0, 0.1)


def test_a_spike_is_a_jump_above_the_noise() -> None:
    """Noise, the fall at the beginning and the first steps are no spikes; a spike counts once."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(400)
    calm = 2 + 2 * np.exp(-np.arange(400) / 30) + noise
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
        if self.step != 3:
            return None
        self.loss_spikes += 1
        return 0.75

    monkeypatch.setattr(TrainState, "count_step", count)
    printed = train().stdout
    assert printed.count("step 3: a spike: the training loss is ") == 1
    assert "0.75 nats above the mean of the steps before" in printed
    assert "Spikes of the training loss (a lower --learning_rate" in printed


def test_troubles_are_told_ten_times() -> None:
    """After ten of them every hundredth is told."""
    state = TrainState()
    told = []
    for number in range(1, 301):
        spike = count(state, math.nan)
        if describe_trouble(state, result(math.nan), spike):
            told.append(number)
    assert told == [*range(1, 11), 100, 200, 300]
