"""Keeps text that came from elsewhere from moving the cursor, or clearing the terminal."""

import re
import sys
from typing import Any, TextIO

# Control characters (C0 without tab and line end, DEL, C1), and those that reverse the order of
# what follows.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Put a visible sign for each control character of a text but tabs and line ends.

    >>> printable("red: \\x1b[31m")
    'red: ␛[31m'
    """
    return CONTROL.sub(_sign, text)


def one_line(text: str) -> str:
    """Put signs for tabs and line ends too: a name should not look like lines of our own.

    >>> one_line("a\\nb")
    'a␊b'
    """
    return re.sub("[\t\n]", _sign, printable(text))


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 32:
        return chr(0x2400 + code)  # Unicode has a picture of each
    return "␡" if code == 127 else "�"


class Terminal:
    """A stream that shows control characters instead of obeying them."""

    def __init__(self, stream: TextIO) -> None:
        # by this name tqdm knows that a bar there and text here share a terminal
        self._wrapped = stream

    def write(self, text: str) -> int:
        return self._wrapped.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def show_control_characters() -> None:
    """Let all that is printed from now on pass `printable`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Terminal):
            setattr(sys, name, Terminal(stream))


def print_styled(text: str) -> None:
    """Print text with our own colours; what came from elsewhere has passed `printable`."""
    print(text, file=_unfiltered(sys.stdout))


def progress_bar(items: Any = None, desc: str = "", **options: Any) -> Any:
    """Make tqdm's bar, with control characters; in a file or a pipe only with disable=False."""
    from tqdm import tqdm  # here, because it takes a tenth of a second

    options = {"leave": False, "disable": None} | options
    return tqdm(items, printable(desc), file=_unfiltered(sys.stderr), **options)


def say(text: str) -> None:
    """Print lines above the progress bars."""
    from tqdm import tqdm

    tqdm.write(text)


def _unfiltered(stream: TextIO) -> TextIO:
    return stream._wrapped if isinstance(stream, Terminal) else stream
