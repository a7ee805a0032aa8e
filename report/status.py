"""Tells how far a run is, and how it ended."""

from collections.abc import Iterable
from pathlib import Path

from config.files import is_locked, is_run, lock_of
from engine.metrics import Record, is_outcome, read_records

WAITING = "waiting"  # it has not begun
TRAINING = "training"
FINISHED = "finished"
STOPPED_EARLY = "stopped early"  # because it overfits
DIVERGED = "diverged"
INTERRUPTED = "interrupted"  # it has not ended, and no process trains it
FAILED = "failed"  # a sweep says so of a run that could not be trained
ENDED = (FINISHED, STOPPED_EARLY, DIVERGED, FAILED)
STATUSES = (WAITING, TRAINING, FINISHED, STOPPED_EARLY, DIVERGED, INTERRUPTED, FAILED)


def read_status(path: Path) -> str:
    """Return the status of the run in a directory; WAITING if there is none yet."""
    if not is_run(path):
        return WAITING
    return find_status(path, read_records(path / "metrics.jsonl"))


def find_status(path: Path, records: Iterable[Record]) -> str:
    """Return the status of the run in a directory, of whose metrics these are the lines."""
    final: Record = {}
    for record in records:
        if is_outcome(record):
            final = record
    if final:
        return status_of(final)
    if is_locked(lock_of(path.resolve())):
        return TRAINING
    return INTERRUPTED


def status_of(final: Record) -> str:
    """Return how a run ended, from the last line of its metrics."""
    if "diverged" in final:
        return DIVERGED
    if "stopped_early" in final:
        return STOPPED_EARLY
    return FINISHED
