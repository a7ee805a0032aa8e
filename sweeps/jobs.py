"""Trains runs, several at once, each in a process of its own: `python train.py ...`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from config.errors import slow_imports
from config.files import is_locked, lock_of, write_atomically
from report.status import ENDED, FAILED, TRAINING, WAITING, read_status
from sweeps.grid import PlannedRun

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.2  # seconds between two looks at the processes
STOPPED = (-signal.SIGINT, -signal.SIGTERM, 130, 143)  # exit codes of a run that was asked to stop


class Jobs:
    """Runs that wait, and processes that train; all of them end, or stop when asked to."""

    def __init__(self, runs: Sequence[PlannedRun], at_once: int) -> None:
        self.at_once = at_once
        # All groups with the first seed come first: so there is soon something to compare.
        seeds = list(dict.fromkeys(run.seed for run in runs))
        self.waiting = sorted(runs, key=lambda run: seeds.index(run.seed))
        self.processes: dict[Path, subprocess.Popen[bytes]] = {}
        self.reasons: dict[Path, str] = {}  # of runs that failed
        self.started: dict[Path, float] = {}  # when a new run was
        self.seconds: dict[Path, float] = {}  # of its whole command
        self.stopped_by = 0  # the number of a signal

    def train(self, show: Callable[[], object]) -> None:
        """Train until all runs have ended, or a signal comes; calls show() all the time.

        A run that another process trains, on this machine or another one, is waited for.
        """
        runs = {run.path: run for run in self.waiting}
        while self.processes or (self.waiting and not self.stopped_by):
            self.start_some()
            show()
            time.sleep(PAUSE)
            for path in self.collect():
                if is_taken(path):  # another process was faster
                    self.reasons.pop(path, None)
                    self.waiting.append(runs[path])

    def start_some(self) -> None:
        """Start as many runs as may train at once."""
        for run in list(self.waiting):
            if self.stopped_by or len(self.processes) >= self.at_once:
                return
            status = read_status(run.path)
            has_ended = status in ENDED
            if not has_ended and is_taken(run.path):
                continue
            self.waiting.remove(run)
            if not has_ended:
                self.reasons.pop(run.path, None)
                if status == WAITING:
                    self.started[run.path] = time.perf_counter()
                self.processes[run.path] = start(run, self.at_once)
                if self.stopped_by:  # by a signal that came in this moment
                    self.pass_on(self.stopped_by)

    def collect(self) -> Iterator[Path]:
        """Give the runs whose process has ended, and note why one failed."""
        for path, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self.processes[path]
            has_ended = read_status(path) in ENDED
            if has_ended and path in self.started:
                self.seconds[path] = time.perf_counter() - self.started[path]
            if not has_ended and code not in STOPPED:
                self.reasons[path] = explain_exit(code, log_of(path))
            yield path

    def status_of(self, run: PlannedRun) -> str:
        """Return the status of a run, as far as this sweep knows."""
        if run.path in self.processes:
            return TRAINING
        if run.path in self.reasons:
            return FAILED
        return read_status(run.path)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Pass Ctrl-C and SIGTERM on: each run finishes its step and saves, or stops at once.

        So it is where a terminal is closed.
        """
        before = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:  # as with nohup
                before[number] = signal.signal(number, self.pass_on)
        try:
            yield
        except BaseException:  # a fault of ours: no run goes on without us
            if not self.stopped_by:
                self.pass_on(signal.SIGTERM)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def pass_on(self, number: int, frame: FrameType | None = None) -> None:
        self.stopped_by = number
        if sys.platform == "win32":  # where Ctrl-C reaches all processes of a console
            return
        if number != signal.SIGINT:
            number = signal.SIGTERM  # train.py knows no other
        for process in self.processes.values():
            process.send_signal(number)


def is_taken(path: Path) -> bool:
    """Return whether a process trains a run, or prepares the text of one that is not there yet."""
    return is_locked(lock_of(path.resolve()))


def choose_jobs(asked: int, runs: Sequence[PlannedRun]) -> int:
    """Choose how many runs train at once: on a CPU one for each core, on a GPU one.

    Two small trainings on a core each end earlier than one after another on both (docs/results.md).
    """
    if asked:
        return min(asked, len(runs))
    if not all(run.cfg.run.device == "cpu" for run in runs) and has_gpu():
        return 1
    return max(1, min(count_cores(), len(runs)))


def has_gpu() -> bool:
    """Return whether PyTorch would train on a GPU here."""
    with slow_imports():
        import torch
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def start(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
    """Start the process of a run; what it prints goes to a file."""
    log = log_of(run.path)
    write_atomically(log, b"")
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *run.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | threads(at_once),
            start_new_session=True,  # so that it hears of Ctrl-C from us, and once
        )


def threads(at_once: int) -> dict[str, str]:
    """Return what the environment says of a run's share of the cores."""
    if at_once == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, count_cores() // at_once))}


def count_cores() -> int:
    """Count the cores that this process may use."""
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def log_of(path: Path) -> Path:
    """Return the file with what a run printed."""
    return path.parent / "logs" / f"{path.name}.txt"


def explain_exit(code: int, log: Path) -> str:
    """Say why a process failed: the last line that it printed, or the signal that ended it."""
    if code == -9:  # SIGKILL, which Windows does not have
        return "killed, maybe because memory ran out: a smaller --jobs needs less"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines: list[str] = []
    with suppress(OSError):  # somebody removed it
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"
