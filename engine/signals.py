"""SIGINT (Ctrl-C) and SIGTERM stop training after the current step.

After the last step, while the best model is measured, they stop it at once.
"""

import signal
import sys
from contextlib import suppress
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
        self.device, self.resume_command = device, resume_command
        self.own, self.received = 0, 0  # the signal that came to this rank; and to any
        self.is_saved = False  # nothing is lost if it stops now
        for number in NUMBERS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.own = number
        signal.signal(number, signal.SIG_DFL)
        if self.is_saved:
            self.stop_at_once()
        name = signal.Signals(number).name
        self._say(
            f"{name}: training stops after this step; a second one stops it at once. "
            f"To resume:\n  {self.resume_command}"
        )

    def requested(self) -> bool:
        # ranks get signals at different steps, and must stop together
        self.received = self.device.max(self.own)
        return self.received > 0

    def expect_no_more_steps(self) -> None:
        """From now on, the training is saved and a signal raises Stopped."""
        self.is_saved = True
        if self.own:
            self.stop_at_once()

    def stop_at_once(self) -> None:
        self.close()
        name = signal.Signals(self.own).name
        self._say(f"Stopped by {name} after the last step. To finish:\n  {self.resume_command}")
        raise Stopped

    def close(self) -> None:
        """From now on, a signal ends the process."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)

    def _say(self, text: str) -> None:
        if self.device.rank == 0:
            # It may be closed, or the signal interrupted another print.
            with suppress(OSError, ValueError, RuntimeError):
                print(f"\n{text}", file=sys.stderr, flush=True)
