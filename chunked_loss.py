"""The loss from hidden states: with a large vocabulary, without the logits of all tokens in memory.

Above 4 million logits, the tokens are taken chunk by chunk, and the gradient is computed in the
forward pass: a chunk's logits become its gradient in place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loss import IGNORE_INDEX, PLAIN, LossSums, Objective, cross_entropy, soft_cap, sum_targets

# tokens x vocabulary of a batch; above it, chunks save memory and are faster (bench/loss.py)
MAX_LOGITS = 2**22
CHUNKS = 16  # in a batch, or fewer of at least MIN_CHUNK tokens
MIN_CHUNK = 128
CACHED_ROWS = 2048  # rows of lm_head's gradient, (V, C), that a CPU's cache holds at usual widths


def next_token_loss(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    objective: Objective = PLAIN,
    softcap: float = 0.0,
    *,
    teacher_logits: Tensor | None = None,
) -> LossSums:
    """Sum the losses of hidden states (B, T, C), the weights of lm_head (V, C) and targets (B, T).

    The hidden states of masked positions do not matter, not even if they are infinite.
    """
    hidden = hidden.flatten(0, -2)
    targets = targets.flatten()
    hidden = hidden.masked_fill((targets == IGNORE_INDEX)[:, None], 0.0)
    num_logits = len(targets) * len(lm_head)
    # a teacher has made as many logits
    if num_logits < MAX_LOGITS or teacher_logits is not None:
        logits = soft_cap(F.linear(hidden, lm_head).float(), softcap)
        return cross_entropy(logits, targets, objective, teacher_logits)
    chunked = _ChunkedLoss.apply
    # not always: `disable` imports the compiler, which takes seconds
    if torch.compiler.is_compiling():
        chunked = torch.compiler.disable(chunked)  # type: ignore[no-untyped-call]
    sums = chunked(hidden, lm_head, targets, objective, softcap)  # type: ignore[no-untyped-call]
    return LossSums._make(sums)


class _ChunkedLoss(torch.autograd.Function):
    """The sums of cross_entropy with their gradient, both computed in the forward pass.

    With lse = log sum exp z, q = exp(z - lse), label smoothing e and z-loss weight w, each target
    has

        total      = lse - z_y + e (z_y - mean z) + w lse^2
        d total/dz = (1 + 2 w lse) q - e / V - (1 - e) one_hot(y)

    With a softcap, z is the capped logit, and the gradient is multiplied by 1 - (z / softcap)^2.
    backward needs only the gradient's products with lm_head and the hidden states.
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
        N, C = hidden.shape
        V = len(lm_head)
        device = hidden.device
        dtype = _product_dtype(hidden)
        weights = lm_head.to(dtype)
        d_hidden = d_lm_head = None
        if ctx.needs_input_grad[0]:
            d_hidden = torch.empty_like(hidden)
        if ctx.needs_input_grad[1]:
            d_lm_head = torch.zeros(V, C, device=device)

        sums = []
        size = max(MIN_CHUNK, N // CHUNKS)
        # products are in `dtype`, all else in float32
        with torch.autocast(device.type, enabled=False):
            for start in range(0, N, size):
                chunk = slice(start, start + size)
                h = hidden[chunk].to(dtype)
                is_target = targets[chunk] != IGNORE_INDEX  # (n,)
                y = targets[chunk].where(is_target, 0)[:, None]  # (n, 1)
                logits = soft_cap((h @ weights.T).float(), softcap)  # (n, V)
                slope = None  # of the softcap
                if softcap:
                    slope = 1 - (logits / softcap).square()
                chunk_sums, exp_logits, slope_of_exp = _chunk_sums(logits, y, is_target, objective)
                sums.append(chunk_sums)
                if d_hidden is None and d_lm_head is None:
                    continue
                grad = _gradient(exp_logits, slope_of_exp, y, is_target, objective.label_smoothing)
                if slope is not None:
                    grad.mul_(slope)
                grad = grad.to(dtype)
                if d_hidden is not None:
                    d_hidden[chunk] = grad @ weights
                if d_lm_head is not None:
                    _add_product(d_lm_head, grad, h)
                del logits, slope, exp_logits, grad  # before the next chunk needs the memory

        ctx.gradients = d_hidden, d_lm_head
        ctx.lm_head_dtype = lm_head.dtype
        nll, smoothing, z_loss, correct, num_targets = torch.stack(sums).sum(dim=0)
        teacher_kl = torch.zeros_like(nll)  # there is no teacher
        others = (nll, smoothing, z_loss, teacher_kl, correct, num_targets)
        ctx.mark_non_differentiable(*others)
        return nll + smoothing + z_loss, *others

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the chunked loss can be differentiated once: backward scales its gradients in "
                "place"
            )
        d_hidden, d_lm_head = ctx.gradients
        ctx.gradients = None
        scale = grads[0].float()
        if d_hidden is not None:
            d_hidden.mul_(scale)
        if d_lm_head is not None:
            d_lm_head = d_lm_head.mul_(scale).to(ctx.lm_head_dtype)
        return d_hidden, d_lm_head, None, None, None


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _chunk_sums(
    logits: Tensor, y: Tensor, is_target: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the parts of the loss of a chunk (n, V).

    Returns the five sums, the logits' memory with exp(z - max z), and by how much that has to be
    multiplied to be the gradient of lse + w lse^2, (n,).
    """
    e = objective.label_smoothing
    w = objective.z_loss
    z_y = logits.gather(1, y)[:, 0]
    z_max = logits.amax(dim=1)
    correct = (z_y == z_max) / (logits == z_max[:, None]).sum(dim=1)
    mean_z = z_y
    if e:
        mean_z = logits.mean(dim=1)
    exp_logits = logits.sub_(z_max[:, None]).exp_()
    exp_sum = exp_logits.sum(dim=1)
    lse = z_max + exp_sum.log()
    terms = [lse - z_y, e * (z_y - mean_z), w * lse.square(), correct, torch.ones_like(lse)]
    sums = torch.stack([sum_targets(term, is_target) for term in terms])
    return sums, exp_logits, (1 + 2 * w * lse) / exp_sum


def _gradient(
    exp_logits: Tensor, slope: Tensor, y: Tensor, is_target: Tensor, label_smoothing: float
) -> Tensor:
    """Turn exp(z - max z), (n, V), into d total/dz, in place; a masked target has zeros."""
    grad = exp_logits.mul_((is_target * slope)[:, None])
    if label_smoothing:
        grad.sub_((is_target * (label_smoothing / grad.shape[1]))[:, None])
    return grad.scatter_add_(1, y, (is_target * (label_smoothing - 1.0))[:, None])


def _add_product(total: Tensor, grad: Tensor, h: Tensor) -> None:
    """Add grad.T @ h to total (V, C), in float32; grad (n, V) and h (n, C) may be in 16 bits."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, h)
        return
    size = len(total)
    if total.device.type == "cpu":
        size = CACHED_ROWS
    for start in range(0, len(total), size):
        rows = slice(start, start + size)
        product = grad[:, rows].T @ h
        total[rows].add_(product.to(total.dtype))  # mps does not add bfloat16 to float32
