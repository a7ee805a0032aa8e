"""Opens a run's directory, without torch.

docs/reliability.md says what each file holds.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from config.errors import UserError
from config.files import TEMPORARY, write_atomically
from config.recipe import load_saved, to_toml
from config.schema import Config
from data.tokenizer import Tokenizer, load_tokenizer
from engine.logged_run import LoggedRun, open_logged_run
from engine.metrics import append_line, cut_after, is_outcome


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

    def check_there(self) -> None:
        """Raise an OSError if the directory does not hold this run any more."""
        is_there = False
        with suppress(OSError):
            is_there = self.id == self._read_id()
        if not is_there:
            raise OSError("somebody moved or replaced its directory")

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
        """Return whether any start of this run changed the value of an option."""
        lines: list[bytes] = []
        with suppress(OSError):  # somebody removed it
            lines = (self.path / "history.jsonl").read_bytes().splitlines()
        return option in self.changes or any(option in _read_changes(line) for line in lines)

    def has_outcome(self) -> bool:
        """Return whether the last line of metrics is there: it comes after all of the outcome."""
        return any(is_outcome(record) for record in self.records())


def _read_changes(line: bytes) -> dict[str, Any]:
    """Read which options a line of history.jsonl says were changed; {} if it is damaged."""
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
