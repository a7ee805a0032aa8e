"""Tokens a second in sampling: with a KV cache, one sequence and many, against whole windows as nanoGPT samples.

    python bench/sampling.py

The model has nanoGPT's 10.7M parameters (6 layers, 6 heads, 384 wide, 256 tokens) and random weights. The
ways take turns; medians over rounds.
"""

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from config.cli import read_config
from engine.distributed import World, find_world
from engine.generate import generate
from errors import run_command
from model import GPT

VOCABULARY, NEW_TOKENS, ROUNDS = 65, 500, 3
WAYS = {"one sequence": (1, True, NEW_TOKENS), "16 sequences": (16, True, NEW_TOKENS),
        "one, whole windows": (1, False, 60)}  # sequences, with the cache, tokens of each


def tokens_per_second(model: GPT, world: World, num_samples: int, use_cache: bool, new_tokens: int) -> float:
    prompt = [0] * (1 if use_cache else model.config.block_size)  # windows are whole ones almost all the time
    began = time.perf_counter()
    made = sum(len(tokens) for tokens in generate(model, prompt, world, num_samples=num_samples,
                                                  max_new_tokens=new_tokens, use_cache=use_cache))
    return made / (time.perf_counter() - began)


def main(argv: list[str]) -> None:
    world = find_world("auto", "float32")
    torch.manual_seed(0)
    model = GPT(read_config(ROOT / "config/nanogpt_gpu.toml").model, VOCABULARY).to(world.device)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, way in WAYS.items():
            rates[name].append(tokens_per_second(model, world, *way))
    print(f"{model.describe()}\n{world}\n\n{'':<20}{'tokens/s':>10}{'from':>10}{'to':>10}{'ratio':>8}")
    base = statistics.median(rates["one, whole windows"][1:])
    for name, values in rates.items():
        middle = statistics.median(values[1:])
        print(f"{name:<20}{middle:10.0f}{min(values[1:]):10.0f}{max(values[1:]):10.0f}{middle / base:8.1f}")
    out = ROOT / "out/bench_sampling.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rates, indent=1), encoding="utf-8")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    run_command(main)
