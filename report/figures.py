"""Loss curves of runs beside their baselines, as pictures and in the terminal. Needs no torch."""

import itertools
import math
import shutil
import string
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from config.errors import UserError
from config.files import replacing, unique_names
from config.terminal import one_line
from data.baselines import ENTROPY_RATE, UNIFORM
from engine.metrics import Record, find_best
from engine.run import Run
from surprisal import bits_per_byte, perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 1000  # of a curve that can be told apart
FEW = 5  # runs whose training losses are drawn too
# in the terminal
MARKERS = {"braille": "⠒⠒", "dot": "••", **{mark: 2 * mark for mark in "x+" + string.ascii_letters}}
ROWS = 21  # of the picture in the terminal
X_LABELS = {"step": "steps", "tokens": "training targets", "seconds": "seconds"}
Y_LABELS = {
    "nats": "cross-entropy, nats per token",
    "bits_per_byte": "cross-entropy, bits per byte",
}

Series = tuple[list[float], list[float]]  # where losses were measured, and the losses


class Curve:
    """A run's losses in the unit of the picture."""

    def __init__(self, run: Run, name: str, x: str, unit: str) -> None:
        records = run.read_metrics()
        key = "val_nll" if unit == "nats" else "val_bits_per_byte"
        # a unit alone tells no best model
        evaluations = [record for record in records if "val_nll" in record]
        self.val, self.gap = _series(evaluations, x, key), _series(evaluations, x, "kl_gap")
        ends, train = _series(records, x, "train_nll")
        scale = 1.0 if unit == "nats" else bits_per_byte(1.0, run.info.bytes_per_target)
        first = records[0].get(x, 0.0) if records else 0.0
        self.train = thin(middles(first, ends)), [scale * nll for nll in thin(train)]
        self.best: Series = [], []  # one point
        self.label = f"no evaluation  {name}"
        if self.val[1]:
            final: Record = next(
                (record for record in reversed(records) if "best_val_nll" in record), {}
            )
            best = find_best(
                each for each in records if "val_nll" not in each or (x in each and key in each)
            )
            self.best = [best[x]], [final.get(f"best_{key}", best[key])]
            gap = final.get("best_kl_gap", best.get("kl_gap"))
            kl = "" if gap is None else f", KL {gap:.4f}"
            self.label = f"best {self.best[1][0]:.4f}{kl}  {name}"


class Picture:
    """The curves of some runs, the baselines, and the axes."""

    def __init__(self, runs: Sequence[Run], x: str, scale: str, unit: str) -> None:
        names = _shorten_all(unique_names([run.path for run in runs]), 48)
        self.curves = [Curve(run, name, x, unit) for run, name in zip(runs, names, strict=True)]
        self.baselines = find_baselines(runs, unit)
        places = [place for curve in self.curves for place in curve.val[0] + curve.train[0]]
        self.left = min(places, default=0.0) if scale == "log" else 0.0
        self.right = max(places, default=0.0)
        if self.right == self.left:  # a single point; 1 more would be lost beside a very large step
            self.right += max(1.0, 1e-3 * self.left)
        self.first = min(
            (place for curve in self.curves for place in curve.val[0] if place > 0),
            default=self.right,
        )
        powers = [10.0**power for power in range(-3, 16)]
        between = (
            [tick for tick in powers if max(self.first, 1.8 * self.left) <= tick < self.right / 1.8]
            if scale == "log"
            else [self.right * part / 4 for part in (1, 2, 3)]
        )
        self.ticks = [self.left, *between, self.right]
        values = [value for _, value in self.baselines]
        self.low = min(
            values + [loss for curve in self.curves for loss in curve.val[1] + curve.train[1]]
        )
        self.high = max(
            [*values, *(loss for curve in self.curves for loss in curve.best[1]), self.low + 1e-3]
        )


def find_baselines(runs: Sequence[Run], unit: str) -> list[tuple[str, float]]:
    """Names and losses of the baselines up to log|V|, and the entropy rate, from the lowest to the
    highest.

    A name that means different losses says whose each is: by the corpus, the tokens, or the first
    of the runs.
    """
    values = [
        {
            each.name: each.nats_per_token if unit == "nats" else each.bits_per_byte
            for each in run.info.baselines
        }
        for run in runs
    ]
    by_corpus = [run.info.name for run in runs]
    by_tokens = [run.info.tokenizer for run in runs]
    for owners in (by_corpus, by_tokens, unique_names([run.path for run in runs])):
        if all(
            values[owners.index(owner)] == own for owner, own in zip(owners, values, strict=True)
        ):
            break
    owners = _shorten_all(owners, 16)
    found: dict[str, float] = {}
    for number, (own, owner) in enumerate(zip(values, owners, strict=True)):
        for name, value in own.items() if own not in values[:number] else []:
            shared = all(
                math.isclose(other.get(name, math.nan), value, rel_tol=1e-3) for other in values
            )
            if value <= own[UNIFORM]:
                found[name if shared else f"{name} ({owner})"] = value
    return sorted(found.items(), key=lambda pair: pair[1])


def draw_png(
    runs: Sequence[Run], path: Path, x: str = "step", scale: str = "log", unit: str = "nats"
) -> list[str]:
    """Save the picture as .png, .svg or .pdf; returns what its legend says of each run."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path}: cannot draw a {path.suffix} file; use .png, .svg or .pdf")
    with replacing(path) as new:
        figure = make_figure(runs, x, scale, unit)
        figure.savefig(new, format=path.suffix[1:])
    return [text.get_text() for text in figure.legends[0].get_texts()[: len(runs)]]


def make_figure(
    runs: Sequence[Run], x: str = "step", scale: str = "log", unit: str = "nats"
) -> "Figure":
    """Training and validation loss of each run, a star at the best model, and the baselines as
    lines.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global

    # instead of what the font does not have, there is a box
    warnings.filterwarnings("ignore", "Glyph")
    picture = Picture(runs, x, scale, unit)
    curves, left, right, low, high = (
        picture.curves,
        picture.left,
        picture.right,
        picture.low,
        picture.high,
    )
    few, has_gap = len(curves) <= FEW, any(curve.gap[0] for curve in curves)
    columns = max(1, min(3, 118 // (12 + max(len(curve.label) for curve in curves))))
    height = max(3.9, 0.18 * len(picture.baselines))  # of the axes, in inches
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(
            (7.2, height + 0.7 + 0.2 * -(-(len(curves) + few) // columns) + 1.5 * has_gap),
            dpi=160,
            layout="constrained",
        )
        axes, *panels = figure.subplots(
            1 + has_gap, 1, sharex=True, squeeze=False, height_ratios=[height, 1.5][: 1 + has_gap]
        )[:, 0]
        handles: list[Any] = []  # what stands beside the labels in the legend
        labels = [curve.label for curve in curves]
        for number, curve in enumerate(curves):
            look: dict[str, Any] = {
                "color": f"C{number % 10}",
                "linestyle": ("-", "--", ":")[number // 10 % 3],
            }
            if few:
                (thin,) = axes.plot(*curve.train, **look, linewidth=0.8, alpha=0.45)
            (line,) = axes.plot(*curve.val, **look, linewidth=2)
            (star,) = axes.plot(
                *curve.best,
                "*",
                color=look["color"],
                markersize=12 if few else 9,
                markeredgecolor="white",
                zorder=4,
                clip_on=False,
            )
            for panel in panels:
                panel.plot(*curve.gap, **look, linewidth=2)
            handles.append((line, star))
        if few and any(curve.train[0] for curve in curves):
            handles, labels = (
                [*handles, thin],
                [*labels, "thin: training text, before it is learned from"],
            )
        figure.legend(
            handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=columns
        )
        if scale == "log":  # also from 0
            axes.set_xscale("symlog", linthresh=picture.first, linscale=0.3)
        axes.set_xlim(left, right)
        axes.set_xticks(picture.ticks, map(_number, picture.ticks))
        axes.minorticks_off()
        # Right of the curves are the names of the baselines, one above the other; a line leads from
        # each to its loss.
        names = [f"{name}  {value:.3f}" for name, value in picture.baselines]
        width = 0.05 + 0.0108 * max(map(len, names))  # of the axes
        start, end = axes.transData.transform([(left, 0), (right, 0)])[:, 0]
        axes.set_xlim(
            left, axes.transData.inverted().transform((start + (end - start) / (1 - width), 0))[0]
        )
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        values = [value for _, value in picture.baselines]
        for name, value, y in zip(
            names, values, _spread(values, 0.18 / height * (high - low)), strict=True
        ):
            color, dashes = ("0", ()) if name.startswith(ENTROPY_RATE) else ("0.45", (4, 3))
            axes.plot(
                [left, right],
                [value, value],
                color=color,
                linewidth=0.8,
                linestyle=(0, dashes),
                zorder=1,
            )
            axes.annotate(
                name,
                (right, value),
                (1.03 - width, y),
                textcoords=("axes fraction", "data"),
                fontsize=8.5,
                va="center",
                color="0.2",
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "linewidth": 0.6,
                    "shrinkB": 0,
                    "relpos": (0, 0.5),
                },
            )
        for each in (axes, *panels):
            each.spines[["top", "right"]].set_visible(False)
            each.spines["bottom"].set_bounds(left, right)
            each.grid(axis="x", alpha=0.15)
        each.set_xlabel(X_LABELS[x])
        axes.set_ylabel(Y_LABELS[unit])
        for panel in panels:
            panel.set(yscale="log", ylabel="KL(source || model)")
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if unit == "nats":
            bottom, top = (perplexity(nats) for nats in axes.get_ylim())
            numbers = [digit * 10**power for power in range(6) for digit in (1, 1.5, 2, 3, 5, 7)]
            ticks = [number for number in numbers if bottom <= number <= top]
            second = axes.secondary_yaxis("right")
            second.set_yticks(
                [math.log(number) for number in ticks], [f"{number:,g}" for number in ticks]
            )
            second.set_ylabel("perplexity")
    return figure


def draw_terminal(
    runs: Sequence[Run], x: str = "step", scale: str = "log", unit: str = "nats"
) -> str:
    """The same picture in characters; baselines are the marks of the y axis."""
    import plotext

    picture = Picture(runs, x, scale, unit)
    low, step = picture.low, (picture.high - picture.low) / (ROWS - 1)

    def place(value: float) -> float:
        return math.log10(value / picture.first + 1) if scale == "log" else value

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(None, ROWS + 3)  # with the frame and the marks of the x axis
    plotext.theme("clear")
    lines = []
    for (marker, shown), curve in zip(
        itertools.cycle(MARKERS.items()), picture.curves, strict=False
    ):
        if curve.val[0]:
            plotext.plot(
                [*map(place, curve.val[0])],
                [min(loss, 2 * picture.high) for loss in curve.val[1]],
                marker=marker,
            )
        lines.append(f"{shown:>8}  {curve.label}")
    plotext.xlim(place(picture.left), place(picture.right))
    plotext.ylim(low, picture.high)
    plotext.xticks([*map(place, picture.ticks)], [*map(_number, picture.ticks)])
    names: dict[int, list[str]] = {}  # of the baselines in each row
    for name, value in reversed(picture.baselines):
        names.setdefault(round((value - low) / step), []).append(f"{name} {value:.3f}")
    for row in names:
        plotext.hline(low + row * step, "gray")
    labels, half = (
        [", ".join(group) for group in names.values()],
        shutil.get_terminal_size().columns // 2,
    )
    plotext.yticks(
        [low + row * step for row in names],
        [label if len(label) <= half else f"{label[: half - 1]}…" for label in labels],
    )
    drawn = plotext.build()
    return "\n".join(
        [
            f"{Y_LABELS[unit]}, against {X_LABELS[x]}",
            drawn if sys.stdout.isatty() else plotext.uncolorize(drawn),
            *lines,
        ]
    )


def _series(records: Sequence[Record], x: str, key: str) -> Series:
    found = [(record[x], record[key]) for record in records if x in record and key in record]
    return [place for place, _ in found], [loss for _, loss in found]


def middles(start: float, ends: Sequence[float] | np.ndarray) -> np.ndarray:
    """Where training losses stand: each is the mean of the steps since the line before."""
    return (np.append(start, ends[:-1])[: len(ends)] + ends) / 2


def thin(values: Sequence[float] | np.ndarray) -> list[float]:
    """Means of neighbouring points where there are more than can be told apart."""
    starts = np.arange(0, len(values), -(-len(values) // POINTS) or 1)
    sizes = np.diff(starts, append=len(values))
    return (np.add.reduceat(values, starts) / sizes).tolist() if len(values) else []


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to ascending values that are at least `gap` apart: an isotonic
    regression.
    """
    groups: list[list[float]] = []  # of values that share a mean, each less the gaps below it
    for number, value in enumerate(values):
        groups.append([value - number * gap])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        mean + number * gap
        for number, mean in enumerate(fmean(group) for group in groups for _ in group)
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shorten_all(names: list[str], length: int) -> list[str]:
    """The names, shortened if they stay different."""
    short = [_shorten(name, length) for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _shorten(name: str, length: int) -> str:
    """A name on one line, of at most so many characters."""
    name = one_line(name)
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 - length // 2 :]}"
