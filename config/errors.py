"""Mistakes that a user can mend: one clear line, and exit code 2."""

import atexit
import difflib
import gc
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from config.terminal import printable, show_control_characters

DIVERGED = "the model's predictions are not finite: training diverged"
START_RANKS = "start several ranks with torchrun, and a single process without RANK and WORLD_SIZE"


class UserError(Exception):
    """Says what is wrong, where, and what to do. Commands print it and exit with code 2."""


def read_ranks(environment: Mapping[str, str]) -> tuple[int, int]:
    """Read this process's rank and the number of ranks that torchrun set; (0, 1) without torchrun.

    RANK or WORLD_SIZE alone, or a WORLD_SIZE of 1, means nothing: other tools set them too.
    UserError for values that torchrun does not set.
    """
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    world_size = _read_number(environment, "WORLD_SIZE", 1, 1_000_000)
    rank = _read_number(environment, "RANK", 0, world_size - 1)
    if "LOCAL_RANK" in environment:
        _read_number(environment, "LOCAL_RANK", 0, world_size - 1)
    if "LOCAL_WORLD_SIZE" in environment:
        _read_number(environment, "LOCAL_WORLD_SIZE", 1, world_size)
    if not environment.get("MASTER_ADDR"):
        raise UserError(f"RANK and WORLD_SIZE are set, but not MASTER_ADDR; {START_RANKS}")
    _read_number(environment, "MASTER_PORT", 1, 65535)
    return rank, world_size


def _read_number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    """Read an environment variable; UserError if it is not a number from `least` to `most`."""
    text = environment.get(name, "")
    if re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most:
        return int(text)
    raise UserError(
        f"the environment variable {name}={text} should be a number from {least:,} to {most:,}; "
        f"{START_RANKS}"
    )


try:
    RANK, WORLD_SIZE = read_ranks(os.environ)
except UserError:  # run_command tells it
    RANK = 0
    WORLD_SIZE = 1


class DamagedError(UserError):
    """A file holds something else than this program writes; another one may be whole."""


def not_text(what: object, error: UnicodeDecodeError) -> UserError:
    """Make the error that says that a file is not UTF-8, and where."""
    return UserError(f"{what}: not UTF-8 text ({error}); convert it, for example with iconv")


def did_you_mean(word: str, known: Iterable[str] | Mapping[str, str], n: int = 1) -> str:
    """Ask for the n nearest of the known words; "" if none is near.

    Of a mapping, the question names the values.

    >>> did_you_mean("shakespear", ["words", "shakespeare"])
    '; did you mean shakespeare?'
    """
    names = list(known)
    nearest = difflib.get_close_matches(word, names, n)
    if not nearest:
        return ""
    if isinstance(known, Mapping):
        nearest = [known[name] for name in nearest]
    return f"; did you mean {' or '.join(nearest)}?"


def run_command(main: Callable[[list[str]], object]) -> None:
    """Call main(argv); answer errors and Ctrl-C with an exit code, and errors with one line."""
    # else Python looks for garbage in all of torch as it exits: over half a second
    atexit.register(gc.freeze)
    if RANK > 0:  # only rank 0 speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?"
    show_control_characters()
    try:
        _on_interrupt(signal.default_int_handler)
        read_ranks(os.environ)  # tells mistakes
        with out_of_memory("use a smaller text, or fewer samples"):
            main(sys.argv[1:])
        # what comes next imports torch, where Ctrl-C would print many lines
        _on_interrupt(lambda *_: os._exit(130))
    except BrokenPipeError:  # `python sample.py RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = ""
        if error.filename:
            where = f"{error.filename}: "
        _fail(f"error: {where}{error.strerror or error}")
    except UserError as error:
        _fail(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _on_interrupt(handler: Callable[..., object]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, handler)


@contextmanager
def slow_imports() -> Iterator[None]:
    """Let Ctrl-C end the program at once during imports of torch, which take seconds.

    As an exception it would print many lines there.
    """
    before = signal.getsignal(signal.SIGINT)
    _on_interrupt(lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Raise a UserError that says what to do where memory runs out, on any device."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError, and what mps and CPUs raise
        says = first_line(error)
        told = re.search(r"out of memory|can't allocate memory", says)
        if told is None and not isinstance(error, MemoryError):
            raise
        raise UserError(f"out of memory: {remedy} ({says:.150})") from None


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; its type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _fail(line: str) -> None:
    """Print the line and exit with code 2; under torchrun, its last report repeats the line."""
    line = printable(line)
    # all ranks meet the same mistake: rank 0 tells it, and torchrun then ends the others
    if RANK > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    print(line, file=sys.stderr)
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"timestamp": str(int(time.time())), "py_callstack": line}
        report = json.dumps({"message": {"message": line, "extraInfo": extra}})
        with suppress(OSError):  # the line is told, and torchrun's report can do without it
            Path(path).write_text(report, encoding="utf-8")
    sys.exit(2)
