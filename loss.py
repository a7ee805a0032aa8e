"""Next-token cross-entropy: the number this repository is about.

The model gives a logit z_v for every token v of the vocabulary. Its prediction is q = softmax(z).
If the next token is y, the loss is its surprisal -log q_y, in nats. Losses here are sums over
tokens, never means: sums add up exactly over micro-batches and ranks, and are divided once, by the
number of targets in the whole batch (`mean_loss`).

`cross_entropy` is the definition; chunked_loss.py computes the same for large vocabularies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a masked position, which has no loss


class Objective(NamedTuple):
    """What is optimised; by default the plain cross-entropy."""

    # e: one_hot(y) becomes (1 - e) one_hot(y) + e / V (Szegedy et al. 2016)
    label_smoothing: float = 0.0
    # w: adds w (log sum exp z)^2, which keeps logits from drifting (Chowdhery et al. 2022)
    z_loss: float = 0.0
    # a: with a teacher, (1 - a) cross-entropy + a T^2 KL(teacher || q), where all logits are
    # divided by the temperature T (Hinton et al. 2015)
    alpha: float = 0.0
    temperature: float = 1.0


PLAIN = Objective()


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective = PLAIN,
    teacher_logits: Tensor | None = None,
) -> LossSums:
    """Sum the losses of logits (..., V) and targets (...); a teacher's logits are (..., V), too.

    The prediction q = [0.2, 0.7, 0.1] costs 0.357 nats if the target is token 1. With p =
    one_hot(1), the gradient with respect to the logits is q - p:

    >>> logits = torch.tensor([[0.2, 0.7, 0.1]]).log().requires_grad_()
    >>> loss = cross_entropy(logits, torch.tensor([1])).objective
    >>> loss.backward()
    >>> round(loss.item(), 3), [round(g, 3) for g in logits.grad[0].tolist()]
    (0.357, [0.2, -0.3, 0.1])

    log q is z - logsumexp(z), never log(softmax(z)), which would be log 0 here:

    >>> cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).nll.item()
    10000.0
    """
    logits = logits.flatten(0, -2).float()  # (N, V)
    targets = targets.flatten()  # (N,)
    is_target = targets != IGNORE_INDEX

    # the surprisal of the targets
    log_q = F.log_softmax(logits, dim=-1)
    surprisal = F.nll_loss(log_q, targets, reduction="none", ignore_index=IGNORE_INDEX)
    nll = sum_targets(surprisal, is_target)
    total = nll
    smoothing = z_loss = teacher_kl = torch.zeros_like(nll)

    # label smoothing: (1 - e) nll + e uniform = nll + e (uniform - nll)
    if objective.label_smoothing:
        uniform = sum_targets(-log_q.mean(dim=-1), is_target)
        smoothing = objective.label_smoothing * (uniform - nll)
        total = nll + smoothing

    if teacher_logits is not None:
        T = objective.temperature
        log_q_T = F.log_softmax(logits / T, dim=-1)
        log_t_T = F.log_softmax(teacher_logits.flatten(0, -2).float() / T, dim=-1)
        # KL(t || q): t comes second
        kl = F.kl_div(log_q_T, log_t_T, reduction="none", log_target=True).sum(dim=-1)
        teacher_kl = sum_targets(kl, is_target)
        total = (1 - objective.alpha) * total + objective.alpha * T**2 * teacher_kl

    if objective.z_loss:
        log_Z = logits.logsumexp(dim=-1)
        z_loss = objective.z_loss * sum_targets(log_Z.square(), is_target)
        total = total + z_loss

    correct = count_correct(logits, targets, is_target)
    return LossSums(total, nll, smoothing, z_loss, teacher_kl, correct, is_target.sum())


class LossSums(NamedTuple):
    """Sums over the targets of a batch, as scalar tensors; in nats, unless they are counts.

    `objective` is optimised; the chunked loss has no gradient for the others. `nll` is the plain
    cross-entropy: perplexity, bits and bits per byte come from it alone.
    """

    objective: Tensor
    nll: Tensor
    smoothing: Tensor  # what label smoothing adds to nll
    z_loss: Tensor  # what the z-loss adds
    teacher_kl: Tensor  # KL(teacher || model) at the temperature
    # targets that the model held most probable; in a tie of k tokens, the target counts as 1/k
    correct: Tensor
    num_targets: Tensor

    def detach(self) -> LossSums:
        """Return the same numbers without the graph of their gradients."""
        return LossSums._make(number.detach() for number in self)


class LossMeans(NamedTuple):
    """LossSums divided by the number of targets: nats per target, and the top-1 accuracy."""

    objective: float
    nll: float
    smoothing: float
    z_loss: float
    teacher_kl: float
    accuracy: float
    num_targets: float


def sum_targets(values: Tensor, is_target: Tensor) -> Tensor:
    """Sum the values (N,) that are not masked, in float64 where the device has it."""
    dtype = torch.float64
    if values.device.type == "mps":
        dtype = torch.float32
    return values.masked_fill(~is_target, 0).sum(dtype=dtype)


def count_correct(logits: Tensor, targets: Tensor, is_target: Tensor) -> Tensor:
    """Count the targets that have the largest of their logits (N, V)."""
    is_best = logits == logits.detach().amax(dim=-1, keepdim=True)
    target_is_best = is_best.gather(1, targets.clamp_min(0)[:, None])[:, 0]
    return sum_targets(target_is_best / is_best.sum(dim=-1), is_target)


def soft_cap(logits: Tensor, softcap: float) -> Tensor:
    """softcap tanh(logits / softcap): no logit is larger than `softcap` (Gemma Team 2024).

    A softcap of 0 leaves the logits unchanged.
    """
    if softcap == 0:
        return logits
    return softcap * torch.tanh(logits / softcap)


def sum_losses(
    parts: Iterable[LossSums], all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums
) -> LossSums:
    """Add micro-batches, and ranks with `all_reduce`, in float64 on the CPU."""
    rows = []
    for part in parts:
        # A GPU waits for each copy from it, so the numbers of a part come in one.
        row = torch.stack([number.detach().to(part.nll.dtype) for number in part])
        rows.append(row.tolist())
    if not rows:
        rows.append([0.0] * len(LossSums._fields))
    totals = [_add_exactly(column) for column in zip(*rows, strict=True)]
    return LossSums._make(all_reduce(torch.tensor(totals, dtype=torch.float64)))


def _add_exactly(numbers: tuple[float, ...]) -> float:
    """Add without rounding in between; NaN if one number is not finite."""
    if not all(map(math.isfinite, numbers)):
        return math.nan
    return math.fsum(numbers)


def mean_loss(sums: LossSums) -> LossMeans:
    """Divide by the number of targets; NaN if there is none."""
    *totals, num_targets = map(float, sums)
    divisor = num_targets or math.nan
    means = [total / divisor for total in totals]
    return LossMeans._make([*means, num_targets])
