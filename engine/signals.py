"""Stopping when asked: Ctrl-C and SIGTERM end training after the step in progress, with a checkpoint."""

import signal
from types import FrameType

from engine.distributed import World


class StopSignal:
    """Truthy once SIGINT or SIGTERM came, to any rank; a second one stops at once.

    A signal reaches ranks at different moments, or only one of them, so they ask, and stop, together.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.received: signal.Signals | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    def __bool__(self) -> bool:
        if agreed := self.world.max(self.received or 0):
            self.received = signal.Signals(agreed)
        return agreed > 0

    @property
    def name(self) -> str:
        return self.received.name if self.received else ""

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none came."""
        return 128 + self.received if self.received else 0
