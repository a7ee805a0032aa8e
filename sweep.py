"""Train many runs of one recipe: `python sweep.py [RECIPE] --learning_rate=0.003,0.01 --seed=1,2`.

Each combination of the values is an ordinary run, in a folder of the sweep. The table says which is
better, by how much, and whether that is more than noise. The same command goes on where it stopped.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from config.errors import UserError, run_command
from config.files import lock_of, locked
from data.prepare import prepare_corpus
from report.status import ENDED, read_status
from sweeps.grid import PlannedRun, Sweep, SweepOptions, read_sweep, to_arguments
from sweeps.jobs import ROOT, Jobs, choose_jobs
from sweeps.output import Output
from sweeps.speed import check_equal_seconds, fit_steps
from sweeps.table import Content, Table
from sweeps.view import View


def main(argv: list[str]) -> None:
    sweep, options = read_sweep(argv)
    if options.equal_seconds:
        check_equal_seconds(sweep.runs, options.jobs)
        steps = fit_steps(sweep.runs, options.equal_seconds, sweep.folder / "steps.json")
        sweep, _ = read_sweep(argv, steps)
    if options.find_lr:
        find_lr(sweep)
    elif options.list:
        for run in sweep.runs:
            print(shlex.join(["python", "train.py", *run.arguments()]))
    elif options.only:
        sys.exit(train_one(sweep, options.only))
    else:
        command = ["python", "sweep.py", *argv]
        sys.exit(train_all(sweep, options, command))


def find_lr(sweep: Sweep) -> None:
    """Train a few steps at each of eight learning rates, and show what came of it."""
    from sweeps.rates import describe_rates, draw_rates, try_rates

    if len(sweep.runs) > 1:
        raise UserError("find_lr looks at one recipe: name one value of each option")
    run = sweep.runs[0]
    trials = try_rates(run.cfg)
    rates = ("learning_rate", "muon_learning_rate", "seed")
    others = {name: value for name, value in run.given.items() if name not in rates}
    arguments = to_arguments(run.recipe, others)
    print(*describe_rates(trials, arguments, run.cfg.tables), sep="\n")
    picture = sweep.folder / "find_lr.png"
    draw_rates(trials, picture)
    print(picture)


def train_one(sweep: Sweep, number: int) -> int:
    """Train the run of a line of --list, as `train.py` would; returns its exit code."""
    if number > len(sweep.runs):
        raise UserError(f"only={number}: the last line of --list is {len(sweep.runs)}")
    run = sweep.runs[number - 1]
    command = [sys.executable, str(ROOT / "train.py"), *run.arguments()]
    return subprocess.call(command)


def train_all(sweep: Sweep, options: SweepOptions, command: list[str]) -> int:
    """Train all runs that have not ended, and say what their differences are worth."""
    if not find_spec("scipy"):  # in an installation of before there was a sweep
        raise UserError("needs the package scipy: python -m pip install -r requirements.txt")
    folder = sweep.folder
    with locked(lock_of(folder.resolve()), f"{folder}: another sweep.py trains there"):
        to_train = [run for run in sweep.runs if read_status(run.path) not in ENDED]
        prepare_texts(to_train)
        at_once = 1
        if to_train and not options.equal_seconds:  # to ask for a GPU takes seconds
            at_once = choose_jobs(options.jobs, sweep.runs)
        jobs = Jobs(to_train, at_once)
        print(f"{describe_sweep(sweep)}, {at_once} at once; {folder}/sweep.html shows them")
        table = Table(sweep, command, jobs)
        view = View()
        output = Output(folder, view.warn)

        def show() -> Content:
            content = table.collect()
            content["progress"] = view.describe_progress(content)
            view.show(content)
            output.update(content)
            return content

        with jobs.signals():  # also a second Ctrl-C: the files say that nothing trains any more
            jobs.train(show)
            content = show()
            output.write(content | {"is_live": False})
            view.show_end(content)
        if "sweep.html" not in output.failing:
            print(f"\n{folder}/sweep.html")
    has_all = all(run["status"] in ENDED for run in content["runs"])
    if not has_all:
        print(f"\nStopped. To go on:\n  {content['command']}")
    if jobs.stopped_by:
        return 128 + jobs.stopped_by
    return int(bool(jobs.reasons) or not has_all)  # 1 if a run failed, or was stopped by others


def prepare_texts(runs: Sequence[PlannedRun]) -> None:
    """Prepare the corpora, so that a mistake in one is told before anything is trained."""
    for data in dict.fromkeys(run.cfg.data for run in runs):
        prepare_corpus(data)


def describe_sweep(sweep: Sweep) -> str:
    """Say how many runs there are, of how many values of each option.

    For two rates and three seeds: `6 runs, 2 of learning_rate x 3 of seed`.
    """
    if len(sweep.runs) == 1:
        return "1 run"
    factors = [f"{len(values)} of {name}" for name, values in sweep.varied.items()]
    return f"{len(sweep.runs)} runs, {' x '.join(factors)}"


if __name__ == "__main__":
    run_command(main)
