"""Where the time of a training step goes, part by part, and how near its arithmetic comes to the
machine's.

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

from bench.output import write_results
from chunked_loss import next_token_loss
from config.cli import load_config
from config.errors import run_command
from config.schema import Config
from data.batches import Batch, TrainBatches
from data.prepare import prepare_corpus
from engine.device import Device, micro_batch_size, setup_device
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.state import TrainState
from engine.step import compile_model
from model import GPT
from train import train_step

WARM_UP, STEPS = 5, 40
SIZE = 2048  # of the matrices whose product is the machine's best
Times = dict[str, list[float]]  # of each part, its seconds in each step


def peak_flops(device: Device) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
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


def timed(function: Callable[..., Any], seconds: list[float], device: Device) -> Callable[..., Any]:
    """The same function; each call appends its seconds."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = clock(device)
        result = function(*arguments, **options)
        seconds.append(clock(device) - began)
        return result

    return call


def measure(cfg: Config, steps: int) -> dict[str, Any]:
    """The seconds of each part and of each step of a training, and what its products reach."""
    device = setup_device(cfg.run.device, cfg.run.dtype)
    if cfg.run.compile:
        device = device.without_workers()
    corpus = prepare_corpus(cfg.data)
    eos = corpus.tokenizer.eos if cfg.data.padded else None
    batch_size = cfg.optim.batch_size
    batches = TrainBatches(
        corpus.train,
        cfg.model.block_size,
        batch_size,
        cfg.run.seed,
        eos,
        micro_batch_size=micro_batch_size(cfg),
    )
    torch.manual_seed(cfg.run.seed)
    model = GPT(cfg.model, corpus.tokenizer.vocab_size).to(device.torch_device)
    forward: torch.nn.Module = model
    objective = load_objective(cfg.loss, corpus.tokenizer, cfg.model.block_size, device)
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
    alone = measure_micro_batch(model, batch[0], device, steps)

    medians = {
        name: statistics.median(times[WARM_UP:]) for name, times in (seconds | alone).items()
    }
    tokens = batch_size * cfg.model.block_size
    both = zip(seconds["data"][WARM_UP:], seconds["step"][WARM_UP:], strict=True)
    times = [data + step for data, step in both]
    median = statistics.median(times)
    return {
        "config": cfg.model_dump(),
        "device": str(device),
        "parameters": model.num_params(),
        "tokens": tokens,
        "micro_batches": len(batch),
        "parts": medians,
        "steps": times,
        "tokens_per_second": tokens / median,
        "flops": tokens * model.flops_per_token() / median,
        "peak_flops": peak_flops(device),
    }


def measure_micro_batch(model: GPT, micro: Batch, device: Device, steps: int) -> Times:
    """The seconds of each part of a micro-batch, by one core or a GPU."""
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
    found = measure(load_config(argv)[0], STEPS)
    parts, steps = found["parts"], found["steps"]
    step = statistics.median(steps)
    optimizers = [name for name in ("AdamW", "Muon") if name in parts]
    rest = parts["step"] - sum(parts[name] for name in optimizers)
    rows = {"data": parts["data"], f"gradients of {found['micro_batches']} micro-batches": rest}
    rows |= {name: parts[name] for name in optimizers}
    print(
        f"GPT with {found['parameters']:,} parameters\n{found['device']}: steps of {found['tokens']:,} tokens\n"
    )
    print(f"{'part':<32}{'ms':>9}{'share':>8}")
    for name, value in rows.items():
        print(f"{name:<32}{1000 * value:9.2f}{value / step:8.1%}")
    print(
        f"{'step':<32}{1000 * step:9.2f}   ({1000 * min(steps):.2f} to {1000 * max(steps):.2f})\n"
    )
    print(
        "one micro-batch alone: "
        + ", ".join(
            f"{name} {1000 * parts[name]:.2f} ms" for name in ("forward", "loss", "backward")
        )
        + "\n"
    )
    print(
        f"{found['tokens_per_second']:,.0f} tokens/s; {found['flops'] / 1e9:,.0f} GFLOP/s in products, "
        f"{found['flops'] / found['peak_flops']:.0%} of the {found['peak_flops'] / 1e9:,.0f} that a large one "
        "reaches here"
    )
    write_results("throughput", found)


if __name__ == "__main__":
    run_command(main)
