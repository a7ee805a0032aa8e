"""A tiny run in out/run, which tests train, resume and damage."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.run import Run
from page.page import script_of_run, write_script
from tests.conftest import TINY, Done, call, read_metrics

RUN = ["--corpus=text.txt", "--out_dir=out/run", *TINY]
STEPS = [*range(7), 6]  # in the lines of metrics of such a run; the last line is the best model's


def train(*arguments: str, returns: int = 0) -> Done:
    """Train in out/run of the current directory; an error must be one line."""
    done = call("train.py", *RUN, *arguments, check=False)
    assert done.returncode == returns, done.stderr
    assert re.fullmatch(r"(error: .*\n)?", done.stderr)  # one line at most
    return done


def resume(*arguments: str, returns: int = 0) -> Done:
    return train("--init_from=resume", *arguments, returns=returns)


def steps(run: Path) -> list[float]:
    """The step of each line of a run's metrics."""
    return [record["step"] for record in read_metrics(run)]


def files(folder: Path) -> dict[Path, bytes]:
    """The content of all files in a folder and its folders."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def flip(path: Path, at: int) -> None:
    """Damage a file: change one bit of the byte at that place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Do what a full disk does: a write fails in the middle of a file."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_data(path: Path, run: Run, live: bool) -> None:
    """Write a run's report.js."""
    write_script(path, script_of_run(run, live))
