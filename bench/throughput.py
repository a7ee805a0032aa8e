"""Show where the time of a training step goes, and how near its arithmetic comes to the machine's.

    python bench/throughput.py [RECIPE.toml] [--name=value ...]

The steps are those of train.py: on a CPU its cores compute micro-batches side by side. Beside them,
one micro-batch is computed by one core alone. Times are medians over steps. FLOP/s are those of the
matrix products alone, against the best that a large product reaches here in the same arithmetic.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.output import high_water_mark, write_results
from chunked_loss import next_token_loss
from config.cli import load_config
from config.errors import run_command
from config.schema import Config
from config.size import count_flops
from data.batches import Batch, TrainBatches
from data.prepare import prepare_corpus
from engine.device import Device, micro_batch_size, setup_device
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.state import TrainState
from engine.step import compile_model
from model import GPT
from train import train_step

WARM_UP = 5  # steps
STEPS = 40
OPTIMIZERS = ("AdamW", "Muon", "RowwiseRMSProp")  # that a training may have
SIZE = 2048  # of the matrices whose product is the machine's best
Function = Callable[..., Any]
Times = dict[str, list[float]]  # of each part, its seconds in each step


def peak_flops(device: Device) -> float:
    """Return the FLOP/s of a large matrix product, the best of ten."""
    a = torch.randn(SIZE, SIZE, device=device.torch_device, dtype=device.dtype)
    times = []
    for _ in range(10):
        began = clock(device)
        a @ a
        times.append(clock(device) - began)
    return 2 * SIZE**3 / min(times)


def clock(device: Device) -> float:
    if device.torch_device.type != "cpu":
        getattr(torch, device.torch_device.type).synchronize()
    return time.perf_counter()


def timed(function: Function, seconds: list[float], device: Device) -> Function:
    """Return a function that does the same, and appends each call's seconds."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = clock(device)
        result = function(*arguments, **options)
        seconds.append(clock(device) - began)
        return result

    return call


def measure(cfg: Config, steps: int) -> dict[str, Any]:
    """Return the seconds of each part and step of a training, and what its products reach."""
    device = setup_device(cfg.run.device, cfg.run.dtype)
    if cfg.run.compile:
        device = device.without_workers()
    corpus = prepare_corpus(cfg.data)
    eos = corpus.tokenizer.window_border(cfg.data.padded)
    block_size = cfg.model.block_size
    batch_size = cfg.optim.batch_size
    batches = TrainBatches(
        corpus.train,
        block_size,
        batch_size,
        cfg.run.seed,
        eos,
        micro_batch_size=micro_batch_size(cfg),
    )
    torch.manual_seed(cfg.run.seed)
    model = GPT(cfg.model, corpus.tokenizer.vocab_size, cfg.tables).to(device.torch_device)
    forward: torch.nn.Module = model
    objective = load_objective(cfg.loss, corpus.tokenizer, block_size, device)
    if cfg.run.compile:
        forward = compile_model(model, batches(0), objective, device)
    optimizers = make_optimizers(model, cfg.optim, device)

    seconds: Times = {"data": [], "step": []}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        seconds[name] = []
        optimizer.step = timed(optimizer.step, seconds[name], device)  # type: ignore[method-assign]
    get_batch = timed(batches, seconds["data"], device)
    take_step = timed(train_step, seconds["step"], device)
    for step in range(WARM_UP + steps):
        batch = get_batch(step * batch_size)
        state = TrainState(step=min(step, cfg.optim.max_iters - 1))
        take_step(forward, optimizers, batch, objective, device, cfg=cfg, state=state)
    seconds |= measure_micro_batch(model, batch[0], device, steps)

    parts = {}
    for name, values in seconds.items():
        parts[name] = statistics.median(values[WARM_UP:])
    both = zip(seconds["data"], seconds["step"], strict=True)
    times = [data + step for data, step in both][WARM_UP:]
    median = statistics.median(times)
    tokens = batch_size * block_size
    return {
        "config": cfg.model_dump(),
        "device": str(device),
        "parameters": model.num_params(),
        "tokens": tokens,
        "micro_batches": len(batch),
        "parts": parts,
        "steps": times,
        "tokens_per_second": tokens / median,
        "flops": tokens * count_flops(model.cfg, model.vocab_size) / median,
        "peak_flops": peak_flops(device),
    }


def measure_micro_batch(model: GPT, micro: Batch, device: Device, steps: int) -> Times:
    """Return the seconds of each part of a micro-batch, by one core or a GPU."""
    parameters = list(model.parameters())
    seconds: Times = {"forward": [], "loss": [], "backward": []}
    hidden_states = timed(model.hidden_states, seconds["forward"], device)
    loss = timed(next_token_loss, seconds["loss"], device)
    backward = timed(torch.autograd.grad, seconds["backward"], device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(WARM_UP + steps):
        inputs, targets = device.to_device(micro.inputs, micro.targets)
        with device.autocast():
            objective = loss(hidden_states(inputs), model.lm_head.weight, targets).objective
        backward(objective, parameters)
    torch.set_num_threads(threads)
    return seconds


def main(argv: list[str]) -> None:
    cfg, _ = load_config(argv)
    found = measure(cfg, STEPS)
    print(f"GPT with {found['parameters']:,} parameters")
    print(f"{found['device']}: steps of {found['tokens']:,} tokens\n")

    parts = found["parts"]
    steps = [1000 * seconds for seconds in found["steps"]]
    step = statistics.median(steps)
    optimizers = {name: parts[name] for name in OPTIMIZERS if name in parts}
    gradients = parts["step"] - sum(optimizers.values())
    rows = {"data": parts["data"]}
    rows[f"gradients of {found['micro_batches']} micro-batches"] = gradients
    rows |= optimizers
    print(f"{'part':<32}{'ms':>9}{'share':>8}")
    for name, seconds in rows.items():
        print(f"{name:<32}{1000 * seconds:9.2f}{1000 * seconds / step:8.1%}")
    print(f"{'step':<32}{step:9.2f}   ({min(steps):.2f} to {max(steps):.2f})\n")

    alone = [f"{name} {1000 * parts[name]:.2f} ms" for name in ("forward", "loss", "backward")]
    print(f"one micro-batch alone: {', '.join(alone)}\n")

    share = found["flops"] / found["peak_flops"]
    print(
        f"{found['tokens_per_second']:,.0f} tokens/s; "
        f"{found['flops'] / 1e9:,.0f} GFLOP/s in products, "
        f"{share:.0%} of the {found['peak_flops'] / 1e9:,.0f} that a large one reaches here"
    )
    if sys.platform == "linux":
        found["megabytes"] = high_water_mark()
        print(f"{found['megabytes']:.0f} MB of memory at the peak")
    write_results("throughput", found)


if __name__ == "__main__":
    run_command(main)
