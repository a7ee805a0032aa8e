"""Measure time, extra memory and accuracy of the loss and its gradients, against its alternatives.

    python bench/loss.py [--quick]

For each shape, in one run: full logits with F.cross_entropy (the measure, 1.00), checkpointed
chunks, torch's F.linear_cross_entropy where there is one, and ours. Times are medians over rounds
in which the methods take turns; memory is the peak above the inputs and their gradients, which all
of them have to make, in a process of its own; the error is that of the gradients, relative to
float64.
"""

import itertools
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

from bench.output import high_water_mark, write_results
from chunked_loss import next_token_loss
from engine.device import setup_device

Data = tuple[Tensor, Tensor, Tensor]  # hidden states (N, C), an lm_head (V, C), targets (N,)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, int, int]  # N, C, V
Row = dict[str, Any]
CHUNK = 512  # tokens, of the checkpointed chunks


def full_logits(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets, reduction="sum")


def checkpointed(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    losses = []
    for start in range(0, len(hidden), CHUNK):
        chunk = slice(start, start + CHUNK)
        arguments = (hidden[chunk], head, targets[chunk])
        losses.append(checkpoint(full_logits, *arguments, use_reentrant=False))
    return torch.stack(losses).sum()


def torch_linear(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, head, targets, reduction="sum")


def ours(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return next_token_loss(hidden[None], head, targets[None]).objective


METHODS: dict[str, Loss] = {"full logits": full_logits, "checkpointed": checkpointed, "ours": ours}
if hasattr(F, "linear_cross_entropy"):
    METHODS["F.linear_cross_entropy"] = torch_linear


def make_data(N: int, C: int, V: int) -> Data:
    torch.manual_seed(0)
    hidden = torch.randn(N, C)
    head = torch.randn(V, C) * C**-0.5
    targets = torch.randint(V, (N,))
    return hidden.requires_grad_(), head.requires_grad_(), targets


def step(method: Loss, data: Data, dtype: torch.dtype) -> float:
    """Compute the loss and its gradients."""
    hidden, head, targets = data
    hidden.grad = None
    head.grad = None
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = method(hidden, head, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def peak_memory(name: str, shape: Shape, dtype: torch.dtype) -> float:
    """Return the MB that one step adds at its peak, in a fresh process.

    Inputs, their gradients and a first small step do not count.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, shape, dtype))


def _peak_memory(name: str, shape: Shape, dtype: torch.dtype) -> float:
    setup_device("cpu", "float32")
    N, C, V = shape
    step(METHODS[name], make_data(8, C, 64), dtype)
    data = make_data(N, C, V)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = high_water_mark()
    step(METHODS[name], data, dtype)
    # gradients are float32, as their inputs are
    gradients = 4 * (N * C + V * C) / 2**20
    return high_water_mark() - before - gradients


def exact_gradients(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute them in float64, a few tokens at a time."""
    W = head.detach().double()
    d_hidden = torch.zeros_like(hidden, dtype=torch.float64)
    d_head = torch.zeros_like(W)
    for start in range(0, len(hidden), 256):
        chunk = slice(start, start + 256)
        h = hidden[chunk].detach().double()
        y = targets[chunk]
        g = F.softmax(h @ W.T, dim=-1)
        g[torch.arange(len(y)), y] -= 1
        d_hidden[chunk] = g @ W
        d_head += g.T @ h
    return d_hidden, d_head


def relative_error(tensor: Tensor, exact: Tensor) -> float:
    """Return the error of a tensor's gradient, relative to the exact one."""
    assert tensor.grad is not None
    error = tensor.grad.double() - exact
    return float(error.norm() / exact.norm())


def measure(shape: Shape, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Return a row for each method."""
    data = make_data(*shape)
    exact = exact_gradients(*data)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    errors = {}
    for round_number in range(rounds + 1):
        for name, method in METHODS.items():
            began = time.perf_counter()
            step(method, data, dtype)
            if round_number > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
            of_hidden = relative_error(data[0], exact[0])
            of_head = relative_error(data[1], exact[1])
            errors[name] = max(of_hidden, of_head)
    memory = {name: peak_memory(name, shape, dtype) for name in METHODS}
    base_memory = max(1.0, memory["full logits"])
    rows = []
    for name in METHODS:
        both = zip(seconds[name], seconds["full logits"], strict=True)
        row = {
            "N": shape[0],
            "C": shape[1],
            "V": shape[2],
            "dtype": str(dtype).removeprefix("torch."),
            "method": name,
            "seconds": statistics.median(seconds[name]),
            "spread": max(seconds[name]) - min(seconds[name]),
            "time_ratio": statistics.median(a / b for a, b in both),
            "memory_mb": memory[name],
            "memory_ratio": memory[name] / base_memory,
            "gradient_error": errors[name],
        }
        rows.append(row)
    return rows


HEADER = (
    "     N    C      V     dtype  method                   seconds     +-   time      MB  memory"
    "  grad error"
)
ROW = (
    "{N:>6} {C:>4} {V:>6} {dtype:>9}  {method:<23} {seconds:8.3f} {spread:6.3f} {time_ratio:6.2f} "
    "{memory_mb:7.0f} {memory_ratio:7.2f} {gradient_error:11.1e}"
)


def main() -> None:
    setup_device("cpu", "float32")
    tokens = [4096, 16384]
    widths = [256, 768]
    if "--quick" in sys.argv:
        tokens = [4096]
        widths = [256]
    rows = []
    print(HEADER)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in itertools.product(tokens, widths, (65, 8192, 50257)):
            for row in measure(shape, dtype, rounds=3):
                rows.append(row)
                print(ROW.format(**row), flush=True)
    write_results("loss", rows)


if __name__ == "__main__":
    main()
