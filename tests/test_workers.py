"""Worker threads: the same numbers whatever their count, in order, and errors reach the caller."""

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from config.errors import UserError
from engine.workers import Workers
from tests.conftest import TINY, call, without_clocks
from tests.processes import assert_same_checkpoints

# Dropout in attention too, masked targets that are not even, and three micro-batches of 2, 2 and 1
# sequences.
OPTIONS = [
    "--corpus=text.txt",
    *TINY,
    "--device=cpu",
    "--batch_size=5",
    "--micro_batch_size=2",
    "--dropout=0.2",
    "--mask=[a-m]+",
    "--patience=0",
]


@pytest.fixture
def train_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains with so many workers; returns the run."""

    def train_with(count: int, name: str, *options: str) -> Path:
        monkeypatch.setattr("engine.device.count_workers", lambda: count)
        call("train.py", *OPTIONS, f"--out_dir=out/{name}", *options)
        return Path("out") / name

    return train_with


@pytest.mark.precision
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_workers_gives_the_same_bits(
    dtype: str, data_dir: Path, train_with: Callable[..., Path]
) -> None:
    """Loss, dropout, weights, optimizers and evaluation are the same."""
    one = train_with(1, "one", f"--dtype={dtype}")
    two = train_with(2, "two", f"--dtype={dtype}")
    four = train_with(4, "four", f"--dtype={dtype}")
    assert_same_runs(one, two)
    assert_same_runs(one, four)


@pytest.mark.precision
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_number_of_workers_resumes_to_the_same_bits(
    dtype: str, data_dir: Path, train_with: Callable[..., Path]
) -> None:
    options = [f"--dtype={dtype}", "--schedule=constant"]
    train_with(4, "resumed", *options, "--max_iters=4")
    resumed = train_with(2, "resumed", *options, "--init_from=resume")
    assert_same_runs(resumed, train_with(1, "whole", *options))


def assert_same_runs(one: Path, other: Path) -> None:
    assert_same_checkpoints(one / "last.safetensors", other / "last.safetensors")
    assert without_clocks(one) == without_clocks(other)


def test_results_come_in_the_order_of_the_items_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def slow_for_even(number: int) -> int:
        if number % 2 == 0:
            time.sleep(0.002)
        return number

    results = Workers(3).map(slow_for_even, items())
    assert [*itertools.islice(results, 5)] == [*range(5)]
    assert len(taken) < 15
    assert list(results) == list(range(5, 100))


def test_workers_compute_at_the_same_time_with_one_thread_each() -> None:
    """Two of them meet at a barrier, which one alone would never pass."""
    meeting = threading.Barrier(2, timeout=30)

    def meet(_: int) -> int:
        meeting.wait()
        return torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        assert list(Workers(2).map(meet, range(4))) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_single_item_is_for_all_cores() -> None:
    """The thread that calls computes it, with as many threads as torch uses."""
    workers = Workers(2)
    (thread,) = workers.map(lambda _: threading.current_thread(), [0])
    assert thread is threading.current_thread()
    assert not [*workers.map(str, [])]


def test_an_error_in_a_worker_reaches_the_caller_and_the_others_stop() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 2:
            raise MemoryError("no room")
        time.sleep(0.01)
        done.append(number)

    workers = Workers(2)
    with pytest.raises(MemoryError, match="no room"):
        list(workers.map(work, range(1000)))
    assert len(done) < 10
    assert list(workers.map(str, range(3))) == ["0", "1", "2"]  # they still work


def test_where_no_thread_can_be_started_those_that_are_there_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is with a low limit of processes; threads that waited would keep the process alive."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_two(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(UserError, match=r"no more threads .*OMP_NUM_THREADS=1"):
        list(Workers(4).map(str, range(9)))
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()
