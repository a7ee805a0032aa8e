"""On a terminal no line is broken within a word, and colours come only where they are wanted."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.terminal import Terminal, print_styled, say
from tests.conftest import TINY, call, training_in
from tests.screen import printing_to_a_terminal

LONG = "out/a_long_name,learning_rate=0.01,max_iters=100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a run in out/run/, and prepared corpora."""
    folder = tmp_path_factory.mktemp("screen")
    with training_in(folder):
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY)
        yield folder


def lay_out(text: str, columns: int = 80) -> str:
    """Print a text to a terminal; returns what is written there."""
    with printing_to_a_terminal(columns) as tty:
        print(text, end="", file=Terminal(tty))
    return tty.getvalue()


def test_lines_end_between_words_and_keep_their_indentation() -> None:
    assert lay_out("one two three\n", 9) == "one two\nthree\n"
    assert lay_out("  one two three\n", 9) == "  one two\n  three\n"
    assert lay_out("one\n\n  two\n", 9) == "one\n\n  two\n"
    assert lay_out("a_word_too_long and more\n", 9) == "a_word_too_long\nand more\n"
    assert lay_out("12345678 123456789\n", 9) == "12345678\n123456789\n"
    assert lay_out("日本語 日本語\n", 9) == "日本語\n日本語\n"  # two columns each
    first_line = lay_out("words " * 40, 300).splitlines()[0]
    assert first_line == " ".join(["words"] * 16)  # 100 columns at most


def test_a_command_can_be_copied() -> None:
    command = f"  python train.py {LONG} --init_from=resume\n"
    shown = lay_out(f"Stopped. To resume:\n{command}", 80)
    assert shown == (
        f"Stopped. To resume:\n  python train.py {LONG} \\\n  --init_from=resume\n"
    ).replace("\\", "`" if sys.platform == "win32" else "\\")


def test_a_line_may_come_in_parts() -> None:
    with printing_to_a_terminal(9) as tty:
        terminal = Terminal(tty)
        for part in ("on", "e", " two", " three", "\n", "four"):
            terminal.write(part)
    assert tty.getvalue() == "one two\nthree\nfour"


def test_colours_take_no_room() -> None:
    with printing_to_a_terminal(9) as tty:
        sys.stdout = Terminal(tty)
        print_styled("\x1b[32mone two\x1b[0m three")
    assert tty.getvalue() == "\x1b[32mone two\x1b[0m\nthree\n"


@pytest.mark.parametrize(
    "variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["colours", "NO_COLOR", "dumb"]
)
def test_colours_are_for_terminals_that_have_them(variables: dict[str, str]) -> None:
    with printing_to_a_terminal(80, **variables) as tty:
        sys.stdout = Terminal(tty)
        say("warning: the \x1b[31m disk is full")
        say("beats bigram", "passed")
    if variables:
        assert tty.getvalue() == "warning: the ␛[31m disk is full\nbeats bigram\n"
    else:
        assert "\x1b[33mwarning:\x1b[0m the ␛[31m disk is full\n" in tty.getvalue()
        assert "\x1b[32mbeats bigram\x1b[0m\n" in tty.getvalue()
