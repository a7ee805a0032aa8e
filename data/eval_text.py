"""A text to evaluate, as batches in which each token is a target once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from config.errors import UserError
from data.batches import Batch, cut
from data.documents import Split
from data.windows import choose_windows, count_targets, find_windows


@dataclass(frozen=True)
class EvalText:
    """Makes every token of a split but the first a target exactly once, in order.

    Windows of block_size tokens move on by `stride`, 1 to block_size; 0 means block_size, windows
    side by side. Where windows overlap, a token is a target in the first of them only. Windows
    without a target are left out. With `max_tokens`, only about so many targets are evaluated, in
    whole windows and at least one: the windows are then spread evenly over the split, so that every
    part of it counts.

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
    min_batches: int = 1  # of a text with so many windows
    batch_tokens: int = 2048  # in one forward pass
    # windows (N, 3), to evaluate no others; then `stride` is not used
    only: np.ndarray | None = None

    @cached_property
    def windows(self) -> np.ndarray:
        """The windows to evaluate, (N, 3), in order; each has a target. UserError without any."""
        if self.split.num_targets() == 0:
            raise UserError(
                "nothing to evaluate: the text has no target; it is shorter than two "
                "tokens, or all of it is masked"
            )
        windows = self.only
        if windows is None:
            stride = self.stride or self.block_size
            windows = find_windows(self.split.tokens, self.block_size, self.eos, stride)
        counts = count_targets(self.split, windows)
        windows = windows[counts > 0]
        counts = counts[counts > 0]
        if self.max_tokens == 0 or self.max_tokens >= counts.sum():
            return windows
        return windows[choose_windows(counts, self.max_tokens)]

    def batches(self) -> Iterator[Batch]:
        """Cut the windows into batches; windows that are not full are padded."""
        for first in range(0, len(self.windows), self.rows):
            yield cut(self.split, self.windows[first : first + self.rows], self.block_size)

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.windows) / self.rows)

    @property
    def rows(self) -> int:
        """How many windows a batch has."""
        fit = self.batch_tokens // self.block_size
        most = len(self.windows) // self.min_batches
        return max(1, min(fit, most))

    @cached_property
    def positions(self) -> np.ndarray:
        """The place of each target in the split, (N,)."""
        of_each_window = []
        for start, length, skip in self.windows.tolist():
            of_each_window.append(np.arange(start + skip, start + length) + 1)
        places = np.concatenate(of_each_window)
        if self.split.unmasked is None:
            return places
        return places[self.split.unmasked[places]]
