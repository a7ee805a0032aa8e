"""Next-token cross-entropy: the number this repository is about.

The model gives a logit z_v for every token v of the vocabulary. Its prediction is q = softmax(z). If the next token is
y, the loss is its surprisal -log q_y, in nats. Every function here returns sums over tokens, never means: sums add up
exactly over micro-batches and ranks, and are divided once, by the number of targets in the whole batch.

`cross_entropy` is the definition. `next_token_loss` computes the same from hidden states: with a large vocabulary it
works in chunks, so that the logits of all tokens are never in memory together.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a masked position, which has no loss

CHUNKED_LOGITS = 2**22  # targets times vocabulary, above which chunks are faster than one product (bench/loss.py)
CHUNKS, MIN_CHUNK = 16, 128  # chunks of a batch; tokens in one, at least
CACHED_ROWS = 2048  # rows of lm_head's gradient that fit in a CPU's cache


class LossSums(NamedTuple):
    """Sums over the targets of a batch, as scalar tensors; in nats, unless they are counts.

    objective = nll + smoothing + z_loss + distillation is what is optimised, and has the gradient. `nll` is always the
    plain cross-entropy: perplexity, bits and bits per byte come from it alone.
    """

    objective: Tensor
    nll: Tensor
    smoothing: Tensor  # what label smoothing adds to nll
    z_loss: Tensor  # what the z-loss adds
    distillation: Tensor  # what the teacher adds
    correct: Tensor  # targets that had the highest probability; a tie of k tokens counts 1/k
    num_targets: Tensor


class LossMeans(NamedTuple):
    """The same in nats per target; `accuracy` is correct / num_targets."""

    objective: float
    nll: float
    smoothing: float
    z_loss: float
    distillation: float
    accuracy: float
    num_targets: int


class Objective(NamedTuple):
    """What is optimised instead of the plain cross-entropy.

    label_smoothing: with e, the cross-entropy of the target p = (1 - e) one_hot(y) + e / V, which is
        (1 - e) (-log q_y) + e mean_v(-log q_v) (Szegedy et al. 2016).
    z_loss: adds z_loss (log sum exp z)^2, which keeps logits from drifting (Chowdhery et al. 2022).
    alpha, temperature: with a teacher's prediction t, the cross-entropy counts 1 - alpha, and alpha T^2 KL(t_T || q_T)
        is added. q_T and t_T are the predictions with logits divided by the temperature T (Hinton et al. 2015).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    alpha: float = 0.0
    temperature: float = 1.0


PLAIN = Objective()


def sum_losses(parts: Iterable[LossSums], all_reduce: Callable[[Tensor], Tensor] | None = None) -> LossSums:
    """The sum of several LossSums, and of those of all ranks, in float64 on the CPU; NaN if an addend is not finite."""
    columns = zip(*([float(number.detach()) for number in part] for part in parts), strict=True)
    totals = [math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
    tensor = torch.tensor(totals or [0.0] * len(LossSums._fields), dtype=torch.float64)
    return LossSums(*(all_reduce(tensor) if all_reduce else tensor))


def mean_loss(sums: LossSums) -> LossMeans:
    """Divide sums by the number of targets; NaN if there is none."""
    objective, nll, smoothing, z_loss, distillation, accuracy, _ = (
        float(number) / (float(sums.num_targets) or math.nan) for number in sums)
    return LossMeans(objective, nll, smoothing, z_loss, distillation, accuracy, int(sums.num_targets))


def soft_cap(logits: Tensor, softcap: float) -> Tensor:
    """softcap tanh(logits / softcap), so that no logit is larger than `softcap` (Gemma Team 2024); 0 = unchanged."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def cross_entropy(logits: Tensor, targets: Tensor, objective: Objective = PLAIN, teacher_logits: Tensor | None = None
                  ) -> LossSums:
    """Loss sums of logits (..., V), also those of a teacher, against targets (...), which IGNORE_INDEX masks.

    The prediction [0.2, 0.7, 0.1] costs 0.357 nats if the second token comes, and the gradient with respect to
    the logits is q - p:

    >>> logits = torch.tensor([[0.2, 0.7, 0.1]]).log().requires_grad_()
    >>> loss = cross_entropy(logits, torch.tensor([1])).objective
    >>> loss.backward()
    >>> round(loss.item(), 3), [round(g, 3) for g in logits.grad[0].tolist()]
    (0.357, [0.2, -0.3, 0.1])

    log q is z - logsumexp(z), never log(softmax(z)), which would be log 0 here:

    >>> cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).nll.item()
    10000.0
    """
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()  # (N, V), (N,)
    unmasked = targets != IGNORE_INDEX
    log_q = F.log_softmax(logits, dim=-1)
    nll = _total(F.nll_loss(log_q, targets, reduction="none", ignore_index=IGNORE_INDEX))
    smoothing = z_loss = distillation = torch.zeros_like(nll)
    if objective.label_smoothing:
        smoothing = objective.label_smoothing * (_total(-log_q.mean(dim=-1) * unmasked) - nll)
    if objective.z_loss:
        z_loss = objective.z_loss * _total(logits.logsumexp(dim=-1).square() * unmasked)
    if teacher_logits is not None:
        T = objective.temperature
        log_t = F.log_softmax(teacher_logits.flatten(0, -2).float() / T, dim=-1)
        kl = F.kl_div(F.log_softmax(logits / T, dim=-1), log_t, reduction="none", log_target=True).sum(dim=-1)
        distillation = objective.alpha * (T**2 * _total(kl.masked_fill(~unmasked, 0)) - nll - smoothing)
    with torch.no_grad():
        best = logits == logits.amax(dim=-1, keepdim=True)
        correct = _total(best.gather(1, targets.clamp_min(0)[:, None])[:, 0] / best.sum(dim=-1) * unmasked)
    return LossSums(nll + smoothing + z_loss + distillation, nll, smoothing, z_loss, distillation, correct,
                    unmasked.sum())


def next_token_loss(hidden: Tensor, lm_head: Tensor, targets: Tensor, objective: Objective = PLAIN,
                    softcap: float = 0.0, teacher_logits: Tensor | None = None) -> LossSums:
    """Loss sums from hidden states (B, T, C), the weights of lm_head (V, C) and targets (B, T).

    The hidden states of masked positions do not matter, not even if they are infinite.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    hidden = hidden.masked_fill((targets == IGNORE_INDEX)[:, None], 0.0)
    if targets.numel() * len(lm_head) < CHUNKED_LOGITS or teacher_logits is not None:
        return cross_entropy(soft_cap(F.linear(hidden, lm_head).float(), softcap), targets, objective, teacher_logits)
    compiling = torch.compiler.is_compiling()  # else its import, of seconds, is not needed
    chunked = torch.compiler.disable(_chunked_loss) if compiling else _chunked_loss  # type: ignore[no-untyped-call]
    return chunked(hidden, lm_head, targets, objective, softcap)


def _total(values: Tensor) -> Tensor:
    """The sum, in float64 where the device has it."""
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)


def _chunked_loss(hidden: Tensor, lm_head: Tensor, targets: Tensor, objective: Objective, softcap: float) -> LossSums:
    nll, smoothing, z_loss, correct, num_targets, total = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, lm_head, targets, objective, softcap)
    return LossSums(total, nll, smoothing, z_loss, torch.zeros_like(nll), correct, num_targets)


class _ChunkedLoss(torch.autograd.Function):
    """The same sums with their gradient, both computed chunk by chunk in the forward pass.

    The gradient with respect to a chunk's logits, q - p in the plain case, overwrites the logits. Its products with
    lm_head and with the hidden states are all that the backward pass needs: they have N C and V C numbers, not N V.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, lm_head: Tensor, targets: Tensor, objective: Objective, softcap: float
                ) -> tuple[Tensor, ...]:
        (N, C), V, device = hidden.shape, len(lm_head), hidden.device
        epsilon, z_weight = objective.label_smoothing, objective.z_loss
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
        weights = lm_head.to(dtype)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_lm_head = torch.zeros(V, C, device=device) if ctx.needs_input_grad[1] else None
        sums: list[Tensor] = []
        with torch.autocast(device.type, enabled=False):
            size = max(MIN_CHUNK, N // CHUNKS)
            for here in (slice(start, start + size) for start in range(0, N, size)):
                h, y = hidden[here].to(dtype), targets[here]
                unmasked = (y != IGNORE_INDEX).float()  # (n,)
                y = y.where(y != IGNORE_INDEX, 0)[:, None]
                logits = soft_cap((h @ weights.T).float(), softcap)  # (n, V)
                z_y, z_max = logits.gather(1, y)[:, 0], logits.amax(dim=1)
                correct = (z_y == z_max) / (logits == z_max[:, None]).sum(dim=1)
                slope = 1 - (logits / softcap).square() if softcap else None  # derivative of the cap
                mean_z = logits.mean(dim=1) if epsilon else z_y
                probs = logits.sub_(z_max[:, None]).exp_()  # on the same storage, not yet normalised
                exp_sum = probs.sum(dim=1)
                lse = z_max + exp_sum.log()
                columns = [lse - z_y, epsilon * (z_y - mean_z), z_weight * lse.square(), correct, torch.ones_like(lse)]
                sums.append(torch.stack([_total(column * unmasked) for column in columns]))
                if d_hidden is None and d_lm_head is None:
                    continue
                grad = probs.mul_((unmasked * (1 + 2 * z_weight * lse) / exp_sum)[:, None])  # the same storage again
                if epsilon:
                    grad.sub_((unmasked * (epsilon / V))[:, None])
                grad.scatter_add_(1, y, (unmasked * (epsilon - 1))[:, None])
                grad = (grad.mul_(slope) if slope is not None else grad).to(dtype)
                if d_hidden is not None:
                    d_hidden[here] = grad @ weights
                if d_lm_head is not None:
                    _add_product(d_lm_head, grad, h)
                del logits, probs, grad  # before the next chunk needs the memory
        ctx.gradients, ctx.lm_head_dtype = (d_hidden, d_lm_head), lm_head.dtype
        nll, smoothing, z_loss, correct, num_targets = torch.stack(sums).sum(dim=0)
        ctx.mark_non_differentiable(nll, smoothing, z_loss, correct, num_targets)
        return nll, smoothing, z_loss, correct, num_targets, nll + smoothing + z_loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss can be differentiated once: backward scales its gradients in place")
        (d_hidden, d_lm_head), ctx.gradients = ctx.gradients, None
        scale = grads[-1].float()
        return (d_hidden.mul_(scale) if d_hidden is not None else None,
                d_lm_head.mul_(scale).to(ctx.lm_head_dtype) if d_lm_head is not None else None, None, None, None)


def _add_product(total: Tensor, grad: Tensor, h: Tensor) -> None:
    """total += grad' h, for total (V, C) float32, grad (n, V), h (n, C); few rows at once on a CPU, for its cache."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, h)
        return
    rows = CACHED_ROWS if total.device.type == "cpu" else len(total)
    for part, columns in zip(torch.split(total, rows), torch.split(grad, rows, dim=1), strict=True):
        part.add_((columns.T @ h).to(total.dtype))  # mps adds no mixed dtypes
