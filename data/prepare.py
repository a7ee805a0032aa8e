"""Text to token arrays, once: `python data/prepare.py [RECIPE] [--corpus=NAME ...]`, with the arguments of train.py.

train.py does it by itself when a corpus is new. In data/<corpus>-<tokenizer>-<hash of the text and the options>/ it
writes train.npy and val.npy, token ids (uint16 or uint32); train_unmasked.npy and val_unmasked.npy (bool) if there is a
mask; tokenizer.json; meta.json with sizes and baselines; and checksums.json, the last one.
"""

import hashlib
import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # Python looks for modules beside this file: let it look in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from config.cli import load_config
from config.errors import UserError, out_of_memory, run_command
from config.files import locked
from config.schema import DataConfig
from data.baselines import MAX_TRAIN_TOKENS, MAX_VAL_TOKENS, Baseline, measure_baselines
from data.corpora import DATA, read_corpus
from data.documents import Split, encode_documents, split_documents
from data.markov import LENGTH, MarkovSource
from data.tokenizer import Tokenizer, char_tokenizer, load_gpt2, load_tokenizer, train_bpe
from surprisal import nats_to_bits

FORMAT = 8  # of prepared files; those of an older one are not used
WAIT = 600  # seconds that another process may take to prepare the same corpus


class SplitInfo(BaseModel, frozen=True):
    tokens: int
    bytes: int
    documents: int
    targets: int


class CorpusInfo(BaseModel, frozen=True):
    """What meta.json and a run's corpus.json say of a corpus."""

    name: str
    sha256: str  # of the text
    tokenizer: str
    vocab_size: int
    train: SplitInfo
    val: SplitInfo
    prompt: str  # masked text that the validation split starts with
    baselines: list[Baseline]
    entropy_rate: float | None = None  # of the text's source, in nats per token, where it is known
    source_nll: float | None = None  # the source's own loss on the validation split, in nats per token

    @property
    def bytes_per_target(self) -> float:
        """Of the validation split, from a baseline in two units: masked tokens may be shorter or longer."""
        one = max(self.baselines, key=lambda each: each.nats_per_token)
        return nats_to_bits(one.nats_per_token) / one.bits_per_byte if one.bits_per_byte else 1.0

    def describe(self) -> str:
        """The corpus in a line or two, and its baselines, from the worst to the best."""
        train, val = self.train, self.val
        lines = [f"{self.name}: {train.tokens:,} training and {val.tokens:,} validation tokens "
                 f"({self.tokenizer}, |V| = {self.vocab_size:,})"]
        if train.documents > 1:
            lines.append(f"  in {train.documents:,} and {val.documents:,} documents, each followed by an eos token")
        if val.targets < val.tokens - 1:
            lines.append(f"  of which {train.targets / train.tokens:.1%} and {val.targets / val.tokens:.1%} are "
                         "targets; the others are masked (compressors cannot be told, so there are none)")
        if train.tokens > MAX_TRAIN_TOKENS or val.tokens > MAX_VAL_TOKENS + 1:
            lines.append(f"  baselines use at most the last {MAX_TRAIN_TOKENS:,} training tokens, and the first "
                         f"{MAX_VAL_TOKENS:,} validation tokens")
        lines += ["", "  baseline            nats/token  bits/byte  perplexity"]
        lines += [f"  {each.name:<18} {each.nats_per_token:11.4f} {each.bits_per_byte:10.3f} {each.perplexity:11.2f}"
                  for each in sorted(self.baselines, key=lambda each: -each.nats_per_token)]
        if self.source_nll is not None:
            lines += ["", f"  On this text the source itself has {self.source_nll:.4f}. No model has a lower expected "
                      "loss than the entropy rate."]
        return "\n".join(lines)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, its splits as memory maps."""

    info: CorpusInfo
    tokenizer: Tokenizer
    train: Split
    val: Split
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the source is known


class Source(NamedTuple):
    """The text of a corpus and, where its source is known, the entropy rate and the source's own NLL, in nats."""

    text: str
    entropy_rate: float | None = None  # per character
    nll: np.ndarray | None = None  # of each character


def prepare_corpus(config: DataConfig) -> Corpus:
    """The prepared corpus; it is prepared again only if it is missing or damaged, or its text has changed."""
    with out_of_memory("the corpus is too large for this machine; use a smaller text"):
        source = read_source(config)
        text_sha256 = hashlib.sha256(source.text.encode()).hexdigest()
        options = config.model_dump_json(exclude={"corpus"})
        key = hashlib.sha256(f"{FORMAT} {text_sha256} {options}".encode()).hexdigest()[:8]
        folder = DATA / f"{Path(config.corpus).name}-{config.tokenizer}-{key}"
        if not _is_sound(folder):
            with locked(folder.with_name(f".{folder.name}.lock"), f"{folder}: another process prepares it", WAIT):
                if not _is_sound(folder):  # else the other process prepared it
                    if folder.exists():
                        print(f"{folder}: incomplete or damaged; preparing it again", file=sys.stderr)
                    _prepare(source, text_sha256, folder, config)
        info = CorpusInfo.model_validate_json((folder / "meta.json").read_bytes())
        train, val = (Split(*(np.load(path, mmap_mode="r") for path in sorted(folder.glob(f"{name}*.npy"))))
                      for name in ("train", "val"))
        return Corpus(info, load_tokenizer(folder / "tokenizer.json"), train, val,
                      None if source.nll is None else source.nll[1 - len(val.tokens):])


def read_source(config: DataConfig) -> Source:
    if config.corpus != "markov":
        return Source(read_corpus(config.corpus))
    markov = MarkovSource(config.markov_order, config.markov_alphabet, config.markov_temperature)
    text, nll = markov.sample(LENGTH)
    return Source(text, markov.entropy_rate, nll)


def _is_sound(folder: Path) -> bool:
    """Whether a prepared folder is complete, and its files are as they were written."""
    try:
        return bool(json.loads((folder / "checksums.json").read_bytes()) == _checksums(folder))
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    def sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {path.name: sha256(path) for path in folder.iterdir() if path.name != "checksums.json"}


def _prepare(source: Source, text_sha256: str, folder: Path, config: DataConfig) -> None:
    """Write everything to the folder; without checksums.json, the last file, it counts as incomplete."""
    documents = split_documents(source.text, config)
    characters = set().union(*(text for part in documents.values() for document in part for text, _ in document))
    train_text = "\n".join("".join(text for text, _ in document) for document in documents["train"])
    if config.mask and all(is_target for document in documents["train"] for _, is_target in document):
        raise UserError(f"mask={config.mask}: matches nothing in the training split of {config.corpus}")
    if config.tokenizer == "char":
        tokenizer = char_tokenizer(characters, config.eos_text)
    elif config.tokenizer == "bpe":
        tokenizer = train_bpe(train_text, config.vocab_size, config.eos_text)
    else:
        tokenizer = load_gpt2(config.eos_text)
    splits = {name: encode_documents(part, tokenizer, config, f"corpus {config.corpus}, {name} split")
              for name, part in documents.items()}
    baselines = measure_baselines(splits["train"].tokens, splits["val"], tokenizer, source.entropy_rate)
    progress = tqdm(baselines, desc=f"preparing {config.corpus}", unit=" baselines", leave=False, disable=None)
    sizes = {name: SplitInfo(tokens=len(split.tokens), bytes=tokenizer.count_bytes(split.tokens),
                             documents=len(documents[name]), targets=split.num_targets())
             for name, split in splits.items()}
    opening = itertools.takewhile(lambda segment: not segment[1], documents["val"][0] if config.eos_text else [])
    info = CorpusInfo(
        name=Path(config.corpus).name, sha256=text_sha256, tokenizer=config.tokenizer, vocab_size=tokenizer.vocab_size,
        prompt="".join(text for text, _ in opening), baselines=list(progress), entropy_rate=source.entropy_rate,
        source_nll=None if source.nll is None else float(source.nll[1 - sizes["val"].tokens:].mean()), **sizes)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        np.save(folder / f"{name}.npy", split.tokens)
        if split.unmasked is not None:
            np.save(folder / f"{name}_unmasked.npy", split.unmasked)
    (folder / "tokenizer.json").write_text(tokenizer.model_dump_json(), encoding="utf-8")
    (folder / "meta.json").write_text(info.model_dump_json(indent=1), encoding="utf-8")
    (folder / "checksums.json").write_text(json.dumps(_checksums(folder), indent=1), encoding="utf-8")


def main(argv: list[str]) -> None:
    print(prepare_corpus(load_config(argv)[0].data).info.describe())


if __name__ == "__main__":
    run_command(main)
