"""A run's directory, without torch: create it, open it, resume it.

docs/reliability.md says what each file holds.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from config.errors import RANK, UserError
from config.files import (
    RUN_FILES,
    TEMPORARY,
    is_run,
    lock_of,
    locked,
    nearest_run,
    write_atomically,
)
from config.recipe import load_saved, to_toml
from config.resume import changed_options, refuse_changes
from config.schema import Config
from data.prepare import Corpus
from data.tokenizer import Tokenizer, load_tokenizer
from engine.logged_run import LoggedRun, open_logged_run
from engine.metrics import append_line, cut_after, is_outcome

CHECKPOINTS = ("last.safetensors", "previous.safetensors")


@dataclass(frozen=True)
class Run(LoggedRun):
    """A run's directory, its options and its tokenizer."""

    cfg: Config
    moved: Path | None = None  # where the run went that had this path before
    # options [before, now] of a resumed run
    changes: dict[str, list[Any]] = field(default_factory=dict)
    is_resumed: bool = False
    source: str = ""  # the model that it started from, if any: also of a resumed run
    had_outcome: bool = False  # a resumed run that came to its end before

    @property
    def recipe(self) -> Config:
        """The configuration that started it, or would start another one like it."""
        return self.cfg.with_run(init_from=self.source or "scratch")

    @cached_property
    def id(self) -> str:
        """An id that survives resuming and renaming."""
        return self._read_id()

    def _read_id(self) -> str:
        first_start = (self.path / "history.jsonl").read_bytes().split(b"\n")[0]
        return hashlib.sha256(first_start).hexdigest()[:8]

    def is_there(self) -> bool:
        """Whether nobody moved the directory of this run, removed it, or put another there."""
        try:
            return self.id == self._read_id()
        except OSError:
            return False

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self.path / "tokenizer.json")
        if tokenizer.vocab_size != self.info.vocab_size:
            raise UserError(
                f"{self.path}/tokenizer.json: has {tokenizer.vocab_size:,} tokens, and corpus.json "
                f"says {self.info.vocab_size:,}: they belong to different runs"
            )
        return tokenizer

    def start(self, step: int, device: str) -> None:
        """Save the config of a run that starts at `step`, cut its files there, note the start."""
        for temporary in filter(Path.is_file, self.path.glob(TEMPORARY)):  # of killed processes
            temporary.unlink()
        write_atomically(self.path / "config.toml", to_toml(self.recipe).encode())
        for outcome in ("verdict.txt", "evaluation.json"):
            (self.path / outcome).unlink(missing_ok=True)
        for name in ("metrics.jsonl", "samples.jsonl", "passage.jsonl"):
            cut_after(self.path / name, step)
        line = {
            "step": step,
            "time": datetime.now(UTC).isoformat(),
            "device": device,
            "torch": version("torch"),
        }
        if self.changes:
            line["changes"] = self.changes
        append_line(self.path / "history.jsonl", line)

    def was_changed(self, option: str) -> bool:
        """Whether a start of this run had another value of an option than the start before."""
        lines: list[bytes] = []
        with suppress(OSError):  # somebody removed it
            lines = (self.path / "history.jsonl").read_bytes().splitlines()
        return option in self.changes or any(option in _read_changes(line) for line in lines)

    def has_outcome(self) -> bool:
        """Whether the last line of metrics is there: then all of the outcome is there too."""
        return any(is_outcome(record) for record in self.records())


def _read_changes(line: bytes) -> dict[str, Any]:
    """The options that a line of history.jsonl says were changed; none if it is damaged."""
    try:
        changes = from_json(line)["changes"]
    except (ValueError, TypeError, LookupError):
        return {}
    if not isinstance(changes, dict):
        return {}
    return changes


def open_run(path: Path) -> Run:
    """Open the run in a directory; UserError if there is none, or its files are not a run's."""
    logged = open_logged_run(path)
    return Run(path, logged.info, load_saved(path / "config.toml"))


@contextmanager
def lock_run(cfg: Config) -> Iterator[Run | None]:
    """Be the only process that trains in out_dir; gives the run to resume, or None for a new one.

    UserError if out_dir cannot be a run's directory, or another process trains there.
    """
    path = Path(cfg.run.out_dir)
    _check_out_dir(path)
    if cfg.run.init_from == "resume" and not is_run(path):
        raise UserError(
            f"{path}: no run to resume; name the directory of one: python train.py out/RUN "
            f"--init_from=resume{nearest_run(path)}"
        )
    if cfg.loss.teacher:
        open_run(Path(cfg.loss.teacher))  # tells mistakes before a corpus is prepared
    earlier = None
    with ExitStack() as stack:
        if RANK == 0:  # which holds the lock for all
            taken = (
                f"out_dir={path}: another process is training there; wait for it, or choose "
                "another --out_dir"
            )
            stack.enter_context(locked(lock_of(path.resolve()), taken))
        if cfg.run.resumes and is_run(path):
            earlier = open_run(path)
        if earlier is not None and not earlier.info.has_text:
            raise UserError(
                f"{path}: came without the text that it was trained on, so it cannot be resumed; "
                f"train another run from it: --init_from={path}"
            )
        yield earlier


def _check_out_dir(path: Path) -> None:
    """Raise a UserError if a directory cannot become, or is not, that of a run."""
    if not path.resolve().name or path.name in ("", ".."):
        raise UserError(f"out_dir={path}: should be a directory of its own, such as out/mine")
    is_other = path.is_file()
    if path.is_dir() and not is_run(path):
        # a process that died while it made a run leaves such files
        temporaries = [temporary.name for temporary in path.glob(TEMPORARY)]
        unfinished = {*RUN_FILES[1:], *CHECKPOINTS, *temporaries}
        is_other = any(file.name not in unfinished for file in path.iterdir())
    if is_other:
        raise UserError(f"out_dir={path}: exists and is not a run; choose another --out_dir")


def begin_run(earlier: Run | None, cfg: Config, named: set[str], corpus: Corpus) -> Run:
    """A new run in out_dir, or the one to resume with the options of this start.

    `named` are the options on the command line. UserError if the run would continue with another
    model or text.
    """
    if earlier is None:
        return create_run(cfg, corpus)
    problems = []
    if corpus.info.sha256 != earlier.info.sha256:
        problems.append(
            f"its text has changed (sha256 was {earlier.info.sha256[:8]} and is now "
            f"{corpus.info.sha256[:8]})"
        )
    elif corpus.tokenizer != earlier.tokenizer:
        problems.append("the tokens of its text have changed")
    changes = changed_options(earlier.cfg, cfg)
    problems += refuse_changes(changes, named)
    if problems:
        raise UserError(f"{earlier.path}: {'; '.join(problems)}")
    return replace(
        earlier,
        cfg=cfg,
        changes=changes,
        is_resumed=True,
        source=earlier.cfg.run.source,
        had_outcome=earlier.has_outcome(),
    )


def create_run(cfg: Config, corpus: Corpus) -> Run:
    """A new run; one that has its name already is renamed to NAME.1, NAME.2, ..."""
    path = Path(cfg.run.out_dir)
    real = path.resolve()  # a link stays a link, and lock_run has locked where it leads
    moved = None
    if is_run(path):
        moved = _move_aside(real)
        if not path.is_absolute():
            moved = Path(os.path.relpath(moved))
    real.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINTS:  # of a start that failed
        (path / name).unlink(missing_ok=True)
    write_atomically(path / "tokenizer.json", corpus.tokenizer.model_dump_json().encode())
    write_atomically(path / "corpus.json", corpus.info.model_dump_json(indent=1).encode())
    return Run(path, corpus.info, cfg, moved, source=cfg.run.source)


def _move_aside(path: Path) -> Path:
    """Rename a run's directory to the first free one of NAME.1, NAME.2, ...; returns that."""
    n = 1
    while path.with_name(f"{path.name}.{n}").exists():
        n += 1
    return path.rename(path.with_name(f"{path.name}.{n}"))
