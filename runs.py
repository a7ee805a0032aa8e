"""A run's directory: what is in it, and opening one. Needs no torch.

    config.toml     every knob's value; also a recipe
    corpus.json     what the corpus was: sizes, hash, baselines
    tokenizer.json  text to tokens and back
    ngrams.safetensors  what was counted in the training text, where the model starts from that
    SHA256SUMS      of these four
    metrics.jsonl   a flat JSON object a line, NLL in nats per token
    history.jsonl   a line for each start: from which step, when, on what, and which knobs were changed
    last/ best/     checkpoints: the newest, and the one with the lowest validation loss
    previous/       the checkpoint that last/ was before
    curves.png      the picture of metrics.jsonl
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from config.cli import parse_config
from config.schema import Config
from data.baselines import Baseline
from data.prepare import Corpus, prepare_corpus
from data.tokenizer import Tokenizer, load_tokenizer
from errors import UserError
from files import read_sealed

Record = dict[str, float]  # a line of metrics

REMEDY = "have it from a copy, or train again"


@dataclass(frozen=True)
class Run:
    """An opened run; checkpoints are loaded by engine.checkpoint."""

    path: Path
    config: Config
    meta: dict[str, Any]  # of the corpus
    earlier: Path | None = None  # where the run went that had this path before
    changes: dict[str, list[Any]] | None = None  # to knobs, [before, now], of a run that goes on; None for a new one

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def baselines(self) -> list[Baseline]:
        return [Baseline(**rung) for rung in self.meta["baselines"]]

    def load_tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.path / "tokenizer.json", REMEDY)
        if tokenizer.vocab_size != self.meta["vocab_size"]:
            raise UserError(f"{self.path}/tokenizer.json: has {tokenizer.vocab_size:,} tokens, and corpus.json "
                            f"{self.meta['vocab_size']}; {REMEDY}")
        return tokenizer

    @cached_property
    def corpus(self) -> Corpus:
        """The prepared corpus that the run was trained on; UserError if its text is not what it was."""
        corpus = prepare_corpus(self.config.data)
        if corpus.meta["sha256"] != self.meta["sha256"]:
            raise UserError(f"{self.path}: its corpus, {self.config.data.corpus}, has changed since (sha256 was "
                            f"{self.meta['sha256'][:8]} and is now {corpus.meta['sha256'][:8]})")
        if corpus.tokenizer.token_bytes != self.load_tokenizer().token_bytes:
            raise UserError(f"{self.path}: its corpus, {self.config.data.corpus}, is now cut into other tokens")
        return corpus

    @cached_property
    def metrics(self) -> list[Record]:
        """The lines of metrics.jsonl, as they were when first asked for."""
        return read_metrics(self.path / "metrics.jsonl")


def read_metrics(path: Path) -> list[Record]:
    """The lines of a metrics.jsonl; one that a crash cut off, or that is damaged, is left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [record for line in lines if (record := parse_record(line))]


def parse_record(line: bytes) -> Record | None:
    """A line of metrics; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(record, dict) and "step" in record and {type(v) for v in record.values()} <= {int, float}
    return record if sound else None


def is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in ("config.toml", "corpus.json", "tokenizer.json"))


def open_run(path: Path) -> Run:
    """The run in a directory; UserError if there is none, or its files are not what was written."""
    if not is_run(path):
        raise UserError(f"{path}: not a run; a run is a directory that train.py made, with a config.toml in it")
    config, corpus = (read_sealed(path / name, REMEDY) for name in ("config.toml", "corpus.json"))
    try:
        meta = json.loads(corpus)
        if not (isinstance(meta["sha256"], str) and isinstance(meta["vocab_size"], int)):
            raise ValueError("sha256 or vocab_size is of the wrong type")
        meta["tokenizer"], [Baseline(**rung) for rung in meta["baselines"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}/corpus.json: not what train.py writes ({error!r:.80}); {REMEDY}") from None
    return Run(path, parse_config(config.decode("utf-8", errors="replace"), path / "config.toml"), meta)
