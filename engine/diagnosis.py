"""A look at an untrained model and its first batches: what report.step_zero needs to say what is wrong."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data.batches import EVAL_BATCH_TOKENS, Batch
from engine.distributed import World
from loss import IGNORE_INDEX, cross_entropy, divide_once
from model import GPT

FIRST_BATCHES = 4  # in which something must be scored
SHIFTS = (1, 0, 2, -1)  # how many tokens after an input its target may be: the right one, and the mistakes


@dataclass(frozen=True)
class Diagnosis:
    """Of the first batch that scores anything; NaN, but for `rows` and `scored`, if none of the first few does."""

    nll: float  # nats per scored token
    logit_variance: float  # over the vocabulary, at each scored token; the mean of those
    spread: float  # what the logits cost by themselves: log mean exp z - mean z = KL(uniform || softmax z)
    rows: int  # of the head: tokens that the model can predict
    scored: float  # share of the targets
    agreement: dict[int, float]  # by shift: the share of the scored targets that are the input so many tokens on


@torch.inference_mode()
def diagnose(model: GPT, batches: Callable[[int], Batch], world: World) -> Diagnosis:
    """Measure a model on the first batches, as many tokens of one as an evaluation takes at once."""
    for step in range(FIRST_BATCHES):
        inputs, targets, _ = batch = batches(step)
        if (targets != IGNORE_INDEX).any():
            break
    scoring_first = np.argsort((targets == IGNORE_INDEX).all(axis=1), kind="stable")
    few = scoring_first[: max(1, EVAL_BATCH_TOKENS // inputs.shape[1])]
    x, y, left_out = (torch.from_numpy(array[few]).to(world.device) for array in batch)
    model.eval()
    with world.autocast():
        z = model.logits(model.forward(x, left_out=left_out))  # (B, T, V)
    model.train()
    at = z[y != IGNORE_INDEX]  # (N, V)
    V = at.shape[1]
    return Diagnosis(
        nll=divide_once([cross_entropy(z, y)]).nll,
        logit_variance=float((at - at.mean(dim=1, keepdim=True)).square().mean()),
        spread=float((at.logsumexp(dim=1) - at.mean(dim=1)).mean()) - math.log(V),
        rows=V,
        scored=float((targets != IGNORE_INDEX).mean()),
        agreement={shift: _agreement(inputs, targets, shift) for shift in SHIFTS})


def _agreement(inputs: np.ndarray, targets: np.ndarray, shift: int) -> float:
    """The share of the scored `targets[b, t]` that equal `inputs[b, t + shift]`; NaN where there is none to compare.

    An input that comes later is compared only if its own target is scored too: else it may be padding.

    >>> inputs = np.array([[5, 6, 7, 8]])
    >>> [_agreement(inputs, np.array([[6, 7, 8, 9]]), shift) for shift in SHIFTS]
    [1.0, 0.0, 0.0, 0.0]
    """
    T = inputs.shape[1]
    there = slice(max(0, -shift), T - max(0, shift))  # targets whose counterpart is in the window
    ahead = inputs[:, there.start + shift: there.stop + shift]
    scored = targets[:, there] != IGNORE_INDEX
    if shift > 0:
        scored = scored & (targets[:, shift:] != IGNORE_INDEX)
    return float((ahead == targets[:, there])[scored].mean()) if scored.any() else float("nan")
