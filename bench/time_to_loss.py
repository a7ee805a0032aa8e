"""Time whole commands to a validation loss, from process start, against nanoGPT's recipe.

    python bench/time_to_loss.py [RECIPE.toml | "RECIPE.toml --name=value" ...] [--rounds=3]
    [--nanogpt=path/to/nanoGPT]

Each round runs the reference and then every recipe, with another seed each round and with compile
caches cold, so that what disturbs the machine disturbs all of them. The ratio is that of two
commands of the same round. The loss is that of the run's best checkpoint, on all of the validation
split.

The reference is config/nanogpt_cpu.toml, or, with a checkout in which data/shakespeare_char is
prepared, nanoGPT's own code with the command of its README, which evaluates on 20 random batches.
With --for_gpu=true it is nanoGPT's recipe for a GPU: the seconds that its 1,750 iterations to the
1.4697 of its README would take here, going by 3 of them.
"""

import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import Field

from bench.output import write_results
from bench.peers import nanogpt_command, run_training
from config.cli import load_config
from config.errors import UserError, run_command
from config.parser import load_options
from config.values import Positive, Section
from data.prepare import prepare_corpus
from engine.run import open_run

REFERENCE = "config/nanogpt_cpu.toml"
# the same recipe here, iterations, and the loss after them
FOR_GPU = ("config/nanogpt_gpu.toml", 1750, 1.4697)
ROW = "{seed:>4} {recipe:<40} {seconds:8.1f} {val_nll:8.4f} {ratio:7.1f}"


class Options(Section):
    """What to run."""

    rounds: Positive = Field(3, description="of each command, seeds 1, 2, ...")
    nanogpt: str = Field(
        "",
        description="a checkout of nanoGPT to compare with; empty = our recipe of the same model",
    )
    for_gpu: bool = Field(False, description="compare with that checkout's recipe for a GPU")


Row = dict[str, Any]


def last_line(stderr: str) -> str:
    """Return what a failed command said last."""
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "failed"


def run(arguments: list[str], folder: str, **env: str) -> tuple[float, str]:
    """Return the seconds that a whole command took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | env,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise UserError(f"{' '.join(arguments)}: {last_line(done.stderr)}")
    return seconds, done.stdout


def run_nanogpt(path: str, seed: int) -> Row:
    """Run nanoGPT's own code; it has one seed, its own."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, printed = run(nanogpt_command(REFERENCE, 2000, folder), path)
    losses = [float(loss) for loss in re.findall(r"step \d+: .* val loss ([\d.]+)", printed)]
    return {"recipe": "nanoGPT", "seed": seed, "seconds": seconds, "val_nll": min(losses)}


def time_for_gpu(path: str, seed: int) -> Row:
    """Time a few iterations, as all of them would take hours."""
    recipe, iterations, loss = FOR_GPU
    _, step = run_training("nanoGPT", recipe, 3, path)
    seconds = iterations * step
    return {"recipe": "nanoGPT, for a GPU", "seed": seed, "seconds": seconds, "val_nll": loss}


def train_cold(recipe: str, seed: int, out_dir: str) -> tuple[float, str]:
    """Train by a whole command, compile caches cold; returns its seconds, and what it printed."""
    arguments = ["train.py", *shlex.split(recipe), f"--seed={seed}", f"--out_dir={out_dir}"]
    with tempfile.TemporaryDirectory() as cache:
        return run(arguments, str(ROOT), TORCHINDUCTOR_CACHE_DIR=cache)


def run_recipe(recipe: str, seed: int) -> Row:
    """Run a whole command in an empty directory; returns its seconds and its best loss."""
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder, "run")
        seconds, _ = train_cold(recipe, seed, str(out_dir))
        records = open_run(out_dir).read_metrics()
    return {
        "recipe": recipe,
        "seed": seed,
        "seconds": seconds,
        "val_nll": records[-1]["best_val_nll"],
    }


def run_reference(options: Options, seed: int) -> Row:
    if options.for_gpu:
        return time_for_gpu(options.nanogpt, seed)
    if options.nanogpt:
        return run_nanogpt(options.nanogpt, seed)
    return run_recipe(REFERENCE, seed)


def describe(recipe: str, rows: list[Row]) -> str:
    """Say the median and the range of each figure of a recipe."""
    parts = []
    for key in ("seconds", "val_nll", "ratio"):
        values = [row[key] for row in rows if row["recipe"] == recipe]
        median = statistics.median(values)
        parts.append(f"{key} {median:.4g} ({min(values):.4g} to {max(values):.4g})")
    return f"{recipe}: {'; '.join(parts)}"


def main(argv: list[str]) -> None:
    recipes, options = load_options(Options, argv, "RECIPE", "*", "recipes to time")
    if options.for_gpu and not options.nanogpt:
        raise UserError("for_gpu=true: needs a checkout of nanoGPT; add --nanogpt=path/to/nanoGPT")
    recipes = recipes or ["config/tinyshakespeare_sprint.toml", "config/tinyshakespeare_char.toml"]
    for recipe in [REFERENCE, *recipes]:
        cfg, _ = load_config(shlex.split(recipe))
        prepare_corpus(cfg.data)  # before any is timed
    rows: list[Row] = []
    print(f"{'seed':>4} {'recipe':<40} {'seconds':>8} {'val nll':>8} {'ratio':>7}")
    for seed in range(1, options.rounds + 1):
        reference = run_reference(options, seed)
        ours = [run_recipe(recipe, seed) for recipe in recipes]
        for row in [reference, *ours]:
            row["ratio"] = reference["seconds"] / row["seconds"]
            rows.append(row)
            print(ROW.format(**row), flush=True)
    print()
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        print(describe(recipe, rows))
    write_results("time_to_loss", rows)


if __name__ == "__main__":
    run_command(main)
