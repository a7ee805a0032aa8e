"""Batches: which tokens a step sees is a pure function of (corpus, seed, step).

So resuming needs no state of a loader, and any number of ranks or micro-batches sees the same tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from config.errors import UserError
from data.documents import Split

IGNORE_INDEX = -100  # the target of a masked position
EVAL_BATCH_TOKENS = 8192  # in one forward pass


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where it is masked."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    number: int = 0  # of a micro-batch, in its global batch

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())


@dataclass(frozen=True)
class Windows:
    """Windows of a text, each a row of a batch."""

    starts: np.ndarray  # (N,) where the inputs start
    lengths: np.ndarray  # (N,) how many targets there are; the rest of the row is padding
    skips: np.ndarray  # (N,) the first targets that are masked, because another window has them

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: slice | np.ndarray) -> "Windows":
        return Windows(self.starts[rows], self.lengths[rows], self.skips[rows])


class TrainBatches:
    """Windows of a split without replacement, in a new order each epoch, and at a new offset where text runs on.

    With an `eos` token, each window is a document, padded, or cut where it is longer than a block. A rank of
    `world_size` makes only its own micro-batches: rank, rank + world_size, ...
    """

    def __init__(self, split: Split, block_size: int, batch_size: int, seed: int, eos: int | None = None,
                 micro_batch_size: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.split, self.block_size, self.batch_size, self.seed = split, block_size, batch_size, seed
        self.micro_batch_size = micro_batch_size or -(-batch_size // world_size)
        self.rank, self.world_size = rank, world_size
        windows = find_windows(split.tokens, block_size, eos, stride=block_size)
        self.offsets = block_size if eos is None else 1
        if eos is None:  # leave room for the offset, and no padding
            windows = windows.take(slice((len(split.tokens) - block_size) // block_size))
        self.windows, self.windows_per_epoch = windows, len(windows)
        if self.windows_per_epoch < 1:
            raise UserError(f"the training split has {len(split.tokens)} tokens, too few for block_size={block_size}; "
                            f"it needs {2 * block_size}: use a longer corpus or a smaller block_size")
        self._epoch = lru_cache(maxsize=2)(self._shuffle)  # a batch may need two epochs

    def __call__(self, step: int) -> list[Batch]:
        """This rank's micro-batches of step 0, 1, 2, ...: (micro_batch_size, block_size) each."""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        micro_batches = range(0, self.batch_size, self.micro_batch_size)
        own = range(self.rank, len(micro_batches), self.world_size)
        return [self._cut(numbers[micro_batches[number]:][:self.micro_batch_size], number) for number in own]

    def _cut(self, numbers: np.ndarray, number: int) -> Batch:
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        rows, offsets = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in np.unique(epochs):
            order, offset = self._epoch(int(epoch))
            rows[epochs == epoch], offsets[epochs == epoch] = order[places[epochs == epoch]], offset
        windows = self.windows.take(rows)
        windows = Windows(windows.starts + offsets, windows.lengths, windows.skips)
        return cut(self.split, windows, self.block_size)._replace(number=number)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((self.seed, epoch))
        offset = int(rng.integers(self.offsets))
        return rng.permutation(self.windows_per_epoch), offset


@dataclass(frozen=True)
class EvalText:
    """A split to evaluate: every token but the first is a target exactly once, in order.

    Windows of block_size tokens move on by `stride`, 1 to block_size; 0 means block_size, windows side by side. Where
    windows overlap, a token is a target in the first of them only. With `max_tokens`, only about so many tokens are
    targets: the windows are then spread evenly over the split, so that every part of it counts.

    >>> text = EvalText(Split(np.arange(8)), block_size=4, stride=2)
    >>> [batch.targets.tolist() for batch in text.batches()]
    [[[1, 2, 3, 4], [-100, -100, 5, 6], [-100, -100, 7, -100]]]
    >>> EvalText(Split(np.arange(9)), block_size=2, max_tokens=4).positions.tolist()
    [1, 2, 7, 8]
    """

    split: Split
    block_size: int
    eos: int | None = None
    stride: int = 0
    max_tokens: int = 0

    @cached_property
    def windows(self) -> Windows:
        windows = find_windows(self.split.tokens, self.block_size, self.eos, self.stride or self.block_size)
        wanted = max(1, round(len(windows) * self.max_tokens / (len(self.split.tokens) - 1)))
        if not self.max_tokens or wanted >= len(windows):
            return windows
        return windows.take(np.linspace(0, len(windows) - 1, wanted).round().astype(int))

    def batches(self) -> Iterator[Batch]:
        """Windows that are not full are padded."""
        for windows in self._groups(EVAL_BATCH_TOKENS):
            yield cut(self.split, windows, self.block_size)

    @cached_property
    def positions(self) -> np.ndarray:
        """The place in the split of each target, (N,)."""
        parts = (_find_targets(self.split, windows, self.block_size) for windows in self._groups(2**20))
        return np.concatenate([at[is_target] + 1 for at, is_target in parts])

    def _groups(self, max_tokens: int) -> Iterator[Windows]:
        rows = max(1, max_tokens // self.block_size)
        for first in range(0, len(self.windows), rows):
            yield self.windows.take(slice(first, first + rows))


def find_windows(tokens: np.ndarray, block_size: int, eos: int | None, stride: int) -> Windows:
    """The windows of a text; with an `eos` token, none reaches from one document into the next.

    >>> windows = find_windows(np.array([9, 1, 2, 3, 9, 4, 9]), 3, eos=9, stride=3)
    >>> windows.starts.tolist(), windows.lengths.tolist(), windows.skips.tolist()
    ([0, 3, 4], [3, 1, 2], [0, 0, 0])
    """
    borders = np.array([0, len(tokens) - 1])
    if eos is not None:
        borders = np.union1d(borders, np.flatnonzero(tokens == eos))
    lengths = np.diff(borders)  # of the documents, or of the text
    pieces = 1 + np.maximum(0, -(-(lengths - block_size) // stride))
    offsets = stride * (np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return Windows(np.repeat(borders[:-1], pieces) + offsets,
                   np.minimum(np.repeat(lengths, pieces) - offsets, block_size),
                   np.where(offsets > 0, block_size - stride, 0))


def cut(split: Split, windows: Windows, block_size: int) -> Batch:
    """A batch with a row for each window. Padding repeats the window's first token, and is masked."""
    at, is_target = _find_targets(split, windows, block_size)
    return Batch(split.tokens[at].astype(np.int64),
                 np.where(is_target, split.tokens[at + 1].astype(np.int64), IGNORE_INDEX))


def _find_targets(split: Split, windows: Windows, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the inputs of windows are in the split, and whether the token after each is a target, (B, T) each."""
    offsets, starts = np.arange(block_size), windows.starts[:, None]
    inside = offsets < windows.lengths[:, None]
    at = np.where(inside, starts + offsets, starts)
    is_target = inside & (offsets >= windows.skips[:, None])
    return at, is_target if split.unmasked is None else is_target & split.unmasked[at + 1]
