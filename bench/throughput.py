"""Where the time of a training step goes, part by part, and how near its arithmetic comes to the machine's.

    python bench/throughput.py [RECIPE.toml] [--name=value ...]

Parts take turns within a step, as in training; times are medians over steps. FLOP/s are those of the
matrix products alone, against the best that a large product reaches here in the same arithmetic.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.output import write_results
from config.cli import load_config
from config.errors import run_command
from config.schema import Config
from data.batches import TrainBatches
from data.prepare import prepare_corpus
from engine.distributed import Distributed, setup_distributed
from engine.optim import make_optimizers, set_lr
from loss import next_token_loss
from model import GPT

WARM_UP, STEPS = 5, 40
SIZE = 2048  # of the matrices whose product is the machine's best


def peak_flops(dist: Distributed) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    a = torch.randn(SIZE, SIZE, device=dist.device, dtype=dist.dtype)
    times = []
    for _ in range(10):
        began = clock(dist)
        a @ a
        times.append(clock(dist) - began)
    return 2 * SIZE**3 / min(times)


def clock(dist: Distributed) -> float:
    if dist.device.type != "cpu":
        getattr(torch, dist.device.type).synchronize()
    return time.perf_counter()


def measure(config: Config, steps: int) -> dict[str, Any]:
    """The seconds of each part and of each step of a training, and what its products reach."""
    dist = setup_distributed(config.run.device, config.run.dtype)
    corpus = prepare_corpus(config.data)
    eos = corpus.tokenizer.eos if config.data.padded else None
    batches = TrainBatches(corpus.train, config.model.block_size, config.optim.batch_size, config.run.seed, eos)
    torch.manual_seed(config.run.seed)
    model = GPT(config.model, corpus.tokenizer.vocab_size).to(dist.device)
    hidden_states = torch.compile(model.hidden_states) if config.run.compile else model.hidden_states
    optimizers = make_optimizers(model, config.optim, dist)
    tokens = config.optim.batch_size * config.model.block_size
    seconds: dict[str, list[float]] = {name: [] for name in ("data", "forward", "loss", "backward", "optimizer")}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = clock(dist)
        yield
        seconds[name].append(clock(dist) - began)

    for step in range(WARM_UP + steps):
        with timed("data"):
            batch = batches(step * config.optim.batch_size)[0]
            inputs, targets = dist.to_device(batch.inputs, batch.targets)
        with dist.autocast():
            with timed("forward"):
                hidden = hidden_states(inputs)
            with timed("loss"):
                objective = next_token_loss(hidden, model.lm_head.weight, targets).objective / tokens
        with timed("backward"):
            objective.backward()  # type: ignore[no-untyped-call]
        with timed("optimizer"):
            set_lr(optimizers, config.optim, min(step, config.optim.max_iters - 1))
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip or float("inf"))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    times = [sum(parts) for parts in zip(*(times[WARM_UP:] for times in seconds.values()), strict=True)]
    median = statistics.median(times)
    return {"config": config.model_dump(), "dist": str(dist), "parameters": model.num_params(), "tokens": tokens,
            "parts": {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}, "steps": times,
            "tokens_per_second": tokens / median, "flops": tokens * model.flops_per_token() / median,
            "peak_flops": peak_flops(dist)}


def main(argv: list[str]) -> None:
    found = measure(load_config(argv)[0], STEPS)
    steps, step = found["steps"], statistics.median(found["steps"])
    print(f"GPT with {found['parameters']:,} parameters\n{found['dist']}: steps of {found['tokens']:,} tokens\n")
    print(f"{'part':<12}{'ms':>9}{'share':>8}")
    for name, value in found["parts"].items():
        print(f"{name:<12}{1000 * value:9.2f}{value / step:8.1%}")
    print(f"{'step':<12}{1000 * step:9.2f}   ({1000 * min(steps):.2f} to {1000 * max(steps):.2f})\n\n"
          f"{found['tokens_per_second']:,.0f} tokens/s; {found['flops'] / 1e9:,.0f} GFLOP/s in products, "
          f"{found['flops'] / found['peak_flops']:.0%} of the {found['peak_flops'] / 1e9:,.0f} that a large one "
          "reaches here")
    write_results("throughput", found)


if __name__ == "__main__":
    run_command(main)
