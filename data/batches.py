"""Batches: which tokens a step sees is a pure function of (corpus, seed, first window, batch_size).

So a resumed run needs only the number of windows that were read, and any number of ranks or
micro-batches sees the same tokens. A window is a row: where its inputs start in the text, how many
targets it has, and how many of these, the first ones, are masked (none in training).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from config.errors import UserError
from data.documents import Split
from data.windows import find_windows

IGNORE_INDEX = -100  # the target of a masked position


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where it is masked."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    number: int = 0  # of a micro-batch, in its global batch

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())


class TrainBatches:
    """Draws the windows of a split without replacement, in a new order each epoch.

    Where text runs on, an epoch's windows lie side by side, from an offset below block_size that is
    drawn for each epoch. In every second epoch the remainder of len(tokens) / block_size is added,
    so that the windows can end with the text. An epoch leaves out less than two blocks at the ends
    of the text; over the epochs each token but the first becomes a target.

    With an `eos` token, each window is a document, padded, or cut where it is longer than a block;
    each token but the first is then a target in every epoch.

    A rank makes only its own micro-batches: of 3 ranks, rank 1 makes numbers 1, 4, 7, ...
    """

    def __init__(
        self,
        split: Split,
        block_size: int,
        batch_size: int,
        seed: int,
        eos: int | None = None,
        *,
        micro_batch_size: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.eos = eos
        self.micro_batch_size = micro_batch_size or math.ceil(batch_size / world_size)
        self.rank = rank
        self.world_size = world_size
        self.documents = None  # windows (N, 3), where each has a document of its own
        if eos is None:
            # one less than fit in, so that there is room for the offset
            self.windows_per_epoch = len(split.tokens) // block_size - 1
        else:
            self.documents = find_windows(split.tokens, block_size, eos, stride=block_size)
            self.windows_per_epoch = len(self.documents)
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the training split has {len(split.tokens)} tokens, too few for "
                f"block_size={block_size}; it needs {2 * block_size}: use a longer corpus or a "
                "smaller block_size"
            )
        # The windows of one step can be of two epochs.
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, first_window: int) -> list[Batch]:
        """Makes this rank's micro-batches of a step, (micro_batch_size, block_size) each.

        `first_window` is the number of windows that were read in the steps before.
        """
        end = first_window + self.batch_size
        micro_batches = []
        for number in range(self.rank, self.num_micro_batches, self.world_size):
            start = first_window + number * self.micro_batch_size
            stop = min(start + self.micro_batch_size, end)
            windows = np.concatenate([self._window(n) for n in range(start, stop)])
            micro_batches.append(cut(self.split, windows, self.block_size, number))
        return micro_batches

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches a step has, on all ranks together."""
        return math.ceil(self.batch_size / self.micro_batch_size)

    def epochs(self, windows: int) -> float:
        """Counts how often the text was read when so many windows were."""
        return windows / self.windows_per_epoch

    def read_and_unread(self, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """Divides the first epoch: the first `windows` windows that are read, and the others.

        (N, 3) each, in the order of the text.
        """
        order, offset = self._epoch(0)
        read = np.sort(order[:windows])
        unread = np.sort(order[windows:])
        return self._windows_at(read, offset), self._windows_at(unread, offset)

    def _window(self, number: int) -> np.ndarray:
        """Finds the window that is read as number 0, 1, 2, ... of a training, (1, 3)."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order, offset = self._epoch(epoch)
        return self._windows_at(order[place : place + 1], offset)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, int]:
        """Draws an epoch's order of windows, as places in the text, and their offset."""
        rng = np.random.default_rng((self.seed, epoch))
        offset = 0
        if self.documents is None:
            offset = int(rng.integers(self.block_size))
            if epoch % 2 == 1:
                offset += len(self.split.tokens) % self.block_size  # the last tokens get their turn
        order = rng.permutation(self.windows_per_epoch)
        # in few bytes each, since there may be millions
        return order.astype(np.min_scalar_type(self.windows_per_epoch)), offset

    def _windows_at(self, places: np.ndarray, offset: int) -> np.ndarray:
        """Makes the windows at these places in the text, (N, 3)."""
        if self.documents is not None:
            return self.documents[places]
        windows = np.zeros((len(places), 3), np.int64)
        windows[:, 0] = places.astype(np.int64) * self.block_size + offset
        windows[:, 1] = self.block_size
        return windows


def cut(split: Split, windows: np.ndarray, block_size: int, number: int = 0) -> Batch:
    """Makes a batch with a row for each window (N, 3).

    Padding repeats the window's first token, and is masked.
    """
    start, length, skip = np.split(windows, 3, axis=1)  # (N, 1) each
    t = np.arange(block_size)
    position = start + np.where(t < length, t, 0)  # (N, block_size)
    is_target = (skip <= t) & (t < length)
    if split.unmasked is not None:
        is_target &= split.unmasked[position + 1]
    targets = np.where(is_target, split.take(position + 1), IGNORE_INDEX)
    return Batch(split.take(position), targets, number)
