"""Collects what a picture of loss curves shows: the curves of runs, the baselines, and the axes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from config.terminal import one_line
from data.info import UNIFORM, CorpusInfo, choose_landmarks
from engine.logged_run import LoggedRun
from engine.metrics import Record, find_best
from surprisal import bits_per_byte

NAME_LENGTH = 48  # of a run in a legend
POINTS = 1000  # of a curve that can be told apart
MAX_TRAIN_CURVES = 5  # of more runs only the validation losses are drawn
X_LABELS = {"step": "steps", "tokens": "training targets", "seconds": "seconds"}
Y_LABELS = {
    "nats": "cross-entropy, nats per token",
    "bits_per_byte": "cross-entropy, bits per byte",
}
VAL_NAMES = {"nats": "val_nll", "bits_per_byte": "val_bits_per_byte"}

Baseline = tuple[str, float]  # its name and its loss
Series = tuple[list[float], list[float]]  # where losses were measured, and the losses


class Curve:
    """A run's losses in the unit of the picture, and its name in the legend."""

    def __init__(self, run: LoggedRun, name: str, x: str, unit: str) -> None:
        records = run.read_metrics()
        evaluations = [record for record in records if "val_nll" in record]
        val_name = VAL_NAMES[unit]
        self.name = name
        self.val = read_series(evaluations, x, val_name)
        self.steps = read_series(evaluations, "step", val_name)[0]
        self.band: list[float] = []  # how far it extends to both sides of `val`
        self.gap = read_series(evaluations, x, "kl_gap")
        nat = 1.0
        if unit == "bits_per_byte":
            nat = bits_per_byte(1.0, run.info.bytes_per_target)
        self.train = read_train_series(records, x, nat)
        self.best: Series = ([], [])  # one point
        if run.info.split == "tuning":  # its losses are of another text
            name = f"{name} (tuning text)"
        self.label = f"no evaluation  {name}"
        if self.val[1]:
            self._set_best(records, name, x, val_name)

    def _set_best(self, records: Sequence[Record], name: str, x: str, val_name: str) -> None:
        """Find the best model, and its loss on all validation text, or on a part."""
        best = find_best(read_complete(records, x, val_name))
        final: Record = {}
        for record in records:
            if "best_val_nll" in record:
                final = record
        loss = final.get(f"best_{val_name}", best[val_name])
        gap = final.get("best_kl_gap", best.get("kl_gap"))
        self.best = ([best[x]], [loss])
        self.label = f"best {loss:.4f}  {name}"
        if gap is not None:
            self.label = f"best {loss:.4f}, KL {gap:.4f}  {name}"


class Picture:
    """The curves of some runs, the baselines, and the ends and ticks of the axes."""

    def __init__(
        self,
        curves: list[Curve],
        baselines: list[Baseline],
        x: str = "step",
        scale: str = "log",
        unit: str = "nats",
    ) -> None:
        self.curves = curves
        self.baselines = baselines
        self.x = x
        self.scale = scale
        self.unit = unit
        self.set_axes()

    def set_axes(self) -> None:
        """Fit the axes to the curves and the baselines."""
        self.shows_train = len(self.curves) <= MAX_TRAIN_CURVES
        self.shows_gap = any(curve.gap[0] for curve in self.curves)
        self._set_x_axis()
        self._set_y_axis()

    def _set_x_axis(self) -> None:
        places: list[float] = []
        for curve in self.curves:
            places += curve.val[0] + curve.train[0]
        self.left = 0.0
        if self.scale == "log":
            self.left = min(places, default=0.0)
        self.right = max(places, default=0.0)
        if self.right == self.left:  # a single point
            # 1 more would be lost beside a very large step
            self.right += max(1.0, 1e-3 * self.left)
        evaluated = [place for curve in self.curves for place in curve.val[0] if place > 0]
        self.first = min(evaluated, default=self.right)  # evaluation after the start
        self.set_ticks()

    def set_ticks(self) -> None:
        """Place ticks at the ends of the x axis, and between them."""
        length = self.right - self.left
        between = [self.left + length * part / 4 for part in (1, 2, 3)]
        if self.scale == "log":
            start = max(self.first, 1.8 * self.left)
            powers = [10.0**power for power in range(-3, 16)]
            between = [power for power in powers if start <= power < self.right / 1.8]
        self.ticks = [self.left, *between, self.right]

    def _set_y_axis(self) -> None:
        values = [value for _, value in self.baselines]
        losses: list[float] = []
        least: list[float] = []  # that the axis reaches
        for curve in self.curves:
            losses += curve.val[1] + curve.train[1]
            least += curve.best[1]
            if not values:
                least += curve.val[1][:1]  # before training
        self.low = min(values + losses)
        self.high = max(values + least, default=self.low)
        self.high = max(self.high, self.low + 1e-3)


def read_complete(records: Sequence[Record], x: str, val_name: str) -> Iterator[Record]:
    """Give the records, without the evaluations that cannot be drawn: they tell no best model."""
    for record in records:
        can_be_drawn = x in record and val_name in record
        if can_be_drawn or "val_nll" not in record:
            yield record


def read_series(records: Sequence[Record], x: str, name: str) -> Series:
    """Return the values of a name, and where they stand; records that lack one are left out."""
    complete = [record for record in records if x in record and name in record]
    return [record[x] for record in complete], [record[name] for record in complete]


def read_train_series(records: Sequence[Record], x: str, nat: float) -> Series:
    """Return the training losses, where one nat is so much in the unit of the picture."""
    ends, losses = read_series(records, x, "train_nll")
    start = 0.0
    if records:
        start = records[0].get(x, 0.0)
    return thin(middles(start, ends)), [nat * loss for loss in thin(losses)]


def middles(start: float, ends: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return where training losses stand: each is the mean of the steps since the line before.

    >>> middles(0, [1, 2, 4]).tolist()
    [0.5, 1.5, 3.0]
    """
    starts = np.append(start, ends[:-1])[: len(ends)]
    return (starts + ends) / 2


def thin(values: Sequence[float] | np.ndarray) -> list[float]:
    """Return means of neighbouring values where there are more than can be told apart."""
    if len(values) == 0:
        return []
    size = math.ceil(len(values) / POINTS)
    starts = np.arange(0, len(values), size)
    sizes = np.diff(starts, append=len(values))
    sums = np.add.reduceat(values, starts)
    return [float(mean) for mean in sums / sizes]


def picture_run(run: LoggedRun) -> Picture:
    """Collect what a picture of one run shows, in nats against the steps."""
    name = shorten(run.path.absolute().name, NAME_LENGTH)
    baselines = read_baselines(run.info, "nats")
    return Picture([Curve(run, name, "step", "nats")], baselines)


def read_baselines(info: CorpusInfo, unit: str) -> list[Baseline]:
    """Return the names and losses of the baselines, from the lowest to the highest.

    They include the entropy rate; one above log|V| says nothing, and is left out.
    """
    column = "nats_per_token" if unit == "nats" else unit
    losses = {each.label: getattr(each, column) for each in choose_landmarks(info.baselines)}
    found = [pair for pair in losses.items() if pair[1] <= losses[UNIFORM]]
    return sorted(found, key=lambda pair: pair[1])


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return the positions nearest to ascending values that are at least `gap` apart.

    This is an isotonic regression.

    >>> spread([1.0, 1.0, 5.0], 0.5)
    [0.75, 1.25, 5.0]
    """
    groups: list[list[float]] = []  # of values that share a mean, each less the gaps below it
    for number, value in enumerate(values):
        group = [value - number * gap]
        while groups and mean(groups[-1]) > mean(group):
            group = groups.pop() + group
        groups.append(group)
    shared = [mean(group) for group in groups for _ in group]
    return [middle + number * gap for number, middle in enumerate(shared)]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def show_number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def shorten(name: str, length: int) -> str:
    """Return a name on one line, of at most so many characters."""
    name = one_line(name)
    if len(name) <= length:
        return name
    half = length // 2
    return f"{name[:half]}…{name[1 - half :]}"
