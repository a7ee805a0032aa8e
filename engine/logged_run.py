"""A run's directory as far as its losses go, which is all that a picture needs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from config.errors import DamagedError, UserError
from config.files import RUN_FILES, check_entries, nearest_run
from data.info import CorpusInfo, read_info
from engine.metrics import Record, read_records


@dataclass(frozen=True)
class LoggedRun:
    """A run's directory, what is known of its corpus, and the lines of its metrics.jsonl."""

    path: Path
    info: CorpusInfo
    # the last line of metrics.jsonl, where it is not written yet
    final: Record | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        return self.path.name

    def read_metrics(self) -> list[Record]:
        """Read the lines of metrics.jsonl; damaged ones are left out."""
        return list(self.records())

    def records(self) -> Iterator[Record]:
        yield from read_records(self.path / "metrics.jsonl")
        if self.final is not None:
            yield self.final


def open_logged_run(path: Path) -> LoggedRun:
    """Open the run in a directory; UserError if there is none, or its files are not a run's."""
    missing = [name for name in RUN_FILES if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{path}: not a run of train.py, which is a directory with {', '.join(missing)}"
            f"{nearest_run(path)}"
        )
    check_entries(path)
    try:
        info = read_info(path / "corpus.json")
    except DamagedError as error:
        raise UserError(f"{error}; copy it from a backup, or train again") from None
    return LoggedRun(path, info)
