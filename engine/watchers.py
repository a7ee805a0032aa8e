"""Watchers of a training: the page, and trackers such as TensorBoard.

A watcher sees the lines of a run's files, never the model. This is the only place in the core that
names what can be done with a run besides.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Protocol

from engine.run import Record, Run

WINGS = {  # where each is: a module, and a class or a function in it
    "page": ("page.watcher", "PageWatcher"),
    "tensorboard": ("trackers", "TensorBoard"),
    "wandb": ("trackers", "WandB"),
    "trackio": ("trackers", "Trackio"),
    "mlflow": ("trackers", "MLflow"),
    "page of runs": ("page.page", "write_runs"),
    "page of a text": ("page.page", "write_text"),
}


class Watcher(Protocol):
    """Follows a training. It is made with the run, and the step at which the run starts."""

    def update(self, record: Record | dict[str, Any]) -> None:
        """Show a line of metrics.jsonl or samples.jsonl."""

    def close(self) -> None:
        """Show that the training has ended."""


class Watchers:
    """Tells each watcher of the lines. One that fails is named once, and never stops a training."""

    def __init__(
        self, names: Sequence[str], run: Run, step: int, say: Callable[[str], object]
    ) -> None:
        self.say = say
        self.failed: set[str] = set()
        self.watchers: dict[str, Watcher] = {}
        for name in names:
            self._attempt(name, self._start, name, run, step)

    def update(self, record: Record | dict[str, Any]) -> None:
        for name, watcher in self.watchers.items():
            self._attempt(name, watcher.update, record)

    def close(self) -> None:
        for name, watcher in self.watchers.items():
            self._attempt(name, watcher.close)

    def _start(self, name: str, run: Run, step: int) -> None:
        self.watchers[name] = load_wing(name)(run, step)

    def _attempt(self, name: str, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except (Exception, SystemExit) as error:  # of packages, networks and disks: many kinds
            if name not in self.failed:
                self.say(
                    f"warning: {name} failed, and training continues without it: {error!r:.200}"
                )
            self.failed.add(name)


def load_wing(name: str) -> Any:
    """Import what WINGS has under a name."""
    module, attribute = WINGS[name]
    return getattr(import_module(module), attribute)
