"""Mistakes that a user can mend: one clear line, and exit code 2."""

import atexit
import gc
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DIVERGED = "the model's predictions are not finite: training diverged"
# torchrun sets both for its processes; one of them alone, which something else has set, means nothing.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
RANK = int(os.environ.get("RANK", 0)) if WORLD_SIZE > 1 else 0


class UserError(Exception):
    """Says what is wrong, where, and what to do. Commands print it and exit with code 2."""


def not_text(what: object, error: UnicodeDecodeError) -> UserError:
    """That a file is not UTF-8, and where."""
    return UserError(f"{what}: not UTF-8 text ({error}); convert it, for example with iconv")


def run_command(main: Callable[[list[str]], object]) -> None:
    """Call main(argv); turn a UserError, an OSError or Ctrl-C into one line on stderr and an exit code."""
    _on_interrupt(signal.default_int_handler)
    atexit.register(gc.freeze)  # else Python looks for garbage in all of torch as it exits: over half a second
    if RANK > 0:  # only rank 0 speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?"
    try:
        with out_of_memory("use a smaller text, or fewer samples"):
            main(sys.argv[1:])
    except BrokenPipeError:  # `python sample.py RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except UserError as error:
        _fail(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    _on_interrupt(lambda *_: os._exit(130))  # what comes next imports torch, where Ctrl-C would print many lines


def _on_interrupt(handler: Callable[..., object]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, handler)


@contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Where memory runs out, on any device, raise a UserError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError, and what mps and CPUs raise
        says = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", says):
            raise UserError(f"out of memory: {remedy} ({says:.150})") from None
        raise


def _fail(line: str) -> None:
    """Print the line and exit with code 2. Under torchrun, its report at the end repeats the line."""
    if RANK > 0:  # all ranks meet the same mistake: rank 0 tells it, and torchrun then ends the others
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"timestamp": str(int(time.time())), "py_callstack": line}
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}), encoding="utf-8")
    print(line, file=sys.stderr)
    sys.exit(2)
