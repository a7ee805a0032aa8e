"""Mistakes a user can mend, told in one clear line."""

import io
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Says what is wrong, where, and what to do. Commands print it and exit with code 2."""


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)`; turn a UserError into a line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no UTF-8 shows "?" instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        sys.exit(141)
    except OSError as error:  # a disk, a directory, a permission
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
