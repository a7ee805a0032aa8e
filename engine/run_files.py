"""Writes the files of a run while it trains.

If the disk is full, or somebody moved the directory, a warning says so once, and training goes on
with what was written before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from config.errors import UserError
from config.files import write_atomically
from config.resume import kept_options
from config.terminal import say
from engine.checkpoint import save_checkpoint
from engine.device import Device
from engine.metrics import Record, append_line
from engine.run import Run
from engine.state import TrainState
from model import GPT


class RunFiles:
    """A run's directory, to write into. With several ranks, all of them make the same calls."""

    def __init__(self, run: Run, device: Device) -> None:
        self.run = run
        self.path = run.path
        self.device = device
        self.options = kept_options(run.cfg.options())  # that the weights belong to
        self.failing: set[str] = set()  # files that could not be written the last time
        self.lost_best = False  # the last evaluation was the best, and its model was not saved

    def start(self, model: GPT, state: TrainState) -> None:
        """Make the directory that of a run which starts, or resumes, at the step of `state`."""
        if self.run.cfg.run.source:
            # Before it is a run: so resuming it always finds the weights that it starts with.
            path = self.path / "last.safetensors"
            self.device.on_rank0(save_checkpoint, path, model, state, (), self.options)
        self.device.on_rank0(self.run.start, state.step, str(self.device))

    def append(self, name: str, line: dict[str, Any] | BaseModel) -> bool:
        """Append a line to a .jsonl file; returns whether that was possible."""
        return self.attempt(name, append_line, line)

    def write_text(self, name: str, text: str) -> bool:
        """Replace a file; returns whether that was possible."""
        return self.attempt(name, write_atomically, text.encode())

    def save(
        self,
        name: str,
        model: GPT,
        state: TrainState,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> bool:
        """Replace a checkpoint; returns whether that was possible."""
        return self.attempt(name, save_checkpoint, model, state, optimizers, self.options)

    def keep_best(self, model: GPT, state: TrainState, record: Record, epochs: float) -> None:
        """Count an evaluation, and save the model if it is the best.

        A model that could not be saved does not count: the best is the one on disk.
        """
        before = state.best_so_far()
        is_best = state.count_evaluation(record, epochs)
        self.lost_best = is_best and not self.save("best.safetensors", model, state)
        if self.lost_best:
            state.set_best(before)

    def attempt(self, name: str, write: Callable[..., object], *arguments: Any) -> bool:
        """Let rank 0 call write(path, *arguments); returns on every rank whether it was written."""
        path = self.path / name

        def write_there() -> None:
            self.run.check_there()
            write(path, *arguments)

        try:
            self.device.on_rank0(write_there)
            self.failing.discard(name)
        except OSError as error:
            if name not in self.failing:
                say(f"warning: {path} could not be written ({error.strerror or error})")
            self.failing.add(name)
        return name not in self.failing

    def check_saved(self) -> None:
        """Raise a UserError if the last or the best model could not be saved."""
        lost = "best" if self.lost_best else "last"
        if self.lost_best or "last.safetensors" in self.failing:
            raise UserError(
                f"{self.path}: the {lost} checkpoint could not be written; make room, "
                "or move the directory back, and resume with --init_from=resume"
            )
