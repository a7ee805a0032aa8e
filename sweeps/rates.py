"""Looks for the learning rate: `python sweep.py RECIPE --find_lr` trains a few steps at eight.

All models take each step, on the same batch, one after another: so they are compared at the same
time of training. A rate is not found by raising it within one training: what a rate does shows
after some steps only.
"""

import math
import shlex
from pathlib import Path
from typing import NamedTuple

from config.errors import UserError
from config.files import replacing
from config.schema import Config, TablesConfig
from config.terminal import progress_bar
from data.prepare import prepare_corpus
from engine.device import setup_device
from sweeps.trial import Trial

NUM_RATES = 8
LOWEST = 1e-4
HIGHEST = 1.0
PART = 10  # the trial takes max_iters / PART steps,
LEAST_STEPS = 20
MOST_STEPS = 100  # within these bounds
BREAK_RISE = 0.5  # nats
SMOOTHED = 5  # steps in a mean of the training loss


class RateTrial(NamedTuple):
    """How a training at a rate went."""

    rate: float
    muon_rate: float | None
    losses: list[float]  # of each step, in nats per token
    val_nll: float  # at the end, nats per token

    @property
    def breaks(self) -> bool:
        """Whether the training loss rose far above where it began, or was no number."""
        limit = self.losses[0] + BREAK_RISE
        return not all(loss < limit for loss in self.losses)


def try_rates(cfg: Config) -> list[RateTrial]:
    """Train at each rate, and measure the loss on the text that evaluations read."""
    device = setup_device(cfg.run.device, cfg.run.dtype, cfg.options())
    corpus = prepare_corpus(cfg.data)
    steps = min(MOST_STEPS, max(LEAST_STEPS, cfg.optim.max_iters // PART))
    trials = []
    for rate in list_rates():
        trials.append(Trial(with_rate(cfg, rate, steps), corpus, device))
    losses: list[list[float]] = [[] for _ in trials]
    for _ in progress_bar(range(steps), f"{NUM_RATES} learning rates", unit="step"):
        for trial, own in zip(trials, losses, strict=True):
            own.append(trial.step().nll)
    found = []
    for trial, own in zip(trials, losses, strict=True):
        optim = trial.cfg.optim
        muon_rate = None
        if optim.optimizer == "muon":
            muon_rate = optim.muon_learning_rate
        found.append(RateTrial(optim.learning_rate, muon_rate, own, trial.measure()))
    return found


def list_rates() -> list[float]:
    """List the rates, evenly on a logarithmic scale, with two digits.

    >>> list_rates()
    [0.0001, 0.00037, 0.0014, 0.0052, 0.019, 0.072, 0.27, 1.0]
    """
    ratio = (HIGHEST / LOWEST) ** (1 / (NUM_RATES - 1))
    return [float(f"{LOWEST * ratio**number:.2g}") for number in range(NUM_RATES)]


def with_rate(cfg: Config, rate: float, steps: int) -> Config:
    """Return the configuration of a short training at a rate; Muon's stays in proportion.

    That of tables of n-grams stays as it is: the best one depends little on the others, and the
    command that describe_rates gives leaves it too.
    """
    optim = cfg.optim
    if optim.learning_rate == 0:
        raise UserError("learning_rate=0: the ratio of Muon's rate to it is unknown; name another")
    changes = {
        "learning_rate": rate,
        "muon_learning_rate": optim.muon_learning_rate * rate / optim.learning_rate,
        "max_iters": steps,
        "warmup_iters": optim.warmup_iters * steps // optim.max_iters,
    }
    return cfg.model_copy(update={"optim": optim.model_copy(update=changes)})


def describe_rates(
    trials: list[RateTrial], arguments: list[str], tables: TablesConfig
) -> list[str]:
    """Say which rate is best, at which training breaks, and what to do with that.

    `arguments` are those of train.py, without the rates and the seed; `tables` is of the recipe.
    """
    has_muon = trials[0].muon_rate is not None
    title = "learning_rate"
    if has_muon:
        title += "  muon_learning_rate"
    lines = [
        f"loss in nats per token after {len(trials[0].losses)} steps, on the same batches",
        "",
        f"{title}    loss",
    ]
    best = find_best_trial(trials)
    for trial in trials:
        row = f"{trial.rate:>13g}"
        if trial.muon_rate is not None:
            row += f"  {trial.muon_rate:>18.3g}"
        row += f"  {trial.val_nll:.4f}"
        if trial is best:
            row += "  the best"
        elif trial.breaks:
            row += f"  breaks: the training loss rose to {max(trial.losses):.3g}"
        lines.append(row)
    lines.append("")
    if tables.are_used:
        rate = f"table_learning_rate={tables.table_learning_rate:g}"
        lines.append(f"The tables of n-grams keep their rate: {rate}.")
    if best is None:
        return [*lines, "Training breaks at each of these rates: look at the other options."]
    if not any(trial.breaks for trial in trials):
        lines.append("It breaks at none of these rates.")
    near = [best.rate / 2, best.rate, best.rate * 2]
    values = ",".join(f"{rate:.2g}" for rate in near)
    lines.append("A longer training often wants a lower rate. To see what it is worth:")
    varied = [f"--learning_rate={values}", "--seed=1,2,3"]
    lines.append("  " + shlex.join(["python", "sweep.py", *arguments, *varied]))
    if has_muon:
        lines.append(
            f"  (with --muon_learning_rate={best.muon_rate:.2g}: here both have one ratio)"
        )
    return lines


def find_best_trial(trials: list[RateTrial]) -> RateTrial | None:
    """Find the lowest loss among the rates at which training does not break."""
    whole = [trial for trial in trials if not trial.breaks]
    return min(whole, key=lambda trial: trial.val_nll, default=None)


def draw_rates(trials: list[RateTrial], path: Path) -> None:
    """Draw the loss against the rate, and the training loss at each rate."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global

    figure = Figure((9, 4), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    finite = [trial for trial in trials if math.isfinite(trial.val_nll)]
    rates = [trial.rate for trial in finite]
    losses = [trial.val_nll for trial in finite]
    left.plot(rates, losses, "o-", color="0.35")
    best = find_best_trial(trials)
    if best is not None:
        label = f"best: {best.rate:g}"
        left.plot(best.rate, best.val_nll, "*", ms=16, color="C2", label=label)
    broken = [trial.rate for trial in trials if trial.breaks]
    if broken:
        lowest = min(broken)
        label = f"training breaks at {lowest:g}"
        left.axvspan(lowest, 2 * HIGHEST, color="mistyrose", label=label)
    left.set_xscale("log")
    left.set_xlim(LOWEST / 1.5, HIGHEST * 1.5)
    left.set_xlabel("learning_rate")
    left.set_ylabel("loss, nats per token")
    left.legend(frameon=False)
    for number, trial in enumerate(trials):
        color = colormaps["viridis"](number / len(trials))
        right.plot(smooth(trial.losses), color=color, label=f"{trial.rate:g}")
    start = trials[0].losses[0]
    lowest_loss = min(min(trial.losses) for trial in trials)
    right.set_ylim(lowest_loss - 0.1, start + BREAK_RISE)
    right.set_xlabel("step")
    right.set_ylabel("training loss, nats per token")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *right.get_legend_handles_labels(),
        title="learning_rate",
        loc="outside lower center",
        frameon=False,
        ncols=NUM_RATES,
        fontsize=8,
    )
    with replacing(path) as new:
        figure.savefig(new, format="png")


def smooth(losses: list[float]) -> list[float]:
    """Return running means of the losses.

    >>> smooth([3.0, 1.0])
    [3.0, 2.0]
    """
    means = []
    for end in range(1, len(losses) + 1):
        last = losses[max(0, end - SMOOTHED) : end]
        means.append(math.fsum(last) / len(last))
    return means
