"""Counts the steps that fit into a time: `python sweep.py RECIPE --equal_seconds=N`."""

import json
import statistics
from pathlib import Path

from config.errors import UserError
from config.files import write_atomically
from config.schema import Config
from config.terminal import progress_bar
from sweeps.grid import PlannedRun, Steps

WARMUP_STEPS = 3  # that are slower, and not counted
TIMED_STEPS = 20


def fit_steps(runs: list[PlannedRun], seconds: float, path: Path) -> Steps:
    """Return how many steps of training each group takes in so many seconds, by its name.

    Evaluations do not count. What was measured once stays, in the file `path`: the same command
    trains the same runs again.
    """
    steps: Steps = {}
    if path.exists():
        steps = json.loads(path.read_bytes())
    first_of_group = {run.group: run for run in reversed(runs)}
    new = {name: run for name, run in first_of_group.items() if name not in steps}
    for name, run in progress_bar(new.items(), "measuring speed"):
        steps[name] = max(1, round(seconds / measure_step(run.cfg)))
    write_atomically(path, json.dumps(steps, indent=1).encode())
    return steps


def measure_step(cfg: Config) -> float:
    """Return the seconds of a step, the median of a few."""
    from data.prepare import prepare_corpus
    from engine.device import setup_device
    from sweeps.trial import Trial

    device = setup_device(cfg.run.device, cfg.run.dtype, cfg.options())
    trial = Trial(cfg, prepare_corpus(cfg.data), device)
    for _ in range(WARMUP_STEPS):
        trial.step()
    return statistics.median(trial.step().seconds for _ in range(TIMED_STEPS))


def check_equal_seconds(runs: list[PlannedRun], jobs: int) -> None:
    """Raise a UserError for options that do not go with equal_seconds."""
    if jobs > 1:
        raise UserError(f"jobs={jobs}: runs that share a machine have no equal seconds; use 1")
    if "max_iters" in runs[0].given:
        raise UserError("max_iters follows from equal_seconds: name only one of them")
