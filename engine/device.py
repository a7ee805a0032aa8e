"""Sets up the device, the dtype of products, and the processes that share the work.

Under `torchrun --nproc_per_node=W` a run is W processes, its ranks. They hold the same weights,
because they start from the same seed and add the same gradients. Only rank 0 writes files and
prints.
"""

import ctypes
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import ReduceOp
from torch.nn.utils import parameters_to_vector

from config.errors import RANK, WORLD_SIZE, UserError
from config.schema import Config
from engine.ranks import join_ranks
from engine.workers import Item, Result, Workers, count_workers

DTYPES = ("auto", "float32", "bfloat16", "float16")  # of matrix products
CPU_TOKENS = 1024  # in a micro-batch on a CPU, at least, or half a batch (bench/NOTES.md)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """The device, the dtype, and which rank of how many this is.

    With several ranks, all of them must make the same calls of these methods, and wait there for
    each other.
    """

    torch_device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1
    workers: Workers = field(default=Workers(1), compare=False)  # on a CPU, its cores

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_emulated(self) -> bool:
        """Whether the hardware emulates such products: up to 100 times slower than float32."""
        kind = self.torch_device.type
        if self.dtype == torch.bfloat16:
            return not _has_bfloat16(kind)
        return self.dtype == torch.float16 and kind == "cpu"

    @property
    def eval_batch_tokens(self) -> int:
        """Tokens in one forward pass of an evaluation: they fit a CPU's cache, or fill a GPU."""
        if self.torch_device.type == "cpu":
            return 2**11
        return 2**16

    def autocast(self) -> AbstractContextManager[object]:
        """Compute matrix products in `dtype`; weights, sums and the loss stay float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        # The cache would share one thread's casts with the graphs of the others.
        return torch.autocast(self.torch_device.type, self.dtype, cache_enabled=False)

    def without_workers(self) -> "Device":
        """Return the same device, but all cores of a CPU share each operation."""
        return replace(self, workers=Workers(1))

    def in_float32(self) -> "Device":
        return replace(self, dtype=torch.float32)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call the function on each item, in order; a CPU's cores compute side by side."""
        return self.workers.map(function, items)

    def to_device(self, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Copy arrays to the device."""
        tensors = [torch.from_numpy(array) for array in arrays]
        if self.torch_device.type == "cuda":
            # only pinned memory can be copied while the GPU computes
            pinned = [tensor.pin_memory() for tensor in tensors]
            return tuple(tensor.to(self.torch_device, non_blocking=True) for tensor in pinned)
        return tuple(tensor.to(self.torch_device) for tensor in tensors)

    def on_rank0(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Rank 0 calls the function; every rank gets its result, or its UserError or OSError."""
        result = error = None
        if self.rank == 0:
            try:
                result = function(*args, **kwargs)
            except (UserError, OSError) as raised:
                error = raised
        outcome: list[Any] = [result, error]
        if self.world_size > 1:
            dist.broadcast_object_list(outcome)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def rank0_first(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Rank 0 calls the function before the others do: they find the files that it made."""
        results: list[T] = []
        self.on_rank0(lambda: results.append(function(*args, **kwargs)))
        return results[0] if results else function(*args, **kwargs)

    def all_reduce(
        self, tensor: torch.Tensor, op: ReduceOp.RedOpType = ReduceOp.SUM
    ) -> torch.Tensor:
        """Sum the ranks' tensors, or apply another `op` to them, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        return tensor

    def all_reduce_each(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by the sum of the ranks' tensors, all of them in one exchange."""
        if self.world_size > 1:
            vector = self.all_reduce(parameters_to_vector(tensors))
            sums = torch.split(vector, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, sums, strict=True):
                tensor.copy_(part.view_as(tensor))

    def max(self, number: int) -> int:
        """Find the largest of the ranks' numbers."""
        return int(self.all_reduce(torch.tensor(number), ReduceOp.MAX))

    def all_reduce_gradients(
        self, parameters: Iterable[torch.nn.Parameter], scale: float = 1.0
    ) -> None:
        """Sum the ranks' gradients in one exchange, and divide them by the scale of the loss.

        Each loss is already divided by the targets of the global batch, so the plain sum is that
        batch's gradient, also where a rank had no micro-batch or no target.
        """
        parameters = list(parameters)
        if self.world_size > 1:
            self._add_rows(parameters)
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        dense = without_sparse(parameters)
        self.all_reduce_each([p.grad for p in dense if p.grad is not None])
        if scale != 1.0:
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / scale)

    def _add_rows(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the ranks' sparse gradients: the rows that occurred on any of them."""
        flags = [p.grad is not None and p.grad.is_sparse for p in parameters]
        is_sparse = self.all_reduce(torch.tensor(flags, dtype=torch.int32))
        for p, count in zip(parameters, is_sparse.tolist(), strict=True):
            if count == 0:
                continue
            grad = p.grad
            if grad is None:  # this rank has no micro-batch
                grad = torch.zeros_like(p, layout=torch.sparse_coo)
            grad = grad.coalesce()
            occurs = torch.zeros(len(p), device=p.device)
            occurs[grad.indices()[0]] = 1
            rows = self.all_reduce(occurs).nonzero()[:, 0]
            values = grad.index_select(0, rows).to_dense()
            self.all_reduce(values)
            p.grad = torch.sparse_coo_tensor(rows[None], values, p.shape, check_invariants=False)

    def clip_gradients(self, parameters: Iterable[torch.nn.Parameter], largest: float) -> float:
        """Scale the gradient to a norm of at most `largest`, 0 = any; returns the norm before.

        Sparse gradients are left out: the size of a table's steps does not depend on theirs.
        """
        dense = without_sparse(parameters)
        return float(torch.nn.utils.clip_grad_norm_(dense, largest or float("inf")))

    def check_same_start(self, model: torch.nn.Module, corpus_sha256: str) -> None:
        """Raise a UserError if the ranks do not hold the same weights and the same text."""
        if self.world_size == 1:
            return
        checksum = zlib.crc32(corpus_sha256.encode())
        for p in model.parameters():
            checksum = zlib.crc32(p.detach().cpu().numpy().data, checksum)
        if self.max(checksum) != -self.max(-checksum):
            raise UserError(
                "the ranks start with different weights or texts; all machines need the same torch "
                "and files"
            )

    def __str__(self) -> str:
        where = str(self.torch_device)
        if self.torch_device.type == "cuda":
            where = torch.cuda.get_device_name(self.torch_device)
        elif self.torch_device.type == "cpu":
            threads = torch.get_num_threads()
            plural = "s" * (threads > 1)
            where = f"cpu with {threads} thread{plural}, {torch.backends.cpu.get_cpu_capability()}"
        if self.world_size > 1:
            where = f"{self.world_size} ranks of {where}"
        return f"{where}, {self.dtype_name}"


def setup_device(device: str, dtype: str, options: dict[str, Any] | None = None) -> Device:
    """Set up the device and dtype that were asked for; `auto` takes the fastest.

    UserError if they are not available, or if `options`, the device, the dtype or torch's version
    differ between the ranks.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", device):
        raise UserError(f"device={device}: should be auto, cpu, mps, cuda or cuda:N")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: should be one of {', '.join(DTYPES)}")
    device = _choose_device(device)
    kind = device.partition(":")[0]
    if kind == "cpu":
        torch.set_flush_denormal(True)  # numbers too small to matter are slow on many CPUs
        _keep_freed_memory()
    elif kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, where a product is in float32
    if dtype == "auto":
        dtype = _fastest_dtype(kind)
    if WORLD_SIZE > 1:
        backend = "gloo"
        if kind == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        same = {
            "device": kind,
            "dtype": dtype,
            "torch": torch.__version__,
            "number of ranks": WORLD_SIZE,
        }
        join_ranks(backend, (options or {}) | same)
    num_workers = 1
    if kind == "cpu":
        num_workers = count_workers()
    return Device(
        torch.device(device), getattr(torch, dtype), RANK, WORLD_SIZE, Workers(num_workers)
    )


def without_sparse(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """List the parameters but for tables: the gradients of these are rows, and their values."""
    return [p for p in parameters if p.grad is None or not p.grad.is_sparse]


def _choose_device(device: str) -> str:
    """Choose this process's device; UserError if this machine has none such."""
    found = count_devices()
    if device == "auto":
        device = next(kind for kind in found if found[kind])
    if WORLD_SIZE > 1 and device not in ("cpu", "cuda"):
        raise UserError(
            f"device={device}: several ranks need --device=cpu, or --device=cuda, one GPU each"
        )
    if WORLD_SIZE > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    kind, _, number = device.partition(":")
    if int(number or 0) >= found[kind]:
        advice = "use --device=auto"
        if WORLD_SIZE > 1 and found[kind]:
            advice = f"start at most {found[kind]} ranks: --nproc_per_node={found[kind]}"
        raise UserError(
            f"device={device}: torch finds {found[kind] or 'no'} {kind} on this machine; {advice}"
        )
    return device


def _fastest_dtype(kind: str) -> str:
    if _has_bfloat16(kind):
        return "bfloat16"
    if _has_float16(kind):
        return "float16"
    return "float32"


def count_devices() -> dict[str, int]:
    """Count the devices of each kind, the fastest first."""
    return {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }


def micro_batch_size(cfg: Config) -> int:
    """Choose how many sequences a forward pass reads: those asked for, or what suits the device.

    On a CPU, whose cores take a micro-batch each, a batch is cut into 2, or 4, 8, ... parts of at
    least CPU_TOKENS tokens: that depends on the options only. On a GPU it is a rank's share of the
    batch.
    """
    batch_size = cfg.optim.batch_size
    if cfg.run.micro_batch_size:
        return cfg.run.micro_batch_size
    if not is_on_cpu(cfg.run.device):
        return math.ceil(batch_size / WORLD_SIZE)
    parts = 2
    while 2 * parts * CPU_TOKENS <= batch_size * cfg.model.block_size:
        parts *= 2
    return math.ceil(batch_size / parts)


def micro_batches_at_once(device: str, compiles: bool) -> int:
    """Count the micro-batches that a process may have in memory together."""
    if is_on_cpu(device) and not compiles:
        return count_workers()
    return 1


def is_on_cpu(device: str) -> bool:
    """Return whether the option `device` will mean a CPU, before it is set up."""
    if device == "auto":
        found = count_devices()
        return not (found["cuda"] or found["mps"])
    return device == "cpu"


def _has_bfloat16(kind: str) -> bool:
    """Return whether the hardware multiplies in bfloat16."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _has_float16(kind: str) -> bool:
    """Return whether a GPU has float16 on tensor cores; others have a slow float16, or none."""
    return kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory: new pages from the system cost up to half of an evaluation."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: blocks up to 32 MB come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap is not given back
