"""Time a sweep against a shell loop of the same trainings, in alternating rounds.

    python bench/many_runs.py [RECIPE] [--rates=0.003,0.01,0.03] [--seeds=1,2,3] [--rounds=2]

Three ways: train.py for one combination after another; sweep.py with --jobs=1, which is the same
and a page; and sweep.py as it is, with as many runs at once as there are cores. Each is a whole
command, from its start to its end, with the corpus prepared.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import Field

from bench.results import cpu_name
from config.cli import load_config
from config.errors import run_command
from config.parser import load_options
from config.values import Positive, Section
from data.prepare import prepare_corpus


class ManyRunsOptions(Section):
    """What to train."""

    rates: str = Field("0.003,0.01,0.03", description="learning rates")
    seeds: str = Field("1,2,3", description="seeds")
    max_iters: Positive = Field(200, description="steps of each run")
    rounds: Positive = Field(2, description="of all three ways")


def run(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def loop(recipe: str, options: ManyRunsOptions, folder: Path) -> None:
    """Train one combination after another, as a shell loop does."""
    fixed = [recipe, f"--max_iters={options.max_iters}"]
    combinations = itertools.product(options.rates.split(","), options.seeds.split(","))
    for number, (rate, seed) in enumerate(combinations):
        own = [f"--learning_rate={rate}", f"--seed={seed}", f"--out_dir={folder / str(number)}"]
        run(["train.py", *fixed, *own])


def sweep(recipe: str, options: ManyRunsOptions, folder: Path, jobs: int) -> None:
    """Train all combinations by sweep.py."""
    varied = [f"--learning_rate={options.rates}", f"--seed={options.seeds}"]
    fixed = [recipe, f"--max_iters={options.max_iters}", f"--jobs={jobs}", f"--out_dir={folder}"]
    run(["sweep.py", *fixed, *varied])


def main(argv: list[str]) -> None:
    recipes, options = load_options(ManyRunsOptions, argv, "RECIPE", "*", "a recipe of train.py")
    recipe = "config/shakespeare_char.toml"
    if recipes:
        recipe = recipes[0]
    cfg, _ = load_config([recipe])
    prepare_corpus(cfg.data)  # is not timed
    ways: dict[str, Callable[[Path], None]] = {
        "shell loop": lambda folder: loop(recipe, options, folder),
        "sweep.py --jobs=1": lambda folder: sweep(recipe, options, folder, 1),
        "sweep.py": lambda folder: sweep(recipe, options, folder, 0),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, train in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                train(Path(folder) / "runs")
                seconds[way].append(time.perf_counter() - started)
                print(f"{way}: {seconds[way][-1]:.1f} s", flush=True)
    print(cpu_name())
    for way, own in seconds.items():
        ratios = [loop / time for loop, time in zip(seconds["shell loop"], own, strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{way}: {shown} times as fast as the shell loop, in each round")


if __name__ == "__main__":
    run_command(main)
