"""Text to token arrays, once: `python data/prepare.py [RECIPE] [--corpus=NAME ...]`, with the
arguments of train.py.

train.py does it by itself when a corpus is new. In data/<corpus>-<tokenizer>-<hash of the text and
the options>/ it writes train.npy and val.npy, token ids (uint16 or uint32); train_unmasked.npy and
val_unmasked.npy (bool) if there is a mask; tokenizer.json; meta.json with sizes and baselines; and
checksums.json, the last one. A corpus of many or compressed files becomes several of each .npy:
large.py.
"""

import hashlib
import itertools
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

# Python looks for modules beside this file: let it look in the repository
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import numpy as np

from config.cli import load_config
from config.errors import DamagedError, UserError, out_of_memory, run_command
from config.files import LONGEST_NAME, lock_of, locked, short_name, write_atomically
from config.schema import TOKENIZERS, DataConfig
from config.terminal import progress_bar
from data.arrays import write_array
from data.baselines import measure_baselines
from data.checksums import is_hashed, is_sound, write_checksums
from data.corpora import DATA, read_corpus
from data.documents import (
    Document,
    Split,
    apply_mask,
    encode_documents,
    read_documents,
    split_documents,
)
from data.info import CorpusInfo, SplitInfo, read_info
from data.large import describe_files, prepare_large
from data.markov import LENGTH, MarkovSource
from data.shards import load_split
from data.sources import Text, read_whole_texts
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer, read_tokenizer, with_eos
from data.windows import describe_empty_windows

FORMAT = 11  # of prepared files; those of an older one are not used
WAIT = 600  # seconds that another process may take to prepare the same corpus


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, its splits as memory maps."""

    info: CorpusInfo
    tokenizer: Tokenizer
    train: Split
    val: Split
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the source is known


class Source(NamedTuple):
    """The text of a corpus and, where its source is known, the entropy rate and the source's own
    NLL, in nats.
    """

    text: str
    entropy_rate: float | None = None  # per character
    nll: np.ndarray | None = None  # of each character


def prepare_corpus(cfg: DataConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """The prepared corpus; it is prepared again only if it is missing or damaged, or its text has
    changed.

    The tokens are those of `tokenizer`, or what cfg.tokenizer says.
    """
    with out_of_memory("the corpus is too large for this machine; use a smaller text"):
        options, given = cfg.model_dump_json(exclude={"corpus"}), None
        if cfg.tokenizer not in TOKENIZERS:
            given = with_eos(
                tokenizer or read_tokenizer(Path(cfg.tokenizer)), cfg.eos_text, cfg.tokenizer
            )
            options = cfg.model_dump_json(exclude={"corpus", "tokenizer"}) + given.model_dump_json()
        source = Source("") if cfg.is_large else read_source(cfg)
        sha256 = (
            describe_files(cfg.corpus)
            if cfg.is_large
            else hashlib.sha256(source.text.encode()).hexdigest()
        )
        key = hashlib.sha256(f"{FORMAT} {sha256} {options}".encode()).hexdigest()[:8]
        # with room for the rest
        name = short_name(re.sub(r"[^\w.-]+", "_", cfg.corpus_name), LONGEST_NAME - 40)
        folder = DATA / f"{name}-{given.kind if given else cfg.tokenizer}-{key}"
        corpus = open_sound(folder)
        if corpus is None:
            with locked(lock_of(folder), f"{folder}: another process prepares it", WAIT):
                if open_sound(folder) is None:  # else the other process prepared it
                    if (folder / "checksums.json").exists() or (
                        folder.exists() and not cfg.is_large
                    ):
                        print(
                            f"{folder}: incomplete or damaged; preparing it again", file=sys.stderr
                        )
                        # else it would say that they are there
                        (folder / "shards.jsonl").unlink(missing_ok=True)
                        shutil.rmtree(folder)
                    if cfg.is_large:
                        prepare_large(folder, cfg, given)
                    else:
                        _prepare(source, sha256, folder, cfg, given)
            corpus = open_prepared(folder)
        if source.nll is not None:
            corpus = replace(corpus, source_nll=source.nll[1 - len(corpus.val.tokens) :])
        return corpus


def open_sound(folder: Path) -> Corpus | None:
    """The corpus in a prepared folder; None if it is incomplete, or not as it was written."""
    if not is_sound(folder):
        return None
    try:
        return open_prepared(folder)
    except DamagedError:  # with checksums that somebody computed anew
        return None


def open_prepared(folder: Path) -> Corpus:
    """The corpus in a prepared folder; DamagedError if its files do not belong together."""
    info, tokenizer = read_info(folder / "meta.json"), load_tokenizer(folder / "tokenizer.json")
    if (info.vocab_size, info.tokenizer) != (tokenizer.vocab_size, tokenizer.kind):
        raise DamagedError(f"{folder}: meta.json and tokenizer.json belong to different corpora")
    splits = {name: load_split(folder, name, info.vocab_size) for name in ("train", "val")}
    for name, split in splits.items():
        size: SplitInfo = getattr(info, name)
        if (size.tokens, size.targets) != (len(split.tokens), split.num_targets()):
            raise DamagedError(
                f"{folder}: its {name} split has {len(split.tokens):,} tokens and "
                f"{split.num_targets():,} targets, and meta.json says "
                f"{size.tokens:,} and {size.targets:,}"
            )
        if size.targets < 1:
            raise DamagedError(f"{folder}: its {name} split has no targets")
        # Of larger files, Split.take looks at what is read.
        is_read = is_hashed(size.tokens * split.tokens.dtype.itemsize)
        if is_read and split.tokens.max() >= info.vocab_size:
            raise DamagedError(f"{folder}: its {name} split has tokens of another vocabulary")
    return Corpus(info, tokenizer, splits["train"], splits["val"])


def read_source(cfg: DataConfig) -> Source:
    """UserError for a large corpus, whose text is nowhere in one piece."""
    if cfg.is_large:
        raise UserError(
            f"corpus {cfg.corpus}: is read in pieces; name one file of text, not compressed"
        )
    if cfg.corpus != "markov":
        return Source(read_corpus(cfg.corpus))
    markov = MarkovSource(cfg.markov_order, cfg.markov_alphabet, cfg.markov_temperature)
    text, nll = markov.sample(LENGTH)
    return Source(text, markov.entropy_rate, nll)


def read_all_documents(cfg: DataConfig) -> list[Document]:
    """The documents of any corpus, all in memory: of a text to evaluate."""
    if cfg.is_large:
        return [apply_mask(text, cfg.mask) for text in read_whole_texts(cfg.corpus)]
    return read_documents(read_source(cfg).text, cfg)


def _prepare(
    source: Source, text_sha256: str, folder: Path, cfg: DataConfig, tokenizer: Tokenizer | None
) -> None:
    """Write everything to the folder; without checksums.json, the last file, it counts as
    incomplete.
    """
    documents = split_documents(source.text, cfg)
    if cfg.mask and all(is_target for document in documents["train"] for _, is_target in document):
        raise UserError(f"mask={cfg.mask}: matches nothing in the training split of {cfg.corpus}")
    tokenizer = tokenizer or make_tokenizer(
        cfg,
        (
            Text("".join(text for text, _ in document), is_val=name == "val")
            for name, part in documents.items()
            for document in part
        ),
    )
    splits = {
        name: encode_documents(part, tokenizer, cfg, f"corpus {cfg.corpus}, {name} split")
        for name, part in documents.items()
    }
    baselines = measure_baselines(splits["train"], splits["val"], tokenizer, source.entropy_rate)
    progress = progress_bar(baselines, f"preparing {cfg.corpus}", unit=" baselines")
    sizes = {
        name: SplitInfo(
            tokens=len(split.tokens), documents=len(documents[name]), targets=split.num_targets()
        )
        for name, split in splits.items()
    }
    opening = itertools.takewhile(
        lambda segment: not segment[1], documents["val"][0] if cfg.eos_text else []
    )
    info = CorpusInfo(
        name=cfg.corpus_name,
        sha256=text_sha256,
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        prompt="".join(text for text, _ in opening),
        baselines=list(progress),
        entropy_rate=source.entropy_rate,
        source_nll=None
        if source.nll is None
        else float(source.nll[1 - sizes["val"].tokens :].mean()),
        **sizes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        write_array(folder / f"{name}.npy", split.tokens)
        if split.unmasked is not None:
            write_array(folder / f"{name}_unmasked.npy", split.unmasked)
    write_atomically(folder / "tokenizer.json", tokenizer.model_dump_json().encode())
    write_atomically(folder / "meta.json", info.model_dump_json(indent=1).encode())
    write_checksums(folder)


def main(argv: list[str]) -> None:
    cfg, _ = load_config(argv)
    corpus = prepare_corpus(cfg.data)
    eos = corpus.tokenizer.eos if cfg.data.padded else None
    print(
        corpus.info.describe(),
        *describe_empty_windows(corpus.train, cfg.model.block_size, eos),
        sep="\n",
    )


if __name__ == "__main__":
    run_command(main)
