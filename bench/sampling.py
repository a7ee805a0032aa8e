"""Tokens a second in sampling: with a KV cache, one sequence and many, against whole windows as
nanoGPT samples.

    python bench/sampling.py

The model has nanoGPT's 10.7M parameters (6 layers, 6 heads, 384 wide, 256 tokens) and random
weights. The ways take turns; medians over rounds.
"""

import copy
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from bench.output import write_results
from config.cli import load_config
from config.errors import run_command
from engine.checkpoint import for_prediction
from engine.device import Device, setup_device
from engine.generate import generate, sample_token
from model import GPT

VOCABULARY, NEW_TOKENS, ROUNDS = 65, 500, 3
WAYS = {
    "one sequence": (1, True, NEW_TOKENS, "float32"),
    "16 sequences": (16, True, NEW_TOKENS, "float32"),
    "one, bfloat16": (1, True, NEW_TOKENS, "bfloat16"),
    "16, bfloat16": (16, True, NEW_TOKENS, "bfloat16"),
    # sequences, with the cache, tokens of each, arithmetic
    "one, whole windows": (1, False, 60, "float32"),
}


def tokens_per_second(
    model: GPT, device: Device, num_samples: int, use_cache: bool, new_tokens: int
) -> float:
    """Of all sequences together, from the first token to the last."""
    began = time.perf_counter()
    if use_cache:
        made = sum(
            map(
                len,
                generate(model, [0], device, num_samples=num_samples, max_new_tokens=new_tokens),
            )
        )
    else:
        made = sum(1 for _ in whole_windows(model, device, new_tokens))
    return made / (time.perf_counter() - began)


@torch.inference_mode()
def whole_windows(model: GPT, device: Device, new_tokens: int) -> Iterator[list[int]]:
    """Each token from a whole block of those before it, all of it computed anew."""
    tokens = torch.zeros(1, model.cfg.block_size, dtype=torch.int64, device=device.torch_device)
    u = torch.full((1,), 0.5, device=device.torch_device)
    for _ in range(new_tokens):
        hidden = model.hidden_states(tokens[:, -model.cfg.block_size :])
        chosen = sample_token(model.logits(hidden[:, -1]), u, temperature=0.8, top_k=0, top_p=1.0)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        yield chosen.tolist()


def main(argv: list[str]) -> None:
    dists = {dtype: setup_device("auto", dtype) for dtype in ("float32", "bfloat16")}
    torch.manual_seed(0)
    model = GPT(load_config([str(ROOT / "config/nanogpt_gpu.toml")])[0].model, VOCABULARY)
    models = {
        dtype: for_prediction(copy.deepcopy(model).to(device.torch_device), device)
        for dtype, device in dists.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, (num_samples, use_cache, new_tokens, dtype) in WAYS.items():
            rates[name].append(
                tokens_per_second(models[dtype], dists[dtype], num_samples, use_cache, new_tokens)
            )
    print(f"GPT with {model.num_params():,} parameters\n{dists['float32']}\n")
    print(f"{'':<20}{'tokens/s':>10}{'from':>10}{'to':>10}{'ratio':>8}")
    base = statistics.median(rates["one, whole windows"][1:])
    for name, values in rates.items():
        middle = statistics.median(values[1:])
        print(
            f"{name:<20}{middle:10.0f}{min(values[1:]):10.0f}{max(values[1:]):10.0f}{middle / base:8.1f}"
        )
    write_results("sampling", rates)


if __name__ == "__main__":
    run_command(main)
