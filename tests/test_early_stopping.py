"""A training stops early if it overfits, and not for noise."""

from typing import Any

import numpy as np
import pytest
import torch

from config.schema import Config, OptimConfig, RunConfig
from engine.state import StepResult, TrainState
from loss import LossSums

PATIENT = Config(run=RunConfig(patience=3), optim=OptimConfig(max_iters=10**6))


def step_with(nll: float) -> StepResult:
    """Make what a step measures if its training loss is `nll`."""
    total = torch.tensor(100 * nll, dtype=torch.float64)
    sums = LossSums._make([total] * len(LossSums._fields))
    sums = sums._replace(num_targets=torch.tensor(100.0))
    return StepResult(sums, grad_norm=1.0, lr=0.1)


def evaluations(
    *losses: tuple[float, float], steps: int = 20, steps_per_epoch: float = 20
) -> TrainState:
    """Return the state after evaluations, some steps apart; it stops early where training would.

    `losses` are pairs: the training loss of the steps before, the validation loss.
    """
    state = TrainState()
    for train_nll, val_nll in losses:
        for _ in range(steps):
            state.step += 1
            state.count_step(step_with(train_nll))
        state.count_evaluation({"val_nll": val_nll}, state.step / steps_per_epoch)
        if state.is_finished(PATIENT):
            break
    return state


TRAIN_FALLS = [2.0, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0]
VAL_RISES = [2.1, 1.8, 1.82, 1.85, 1.9, 1.95, 2.0]
FALLS = list(zip(TRAIN_FALLS, VAL_RISES, strict=True))
NOISE = np.random.default_rng(0)


def test_early_stopping_stops_what_overfits() -> None:
    state = evaluations(*FALLS)
    assert state.is_finished(PATIENT)
    assert (state.best_nll, state.best_step) == (1.8, 40)
    assert state.train_rise < -0.2
    assert not evaluations(*FALLS[:4]).is_finished(PATIENT)
    assert not state.is_finished(Config(run=RunConfig(patience=0)))


def test_nothing_overfits_before_text_is_read_again() -> None:
    assert evaluations(*FALLS, steps_per_epoch=140).overfitting == 0  # one epoch
    assert evaluations(*FALLS, steps_per_epoch=139).overfitting == 1


def test_the_training_loss_of_a_few_steps_shows_nothing() -> None:
    """It has to have fallen over some 20 steps, and by more than its noise."""
    state = evaluations(*FALLS[:2], *[(1.5, 1.9)] * 9)
    assert state.peak == pytest.approx(0.1)
    state.step += 1
    state.count_step(step_with(0.5))
    state.count_evaluation({"val_nll": 1.9}, 10)
    assert state.overfitting == 0
    noisy = TrainState()
    noisy.count_evaluation({"val_nll": 2.0}, 10)
    for step in range(400):
        if step > 0 and step % 20 == 0:
            noisy.count_evaluation({"val_nll": 2.1}, 10)
        noisy.step += 1
        noise = NOISE.normal(0, 0.2)
        noisy.count_step(step_with(2.0 - step / 20_000 + noise))
    assert noisy.train_rise == 0
    assert noisy.overfitting == 0


def test_a_rise_that_came_back_before_is_noise() -> None:
    """The loss hardly moves, or rises now and then, or rises with the training loss."""
    n = np.arange(200)
    falling = 1.5 - n / 1000
    still = pairs(falling, 1.8 + NOISE.uniform(0, 0.009, size=200))
    noise = NOISE.normal(0, 0.04, size=200)
    wide = pairs(1.9 - n / 500, 1.9 - n / 1000 + noise)
    up = NOISE.uniform(0.01, 0.5, size=200)
    with_training = [(1.5, 1.8), *pairs(1.5 + up, 1.8 + up)]
    now_and_then = pairs(falling, 1.8 + 0.02 * (n % 3 > 0))
    for losses in (still, wide, with_training, now_and_then):
        assert not evaluations(*losses).is_finished(PATIENT)
        assert not evaluations(*losses, steps=2).is_finished(PATIENT)
    first = [(4.0, 4.0), (4.0, 9.0), (3.0, 3.5)]
    later = pairs(3.0 - n[:80] / 50, 3.4 - n[:80] / 50)
    young = evaluations(*first, *later)
    assert young.noise < 0.2  # what happened when the training was young counts less


def pairs(train: np.ndarray, val: np.ndarray) -> list[Any]:
    return list(zip(train.tolist(), val.tolist(), strict=True))


def test_evaluations_at_every_step_are_not_counted_one_by_one() -> None:
    """Every 20 steps one counts that shows overfitting, if all between show it too."""
    state = evaluations(*FALLS[:3])
    shown = []
    for _ in range(100):
        state.step += 1
        state.count_step(step_with(1.2))
        record = {"val_nll": 1.9}
        state.count_evaluation(record, 10)
        shown.append(record.get("overfitting", 0))
    counted = shown[shown.index(1) :]
    assert counted[:41] == [1] * 20 + [2] * 20 + [3]
    state.step += 1
    state.count_step(step_with(1.2))
    state.count_evaluation({"val_nll": 1.801}, 10)
    assert state.overfitting == 0
