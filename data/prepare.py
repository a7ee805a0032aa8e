"""Text to token arrays, once: `python data/prepare.py NAME [--tokenizer=char|bpe|gpt2]`.

train.py does it by itself when a corpus is new. In data/<corpus>/<tokenizer>[-<what else differs>]/ it writes train.npy
and val.npy, token ids (uint16 or uint32); train_unmasked.npy and val_unmasked.npy (bool) if there is a mask;
tokenizer.json; and meta.json with sizes, baselines and the checksums of all.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Python looks for modules beside this file: let it look in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from config.cli import load_options
from config.errors import UserError, out_of_memory, run_command
from config.files import locked, sha256
from config.schema import Config, DataConfig
from data.baselines import MAX_TRAIN_TOKENS, MAX_VAL_TOKENS, Baseline, measure_baselines
from data.corpora import DATA, NAMES, read_corpus
from data.documents import SEPARATORS, Document, Split, encode_text, opening_prompt, plain_text, read_documents
from data.markov import LENGTH, MarkovSource
from data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer

FORMAT = 6  # of prepared files; an older one is prepared again


class SplitInfo(BaseModel, frozen=True):
    tokens: int
    bytes: int
    documents: int
    targets: int


class CorpusInfo(BaseModel, frozen=True):
    """What meta.json and a run's corpus.json say of a corpus."""

    format: int
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

    def describe(self) -> str:
        """The corpus in a line or two, and its baselines, from the worst to the best."""
        train, val = self.train, self.val
        lines = [f"{self.name}: {train.tokens:,} training and {val.tokens:,} validation tokens "
                 f"({self.tokenizer}, |V| = {self.vocab_size:,})"]
        if train.documents > 1:
            lines.append(f"  in {train.documents:,} and {val.documents:,} documents, each followed by an eos token")
        if val.targets < val.tokens - 1:
            lines.append(f"  of which {train.targets / train.tokens:.1%} and {val.targets / val.tokens:.1%} are "
                         "targets; the others are masked")
        if train.tokens > MAX_TRAIN_TOKENS or val.tokens > MAX_VAL_TOKENS + 1:
            counted, measured = min(MAX_TRAIN_TOKENS, train.tokens), min(MAX_VAL_TOKENS, val.tokens)
            lines.append(f"  baselines: n-grams are counted in the last {counted:,} training tokens; all are measured "
                         f"on the first {measured:,} validation tokens")
        lines += ["", "  baseline            nats/token  bits/byte  perplexity"]
        lines += [f"  {each.name:<18} {each.nats_per_token:11.4f} {each.bits_per_byte:10.3f} {each.perplexity:11.2f}"
                  for each in sorted(self.baselines, key=lambda each: -each.nats_per_token)]
        if self.entropy_rate is not None and self.source_nll is not None:
            error = self.source_nll - self.entropy_rate
            lines += ["", "  No model has a lower expected loss than the entropy rate. The source itself has "
                      f"{self.source_nll:.4f} on this text:", f"  {error:+.4f} is sampling error. A model's loss above "
                      "the source's is KL(source || model)."]
        return "\n".join(lines)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, its splits as memory maps."""

    info: CorpusInfo
    tokenizer: Tokenizer
    train: Split
    val: Split
    source_nll: np.ndarray | None = None  # of val[1:] in nats, where the source is known


def prepare_corpus(config: DataConfig) -> Corpus:
    """The prepared corpus; it is prepared again only if it is missing or damaged, or its text has changed."""
    with out_of_memory("the corpus is too large for this machine; use a smaller text"):
        text, entropy_rate, source_nll = read_source(config)
        text_sha256 = hashlib.sha256(text.encode()).hexdigest()
        folder = _folder(config, text_sha256)
        if _damage(folder, text_sha256) is not None:
            with locked(folder.with_name(f".{folder.name}.lock"), f"{folder}: another process prepares it", wait=True):
                if (damage := _damage(folder, text_sha256)) is not None:  # else the other process prepared it
                    if damage:
                        print(f"{folder}: damaged ({damage}); preparing it again", file=sys.stderr)
                    _prepare(text, text_sha256, entropy_rate, source_nll, folder, config)
        info = CorpusInfo.model_validate_json((folder / "meta.json").read_bytes())
        train, val = (Split(*(_load_array(path) for name in (split, f"{split}_unmasked")
                              if (path := folder / f"{name}.npy").exists())) for split in ("train", "val"))
        return Corpus(info, load_tokenizer(folder / "tokenizer.json"), train, val,
                      None if source_nll is None else source_nll[1 - len(val.tokens):])


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:  # with the right checksum, and yet a stranger's
        raise UserError(f"{path}: not a token array ({error}); delete its folder to prepare it again") from None


def read_source(config: DataConfig) -> tuple[str, float | None, np.ndarray | None]:
    """The text of a corpus and, for a known source, its entropy rate and its own NLL of each character, in nats."""
    if config.corpus != "markov":
        return read_corpus(config.corpus), None, None
    source = MarkovSource(config.markov_order, config.markov_alphabet, config.markov_temperature)
    text, nll = source.sample(LENGTH)
    return text, source.entropy_rate, nll


def split_text(text: str, config: DataConfig) -> dict[str, list[Document]]:
    """The documents of both splits. The validation split is the end of the text; documents stay whole."""
    if not config.has_documents:
        cut = int(len(text) * (1 - config.val_fraction))
        return {"train": read_documents(text[:cut], config), "val": read_documents(text[cut:], config)}
    documents = read_documents(text, config)
    if len(documents) < 2:
        raise UserError(f"corpus {config.corpus}: has {len(documents)} document(s); one is needed for each split")
    cut = min(max(1, int(len(documents) * (1 - config.val_fraction))), len(documents) - 1)
    return {"train": documents[:cut], "val": documents[cut:]}


def _folder(config: DataConfig, text_sha256: str) -> Path:
    name = config.corpus if config.corpus in NAMES else f"{Path(config.corpus).stem}-{text_sha256[:8]}"
    return DATA / name / "-".join([f"{config.tokenizer}{config.vocab_size if config.tokenizer == 'bpe' else ''}",
                                   *_differences(config)])


def _differences(config: DataConfig) -> Iterator[str]:
    """What else decides how a text is prepared; nothing at the defaults."""
    if config.val_fraction != 0.1:
        yield f"val{config.val_fraction}"
    if config.documents != "none":
        yield config.documents
    if not config.predict_eos:
        yield "eos_masked"
    if config.mask:
        yield f"mask_{hashlib.sha256(config.mask.encode()).hexdigest()[:8]}"
    if config.corpus == "markov":
        yield f"{config.markov_order}_{config.markov_alphabet}_{config.markov_temperature}"


def _damage(folder: Path, text_sha256: str) -> str | None:
    """Why a prepared folder cannot be used, or "" if it is missing or of another text; None if it can be used."""
    if not folder.exists():
        return ""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        if meta.get("format") != FORMAT:
            return ""
        checksums = meta.pop("checksums")
        if checksums.pop("meta.json") != _checksum(meta):
            return "meta.json has changed"
        changed = [name for name, checksum in checksums.items() if sha256(folder / name) != checksum]
        if changed or {path.name for path in folder.iterdir()} != {*checksums, "meta.json"}:
            return f"{', '.join(changed) or 'a file'} has changed"
        return None if CorpusInfo.model_validate(meta).sha256 == text_sha256 else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        return str(error).splitlines()[0]


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _prepare(text: str, text_sha256: str, entropy_rate: float | None, source_nll: np.ndarray | None, folder: Path,
             config: DataConfig) -> None:
    """Write everything to a new folder, which gets its name when it is whole."""
    documents = split_text(text, config)
    with tqdm(total=10, desc=f"preparing {Path(config.corpus).name}", bar_format="{desc} |{bar}| {postfix}",
              leave=False, disable=None) as bar:
        bar.set_postfix_str("tokens")
        train_text = plain_text(documents["train"])
        characters = "".join(set().union(*(text for part in documents.values() for each in part for text, _ in each)))
        eos_text = SEPARATORS.get(config.documents, "\n") if config.has_documents else None
        tokenizer = make_tokenizer(config.tokenizer, characters, train_text, config.vocab_size, eos_text)
        bar.update()
        splits = {name: encode_text(part, tokenizer, config, f"corpus {config.corpus}", f"its {name} split")
                  for name, part in documents.items()}
        if config.mask and all(is_target for document in documents["train"] for _, is_target in document):
            hint = "; its lines end in \\r\\n" if "\r\n" in train_text else ""
            raise UserError(f"mask={config.mask}: matches nothing in the training split of {config.corpus}{hint}")
        bar.update(2)
        bar.set_postfix_str("baselines")
        baselines = []
        for baseline in measure_baselines(splits["train"].tokens, splits["val"], tokenizer, entropy_rate):
            baselines.append(baseline)
            bar.update()
    sizes = {name: SplitInfo(tokens=len(split.tokens), bytes=tokenizer.count_bytes(split.tokens),
                             documents=len(documents[name]), targets=split.num_targets())
             for name, split in splits.items()}
    info = CorpusInfo(
        format=FORMAT, name=config.corpus if config.corpus in NAMES else Path(config.corpus).name, sha256=text_sha256,
        tokenizer=config.tokenizer, vocab_size=tokenizer.vocab_size, train=sizes["train"], val=sizes["val"],
        prompt=opening_prompt(documents["val"][0]) if config.has_documents else "", baselines=baselines,
        entropy_rate=entropy_rate,
        source_nll=None if source_nll is None else float(source_nll[1 - len(splits["val"].tokens):].mean()))
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        for name, split in splits.items():
            np.save(new / f"{name}.npy", split.tokens)
            if split.unmasked is not None:
                np.save(new / f"{name}_unmasked.npy", split.unmasked)
        (new / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
        meta = info.model_dump(mode="json")
        checksums = {path.name: sha256(path) for path in new.iterdir()} | {"meta.json": _checksum(meta)}
        (new / "meta.json").write_text(json.dumps(meta | {"checksums": checksums}, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def main(argv: list[str]) -> None:
    names, options = load_options(DataConfig, argv, "NAME", "?", f"{', '.join(NAMES)}, or a UTF-8 text file")
    if names:
        options = options.model_copy(update={"corpus": names[0]})
    if problems := Config(data=options).problems():
        raise UserError("; ".join(problems))
    print(prepare_corpus(options).info.describe())


if __name__ == "__main__":
    run_command(main)
