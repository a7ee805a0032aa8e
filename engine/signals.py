"""Stops a training at SIGINT (Ctrl-C) and SIGTERM: after the current step, when all is saved.

After the last step, while the best model is measured, they stop it at once.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from engine.device import Device

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal came after the last step, when the training was saved."""


class StopSignal:
    """Knows whether one of the signals came, to any rank. A second one stops at once.

    The first one says so, and tells the command that resumes the run.
    """

    def __init__(self, device: Device, resume_command: str) -> None:
        self.device = device
        self.resume_command = resume_command
        self.own = 0  # the signal that came to this rank; 0 = none
        self.received = 0  # the signal that came to any rank
        self.is_saved = False  # nothing is lost if it stops now
        for number in NUMBERS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.own = number
        signal.signal(number, signal.SIG_DFL)
        if self.is_saved:
            self._stop()
        self._say(
            f"{name_of(number)}: training stops after this step; a second one stops it at once. "
            f"To resume:\n  {self.resume_command}"
        )

    def requested(self) -> bool:
        """Return whether to stop now. Ranks get signals at different steps, and stop together."""
        self.received = self.device.max(self.own)
        return self.received > 0

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run a block that a signal ends, with exit code 128 + its number: all is saved before."""
        self.is_saved = True
        try:
            if self.own:
                self._stop()
            yield
        except Stopped:
            sys.exit(128 + self.own)
        finally:
            self._reset()

    def _stop(self) -> None:
        self._reset()
        name = name_of(self.own)
        self._say(f"Stopped by {name} after the last step. To finish:\n  {self.resume_command}")
        raise Stopped

    def _reset(self) -> None:
        """Let a signal end the process from now on."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)

    def _say(self, text: str) -> None:
        if self.device.rank == 0:
            # stderr may be closed, or the signal interrupted another print.
            with suppress(OSError, ValueError, RuntimeError):
                print(f"\n{text}", file=sys.stderr, flush=True)


def name_of(number: int) -> str:
    return signal.Signals(number).name
