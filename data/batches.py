"""Batches: the tokens that a step sees depend only on the corpus, the options and a count.

A window is a row (start, length, skip) of an array (N, 3). Its inputs begin at token `start` of the
text, and it has `length` targets, one after each input. The first `skip` targets are masked:
evaluation's windows may overlap, and no target may count twice. In training `skip` is 0.

The count is how many windows were read before. So a resumed run needs no more than that number, and
any number of ranks or micro-batches sees the same tokens.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from config.errors import UserError
from data.documents import Split
from data.windows import find_windows

IGNORE_INDEX = -100  # the target of a masked position; as in loss.py, which needs torch


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where it is masked."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    number: int = 0  # which micro-batch of the step this is; its dropout depends on it

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())


class TrainBatches:
    """Draws the windows of a split without replacement, in a new order each epoch.

    A text that runs on is cut into windows that lie side by side, at a random offset that differs
    from epoch to epoch: over the epochs, each token but the first becomes a target. With an `eos`
    token, each document is a window of its own, padded; one that is longer than block_size is cut
    into several.

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
        self.document_windows = None  # (N, 3), with an eos token
        if eos is None:
            # one fewer than fit, so that there is room for the offset
            self.windows_per_epoch = len(split.tokens) // block_size - 1
        else:
            self.document_windows = find_windows(split.tokens, block_size, eos, stride=block_size)
            self.windows_per_epoch = len(self.document_windows)
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the training split has {len(split.tokens)} tokens, too few for "
                f"block_size={block_size}; it needs {2 * block_size}: use a longer corpus or a "
                "smaller block_size"
            )
        # The windows of a step usually come from one epoch, or from two.
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, first_window: int) -> list[Batch]:
        """Make this rank's micro-batches of a step that begins after `first_window` windows.

        Each is (micro_batch_size, block_size); the last may have fewer rows.
        """
        micro_batches = []
        for number in range(self.rank, self.num_micro_batches, self.world_size):
            start = number * self.micro_batch_size
            end = min(start + self.micro_batch_size, self.batch_size)
            rows = range(start, end)  # of the batch of all ranks
            windows = np.concatenate([self._window(first_window + row) for row in rows])
            micro_batches.append(cut(self.split, windows, self.block_size, number))
        return micro_batches

    @property
    def num_micro_batches(self) -> int:
        """How many micro-batches a step has, on all ranks together."""
        return math.ceil(self.batch_size / self.micro_batch_size)

    def epochs(self, windows: int) -> float:
        """Return how many epochs a number of windows is."""
        return windows / self.windows_per_epoch

    def read_and_unread(self, num_read: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide the first epoch: the `num_read` windows that training reads first, and the rest.

        (N, 3) each, in the order of the text. After training the loss on both is compared.
        """
        order, offset = self._epoch(0)
        read = np.sort(order[:num_read])
        unread = np.sort(order[num_read:])
        return self._windows_at(read, offset), self._windows_at(unread, offset)

    def _window(self, number: int) -> np.ndarray:
        """Find the window that training reads after `number` others; (1, 3)."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order, offset = self._epoch(epoch)
        return self._windows_at(order[place : place + 1], offset)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, int]:
        """Draw an epoch's order of windows, as places 0, 1, 2, ... in the text, and their offset.

        If the offset were always below block_size, the last len % block_size tokens would never be
        read. So odd epochs add len % block_size to the offset. Example: 11 tokens, and a block_size
        of 4. Two windows fit, and one is kept, so that there is room for the offset. In even epochs
        it starts at 0, 1, 2 or 3, so its targets end with token 4, 5, 6 or 7. In odd epochs it
        starts 11 % 4 = 3 later, so they end with token 7, 8, 9 or 10, the last one.
        """
        rng = np.random.default_rng((self.seed, epoch))
        offset = 0
        if self.document_windows is None:
            offset = int(rng.integers(self.block_size))
            if epoch % 2 == 1:
                offset += len(self.split.tokens) % self.block_size
        order = rng.permutation(self.windows_per_epoch)
        smallest_type = np.min_scalar_type(self.windows_per_epoch)  # there may be millions
        return order.astype(smallest_type), offset

    def _windows_at(self, places: np.ndarray, offset: int) -> np.ndarray:
        """Make the windows at these places in the text, (N, 3)."""
        if self.document_windows is not None:
            return self.document_windows[places]
        windows = np.zeros((len(places), 3), np.int64)
        windows[:, 0] = places.astype(np.int64) * self.block_size + offset  # start
        windows[:, 1] = self.block_size  # length
        return windows


def cut(split: Split, windows: np.ndarray, block_size: int, number: int = 0) -> Batch:
    """Make a batch with a row for each window (N, 3).

    A short window is padded with its first token, and the padding is masked. So are the tokens that
    `split.unmasked`, a bool for each token, leaves out. `split.take` gives tokens at positions.
    """
    start, length, skip = np.split(windows, 3, axis=1)  # (N, 1) each
    t = np.arange(block_size)  # (T,)
    is_in_window = t < length  # (N, T)
    position = start + np.where(is_in_window, t, 0)  # (N, T), of the inputs
    is_target = is_in_window & (t >= skip)
    if split.unmasked is not None:
        is_target &= split.unmasked[position + 1]
    targets = np.where(is_target, split.take(position + 1), IGNORE_INDEX)
    return Batch(split.take(position), targets, number)
