"""The prepared tokens of a split, as memory maps: of one file, or of many as one array."""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from config.errors import DamagedError, UserError
from data.arrays import MASK, TOKENS, load_array
from data.documents import Split


class Shards:
    """Shows the tokens of several files as one array, of which parts can be taken."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.parts = [load_array(path, TOKENS) for path in paths]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype
        self.shape = (int(self.ends[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> np.ndarray:
        if isinstance(at, slice):
            at = np.arange(*at.indices(len(self)))
        at = np.asarray(at)
        at = np.where(at < 0, at + len(self), at)
        number = np.searchsorted(self.ends, at, side="right")  # of the part that has each token
        taken = np.empty(at.shape, self.dtype)
        for n in np.unique(number):
            part = self.parts[n]
            start = self.ends[n] - len(part)
            here = number == n
            taken[here] = part[at[here] - start]
        return taken

    def max(self) -> int:
        return max(int(part.max()) for part in self.parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts, dtype=dtype)


def load_split(folder: Path, name: str, vocab_size: int) -> Split:
    """Open the tokens of a split, and its mask if there is one.

    DamagedError if a file is missing or holds another array; UserError if it cannot be opened.
    """
    shards = sorted(folder.glob(f"{name}-*.npy"))
    whole = folder / f"{name}.npy"
    if not shards and not whole.exists():
        raise DamagedError(
            f"{folder}: its {name} split is gone; remove the folder, and prepare it again"
        )
    try:
        if len(shards) > 1:
            tokens = cast(np.ndarray, Shards(shards))
            return Split(tokens, None, vocab_size, folder / f"{name}-*.npy")
        path = shards[0] if shards else whole
        tokens = load_array(path, TOKENS)
        mask = load_mask(folder / f"{name}_unmasked.npy", len(tokens))
        return Split(tokens, mask, vocab_size, path)
    except OSError as error:
        remedy = ""
        if error.errno == errno.EMFILE:
            remedy = "; allow more of them, for example with ulimit -n 8192"
        raise UserError(f"{folder}: cannot be read: {error}{remedy}") from None


def load_mask(path: Path, length: int) -> np.ndarray | None:
    """Open the mask of a split with so many tokens; None if there is none."""
    if not path.exists():
        return None
    mask = load_array(path, MASK)
    if len(mask) != length:
        raise DamagedError(f"{path}: has {len(mask):,} values for {length:,} tokens")
    return mask
