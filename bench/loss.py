"""Time, extra memory and accuracy of the loss, forward and backward, against its alternatives.

    python bench/loss.py [--quick]

For each shape, in one run: full logits with F.cross_entropy (the measure, 1.00), checkpointed
chunks, torch's F.linear_cross_entropy where there is one, and ours. Times are medians over rounds
in which the methods take turns; memory is the peak above the inputs and their gradients, which all
of them have to make, in a process of its own; the error is that of the gradients, relative to
float64.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.output import write_results
from chunked_loss import next_token_loss
from engine.device import setup_device

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
CHUNK = 512  # tokens, of the checkpointed chunks


def full_logits(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum")


def checkpointed(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return torch.stack(
        [
            checkpoint(full_logits, h, head, y, use_reentrant=False)
            for h, y in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True)
        ]
    ).sum()


def torch_linear(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, head, targets, reduction="sum")


def ours(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(hidden[None], head, targets[None]).objective


METHODS: dict[str, Loss] = {"full logits": full_logits, "checkpointed": checkpointed, "ours": ours}
if hasattr(F, "linear_cross_entropy"):
    METHODS["F.linear_cross_entropy"] = torch_linear


def inputs(N: int, C: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, head = torch.randn(N, C), torch.randn(V, C) * C**-0.5
    return hidden.requires_grad_(), head.requires_grad_(), torch.randint(V, (N,))


def step(method: Loss, hidden: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype) -> float:
    hidden.grad = head.grad = None
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = method(hidden, head, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def peak_memory(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """MB above the inputs, their gradients and a first small step, at the peak of one step in a
    fresh process.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, shape, dtype))


def _peak_memory(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    setup_device("cpu", "float32")
    N, C, V = shape
    step(METHODS[name], *inputs(8, C, 64), dtype)
    data = inputs(N, C, V)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = high_water_mark()
    step(METHODS[name], *data, dtype)
    # gradients are float32, as their inputs are
    return high_water_mark() - before - 4 * (N * C + V * C) / 2**20


def high_water_mark() -> float:
    """MB of memory at the peak so far."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def exact_gradients(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, a few tokens at a time."""
    d_hidden, W = torch.zeros_like(hidden, dtype=torch.float64), head.detach().double()
    d_head = torch.zeros_like(W)
    for start in range(0, len(hidden), 256):
        h, y = hidden[start : start + 256].detach().double(), targets[start : start + 256]
        g = F.softmax(h @ W.T, dim=-1)
        g[torch.arange(len(y)), y] -= 1
        d_hidden[start : start + 256] = g @ W
        d_head += g.T @ h
    return d_hidden, d_head


def measure(shape: tuple[int, int, int], dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    data = inputs(*shape)
    exact = exact_gradients(*data)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    errors = {}
    for round_number in range(rounds + 1):
        for name, method in METHODS.items():
            began = time.perf_counter()
            step(method, *data, dtype)
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
            errors[name] = max(
                float((p.grad.double() - e).norm() / e.norm())
                for p, e in zip(data[:2], exact, strict=True)
                if p.grad is not None
            )
    memory = {name: peak_memory(name, shape, dtype) for name in METHODS}
    return [
        {
            "N": shape[0],
            "C": shape[1],
            "V": shape[2],
            "dtype": str(dtype).removeprefix("torch."),
            "method": name,
            "seconds": statistics.median(seconds[name]),
            "spread": max(seconds[name]) - min(seconds[name]),
            "time_ratio": statistics.median(
                a / b for a, b in zip(seconds[name], seconds["full logits"], strict=True)
            ),
            "memory_mb": memory[name],
            "memory_ratio": memory[name] / max(1.0, memory["full logits"]),
            "gradient_error": errors[name],
        }
        for name in METHODS
    ]


def main() -> None:
    quick = "--quick" in sys.argv
    setup_device("cpu", "float32")
    shapes = [
        (N, C, V)
        for N in ([4096] if quick else [4096, 16384])
        for C in ([256] if quick else [256, 768])
        for V in (65, 8192, 50257)
    ]
    rows = []
    print(
        f"{'N':>6} {'C':>4} {'V':>6} {'dtype':>9}  {'method':<23} {'seconds':>8} {'+-':>6} {'time':>6} "
        f"{'MB':>7} {'memory':>7} {'grad error':>11}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            for row in measure(shape, dtype, rounds=3):
                rows.append(row)
                print(
                    "{N:>6} {C:>4} {V:>6} {dtype:>9}  {method:<23} {seconds:8.3f} {spread:6.3f} {time_ratio:6.2f} "
                    "{memory_mb:7.0f} {memory_ratio:7.2f} {gradient_error:11.1e}".format(**row),
                    flush=True,
                )
    write_results("loss", rows)


if __name__ == "__main__":
    main()
