"""The first moments of a command, before its imports, which take a third of a second or more."""

import os
import signal
import sys


def end_on_interrupt(module: str) -> None:
    """End a program on Ctrl-C with exit code 130 and no traceback; a module is left alone.

    run_command then answers Ctrl-C in its own way.
    """
    # as in a shell's background
    if module == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def open_closed_streams() -> None:
    """Lead standard streams that were closed, as by `2>&-`, to nowhere.

    Else the next file that is opened, such as a checkpoint, would get the number of the stream, and
    with it the warnings of libraries.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_WRONLY
        mode = "w"
        if name == "stdin":
            flags = os.O_RDONLY
            mode = "r"
        try:
            os.fstat(number)
        except OSError:
            # opening takes the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, flags), True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
