"""What a person sees of a command on a terminal: `python -m tests.screen 80 train.py [...]`.

That also names the rows that were too long, so that the terminal itself broke them somewhere.
"""

import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from config.errors import run_command

SEQUENCE = re.compile("\x1b\\[([0-9;]*)([A-Za-z])|[^\x1b]")


class Tty(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return a number that bars ask the width of."""
        return 1


@dataclass
class Screen:
    """A terminal so many columns wide."""

    columns: int = 80
    raw: str = ""  # what was written
    rows: list[str] = field(default_factory=lambda: [""])
    too_long: list[str] = field(default_factory=list)  # rows that it had to break
    row: int = 0
    column: int = 0
    returncode: int = 0  # of the command

    def write(self, text: str) -> None:
        self.raw += text
        for match in SEQUENCE.finditer(text):
            if match[2] == "A":
                self.row = max(0, self.row - int(match[1] or 1))
            elif match[2] == "K":
                self.rows[self.row] = self.rows[self.row][: self.column]
            elif match[2] == "J":
                self.rows[self.row :] = [self.rows[self.row][: self.column]]
            elif match[2] is None:
                self._put(match[0])

    def _put(self, character: str) -> None:
        if character == "\n":
            self._next_row()
        elif character == "\r":
            self.column = 0
        elif self.column + width_of(character) > self.columns:
            self.too_long.append(self.rows[self.row])
            self._next_row()
            self._put(character)
        else:
            # a wide character counts as one of the row: right at its end, which is enough here
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
            self.column += width_of(character)

    def _next_row(self) -> None:
        self.column = 0
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


def width_of(character: str) -> int:
    return 1 + (unicodedata.east_asian_width(character) in "WF")


@contextmanager
def printing_to_a_terminal(columns: int = 80, **variables: str) -> Iterator[Tty]:
    """Print to a terminal so many columns wide, with these environment variables."""
    tty = Tty()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "TERM"):
            patch.delenv(name, raising=False)
        for name, value in {"COLUMNS": str(columns), "WT_SESSION": "1", **variables}.items():
            patch.setenv(name, value)
        patch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))
        with redirect_stdout(tty), redirect_stderr(tty):
            yield tty


def show(script: str, *arguments: str, columns: int = 80, **variables: str) -> Screen:
    """Run a command in this process, on a terminal that is none."""
    screen = Screen(columns)
    main = import_module(script.removesuffix(".py").replace("/", ".")).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        with printing_to_a_terminal(columns, **variables) as tty:
            try:
                run_command(main)
            except SystemExit as exit:
                screen.returncode = int(exit.code or 0)
    screen.write(tty.getvalue())
    return screen


def run_in_terminal(
    *command: str,
    cwd: Path,
    columns: int = 80,
    interrupt: Callable[[Screen], bool] | None = None,
    **variables: str,
) -> Screen:
    """Run `python COMMAND` in a pseudo-terminal; Ctrl-C is pressed when `interrupt` says so."""
    import fcntl
    import pty
    import termios

    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {"TERM": "xterm", "OMP_NUM_THREADS": "1"} | variables
    process = subprocess.Popen(
        ["env", "-u", "NO_COLOR", "-u", "COLUMNS", sys.executable, *command],
        cwd=cwd,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | environment,
    )
    os.close(terminal)
    screen = Screen(columns)
    deadline = time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            try:
                screen.write(os.read(keyboard, 2**16).decode(errors="replace"))
            except OSError:  # the command has ended
                break
            if interrupt is not None and interrupt(screen):
                process.send_signal(signal.SIGINT)
                interrupt = None
        screen.returncode = process.wait(60)
    finally:
        process.kill()
        os.close(keyboard)
    return screen


if __name__ == "__main__":
    width, *words = sys.argv[1:]
    shown = run_in_terminal(*words, cwd=Path.cwd(), columns=int(width))
    print(shown.text)
    print(f"exit code {shown.returncode}; rows that were too long:", *shown.too_long, sep="\n")
