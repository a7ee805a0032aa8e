"""A large corpus as shards of tokens, and shards as one array.

`write_shards` encodes documents with all cores, and keeps what is done: shards.jsonl has a line for
each finished pair of train-NNNNN-0.npy and val-NNNNN-0.npy, so that a killed preparation goes on
with the documents after them. Memory does not grow with the corpus: few pieces of text and one pair
of shards are in it at a time.
"""

import errno
import itertools
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
from pydantic import AfterValidator, TypeAdapter, ValidationError

from config.errors import DamagedError, UserError
from config.files import write_atomically
from config.schema import Count
from data.arrays import MASK, TOKENS, check_whole, load_array, write_array
from data.documents import Split
from data.sources import Text
from data.tokenizer import Tokenizer

SHARD_BYTES = 200_000_000  # of a file, at most
PIECE = 2**22  # characters that a thread encodes at a time, about
MAX_WAITING = 40  # pieces in memory, so that is how many cores can work


def check_splits(sizes: dict[str, int]) -> dict[str, int]:
    if sizes.keys() != {"train", "val"}:
        raise ValueError("should have a size of train and of val")
    return sizes


Sizes = Annotated[dict[str, Count], AfterValidator(check_splits)]


class Shard(NamedTuple):
    """A line of shards.jsonl: what has been done, up to and with this pair of files."""

    pieces: Count
    documents: Sizes
    tokens: Sizes


SHARD = TypeAdapter(Shard)


class Shards:
    """The tokens of several files, as one array of which parts can be taken."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.parts = [load_array(path, TOKENS) for path in paths]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype, self.shape = self.parts[0].dtype, (int(self.ends[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> np.ndarray:
        if isinstance(at, slice):
            at = np.arange(*at.indices(len(self)))
        at = np.asarray(at)
        at = np.where(at < 0, at + len(self), at)
        number = np.searchsorted(self.ends, at, side="right")
        taken = np.empty(at.shape, self.dtype)
        for part in np.unique(number):
            here = number == part
            taken[here] = self.parts[part][at[here] - (self.ends[part] - len(self.parts[part]))]
        return taken

    def max(self) -> int:
        return max(int(part.max()) for part in self.parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts, dtype=dtype)


def load_split(folder: Path, name: str, vocab_size: int) -> Split:
    """Its tokens, and which are not masked, as memory maps.

    DamagedError if a file is missing or holds another array; UserError if it cannot be opened.
    """
    shards = sorted(folder.glob(f"{name}-*.npy"))
    whole, unmasked = folder / f"{name}.npy", folder / f"{name}_unmasked.npy"
    if not shards and not whole.exists():
        raise DamagedError(
            f"{folder}: its {name} split is gone; remove the folder, and prepare it again"
        )
    try:
        if len(shards) > 1:
            pattern = folder / f"{name}-*.npy"
            return Split(cast(np.ndarray, Shards(shards)), None, vocab_size, pattern)
        path = shards[0] if shards else whole
        tokens = load_array(path, TOKENS)
        if not unmasked.exists():
            return Split(tokens, None, vocab_size, path)
        mask = load_array(unmasked, MASK)
        if mask.shape != tokens.shape:
            raise DamagedError(f"{unmasked}: has {len(mask):,} values for {len(tokens):,} tokens")
        return Split(tokens, mask, vocab_size, path)
    except OSError as error:
        many = getattr(error, "errno", 0) == errno.EMFILE
        raise UserError(
            f"{folder}: cannot be read: {error}"
            + ("; allow more of them, for example with ulimit -n 8192" if many else "")
        ) from None


def write_shards(texts: Iterable[Text], tokenizer: Tokenizer, folder: Path) -> Iterator[Shard]:
    """Write what shards.jsonl does not have yet; yields each pair of shards, also those that are
    there.
    """
    log = folder / "shards.jsonl"
    done = read_log(log)
    whole = count_whole(done, folder)
    if whole < len(done):  # a disk was full, or somebody removed a file: encode the rest again
        done = done[:whole]
        lines = [f"{json.dumps(shard._asdict())}\n" for shard in done]
        write_atomically(log, "".join(lines).encode())
    yield from done
    skipped, number = done[-1].pieces if done else 0, len(done)
    pieces = itertools.islice(make_pieces(texts), skipped, None)
    # Each split starts with an eos token, as other corpora do.
    kept: dict[str, list[np.ndarray]] = {
        name: [] if done else [encode_eos(tokenizer)] for name in ("train", "val")
    }
    documents, count = dict.fromkeys(kept, 0), skipped
    for piece in encode_in_order(pieces, tokenizer):
        count += 1
        for name, (tokens, ended) in piece.items():
            kept[name] += tokens
            documents[name] += ended
        if max(sum(each.nbytes for each in own) for own in kept.values()) > SHARD_BYTES * 2 // 3:
            yield flush(kept, documents, count, tokenizer, folder, number)
            kept, documents, number = (
                {name: [] for name in kept},
                dict.fromkeys(kept, 0),
                number + 1,
            )
    if any(documents.values()):
        yield flush(kept, documents, count, tokenizer, folder, number)


def count_whole(done: list[Shard], folder: Path) -> int:
    """How many pairs of shards there are before the first that is not as it was written."""
    for number, shard in enumerate(done):
        for name, expected in shard.tokens.items():
            found = 0
            for path in folder.glob(f"{name}-{number:05}-*.npy"):
                try:
                    check_whole(path)
                    found += len(load_array(path, TOKENS))
                except (OSError, DamagedError):
                    return number
            if found != expected:
                return number
    return len(done)


def read_log(path: Path) -> list[Shard]:
    """The pairs of shards that are done; DamagedError if a line is not what `flush` writes."""
    if not path.exists():
        return []
    try:
        return [SHARD.validate_json(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DamagedError(f"{path}: damaged ({reason}); remove {path.parent}") from None


def flush(
    kept: dict[str, list[np.ndarray]],
    documents: dict[str, int],
    pieces: int,
    tokenizer: Tokenizer,
    folder: Path,
    number: int,
) -> Shard:
    """Write a pair of shards, each whole or not at all, and then their line."""
    tokens = {
        name: np.concatenate([np.empty(0, tokenizer.dtype), *own]) for name, own in kept.items()
    }
    for name, own in tokens.items():
        for part, few in enumerate(
            np.array_split(own, -(-own.nbytes // (SHARD_BYTES - 1000)) or 1)
        ):
            if len(few):
                write_array(folder / f"{name}-{number:05}-{part}.npy", few)
    shard = Shard(pieces, documents, {name: len(own) for name, own in tokens.items()})
    log = folder / "shards.jsonl"  # small, and never half-written
    write_atomically(
        log,
        (log.read_bytes() if log.exists() else b"") + f"{json.dumps(shard._asdict())}\n".encode(),
    )
    return shard


def make_pieces(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """The texts in lists of about PIECE characters."""
    size, piece = 0, []
    for text in texts:
        piece.append(text)
        size += len(text.text)
        if size >= PIECE:
            yield piece
            size, piece = 0, []
    if piece:
        yield piece


def encode_in_order(pieces: Iterable[list[Text]], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Each piece's tokens, by as many threads as there are cores: tiktoken lets them run at the
    same time.
    """
    threads = os.cpu_count() or 1
    waiting: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(encode_piece, piece, tokenizer))
                if len(waiting) > min(threads + 1, MAX_WAITING):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def encode_piece(
    piece: list[Text], tokenizer: Tokenizer
) -> dict[str, tuple[list[np.ndarray], int]]:
    """For each split, the tokens of the documents, an eos token after each, and how many documents
    end.
    """
    found = {}
    for name, is_val in (("train", False), ("val", True)):
        own = [text for text in piece if text.is_val == is_val]
        tokens = [
            part
            for text in own
            for part in (
                tokenizer.encode(text.text),
                encode_eos(tokenizer) if text.ends else np.empty(0, tokenizer.dtype),
            )
        ]
        found[name] = [np.concatenate(tokens)] if tokens else [], sum(text.ends for text in own)
    return found


def encode_eos(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.eos], tokenizer.dtype)
