"""SIGINT (Ctrl-C) and SIGTERM stop training after the current step."""

import signal
from types import FrameType

from engine.distributed import Distributed


class StopSignal:
    """Knows whether one of the signals came, to any rank. A second one stops at once."""

    def __init__(self, dist: Distributed) -> None:
        self.dist, self.own, self.received = dist, 0, 0  # the signal that came to this rank; and to any
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.own = number
        signal.signal(number, signal.SIG_DFL)

    def requested(self) -> bool:
        self.received = self.dist.max(self.own)  # ranks get signals at different steps, and must stop together
        return self.received > 0
