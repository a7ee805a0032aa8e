"""Loss curves as pictures and in the terminal. Needs no torch."""

import itertools
import math
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from config.errors import UserError
from config.files import replacing
from data.baselines import ENTROPY_RATE
from engine.run import Run
from report.losses import Picture
from surprisal import perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 5  # runs whose training losses are drawn too
MARKERS = ["braille", "dot", "x", "+", *string.ascii_letters]  # of curves in the terminal
ROWS = 21  # of the picture in the terminal
X_LABELS = {"step": "steps", "tokens": "training targets", "seconds": "seconds"}
Y_LABELS = {"nats": "cross-entropy, nats per token", "bits_per_byte": "cross-entropy, bits per byte"}


def draw_png(runs: Sequence[Run], path: Path, x: str = "step", scale: str = "log", unit: str = "nats") -> None:
    """Save the picture as .png, .svg or .pdf."""
    figure, kind = make_figure(runs, x, scale, unit), path.suffix.removeprefix(".") or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: cannot draw a .{kind} file; use .png, .svg or .pdf")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{path}: should be a file in a directory that exists")
    with replacing(path) as new:
        figure.savefig(new, format=kind)


def make_figure(runs: Sequence[Run], x: str = "step", scale: str = "log", unit: str = "nats") -> "Figure":
    """Training and validation loss of each run, a star at the best model, and the baselines as lines."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global
    from matplotlib.lines import Line2D

    picture = Picture(runs, x, unit)
    curves, left, right, low, high = picture.curves, picture.left, picture.right, picture.low, picture.high
    few, has_gap = len(curves) <= FEW, any(curve.gap[0] for curve in curves)
    columns = max(1, min(3, 118 // (12 + max(len(curve.label) for curve in curves))))
    height = max(3.9, 0.18 * len(picture.baselines))  # of the axes, in inches
    with matplotlib.rc_context({"text.parse_math": False, "font.family": "DejaVu Sans"}):
        figure = Figure((7.2, height + 0.7 + 0.2 * -(-(len(curves) + few) // columns) + 1.5 * has_gap), dpi=160,
                        layout="constrained")
        axes, *panels = figure.subplots(1 + has_gap, 1, sharex=True, squeeze=False,
                                        height_ratios=[height, 1.5][:1 + has_gap])[:, 0]
        handles = []
        for number, curve in enumerate(curves):
            look: dict[str, Any] = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
            star: dict[str, Any] = {"marker": "*", "markersize": 12 if few else 9, "markeredgecolor": "white"}
            if few:
                axes.plot(*curve.train, **look, linewidth=0.8, alpha=0.45)
            axes.plot(*curve.val, **look, linewidth=2)
            axes.plot(*curve.best, **look, **star, zorder=4, clip_on=False)
            for panel in panels:
                panel.plot(*curve.gap, **look, linewidth=2)
            handles.append(Line2D([], [], **look, **star, linewidth=2, label=_drawable(curve.label)))
        if few and any(curve.train[0] for curve in curves):
            handles.append(Line2D([], [], color="0.4", alpha=0.6, linewidth=0.8, label="thin: training"))
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=columns)
        if scale == "log":  # also from 0
            axes.set_xscale("symlog", linthresh=picture.first, linscale=0.3)
        axes.set_xlim(left, right)
        ticks = picture.log_ticks if scale == "log" else [tick for tick in axes.get_xticks() if left <= tick <= right]
        axes.set_xticks(ticks, [_number(tick) for tick in ticks])
        axes.minorticks_off()
        # Right of the curves are the names of the baselines, one above the other; a line leads from each to its loss.
        names = [_drawable(f"{name}  {value:.3f}") for name, value in picture.baselines]
        width = 0.05 + 0.0101 * max(map(len, names), default=0)  # of the axes
        start, end = axes.transData.transform([(left, 0), (right, 0)])[:, 0]
        axes.set_xlim(left, axes.transData.inverted().transform((start + (end - start) / (1 - width), 0))[0])
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        values = [value for _, value in picture.baselines]
        for name, value, y in zip(names, values, _spread(values, 0.18 / height * (high - low)), strict=True):
            color, dashes = ("0", ()) if name.startswith(ENTROPY_RATE) else ("0.45", (4, 3))
            axes.plot([left, right], [value, value], color=color, linewidth=0.8, linestyle=(0, dashes), zorder=1)
            axes.annotate(name, (right, value), (1.03 - width, y), textcoords=("axes fraction", "data"), fontsize=8.5,
                          va="center", color="0.2", arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6,
                                                                "shrinkB": 0, "relpos": (0, 0.5)})
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
            second.set_yticks([math.log(number) for number in ticks], [f"{number:,g}" for number in ticks])
            second.set_ylabel("perplexity")
    return figure


def draw_terminal(runs: Sequence[Run], x: str = "step", scale: str = "log", unit: str = "nats") -> str:
    """The same picture in characters; baselines are the marks of the y axis."""
    import plotext

    picture = Picture(runs, x, unit)
    low, step = picture.low, (picture.high - picture.low) / (ROWS - 1)
    ticks = picture.log_ticks if scale == "log" else [picture.right * part / 4 for part in range(5)]

    def place(value: float) -> float:
        return math.log10(value / picture.first + 1) if scale == "log" else value

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(None, ROWS + 3)  # with the frame and the marks of the x axis
    plotext.theme("clear")
    lines = []
    for marker, curve in zip(itertools.cycle(MARKERS), picture.curves, strict=False):
        if curve.val[0]:
            plotext.plot([place(value) for value in curve.val[0]],
                         [min(loss, 2 * picture.high) for loss in curve.val[1]], marker=marker)
        lines.append(f"{ {'braille': '⠒⠒', 'dot': '••'}.get(marker, 2 * marker):>8}  {curve.label}")
    plotext.xlim(place(0 if scale == "linear" else picture.left), place(picture.right))
    plotext.ylim(low, picture.high)
    plotext.xticks([place(tick) for tick in ticks], [_number(tick) for tick in ticks])
    names: dict[int, list[str]] = {}  # of the baselines in each row
    for name, value in reversed(picture.baselines):
        names.setdefault(round((value - low) / step), []).append(f"{name} {value:.3f}")
    for row in names:
        plotext.hline(low + row * step, "gray")
    plotext.yticks([low + row * step for row in names], [", ".join(group) for group in names.values()])
    drawn = plotext.build()
    return "\n".join([f"{Y_LABELS[unit]}, against {X_LABELS[x]}",
                      drawn if sys.stdout.isatty() else plotext.uncolorize(drawn), *lines])


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to ascending values that are at least `gap` apart: an isotonic regression."""
    groups: list[list[float]] = []  # of values that share a mean, each less the gaps below it
    for number, value in enumerate(values):
        groups.append([value - number * gap])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [mean + number * gap for number, mean in enumerate(fmean(group) for group in groups for _ in group)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _drawable(text: str) -> str:
    """The text without characters that the font does not have."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "□" for character in text)
