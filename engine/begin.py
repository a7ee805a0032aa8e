"""Beginning to train in a directory: a new run, or going on with the one that is there. Needs no torch."""

import json
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from config.cli import to_toml
from config.schema import Config
from data.ngrams import NGrams
from data.prepare import Corpus
from errors import RANK, UserError
from files import SEAL, find_damage, only_one, replace_sealed, seal
from runs import Run, is_run, open_run

FILES = ["config.toml", "corpus.json", "tokenizer.json", "ngrams.safetensors", SEAL]  # that a run is made with
FREE = {"dropout"}  # knobs of the model that may change when a run goes on
NAMED = {"seed": "weights stay, batches and dropout change", "batch_size": "windows are shared out anew"}


@contextmanager
def hold_run(config: Config) -> Iterator[None]:
    """Be the only one that trains in out_dir; UserError where another process does."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to save
    path = Path(config.run.out_dir)
    resolved = path.resolve()
    if not resolved.name:
        raise UserError(f"out_dir={path}: should be a directory of its own, such as out/mine")
    if config.run.explain_batch or RANK > 0:  # nothing is trained; rank 0 holds it for all
        yield
        return
    with only_one(resolved.with_name(f".{resolved.name}.lock"), f"out_dir={path}: is being trained in, "
                  "wait for that to end, or choose another --out_dir; it is held") as before:
        if before:
            print(f"{before}, which trained in {path}/ before, was cut off")
        yield


def begin_run(config: Config, corpus: Corpus, ngrams: NGrams | None = None) -> Run:
    """A new run at out_dir, or the one that is there, to go on with: where that is asked for, and after a restart."""
    path, init_from = Path(config.run.out_dir), config.run.init_from
    new = _new(path)
    if init_from != "scratch" and not path.exists() and new.exists() and not find_damage(new):
        new.rename(path)  # it was killed as it was about to
    if init_from == "resume" or (is_run(path) and (init_from == "auto" or _is_restarted(path))):
        return resume_run(config, corpus, ngrams)
    return create_run(config, corpus, ngrams)


def create_run(config: Config, corpus: Corpus, ngrams: NGrams | None = None) -> Run:
    """A fresh directory at out_dir; an earlier run that was there is moved aside, and named."""
    path = Path(config.run.out_dir)
    real = path.resolve()  # so that a link stays one
    if path.name in ("", ".."):
        raise UserError(f"out_dir={path}: should be a directory of its own, such as out/mine")
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not is_run(path)):
        raise UserError(f"out_dir={path}: exists and is not a run; choose another --out_dir")
    if runs := [folder for folder in real.parents if is_run(folder)]:
        raise UserError(f"out_dir={path}: is inside of another run, {runs[0]}, which replaces its checkpoints; choose "
                        "another --out_dir")
    files = {"config.toml": _saved(config).encode(), "corpus.json": json.dumps(corpus.meta, indent=1).encode(),
             "tokenizer.json": json.dumps(corpus.tokenizer.to_json()).encode(),
             **({"ngrams.safetensors": ngrams.to_bytes()} if ngrams is not None else {})}
    new, earlier = _new(path), None
    try:
        new.mkdir(parents=True, exist_ok=True)
        _clear(new)  # of what one that was killed has left
        if any(new.iterdir()):
            raise UserError(f"{new}: is in the way: it has files that are not ours")
        for name, content in files.items():
            (new / name).write_bytes(content)
        seal(new)
        if is_run(path):
            aside = next(p for n in range(1, 10**6) if not (p := real.with_name(f"{real.name}.{n}")).exists())
            real.rename(aside)
            earlier = aside if path.is_absolute() else Path(os.path.relpath(aside))
        new.rename(real)  # where nothing is, or an empty directory
    except OSError:
        with suppress(OSError):
            _clear(new)
            new.rmdir()
        raise
    return Run(path, config, corpus.meta, earlier)


def _clear(new: Path) -> None:
    for name in FILES:
        (new / name).unlink(missing_ok=True)


def _new(path: Path) -> Path:
    """Where the run at `path` is made, before it is renamed."""
    real = path.resolve()
    return real.with_name(f".{real.name}.new")


def resume_run(config: Config, corpus: Corpus, ngrams: NGrams | None = None) -> Run:
    """The run at out_dir, to go on with `config`; UserError where that would be another model or text."""
    run = open_run(Path(config.run.out_dir))
    was, now = _identity(run.config, run.meta), _identity(config, corpus.meta)
    different = [f"{name} was {was[name]} and is now {now[name]}" for name in was if was[name] != now[name]]
    if different:
        raise UserError(f"{run.path}: cannot go on with another model or text: {'; '.join(different)}")
    before, after = run.config.leaves(), config.leaves()
    changes = {name: [before[name], after[name]] for name in before
               if before[name] != after[name] and name not in ("corpus", "out_dir", "init_from")}
    unnamed = [f"{name} was {before[name]} and is now {after[name]}: {meaning}; if that is meant, say --{name}="
               f"{after[name]}" for name, meaning in NAMED.items() if name in changes and not config.is_named(name)]
    if unnamed:
        raise UserError(f"{run.path}: {'; '.join(unnamed)}")
    return Run(run.path, config, run.meta, changes=changes)


def note_start(run: Run, ngrams: NGrams | None, start: dict[str, Any]) -> None:
    """Have a run's directory say how it is gone on with, now that it can be; `start` goes to its history."""
    if run.changes is not None:
        replace_sealed(run.path / "config.toml", _saved(run.config).encode())
        if ngrams is not None:  # counted anew, so a lost or damaged table comes back
            replace_sealed(run.path / "ngrams.safetensors", ngrams.to_bytes())
    line = start | {"changes": run.changes} if run.changes else start
    if job := _job():
        line["job"] = job
    with (run.path / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _saved(config: Config) -> str:
    """A run's own config.toml: what to do with it next time is for the command line to say."""
    return to_toml(config.with_run(init_from="scratch"))


def _job() -> str:
    """Something that torchrun's restarts of a job have in common, and other jobs have not; "" without torchrun.

    Its own name for the job is often "none"; the process that starts the ranks outlives them.
    """
    job = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return job and f"{job}, started by process {os.getppid()} on {platform.node()}"


def _is_restarted(path: Path) -> bool:
    """Whether torchrun has restarted the job that made the run at `path`."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    try:
        *_, last = (path / "history.jsonl").read_bytes().splitlines()
        return json.loads(last).get("job") == _job()
    except (OSError, ValueError, AttributeError):
        return False


def _identity(config: Config, meta: dict[str, Any]) -> dict[str, Any]:
    """What must stay the same for a run to go on."""
    return {"text (sha256)": meta["sha256"][:8], "tokenizer": meta["tokenizer"], "vocab_size": meta["vocab_size"],
            **config.data.model_dump(exclude={"corpus", "tokenizer", "vocab_size"}),
            "eval_tokens": config.run.eval_tokens, "optimizer": config.optim.optimizer,
            **config.model.model_dump(exclude=FREE)}
