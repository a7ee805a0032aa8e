"""Every command in the README works, and every file that it names is there."""

import re
import shlex

import pytest

from config.cli import load_config
from config.schema import Config
from tests.conftest import ROOT, TINY

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python (?:\w+/)?\w+\.py[^\n`#|]*", README)))


@pytest.fixture(scope="module")
def shakespeare(run):
    """The runs that the README's commands speak of, made tiny."""
    for out in ("shakespeare_char", "no_ngrams"):
        run("train.py", "--corpus=text.txt", *TINY, "--block_size=32", f"--out_dir=out/{out}")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(command, run, shakespeare) -> None:
    script, *arguments = shlex.split(command)[1:]
    if script.startswith("bench/"):  # minutes of measuring: it is there, and sound so far
        run("-c", f"import {script.removesuffix('.py').replace('/', '.')}")
    elif script == "train.py" and "--help" not in arguments:
        load_config(arguments)
        if not any(argument.endswith(".toml") for argument in arguments):
            run(script, *arguments, *TINY, "--corpus=text.txt")
    else:
        prompt = ["--prompt=the"] if script == "sample.py" else []  # the tiny corpus has no capitals
        assert run(script, *arguments, *prompt).stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


def test_every_file_named_is_there() -> None:
    for name in set(re.findall(r"[\w/]+\.(?:py|toml|png)\b", README)):
        if name != "config.toml":  # that one is in every run
            assert list(ROOT.glob(f"**/{name}")), name


def test_defaults_in_the_table_are_the_defaults() -> None:
    knobs = {name: value for section in Config().model_dump().values() for name, value in section.items()}
    rows = re.findall(r"^\| `(--[^`]*)` \| ([^|]*) \|", README, flags=re.MULTILINE)
    assert len(rows) >= 8
    for names, values in rows:
        if "=" not in names:
            for name, value in zip(names.replace("--", "").split(), values.replace("`", "").split(","), strict=True):
                assert str(knobs[name]).removesuffix(".0").lower() == value.strip(), name


def test_every_dependency_has_a_reason() -> None:
    reasons = README.split("## Why each dependency")[1]
    for file in ("requirements.txt", "requirements-dev.txt"):
        for package in re.findall(r"^([\w-]+)==", (ROOT / file).read_text(), flags=re.MULTILINE):
            assert re.search(rf"\b{package}\b", reasons), package


def test_every_promise_names_its_tests() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    rows = re.findall(r"^\| .* \| (`test_.*) \|$", README, flags=re.MULTILINE)
    assert len(rows) == 11
    for name in re.findall(r"`(\w+)`", " ".join(rows)):
        assert f"def {name}(" in tests, name
