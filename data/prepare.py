"""Text to token arrays, once: `python data/prepare.py [RECIPE] [--corpus=NAME ...]`.

It takes the arguments of train.py, which prepares a new corpus by itself. --show_batch also shows
the first batch of a training, with what is masked in [brackets].

In data/<corpus>-<tokenizer>-<hash of the text and the options>/ it writes train.npy and val.npy,
token ids (uint16 or uint32), val.npy of the validation or the tuning text, as --split says;
train_unmasked.npy and val_unmasked.npy (bool) if there is a mask;
tokenizer.json; meta.json with sizes and baselines; and checksums.json, the last one. A corpus of
many or compressed files has several of each .npy: large/prepare.py writes them.
"""

import hashlib
import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# Python looks for modules beside this file: let it look in the repository
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import numpy as np

from config.cli import load_config
from config.errors import DamagedError, UserError, out_of_memory, run_command
from config.files import LONGEST_NAME, lock_of, locked, short_name, write_atomically
from config.schema import DataConfig
from config.terminal import progress_bar
from config.values import TOKENIZERS
from data.arrays import write_array
from data.baselines import measure_baselines
from data.batches import TrainBatches
from data.checksums import has_same_files, is_hashed, is_sound, write_checksums
from data.corpora import DATA, CorpusText, read_corpus_text
from data.documents import Document, Split, encode_documents, split_documents
from data.info import CorpusInfo, SplitInfo, read_info
from data.shards import load_split
from data.show import show_masks
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer, read_tokenizer, with_eos
from data.windows import describe_empty_windows

FORMAT = 13  # of prepared files; those of an older one are not used
WAIT = 600  # seconds that another process may take to prepare the same corpus
TOO_LARGE = "the corpus is too large for this machine; use a smaller text"
SHOW_BATCH = "--show_batch"


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, its splits as memory maps."""

    info: CorpusInfo
    tokenizer: Tokenizer
    train: Split
    val: Split
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the source is known


def prepare_corpus(cfg: DataConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Open the prepared corpus; first write it if it is not there, or damaged.

    Another text or other options are another corpus. The tokens are those of `tokenizer`, if
    cfg.tokenizer names a run or a model. UserError for a large corpus that is not prepared.
    """
    with out_of_memory(TOO_LARGE):
        tokenizer = choose_tokenizer(cfg.tokenizer, cfg.eos_text, tokenizer)
        if cfg.is_large:
            return open_large(cfg, tokenizer)
        text = read_corpus_text(cfg)
        folder = choose_folder(cfg, text.sha256, tokenizer)
        corpus = open_or_write(folder, lambda: write_corpus(folder, text, cfg, tokenizer))
        return replace(corpus, source_nll=text.nll_of_val(cfg))


def choose_tokenizer(
    name: str, eos_text: str | None, tokenizer: Tokenizer | None
) -> Tokenizer | None:
    """Find the tokenizer of a run; None if it is to be made: char, bpe or gpt2."""
    if name in TOKENIZERS:
        return None
    if tokenizer is None:
        tokenizer = read_tokenizer(Path(name))
    return with_eos(tokenizer, eos_text, name)


def choose_folder(cfg: DataConfig, text: str, tokenizer: Tokenizer | None) -> Path:
    """Name the folder of a prepared corpus after its text, its options and its tokenizer.

    `text` tells one text from others.
    """
    excluded = {"corpus"}
    if cfg.split == "val":  # as before there was the option
        excluded.add("split")
    if tokenizer is None:
        kind = cfg.tokenizer
        options = cfg.model_dump_json(exclude=excluded)
    else:
        kind = tokenizer.kind
        options = cfg.model_dump_json(exclude=excluded | {"tokenizer"})
        options += tokenizer.model_dump_json()
    key = hashlib.sha256(f"{FORMAT} {text} {options}".encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "_", cfg.corpus_name)
    name = short_name(name, LONGEST_NAME - 40)  # with room for the rest
    return DATA / f"{name}-{kind}-{key}"


def open_or_write(folder: Path, write: Callable[[], None]) -> Corpus:
    """Open a prepared folder; if it is not sound, write it first, one process at a time."""
    corpus = open_sound(folder)
    if corpus is not None:
        return corpus
    with locked(lock_of(folder), f"{folder}: another process prepares it", WAIT):
        if open_sound(folder) is None:  # else the other process has written it
            write()
    return open_prepared(folder)


def open_sound(folder: Path) -> Corpus | None:
    """Open a prepared folder; None if it is incomplete, or not as it was written."""
    if not is_sound(folder):
        return None
    try:
        return open_prepared(folder)
    except DamagedError:  # with checksums that somebody computed anew
        return None


def open_prepared(folder: Path) -> Corpus:
    """Open a prepared folder; DamagedError if its files do not belong together."""
    info = read_info(folder / "meta.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if (info.vocab_size, info.tokenizer) != (tokenizer.vocab_size, tokenizer.kind):
        raise DamagedError(f"{folder}: meta.json and tokenizer.json belong to different corpora")
    train = load_split(folder, "train", info.vocab_size)
    val = load_split(folder, "val", info.vocab_size)
    check_split(train, info.train, f"{folder}: its train split")
    check_split(val, info.val, f"{folder}: its val split")
    return Corpus(info, tokenizer, train, val)


def check_split(split: Split, expected: SplitInfo, name: str) -> None:
    """Raise DamagedError if a split does not have the tokens and targets of meta.json."""
    tokens = len(split.tokens)
    targets = split.num_targets()
    if (tokens, targets) != (expected.tokens, expected.targets):
        raise DamagedError(
            f"{name} has {tokens:,} tokens and {targets:,} targets, and meta.json says "
            f"{expected.tokens:,} and {expected.targets:,}"
        )
    if targets < 1:
        raise DamagedError(f"{name} has no targets")
    # Of larger files, Split.take looks at what is read.
    is_read = is_hashed(tokens * split.tokens.dtype.itemsize)
    if is_read and split.tokens.max() >= split.vocab_size:
        raise DamagedError(f"{name} has tokens of another vocabulary")


def open_large(cfg: DataConfig, tokenizer: Tokenizer | None) -> Corpus:
    """Open what large/prepare.py wrote; UserError with its command if that is not there."""
    folder = choose_folder(cfg, place_of_large(cfg.corpus), tokenizer)
    corpus = open_sound(folder)
    if corpus is None or not has_same_files(folder):
        defaults = DataConfig()
        command = ["python", "large/prepare.py"]
        for name, value in cfg:
            if value != getattr(defaults, name):
                command.append(f"--{name}={value}")
        raise UserError(
            f"corpus {cfg.corpus}: is not prepared, or its files changed since; prepare it: "
            f"{shlex.join(command)}"
        )
    return corpus


def place_of_large(corpus: str) -> str:
    """Name a large corpus by its place, because reading its text would take long."""
    is_on_hub = corpus.startswith("hf:")
    return corpus if is_on_hub else os.path.abspath(corpus)


def write_corpus(
    folder: Path, text: CorpusText, cfg: DataConfig, tokenizer: Tokenizer | None
) -> None:
    """Write all files of a corpus; without checksums.json, the last file, it is incomplete."""
    if folder.exists():
        print(f"{folder}: incomplete or damaged; preparing it again", file=sys.stderr)
        shutil.rmtree(folder)
    documents = split_documents(text.text, cfg)
    if cfg.mask and all(is_target for document in documents["train"] for _, is_target in document):
        raise UserError(f"mask={cfg.mask}: matches nothing in the training split of {cfg.corpus}")
    if tokenizer is None:
        learned_from = documents["train"]
        if cfg.tokenizer == "char":  # all characters are known
            learned_from = documents["train"] + documents["val"]
        texts = map(join_segments, learned_from)
        tokenizer = make_tokenizer(cfg.tokenizer, texts, cfg.vocab_size, cfg.eos_text)
    split = cfg.split
    where = f"corpus {cfg.corpus}"
    train = encode_documents(documents["train"], tokenizer, cfg, f"{where}, train split")
    val = encode_documents(documents["val"], tokenizer, cfg, f"{where}, {split} split")
    measured = progress_bar(
        measure_baselines(train, val, tokenizer, text.entropy_rate),
        f"preparing {cfg.corpus}",
        unit=" baselines",
    )
    baselines = list(measured)
    prompt = find_prompt(documents["val"][0]) if cfg.eos_text else ""
    source_nll = text.nll_of_val(cfg)
    source_loss = None if source_nll is None else float(source_nll.mean())
    train_info = measure_split(train, documents["train"])
    val_info = measure_split(val, documents["val"])
    info = CorpusInfo(
        name=cfg.corpus_name,
        sha256=text.sha256,
        split=split,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        train=train_info,
        val=val_info,
        baselines=baselines,
        prompt=prompt,
        entropy_rate=text.entropy_rate,
        source_nll=source_loss,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("val", val)):
        write_array(folder / f"{name}.npy", part.tokens)
        if part.unmasked is not None:
            write_array(folder / f"{name}_unmasked.npy", part.unmasked)
    write_atomically(folder / "tokenizer.json", tokenizer.model_dump_json().encode())
    write_atomically(folder / "meta.json", info.model_dump_json(indent=1).encode())
    write_checksums(folder)


def measure_split(split: Split, documents: list[Document]) -> SplitInfo:
    return SplitInfo(
        tokens=len(split.tokens), documents=len(documents), targets=split.num_targets()
    )


def join_segments(document: Document) -> str:
    return "".join(text for text, _ in document)


def find_prompt(document: Document) -> str:
    """Find the masked text that a document starts with."""
    masked = itertools.takewhile(lambda segment: not segment[1], document)
    return join_segments(list(masked))


def main(argv: list[str]) -> None:
    shows_batch = SHOW_BATCH in argv
    if "--help" in argv or "-h" in argv:
        print(f"{SHOW_BATCH}: also show the first batch of a training, and what of it is masked")
    cfg, _ = load_config([word for word in argv if word != SHOW_BATCH])
    corpus = prepare_corpus(cfg.data)
    eos = corpus.tokenizer.window_border(cfg.data.padded)
    block_size = cfg.model.block_size
    lines = [corpus.info.describe()]
    lines += describe_empty_windows(corpus.train, block_size, eos)
    if shows_batch:
        get_batch = TrainBatches(corpus.train, block_size, cfg.optim.batch_size, cfg.run.seed, eos)
        (batch,) = get_batch(0)
        lines += ["", show_masks(batch, corpus.tokenizer, cfg.data.padded)]
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(main)
