"""Windows: how a text is cut into stretches that a model reads.

Windows of a text are an array (N, 3) with a row for each: where its inputs start, how many targets
follow them one by one, and how many of these targets, the first ones, are masked because another
window has them.
"""

import numpy as np

from data.documents import Split

MANY_EMPTY = 0.01  # a share of windows without a target that is worth a line
GOLDEN_RATIO = (5**0.5 - 1) / 2


def find_windows(tokens: np.ndarray, block_size: int, eos: int | None, stride: int) -> np.ndarray:
    """Cut a text into windows of block_size targets that move on by `stride`; returns (N, 3).

    With an `eos` token each document is cut by itself, from its eos token to the next one.

    >>> find_windows(np.array([9, 1, 2, 3, 9, 4, 9]), 3, eos=9, stride=3).tolist()
    [[0, 3, 0], [3, 1, 0], [4, 2, 0]]
    >>> find_windows(np.arange(8), 4, eos=None, stride=2).tolist()  # 1 to 7 are targets once each
    [[0, 4, 0], [2, 4, 2], [4, 3, 2]]
    """
    # A document is what lies between two borders. Its first token is an input only, and its last
    # token is a target only, so a document of n + 1 tokens has n targets.
    borders = np.array([0, len(tokens) - 1])
    if eos is not None:
        borders = np.union1d(borders, np.flatnonzero(tokens == eos))
    lengths = np.diff(borders)

    # The first window of a document has block_size targets, each further one `stride` new targets.
    remaining = np.maximum(0, lengths - block_size)
    num_windows = 1 + (remaining + stride - 1) // stride

    # Of each window: its document, and how far from the start of the document it starts.
    document = np.repeat(np.arange(len(lengths)), num_windows)
    first_window = np.cumsum(num_windows) - num_windows
    offset = stride * (np.arange(len(document)) - first_window[document])

    starts = borders[document] + offset
    targets = np.minimum(lengths[document] - offset, block_size)
    masked = np.where(offset > 0, block_size - stride, 0)  # the window before has them
    return np.stack([starts, targets, masked], axis=1)


def count_targets(split: Split, windows: np.ndarray) -> np.ndarray:
    """Count the targets in each window (N, 3) of a text, (N,)."""
    starts, lengths, skips = windows.T
    if split.unmasked is None:
        return lengths - skips
    unmasked = np.asarray(split.unmasked)  # slices of a memory map itself take longer
    firsts = starts + skips + 1  # the first token of each window that may be a target,
    ends = starts + lengths + 1  # and the token after the last
    counts = []
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        counts.append(np.count_nonzero(unmasked[first:end]))
    return np.array(counts, dtype=np.int64)


def choose_windows(counts: np.ndarray, max_tokens: int) -> np.ndarray:
    """Choose windows that have about max_tokens targets together; returns indices in order.

    `counts` (N,) are the targets of each window. Each window has the same chance, however many
    targets it has: otherwise some kinds of text would weigh more than they do in the whole text.
    """
    if len(np.unique(counts[1:-1])) <= 1:  # of a text without documents and masks
        wanted = max(1, round(len(counts) * max_tokens / counts.sum()))
        evenly = np.linspace(0, len(counts) - 1, wanted)
        return evenly.round().astype(int)
    # The first n multiples of the golden ratio, modulo 1, are spread evenly, whatever n is.
    order = np.argsort(np.arange(len(counts)) * GOLDEN_RATIO % 1)
    targets = np.cumsum(counts[order])  # in the first 1, 2, ... windows of that order
    wanted = 1 + int(np.abs(targets - max_tokens).argmin())
    return np.sort(order[:wanted])


def describe_empty_windows(split: Split, block_size: int, eos: int | None) -> list[str]:
    """Warn in two lines if many of the windows of a split have no target; else no line."""
    if split.unmasked is None:
        return []
    windows = find_windows(split.tokens, block_size, eos, stride=block_size)
    empty = int((count_targets(split, windows) == 0).sum())
    if empty < len(windows) * MANY_EMPTY:
        return []
    return [
        f"{empty:,} of the {len(windows):,} training windows of {block_size:,} tokens have no "
        "target: prompts, or what is masked, fill them.",
        "  Nothing is learned from them, but they take time: use shorter prompts or "
        "a larger --block_size.",
    ]
