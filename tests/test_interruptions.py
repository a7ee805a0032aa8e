"""No run is lost: killed, stopped by a signal or with a dead rank, it resumes bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.signals import StopSignal
from tests.conftest import TINY, read_metrics, without_clocks
from tests.one_run import STEPS, steps
from tests.processes import Process, assert_same_checkpoints, start_ranks
from tests.test_page import data_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has neither fork nor kill")

TRAIN = ["--corpus=text.txt", "--device=cpu", *TINY, "--schedule=constant", "--patience=0"]
# Every step writes everything: a line, a checkpoint, and every few steps an evaluation.
BUSY = [
    *TRAIN,
    "--dropout=0.2",
    "--micro_batch_size=2",
    "--val_fraction=0.9",
    "--eval_interval=7",
    "--eval_tokens=100",
    "--checkpoint_interval=1",
    "--init_from=auto",
]
ENDLESS = "--max_iters=1000000"

# Dies as it is about to do for the n-th time what matches a pattern: "open out/...", "os.rename
# out/...", ...
DIE_BEFORE = """
import os, re, signal, sys
left = {number}
def watch(event, arguments):
    global left
    does = f"{{event}} {{' '.join(map(str, arguments))}}"
    is_change = re.match("(open|os.rename|os.mkdir|os.remove) .*out/", does)
    if is_change and re.search({pattern!r}, does):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
# Dies in the middle of the first file that is larger than so many bytes.
DIE_AT_SIZE = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, ({}, {}))
"""
# Dies after its last step, as it is about to do what matches a pattern, in the same words.
DIE_AT_THE_END = """
import os, re, signal, sys
import report.outcome
is_over = False
measure_best = report.outcome.measure_best
def measure(*arguments):
    global is_over
    is_over = True
    return measure_best(*arguments)
report.outcome.measure_best = measure
def watch(event, arguments):
    does = f"{{event}} {{' '.join(map(str, arguments))}}"
    is_change = re.match("os.rename .*out/|os.remove .*out/|open .*out/.* (w|a|r[+]) ", does)
    if is_over and is_change and re.search({pattern!r}, does):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
# The step after the fourth takes a minute.
SLOW_STEP = """
import time, engine.step
seed_dropout = engine.step.seed_dropout
def seed_slowly(seed, step, number):
    seed_dropout(seed, step, number)
    if step == 4:
        time.sleep(60)
engine.step.seed_dropout = seed_slowly
"""

# Measuring the best model takes a minute.
SLOW_OUTCOME = """
import time, report.outcome
def measure(*arguments):
    print("measuring", flush=True)
    time.sleep(60)
report.outcome.measure_all = measure
"""
# And so does what has to be done when it is interrupted.
STUCK_OUTCOME = """
def never(*arguments):
    try:
        measure(*arguments)
    finally:
        print("cleaning up", flush=True)
        time.sleep(60)
report.outcome.measure_all = never
"""


def finish_and_compare(clone: Path, out: str, ranks: int = 1) -> None:
    """Train a killed run three steps further: it equals one that was never killed, bit for bit."""
    killed = clone / out
    whole = clone / f"{out}-whole"
    last_step = 3 + max([0, *map(int, steps(killed))])
    for path in (killed, whole):
        options = [*BUSY, f"--out_dir={path}", f"--max_iters={last_step}"]
        for process in start_ranks(clone, *options, size=ranks):
            process.succeed()
    for name in ("last.safetensors", "previous.safetensors", "best.safetensors"):
        assert_same_checkpoints(killed / name, whole / name)
    assert steps(killed) == [*range(last_step + 1), last_step]
    assert without_clocks(killed) == without_clocks(whole)
    assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole))
    shutil.rmtree(killed)
    shutil.rmtree(whole)


def has_lines(run: Path, number: int) -> bool:
    return len(read_metrics(run)) >= number


def kill_at_random_moments(clone: Path, out: str, kills: int, ranks: int = 1) -> None:
    """Kill most of the processes while they train, some while they start.

    Each finds what the one before it left.
    """
    moments = random.Random(0)
    run = clone / out
    seconds = 0.0  # until the second line of a run
    for kill in range(kills):
        processes = start_ranks(clone, *BUSY, f"--out_dir={run}", ENDLESS, size=ranks)
        if kill % 3 == 2:
            time.sleep(moments.uniform(0, seconds))
        else:
            started = time.monotonic()
            lines = len(read_metrics(run))
            processes[0].wait_until(partial(has_lines, run, lines + 2))
            seconds = time.monotonic() - started
            time.sleep(moments.uniform(0, 0.1))
        for process in processes:
            assert process.process.is_alive(), process.printed()
        for process in processes:
            process.send_signal(signal.SIGSTOP)  # so that none notices that another is gone
        for process in processes:
            process.kill()
    finish_and_compare(clone, out, ranks)


@pytest.mark.slow
def test_kills_at_random_moments(clone: Path) -> None:
    kill_at_random_moments(clone, "out/killed", 12)


@pytest.mark.slow
def test_kills_of_both_ranks_at_random_moments(clone: Path) -> None:
    kill_at_random_moments(clone, "out/killed-two", 6, ranks=2)


def let_it_die(clone: Path, out: str, prelude: str, number: int = 9) -> None:
    """Train until the prelude ends the process with that signal, SIGKILL."""
    code, printed = Process(clone, *BUSY, f"--out_dir={out}", ENDLESS, prelude=prelude).wait()
    assert code == -number, printed


def test_kills_while_something_is_written(clone: Path) -> None:
    """The run is made, it has no checkpoint yet, a checkpoint is renamed, or half of it written."""
    for pattern, number in (
        ("rename.*tokenizer", 1),
        ("rename.*config", 1),
        ("rename.*last", 1),
        ("rename.*last", 3),
    ):
        let_it_die(clone, "out/killed-few", DIE_BEFORE.format(pattern=pattern, number=number))
    assert not (clone / "out/killed-few/last.safetensors").exists()
    let_it_die(clone, "out/killed-few", DIE_AT_SIZE.format(40_000, 40_000), signal.SIGXFSZ)
    assert [*(clone / "out/killed-few").glob(".*tmp*")]
    finish_and_compare(clone, "out/killed-few")


@pytest.mark.slow
def test_kills_at_each_change_of_what_is_on_disk(clone: Path) -> None:
    """A run is made, and resumed after each kill."""
    for number in range(1, 61, 2):
        let_it_die(clone, "out/killed-many", DIE_BEFORE.format(pattern="", number=number))
    finish_and_compare(clone, "out/killed-many")


# Each of these finds other files: a new one has its name or not, a line is there or not.
SOME_AT_THE_END = ("rename.*evaluation", "open.*samples", "open.*metrics")
OTHERS_AT_THE_END = (
    "remove.*curves",
    "rename.*curves",
    "remove.*verdict",
    "rename.*verdict",
    "remove.*report.js",
    "rename.*report.js",
    "remove.*report.html",
    "rename.*report.html",
)


@pytest.fixture(scope="module")
def ended(clone: Path) -> Path:
    """A run that nothing disturbed."""
    path = clone / "out/undisturbed/run"
    code, printed = Process(clone, *TRAIN, f"--out_dir={path}").wait()
    assert code == 0, printed
    return path


@pytest.fixture(scope="module")
def unfinished(clone: Path) -> Path:
    """A run that was killed after its last step, before its end changed anything."""
    path = clone / "out/unfinished/run"
    prelude = DIE_AT_THE_END.format(pattern="")
    code, printed = Process(clone, *TRAIN, f"--out_dir={path}", prelude=prelude).wait()
    assert code == -signal.SIGKILL, printed
    return path


@pytest.mark.parametrize(
    "pattern",
    [
        *SOME_AT_THE_END,
        *(pytest.param(pattern, marks=pytest.mark.slow) for pattern in OTHERS_AT_THE_END),
    ],
)
def test_kills_after_the_last_step(
    clone: Path, ended: Path, unfinished: Path, pattern: str
) -> None:
    """Resuming finishes: all that belongs to the end is there, as if nothing had happened."""
    killed = clone / "out/killed-at-the-end/run"
    shutil.copytree(unfinished, killed)
    prelude = DIE_AT_THE_END.format(pattern=pattern)
    code, printed = Process(clone, str(killed), "--init_from=auto", prelude=prelude).wait()
    assert code == -signal.SIGKILL, printed
    assert "it is finished" not in finish(killed, ended)
    before = {path: path.read_bytes() for path in killed.iterdir()}
    assert "\nit is finished: it has taken 6 steps" in finish(killed, ended)
    assert {path: path.read_bytes() for path in killed.iterdir()} == before
    shutil.rmtree(killed)


def finish(run: Path, whole: Path) -> str:
    """Start a run again: then it equals a whole one but for clocks. Returns what is printed."""
    code, printed = Process(run.parents[2], str(run), "--init_from=auto").wait()
    assert code == 0, printed
    assert sorted(os.listdir(run)) == sorted(os.listdir(whole))
    for name in ("verdict.txt", "evaluation.json", "curves.png", "samples.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert without_clocks(run) == without_clocks(whole)
    assert last_page(run) == last_page(whole)
    return printed


def last_page(run: Path) -> dict[str, Any]:
    """Return what the page shows of the outcome."""
    data = data_of(run)
    (shown,) = data["runs"]
    names = ("best_nll", "evaluation", "passed", "samples", "verdict")
    outcome = {name: shown[name] for name in names}
    outcome["live"] = data["live"]
    return outcome


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(clone: Path, number: signal.Signals) -> None:
    out = clone / "out/stopped"
    process = Process(
        clone,
        *TRAIN,
        "--init_from=auto",
        "--checkpoint_interval=1000000",
        ENDLESS,
        f"--out_dir={out}",
    )
    started = len(read_metrics(out))
    process.wait_until(partial(has_lines, out, started + 4))
    process.send_signal(number)
    code, printed = process.wait()
    assert code == 128 + number
    step = read_metrics(out)[-1]["step"]
    assert (
        f"Stopped by {number.name} at step {step:,.0f}. To resume:\n"
        f"  python train.py {out} --init_from=resume\n"
    ) in printed
    again = [str(out), "--init_from=resume", f"--max_iters={int(step) + 1}"]
    code, printed = Process(clone, *again).wait()
    assert code == 0
    assert f"resuming {out} at step {step:,.0f}\n" in printed


def test_a_signal_that_comes_while_the_ranks_compare_theirs_is_not_lost() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    coming = [signal.SIGTERM]

    def compare(number: int) -> int:
        while coming:
            signal.raise_signal(coming.pop())  # after it was asked for, before the answer is there
        return number

    try:
        device = cast(Any, SimpleNamespace(max=compare, rank=0))
        stop = StopSignal(device, "python train.py out/run")
        assert not stop.requested()
        assert stop.requested()
        assert stop.received == signal.SIGTERM
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_step_is_answered(clone: Path, number: signal.Signals) -> None:
    """Measuring the best model, which takes a minute, is stopped with a word on how to finish."""
    out = clone / "out/late"
    process = Process(clone, *TRAIN, f"--out_dir={out}", prelude=SLOW_OUTCOME)
    process.wait_until(lambda: "measuring" in process.printed())
    started = time.monotonic()
    process.send_signal(number)
    code, printed = process.wait()
    assert code == 128 + number
    assert time.monotonic() - started < 5
    command = f"python train.py {out} --init_from=resume"
    assert f"Stopped by {number.name} after the last step. To finish:\n  {command}\n" in printed
    assert "Traceback" not in printed
    code, printed = Process(clone, *command.split()[2:]).wait()
    assert code == 0, printed
    assert (out / "verdict.txt").exists()
    shutil.rmtree(out)


def test_a_second_signal_after_the_last_step_has_said_how_to_finish(clone: Path) -> None:
    """Even where the first cannot end what is going on."""
    out = clone / "out/stuck"
    process = Process(clone, *TRAIN, f"--out_dir={out}", prelude=SLOW_OUTCOME + STUCK_OUTCOME)
    process.wait_until(lambda: "measuring" in process.printed())
    process.send_signal(signal.SIGINT)
    process.wait_until(lambda: "cleaning up" in process.printed())
    assert f"To finish:\n  python train.py {out} --init_from=resume\n" in process.printed()
    process.send_signal(signal.SIGINT)
    assert process.wait()[0] == -signal.SIGINT
    shutil.rmtree(out)


def test_a_second_sigint_stops_at_once(clone: Path) -> None:
    """It ends a step that takes a minute; the files stay whole."""
    out = clone / "out/twice"
    process = Process(clone, *TRAIN, f"--out_dir={out}", prelude=SLOW_STEP)
    process.wait_until(partial(has_lines, out, 5))
    process.send_signal(signal.SIGINT)
    process.wait_until(lambda: "SIGINT: training stops after this step" in process.printed())
    assert f"To resume:\n  python train.py {out} --init_from=resume\n" in process.printed()
    time.sleep(0.2)
    assert process.process.is_alive()  # the step is not done
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    code, _ = process.wait()
    assert code == -signal.SIGINT
    assert time.monotonic() - started < 5
    code, printed = Process(clone, str(out), "--init_from=resume").wait()
    assert code == 0
    assert "at step 4\n" in printed
    assert steps(out) == STEPS


def test_a_dead_rank_ends_the_others_with_a_message(clone: Path) -> None:
    out = clone / "out/dead"
    processes = start_ranks(clone, *BUSY, f"--out_dir={out}", ENDLESS)
    processes[0].wait_until(partial(has_lines, out, 5))
    processes[1].kill()
    code, printed = processes[0].wait()
    assert code == 2
    *_, last = printed.splitlines()
    assert last.startswith("error: another process of this training is gone (")
    assert last.endswith(
        "start all of them again with --init_from=resume, or let torchrun do that: torchrun "
        "--max-restarts=3 ... --init_from=auto"
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_ctrl_c_while_torch_is_imported_is_silent(clone: Path, trained, script: str) -> None:
    arguments = {"train.py": BUSY, "sample.py": [str(trained[0])]}[script]
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told


@pytest.mark.slow
def test_torchrun_restarts_a_job_of_which_a_rank_died(clone: Path) -> None:
    out = clone / "out/restarted"
    whole = clone / "out/never_killed"
    torchrun = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--max-restarts=1",
            "train.py",
            *BUSY,
            f"--out_dir={out}",
            "--max_iters=40",
        ],
        cwd=clone,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while len(read_metrics(out)) < 6:
        assert torchrun.poll() is None, torchrun.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(children(torchrun.pid)[0], signal.SIGKILL)  # the rank that writes
    printed, told = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, told
    assert printed.count(f"resuming {out} at step ") == 1
    for process in start_ranks(clone, *BUSY, f"--out_dir={whole}", "--max_iters=40"):
        process.succeed()
    assert_same_checkpoints(out / "last.safetensors", whole / "last.safetensors")
    assert without_clocks(out) == without_clocks(whole)
    first, second = (out / "history.jsonl").read_text().splitlines()
    assert json.loads(first)["step"] == 0
    assert json.loads(second)["step"] > 0


def children(parent: int) -> list[int]:
    """The processes that a process has started, in order."""
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return sorted(process for process in processes if parent_of(process) == parent)


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        _, _, after_the_name = stat.rpartition(")")
        return int(after_the_name.split()[1])
    return -1
