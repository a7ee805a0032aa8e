"""What a stranger's run, text or file name says is shown, and never obeyed by the terminal."""

import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from config.errors import UserError, run_command
from config.terminal import CONTROL, Terminal, one_line, print_styled, printable, progress_bar
from data.tokenizer import load_tokenizer
from engine.run import open_run
from report.characters import draw_terminal
from report.costs import show_costs
from report.picture import picture_run
from tests.conftest import TINY, call, make_text, training_in
from tests.screen import Tty

TITLE = "\x1b]0;owned\x07"  # renames the window
# also clears it, goes back to the start of the line, turns the text around
EVIL = f"{TITLE}\x1b[2J\x9b31m\r\u202e\x7f"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose name, corpus, baselines and tokens are hostile, and one that is harmless."""
    folder = tmp_path_factory.mktemp("theirs")
    with training_in(folder):
        call("train.py", "--corpus=text.txt", "--out_dir=out/mine", *TINY, "--smear=false")
        run = folder / f"out/evil{EVIL}"
        shutil.copytree("out/mine", run)
        info = json.loads((run / "corpus.json").read_text())
        info["name"] = f"text{EVIL}"
        for baseline in info["baselines"][1:]:
            baseline["name"] += EVIL
        (run / "corpus.json").write_text(json.dumps(info))
        content = json.loads((run / "tokenizer.json").read_text())
        controls = {character for character in EVIL if CONTROL.match(character)}
        for number, character in enumerate(sorted(controls), start=1):  # a quarter of the tokens
            content["token_bytes"][-number] = base64.b64encode(character.encode()).decode()
        (run / "tokenizer.json").write_text(json.dumps(content))
        yield run


def shown(*command: str, code: int = 0) -> str:
    """Run a command; what it shows is nothing that a terminal obeys, but line ends and tabs."""
    done = call(*command, check=False)
    assert done.returncode == code, done.stderr
    printed = done.stdout + re.sub("\revaluating: [^\r]*\r *\r", "", done.stderr)  # without the bar
    assert not CONTROL.search(printed), printed
    return printed


def test_signs() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("naïve 日本 🎉 \u200d שלום") == "naïve 日本 🎉 \u200d שלום"
    assert printable("\x00\x1b[31m\r\x7f\x9b\u202e\u2066") == "␀␛[31m␍␡���"
    assert one_line("a\tb\nc\x1b") == "a␉b␊c␛"


def test_what_a_model_writes_is_not_obeyed(theirs: Path) -> None:
    printed = shown(
        "sample.py", str(theirs), "--temperature=100", "--max_new_tokens=400", "--num_samples=2"
    )
    for sign in "␛␇␍␡�":
        assert sign in printed
    assert "␛" in shown("sample.py", str(theirs), "--prompt=\x1b", "--max_new_tokens=1")


@pytest.mark.parametrize(
    "command",
    [
        "sample.py RUN --max_new_tokens=1",
        "evaluate.py RUN --text=odd.txt",
        "evaluate.py RUN --explain=TEXT",
        "evaluate.py out/mine --against=RUN --text=even.txt",
        "evaluate.py RUN --text=odd.txt --json",
        "evaluate.py RUN --text=odd.txt --html=page.html",
        "curves.py RUN --terminal",
        "curves.py out --terminal",
        "curves.py RUN out/mine --out=c.svg",
        "compress.py RUN odd.txt --overwrite",
        "convert.py RUN exportRUN",
        "train.py --corpus=odd.txt --max_iters=1 --init_from=RUN --out_dir=tuned/RUN",
    ],
)
def test_no_command_obeys_a_name(theirs: Path, command: str) -> None:
    """Those of a run, of its corpus and of its baselines."""
    shutil.rmtree(f"exportout/{theirs.name}", ignore_errors=True)
    Path("odd.txt").write_bytes(b"the \x1b" * 400)
    Path("even.txt").write_bytes(b"the " * 400)
    words = [
        word.replace("RUN", f"out/{theirs.name}").replace("TEXT", "the \x1b")
        for word in command.split()
    ]
    printed = shown(*[word for word in words if word])
    if "sample.py" not in command and "compress.py" not in command and "--json" not in command:
        assert "␛" in printed


def test_no_command_obeys_a_corpus(theirs: Path) -> None:
    """Its name, its text, and the samples of a model that learned it."""
    Path(f"corpus{EVIL}.txt").write_text(
        make_text().replace("cat", EVIL.replace("\r", "")), encoding="utf-8"
    )
    printed = shown("train.py", f"--corpus=corpus{EVIL}.txt", "--out_dir=out/learned", *TINY)
    assert printed.count("corpus␛]0;owned␇") >= 2
    assert not CONTROL.search(Path("out/learned/verdict.txt").read_text(encoding="utf-8"))
    assert "␛" in shown("data/prepare.py", f"--corpus=corpus{EVIL}.txt")


@pytest.mark.parametrize(
    ("change", "code"),
    [(f'"{EVIL}" = 1', 2), (f'seed = "{EVIL}"', 2), (f'"line\\nerror: {EVIL}" = 1', 2)],
)
def test_errors_that_repeat_a_config_are_not_obeyed(theirs: Path, change: str, code: int) -> None:
    path = Path("out/edited")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree("out/mine", path)
    escaped = CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", change)
    cfg = (path / "config.toml").read_text().replace("seed = 1337\n", "")
    (path / "config.toml").write_text(cfg.replace("[run]", f"[run]\n{escaped}"))
    for command in ("sample.py", "evaluate.py", "curves.py --html=x.html", "train.py"):
        script, *options = command.split()
        printed = shown(script, str(path), *options, code=code)
        assert printed.startswith(f"error: {path}/config.toml: ")
        assert printed.count("\n") == 1
        assert "␛" in printed


def make_screen(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """Print everything to a screen from now on."""
    screen = Tty()
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal(screen))
    return screen


def test_our_own_colours_reach_the_terminal(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    tokenizer = load_tokenizer(theirs / "tokenizer.json")
    escape = tokenizer.token_bytes.index(b"\x1b")
    print_styled(show_costs([0, escape], np.ones(1), tokenizer))
    assert "\x1b[48;5;22m" in screen.getvalue()
    print_styled(draw_terminal(picture_run(open_run(theirs))))
    assert "\x1b[38;5;8m" in screen.getvalue()
    assert "␛]0;owned␇" in screen.getvalue()
    for sequence in (TITLE, "\x1b[2J", "\x9b", "\r", "\u202e"):
        assert sequence not in screen.getvalue()


def test_a_bar_and_lines_share_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is cleared before a line is written, although only lines are filtered."""
    screen = make_screen(monkeypatch)
    bar = progress_bar(range(3), f"reading {EVIL}")
    iterator = iter(bar)
    next(iterator)
    assert screen.getvalue().startswith("\rreading ␛]0;owned␇")
    before = len(screen.getvalue())
    bar.write(f"a line {TITLE}")
    written = screen.getvalue()[before:]
    cleared, _, after = written.partition("a line ␛]0;owned␇\n")
    assert cleared.strip("\r").isspace()
    assert after.startswith("\rreading")
    list(iterator)


def test_an_error_is_not_obeyed_where_torchrun_repeats_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = make_screen(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))

    def main(argv: list[str]) -> None:
        raise UserError(f"it says {EVIL}")

    with pytest.raises(SystemExit, match="2"):
        run_command(main)
    assert screen.getvalue().startswith("\x1b[33merror:\x1b[0m it says ␛]0;owned␇␛[2J")
    assert not CONTROL.search(
        json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    )
