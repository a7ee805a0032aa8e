"""A large corpus to token arrays: `python large/prepare.py [RECIPE] [--corpus=FOLDER ...]`.

It takes the arguments of train.py. The corpus has many or compressed files, or is a dataset of the
Hub, and may be larger than memory. A preparation that was stopped goes on where it was. train.py
then opens the files; after a change of the text, this command prepares it again.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Python looks for modules beside this file: let it look in the repository
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

from config.cli import load_config
from config.errors import UserError, out_of_memory, run_command
from config.files import TEMPORARY, check_entries, lock_of, locked, write_atomically
from config.schema import DataConfig
from config.terminal import progress_bar
from data.baselines import measure_baselines
from data.checksums import hash_file, read_text_files, size_and_time, write_checksums
from data.documents import TUNING_FRACTION
from data.info import CorpusInfo, SplitInfo
from data.prepare import (
    TOO_LARGE,
    WAIT,
    Corpus,
    choose_folder,
    choose_tokenizer,
    open_prepared,
    open_sound,
    place_of_large,
)
from data.shards import load_split
from data.sources import Piece, describe_left_out, find_files, is_txt, is_validation, read_pieces
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from large.shards import SPLITS, Shard, write_shards

BPE_CHARACTERS = 50_000_000  # of the text, from which bpe learns its tokens
ROUNDING = 1e-9  # 49 x (1 / 49) is less than 1


def prepare_large(cfg: DataConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Open the prepared corpus; first write it if it is incomplete, damaged or of other files."""
    if not cfg.is_large:
        raise UserError(
            f"corpus {cfg.corpus}: is one text; train.py and data/prepare.py prepare it"
        )
    with out_of_memory(TOO_LARGE):
        tokenizer = choose_tokenizer(cfg.tokenizer, cfg.eos_text, tokenizer)
        files = find_files(cfg.corpus)
        folder = choose_folder(cfg, place_of_large(cfg.corpus), tokenizer)
        with locked(lock_of(folder), f"{folder}: another process prepares it", WAIT):
            remove_unusable(folder, files)
            if not (folder / "checksums.json").exists():
                write_large(folder, files, cfg, tokenizer)
        return open_prepared(folder)


def remove_unusable(folder: Path, files: list[Path]) -> None:
    """Remove a prepared folder that is damaged, or of other files than there are now."""
    if not folder.exists():
        return
    before = read_text_files(folder)
    is_complete = (folder / "checksums.json").exists()
    if before is not None and before != sizes_and_times(files):
        reason = "its text has changed"
    elif before is None or (is_complete and open_sound(folder) is None):
        reason = "incomplete or damaged"
    else:
        return  # what a stopped preparation has done is kept
    print(f"{folder}: {reason}; preparing it again", file=sys.stderr)
    # first the files that would say that others are there
    for name in ("checksums.json", "shards.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder)


def sizes_and_times(files: list[Path]) -> dict[str, list[int]]:
    """List the size and the time of each file, by which a change is noticed."""
    return {os.path.abspath(path): size_and_time(path) for path in files}


def write_large(
    folder: Path, files: list[Path], cfg: DataConfig, tokenizer: Tokenizer | None
) -> None:
    """Write a corpus in shards, or what is missing of it after a preparation that was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    check_entries(folder)  # what a stopped preparation left
    write_atomically(folder / "files.json", json.dumps(sizes_and_times(files)).encode())
    left_out = describe_left_out(cfg.corpus)
    if left_out:
        print(f"corpus {cfg.corpus}: left out: {left_out}", file=sys.stderr)
    val_fraction = choose_val_fraction(files, cfg.corpus, cfg.val_fraction)
    tuning_fraction = choose_tuning_fraction(files, cfg.corpus, val_fraction)

    def read(verb: str) -> Iterator[Piece]:
        size = sum(path.stat().st_size for path in files)
        with progress_bar(
            desc=f"{verb} {cfg.corpus}", total=size or None, unit="B", unit_scale=True
        ) as progress:
            pieces = choose_split(read_pieces(cfg.corpus, progress), val_fraction)
            if cfg.split == "tuning":
                training = (piece for piece in pieces if not piece.is_val)
                pieces = choose_split(training, tuning_fraction)
            yield from pieces

    path = folder / "tokenizer.json"
    if path.exists():
        tokenizer = load_tokenizer(path)
    elif tokenizer is None:
        texts = choose_texts(read("reading"), cfg.tokenizer)
        tokenizer = make_tokenizer(cfg.tokenizer, texts, cfg.vocab_size, cfg.eos_text)
    write_atomically(path, tokenizer.model_dump_json().encode())

    shards = list(write_shards(read("encoding"), tokenizer, folder))
    sizes = {name: add_sizes(shards, name, cfg) for name in SPLITS}
    splits = {name: load_split(folder, name, tokenizer.vocab_size) for name in SPLITS}
    if any(len(splits[name].tokens) != sizes[name].tokens for name in SPLITS):
        raise UserError(
            f"{folder}: some of its shards are gone; remove the folder, and prepare it again"
        )
    baselines = list(measure_baselines(splits["train"], splits["val"], tokenizer))
    for temporary in folder.glob(TEMPORARY):  # of a killed process
        temporary.unlink()
    hashes = {path.name: hash_file(path) for path in sorted(folder.glob("*.npy"))}
    all_hashes = "".join(hashes.values()).encode()
    sha256 = hashlib.sha256(all_hashes).hexdigest()
    info = CorpusInfo(
        name=cfg.corpus_name,
        sha256=sha256,
        split=cfg.split,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        prompt="",
        baselines=baselines,
        train=sizes["train"],
        val=sizes["val"],
    )
    write_atomically(folder / "meta.json", info.model_dump_json(indent=1).encode())
    write_checksums(folder, hashes)


def add_sizes(shards: list[Shard], split: str, cfg: DataConfig) -> SplitInfo:
    """Add the sizes of a split's shards; UserError if it has no document."""
    tokens = sum(shard.tokens[split] for shard in shards)
    documents = sum(shard.documents[split] for shard in shards)
    if documents == 0:
        name = cfg.split if split == "val" else split
        raise UserError(
            f"corpus {cfg.corpus}: has no document for the {name} split; it needs more documents, "
            "another val_fraction, or files with `val` in their names and others without"
        )
    return SplitInfo(tokens=tokens, documents=documents, targets=tokens - 1)


def choose_val_fraction(files: list[Path], corpus: str, val_fraction: float) -> float:
    """Choose the share of documents that is validation; 0 if files are named as validation."""
    if any(is_validation(path, corpus) for path in files):
        return 0.0
    if not files or not all(is_txt(path) for path in files):
        return val_fraction
    # each file is a document
    if len(files) < 2:
        raise UserError(
            f"corpus {corpus}: {files[0]} is one document; two are needed, one for each split"
        )
    return max(val_fraction, 1 / len(files))


def choose_tuning_fraction(files: list[Path], corpus: str, val_fraction: float) -> float:
    """Choose the share of the training documents that is the tuning split: a tenth, or one."""
    if not files or not all(is_txt(path) for path in files):
        return TUNING_FRACTION
    training = [path for path in files if not is_validation(path, corpus)]
    left = len(training) - int(len(files) * val_fraction + ROUNDING)
    return max(TUNING_FRACTION, 1 / max(1, left))


def choose_split(pieces: Iterable[Piece], val_fraction: float) -> Iterator[Piece]:
    """Mark a share of the documents, evenly spread, as validation. With 0, file names decide."""
    if val_fraction == 0:
        yield from pieces
        return
    document = 0
    for piece in pieces:
        # for a fraction of 0.1 each tenth document: the one at which the number of them grows
        before = int(document * val_fraction + ROUNDING)
        after = int((document + 1) * val_fraction + ROUNDING)
        yield piece._replace(is_val=after > before)
        if piece.ends:
            document += 1


def choose_texts(pieces: Iterable[Piece], kind: str) -> Iterator[str]:
    """Choose the texts to make a tokenizer from: for char all, for bpe the first of training."""
    characters = 0
    for piece in pieces:
        if kind == "char":
            yield piece.text
        elif not piece.is_val:
            yield piece.text
            characters += len(piece.text)
            if characters >= BPE_CHARACTERS:
                break


def main(argv: list[str]) -> None:
    cfg, _ = load_config(argv)
    print(prepare_large(cfg.data).info.describe())


if __name__ == "__main__":
    run_command(main)
