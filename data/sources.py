"""Reads the documents of many or compressed files, one after another, not all into memory.

A directory or a pattern of .txt, .jsonl and .parquet files, the first two also as .gz or .zst, or a
dataset of the Hugging Face Hub, hf:owner/name. Of records, the field `text` is a document; a .txt
file is one.
"""

import fnmatch
import gzip
import io
import math
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic_core import from_json
from tqdm import tqdm

from config.errors import UserError, not_text
from config.files import without_bom
from config.schema import DataConfig
from data.corpora import read_corpus_text
from data.documents import Document, apply_mask, read_documents

if sys.version_info >= (3, 14):
    from compression import zstd as zstd  # "as": compress.py takes it from here
else:
    from backports import zstd as zstd

SUFFIXES = (
    *(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", ".gz", ".zst")),
    ".parquet",
)
UNPACK: dict[str, Any] = {".gz": gzip.open, ".zst": zstd.open}
PROGRESS_INTERVAL = 1000  # records between two updates of the progress
PIECE_CHARACTERS = 2**22  # of a .txt file, that are read at once


class FoundFiles(NamedTuple):
    """The files of a corpus, and what lies beside them and is not read."""

    files: list[Path]
    hidden: list[Path]  # files and folders
    others: list[Path]  # files of a kind that is not read here, and folders that may not be opened


class Piece(NamedTuple):
    """A document, or a part of one."""

    text: str
    ends: bool = True  # the document
    is_val: bool = False  # its file is named as validation


def find_files(corpus: str) -> list[Path]:
    """Find the files of a directory or a pattern, in the order of their names.

    UserError if there is none. A dataset of the Hub has none here.
    """
    if corpus.startswith("hf:"):
        return []
    files = look_for_files(corpus).files
    if not files:
        problem = f"corpus {corpus!r}: no files whose names end in {', '.join(SUFFIXES)}"
        left_out = describe_left_out(corpus)
        if left_out:
            problem += f"; left out: {left_out}"
        raise UserError(problem)
    return files


def look_for_files(corpus: str) -> FoundFiles:
    """Look through a directory or a pattern, by one rule for both.

    Below the folder that is named, hidden files and folders are left out: they are copies that
    an editor keeps, or a program's own. Links are followed; a folder counts once.
    """
    found = FoundFiles([], [], [])
    named = Path(corpus)
    if named.is_file():
        kind = found.files if is_readable(named) else found.others
        kind.append(named)
        return found
    root = find_root(corpus)
    pattern = named.parts[len(root.parts) :] or ("**",)
    depth = math.inf if "**" in pattern else len(pattern)
    for folder, names in visit_folders(root, depth, found):
        for path in map(folder.joinpath, names):
            if not matches(path.parts[len(root.parts) :], pattern):
                continue
            is_hidden = path.name.startswith(".")
            if is_readable(path):
                kind = found.hidden if is_hidden else found.files
                kind.append(path)
            elif not is_hidden:  # .DS_Store and its like are nobody's text
                found.others.append(path)
    return FoundFiles(*map(sorted, found))


def visit_folders(root: Path, depth: float, found: FoundFiles) -> Iterator[tuple[Path, list[str]]]:
    """Visit a folder and those below it, `depth` levels in all; note those that it leaves out."""
    seen = {os.path.realpath(root)}

    def note_unreadable(error: OSError) -> None:
        found.others.append(Path(error.filename))

    for name, folders, names in os.walk(root, onerror=note_unreadable, followlinks=True):
        folder = Path(name)
        yield folder, names
        level = 1 + len(folder.parts) - len(root.parts)
        below = sorted(folders) if level < depth else []
        folders.clear()  # os.walk goes on with those that are added now
        for inner in below:
            real = os.path.realpath(folder / inner)
            if inner.startswith("."):
                found.hidden.append(folder / inner)
            elif real not in seen:  # else a link leads to where we are, or were
                seen.add(real)
                folders.append(inner)


def find_root(corpus: str) -> Path:
    """Find the folder to search: a directory, or what stands before a pattern's first sign."""
    if Path(corpus).is_dir():
        return Path(corpus)
    root = []
    for part in Path(corpus).parts[:-1]:
        if has_wildcard(part):
            break
        root.append(part)
    return Path(*root)


def has_wildcard(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, part by part; ** is any number of folders.

    >>> matches(("a", "b", "c.txt"), ("**", "*.txt"))
    True
    >>> matches(("a", "c.txt"), ("*.txt",))
    False
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        rest = pattern[1:]
        return any(matches(parts[n:], rest) for n in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatch(parts[0], pattern[0]):
        return False
    return matches(parts[1:], pattern[1:])


def is_readable(path: Path) -> bool:
    """Return whether a file is of a kind that is read here."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def describe_left_out(corpus: str) -> str:
    """Say how much of a corpus is not read, with an example of each kind; "" = nothing."""
    if corpus.startswith("hf:"):
        return ""
    found = look_for_files(corpus)
    kinds = []
    if found.hidden:
        kinds.append(f"{len(found.hidden):,} hidden, such as {found.hidden[0]}")
    if found.others:
        kinds.append(f"{len(found.others):,} of another kind, such as {found.others[0]}")
    return "; ".join(kinds)


def is_txt(path: Path) -> bool:
    """Return whether a file is one document: .txt, before what says how it is compressed."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".txt")


def is_validation(path: Path, corpus: str) -> bool:
    """Return whether a name means validation: val.txt, valid-1.jsonl.gz, validation/a.txt."""
    name = str(path.relative_to(find_root(corpus))).lower()
    return bool(re.search(r"(?<![a-z])val(id(ation)?)?(?![a-z])", name))


def read_all_documents(cfg: DataConfig) -> list[Document]:
    """Read the documents of any corpus, all in memory: a text to evaluate."""
    if cfg.is_large:
        return [apply_mask(text, cfg.mask) for text in read_whole_texts(cfg.corpus)]
    return read_documents(read_corpus_text(cfg).text, cfg)


def read_whole_texts(corpus: str) -> Iterator[str]:
    """Read all documents, each in one piece."""
    parts: list[str] = []
    for piece in read_pieces(corpus, tqdm(disable=True)):
        parts.append(piece.text)
        if piece.ends:
            yield "".join(parts)
            parts.clear()


def read_pieces(corpus: str, progress: "tqdm[Any]") -> Iterator[Piece]:
    """Read all documents; `progress` counts the bytes that were read from files.

    UserError says what cannot be read.
    """
    if corpus.startswith("hf:"):
        for text in check_texts(read_hub(corpus.removeprefix("hf:")), corpus):
            progress.update(len(text))  # about its bytes: how many there are in all, nobody knows
            yield Piece(text)
        return
    for path in find_files(corpus):
        is_val = is_validation(path, corpus)
        try:
            for piece in read_file(path, progress):
                yield piece._replace(is_val=is_val)
        except UnicodeDecodeError as error:
            raise not_text(f"corpus {path}", error) from None
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
            raise UserError(f"corpus {path}: cannot be read: {error}") from None


def read_file(path: Path, progress: "tqdm[Any]") -> Iterator[Piece]:
    """Read the documents of a .parquet file, of a .jsonl file, or the one of a .txt file."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from map(Piece, check_texts(read_parquet(path, progress), str(path)))
        return
    unpack = UNPACK.get(kind, nullcontext)
    with path.open("rb") as raw, unpack(raw) as content:
        read = read_txt if is_txt(path) else read_jsonl
        done = 0
        for number, piece in enumerate(read(content, str(path)), start=1):
            if number % PROGRESS_INTERVAL == 0 or not piece.ends:
                progress.update(raw.tell() - done)
                done = raw.tell()
            yield piece
        progress.update(raw.tell() - done)


def read_txt(content: IO[bytes], name: str) -> Iterator[Piece]:
    """Read a document in pieces, which are cut after a line."""
    lines = io.TextIOWrapper(content, encoding="utf-8-sig")
    while text := lines.read(PIECE_CHARACTERS) + lines.readline(PIECE_CHARACTERS):
        yield Piece(text, ends=False)
    lines.detach()  # else `content` would be closed with it
    yield Piece("", ends=True)


def read_jsonl(content: IO[bytes], name: str) -> Iterator[Piece]:
    """Read a document from each line."""
    for number, line in enumerate(content, start=1):  # bytes, which is faster
        if line.strip():
            yield Piece(text_of(without_bom(line), f"corpus {name}, line {number}"))


def text_of(line: bytes, where: str) -> str:
    """Read the field `text` of a record; a record without a text is an empty document."""
    try:
        text = from_json(line)["text"]
    except (ValueError, LookupError, TypeError):
        pass
    else:
        if isinstance(text, str | None):
            return text or ""
    raise UserError(
        f'{where}: should be {{"text": "..."}}, with any other fields beside it; prompts and '
        "completions are read from one .jsonl file that has nothing else"
    )


def check_texts(texts: Iterable[object], name: str) -> Iterator[str]:
    """Pass texts on, and nothing else; a record without a text is an empty document."""
    for text in texts:
        if not isinstance(text, str | None):
            raise UserError(f"corpus {name}: its `text` is {type(text).__name__}; should be text")
        yield text or ""


def read_parquet(path: Path, progress: "tqdm[Any]") -> Iterator[object]:
    """Read the column `text`."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"corpus {path}: needs a package: pip install -e '.[corpora]'") from None
    try:
        file = parquet.ParquetFile(path)
        bytes_of_row = path.stat().st_size / max(1, file.metadata.num_rows)
        for batch in file.iter_batches(1024, columns=["text"]):
            progress.update(len(batch) * bytes_of_row)
            yield from batch.column(0).to_pylist()
    except (ArrowException, IndexError) as error:
        raise UserError(f"corpus {path}: has no readable column `text`: {error!s:.200}") from None


def read_hub(name: str) -> Iterator[object]:
    """Read the `text` of a dataset's training split: owner/name[:configuration][@revision]."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"corpus hf:{name}: needs a package: pip install -e '.[corpora]'") from None
    dataset, _, revision = name.partition("@")
    dataset, _, configuration = dataset.partition(":")
    try:
        rows = load_dataset(
            dataset, configuration or None, split="train", streaming=True, revision=revision or None
        )
        for row in rows:
            yield row["text"]
    except Exception as error:  # of the network, the hub, the dataset: many kinds
        raise UserError(
            f"corpus hf:{name}: cannot be read ({type(error).__name__}: {error!s:.200})"
        ) from None
