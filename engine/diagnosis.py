"""Measurements of an untrained model and its first batches; report/words.py says what they mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data.batches import EVAL_BATCH_TOKENS, IGNORE_INDEX, Batch
from engine.distributed import Distributed
from loss import cross_entropy, mean_loss
from model import GPT

FIRST_BATCHES = 4  # one of them must have a target
SHIFTS = (1, 0, 2, -1)  # a target is the input 1 later; the others are mistakes


@dataclass(frozen=True)
class Diagnosis:
    """Of the first batch that has targets; NaN if there is none."""

    nll: float  # nats per target
    logit_variance: float  # over the vocabulary, the mean over targets
    logit_cost: float  # KL(uniform || softmax(logits)) in nats, what the logits cost if they know nothing
    rows: int  # of lm_head
    target_share: float  # of all positions
    agreement: dict[int, float]  # by shift: the share of the targets that equal the input so many places later


@torch.inference_mode()
def diagnose(model: GPT, get_batch: Callable[[int], list[Batch]], dist: Distributed) -> Diagnosis:
    for step in range(FIRST_BATCHES):
        inputs, targets, _ = get_batch(step)[0]
        if (targets != IGNORE_INDEX).any():
            break
    with_targets_first = np.argsort((targets == IGNORE_INDEX).all(axis=1), kind="stable")
    rows = with_targets_first[:max(1, EVAL_BATCH_TOKENS // inputs.shape[1])]
    x, y = dist.to_device(inputs[rows], targets[rows])
    model.eval()
    with dist.autocast():
        logits = model.logits(model.hidden_states(x))
    model.train()
    own = logits[y != IGNORE_INDEX]  # (N, V)
    return Diagnosis(
        nll=mean_loss(cross_entropy(logits, y)).nll,
        logit_variance=float((own - own.mean(dim=1, keepdim=True)).square().mean()),
        logit_cost=float((own.logsumexp(dim=1) - own.mean(dim=1)).mean()) - math.log(own.shape[1]),
        rows=own.shape[1], target_share=float((targets != IGNORE_INDEX).mean()),
        agreement={shift: _agreement(inputs, targets, shift) for shift in SHIFTS})


def _agreement(inputs: np.ndarray, targets: np.ndarray, shift: int) -> float:
    """The share of the targets [b, t] that equal inputs[b, t + shift]; NaN where there is none to compare.

    >>> inputs = np.array([[5, 6, 7, 8]])
    >>> [_agreement(inputs, np.array([[6, 7, 8, 9]]), shift) for shift in SHIFTS]
    [1.0, 0.0, 0.0, 0.0]
    """
    T = inputs.shape[1]
    inside = slice(max(0, -shift), T - max(0, shift))  # targets whose counterpart is in the window
    unmasked = targets[:, inside] != IGNORE_INDEX
    if shift > 0:  # a later input may be padding if its own target is masked
        unmasked = unmasked & (targets[:, shift:] != IGNORE_INDEX)
    equal = inputs[:, inside.start + shift:inside.stop + shift] == targets[:, inside]
    return float(equal[unmasked].mean()) if unmasked.any() else math.nan
