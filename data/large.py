"""Prepare a corpus of many or compressed files, which may be larger than memory."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from config.errors import UserError
from config.files import TEMPORARY, check_entries, write_atomically
from config.schema import DataConfig
from config.terminal import progress_bar
from data.baselines import measure_baselines
from data.checksums import hash_file, write_checksums
from data.info import CorpusInfo, SplitInfo
from data.shards import load_split, write_shards
from data.sources import (
    Text,
    choose_split,
    describe_left_out,
    find_files,
    is_txt,
    is_validation,
    read_texts,
)
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer

BPE_CHARACTERS = 50_000_000  # of the text, from which bpe learns its tokens


def describe_files(corpus: str) -> str:
    """What changes when a file of a large corpus does: names, sizes and times."""
    return json.dumps(
        [
            corpus,
            *(
                (str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for path in find_files(corpus)
            ),
        ]
    )


def prepare_large(folder: Path, cfg: DataConfig, tokenizer: Tokenizer | None) -> None:
    """Write a corpus to the folder in shards; a preparation that was stopped goes on where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    check_entries(folder)  # what a stopped preparation left
    files = find_files(cfg.corpus)
    if left_out := describe_left_out(cfg.corpus):
        print(f"corpus {cfg.corpus}: left out: {left_out}", file=sys.stderr)
    fraction = 0.0 if any(is_validation(path, cfg.corpus) for path in files) else cfg.val_fraction
    if fraction and files and all(is_txt(path) for path in files):  # a document each
        if len(files) < 2:
            raise UserError(
                f"corpus {cfg.corpus}: {files[0]} is one document; two are needed, one for each split"
            )
        fraction = max(fraction, 1 / len(files))

    def read(what: str) -> Iterator[Text]:
        size = sum(path.stat().st_size for path in files)
        with progress_bar(
            desc=f"{what} {cfg.corpus}", total=size or None, unit="B", unit_scale=True
        ) as progress:
            yield from choose_split(read_texts(cfg.corpus, progress), fraction)

    path = folder / "tokenizer.json"
    if path.exists():
        tokenizer = load_tokenizer(path)
    elif tokenizer is None:
        tokenizer = make_tokenizer(cfg, read("reading"), BPE_CHARACTERS)
    write_atomically(path, tokenizer.model_dump_json().encode())
    shards = list(write_shards(read("encoding"), tokenizer, folder))
    sizes, splits = {}, {}
    for name in ("train", "val"):
        tokens, documents = (
            sum(shard.tokens[name] for shard in shards),
            sum(shard.documents[name] for shard in shards),
        )
        if not documents:
            raise UserError(
                f"corpus {cfg.corpus}: has no document for the {name} split; it needs more documents, "
                "another val_fraction, or files with `val` in their names and others without"
            )
        sizes[name] = SplitInfo(tokens=tokens, documents=documents, targets=tokens - 1)
        splits[name] = load_split(folder, name, tokenizer.vocab_size)
        if len(splits[name].tokens) != tokens:
            raise UserError(
                f"{folder}: some of its shards are gone; remove the folder, and prepare it again"
            )
    baselines = list(measure_baselines(splits["train"], splits["val"], tokenizer))
    for temporary in folder.glob(TEMPORARY):  # of a killed process
        temporary.unlink()
    hashes = {path.name: hash_file(path) for path in sorted(folder.glob("*.npy"))}
    info = CorpusInfo(
        name=cfg.corpus_name,
        sha256=hashlib.sha256("".join(hashes.values()).encode()).hexdigest(),
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        prompt="",
        baselines=baselines,
        **sizes,
    )
    write_atomically(folder / "meta.json", info.model_dump_json(indent=1).encode())
    write_checksums(folder, hashes)
