"""Worker threads: on a CPU, each core computes a micro-batch of its own.

A step of a small model is hundreds of short operations. If all cores share each of them, they wait
for each other hundreds of times; if each core takes a micro-batch, they wait once. It is also
robust: a core that another program takes away delays one micro-batch, not every operation.

PyTorch releases Python's interpreter lock in its operations, so the threads run at the same time.
What stays behind the lock is the Python between the operations (bench/NOTES.md has its share).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch

from config.errors import UserError

MAX_WORKERS = 16  # of a small model, no more threads get past Python's lock (bench/NOTES.md)

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_workers() -> int:
    """Count a worker for each core that torch uses, as OMP_NUM_THREADS or torchrun may say."""
    return min(torch.get_num_threads(), MAX_WORKERS)


class Workers:
    """`count` threads, each with one of OpenMP's threads.

    With a count of 1, or a single item, the caller's thread computes, and all cores share each
    operation. Otherwise the results do not depend on the count, not even in their last bits.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in the order of the items, of which few are taken ahead."""
        rest = iter(items)
        first_two = list(itertools.islice(rest, 2))
        items = itertools.chain(first_two, rest)
        if self.count == 1 or len(first_two) < 2:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error, or when the caller wants no more
            for future in waiting:
                future.cancel()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        threads = torch.get_num_threads()
        everyone = Barrier(self.count + 1)

        def start() -> None:
            torch.set_num_threads(1)
            # else the first operation would take the number that is set last
            torch.get_num_threads()
            torch.set_flush_denormal(True)  # as in the thread that calls
            with suppress(BrokenBarrierError):
                everyone.wait()

        pool = ThreadPoolExecutor(self.count, "worker", initializer=start)
        try:
            for _ in range(self.count):
                pool.submit(int)  # each starts a thread, as the others wait
        except RuntimeError as error:
            # else the process could not end: those that are there would wait for ever
            everyone.abort()
            raise UserError(
                f"no more threads can be started here ({error}); OMP_NUM_THREADS=1 needs none"
            ) from None
        everyone.wait()
        torch.set_num_threads(threads)  # 1 would be the number of every thread that comes later
        return pool
