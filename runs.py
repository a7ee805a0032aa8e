"""A run's directory: what is in it, making one, and opening one. Needs no torch.

    config.toml     every knob's value; also a recipe
    corpus.json     what the corpus was: sizes, hash, baselines
    tokenizer.json  text to tokens and back
    metrics.jsonl   a flat JSON object a line, NLL in nats per token
    last/ best/     checkpoints: the newest, and the one with the lowest validation loss
    curves.png      the picture of metrics.jsonl
    ngrams.safetensors  what was counted in the training text, where the model starts from that
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from config.cli import read_config, write_config
from config.schema import Config
from data.baselines import Baseline
from data.ngrams import NGrams
from data.prepare import Corpus, prepare_corpus
from data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from errors import UserError

Record = dict[str, float]  # a line of metrics


@dataclass(frozen=True)
class Run:
    """An opened run; checkpoints are loaded by engine.checkpoint."""

    path: Path
    config: Config
    meta: dict[str, Any]  # of the corpus
    earlier: Path | None = None  # where the run went that had this path before

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def baselines(self) -> list[Baseline]:
        return [Baseline(**rung) for rung in self.meta["baselines"]]

    def load_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

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
    """The lines of a metrics.jsonl; one that a crash cut off is left out."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def create_run(config: Config, corpus: Corpus, ngrams: NGrams | None = None) -> Run:
    """A fresh directory at out_dir; an earlier run that was there is moved aside, and named."""
    path = Path(config.run.out_dir)
    earlier = None
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and (not is_run(path) or path == Path())):
        raise UserError(f"out_dir={path}: exists and is not a run; choose another --out_dir")
    if is_run(path):
        earlier = next(p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}.{n}")).exists())
        path.rename(earlier)
    path.mkdir(parents=True, exist_ok=True)
    save_tokenizer(corpus.tokenizer, path / "tokenizer.json")
    (path / "corpus.json").write_text(json.dumps(corpus.meta, indent=1), encoding="utf-8")
    if ngrams is not None:
        ngrams.save(path / "ngrams.safetensors")
    write_config(config, path / "config.toml")
    return Run(path, config, corpus.meta, earlier)


def resume_run(config: Config, corpus: Corpus, ngrams: NGrams | None = None) -> Run:
    """The run at out_dir, to go on with `config`; UserError where that would be another model or text."""
    run = open_run(Path(config.run.out_dir))
    was, now = _identity(run.config, run.meta), _identity(config, corpus.meta)
    different = [f"{name} was {was[name]} and is now {now[name]}" for name in was if was[name] != now[name]]
    if different:
        raise UserError(f"{run.path}: cannot go on with another model or text: {'; '.join(different)}")
    if ngrams is not None and not (run.path / "ngrams.safetensors").exists():
        ngrams.save(run.path / "ngrams.safetensors")
    return Run(run.path, config, run.meta)


def _identity(config: Config, meta: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to go on."""
    return {"text (sha256)": meta["sha256"][:8], "tokenizer": meta["tokenizer"], "vocab_size": meta["vocab_size"],
            **config.data.model_dump(exclude={"corpus", "tokenizer", "vocab_size"}),
            "eval_tokens": config.run.eval_tokens, "optimizer": config.optim.optimizer, **config.model.model_dump()}


def is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in ("config.toml", "corpus.json", "tokenizer.json"))


def open_run(path: Path) -> Run:
    """The run in a directory; UserError if there is none."""
    if not is_run(path):
        raise UserError(f"{path}: not a run; a run is a directory that train.py made, with a config.toml in it")
    try:
        meta = json.loads((path / "corpus.json").read_text(encoding="utf-8"))
        meta["sha256"], meta["tokenizer"], meta["vocab_size"], meta["baselines"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}/corpus.json: damaged ({error!r})") from None
    return Run(path, read_config(path / "config.toml"), meta)
