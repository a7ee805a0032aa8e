"""Small operations, faster than PyTorch's on a CPU: three with hand-written gradients, and dropout.

A model this small waits for memory, not for arithmetic: autograd would read and write the activations more
often than these do (bench/NOTES.md has figures). Inside torch.compile, which fuses them by itself, and where no
gradient is wanted the plain formulas are used. tests/test_kernels.py checks each against PyTorch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # keeps rms_norm of zeros finite


def use_plain() -> bool:
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2, of any shape (So et al. 2021)."""
    if use_plain():
        return F.relu(x).square()
    y: Tensor = _ReLU2.apply(x)  # type: ignore[no-untyped-call]
    return y


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + EPS) over the last dimension, without weights (Zhang & Sennrich 2019)."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    if use_plain():
        return x * _scale(x)
    y: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
    return y


def rotary(x: Tensor, cos: Tensor, sin: Tensor, head_width: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021), in the direction that nanochat turns.

    x is (B, T, n D): n heads of width D side by side. Feature i of a head and feature i + D/2 are a pair (a, b),
    which becomes (a cos + b sin, b cos - a sin). cos and sin are (T, n D); the second half of each head in sin
    already has the minus sign.
    """
    if use_plain():
        return _rotate(x, cos, sin, head_width)
    y: Tensor = _Rotary.apply(x, cos, sin, head_width)  # type: ignore[no-untyped-call]
    return y


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout (Srivastava et al. 2014); on a CPU, p is rounded to 1/65,536.

    There the random numbers cost more than what is done with them, so an element gets 16 bits instead of a float.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    words = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-2**63, None)  # four numbers of 16 bits
    kept = words.view(torch.int16)[:x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * kept.to(x.dtype).div_(1 - p)


class _ReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _scale(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """dx = scale (g - y mean(g y)): the scale falls where x grows."""
        (g,), (y, scale) = grads, ctx.saved_tensors
        return torch.addcmul(g, y, (g * y).mean(dim=-1, keepdim=True), value=-1).mul_(scale)


def _scale(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_().to(x.dtype)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, head_width: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.head_width = head_width
        return _rotate(x, cos, sin, head_width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors  # the gradient is turned back
        return _rotate(grads[0], cos, -sin, ctx.head_width), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, head_width: int) -> Tensor:
    swapped = x.view(*x.shape[:-1], -1, head_width).roll(head_width // 2, -1).view(x.shape)
    return torch.addcmul(x * cos, swapped, sin)
