"""Batches: which tokens a step sees is a pure function of (corpus, seed, first window, batch_size).

So resuming needs no state of a loader, only the number of windows that were read, and any number of
ranks or micro-batches sees the same tokens. Windows of a text are an array (N, 3), a row for each:
where its inputs start, how many targets it has, and how many of these, the first ones, are masked
because another window has them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from config.errors import UserError
from data.documents import Split

IGNORE_INDEX = -100  # the target of a masked position
MANY_EMPTY = 0.01  # a share of windows without a target that is worth a line
GOLDEN_RATIO = (5**0.5 - 1) / 2
WINDOWS_COUNTED = 4096  # at once, so that memory does not grow with the text


class Batch(NamedTuple):
    """`targets[b, t]` is the token after `inputs[b, t]`, or IGNORE_INDEX where it is masked."""

    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64
    number: int = 0  # of a micro-batch, in its global batch

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())


class TrainBatches:
    """Windows of a split without replacement, in a new order each epoch.

    Where text runs on, an epoch's windows lie side by side, from an offset below block_size that is
    drawn for each epoch. In every second epoch the remainder of len(tokens) / block_size is added,
    so that the windows can end with the text. An epoch leaves out less than two blocks at the ends
    of the text; over the epochs each token but the first becomes a target.

    With an `eos` token, each window is a document, padded, or cut where it is longer than a block;
    each token but the first is then a target in every epoch. A rank of `world_size` makes only its
    own micro-batches: rank, rank + world_size, ...
    """

    def __init__(
        self,
        split: Split,
        block_size: int,
        batch_size: int,
        seed: int,
        eos: int | None = None,
        micro_batch_size: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split, self.block_size, self.batch_size, self.seed, self.eos = (
            split,
            block_size,
            batch_size,
            seed,
            eos,
        )
        self.micro_batch_size = micro_batch_size or -(-batch_size // world_size)
        self.rank, self.world_size = rank, world_size
        self.documents = (
            None if eos is None else find_windows(split.tokens, block_size, eos, stride=block_size)
        )
        # Side by side, with room for the offset, and without padding; or each document.
        self.windows_per_epoch = (
            len(split.tokens) // block_size - 1 if self.documents is None else len(self.documents)
        )
        if self.windows_per_epoch < 1:
            raise UserError(
                f"the training split has {len(split.tokens)} tokens, too few for block_size={block_size}; "
                f"it needs {2 * block_size}: use a longer corpus or a smaller block_size"
            )
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, first_window: int) -> list[Batch]:
        """This rank's micro-batches of a step, (micro_batch_size, block_size) each.

        `first_window` is the number of windows that were read in the steps before.
        """
        numbers = range(first_window, first_window + self.batch_size)
        micro_batches = [
            numbers[i : i + self.micro_batch_size]
            for i in range(0, self.batch_size, self.micro_batch_size)
        ]
        return [
            cut(
                self.split,
                np.array([self._window(n) for n in micro_batches[number]]),
                self.block_size,
                number,
            )
            for number in range(self.rank, len(micro_batches), self.world_size)
        ]

    @property
    def num_micro_batches(self) -> int:
        """Of a step, on all ranks together."""
        return math.ceil(self.batch_size / self.micro_batch_size)

    def epochs(self, windows: int) -> float:
        """How often the text was read when so many windows were."""
        return windows / self.windows_per_epoch

    def read_and_unread(self, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows of the first epoch that are among the first `windows`, and those that are
        not.

        (N, 3) each, in the order of the text.
        """
        order, offset = self._epoch(0)
        places = np.sort(order[:windows]), np.sort(order[windows:])
        if self.documents is not None:
            return self.documents[places[0]], self.documents[places[1]]
        read, unread = (place.astype(np.int64) * self.block_size + offset for place in places)
        return self._full_windows(read), self._full_windows(unread)

    def _full_windows(self, starts: np.ndarray) -> np.ndarray:
        """Windows of block_size targets, (N, 3), that start there."""
        return np.stack(
            [starts, np.full_like(starts, self.block_size), np.zeros_like(starts)], axis=1
        )

    def _window(self, number: int) -> np.ndarray:
        """The window that comes as number 0, 1, 2, ... in training."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order, offset = self._epoch(epoch)
        if self.documents is None:
            return np.array([int(order[place]) * self.block_size + offset, self.block_size, 0])
        return self.documents[order[place]]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, int]:
        """The order of the windows, and the offset of the first."""
        rng = np.random.default_rng((self.seed, epoch))
        offset = int(rng.integers(self.block_size if self.eos is None else 1))
        if epoch % 2 == 1 and self.eos is None:
            offset += len(self.split.tokens) % self.block_size  # the last tokens may be targets too
        order = rng.permutation(self.windows_per_epoch)
        # small, where there are millions
        return order.astype(np.min_scalar_type(self.windows_per_epoch)), offset


@dataclass(frozen=True)
class EvalText:
    """A split to evaluate: every token but the first is a target exactly once, in order.

    Windows of block_size tokens move on by `stride`, 1 to block_size; 0 means block_size, windows
    side by side. Where windows overlap, a token is a target in the first of them only. Windows
    without a target are left out. With `max_tokens`, only so many targets are evaluated, as near as
    whole windows allow and one window at least: the windows are then spread evenly over the split,
    so that every part of it counts.

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
        """The windows to evaluate, (N, 3), in order; each has a target. UserError if there is none."""
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
        """Windows that are not full are padded."""
        for first in range(0, len(self.windows), self.rows):
            yield cut(self.split, self.windows[first : first + self.rows], self.block_size)

    @property
    def num_batches(self) -> int:
        return -(-len(self.windows) // self.rows)

    @property
    def rows(self) -> int:
        """Windows in a batch."""
        return max(
            1, min(self.batch_tokens // self.block_size, len(self.windows) // self.min_batches)
        )

    @cached_property
    def positions(self) -> np.ndarray:
        """The place in the split of each target, (N,)."""
        places = np.concatenate(
            [
                np.arange(start + skip, start + length) + 1
                for start, length, skip in self.windows.tolist()
            ]
        )
        return places if self.split.unmasked is None else places[self.split.unmasked[places]]


def find_windows(tokens: np.ndarray, block_size: int, eos: int | None, stride: int) -> np.ndarray:
    """The windows of a text, (N, 3); with an `eos` token, none reaches from one document into the
    next.

    >>> find_windows(np.array([9, 1, 2, 3, 9, 4, 9]), 3, eos=9, stride=3).tolist()
    [[0, 3, 0], [3, 1, 0], [4, 2, 0]]
    """
    borders = np.array([0, len(tokens) - 1])
    if eos is not None:
        borders = np.union1d(borders, np.flatnonzero(tokens == eos))
    lengths = np.diff(borders)  # of the documents, or of the text
    pieces = 1 + np.maximum(0, -(-(lengths - block_size) // stride))
    offsets = stride * (np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    return np.stack(
        [
            np.repeat(borders[:-1], pieces) + offsets,
            np.minimum(np.repeat(lengths, pieces) - offsets, block_size),
            np.where(offsets > 0, block_size - stride, 0),
        ],
        axis=1,
    )


def count_targets(split: Split, windows: np.ndarray) -> np.ndarray:
    """The number of targets in each window of a text, (N,); the windows are in its order."""
    starts, lengths, skips = windows.T
    if split.unmasked is None:
        return lengths - skips
    firsts = starts + skips + 1  # the first token of each window that may be a target,
    ends = starts + lengths + 1  # and the token after the last
    counts = np.empty(len(windows), dtype=np.int64)
    for start in range(0, len(windows), WINDOWS_COUNTED):
        few = slice(start, start + WINDOWS_COUNTED)
        first = firsts[few][0]
        unmasked = np.append(split.unmasked[first : ends[few][-1]], False)
        bounds = np.stack([firsts[few], ends[few]], axis=1).ravel() - first
        # not what is between windows
        counts[few] = np.add.reduceat(unmasked, bounds, dtype=np.int64)[::2]
    return counts


def describe_empty_windows(split: Split, block_size: int, eos: int | None) -> list[str]:
    """A line if many of the windows in which a split is read have no target; else none."""
    if split.unmasked is None:
        return []
    windows = find_windows(split.tokens, block_size, eos, stride=block_size)
    empty = int((count_targets(split, windows) == 0).sum())
    if empty < len(windows) * MANY_EMPTY:
        return []
    return [
        f"{empty:,} of the {len(windows):,} training windows of {block_size:,} tokens have no target: prompts, or "
        "what is masked, fill them.",
        "  Nothing is learned from them, but they take time: use shorter prompts or "
        "a larger --block_size.",
    ]


def choose_windows(counts: np.ndarray, max_tokens: int) -> np.ndarray:
    """Windows that have about max_tokens targets together; `counts` (N,) are the targets of each
    window.

    Returns indices in order. Each window has the same chance, however many targets it has:
    otherwise some kinds of text would weigh more than they do in the whole text.
    """
    if len(np.unique(counts[1:-1])) <= 1:  # of a text without documents and masks
        wanted = max(1, round(len(counts) * max_tokens / counts.sum()))
        return np.linspace(0, len(counts) - 1, wanted).round().astype(int)
    # The first n multiples of the golden ratio, modulo 1, are spread evenly, whatever n is.
    order = np.argsort(np.arange(len(counts)) * GOLDEN_RATIO % 1)
    targets = np.cumsum(counts[order])  # in the first 1, 2, ... windows of that order
    wanted = 1 + int(np.abs(targets - max_tokens).argmin())
    return np.sort(order[:wanted])


def cut(split: Split, windows: np.ndarray, block_size: int, number: int = 0) -> Batch:
    """A batch with a row for each window. Padding repeats the window's first token, and is masked."""
    starts, lengths, skips = windows.T[:, :, None]  # (N, 1) each
    t = np.arange(block_size)
    at = starts + np.where(t < lengths, t, 0)  # (N, block_size)
    is_target = (skips <= t) & (t < lengths)
    if split.unmasked is not None:
        is_target &= split.unmasked[at + 1]
    targets = np.where(is_target, split.take(at + 1), IGNORE_INDEX)
    return Batch(split.take(at), targets, number)
