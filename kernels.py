"""Small operations, faster than PyTorch's on a CPU: RMSNorm and ReLU^2 with hand-written gradients,
dropout, attention.

A model this small waits for memory, not for arithmetic: autograd would read and write the
activations more often than these do (bench/NOTES.md has figures). Inside torch.compile, which fuses
them by itself, and where no gradient is wanted the plain formulas are used. tests/test_kernels.py
checks each against PyTorch.
"""

import math
import threading
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # keeps rms_norm of zeros finite
WRITTEN_OUT = 512  # tokens; in longer windows PyTorch's attention is faster in bfloat16 too

_random = threading.local()  # .generator: the random numbers of dropout in a worker thread


def set_dropout_seed(seed: int) -> None:
    """Seed the random numbers of dropout in this thread; the main thread's are torch's own."""
    if threading.current_thread() is threading.main_thread():
        torch.manual_seed(seed)
    else:
        _random.generator = torch.Generator().manual_seed(seed)


def use_plain() -> bool:
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


def relu2(x: Tensor) -> Tensor:
    """Compute max(x, 0)^2, of any shape (So et al. 2021)."""
    if use_plain():
        return F.relu(x).square()
    y: Tensor = _ReLU2.apply(x)  # type: ignore[no-untyped-call]
    return y


def rms_norm(x: Tensor) -> Tensor:
    """Divide x by sqrt(mean(x^2) + EPS) over the last dimension (Zhang & Sennrich 2019)."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    if use_plain():
        return x * _scale(x)
    y: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
    return y


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Drop as F.dropout does (Srivastava et al. 2014); on a CPU, p is rounded to 1/65,536.

    There the random numbers cost more than what is done with them, so an element gets 16 bits
    instead of a float.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    generator = getattr(_random, "generator", None)
    words = torch.empty(x.numel() // 4 + 1, dtype=torch.int64)  # four numbers of 16 bits each
    words.random_(-(2**63), None, generator=generator)
    numbers = words.view(torch.int16)[: x.numel()].view(x.shape)
    is_kept = numbers >= round(p * 2**16) - 2**15
    return x * is_kept.to(x.dtype).div_(1 - p)


def attention(q: Tensor, k: Tensor, v: Tensor, p: float, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v for the last T of S tokens, with dropout `p`.

    q is (B, H, T, D); k and v are (B, H, S, D), all of one dtype. `mask`, (T, S) or (B, 1, T, S),
    is True where a token may attend; None means causal attention.
    """
    T = q.shape[2]
    S = k.shape[2]
    if _write_attention_out(q, p):
        bias = causal_bias(T, S, q.dtype) if mask is None else _to_bias(mask, q.dtype)
        return _attention_written_out(q, k, v, p, bias)
    if mask is None and T in (S, 1):  # all tokens are new, or one is and attends to all
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=T == S)
    if mask is None:
        mask = causal_mask(T, S, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def causal_mask(T: int, S: int, device: torch.device) -> Tensor:
    """Let the last T of S tokens attend to themselves and to all before them, (T, S)."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def _write_attention_out(q: Tensor, p: float) -> bool:
    """Whether that is faster: on CPUs with dropout, and in bfloat16 where the windows are short."""
    if q.device.type != "cpu":
        return False
    is_short = 1 < q.shape[2] <= WRITTEN_OUT
    return p > 0 or (is_short and q.dtype == torch.bfloat16)


def _attention_written_out(q: Tensor, k: Tensor, v: Tensor, p: float, bias: Tensor) -> Tensor:
    B, H, T, D = q.shape
    S = k.shape[2]
    q = q.reshape(B * H, T, D)
    k = k.reshape(B * H, S, D)
    v = v.reshape(B * H, S, D)
    bias = bias.expand(B, H, T, S).reshape(B * H, T, S)
    scores = torch.baddbmm(bias, q, k.mT, alpha=D**-0.5)  # bias + q k^T / sqrt(D)
    weights = dropout(F.softmax(scores, dim=-1), p)
    return (weights @ v).view(B, H, T, D)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what evaluation makes first, training uses too
def causal_bias(T: int, S: int, dtype: torch.dtype) -> Tensor:
    """Make 0 of `causal_mask` where it is True, else minus infinity, (T, S) on the CPU."""
    return _to_bias(causal_mask(T, S, torch.device("cpu")), dtype)


def _to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


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
        """Compute dx = scale (g - y mean(g y)): the scale falls where x grows."""
        g = grads[0]
        y, scale = ctx.saved_tensors
        mean = (g * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(g, y, mean, value=-1).mul_(scale)


def _scale(x: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    mean_square = norm.square_().div_(x.shape[-1])
    return mean_square.add_(EPS).rsqrt_().to(x.dtype)
