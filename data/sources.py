"""The documents of a corpus of many or compressed files, one after another, without all of it in memory.

A directory or a pattern of .txt, .jsonl and .parquet files, the first two also as .gz or .zst, or a dataset of the
Hugging Face Hub, hf:owner/name. Of records, the field `text` is a document; a .txt file is one.
"""

import glob
import gzip
import io
import itertools
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from backports import zstd
from pydantic_core import from_json
from tqdm import tqdm

from config.errors import UserError, not_text

SUFFIXES = (*(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", ".gz", ".zst")), ".parquet")
UNPACK: dict[str, Any] = {".gz": gzip.open, ".zst": zstd.open}
ROUNDING = 1e-9  # 49 x (1 / 49) is less than 1
PIECE = 2**22  # characters of a .txt file that are read at once; it is cut after a line


class Text(NamedTuple):
    """A document, or a piece of one."""

    text: str
    ends: bool = True  # the document
    is_val: bool = False  # its file is named as validation


def choose_split(texts: Iterable[Text], fraction: float) -> Iterator[Text]:
    """So many documents, evenly spread, are validation: for 0.1 each tenth; for 0 as the names of their files say."""
    document = 0
    for text in texts:
        before, after = (int(number * fraction + ROUNDING) for number in (document, document + 1))
        yield text._replace(is_val=before < after) if fraction else text
        document += text.ends


def find_files(corpus: str) -> list[Path]:
    """The files of a directory or a pattern, in the order of their names; UserError if there is none.

    A dataset of the Hub has none here.
    """
    if corpus.startswith("hf:"):
        return []
    found = Path(corpus).rglob("*") if Path(corpus).is_dir() else map(Path, glob.glob(corpus, recursive=True))
    files = sorted(path for path in found if path.name.endswith(SUFFIXES) and path.is_file())
    if not files:
        raise UserError(f"corpus {corpus!r}: no files whose names end in {', '.join(SUFFIXES)}")
    return files


def is_txt(path: Path) -> bool:
    """A document, with .txt before what says how it is compressed."""
    return path.name.removesuffix(".gz").removesuffix(".zst").endswith(".txt")


def is_validation(path: Path, corpus: str) -> bool:
    """By its name or that of a folder in the corpus: val.txt, valid-001.jsonl.gz, validation/c4.parquet ..."""
    root = Path(corpus) if Path(corpus).is_dir() else Path(*itertools.takewhile(
        lambda part: not any(sign in part for sign in "*?["), Path(corpus).parts[:-1]))
    return bool(re.search(r"(?<![a-z])val(id(ation)?)?(?![a-z])", str(path.relative_to(root)).lower()))


def read_texts(corpus: str, progress: "tqdm[Any]") -> Iterator[Text]:
    """All documents; `progress` counts the bytes that were read from files. UserError says what cannot be read."""
    if corpus.startswith("hf:"):
        for record in check_texts(read_hub(corpus.removeprefix("hf:")), corpus):
            progress.update(len(record))  # about its bytes: how many there are in all, nobody knows
            yield Text(record)
        return
    for path in find_files(corpus):
        is_val = is_validation(path, corpus)
        try:
            texts = (map(Text, check_texts(read_parquet(path, progress), str(path))) if path.suffix == ".parquet" else
                     read_file(path, progress))
            for text in texts:
                yield text._replace(is_val=is_val)
        except UnicodeDecodeError as error:
            raise not_text(f"corpus {path}", error) from None
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
            raise UserError(f"corpus {path}: cannot be read: {error}") from None


def check_texts(texts: Iterable[object], name: str) -> Iterator[str]:
    """The same; UserError if one is not a text. A record without one is an empty document."""
    for text in texts:
        if not isinstance(text, str | None):
            raise UserError(f"corpus {name}: its `text` is {type(text).__name__}; should be text")
        yield text or ""


def read_file(path: Path, progress: "tqdm[Any]") -> Iterator[Text]:
    with path.open("rb") as raw, UNPACK.get(path.suffix, nullcontext)(raw) as content:
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
    raise UserError(f'{where}: should be {{"text": "..."}}, with any other fields beside it')


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
        for row in load_dataset(dataset, configuration or None, split="train", streaming=True,
                                revision=revision or None):
            yield row["text"]
    except Exception as error:  # of the network, the hub, the dataset: many kinds
        raise UserError(f"corpus hf:{name}: cannot be read ({type(error).__name__}: {error!s:.200})") from None
