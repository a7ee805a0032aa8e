"""Watchers of a training: the page, and trackers such as TensorBoard.

A watcher sees the lines of a run's files, never the model. This is the only place in the core that
names what can be done with a run besides.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from config.errors import UserError
from engine.metrics import Record

WINGS = {  # where each is: a module, and a class or a function in it
    "page": ("page.watcher", "PageWatcher"),
    "tensorboard": ("trackers", "TensorBoard"),
    "wandb": ("trackers", "WandB"),
    "trackio": ("trackers", "Trackio"),
    "mlflow": ("trackers", "MLflow"),
    "page of runs": ("page.page", "write_runs"),
    "animation": ("page.animation", "write_animation"),
    "page of a text": ("page.page", "write_text"),
}


class Watcher(Protocol):
    """Follows a training. It is made with the run, and the step at which the run starts."""

    address: str  # a line that says where a person sees what it shows; empty = no line

    def update(self, record: Record | dict[str, Any]) -> None:
        """Show a line of metrics.jsonl or samples.jsonl."""

    def close(self) -> None:
        """Show that the training has ended."""


class Watchers:
    """Tells each watcher of the lines. One that fails is named once, and never stops a training.

    A watcher raises a UserError that says all, or an OSError with the name of a run's file, which
    it tries to write again.
    """

    def __init__(
        self, names: Sequence[str], run: object, step: int, say: Callable[[str], object]
    ) -> None:
        self.say = say
        self.failed: dict[str, BaseException] = {}  # what the last call of a watcher raised
        self.watchers: dict[str, Watcher] = {}
        for name in names:
            self._attempt(name, self._start, name, run, step)

    def update(self, record: Record | dict[str, Any]) -> None:
        for name, watcher in self.watchers.items():
            self._attempt(name, watcher.update, record)

    def close(self) -> None:
        """Close the watchers, unless that was done."""
        for name, watcher in self.watchers.items():
            self._attempt(name, watcher.close)
        self.watchers.clear()

    def _start(self, name: str, run: object, step: int) -> None:
        watcher = load_wing(name)(run, step)
        self.watchers[name] = watcher
        if watcher.address:
            self.say(f"{watcher.address}\n")

    def unwritten(self) -> list[str]:
        """Return the names of the run's files that could not be written the last time."""
        errors = filter(is_of_file, self.failed.values())
        return [Path(error.filename).name for error in errors]

    def _attempt(self, name: str, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except (Exception, SystemExit) as error:  # of packages, networks and disks: many kinds
            if name not in self.failed:
                self.say(f"warning: {explain_failure(name, error)}")
            self.failed[name] = error
        else:
            self.failed.pop(name, None)


def is_of_file(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.filename is not None


def explain_failure(name: str, error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if is_of_file(error):
        return f"{error.filename} could not be written ({error.strerror})"
    return describe_failure(name, error)


def describe_failure(name: str, error: BaseException) -> str:
    return f"{name} failed, and training continues without it: {error!r:.200}"


def load_wing(name: str) -> Any:
    """Import what WINGS has under a name."""
    module, attribute = WINGS[name]
    return getattr(import_module(module), attribute)
