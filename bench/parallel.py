"""How ranks add their gradients: one exchange after the backward pass, torch's DistributedDataParallel, fully_shard.

    torchrun --standalone --nproc_per_node=2 bench/parallel.py [RECIPE.toml] [--name=value ...]

The same steps by each, in turns, forward and backward with the exchange but without the optimizer; each rank takes its
share of the batch, in micro-batches. Medians over steps, with their range, on rank 0.
"""

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.parallel import DistributedDataParallel

from bench.output import write_results
from bench.results import cpu_name
from config.cli import load_config
from config.errors import run_command
from data.batches import Batch, TrainBatches
from data.prepare import prepare_corpus
from engine.distributed import micro_batch_size, setup_distributed
from engine.sharding import shard
from model import GPT

ROUNDS, STEPS = 5, 8


def main(argv: list[str]) -> None:
    cfg = load_config(argv)[0]
    dist = setup_distributed(cfg.run.device, cfg.run.dtype)
    if dist.rank == 0:
        print(cpu_name())
    corpus = dist.rank0_first(prepare_corpus, cfg.data)
    get_batch = TrainBatches(corpus.train, cfg.model.block_size, cfg.optim.batch_size, cfg.run.seed, None,
                             micro_batch_size(cfg), dist.rank, dist.world_size, even=True)
    torch.manual_seed(0)
    flat = GPT(cfg.model, corpus.info.vocab_size).to(dist.device)
    sharded = shard(flat, "fsdp", dist)
    torch.manual_seed(0)
    ddp = DistributedDataParallel(GPT(cfg.model, corpus.info.vocab_size).to(dist.device))

    def take(model: torch.nn.Module, batch: list[Batch], exchange: Callable[[], None] = lambda: None) -> None:
        for number, micro in enumerate(batch, start=1):
            inputs, targets = dist.to_device(micro.inputs, micro.targets)
            waits = isinstance(model, DistributedDataParallel) and number < len(batch)
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with dist.autocast():
                    loss = model(inputs, targets).objective
                (loss / inputs.numel()).backward()
        exchange()
        model.zero_grad()

    ways: dict[str, Callable[[list[Batch]], None]] = {
        "one exchange": lambda batch: take(flat, batch, lambda: dist.all_reduce_gradients(flat.parameters())),
        "DistributedDataParallel": lambda batch: take(ddp, batch), "fully_shard": lambda batch: take(sharded, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1 + ROUNDS * STEPS):
        for name, way in ways.items():
            batch = get_batch(step)
            dist.max(0)  # all ranks start together
            began = time.perf_counter()
            way(batch)
            if step:
                seconds[name].append(time.perf_counter() - began)
    if dist.rank == 0:
        base = seconds["one exchange"]
        for name, own in seconds.items():
            ratios = [a / b for a, b in zip(own, base, strict=True)]
            print(f"{name:<24}{1000 * statistics.median(own):9.1f} ms ({1000 * min(own):.1f} to "
                  f"{1000 * max(own):.1f}); "
                  f"{statistics.median(ratios):.2f} times the first")
        write_results("parallel", {"cpu": cpu_name(), "ranks": dist.world_size, "seconds": seconds})


if __name__ == "__main__":
    run_command(main)
