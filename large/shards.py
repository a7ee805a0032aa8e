"""Encodes documents with all cores into shards of tokens, and keeps what is done.

shards.jsonl has a line for each finished pair of train-NNNNN-0.npy and val-NNNNN-0.npy, so that a
killed preparation goes on with the documents after them. Memory does not grow with the corpus: few
chunks of text and one pair of shards are in it at a time.
"""

import itertools
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, TypeAdapter, ValidationError

from config.errors import DamagedError
from config.files import write_atomically
from config.values import Count
from data.arrays import TOKENS, check_whole, load_array, write_array
from data.sources import Piece
from data.tokenizer import Tokenizer

SHARD_BYTES = 200_000_000  # of a file, at most
CHUNK_CHARACTERS = 2**22  # that a thread encodes at a time, about
MAX_WAITING = 40  # chunks in memory, so that is how many cores can work
SPLITS = ("train", "val")


def check_splits(sizes: dict[str, int]) -> dict[str, int]:
    if sizes.keys() != set(SPLITS):
        raise ValueError("should have a size of train and of val")
    return sizes


Sizes = Annotated[dict[str, Count], AfterValidator(check_splits)]


class Shard(NamedTuple):
    """A line of shards.jsonl: what a pair of files holds, and how many chunks are done with it."""

    chunks: Count  # from the start of the corpus
    documents: Sizes
    tokens: Sizes


SHARD = TypeAdapter(Shard)


@dataclass
class EncodedPart:
    """Tokens of one split, in order, and how many documents end in them."""

    arrays: list[np.ndarray] = field(default_factory=list)
    documents: int = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def extend(self, part: "EncodedPart") -> None:
        self.arrays += part.arrays
        self.documents += part.documents


Encoded = dict[str, EncodedPart]  # of each split


def write_shards(pieces: Iterable[Piece], tokenizer: Tokenizer, folder: Path) -> Iterator[Shard]:
    """Write what shards.jsonl does not have yet; yields each pair of shards, old and new."""
    done = keep_whole(folder)
    yield from done
    count = done[-1].chunks if done else 0
    number = len(done)
    chunks = itertools.islice(make_chunks(pieces), count, None)
    kept = {name: EncodedPart() for name in SPLITS}
    if not done:  # each split starts with an eos token, as other corpora do
        for part in kept.values():
            part.arrays.append(encode_eos(tokenizer))
    for encoded in encode_in_order(chunks, tokenizer):
        count += 1
        for name, part in kept.items():
            part.extend(encoded[name])
        if max(part.nbytes for part in kept.values()) > SHARD_BYTES * 2 // 3:
            yield flush(kept, count, folder, number)
            kept = {name: EncodedPart() for name in SPLITS}
            number += 1
    if any(part.documents for part in kept.values()):
        yield flush(kept, count, folder, number)


def keep_whole(folder: Path) -> list[Shard]:
    """Keep the pairs of shards that are done, up to the first that is not as it was written.

    A disk was full, or somebody removed a file: the others are encoded again.
    """
    log = folder / "shards.jsonl"
    done = read_log(log)
    for number, shard in enumerate(done):
        if not is_whole(number, shard, folder):
            done = done[:number]
            write_atomically(log, b"".join(map(to_line, done)))
            break
    return done


def is_whole(number: int, shard: Shard, folder: Path) -> bool:
    """Return whether a pair of shards is there, with the tokens that it should have."""
    for name, expected in shard.tokens.items():
        found = 0
        for path in folder.glob(f"{name}-{number:05}-*.npy"):
            try:
                check_whole(path)
                found += len(load_array(path, TOKENS))
            except (OSError, DamagedError):
                return False
        if found != expected:
            return False
    return True


def read_log(path: Path) -> list[Shard]:
    """Read the finished pairs of shards; DamagedError if a line is not what `flush` writes."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [SHARD.validate_json(line) for line in lines]
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise DamagedError(f"{path}: damaged ({reason}); remove {path.parent}") from None


def to_line(shard: Shard) -> bytes:
    return f"{json.dumps(shard._asdict())}\n".encode()


def flush(kept: Encoded, chunks: int, folder: Path, number: int) -> Shard:
    """Write a pair of shards, each whole or not at all, and then their line."""
    tokens = {}
    for name, part in kept.items():
        tokens[name] = sum(map(len, part.arrays))
        if tokens[name]:
            write_parts(np.concatenate(part.arrays), folder, f"{name}-{number:05}")
    documents = {name: part.documents for name, part in kept.items()}
    shard = Shard(chunks, documents, tokens)
    log = folder / "shards.jsonl"  # small, and never half-written
    before = log.read_bytes() if log.exists() else b""
    write_atomically(log, before + to_line(shard))
    return shard


def write_parts(tokens: np.ndarray, folder: Path, name: str) -> None:
    """Write tokens to as few files of at most SHARD_BYTES as can hold them."""
    num_parts = math.ceil(tokens.nbytes / (SHARD_BYTES - 1000))  # a file has a header
    for number, part in enumerate(np.array_split(tokens, num_parts)):
        write_array(folder / f"{name}-{number}.npy", part)


def make_chunks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Collect pieces in lists of about CHUNK_CHARACTERS."""
    chunk = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def encode_in_order(chunks: Iterable[list[Piece]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Encode chunks in as many threads as there are cores: tiktoken lets them run in parallel."""
    threads = os.cpu_count() or 1
    waiting: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(encode_chunk, chunk, tokenizer))
                if len(waiting) > min(threads + 1, MAX_WAITING):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def encode_chunk(chunk: list[Piece], tokenizer: Tokenizer) -> Encoded:
    """Encode the pieces of each split; an eos token follows each document."""
    eos = encode_eos(tokenizer)
    encoded = {name: EncodedPart() for name in SPLITS}
    for piece in chunk:
        part = encoded["val" if piece.is_val else "train"]
        part.arrays.append(tokenizer.encode(piece.text))
        if piece.ends:
            part.arrays.append(eos)
            part.documents += 1
    for part in encoded.values():
        if part.arrays:
            part.arrays = [np.concatenate(part.arrays)]
    return encoded


def encode_eos(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([tokenizer.eos], tokenizer.dtype)
