"""Text to token arrays, once: `python data/prepare.py NAME [--tokenizer=char|bpe|gpt2]`.

train.py does this by itself when a corpus is new. What is made, in data/<corpus>/<tokenizer>/:
train.npy and val.npy, token ids, uint16 or uint32; tokenizer.json; and meta.json with the sizes,
the hash of the source and the baselines.
"""

import hashlib
import json
import os
import shutil
import sys
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
from data.corpora import DATA, NAMED, NAMES, read_corpus
from data.markov import LENGTH, Floor, MarkovSource
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer, save_tokenizer
from errors import UserError, run_command

FORMAT = 1  # raised when prepared files of an older program can no longer be used


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: token ids as memory maps `(N,)`, their tokenizer, and meta.json."""

    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray
    meta: dict[str, Any]
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the probabilities are known

    @property
    def baselines(self) -> list[Baseline]:
        return [Baseline(**rung) for rung in self.meta["baselines"]]

    def floor(self, scored: int) -> float | None:
        """Nats per token that the source itself pays for the first `scored` of val[1:], where that is known.

        A model's loss on the same tokens, less this, estimates KL(source || model) with much less
        noise than its loss less the entropy rate: the luck of this text is in both, and cancels.
        """
        return None if self.source_nll is None else float(self.source_nll[:scored].mean())


def prepare_corpus(config: DataConfig) -> Corpus:
    """The prepared corpus, made anew only if it is missing or its text has changed."""
    text, floor = _read(config)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    source = {"format": FORMAT, "corpus": config.corpus if config.corpus in NAMED else Path(config.corpus).name,
              "sha256": sha256}
    folder = _folder(config, sha256)
    meta = _read_meta(folder)
    if any(meta.get(key) != value for key, value in source.items()):
        meta = _prepare(text, floor, source, folder, config)
    try:
        train, val = (np.load(folder / f"{split}.npy", mmap_mode="r") for split in ("train", "val"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: damaged ({error}); delete it to have it prepared again") from None
    return Corpus(load_tokenizer(folder / "tokenizer.json"), train, val, meta,
                  floor.nll[len(text) - len(val) + 1:] if floor else None)


def _read(config: DataConfig) -> tuple[str, Floor | None]:
    """The text of a corpus and, where the source is known, its floor."""
    if config.corpus != "markov":
        return read_corpus(config.corpus), None
    source = MarkovSource(config.markov_order, config.markov_alphabet, config.markov_temperature)
    text, nll = source.sample(LENGTH)
    return text, Floor(source.entropy_rate, nll)


def _folder(config: DataConfig, sha256: str) -> Path:
    name = config.corpus if config.corpus in NAMED else f"{Path(config.corpus).stem}-{sha256[:8]}"
    cut = "" if config.val_fraction == 0.1 else f"-val{config.val_fraction}"
    return DATA / name / f"{config.tokenizer}{config.vocab_size if config.tokenizer == 'bpe' else ''}{cut}"


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return meta if isinstance(meta, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}


def _prepare(text: str, floor: Floor | None, source: dict[str, Any], folder: Path, config: DataConfig
             ) -> dict[str, Any]:
    """Make everything in `folder`, beside it first and then renamed: it is never half-made."""
    cut = int(len(text) * (1 - config.val_fraction))  # in characters; the splits are contiguous
    splits = {"train": text[:cut], "val": text[cut:]}
    with tqdm(total=10, desc=f"preparing {source['corpus']}", bar_format="{desc} |{bar}| {postfix}",
              leave=False, disable=None) as bar:
        bar.set_postfix_str("tokens")
        tokenizer = make_tokenizer(config.tokenizer, text, splits["train"], config.vocab_size)
        bar.update()
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        tokens = {}
        for split, part in splits.items():
            tokens[split] = tokenizer.encode(part).astype(dtype)
            bar.update()
            if len(tokens[split]) < 2:
                raise UserError(f"corpus {source['corpus']}: too short: its {split} split has {len(tokens[split])} "
                                "token(s), and it takes two to predict one from the other")
        bar.set_postfix_str("baselines")
        baselines = []
        for baseline in ladder(tokens["train"], tokens["val"], tokenizer, floor and floor.entropy_rate):
            baselines.append(asdict(baseline))
            bar.update()
    meta = source | {
        "tokenizer": config.tokenizer, "vocab_size": tokenizer.vocab_size,
        **{split: {"tokens": len(tokens[split]), "bytes": len(splits[split].encode())} for split in splits},
        "baselines": baselines}
    if floor:  # a token is a character
        meta |= {"entropy_rate": floor.entropy_rate, "source_nll": float(floor.nll[cut + 1:].mean())}
    made = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for split, array in tokens.items():
        np.save(made / f"{split}.npy", array)
    save_tokenizer(tokenizer, made / "tokenizer.json")
    (made / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return meta


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
