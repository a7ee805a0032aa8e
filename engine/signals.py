"""What the outside asks for: SIGINT (Ctrl-C), SIGTERM and SIGHUP to stop, SIGUSR1 to save a checkpoint and go on."""

import signal
from types import FrameType

from engine.distributed import World

SAVE = 1  # what ranks tell each other when SIGUSR1 came, and
STOP = 128  # this plus its number, an exit code, for a signal to stop


class StopSignal:
    """Truthy once a signal to stop came, to any rank; a second one stops at once.

    A signal reaches ranks at different moments, or only one of them, so they ask, and stop, together.
    `saving` says, after asking, whether SIGUSR1 came since the time before.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.received: signal.Signals | None = None
        self.saving = False
        self._asked = self._answered = 0  # how often SIGUSR1 came, and how many of them were answered
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, self._receive)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            signal.signal(signal.SIGUSR1, self._ask)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    def __bool__(self) -> bool:
        asked = self._asked
        agreed = self.world.max(self.exit_code or (SAVE if asked > self._answered else 0))
        self._answered, self.saving = asked, agreed == SAVE
        if agreed > STOP:
            self.received = signal.Signals(agreed - STOP)
        return agreed > STOP

    @property
    def name(self) -> str:
        return self.received.name if self.received else ""

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 if none came."""
        return STOP + self.received if self.received else 0
