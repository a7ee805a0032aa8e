"""Text to token arrays, once: `python data/prepare.py NAME [--tokenizer=char|bpe|gpt2]`.

train.py does this by itself when a corpus is new. What is made, in data/<corpus>/<tokenizer>[-<what else differs>]/:
train.npy and val.npy, token ids, uint16 or uint32; train_scored.npy and val_scored.npy where not all are scored,
bool; tokenizer.json; meta.json with the sizes, the hash of the source and the baselines; and SHA256SUMS of all of them.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, Python looks for modules beside it: look in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

import report
from config.cli import load_options
from config.schema import DataConfig
from data.baselines import Baseline, ladder
from data.corpora import DATA, NAMES, read_corpus
from data.documents import SEPARATORS, Document, Split, encode_text, given_first, plain_text, read_documents
from data.markov import LENGTH, Floor, MarkovSource
from data.ngrams import MAX_VOCABULARY, NGrams, count_ngrams
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from errors import UserError, run_command
from files import find_damage, made_anew, only_one

FORMAT = 5  # raised when prepared files of an older program can no longer be used


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: its splits as memory maps, their tokenizer, and meta.json."""

    tokenizer: Tokenizer
    train: Split
    val: Split
    meta: dict[str, Any]
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the probabilities are known

    @property
    def baselines(self) -> list[Baseline]:
        return [Baseline(**rung) for rung in self.meta["baselines"]]

    def count_ngrams(self, order: int) -> NGrams | None:
        """Those of the training split, in views that leave out each part; None for order 0."""
        if not order:
            return None
        if self.tokenizer.vocab_size > MAX_VOCABULARY:
            raise UserError(f"ngram={order}: takes a vocabulary of at most {MAX_VOCABULARY:,} tokens, and this has "
                            f"{self.tokenizer.vocab_size:,}; use --ngram=0, or another tokenizer")
        return count_ngrams(self.train.tokens, order, self.tokenizer.vocab_size, parts=True)

    def floor(self, scored: int) -> float | None:
        """Nats per token that the source itself pays for the first `scored` of val[1:], where that is known.

        A model's loss on the same tokens, less this, estimates KL(source || model) with much less
        noise than its loss less the entropy rate: the luck of this text is in both, and cancels.
        """
        return None if self.source_nll is None else float(self.source_nll[:scored].mean())


def prepare_corpus(config: DataConfig) -> Corpus:
    """The prepared corpus, made anew only if it is missing or its text has changed."""
    text, floor = read_source(config)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    source = {"format": FORMAT, "corpus": config.corpus if config.corpus in NAMES else Path(config.corpus).name,
              "sha256": sha256}
    folder = _folder(config, sha256)
    if _fault(folder, source) is not None:
        with only_one(folder.with_name(f".{folder.name}.lock"), f"{folder}: is being prepared", wait=True):
            if (fault := _fault(folder, source)) is not None:  # nor did another prepare it meanwhile
                if fault:
                    print(f"{fault}: preparing it again", file=sys.stderr)
                _prepare(text, floor, source, folder, config)
    tokenizer = load_tokenizer(folder / "tokenizer.json", f"delete {folder} to have it prepared again")
    try:
        train, val = (Split(*(np.load(path, mmap_mode="r") for part in (name, f"{name}_scored")
                              if (path := folder / f"{part}.npy").exists())) for name in ("train", "val"))
    except ValueError as error:  # under the right seal, and yet not arrays of ours
        raise UserError(f"{folder}/*.npy: not token arrays ({error}); delete {folder} to have it prepared again"
                        ) from None
    return Corpus(tokenizer, train, val, _read_meta(folder), floor.nll[1 - len(val.tokens):] if floor else None)


def _fault(folder: Path, source: dict[str, Any]) -> str | None:
    """Why a folder cannot be used: its damage, or "" if it was not made from this source; None if it can."""
    meta = _read_meta(folder)
    if folder.exists() and meta.get("format", FORMAT) == FORMAT and (damage := find_damage(folder)):
        return damage
    return None if all(meta.get(key) == value for key, value in source.items()) else ""


def read_source(config: DataConfig) -> tuple[str, Floor | None]:
    """The text of a corpus and, where the source is known, its floor."""
    if config.corpus != "markov":
        return read_corpus(config.corpus), None
    source = MarkovSource(config.markov_order, config.markov_alphabet, config.markov_temperature)
    text, nll = source.sample(LENGTH)
    return text, Floor(source.entropy_rate, nll)


def _folder(config: DataConfig, sha256: str) -> Path:
    name = config.corpus if config.corpus in NAMES else f"{Path(config.corpus).stem}-{sha256[:8]}"
    return DATA / name / "-".join([f"{config.tokenizer}{config.vocab_size if config.tokenizer == 'bpe' else ''}",
                                   *_cut(config)])


def _cut(config: DataConfig) -> Iterator[str]:
    """What of the configuration, besides the tokenizer, decides what is prepared; nothing at the defaults."""
    if config.val_fraction != 0.1:
        yield f"val{config.val_fraction}"
    if config.documents != "none":
        yield config.documents
    if not config.score_end:
        yield "end_given"
    if config.mask:
        yield f"mask_{hashlib.sha256(config.mask.encode()).hexdigest()[:8]}"
    if config.corpus == "markov":
        yield f"{config.markov_order}_{config.markov_alphabet}_{config.markov_temperature}"


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta if isinstance(meta, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _prepare(text: str, floor: Floor | None, source: dict[str, Any], folder: Path, config: DataConfig) -> None:
    """Make everything in `folder`, beside it first and then renamed: it is never half-made."""
    documents = split_text(text, config)
    separator = SEPARATORS.get(config.documents, "\n") if config.has_documents else None
    with tqdm(total=10, desc=f"preparing {source['corpus']}", bar_format="{desc} |{bar}| {postfix}",
              leave=False, disable=None) as bar:
        bar.set_postfix_str("tokens")
        train_text = plain_text(documents["train"])
        characters = plain_text([*documents["train"], *documents["val"]], between="")
        tokenizer = make_tokenizer(config.tokenizer, characters, train_text, config.vocab_size, separator)
        bar.update()
        splits = {}
        for name, part in documents.items():
            splits[name] = _encode(name, part, tokenizer, config)
            bar.update()
        bar.set_postfix_str("baselines")
        baselines = []
        for baseline in ladder(splits["train"].tokens, splits["val"], tokenizer, floor and floor.entropy_rate):
            baselines.append(asdict(baseline))
            bar.update()
    meta = source | {
        "tokenizer": config.tokenizer, "vocab_size": tokenizer.vocab_size,
        **{name: {"tokens": len(split.tokens), "bytes": tokenizer.count_bytes(split.tokens),
                  "documents": len(documents[name]), "scored": split.count_scored()} for name, split in splits.items()},
        "opening": given_first(documents["val"][0]) if config.has_documents else "", "baselines": baselines}
    if floor:  # a token is a character
        nll = floor.nll[1 - len(splits["val"].tokens):]
        meta |= {"entropy_rate": floor.entropy_rate, "source_nll": float(nll.mean())}
    with made_anew(folder, old := folder.with_name(f"{folder.name}.old")) as made:
        for name, split in splits.items():
            np.save(made / f"{name}.npy", split.tokens)
            if split.scored is not None:
                np.save(made / f"{name}_scored.npy", split.scored)
        (made / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
        (made / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)


def split_text(text: str, config: DataConfig) -> dict[str, list[Document]]:
    """Both splits' documents: contiguous, cut between documents, or in the middle of an only one."""
    if not config.has_documents:
        cut = int(len(text) * (1 - config.val_fraction))  # in characters
        return {"train": read_documents(text[:cut], config), "val": read_documents(text[cut:], config)}
    documents = read_documents(text, config)
    if len(documents) < 2:
        raise UserError(f"corpus {config.corpus}: has {len(documents)} document(s); it takes two to have one for "
                        "validation")
    cut = min(max(1, int(len(documents) * (1 - config.val_fraction))), len(documents) - 1)
    return {"train": documents[:cut], "val": documents[cut:]}


def _encode(name: str, documents: list[Document], tokenizer: Tokenizer, config: DataConfig) -> Split:
    split = encode_text(documents, tokenizer, config, f"corpus {config.corpus}", f"its {name} split")
    if name == "train" and config.mask and all(scored for document in documents for _, scored in document):
        hint = "; its lines end in \\r\\n" if "\r\n" in plain_text(documents) else ""
        raise UserError(f"mask={config.mask}: matches nothing in the {name} split of {config.corpus}{hint}")
    return split


def main(argv: list[str]) -> None:
    names, config = load_options(DataConfig, argv, "NAME", "?", f"{', '.join(NAMES)}, or a UTF-8 text file")
    if names:
        config = config.model_copy(update={"corpus": names[0]})
    if problems := config.problems():
        raise UserError("; ".join(problems))
    corpus = prepare_corpus(config)
    print(report.corpus(corpus.meta, corpus.baselines))


if __name__ == "__main__":
    run_command(main)
