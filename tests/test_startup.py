"""A command without its standard streams, and interrupted in its first moments."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.terminal import CONTROL
from tests.conftest import ROOT, TINY
from tests.processes import Process

INTERRUPT = """
import os, runpy, signal, sys
# as in a terminal, also where the tests ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "pydantic_core":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = [
    "train.py",
    "sample.py",
    "evaluate.py",
    "compress.py",
    "curves.py",
    "convert.py",
    "data/prepare.py",
    "large/prepare.py",
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends signals in another way")
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_first_imports_prints_nothing(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, command], cwd=ROOT, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


HEAVY = """
import runpy, sys
script, *arguments = sys.argv[1:]
for argument in arguments:
    sys.argv = [script, argument]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        print(exit.code)
print({"torch", "matplotlib"} & set(sys.modules))
"""


@pytest.mark.parametrize("command", [*COMMANDS, "sweep.py"])
def test_help_and_mistakes_are_answered_without_torch(command: str) -> None:
    """Importing it takes seconds."""
    code = [sys.executable, "-c", HEAVY, command, "--no_such_option", "--help"]
    done = subprocess.run(code, cwd=ROOT, text=True, capture_output=True)
    assert re.fullmatch(r"2\n(--.*\n)?usage: (.*\n)*0\nset\(\)\n", done.stdout)
    assert re.fullmatch(r"error: .*\n", done.stderr)


LEFT_ALONE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import curves
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_importing_a_command_leaves_ctrl_c_as_it_is() -> None:
    """A notebook stops a cell with it."""
    code = [sys.executable, "-c", LEFT_ALONE]
    done = subprocess.run(code, cwd=ROOT, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def closed(*numbers: int) -> str:
    """Code that leaves a process as `2>&-` does."""
    code = "import os, sys\n"
    for number in numbers:
        name = ("stdin", "stdout", "stderr")[number]
        code += f"os.close({number}); sys.{name} = None\n"
    return code


NOISE = """
import atexit
atexit.register(lambda: [os.write(number, b"noise") for number in (1, 2)])
"""


@pytest.fixture(scope="module")
def text(clone: Path) -> Path:
    (clone / "closed.txt").write_text("the cat sat on the mat\n" * 20)
    return clone / "closed.txt"


@pytest.mark.skipif(sys.platform == "win32", reason="2>&- is of Unix shells")
@pytest.mark.parametrize("streams", ["2", "1", "012"])
@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--corpus=text.txt", "--out_dir=out/closed", "--init_from=scratch", *TINY],
        ["evaluate.py", "out/tiny"],
        ["evaluate.py", "out/tiny", "--explain=the cat"],
        ["compress.py", "out/tiny", "closed.txt", "--overwrite"],
        ["curves.py", "out/tiny", "--terminal"],
        ["sample.py", "out/tiny", "--max_new_tokens=5"],
    ],
    ids=" ".join,
)
def test_a_command_works_without_standard_streams(
    trained, clone: Path, text: Path, command: list[str], streams: str
) -> None:
    """A file that is opened later does not get a stream's number, nor what is written there."""
    script, *arguments = command
    numbers = [*map(int, streams)]
    prelude = closed(*numbers) + NOISE
    code, printed = Process(clone, *arguments, script=script, prelude=prelude).wait()
    assert code == 0, printed
    assert "Traceback" not in printed
    assert not CONTROL.search(printed.replace("\r", ""))
    if 1 in numbers:
        assert printed.replace("noise", "") == "" or command[0] == "evaluate.py"
    for path in (clone / "out").glob("*/metrics.jsonl"):
        assert b"noise" not in path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="2>&- is of Unix shells")
def test_a_mistake_without_stderr_has_its_exit_code(clone: Path) -> None:
    code, printed = Process(clone, "--max_itrs=1", prelude=closed(2)).wait()
    assert (code, printed) == (2, "")
