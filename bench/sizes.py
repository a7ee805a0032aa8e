"""Do time and memory grow with the model as they should? Training steps of GPTs of 10 thousand to
10 million weights.

    python bench/sizes.py [--name=value ...]

For each size: tokens a second, FLOP/s of its products as a share of what a large product reaches
here, and memory at the peak of a process of its own (Linux). Where the share is low, time goes
elsewhere: `python bench/throughput.py` with the same options shows where. The batch is the
default's, so larger models have no more tokens in a step.
"""

import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.loss import high_water_mark
from bench.output import write_results
from bench.throughput import measure
from config.cli import load_config
from config.errors import run_command

SHAPES = {
    "1 x 24": (1, 1, 24),
    "2 x 48": (2, 1, 48),
    "3 x 96": (3, 2, 96),
    "4 x 128": (4, 2, 128),
    "5 x 224": (5, 4, 224),
    "6 x 384": (6, 6, 384),
}  # layers, heads, width
STEPS = 40  # of one layer; more layers take fewer


def measure_alone(argv: list[str], steps: int) -> dict[str, Any]:
    return measure(load_config(argv)[0], steps) | {"megabytes": high_water_mark()}


def main(argv: list[str]) -> None:
    rows = []
    print(
        f"{'shape':<10}{'parameters':>11}{'ms a step':>11}{'from':>8}{'to':>8}{'tokens/s':>10}{'GFLOP/s':>9}"
        f"{'of peak':>9}{'MB':>7}"
    )
    for shape, (layers, heads, width) in SHAPES.items():
        options = [f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}", *argv]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure_alone, (options, max(5, STEPS // layers)))
        rows.append(row | {"shape": shape})
        steps = [1000 * seconds for seconds in row["steps"]]
        print(
            f"{shape:<10}{row['parameters']:>11,}{statistics.median(steps):11.1f}{min(steps):8.1f}{max(steps):8.1f}"
            f"{row['tokens_per_second']:10,.0f}{row['flops'] / 1e9:9.1f}{row['flops'] / row['peak_flops']:9.0%}"
            f"{row['megabytes']:7.0f}",
            flush=True,
        )
    write_results("sizes", rows)


if __name__ == "__main__":
    run_command(main)
