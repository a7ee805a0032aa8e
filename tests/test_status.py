"""A run says how far it is, and how it ended: one list of words for every command."""

from pathlib import Path

import pytest

from config.files import lock_of, locked
from report.status import (
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    STOPPED_EARLY,
    TRAINING,
    WAITING,
    read_status,
)
from tests.one_run import resume, train

RUN = Path("out/run")


def test_a_run_waits_trains_is_interrupted_and_finishes(data_dir: Path) -> None:
    assert read_status(RUN) == WAITING
    train("--max_iters=2")
    assert read_status(RUN) == FINISHED
    metrics = RUN / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:-1]))  # as while it is measured
    assert read_status(RUN) == INTERRUPTED
    lock = lock_of(RUN.resolve())
    with locked(lock, "taken"):
        assert read_status(RUN) == TRAINING
    lock.touch()  # of a process that was killed
    assert read_status(RUN) == INTERRUPTED
    resume("--max_iters=2")
    assert read_status(RUN) == FINISHED


@pytest.mark.usefixtures("data_dir", "overfits")
def test_a_run_that_overfits_stops_early() -> None:
    train("--patience=2")
    assert read_status(RUN) == STOPPED_EARLY
    train("--patience=0", "--init_from=resume")
    assert read_status(RUN) == FINISHED


def test_a_run_that_diverges(data_dir: Path) -> None:
    train("--learning_rate=1e30", "--muon_learning_rate=1e30", returns=1)
    assert read_status(RUN) == DIVERGED
