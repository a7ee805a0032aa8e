"""A few operations with their gradients written out, for what autograd would do in more passes over memory.

Eagerly, a model this small waits for memory, not for arithmetic: each pass over its activations counts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # the least root mean square that is divided by


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021)."""
    y: Tensor = _ReLU2.apply(x)  # type: ignore[no-untyped-call]
    return y


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2) over the last dimension (Zhang & Sennrich 2019), without weights."""
    y: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """Rotary positions (Su et al. 2021): turn pairs of features by an angle that grows with position.

    x is (B, T, n width), n heads side by side; feature i of a head is paired with i + width / 2. cos and
    sin are (T, n width), the latter with the sign of the first of each pair turned.
    """
    y: Tensor = _Rotation.apply(x, cos, sin, width)  # type: ignore[no-untyped-call]
    return y


class _ReLU2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return (grads[0] * r).mul_(2)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        C = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = (C**0.5 / norm.clamp_min(EPS * C**0.5)).to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """With y = s x and s = 1 / rms: dx = s (g - y mean(g y)), as s falls where x grows."""
        (g,), (y, scale) = grads, ctx.saved_tensors
        return torch.addcmul(g, y, (g * y).mean(dim=-1, keepdim=True), value=-1).mul_(scale)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.width = width
        return _turn(x, cos, sin, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin, ctx.width), None, None, None  # a rotation's inverse turns back


def _turn(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """(a, b) of each pair to (a cos - b sin, b cos + a sin)."""
    swapped = x.view(*x.shape[:-1], -1, width).roll(width // 2, -1).view(x.shape)
    return (x * cos).addcmul_(swapped, sin)
