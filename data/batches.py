"""Batches: which tokens a step sees is a pure function of (corpus, seed, step).

So resuming needs no loader state, and any number of ranks or micro-batches sees the same tokens.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from errors import UserError
from loss import IGNORE_INDEX

EVAL_BATCH_TOKENS = 4096  # in a forward pass; their logits take 4096 V floats


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where none is to be scored."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64


class TrainBatches:
    """Windows of a token array without replacement; shuffled and shifted anew each epoch."""

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int) -> None:
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.windows = (len(tokens) - block_size) // block_size  # in an epoch, wherever it is shifted to
        if self.windows < 1:
            raise UserError(f"the training split has {len(tokens)} tokens, too few for block_size={block_size}; it "
                            f"needs {2 * block_size}: use a longer corpus or a smaller block_size")
        self._epoch = lru_cache(maxsize=2)(self._shuffle)  # a batch may straddle two epochs

    def __call__(self, step: int) -> Batch:
        """The batch of step 0, 1, 2, ...: `(batch_size, block_size)`."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(places, self.windows)
        starts = np.concatenate([self._epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        windows = self.tokens[starts[:, None] + np.arange(self.block_size + 1)]
        return Batch(windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64))

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        shift = rng.integers(self.block_size)
        return shift + self.block_size * rng.permutation(self.windows)


def eval_batches(tokens: np.ndarray, block_size: int, stride: int = 0) -> Iterator[Batch]:
    """Every token but the first as a target, exactly once, in order; the last window is padded.

    The windows move on by `stride` tokens, 1 to block_size; 0 stands for block_size, windows side by side.
    Where they overlap, a window after the first scores only its last `stride` tokens: they have at
    least block_size - stride tokens before them.

    >>> [batch.targets.tolist() for batch in eval_batches(np.arange(8), block_size=4, stride=2)]
    [[[1, 2, 3, 4], [-100, -100, 5, 6], [-100, -100, 7, -100]]]
    """
    stride, scored = stride or block_size, len(tokens) - 1
    windows = 1 + max(0, -(-(scored - block_size) // stride))
    batch_size = max(1, EVAL_BATCH_TOKENS // block_size)
    for first in range(0, windows, batch_size):
        starts = stride * np.arange(first, min(first + batch_size, windows))[:, None]
        places = starts + np.arange(block_size)  # of the inputs (B, T)
        inputs = tokens[np.minimum(places, scored)].astype(np.int64)
        targets = tokens[np.minimum(places + 1, scored)].astype(np.int64)
        scored_before = (places < starts + block_size - stride) & (starts > 0)
        targets[scored_before | (places >= scored)] = IGNORE_INDEX
        yield Batch(inputs, targets)
