"""Mistakes a user can mend, told in one clear line."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

DIVERGED = "the model's predictions are not numbers; it diverged in training"
RANK = int(os.environ.get("RANK", 0))  # of the processes that torchrun starts, which sets it


class UserError(Exception):
    """Says what is wrong, where, and what to do. Commands print it and exit with code 2."""


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)`; turn a UserError into a line on stderr and exit code 2 (torchrun makes it 1)."""
    for name in ("stdout", "stderr"):
        silent = RANK > 0 and name == "stdout"  # torchrun's other processes would say everything again
        if silent or getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no UTF-8 shows "?" instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with out_of_memory("use less at once: a smaller text, or fewer samples"):
            main(sys.argv[1:])
    except UserError as error:
        _let_rank_0_tell()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... | head` has seen enough
        _silence(sys.stdout)  # or Python complains at exit
        sys.exit(141)
    except OSError as error:  # a disk, a directory, a permission
        _let_rank_0_tell()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)


def _silence(stream: TextIO) -> None:
    """Have all that is still written to a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Forgiving:
    """A stream that work does not depend on: when nobody reads it any more, or its disk is full, nothing is said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *args: str) -> Any:
        try:
            return function(*args)
        except OSError:
            _silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgiving(stream: TextIO) -> TextIO:
    return cast(TextIO, Forgiving(stream))


@contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Where memory runs out, on any device, raise a UserError with that remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is the latter, as is what mps and CPUs raise
        says = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", says):
            raise UserError(f"out of memory: {remedy} ({says:.150})") from None
        raise


def _let_rank_0_tell() -> None:
    """Under torchrun all ranks meet the same mistake: rank 0 tells it, and torchrun then ends the others.

    One that is still here after that had a mistake of its own, and goes on to tell it.
    """
    if RANK > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
