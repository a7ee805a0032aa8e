"""Counts what a training has done: its steps, its evaluations, and what went wrong in them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from config.schema import Config, RunConfig
from config.values import Count
from loss import LossSums

OVERFITTING_RISE = 0.01  # nats: a smaller change of a loss may be noise
SMOOTHING = 0.95  # of the running mean and variance of the training loss
SMOOTHED_STEPS = 20  # that such a mean is of: 1 / (1 - SMOOTHING)
SPIKE_STEPS = 20  # steps before a spike can be told
SPIKE_SIGMAS = 6  # a spike is so many standard deviations above the mean,
SPIKE_RISE = 0.1  # and so many nats
SCALE_STEPS = 2000  # steps after which a larger loss scale is tried
MIN_SCALE = 1.0  # of the loss, in float16
MAX_SCALE = 2.0**24
Nats = Annotated[float, Field(gt=-1, le=1e39)]  # a loss that is about 0 may round to below it
Rise = Annotated[float, Field(ge=0, le=1e40)]
# what a new best changes
BEST = {"best_nll", "best_step", "mean_before_best", "mean_after_best", "peak"}
TROUBLES = {"skipped_steps", "nonfinite_steps", "nonfinite_in_a_row", "loss_spikes"}


@dataclass
class StepResult:
    """Holds what a step measured, over all ranks."""

    sums: LossSums  # float64, on the CPU
    grad_norm: float  # before clipping
    lr: float
    seconds: float = 0.0

    @property
    def num_targets(self) -> int:
        return int(self.sums.num_targets)

    @property
    def nll(self) -> float:
        """Nats per token."""
        return float(self.sums.nll) / (self.num_targets or math.nan)

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are; without targets there is neither."""
        if self.num_targets == 0:
            return True
        return math.isfinite(self.sums.objective) and math.isfinite(self.grad_norm)

    @property
    def is_valid(self) -> bool:
        """Whether the step may change weights and optimizers."""
        return self.num_targets > 0 and self.is_finite


class TrainState(BaseModel):
    """Holds what resuming needs besides weights and optimizers.

    Batches follow from (seed, windows), and dropout from (seed, step). Read from a checkpoint, each
    number has to be in its range, so that counting on cannot fail.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    step: Count = 0  # completed steps, including those that changed nothing
    windows: Count = 0  # training windows that were read in them
    tokens: Count = 0  # targets in them
    seconds: float = Field(0.0, ge=0, le=1e12)

    # The best evaluation.
    best_nll: Nats | None = None  # lowest validation loss, nats per token
    best_step: Count = 0  # when it was measured
    measured_on: Count = 0  # a checksum of the targets and the dtype of that loss

    # Overfitting: the validation loss rises while the training loss falls, both by more than noise.
    mean_before_best: Nats | None = None  # running mean of the training loss at the best evaluation
    mean_after_best: Nats | None = None  # its mean in the SMOOTHED_STEPS steps after
    peak: Rise = 0.0  # largest rise of the validation loss above the best, since then
    recovered: Rise = 0.0  # largest rise that it came back from; older ones count less
    eval_step: Count = 0  # the last evaluation
    overfitting: Count = 0  # evaluations in a row that show it, at least SMOOTHED_STEPS apart
    overfitting_step: Count = 0  # the last of them

    # Trouble.
    skipped_steps: Count = 0  # steps without a target
    nonfinite_steps: Count = 0  # steps without a finite loss and gradient; they changed nothing
    nonfinite_in_a_row: Count = 0
    loss_spikes: Count = 0  # steps whose loss was far above those before
    mean: Nats = 0.0  # running mean of the training loss
    variance: float = Field(0.0, ge=0, le=1e80)
    loss_scale: float = Field(2.0**15, ge=MIN_SCALE, le=MAX_SCALE)  # before backward, in float16

    @property
    def applied_steps(self) -> int:
        """Steps that changed the weights."""
        return self.step - self.skipped_steps - self.nonfinite_steps

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.applied_steps < self.loss_spikes:
            raise ValueError("more steps of trouble than steps")
        if self.nonfinite_in_a_row > self.nonfinite_steps:
            raise ValueError("more nonfinite steps in a row than in all")
        if max(self.best_step, self.eval_step, self.overfitting_step) > self.step:
            raise ValueError("an evaluation after the last step")
        return self

    def count_step(self, result: StepResult) -> float | None:
        """Count what step number `step`, the last one, measured.

        If its loss is a spike, returns by how many nats it is above the mean of those before.
        """
        self.tokens += result.num_targets
        self.skipped_steps += not result.num_targets
        self.nonfinite_steps += not result.is_finite
        if result.is_finite:
            self.nonfinite_in_a_row = 0
        else:
            self.nonfinite_in_a_row += 1
        self._adapt_loss_scale(result.is_finite)
        if not result.is_valid:
            return None
        applied = self.applied_steps
        excess = result.nll - self.mean
        deviation = self.variance**0.5
        is_large = excess > max(SPIKE_RISE, SPIKE_SIGMAS * deviation)
        is_spike = is_large and applied > SPIKE_STEPS
        self.loss_spikes += is_spike
        share = max(1 - SMOOTHING, 1 / applied)  # a plain mean of the first steps
        self.mean += share * excess
        self.variance = (1 - share) * (self.variance + share * excess**2)
        steps_since_best = self.step - self.best_step
        if steps_since_best <= SMOOTHED_STEPS:
            if self.mean_after_best is None:
                self.mean_after_best = result.nll
            self.mean_after_best += (result.nll - self.mean_after_best) / steps_since_best
        if is_spike:
            return excess
        return None

    def _adapt_loss_scale(self, is_finite: bool) -> None:
        """Halve the scale if a gradient may have been too large for float16; else try a larger."""
        if not is_finite:
            self.loss_scale = max(MIN_SCALE, self.loss_scale / 2)
        elif self.step % SCALE_STEPS == 0:
            self.loss_scale = min(MAX_SCALE, self.loss_scale * 2)

    @property
    def noise(self) -> float:
        """Nats of a rise of the validation loss that mean nothing: it came back from as much."""
        return max(OVERFITTING_RISE, self.recovered)

    @property
    def train_rise(self) -> float:
        """Nats that the smoothed training loss rose since the best evaluation; 0 if maybe noise."""
        if self.mean_after_best is None or self.step < self.best_step + SMOOTHED_STEPS:
            return 0.0
        around_best = self.mean_after_best
        if self.mean_before_best is not None:  # which lags behind a loss that falls fast
            around_best = min(around_best, self.mean_before_best)
        change = self.mean - around_best
        # The variance of a running mean is (1 - S) / (1 + S) of that of its values; that of a mean
        # of n is 1 / n.
        share = (1 - SMOOTHING) / (1 + SMOOTHING) + 1 / SMOOTHED_STEPS
        deviation = math.sqrt(share * self.variance)
        if abs(change) <= max(OVERFITTING_RISE, 2 * deviation):
            return 0.0
        return change

    def count_evaluation(self, record: dict[str, float], epochs: float) -> bool:
        """Count an evaluation after so many `epochs`; returns whether it is the best so far.

        It shows overfitting if text was read again, and the validation loss has risen while the
        training loss has fallen, both by more than noise. Then the record gets "overfitting", how
        many evaluations have shown it.
        """
        val_nll = record["val_nll"]
        if not math.isfinite(val_nll):
            self.overfitting = 0
            return False
        is_best = self.is_best(val_nll)
        rise = 0.0
        if self.best_nll is not None and not is_best:
            rise = val_nll - self.best_nll
        self._count_rise(rise)
        if is_best:
            self._set_new_best(val_nll)
        was_read_again = epochs > 1
        if not (was_read_again and rise > self.noise and self.train_rise < 0):
            self.overfitting = 0
            return is_best
        if self.overfitting == 0 or self.step >= self.overfitting_step + SMOOTHED_STEPS:
            self.overfitting += 1
            self.overfitting_step = self.step
        record["overfitting"] = self.overfitting
        return False

    def _set_new_best(self, val_nll: float) -> None:
        self.best_nll = val_nll
        self.best_step = self.step
        self.mean_before_best = None
        if self.step > 0:
            self.mean_before_best = self.mean
        self.mean_after_best = None
        self.peak = 0.0

    def _count_rise(self, rise: float) -> None:
        """Count how far the validation loss is above the best. What it came back from was noise."""
        self.peak = max(self.peak, rise)
        # A young training is less steady: what it came back from then counts less and less.
        older = self.recovered * self.eval_step / max(1, self.step)
        self.recovered = max(older, self.peak - rise)
        self.eval_step = self.step

    def best_so_far(self) -> dict[str, Any]:
        """Return what `set_best` needs to take back a new best."""
        return self.model_dump(include=BEST)

    def set_best(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def forget_best(self) -> None:
        """Make the next model that is evaluated the best."""
        self.set_best(TrainState().best_so_far())
        self.forget_rises()

    def forget_rises(self) -> None:
        """Forget how the validation loss rose and fell: its next values do not compare."""
        self.peak = 0.0
        self.recovered = 0.0
        self.overfitting = 0

    def is_best(self, val_nll: float) -> bool:
        """Return whether a finite validation loss is the lowest so far."""
        return self.best_nll is None or val_nll < self.best_nll

    def is_finished(self, cfg: Config) -> bool:
        """Return whether all steps are done, or it overfits, or it diverged."""
        is_done = self.step >= cfg.optim.max_iters
        overfits = 0 < cfg.run.patience <= self.overfitting
        is_hopeless = self.nonfinite_in_a_row >= cfg.run.max_nonfinite_steps
        return is_done or overfits or is_hopeless

    def diverged(self, cfg: RunConfig) -> bool:
        """Return whether the last steps had no finite loss and gradient.

        In float16 a few such steps are no sign: each makes the loss scale smaller.
        """
        allowed = 0
        if cfg.dtype == "float16":
            allowed = cfg.max_nonfinite_steps - 1
        return self.nonfinite_in_a_row > allowed

    def record(self) -> dict[str, float]:
        """Return the first numbers of a line of metrics; counts of trouble if there was any."""
        counts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        return counts | self.model_dump(include=TROUBLES, exclude_defaults=True)
