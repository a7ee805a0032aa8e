"""How long ranks take to save weights and optimizers: in one file by rank 0, and with torch.distributed.checkpoint.

    torchrun --standalone --nproc_per_node=2 bench/checkpoint.py [RECIPE.toml] [--name=value ...]

The model is in parts, as with --parallel=fsdp. Both ways take turns; medians, with their range, on rank 0.
"""

import atexit
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from bench.output import write_results
from bench.results import cpu_name
from config.cli import load_config
from config.errors import run_command
from engine.checkpoint import save_checkpoint
from engine.distributed import setup_distributed
from engine.optim import make_optimizers
from engine.sharding import gather, gather_state, shard
from engine.state import TrainState
from model import GPT

ROUNDS, VOCAB_SIZE = 5, 50257


def main(argv: list[str]) -> None:
    cfg = load_config(argv)[0]
    dist = setup_distributed(cfg.run.device, cfg.run.dtype)
    torch.manual_seed(0)
    model = GPT(cfg.model, VOCAB_SIZE).to(dist.device)
    trained = shard(model, "fsdp", dist)
    optimizers = make_optimizers(trained, cfg.optim, dist)
    tokens = torch.zeros(1, cfg.model.block_size, dtype=torch.long, device=dist.device)
    trained(tokens, tokens).objective.backward()
    for optimizer in optimizers:
        optimizer.step()  # so that it has a state
    folder = Path(dist.on_rank0(tempfile.mkdtemp))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def one_file() -> None:
        gather(trained, model)
        states = [gather_state(optimizer, dist) for optimizer in optimizers]
        dist.on_rank0(save_checkpoint, folder / "last.safetensors", model, TrainState(), states)

    def in_parts() -> None:
        weights, states = get_state_dict(trained, optimizers)
        save({"model": weights, "optimizers": states}, checkpoint_id=folder / "parts")

    ways: dict[str, Callable[[], None]] = {"one file": one_file, "torch.distributed.checkpoint": in_parts}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            dist.max(0)  # all ranks start together
            began = time.perf_counter()
            way()
            dist.max(0)
            seconds[name].append(time.perf_counter() - began)
    if dist.rank == 0:
        size = (folder / "last.safetensors").stat().st_size
        print(f"{cpu_name()}\n{dist}; {model.num_params():,} parameters, {size / 1e9:.2f} GB")
        for name, own in seconds.items():
            print(f"{name:<30}{statistics.median(own):7.2f} s ({min(own):.2f} to {max(own):.2f})")
        write_results("checkpoint", {"cpu": cpu_name(), "ranks": dist.world_size, "bytes": size, "seconds": seconds})


if __name__ == "__main__":
    run_command(main)
