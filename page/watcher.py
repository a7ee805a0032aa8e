"""The page that follows a training: report.html, which reads report.js again and again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.terminal import screen_width
from engine.run import Run
from page.page import build_page, script_of_run, write_live_page, write_script

TIME_SHARE = 0.02  # of a training, that is for the page at most


class PageWatcher:
    """Writes report.html at the start, and report.js after evaluations.

    At the end, the data are also in report.html, which is then one file to share. An OSError has
    the file's name, where there is no room or the run's directory was moved; what could not be
    written is tried again later.
    """

    def __init__(self, run: Run, step: int) -> None:
        del step  # the page shows all that the run's files have
        self.run = run
        self.next_time = 0.0  # from which on report.js may be written again
        self.has_page = False
        self.address = ""
        with suppress(OSError):  # what comes next tries again, and raises it
            self._write_page()
            self.address = f"The page: {link_to(run.path / 'report.html')}"

    def update(self, record: dict[str, Any]) -> None:
        if "best_val_nll" in record:  # the last line, which metrics.jsonl may not have yet
            self.run = replace(self.run, final=record)
        started = time.perf_counter()
        if "val_nll" in record and started >= self.next_time:
            self._write(live=True)
            seconds = time.perf_counter() - started
            self.next_time = started + seconds / TIME_SHARE

    def close(self) -> None:
        self._write(live=False)

    def _write(self, live: bool) -> None:
        if not self.has_page:
            self._write_page()
        with self._writing("report.js") as path:
            script = script_of_run(self.run, live)
            write_script(path, script)
        if not live:
            with self._writing("report.html") as path:
                write_script(path, build_page(script))

    def _write_page(self) -> None:
        with self._writing("report.html") as path:
            write_live_page(path)
        self.has_page = True

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Give the path of a file to write; an OSError then has its name."""
        path = self.run.path / name
        try:
            self.run.check_there()
            yield path
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def link_to(path: Path) -> str:
    """Return a file's URL, which many terminals open by a click; its path, if that is too long."""
    url = path.resolve().as_uri()
    if len(f"The page: {url}") > screen_width():
        return str(path)
    return url
