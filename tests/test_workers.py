"""Worker threads: the same numbers whatever their count, in order, and errors reach the caller."""

import gc
import threading
import time
from collections.abc import Iterator
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


def train_with(count: int, name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """A training by so many workers."""
    monkeypatch.setattr("engine.device.count_workers", lambda: count)
    call("train.py", *OPTIONS, f"--out_dir=out/{name}", *options)
    return Path("out") / name


@pytest.mark.precision
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_workers_gives_the_same_bits(
    dtype: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, dropout, weights, optimizers, evaluation; also when other workers resume."""
    runs = [train_with(count, f"{count}", monkeypatch, f"--dtype={dtype}") for count in (1, 2, 4)]
    train_with(
        4, "resumed", monkeypatch, f"--dtype={dtype}", "--schedule=constant", "--max_iters=4"
    )
    resumed = train_with(
        2, "resumed", monkeypatch, f"--dtype={dtype}", "--schedule=constant", "--init_from=resume"
    )
    whole = train_with(1, "whole", monkeypatch, f"--dtype={dtype}", "--schedule=constant")
    for one, other in ((runs[0], runs[1]), (runs[0], runs[2]), (whole, resumed)):
        assert_same_checkpoints(one / "last.safetensors", other / "last.safetensors")
        assert without_clocks(one) == without_clocks(other)


def test_results_come_in_the_order_of_the_items_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def slow_for_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number

    results = Workers(3).map(slow_for_even, items())
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
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
    assert list(Workers(2).map(lambda _: threading.current_thread(), [0])) == [
        threading.current_thread()
    ]
    assert list(Workers(2).map(str, [])) == []


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
    """As with a low limit of processes: a thread that waited for the others would keep the process
    from ending.
    """
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
