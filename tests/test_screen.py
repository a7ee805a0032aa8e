"""On a terminal no line is broken within a word, and colours come only where they are wanted."""

import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.terminal import Terminal, print_styled, say
from report.progress import COLUMNS
from sweeps.view import View
from tests.conftest import TINY, call, make_text, training_in
from tests.screen import Screen, printing_to_a_terminal, run_in_terminal, show

LONG = "out/a_long_name,learning_rate=0.01,max_iters=100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a run in out/run/, and prepared corpora."""
    folder = tmp_path_factory.mktemp("screen")
    with training_in(folder) as patch:
        patch.setattr("data.corpora.LENGTH", 20_000)  # symbols of a Markov chain's text
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY)
        call("train.py", "--corpus=text.txt", "--out_dir=out/other", *TINY, "--seed=2")
        Path("even.txt").write_text("the cat sat on a mat; " * 40, encoding="utf-8")
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
        print_styled("\x1b[4A\r\x1b[Jfour five")
    assert tty.getvalue() == "\x1b[32mone two\x1b[0m\nthree\n\x1b[4A\r\x1b[Jfour five\n"


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
        assert "\x1b[1;32mbeats bigram\x1b[0m\n" in tty.getvalue()


SENTENCE = "the cat sat on a mat; " * 9
COMMANDS = [
    "train.py --corpus=text.txt --out_dir=out/new",
    "train.py --corpus=text.txt --out_dir=out/far --learning_rate=1e6 --max_nonfinite_steps=2",
    "train.py --corpus=text.txt --out_dir=out/lines --documents=lines",
    "train.py --corpus=markov-1-4-0.5 --out_dir=out/markov",
    "train.py out/run --init_from=resume",
    "train.py --lr=1 --epochs=3 --corpus=missing.txt",
    "train.py --help",
    "data/prepare.py --corpus=text.txt --documents=lines --show_batch",
    "evaluate.py out/run",
    "evaluate.py out/run --against=out/other",
    f"evaluate.py out/run '--explain={SENTENCE}'",
    "evaluate.py out/run --device=nowhere",
    "sample.py out/run --num_samples=2 --max_new_tokens=300",
    "curves.py out/run out/other --terminal",
    "curves.py out/run --out=curves.png",
    "compress.py out/run even.txt --overwrite",
]


def words_of(command: str) -> list[str]:
    """Split a command; a training is a small one."""
    words = shlex.split(command)
    if "--corpus=" in command:
        named = {word.split("=")[0] for word in words}
        words += [option for option in TINY if option.split("=")[0] not in named]
    return words


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_terminal_never_breaks_a_line(folder: Path, command: str, columns: int) -> None:
    """So what breaks lines is Terminal, and that between words."""
    screen = show(*words_of(command), columns=columns)
    assert screen.too_long == []
    assert len(screen.text.splitlines()) > 0


def test_words_are_those_of_a_pipe(folder: Path) -> None:
    """There a sentence is a line, however long, and nothing has a colour."""
    command = ["evaluate.py", "out/run", "--against=out/other"]
    piped = call(*command).stdout
    screen = show(*command, columns=60)
    assert screen.text.split() == piped.split()
    assert max(map(len, piped.splitlines())) > 80
    assert "\x1b" not in piped


def test_colours_mark_a_best_a_baseline_and_a_sample(folder: Path) -> None:
    command = words_of("train.py --corpus=text.txt --out_dir=out/coloured")
    screen = show(*command)
    assert re.search(r"\x1b\[32m {6}0 .*\x1b\[0m\n", screen.raw)  # the first evaluation
    assert re.search(r"\x1b\[1;32m +beats uniform, .*\x1b\[0m\n", screen.raw)
    assert re.search(r"[\n\r] +beats nothing yet", screen.raw)
    assert re.search(r"\x1b\[36m +writes: .*\x1b\[0m\n", screen.raw)
    assert re.search(r"\x1b\[36m\nA sample:\n[^\x1b]*\x1b\[0m\n", screen.raw)
    assert "\x1b" not in show(*command, NO_COLOR="1").raw
    assert "\x1b" not in show(*command, TERM="dumb").raw
    assert "\x1b" not in call(*command).stdout


@pytest.mark.parametrize(
    "command", ["curves.py out/run --terminal", f"evaluate.py out/run '--explain={SENTENCE}'"]
)
def test_pictures_have_colours_only_where_they_are_wanted(folder: Path, command: str) -> None:
    assert "\x1b[" in show(*words_of(command)).raw
    assert "\x1b" not in show(*words_of(command), NO_COLOR="1").raw
    assert "\x1b" not in call(*words_of(command)).stdout


def test_a_corpus_and_its_model_have_no_colours_of_their_own(folder: Path) -> None:
    lines = "the \x1b[31mcat\x1b[2J sat\n" * 300
    Path("evil.txt").write_text(lines, encoding="utf-8")
    screen = show(*words_of("train.py --corpus=evil.txt --out_dir=out/evil"))
    ours = re.sub(r"\x1b\[(1;32|3[236]|0)m", "", screen.raw)
    assert "\x1b" not in ours
    assert "␛" in ours


@pytest.mark.parametrize("rate", ["1e4", "1e30"])
def test_a_run_that_diverges_keeps_its_columns(folder: Path, rate: str) -> None:
    """Each number ends where its title ends, also one that is infinite."""
    arguments = f"--out_dir=out/nan --learning_rate={rate} --max_nonfinite_steps=3"
    screen = show(*words_of(f"train.py --corpus=text.txt {arguments}"))
    ends = {
        match.end() for match in re.finditer("step|nll|perplexity|byte|top-1|norm|lr|s$", COLUMNS)
    }
    rows = [row for row in screen.text.splitlines() if re.match(r" +\d+ ", row)]
    assert len(rows) >= 3
    for row in rows:
        assert {match.end() for match in re.finditer(r"\S+", row)} <= ends
    assert "inf" in "".join(rows)
    assert "times its default of 0.01: try\n--learning_rate=0.01." in screen.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_ctrl_c_after_the_last_step_answers_at_once(clone: Path) -> None:
    """The bar says what is measured; the run is saved, and the command that is said finishes it."""
    # so large a text that measuring takes a while
    (clone / "long.txt").write_text(make_text(50_000), encoding="utf-8")
    options = [option for option in TINY if "max_iters" not in option]
    command = ["train.py", "--corpus=long.txt", "--out_dir=out/ctrl_c", *options, "--max_iters=2"]
    pressed = 0.0

    def is_measured(screen: Screen) -> bool:
        nonlocal pressed
        pressed = time.monotonic()
        return re.search(r"exact loss of [\d,]+ targets: +\d+%", screen.raw) is not None

    screen = run_in_terminal(*command, cwd=clone, interrupt=is_measured)
    assert time.monotonic() < pressed + 5
    assert screen.returncode == 130
    assert screen.too_long == []
    said, resume = screen.text.rstrip().splitlines()[-2:]
    assert said == "Stopped by SIGINT after the last step. To finish:"
    assert resume == "  python train.py out/ctrl_c --init_from=resume"
    assert not (clone / "out/ctrl_c/verdict.txt").exists()
    finished = run_in_terminal(*resume.split()[1:], cwd=clone)
    assert finished.returncode == 0
    assert finished.too_long == []
    assert "The best model, of step " in finished.text
    assert re.search(r"\nThe page: \S+/report.html\n", finished.text)


def test_the_page_is_named_once_where_it_is_watched(folder: Path) -> None:
    command = words_of("train.py --corpus=text.txt --out_dir=out/watched")
    assert show(*command).text.count("The page: ") == 1
    assert "The page" not in show(*command, "--watchers=").text


def test_the_table_of_a_sweep_is_drawn_anew_in_its_place() -> None:
    group: dict[str, Any] = {
        "name": "0.03",
        "options": {"learning_rate": "0.03"},
        "status": "2 training, 1 waiting",
    }
    group |= {"mean": 1.5, "deviation": 0.01, "seeds": 2, "bits_per_byte": 2.1, "seconds": 9.0}
    runs = [{"name": "0.03", "status": "training", "step": 5, "max_iters": 10}]
    content = {"groups": [group], "runs": runs, "unit": "", "loss_on": "validation text"}
    content["progress"] = "0 of 1 runs"
    with printing_to_a_terminal(50) as tty:
        sys.stdout = Terminal(tty)
        view = View()
        for _ in range(3):
            view.show(content)
    screen = Screen(50)
    screen.write(tty.getvalue())
    assert screen.text.count("loss in") == 1
    assert screen.too_long == []
