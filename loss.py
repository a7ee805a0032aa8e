"""Next-token cross-entropy: the number this repository is about.

The model gives a logit z_v for every token v of the vocabulary. Its prediction is q = softmax(z).
If the next token is y, the loss is its surprisal -log q_y, in nats. Losses here are sums over
tokens, never means: sums add up exactly over micro-batches and ranks, and are divided only by the
number of targets in the whole batch.

`cross_entropy` is the definition; chunked_loss.py computes the same for large vocabularies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a masked position, which has no loss; as in PyTorch


class Objective(NamedTuple):
    """What is optimised; by default the plain cross-entropy.

    label_smoothing: share e of each target that is spread over the vocabulary: one_hot(y) becomes
        (1 - e) one_hot(y) + e / V (Szegedy et al. 2016).
    alpha, temperature: with a teacher, the cross-entropy has the weight 1 - alpha, and alpha T^2
        KL(teacher || model) is added. The KL is of both predictions at temperature T; T^2 undoes
        the 1 / T^2 in its gradient (Hinton et al. 2015).
    z_loss: weight of (log sum exp z)^2, which keeps logits from drifting (Chowdhery et al. 2022).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    alpha: float = 0.0
    temperature: float = 1.0


PLAIN = Objective()


class LossSums(NamedTuple):
    """Sums over the targets of a batch, as scalar tensors; in nats, unless they are counts.

    Only `objective` is differentiated. It is nll + smoothing + z_loss, or with a teacher
    (1 - alpha) (nll + smoothing) + alpha T^2 teacher_kl + z_loss. `nll` is the plain cross-entropy:
    perplexity, bits and bits per byte come from it alone.
    """

    objective: Tensor
    nll: Tensor
    smoothing: Tensor  # what label smoothing adds to nll
    z_loss: Tensor  # what the z-loss adds
    teacher_kl: Tensor  # KL(teacher || model) at the temperature, without alpha T^2
    correct: Tensor  # targets that have the largest logit; 1/k if k logits tie for the largest
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


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective = PLAIN,
    teacher_logits: Tensor | None = None,
) -> LossSums:
    """Sum the losses of logits (..., V) for targets (...); a teacher's logits are (..., V).

    This is the definition. The prediction q = [0.2, 0.7, 0.1] costs 0.357 nats if the target is
    token 1. With p = one_hot(1), the gradient of the logits is q - p:

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

    # Label smoothing: (1 - e) nll + e spread = nll + e (spread - nll). The share e of a target
    # is spread evenly over the vocabulary, and costs the mean of -log q.
    if objective.label_smoothing:
        spread = sum_targets(-log_q.mean(dim=-1), is_target)
        smoothing = objective.label_smoothing * (spread - nll)
        total = nll + smoothing

    # a teacher
    if teacher_logits is not None:
        alpha = objective.alpha
        temperature = objective.temperature
        teacher_logits = teacher_logits.flatten(0, -2).float()
        log_model = F.log_softmax(logits / temperature, dim=-1)
        log_teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
        # KL(teacher || model): kl_div takes the model first
        kl = F.kl_div(log_model, log_teacher, reduction="none", log_target=True).sum(dim=-1)
        teacher_kl = sum_targets(kl, is_target)
        total = (1 - alpha) * total + alpha * temperature**2 * teacher_kl

    # z-loss
    if objective.z_loss:
        log_Z = logits.logsumexp(dim=-1)
        z_loss = objective.z_loss * sum_targets(log_Z.square(), is_target)
        total = total + z_loss

    correct = count_correct(logits, targets, is_target)
    return LossSums(total, nll, smoothing, z_loss, teacher_kl, correct, is_target.sum())


def sum_targets(values: Tensor, is_target: Tensor) -> Tensor:
    """Sum the values (N,) that are not masked, in float64 where the device has it."""
    dtype = torch.float64
    if values.device.type == "mps":
        dtype = torch.float32
    return values.masked_fill(~is_target, 0).sum(dtype=dtype)


def count_correct(logits: Tensor, targets: Tensor, is_target: Tensor) -> Tensor:
    """Count the targets (N,) whose logit is the largest in its row (N, V); 1/k in a tie of k."""
    is_largest = logits == logits.detach().amax(dim=-1, keepdim=True)
    tokens = targets.clamp_min(0)  # a masked target, -100, is no index; sum_targets drops it
    target_is_largest = is_largest.gather(1, tokens[:, None]).squeeze(1)
    num_largest = is_largest.sum(dim=-1)
    return sum_targets(target_is_largest / num_largest, is_target)


def soft_cap(logits: Tensor, softcap: float) -> Tensor:
    """softcap tanh(logits / softcap): between -softcap and softcap (Gemma Team 2024).

    A softcap of 0 leaves the logits unchanged.
    """
    if softcap == 0:
        return logits
    return softcap * torch.tanh(logits / softcap)


def sum_losses(
    parts: Iterable[LossSums], all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums
) -> LossSums:
    """Add the sums of micro-batches, in float64 on the CPU; `all_reduce` adds those of ranks."""
    rows = []
    for part in parts:
        # All numbers of a part are copied at once, in one dtype: a GPU waits for each copy.
        row = torch.stack([number.detach().to(part.nll.dtype) for number in part])
        rows.append(row.tolist())
    if not rows:  # a step without targets, or a rank without a micro-batch
        rows.append([0.0] * len(LossSums._fields))
    totals = [_add_exactly(column) for column in zip(*rows, strict=True)]
    return LossSums._make(all_reduce(torch.tensor(totals, dtype=torch.float64)))


def _add_exactly(numbers: tuple[float, ...]) -> float:
    """Add, and round once. NaN if a number is not finite: math.fsum fails on inf - inf."""
    if not all(map(math.isfinite, numbers)):
        return math.nan
    return math.fsum(numbers)


def mean_loss(sums: LossSums) -> LossMeans:
    """Divide by the number of targets; NaN if there is none."""
    *totals, num_targets = map(float, sums)
    divisor = num_targets or math.nan
    means = [total / divisor for total in totals]
    return LossMeans._make([*means, num_targets])
