"""Batches: which tokens a step sees is a pure function of (corpus, seed, step).

So resuming needs no loader state, and any number of ranks or micro-batches sees the same tokens.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.documents import Split
from data.ngrams import part_of
from errors import UserError
from loss import IGNORE_INDEX

EVAL_BATCH_TOKENS = 4096  # in a forward pass


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where none is to be scored."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    left_out: np.ndarray  # (B, T) int64, the part of the training split that a target is in, 1 ... PARTS; 0 = none


class TrainBatches:
    """Windows of a split without replacement; shuffled anew each epoch, and shifted where text runs on.

    With an `end` token, a window is a document, padded, or cut where it is longer than a block.
    """

    def __init__(self, split: Split, block_size: int, batch_size: int, seed: int, end: int | None = None) -> None:
        self.split, self.block_size, self.batch_size, self.seed = split, block_size, batch_size, seed
        self.starts, self.lengths, _ = find_windows(split.tokens, block_size, end, stride=block_size)
        self.shifts = block_size if end is None else 1
        if end is None:  # leave room to shift, and none to pad
            self.starts = self.starts[: (len(split.tokens) - block_size) // block_size]
        self.windows = len(self.starts)  # in an epoch, wherever they are shifted to
        if self.windows < 1:
            raise UserError(f"the training split has {len(split.tokens)} tokens, too few for block_size={block_size}; "
                            f"it needs {2 * block_size}: use a longer corpus or a smaller block_size")
        self._epoch = lru_cache(maxsize=2)(self._shuffle)  # a batch may straddle two epochs

    def __call__(self, step: int) -> Batch:
        """The batch of step 0, 1, 2, ...: `(batch_size, block_size)`."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(places, self.windows)
        rows = [self._epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        starts, lengths = np.concatenate(rows).T
        return cut(self.split, starts, lengths, self.block_size, training=True)

    def _shuffle(self, epoch: int) -> np.ndarray:
        """(start, length) of each window, `(windows, 2)`."""
        rng = np.random.default_rng((self.seed, epoch))
        shift = rng.integers(self.shifts)
        order = rng.permutation(self.windows)
        return np.stack([shift + self.starts[order], self.lengths[order]], axis=1)


def eval_batches(split: Split, block_size: int, end: int | None = None, stride: int = 0) -> Iterator[Batch]:
    """Every token but the first as a target, exactly once, in order; windows that are not full are padded.

    Windows move on by `stride` tokens, 1 to block_size; 0 stands for block_size, windows side by side. Where
    they overlap, all but a text's first score only their last `stride` tokens, which have others before them.

    >>> [batch.targets.tolist() for batch in eval_batches(Split(np.arange(8)), block_size=4, stride=2)]
    [[[1, 2, 3, 4], [-100, -100, 5, 6], [-100, -100, 7, -100]]]
    """
    starts, lengths, skips = find_windows(split.tokens, block_size, end, stride or block_size)
    batch_size = max(1, EVAL_BATCH_TOKENS // block_size)
    for first in range(0, len(starts), batch_size):
        here = slice(first, first + batch_size)
        yield cut(split, starts[here], lengths[here], block_size, skips[here])


def find_windows(tokens: np.ndarray, block_size: int, end: int | None, stride: int
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where windows start, how many targets each has, and how many of those the window before has scored already.

    With an `end` token, none reaches from one document into the next.

    >>> [array.tolist() for array in find_windows(np.array([9, 1, 2, 3, 9, 4, 9]), 3, end=9, stride=3)]
    [[0, 3, 4], [3, 1, 2], [0, 0, 0]]
    """
    borders = np.array([0, len(tokens) - 1])
    if end is not None:
        borders = np.union1d(borders, np.flatnonzero(tokens == end))
    lengths = np.diff(borders)  # of the documents, or the text
    pieces = 1 + np.maximum(0, -(-(lengths - block_size) // stride))
    offsets = stride * (np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return (np.repeat(borders[:-1], pieces) + offsets, np.minimum(np.repeat(lengths, pieces) - offsets, block_size),
            np.where(offsets > 0, block_size - stride, 0))


def cut(split: Split, starts: np.ndarray, lengths: np.ndarray, block_size: int, skips: np.ndarray | None = None,
        training: bool = False) -> Batch:
    """The windows at `starts`, `(B,)`, as rows; beyond their `lengths` the first token is repeated, and not scored.

    Nor are the first `skips` targets of each, `(B,)`. In `training` each target has its part left out.
    """
    offsets = np.arange(block_size)
    inside = offsets < lengths[:, None]  # (B, T)
    at = np.where(inside, starts[:, None] + offsets, starts[:, None])
    scored = inside if split.scored is None else inside & split.scored[at + 1]
    if skips is not None:
        scored = scored & (offsets >= skips[:, None])
    return Batch(split.tokens[at].astype(np.int64),
                 np.where(scored, split.tokens[at + 1].astype(np.int64), IGNORE_INDEX),
                 part_of(at + 1, len(split.tokens)) if training else np.zeros_like(at))
