"""The documents of a corpus of many or compressed files, one after another, without all of it in
memory.

A directory or a pattern of .txt, .jsonl and .parquet files, the first two also as .gz or .zst, or a
dataset of the Hugging Face Hub, hf:owner/name. Of records, the field `text` is a document; a .txt
file is one.
"""

import fnmatch
import gzip
import io
import itertools
import math
import os
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json
from tqdm import tqdm

from config.errors import UserError, not_text

if sys.version_info >= (3, 14):
    from compression import zstd as zstd  # "as": compress.py takes it from here
else:
    from backports import zstd as zstd

SUFFIXES = (
    *(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", ".gz", ".zst")),
    ".parquet",
)
UNPACK: dict[str, Any] = {".gz": gzip.open, ".zst": zstd.open}
ROUNDING = 1e-9  # 49 x (1 / 49) is less than 1
PIECE = 2**22  # characters of a .txt file that are read at once; it is cut after a line


class FoundFiles(NamedTuple):
    """The files of a corpus, and what lies beside them and is not read."""

    files: list[Path]
    hidden: list[Path]  # files and folders
    others: list[Path]  # files of a kind that is not read here, and folders that may not be opened


class Text(NamedTuple):
    """A document, or a piece of one."""

    text: str
    ends: bool = True  # the document
    is_val: bool = False  # its file is named as validation


def choose_split(texts: Iterable[Text], fraction: float) -> Iterator[Text]:
    """So many documents, evenly spread, are validation: for 0.1 each tenth; for 0 as the names of
    their files say.
    """
    document = 0
    for text in texts:
        before, after = (int(number * fraction + ROUNDING) for number in (document, document + 1))
        yield text._replace(is_val=before < after) if fraction else text
        document += text.ends


def find_files(corpus: str) -> list[Path]:
    """The files of a directory or a pattern, in the order of their names; UserError if there is
    none.

    A dataset of the Hub has none here.
    """
    if corpus.startswith("hf:"):
        return []
    files = look_for_files(corpus).files
    if not files:
        problem = f"corpus {corpus!r}: no files whose names end in {', '.join(SUFFIXES)}"
        if left_out := describe_left_out(corpus):
            problem += f"; left out: {left_out}"
        raise UserError(problem)
    return files


def look_for_files(corpus: str) -> FoundFiles:
    """What a directory or a pattern holds, by one rule for both.

    Below the folder that is named, hidden files and folders are left out: they are copies that
    an editor keeps, or a program's own. Links are followed; a folder counts once.
    """
    found = FoundFiles([], [], [])
    if Path(corpus).is_file():
        files = found.files if is_readable(Path(corpus)) else found.others
        files.append(Path(corpus))
        return found
    root = find_root(corpus)
    pattern = Path(corpus).parts[len(root.parts) :] or ("**",)
    depth = math.inf if "**" in pattern else len(pattern)
    seen = {os.path.realpath(root)}

    def note_unreadable(error: OSError) -> None:
        found.others.append(Path(error.filename))

    for name, folders, names in os.walk(root, onerror=note_unreadable, followlinks=True):
        folder = Path(name)
        level = len(folder.parts) - len(root.parts)
        visible = []
        for each in sorted(folders):
            if level + 1 >= depth:
                continue
            if each.startswith("."):
                found.hidden.append(folder / each)
                continue
            real = os.path.realpath(folder / each)
            if real not in seen:  # else a link leads to where we are, or were
                seen.add(real)
                visible.append(each)
        folders[:] = visible  # os.walk goes on with these
        for path in map(folder.joinpath, names):
            if not matches(path.parts[len(root.parts) :], pattern):
                continue
            is_hidden = path.name.startswith(".")
            if is_readable(path):
                files = found.hidden if is_hidden else found.files
                files.append(path)
            elif not is_hidden:  # .DS_Store and its like are nobody's text
                found.others.append(path)
    return FoundFiles(*map(sorted, found))


def find_root(corpus: str) -> Path:
    """The folder that is searched: a directory, or what stands before the first sign of a pattern."""
    if Path(corpus).is_dir():
        return Path(corpus)
    literal = itertools.takewhile(lambda part: not has_wildcard(part), Path(corpus).parts[:-1])
    return Path(*literal)


def has_wildcard(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part; ** stands for any number of folders.

    >>> matches(("a", "b", "c.txt"), ("**", "*.txt"))
    True
    >>> matches(("a", "c.txt"), ("*.txt",))
    False
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatch(parts[0], pattern[0]):
        return False
    return matches(parts[1:], pattern[1:])


def is_readable(path: Path) -> bool:
    """Whether it is a file of a kind that is read here."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def describe_left_out(corpus: str) -> str:
    """How much of a directory or a pattern is not read, with an example of each kind; "" = nothing."""
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
    """A document, with .txt before what says how it is compressed."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".txt")


def is_validation(path: Path, corpus: str) -> bool:
    """By its name or that of a folder in the corpus: val.txt, valid-001.jsonl.gz,
    validation/c4.parquet ...
    """
    name = str(path.relative_to(find_root(corpus))).lower()
    return bool(re.search(r"(?<![a-z])val(id(ation)?)?(?![a-z])", name))


def read_texts(corpus: str, progress: "tqdm[Any]") -> Iterator[Text]:
    """All documents; `progress` counts the bytes that were read from files. UserError says what
    cannot be read.
    """
    if corpus.startswith("hf:"):
        for record in check_texts(read_hub(corpus.removeprefix("hf:")), corpus):
            progress.update(len(record))  # about its bytes: how many there are in all, nobody knows
            yield Text(record)
        return
    for path in find_files(corpus):
        is_val = is_validation(path, corpus)
        try:
            if path.suffix.lower() == ".parquet":
                texts: Iterator[Text] = map(
                    Text, check_texts(read_parquet(path, progress), str(path))
                )
            else:
                texts = read_file(path, progress)
            for text in texts:
                yield text._replace(is_val=is_val)
        except UnicodeDecodeError as error:
            raise not_text(f"corpus {path}", error) from None
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
            raise UserError(f"corpus {path}: cannot be read: {error}") from None


def read_whole_texts(corpus: str) -> Iterator[str]:
    """All documents, each in one piece."""
    pieces: list[str] = []
    for text in read_texts(corpus, tqdm(disable=True)):
        pieces.append(text.text)
        if text.ends:
            yield "".join(pieces)
            pieces.clear()


def check_texts(texts: Iterable[object], name: str) -> Iterator[str]:
    """The same; UserError if one is not a text. A record without one is an empty document."""
    for text in texts:
        if not isinstance(text, str | None):
            raise UserError(f"corpus {name}: its `text` is {type(text).__name__}; should be text")
        yield text or ""


def read_file(path: Path, progress: "tqdm[Any]") -> Iterator[Text]:
    with path.open("rb") as raw, UNPACK.get(path.suffix.lower(), nullcontext)(raw) as content:
        done = 0

        def count() -> None:
            nonlocal done
            progress.update(raw.tell() - done)
            done = raw.tell()

        if is_txt(path):
            lines = io.TextIOWrapper(content, encoding="utf-8-sig")
            while text := lines.read(PIECE) + lines.readline(PIECE):
                count()
                yield Text(text, ends=False)
            yield Text("", ends=True)
            return
        for number, line in enumerate(content, start=1):  # bytes, which is faster
            if number % 1000 == 0:
                count()
            if line.strip():
                yield Text(text_of(line.removeprefix(BOM_UTF8), f"corpus {path}, line {number}"))
        count()


def text_of(line: bytes, where: str) -> str:
    try:
        text = from_json(line)["text"]
        if isinstance(text, str | None):
            return text or ""  # a record without a text is an empty document
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(
        f'{where}: should be {{"text": "..."}}, with any other fields beside it; prompts and completions '
        "are read from one .jsonl file that has nothing else"
    )


def read_parquet(path: Path, progress: "tqdm[Any]") -> Iterator[object]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"corpus {path}: needs a package: pip install -e '.[corpora]'") from None
    try:
        file = parquet.ParquetFile(path)
        rows, size = max(1, file.metadata.num_rows), path.stat().st_size
        for batch in file.iter_batches(1024, columns=["text"]):
            progress.update(size * len(batch) / rows)
            yield from batch.column(0).to_pylist()
    except (ArrowException, IndexError) as error:
        raise UserError(f"corpus {path}: has no readable column `text`: {error!s:.200}") from None


def read_hub(name: str) -> Iterator[object]:
    """The field `text` of the training split of a dataset: owner/name[:configuration][@revision]."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f"corpus hf:{name}: needs a package: pip install -e '.[corpora]'") from None
    dataset, _, revision = name.partition("@")
    dataset, _, configuration = dataset.partition(":")
    try:
        for row in load_dataset(
            dataset, configuration or None, split="train", streaming=True, revision=revision or None
        ):
            yield row["text"]
    except Exception as error:  # of the network, the hub, the dataset: many kinds
        raise UserError(
            f"corpus hf:{name}: cannot be read ({type(error).__name__}: {error!s:.200})"
        ) from None
