"""Where a run computes: one frozen World of device, arithmetic, and the processes that share the work.

Under `torchrun --nproc_per_node=W` a run is W processes, its ranks. They hold the same weights, because
they start from the same seed and add the same gradients; only rank 0 writes files and speaks.
"""

import atexit
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The device, the dtype its matrix products are done in, and which of how many ranks this is.

    With one rank every method is the obvious one. With more, all ranks must come to each call of
    `once`, `first`, `sum`, `max` and `sum_gradients`, and wait there for each other.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    size: int = 1

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in `dtype`; weights, sums and the loss stay float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def once(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Rank 0 calls it, and every rank has its result, or the user's mistake that it raised."""
        if self.size == 1:
            return function(*args, **kwargs)
        outcome: list[Any] = [None, None]  # the result, the mistake
        if self.rank == 0:
            try:
                outcome[0] = function(*args, **kwargs)
            except (UserError, OSError) as error:
                outcome[1] = error
        _together(dist.broadcast_object_list, outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def first(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Rank 0 calls it before the others do, and they find what it made: for results too large to send."""
        results: list[T] = []
        self.once(lambda: results.append(function(*args, **kwargs)))
        return results[0] if results else function(*args, **kwargs)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' tensors, in place."""
        if self.size > 1:
            _together(dist.all_reduce, tensor)
        return tensor

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        _together(dist.all_reduce, largest, dist.ReduceOp.MAX)
        return int(largest)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make every rank's gradient the sum over ranks, in one exchange once a rank's micro-batches are done.

        Each micro-batch's loss is already divided by the tokens scored in the global batch, so a plain sum is
        the gradient of that batch, also where a rank had no micro-batch, or nothing to score.
        DistributedDataParallel averages ranks, expects a backward pass of each, and wraps the model; in
        exchange it hides the sending behind that pass, which for models this small is not worth it.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        flat = self.sum(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))
        for p, gradient in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p)

    def __str__(self) -> str:
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        else:
            where = f"cpu with {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)
        ranks = f"{self.size} ranks of " if self.size > 1 else ""
        return f"{ranks}{where}, {str(self.dtype).removeprefix('torch.')}"


def find_world(device: str, dtype: str, batch_size: int = 1) -> World:
    """The World that was asked for; `auto` takes the fastest there is. UserError if it isn't there.

    `batch_size` is how many sequences there are to share out, 1 for a command that is for one process.
    """
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # as torchrun sets them
    if size > batch_size:
        raise UserError(f"{size} ranks, and batch_size={batch_size}: each rank needs a sequence of its own")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = device.split(":")[0] if device != "auto" else next(kind for kind in available if available[kind])
    if kind not in available or not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", device):
        raise UserError(f"device={device}: should be auto, cpu, mps, cuda or cuda:N")
    if not available[kind]:
        raise UserError(f"device={device}: torch finds no {kind} on this machine; use --device=auto")
    if size > 1 and (kind == "mps" or ":" in device):
        raise UserError(f"device={device}: several ranks take --device=cpu, or --device=cuda, where each has its own")
    if size > 1 and kind == "cuda":
        device = f"cuda:{local_rank}"
    chosen = torch.device(device if device != "auto" else kind)
    if kind == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise UserError(f"device={device}: this machine has {torch.cuda.device_count()} CUDA device(s), from cuda:0")
    if kind == "cpu":
        _keep_freed_memory()
    if dtype == "auto":
        dtype = "bfloat16" if _has_bfloat16(kind) else "float32"
    if size > 1:
        _join(chosen)
    return World(chosen, getattr(torch, dtype), rank, size)


def _together(exchange: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what all ranks must come to; UserError if one is gone."""
    try:
        return exchange(*args, **kwargs)
    except RuntimeError as error:
        raise UserError("another process of this training is gone, and without it there is no going on "
                        f"({str(error).splitlines()[0]:.120}); to go on from the last checkpoint, start all of them "
                        "again with --init_from=resume, or let torchrun do that: --max-restarts=3") from None


def _join(device: torch.device) -> None:
    """Meet the other ranks. What is on the CPU goes by gloo, what is on GPUs by nccl.

    torchrun keeps its store when it restarts them, and in it where the dead ones were to be reached: so each
    attempt looks under a name of its own.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://"))
    attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _together(dist.init_process_group, "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=attempt,
              rank=rank, world_size=size, timeout=timedelta(hours=2))  # rank 0 may be preparing a large corpus
    atexit.register(dist.destroy_process_group)


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
