"""A run's directory, without torch: create it, open it, resume it.

    config.toml            the value of every option; also a recipe
    corpus.json            what the corpus was: sizes, hash, baselines
    tokenizer.json         text to tokens and back
    metrics.jsonl          a flat JSON object a line; losses in nats per token
    samples.jsonl          what the model wrote on the way
    history.jsonl          a line for each start: from which step, when, on what, and which options had changed
    last.safetensors       the newest checkpoint (engine/checkpoint.py)
    previous.safetensors   the checkpoint before it
    best.safetensors       the weights with the lowest validation loss
    curves.png             the picture of metrics.jsonl
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.cli import load_saved, to_toml
from config.errors import RANK, UserError
from config.files import TEMPORARY, locked, write_atomically
from config.schema import Config
from data.prepare import Corpus, CorpusInfo, prepare_corpus
from data.tokenizer import Tokenizer, load_tokenizer

Record = dict[str, float]  # a line of metrics.jsonl

FILES = ("config.toml", "corpus.json", "tokenizer.json")  # that make a directory a run; the first is written last
MAY_CHANGE = {"dropout"}  # of the options of the model, on resume
BY_NAME = {"seed": "the weights stay, batches and dropout change",
           "batch_size": "the rest of the text is divided into other batches",
           "dtype": "the arithmetic changes"}


@dataclass(frozen=True)
class Run:
    """An opened run."""

    path: Path
    config: Config
    info: CorpusInfo
    moved: Path | None = None  # where the run went that had this path before
    changes: dict[str, list[Any]] = field(default_factory=dict)  # options [before, now] of a resumed run
    is_resumed: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.path / "tokenizer.json")
        if tokenizer.vocab_size != self.info.vocab_size:
            raise UserError(f"{self.path}/tokenizer.json: has {tokenizer.vocab_size:,} tokens, and corpus.json says "
                            f"{self.info.vocab_size:,}: they belong to different runs")
        return tokenizer

    @cached_property
    def corpus(self) -> Corpus:
        """The prepared corpus of the run; UserError if its text has changed or cannot be found."""
        config = self.config.data
        try:
            corpus = prepare_corpus(config)
        except UserError as error:
            raise UserError(f"{error}\n  {self.path} was trained on it; if the text has moved, set corpus in "
                            f"{self.path}/config.toml") from None
        if corpus.info.sha256 != self.info.sha256:
            raise UserError(f"{self.path}: its corpus, {config.corpus}, has changed since (sha256 was "
                            f"{self.info.sha256[:8]} and is now {corpus.info.sha256[:8]})")
        if corpus.tokenizer.token_bytes != self.tokenizer.token_bytes:
            raise UserError(f"{self.path}: its corpus, {config.corpus}, now has other tokens")
        return corpus

    def read_metrics(self) -> list[Record]:
        """The lines of metrics.jsonl; damaged ones are left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return [record for line in lines if (record := parse_record(line))]

    def is_finished(self, step: int) -> bool:
        """Whether a run at `step` has nothing left to do."""
        return step >= self.config.optim.max_iters and any("best_val_nll" in record for record in self.read_metrics())


def parse_record(line: bytes) -> Record | None:
    """A line of metrics.jsonl; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(record, dict) and "step" in record and {type(v) for v in record.values()} <= {int, float}
    return record if valid else None


def is_run(path: Path) -> bool:
    return all((path / name).is_file() for name in FILES)


def open_run(path: Path) -> Run:
    """The run in a directory; UserError if there is none, or its files are not what train.py writes."""
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path}: not a run of train.py: {', '.join(missing)} is missing" if path.is_dir() else
                        f"{path}: not a run: there is no such directory")
    try:
        info = CorpusInfo.model_validate_json((path / "corpus.json").read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}/corpus.json: damaged: {str(error.errors()[0]['msg']).lower()}; copy it from a backup, "
                        "or train again") from None
    return Run(path, load_saved(path / "config.toml"), info)


@contextmanager
def lock_run(config: Config) -> Iterator[None]:
    """Be the only process that trains in out_dir; UserError if it cannot be a run's directory."""
    path = Path(config.run.out_dir)
    real = path.resolve()
    if not real.name or path.name in ("", ".."):
        raise UserError(f"out_dir={path}: should be a directory of its own, such as out/mine")
    unfinished = {*FILES[1:], *(temporary.name for temporary in path.glob(TEMPORARY))}  # a process died making it
    if path.is_file() or (path.is_dir() and not is_run(path) and {p.name for p in path.iterdir()} - unfinished):
        raise UserError(f"out_dir={path}: exists and is not a run; choose another --out_dir")
    if inside := [folder for folder in real.parents if is_run(folder)]:
        raise UserError(f"out_dir={path}: is inside another run, {inside[0]}; choose another --out_dir")
    if config.run.init_from == "resume" and not is_run(path):
        raise UserError(f"{path}: no run to resume; name the directory of one: python train.py out/RUN "
                        "--init_from=resume")
    if config.run.explain_batch or RANK > 0:  # nothing is trained; or rank 0 holds the lock for all
        yield
        return
    with locked(real.with_name(f".{real.name}.lock"), f"out_dir={path}: another process is training there; wait for "
                "it, or choose another --out_dir"):
        yield


def create_or_resume(config: Config, named: set[str], corpus: Corpus) -> Run:
    """A new run in out_dir, or the one that is there; `named` are the options named on the command line."""
    path = Path(config.run.out_dir)
    if config.run.init_from == "resume" or (config.run.init_from == "auto" and is_run(path)):
        return resume_run(config, named, corpus)
    return create_run(config, corpus)


def create_run(config: Config, corpus: Corpus) -> Run:
    """A new directory; a run that has its name already is renamed to NAME.1, NAME.2, ..."""
    path, moved = Path(config.run.out_dir), None
    real = path.resolve()  # so that a link stays a link
    if is_run(path):
        aside = next(p for n in range(1, 10**6) if not (p := real.with_name(f"{real.name}.{n}")).exists())
        real.rename(aside)
        moved = aside if path.is_absolute() else Path(os.path.relpath(aside))
    write_atomically(real / "tokenizer.json", corpus.tokenizer.model_dump_json().encode())
    write_atomically(real / "corpus.json", corpus.info.model_dump_json(indent=1).encode())
    write_atomically(real / "config.toml", to_toml(config).encode())
    return Run(path, config, corpus.info, moved)


def resume_run(config: Config, named: set[str], corpus: Corpus) -> Run:
    """The run in out_dir, to continue with `config`; UserError if that is another model or text."""
    run = open_run(Path(config.run.out_dir))
    was, now = _identity(run.config, run.info), _identity(config, corpus.info)
    different = [f"{name} was {was[name]} and is now {now[name]}" for name in was if was[name] != now[name]]
    if different:
        raise UserError(f"{run.path}: cannot continue with another model or text: {'; '.join(different)}")
    before, after = run.config.options(), config.options()
    changes = {name: [before[name], after[name]] for name in before
               if before[name] != after[name] and name not in ("corpus", "out_dir", "init_from")}
    unnamed = [f"{name} was {before[name]} and is now {after[name]}: {meaning}; if you want that, add --{name}="
               f"{after[name]}" for name, meaning in BY_NAME.items() if name in changes and name not in named]
    if unnamed:
        raise UserError(f"{run.path}: {'; '.join(unnamed)}")
    return Run(run.path, config, run.info, changes=changes, is_resumed=True)


def note_start(run: Run, step: int, device: str) -> None:
    """Save the config of a resumed run, append a line to the history, and remove what killed processes left."""
    for temporary in run.path.glob(TEMPORARY):
        temporary.unlink()
    if run.is_resumed:
        write_atomically(run.path / "config.toml", to_toml(run.config).encode())
    start = {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), "device": device,
             "torch": version("torch")}
    append_line(run.path / "history.jsonl", start | ({"changes": run.changes} if run.changes else {}))


def append_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _identity(config: Config, info: CorpusInfo) -> dict[str, Any]:
    """What must stay the same in a resumed run."""
    return {"text (sha256)": info.sha256[:8], "tokenizer": info.tokenizer, "vocab_size": info.vocab_size,
            **config.data.model_dump(exclude={"corpus", "tokenizer", "vocab_size"}),
            **config.model.model_dump(exclude=MAY_CHANGE), "optimizer": config.optim.optimizer}
