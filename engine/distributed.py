"""Where a run computes: one frozen World of device and arithmetic."""

import ctypes
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from errors import UserError


@dataclass(frozen=True)
class World:
    """The device, and the dtype its matrix products are done in."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `dtype`; weights, sums and the loss stay float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            where = f"cpu with {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)
        return f"{where}, {str(self.dtype).removeprefix('torch.')}"


def find_world(device: str, dtype: str) -> World:
    """The World that was asked for; `auto` takes the fastest there is. UserError if it isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = device.split(":")[0] if device != "auto" else next(kind for kind in available if available[kind])
    if kind not in available or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", device):
        raise UserError(f"device={device}: should be auto, cpu, mps, cuda or cuda:N")
    if not available[kind]:
        raise UserError(f"device={device}: torch finds no {kind} on this machine; use --device=auto")
    chosen = torch.device(device if device != "auto" else kind)
    if kind == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise UserError(f"device={device}: this machine has {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    if kind == "cpu":
        _keep_freed_memory()
    if dtype == "auto":
        dtype = "bfloat16" if _has_bfloat16(kind) else "float32"
    return World(chosen, getattr(torch, dtype))


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones: else each pays for fresh pages.

    It halves the time of some evaluations, and steadies all of them.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to 32 MB come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap is not given back


def _has_bfloat16(kind: str) -> bool:
    """Whether the hardware multiplies in bfloat16; emulated, it would be slower than float32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
