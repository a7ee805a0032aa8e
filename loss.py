"""Next-token cross-entropy: the number this repository is about.

The model gives a logit z_v for every token v of the vocabulary. Its prediction is q = softmax(z).
If the next token is y, the loss is its surprisal -log q_y, in nats. Losses here are sums over
tokens, never means: sums add up exactly over micro-batches and ranks, and are divided once, by the
number of targets in the whole batch (`mean_loss`).

`cross_entropy` is the definition. `next_token_loss` computes the same from hidden states: with a
large vocabulary it works in chunks, so that the logits of all tokens are never in memory together.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # the target of a masked position, which has no loss

# tokens x vocabulary of a batch; above it, chunks save memory and are faster (bench/loss.py)
MAX_LOGITS = 2**22
CHUNKS, MIN_CHUNK = 16, 128  # a batch has about 16 chunks, or fewer of at least 128 tokens
CACHED_ROWS = 2048  # rows of lm_head's gradient, (V, C), that a CPU's cache holds at usual widths


class LossSums(NamedTuple):
    """Sums over the targets of a batch, as scalar tensors; in nats, unless they are counts.

    objective = nll + smoothing + z_loss + distillation is optimised; the chunked loss has no
    gradient for its parts. `nll` is the plain cross-entropy: perplexity, bits and bits per byte
    come from it alone.
    """

    objective: Tensor
    nll: Tensor
    smoothing: Tensor  # what label smoothing adds to nll
    z_loss: Tensor  # what the z-loss adds
    distillation: Tensor  # what the teacher adds; may be negative
    # targets that the model held most probable; in a tie of k tokens, the target counts as 1/k
    correct: Tensor
    num_targets: Tensor

    def detach(self) -> "LossSums":
        """The same numbers without the graph of their gradients."""
        return LossSums._make(number.detach() for number in self)


class LossMeans(NamedTuple):
    """LossSums divided by the number of targets: nats per target, and the top-1 accuracy."""

    objective: float
    nll: float
    smoothing: float
    z_loss: float
    distillation: float
    accuracy: float
    num_targets: float


class Objective(NamedTuple):
    """What is optimised instead of the plain cross-entropy.

    label_smoothing: e replaces the one-hot target by p = (1 - e) one_hot(y) + e / V, whose
    cross-entropy is
        (1 - e) (-log q_y) + e mean_v(-log q_v) (Szegedy et al. 2016).
    z_loss: the weight w of w (log sum exp z)^2, which keeps logits from drifting (Chowdhery et al.
    2022). alpha, temperature: with a teacher's prediction t, the objective is (1 - alpha) (nll +
    smoothing)
        + alpha T^2 KL(t_T || q_T). In q_T and t_T the logits are divided by the temperature T
        (Hinton et al. 2015).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    alpha: float = 0.0
    temperature: float = 1.0


PLAIN = Objective()


def sum_losses(
    parts: Iterable[LossSums], all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums
) -> LossSums:
    """The sum over micro-batches, and over ranks with `all_reduce`, in float64 on the CPU; inf and
    NaN become NaN.
    """
    # One copy from the device for each part, not one for each of its numbers: a GPU waits for each
    # copy.
    numbers = [
        torch.stack([number.detach().to(part.nll.dtype) for number in part]).tolist()
        for part in parts
    ] or [[0.0] * len(LossSums._fields)]
    fields = zip(*numbers, strict=True)  # for each field, its numbers in all parts
    totals = [math.fsum(field) if all(map(math.isfinite, field)) else math.nan for field in fields]
    return LossSums._make(all_reduce(torch.tensor(totals, dtype=torch.float64)))


def mean_loss(sums: LossSums) -> LossMeans:
    """Divide by the number of targets; NaN if there is none."""
    *totals, num_targets = map(float, sums)
    return LossMeans._make([*(total / (num_targets or math.nan) for total in totals), num_targets])


def soft_cap(logits: Tensor, softcap: float) -> Tensor:
    """softcap tanh(logits / softcap), so that no logit is larger than `softcap` (Gemma Team 2024);
    0 = unchanged.
    """
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    objective: Objective = PLAIN,
    teacher_logits: Tensor | None = None,
) -> LossSums:
    """Loss sums from logits (..., V) and targets (...). A teacher's logits are (..., V), too.

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
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()  # (N, V), (N,)
    unmasked = targets != IGNORE_INDEX
    log_q = F.log_softmax(logits, dim=-1)
    nll = _total(F.nll_loss(log_q, targets, reduction="none", ignore_index=IGNORE_INDEX), unmasked)
    smoothing = z_loss = distillation = torch.zeros_like(nll)
    if objective.label_smoothing:  # (1 - e) nll + e uniform = nll + e (uniform - nll)
        smoothing = objective.label_smoothing * (_total(-log_q.mean(dim=-1), unmasked) - nll)
    if objective.z_loss:
        z_loss = objective.z_loss * _total(logits.logsumexp(dim=-1).square(), unmasked)
    if teacher_logits is not None:
        T = objective.temperature
        log_q_T, log_t_T = (
            F.log_softmax(z / T, dim=-1) for z in (logits, teacher_logits.flatten(0, -2).float())
        )
        # KL(t_T || q_T): t comes second
        kl = F.kl_div(log_q_T, log_t_T, reduction="none", log_target=True).sum(dim=-1)
        distillation = objective.alpha * (T**2 * _total(kl, unmasked) - nll - smoothing)
    is_best = logits == logits.detach().amax(dim=-1, keepdim=True)
    target_is_best = is_best.gather(1, targets.clamp_min(0)[:, None])[:, 0]
    correct = _total(target_is_best / is_best.sum(dim=-1), unmasked)
    return LossSums(
        nll + smoothing + z_loss + distillation,
        nll,
        smoothing,
        z_loss,
        distillation,
        correct,
        unmasked.sum(),
    )


def next_token_loss(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    objective: Objective = PLAIN,
    softcap: float = 0.0,
    teacher_logits: Tensor | None = None,
) -> LossSums:
    """Loss sums from hidden states (B, T, C), the weights of lm_head (V, C) and targets (B, T).

    The hidden states of masked positions do not matter, not even if they are infinite.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    hidden = hidden.masked_fill((targets == IGNORE_INDEX)[:, None], 0.0)
    # a teacher has made N x V logits
    if targets.numel() * len(lm_head) < MAX_LOGITS or teacher_logits is not None:
        return cross_entropy(
            soft_cap(F.linear(hidden, lm_head).float(), softcap), targets, objective, teacher_logits
        )
    chunked = _ChunkedLoss.apply
    # not always: `disable` imports the compiler, which takes seconds
    if torch.compiler.is_compiling():
        chunked = torch.compiler.disable(chunked)  # type: ignore[no-untyped-call]
    return LossSums._make(chunked(hidden, lm_head, targets, objective, softcap))  # type: ignore[no-untyped-call]


def _total(values: Tensor, unmasked: Tensor) -> Tensor:
    """The sum of the values (N,) that are not masked, in float64 where the device has it."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    return values.masked_fill(~unmasked, 0).sum(dtype=dtype)


class _ChunkedLoss(torch.autograd.Function):
    """The same sums with their gradient, both computed chunk by chunk in the forward pass.

    With lse = log sum exp z, q = exp(z - lse), label smoothing e and z-loss weight w, each target
    has

        total     = lse - z_y + e (z_y - mean z) + w lse^2
        d total/dz = (1 + 2 w lse) q - e / V - (1 - e) one_hot(y)

    With a softcap, z is the capped logit, and the gradient is multiplied by 1 - (z / softcap)^2.
    One buffer, (n, V), holds z, exp(z - max z), then the gradient. backward needs only its products
    with lm_head and the hidden states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        lm_head: Tensor,
        targets: Tensor,
        objective: Objective,
        softcap: float,
    ) -> tuple[Tensor, ...]:
        (N, C), V, device = hidden.shape, len(lm_head), hidden.device
        e, w = objective.label_smoothing, objective.z_loss
        dtype = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else hidden.dtype
        )
        weights = lm_head.to(dtype)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_lm_head = torch.zeros(V, C, device=device) if ctx.needs_input_grad[1] else None
        sums: list[Tensor] = []
        # products are in `dtype`, all else in float32
        with torch.autocast(device.type, enabled=False):
            size = max(MIN_CHUNK, N // CHUNKS)
            for chunk in (slice(start, start + size) for start in range(0, N, size)):
                h, y = hidden[chunk].to(dtype), targets[chunk]
                unmasked = y != IGNORE_INDEX  # (n,)
                y = y.where(unmasked, 0)[:, None]
                logits = soft_cap((h @ weights.T).float(), softcap)  # (n, V)
                slope = 1 - (logits / softcap).square() if softcap else None
                z_y, z_max = logits.gather(1, y)[:, 0], logits.amax(dim=1)
                correct = (z_y == z_max) / (logits == z_max[:, None]).sum(dim=1)
                mean_z = logits.mean(dim=1) if e else z_y
                # exp(z - max z), in the memory of the logits
                exp = logits.sub_(z_max[:, None]).exp_()
                exp_sum = exp.sum(dim=1)
                lse = z_max + exp_sum.log()
                terms = [
                    lse - z_y,
                    e * (z_y - mean_z),
                    w * lse.square(),
                    correct,
                    torch.ones_like(lse),
                ]
                sums.append(torch.stack([_total(term, unmasked) for term in terms]))
                if d_hidden is None and d_lm_head is None:
                    continue
                # in the same memory again
                grad = exp.mul_((unmasked * (1 + 2 * w * lse) / exp_sum)[:, None])
                if e:
                    grad.sub_((unmasked * (e / V))[:, None])
                grad.scatter_add_(1, y, (unmasked * (e - 1.0))[:, None])
                grad = (grad.mul_(slope) if slope is not None else grad).to(dtype)
                if d_hidden is not None:
                    d_hidden[chunk] = grad @ weights
                if d_lm_head is not None:
                    _add_product(d_lm_head, grad, h)
                del logits, slope, exp, grad  # before the next chunk needs the memory
        ctx.gradients, ctx.lm_head_dtype = (d_hidden, d_lm_head), lm_head.dtype
        nll, smoothing, z_loss, correct, num_targets = torch.stack(sums).sum(dim=0)
        ctx.mark_non_differentiable(
            nll, smoothing, z_loss, no_teacher := torch.zeros_like(nll), correct, num_targets
        )
        return nll + smoothing + z_loss, nll, smoothing, z_loss, no_teacher, correct, num_targets

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the chunked loss can be differentiated once: backward scales its gradients in place"
            )
        (d_hidden, d_lm_head), ctx.gradients = ctx.gradients, None
        scale = grads[0].float()
        return (
            d_hidden.mul_(scale) if d_hidden is not None else None,
            d_lm_head.mul_(scale).to(ctx.lm_head_dtype) if d_lm_head is not None else None,
            None,
            None,
            None,
        )


def _add_product(total: Tensor, grad: Tensor, h: Tensor) -> None:
    """total += grad.T @ h, for total (V, C) float32, grad (n, V) and h (n, C) in the dtype of the
    products.
    """
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, h)
        return
    at_once = CACHED_ROWS if total.device.type == "cpu" else len(total)
    for rows, columns in zip(
        torch.split(total, at_once), torch.split(grad, at_once, dim=1), strict=True
    ):
        rows.add_((columns.T @ h).to(total.dtype))  # mps does not add bfloat16 to float32
