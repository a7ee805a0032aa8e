"""Counts the steps that fit into a time: `python sweep.py RECIPE --equal_seconds=N`."""

import json
import statistics
from pathlib import Path

from pydantic import TypeAdapter

from config.errors import UserError
from config.files import lock_of, locked, write_atomically
from config.schema import Config
from config.terminal import progress_bar
from sweeps.grid import PlannedRun, Steps, name_options

WARMUP_STEPS = 3  # that are slower, and not counted
TIMED_STEPS = 20
LONGEST_WAIT = 600  # seconds, for another process that measures


def fit_steps(runs: list[PlannedRun], seconds: float, path: Path) -> Steps:
    """Return how many steps of training each group takes in so many seconds, by its options.

    Evaluations do not count. What was measured once stays, in the file `path`: the same command
    trains the same runs again. Of a job array, one job measures, and the others wait for it.
    """
    taken = f"{path}: another sweep.py measures the speed; start this one again when it trains"
    with locked(lock_of(path.resolve()), taken, LONGEST_WAIT):
        steps = read_steps(path)
        firsts = {name_options(run.varied): run for run in reversed(runs)}  # of each group
        new = {options: run for options, run in firsts.items() if options not in steps}
        for options, run in progress_bar(new.items(), "measuring speed"):
            steps[options] = max(1, round(seconds / measure_step(run.cfg)))
        if new:
            write_atomically(path, json.dumps(steps, indent=1).encode())
    return steps


def read_steps(path: Path) -> Steps:
    """Read the steps that were measured before; none if there is no file."""
    if not path.exists():
        return {}
    try:
        return TypeAdapter(Steps).validate_json(path.read_bytes())
    except ValueError:
        raise UserError(
            f"{path}: is damaged; remove it to measure the speed anew, and name another --out_dir "
            "if runs of this sweep are there already"
        ) from None


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
