"""Next-token cross-entropy: the number this repository is about.

The model gives logits z for every token of the vocabulary; q = softmax(z) is its prediction and y
the token that came. Its loss is the surprisal -log q_y, in nats. All results are sums over tokens,
never means: sums add up exactly over micro-batches and ranks, and are divided once, by the number
of tokens scored in the whole batch.

`cross_entropy` is the definition, from logits. `next_token_loss` starts from the hidden states and
the head: for a large vocabulary it goes through the tokens in chunks, so that the logits of all of
them are never in memory, and has the gradient ready when the loss is, so that nothing is computed twice.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a position that is not to be scored
FUSED_LOGITS = 2**22  # logits, N V, from which going in chunks is the faster way (bench/loss.py)
CHUNKS = 16  # that a batch is cut into; more are slower, fewer take more memory
CHUNK_TOKENS = 128  # at the least
HEAD_ROWS = 2048  # of the head's gradient that are added to at once in bfloat16, so that they stay in the cache


@dataclass(frozen=True)
class LossSums:
    """Sums over the scored tokens of a batch, as scalar tensors; nats where not counts.

    `objective` = nll + smoothing + z_loss + distillation is what is optimised, and carries the gradient.
    `nll` is always the plain cross-entropy, whatever the objective: perplexity comes from it alone.
    """

    objective: Tensor
    nll: Tensor
    smoothing: Tensor  # what label smoothing adds
    z_loss: Tensor  # what the z-loss adds
    distillation: Tensor  # what the teacher adds
    correct: Tensor  # tokens that were the most probable one
    tokens: Tensor  # tokens scored


@dataclass(frozen=True)
class LossMeans:
    """Nats per token, and the share of tokens guessed, over all tokens that were scored."""

    objective: float
    nll: float
    smoothing: float
    z_loss: float
    distillation: float
    accuracy: float
    tokens: int


def add_up(parts: Iterable[LossSums], over_ranks: Callable[[Tensor], Tensor] | None = None) -> LossSums:
    """The sum of some sums, in float64 on the CPU, NaN where one is infinite; `over_ranks` adds those of all ranks."""
    rows = [torch.stack([getattr(part, field.name).detach() for field in fields(LossSums)]) for part in parts]
    columns = torch.stack(rows, dim=1).tolist() if rows else [[]] * len(fields(LossSums))
    totals = torch.tensor([math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in columns],
                          dtype=torch.float64)
    return LossSums(*(over_ranks(totals) if over_ranks else totals))


def divide_once(parts: Iterable[LossSums], over_ranks: Callable[[Tensor], Tensor] | None = None) -> LossMeans:
    """Add sums up, and divide by the number of tokens they scored, once; NaN for none."""
    total = add_up(parts, over_ranks)
    objective, nll, smoothing, z_loss, distillation, accuracy, _ = (
        float(getattr(total, field.name) / (total.tokens or math.nan)) for field in fields(LossSums))
    return LossMeans(objective, nll, smoothing, z_loss, distillation, accuracy, int(total.tokens))


@dataclass(frozen=True)
class Objective:
    """What is optimised besides the surprisal of the target, token by token.

    label_smoothing: with e, the target is p = (1 - e) one_hot(y) + e / V, and the cross-entropy
        (1 - e) (-log q_y) + e mean_v(-log q_v) (Szegedy et al. 2016).
    z_loss: adds `z_loss` (log sum exp z)^2, which keeps logits from drifting (Chowdhery et al. 2022).
    softcap: with c, logits are c tanh(z / c) (Gemma Team 2024): a part of the model, so also of the nll.
    alpha, temperature: with a teacher's prediction t, the cross-entropy, smoothed or not, counts 1 - alpha, and
        alpha T^2 KL(t_T || q_T) is added, both softened by dividing logits by T (Hinton et al. 2015).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    alpha: float = 0.0
    temperature: float = 1.0


PLAIN = Objective()


def cross_entropy(logits: Tensor, targets: Tensor, objective: Objective = PLAIN, teacher: Tensor | None = None
                  ) -> LossSums:
    """Cross-entropy sums of logits `(..., V)` against targets `(...)`, and maybe a teacher's logits `(..., V)`.

    A target of IGNORE_INDEX is not scored.

    The prediction [0.2, 0.7, 0.1] costs 0.357 nats when the middle one is true, and the gradient
    with respect to the logits is q - p:

    >>> z = torch.tensor([[0.2, 0.7, 0.1]]).log().requires_grad_()
    >>> loss = cross_entropy(z, torch.tensor([1])).objective
    >>> loss.backward()
    >>> round(loss.item(), 3), [round(g, 3) for g in z.grad[0].tolist()]
    (0.357, [0.2, -0.3, 0.1])

    log q = z - logsumexp(z) is never computed as log(softmax(z)), which would be log 0 here:

    >>> cross_entropy(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).nll.item()
    10000.0
    """
    z = cap(logits.flatten(0, -2).float(), objective.softcap)  # (N, V)
    targets = targets.flatten()  # (N,)
    scored = targets != IGNORE_INDEX
    log_q = F.log_softmax(z, dim=-1)
    nll = F.nll_loss(log_q, targets, reduction="sum", ignore_index=IGNORE_INDEX)
    smoothing = z_loss = distillation = torch.zeros_like(nll)
    if objective.label_smoothing:
        smoothing = objective.label_smoothing * (-(log_q.mean(dim=-1) * scored).sum() - nll)
    if objective.z_loss:
        z_loss = objective.z_loss * (z.logsumexp(dim=-1).square() * scored).sum()
    if teacher is not None:
        soft, T = teacher.flatten(0, -2).float(), objective.temperature
        kl = F.kl_div(F.log_softmax(z / T, dim=-1), F.log_softmax(soft / T, dim=-1), reduction="none", log_target=True)
        distillation = objective.alpha * (T**2 * (kl.sum(dim=-1) * scored).sum() - nll - smoothing)
    correct = (z.detach().argmax(dim=-1) == targets).sum()  # IGNORE_INDEX is no argmax
    return LossSums(nll + smoothing + z_loss + distillation, nll, smoothing, z_loss, distillation, correct,
                    scored.sum())


def cap(z: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(z / softcap) if softcap else z


def next_token_loss(hidden: Tensor, head: Tensor, targets: Tensor, objective: Objective = PLAIN,
                    teacher: Tensor | None = None) -> LossSums:
    """Cross-entropy sums from hidden states `(B, T, C)`, the output head `(V, C)` and targets `(B, T)`.

    A teacher's logits `(B, T, V)` are in memory anyway: with them there are no chunks.
    """
    if targets.numel() * len(head) < FUSED_LOGITS or teacher is not None:
        return cross_entropy(F.linear(hidden, head), targets, objective, teacher)
    objective_sum, nll, smoothing, z_loss, correct, tokens = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2), head, targets.flatten(), objective)
    return LossSums(objective_sum, nll, smoothing, z_loss, torch.zeros_like(nll), correct, tokens)


@torch.no_grad()
def token_nll(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Each target's NLL in nats, `(B, T)`, from hidden states `(B, T, C)`; 0 where it is not scored."""
    size = max(1, FUSED_LOGITS // len(head))
    return torch.cat([
        F.cross_entropy(cap(F.linear(h, head).float(), softcap), y, reduction="none", ignore_index=IGNORE_INDEX)
        for h, y in zip(torch.split(hidden.flatten(0, -2), size), torch.split(targets.flatten(), size), strict=True)
    ]).view(targets.shape)


class _FusedLoss(torch.autograd.Function):
    """The same sums, and their gradient, a chunk of tokens at a time.

    With g = q - p, or with the terms' own weights, a chunk's logits turn into g in place; g W and
    g' h are then all that the backward pass needs, and they take (N, C) and (V, C), not (N, V).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        (N, C), V, device = hidden.shape, len(head), hidden.device
        eps, softcap = objective.label_smoothing, objective.softcap
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
        weights = head.to(dtype)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros(V, C, device=device) if ctx.needs_input_grad[1] else None
        sums = torch.zeros(5, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
        with torch.autocast(device.type, enabled=False):
            size = max(CHUNK_TOKENS, N // CHUNKS)
            for start in range(0, N, size):
                here = slice(start, start + size)
                h, y = hidden[here].to(dtype), targets[here]
                scored = (y != IGNORE_INDEX).float()
                y = y.where(y != IGNORE_INDEX, 0)[:, None]  # any other is an error
                z = cap((h @ weights.T).float(), softcap)  # (n, V); from here on changed in place
                z_y, (largest, guess) = z.gather(1, y)[:, 0], z.max(dim=1)
                slope = 1 - (z / softcap).square() if softcap else None  # of the cap
                mean_z = z.mean(dim=1) if eps else z_y
                exp_sum = z.sub_(largest[:, None]).exp_().sum(dim=1)
                lse = largest + exp_sum.log()
                sums += torch.stack([lse - z_y, eps * (z_y - mean_z), objective.z_loss * lse.square(),
                                     (guess == y[:, 0]).float(), torch.ones_like(lse)]) @ scored
                if d_hidden is None and d_head is None:
                    continue
                z *= (scored * (1 + 2 * objective.z_loss * lse) / exp_sum)[:, None]  # q and the z-loss's share
                if eps:
                    z -= (scored * (eps / V))[:, None]
                z.scatter_add_(1, y, (scored * (eps - 1))[:, None])
                g = (z * slope if slope is not None else z).to(dtype)
                if d_hidden is not None:
                    d_hidden[here] = g @ weights
                if d_head is not None:
                    _add_product(d_head, g, h)
                del z, g  # before the next ones are made
        ctx.gradients = d_hidden, d_head  # no outputs or inputs, so autograd need not watch over them
        ctx.head_dtype = head.dtype
        nll, smoothing, z_loss, correct, tokens = sums.float()
        ctx.mark_non_differentiable(nll, smoothing, z_loss, correct, tokens)
        return nll + smoothing + z_loss, nll, smoothing, z_loss, correct, tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the fused loss can be differentiated once: its gradients are scaled in place")
        (d_hidden, d_head), ctx.gradients = ctx.gradients, None
        return (d_hidden.mul_(grads[0]) if d_hidden is not None else None,
                d_head.mul_(grads[0]).to(ctx.head_dtype) if d_head is not None else None, None, None)


def _add_product(total: Tensor, g: Tensor, h: Tensor) -> None:
    """total += g' h, for `total` (V, C) float32, g (n, V) and h (n, C)."""
    if g.dtype == total.dtype:
        total.addmm_(g.T, h)
        return
    for rows, columns in zip(torch.split(total, HEAD_ROWS), torch.split(g, HEAD_ROWS, dim=1), strict=True):
        rows += columns.T @ h
