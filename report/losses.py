"""What a picture of loss curves shows: the losses of runs, and the baselines that they are compared with."""

import itertools
import math
from collections.abc import Sequence
from statistics import fmean

from data.baselines import ENTROPY_RATE, UNIFORM
from engine.run import Record, Run
from surprisal import bits_per_byte

POINTS = 1000  # of a curve that can be told apart

Series = tuple[list[float], list[float]]  # where losses were measured, and the losses


class Curve:
    """A run's losses in the unit of the picture."""

    def __init__(self, run: Run, x: str, unit: str) -> None:
        records, split = run.read_metrics(), run.info.val
        key = "val_nll" if unit == "nats" else "val_bits_per_byte"
        scale = 1.0 if unit == "nats" else bits_per_byte(1.0, max(1, split.bytes) / max(1, split.tokens))
        self.val, self.gap = _series(records, x, key), _series(records, x, "kl_gap")
        ends, train = _series(records, x, "train_nll")  # means of all steps since the line before
        start = records[0].get(x, 0.0) if records and "train_nll" not in records[0] else 0.0
        middles = [(before + end) / 2 for before, end in itertools.pairwise([start, *ends])]
        self.train = _thin(middles), [scale * nll for nll in _thin(train)]
        value, at = min(zip(self.val[1], self.val[0], strict=True), default=(math.nan, math.nan))
        final: Record = next((record for record in reversed(records) if "best_val_nll" in record), {})
        self.best = [at], [final.get(f"best_{key}", value)]  # one point
        kl = f", KL {final.get('best_kl_gap', min(self.gap[1])):.4f}" if self.gap[1] else ""
        best = f"best {self.best[1][0]:.4f}{kl}" if self.val[1] else "no evaluation"
        self.label = f"{best}  {_shorten(run.name, 48)}"


class Picture:
    """The curves of some runs, the baselines, and the limits of the axes."""

    def __init__(self, runs: Sequence[Run], x: str, unit: str) -> None:
        self.curves, self.baselines = [Curve(run, x, unit) for run in runs], find_baselines(runs, unit)
        places = [place for curve in self.curves for place in curve.val[0] + curve.train[0]]
        self.left, self.right = min(places, default=0.0), max(places, default=0.0)
        self.right += self.right == self.left
        self.first = min((place for curve in self.curves for place in curve.val[0] if place > 0), default=self.right)
        losses = [loss for curve in self.curves for loss in curve.val[1] + curve.train[1]]
        values = [value for _, value in self.baselines]
        self.low = min([*losses, *values], default=0.0)
        bests = [min(curve.val[1]) for curve in self.curves if curve.val[1]]
        self.high = max([*values, *bests, self.low + 1e-3])  # a loss that rises above log|V| leaves the picture
        start = self.first if self.left <= 0 else 1.8 * self.left
        self.log_ticks = [max(0.0, self.left), *(10.0**power for power in range(-3, 16)
                                                 if start <= 10.0**power < self.right / 1.8), self.right]


def find_baselines(runs: Sequence[Run], unit: str) -> list[tuple[str, float]]:
    """Names and losses of the baselines up to log|V|, and the entropy rate, from the lowest to the highest.

    A name that means different losses says whose each is: by the corpus, the tokens, or the run.
    """
    values = [{each.name: each.nats_per_token if unit == "nats" else each.bits_per_byte for each in run.info.baselines}
              for run in runs]
    for owners in ([run.info.name for run in runs], [run.info.tokenizer for run in runs], [run.name for run in runs]):
        if all(values[owners.index(owner)] == own for owner, own in zip(owners, values, strict=True)):
            break
    found: dict[tuple[str, str], float] = {}
    for own, owner in zip(values, owners, strict=True):
        for name, value in own.items():
            shared = all(math.isclose(other.get(name, math.nan), value, rel_tol=1e-3) for other in values)
            if value <= own.get(UNIFORM, math.inf) or name == ENTROPY_RATE:
                found[name, "" if shared else f" ({_shorten(owner, 24)})"] = value
    return sorted(((name + owner, value) for (name, owner), value in found.items()), key=lambda pair: pair[1])


def _series(records: Sequence[Record], x: str, key: str) -> Series:
    found = [(record[x], record[key]) for record in records if x in record and key in record]
    found = [(place, loss) for place, loss in found if math.isfinite(place) and math.isfinite(loss)]
    return [place for place, _ in found], [loss for _, loss in found]


def _thin(values: list[float]) -> list[float]:
    """Means of neighbouring points where there are more than can be told apart."""
    size = -(-len(values) // POINTS) or 1
    return [fmean(values[at:at + size]) for at in range(0, len(values), size)]


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[:length // 2]}…{name[1 - length // 2:]}"
