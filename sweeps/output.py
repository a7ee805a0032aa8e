"""Writes what a sweep has found: sweep.json for programs, sweep.html for people."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from config.files import write_atomically
from page.sweep import write_sweep_page
from sweeps.table import Content

INTERVAL = 5  # seconds between two versions


class Output:
    """The files of a sweep. One that cannot be written is told once, and stops no training."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.warn = warn
        self.written_at = -math.inf
        self.failing: set[str] = set()

    def update(self, content: Content) -> None:
        """Write the files, unless they are young."""
        if time.monotonic() > self.written_at + INTERVAL:
            self.write(content | {"is_live": True})

    def write(self, content: Content) -> None:
        """Write the files now."""
        text = json.dumps(content, indent=1)
        self.attempt("sweep.json", lambda path: write_atomically(path, text.encode()))
        self.attempt("sweep.html", lambda path: write_sweep_page(path.parent, content))
        self.written_at = time.monotonic()

    def attempt(self, name: str, write: Callable[[Path], None]) -> None:
        """Call write(path); say once if it fails."""
        try:
            write(self.folder / name)
            self.failing.discard(name)
        except Exception as error:  # a full disk, or a run whose files are damaged
            if name not in self.failing:
                self.warn(f"warning: {self.folder / name} could not be written: {error}")
            self.failing.add(name)
