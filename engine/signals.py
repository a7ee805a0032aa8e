"""Stopping when asked: Ctrl-C and SIGTERM end training after the step in progress, with a checkpoint."""

import signal
from types import FrameType


class StopSignal:
    """Truthy once SIGINT or SIGTERM came; a second one stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def name(self) -> str:
        return self.received.name if self.received else ""

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none came."""
        return 128 + self.received if self.received else 0
