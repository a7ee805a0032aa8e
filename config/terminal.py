"""What commands print: text from elsewhere cannot move the cursor, and lines end between words.

Into a file or a pipe, lines stay as they are, so that they can be searched, and have no colours.
"""

import os
import re
import shutil
import sys
import unicodedata
from typing import Any, TextIO

# Control characters (C0 without tab and line end, DEL, C1), and those that reverse the order of
# what follows.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MAX_COLUMNS = 100  # a longer line is hard to read
# Green, bold green, cyan and yellow.
STYLES = {"best": "32", "passed": "1;32", "sample": "36", "warning": "33"}
SEQUENCE = re.compile("\x1b\\[[0-9;]*[A-Za-z]|\r")  # of our own; it takes no columns
WARNING = re.compile("^ *(warning|error|WRONG):", re.MULTILINE)
# A line end, or a word with the space before it; a command begins with two words.
WORD = re.compile("\n|[^\\S\n]*(?:python |torchrun )?\\S+|[^\\S\n]+")
COMMAND = re.compile(r"\b(python \S+\.py|torchrun -)")
CONTINUED = " \\\n"  # a shell reads on after it
if os.name == "nt":
    CONTINUED = " `\n"


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
    """A stream that shows control characters, and breaks the lines on a screen between words."""

    def __init__(self, stream: TextIO) -> None:
        # by this name tqdm knows that a bar there and text here share a terminal
        self._wrapped = stream
        self.line = ""  # the start of what is being written, as if the screen had room for it
        self.column = 0

    def write(self, text: str) -> int:
        text = printable(text)
        if has_colours(self._wrapped):
            text = WARNING.sub(lambda match: paint(match[0], "warning"), text)
        return self.write_styled(text)

    def write_styled(self, text: str) -> int:
        """Write a text with colours of our own."""
        if self._wrapped.isatty():
            text = "".join(map(self._place, WORD.findall(text)))
        return self._wrapped.write(text)

    def _place(self, word: str) -> str:
        """Put a word on the screen: where this line has no room, on the next, indented as this.

        A command is continued as a shell reads it, so that it can be copied.
        """
        before = self.line
        self.line = (before + SEQUENCE.sub("", word))[:1000]  # enough to see a command
        line_end = "\n"
        room = screen_width() - self.column
        if word == line_end:
            self.line = ""
            self.column = 0
            return word
        if COMMAND.search(self.line):
            room -= 2
        if COMMAND.search(before):
            line_end = CONTINUED
        if before.strip() and count_columns(word) > room:
            word = re.sub(r"\S.*", "", before) + word.lstrip()
            self.column = count_columns(word)
            return line_end + word
        self.column += count_columns(word)
        return word

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def screen_width() -> int:
    """Return the columns that a line may fill."""
    return min(MAX_COLUMNS, shutil.get_terminal_size().columns)


def count_columns(text: str) -> int:
    """Count the columns that a text takes on a screen: some characters take two."""
    shown = SEQUENCE.sub("", text).expandtabs()
    wide = [character for character in shown if unicodedata.east_asian_width(character) in "WF"]
    return len(shown) + len(wide)


def fit_number(value: float, width: int, form: str) -> str:
    """Write a number in `width` characters, with fewer digits if it is long.

    >>> fit_number(69, 7, ".2f"), fit_number(1.5e30, 7, ".2f")
    ('69.00', '1.5e+30')
    """
    text = format(value, form)
    digits = width
    while len(text) > width and digits > 0:
        text = format(value, f".{digits}g")
        digits -= 1
    return text


def has_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours, and its user wants them."""
    is_old = os.name == "nt" and "WT_SESSION" not in os.environ
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_old and not is_plain


def paint(text: str, style: str) -> str:
    """Give a text one of STYLES."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def show_control_characters() -> None:
    """Let all that is printed from now on pass a Terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Terminal):
            setattr(sys, name, Terminal(stream))


def print_styled(text: str) -> None:
    """Print text with our own colours; what came from elsewhere has passed `printable`."""
    if isinstance(sys.stdout, Terminal):
        sys.stdout.write_styled(f"{text}\n")
    else:
        print(text)


def progress_bar(items: Any = None, desc: str = "", **options: Any) -> Any:
    """Make tqdm's bar, with control characters; in a file or a pipe only with disable=False."""
    from tqdm import tqdm  # here, because it takes a tenth of a second

    stream: Any = sys.stderr
    if isinstance(stream, Terminal):
        stream = stream._wrapped
    options = {"leave": False, "disable": None} | options
    return tqdm(items, printable(desc), file=stream, **options)


def say(text: str, style: str = "") -> None:
    """Print lines above the progress bars, in one of STYLES."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        if style and has_colours(sys.stdout):
            print_styled(paint(printable(text), style))
        else:
            print(text)
