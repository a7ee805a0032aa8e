"""How far a run has come, and what to make of its steps."""

import math
from dataclasses import dataclass, fields
from typing import Any

from engine.step import StepResult
from runs import Record

MEMORY = 0.95  # of the running mean and variance of the training loss
WARM = 20  # steps before a spike can be told
SIGMAS = 6  # standard deviations that a loss must be above the mean to be a spike,
RISE = 0.1  # and nats


@dataclass
class Progress:
    """What training goes on from, besides weights. The batch and the dropout of a step follow from (seed, step)."""

    step: int = 0  # optimizer steps done with, taken or not
    tokens: int = 0  # tokens scored in them
    seconds: float = 0.0
    best_nll: float = math.inf  # lowest validation loss, nats per token
    evals_since_best: int = 0
    skipped_steps: int = 0  # those with nothing to score
    bad_steps: int = 0  # those whose loss or gradient was not a number, and which were not taken
    bad_in_a_row: int = 0
    loss_spikes: int = 0  # steps whose loss was far above those before
    measured: int = 0  # steps that `mean` and `variance` of the training loss have seen, the last ones most
    mean: float = 0.0
    variance: float = 0.0

    def count(self, result: StepResult) -> float | None:
        """Count a step; if its loss is a spike, returns how many nats it lies above the mean of those before."""
        self.step += 1
        self.tokens += result.tokens
        self.skipped_steps += result.skipped
        self.bad_steps += result.bad
        self.bad_in_a_row = self.bad_in_a_row + 1 if result.bad else 0
        if not result.taken:
            return None
        excess = result.nll - self.mean
        spike = self.measured >= WARM and excess > max(RISE, SIGMAS * self.variance**0.5)
        self.loss_spikes += spike
        share = max(1 - MEMORY, 1 / (self.measured + 1))  # a plain mean, as long as there are few
        self.mean += share * excess
        self.variance = (1 - share) * (self.variance + share * excess**2)
        self.measured += 1
        return excess if spike else None

    def record(self) -> Record:
        """What a line of metrics begins with; what did not happen is left out."""
        troubles = {name: getattr(self, name) for name in ("skipped_steps", "bad_steps", "bad_in_a_row", "loss_spikes")}
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds,
                **{name: number for name, number in troubles.items() if number}}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """One that was saved, also by an older program; ValueError if it is none."""
        for name, value in saved.items():
            if type(value) is not int and type(value) is not float:
                raise ValueError(f"{name} is not a number")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})
