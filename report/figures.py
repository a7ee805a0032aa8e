"""Draws loss curves with matplotlib. Needs no torch."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.errors import UserError
from config.files import replacing
from data.info import ENTROPY_RATE
from engine.logged_run import LoggedRun
from report.picture import X_LABELS, Y_LABELS, Curve, Picture, picture_run, show_number, spread
from surprisal import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_STYLES = ("-", "--", ":")
DIGITS = (1, 1.5, 2, 3, 5, 7)  # of the perplexities on the axis, times a power of ten
# in inches
WIDTH = 7.2
MIN_HEIGHT = 3.9  # of the axes
NAME_HEIGHT = 0.18  # of a baseline
LEGEND_ROW = 0.2
GAP_HEIGHT = 1.5
MARGIN = 0.7


def draw_run(run: LoggedRun, path: Path) -> None:
    """Save the curves of a run."""
    draw_png(picture_run(run), path)


def draw_png(picture: Picture, path: Path) -> list[str]:
    """Save the picture as .png, .svg or .pdf; returns what its legend says of each curve."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path}: cannot draw a {path.suffix} file; use .png, .svg or .pdf")
    with replacing(path) as new:
        figure = make_figure(picture)
        figure.savefig(new, format=path.suffix[1:])
    return [curve.label for curve in picture.curves]


def make_figure(picture: Picture) -> "Figure":
    """Draw the training and validation loss of each run, a star at the best model, and baselines.

    Where the source of the text is known, a panel below has the gap to its entropy rate.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global

    # instead of what the font does not have, there is a box
    warnings.filterwarnings("ignore", "Glyph")
    columns = count_legend_columns(picture)
    heights = [max(MIN_HEIGHT, NAME_HEIGHT * len(picture.baselines))]
    if picture.shows_gap:
        heights.append(GAP_HEIGHT)
    rows = math.ceil((len(picture.curves) + picture.shows_train) / columns)
    height = sum(heights) + MARGIN + LEGEND_ROW * rows
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure((WIDTH, height), dpi=160, layout="constrained")
        panels = figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        axes = panels[0]
        handles, labels = draw_curves(axes, picture)
        figure.legend(
            handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=columns
        )
        set_x_axis(axes, picture)
        draw_baselines(axes, picture, NAME_HEIGHT / heights[0])
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.spines["bottom"].set_bounds(picture.left, picture.right)
            panel.grid(axis="x", alpha=0.15)
        panels[-1].set_xlabel(X_LABELS[picture.x])
        axes.set_ylabel(Y_LABELS[picture.unit])
        if picture.shows_gap:
            draw_gap(panels[1], picture)
        if picture.unit == "nats":
            add_perplexity(axes)
    return figure


def count_legend_columns(picture: Picture) -> int:
    """Return how many labels fit beside each other, at most 3."""
    longest = max(len(curve.label) for curve in picture.curves)
    return max(1, min(3, 118 // (12 + longest)))


def draw_curves(axes: "Axes", picture: Picture) -> tuple[list[Any], list[str]]:
    """Draw the losses of each run; returns what the legend shows, and its labels."""
    star_size = 9
    if picture.shows_train:
        star_size = 12
    handles: list[Any] = []
    labels = []
    for number, curve in enumerate(picture.curves):
        style = line_style(number)
        if picture.shows_train:
            (thin_line,) = axes.plot(*curve.train, **style, linewidth=0.8, alpha=0.45)
        (line,) = axes.plot(*curve.val, **style, linewidth=2)
        if curve.band:
            draw_band(axes, curve, style["color"])
        star = draw_star(axes, curve, style["color"], star_size)
        handles.append((line, star))
        labels.append(curve.label)
    if picture.shows_train and any(curve.train[0] for curve in picture.curves):
        handles.append(thin_line)
        labels.append("thin: training text, before it is learned from")
    return handles, labels


def draw_band(axes: "Axes", curve: Curve, color: str) -> None:
    """Shade how far the losses of the runs of a mean lie apart."""
    places, losses = curve.val
    low = np.subtract(losses, curve.band)
    high = np.add(losses, curve.band)
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def line_style(number: int) -> dict[str, Any]:
    """Return the look of a run's lines: ten colours, then other dashes."""
    dashes = LINE_STYLES[number // 10 % len(LINE_STYLES)]
    return {"color": f"C{number % 10}", "linestyle": dashes}


def draw_star(axes: "Axes", curve: Curve, color: str, size: int) -> Any:
    """Draw a star at the best model."""
    look: dict[str, Any] = {"color": color, "markersize": size, "markeredgecolor": "white"}
    stars = axes.plot(*curve.best, "*", **look, zorder=4, clip_on=False)
    return stars[0]


def set_x_axis(axes: "Axes", picture: Picture) -> None:
    if picture.scale == "log":  # also from 0
        axes.set_xscale("symlog", linthresh=picture.first, linscale=0.3)
    axes.set_xlim(picture.left, picture.right)
    axes.set_xticks(picture.ticks, [show_number(tick) for tick in picture.ticks])
    axes.minorticks_off()


def draw_baselines(axes: "Axes", picture: Picture, name_height: float) -> None:
    """Draw a line for each baseline, and its name.

    The names stand right of the curves, one above the other; a line leads from each to its loss.
    `name_height` is a part of the axes.
    """
    range_of_y = picture.high - picture.low
    margin = 0.04 * range_of_y
    axes.set_ylim(picture.low - margin, picture.high + margin)
    if not picture.baselines:
        return
    names = [name_line(picture, name, value) for name, value in picture.baselines]
    width = 0.05 + 0.0108 * max(len(name) for name in names)  # of the axes
    make_room(axes, picture, width)
    # one beyond the axis is a line at its end, and its name says its loss
    values = [min(max(value, picture.low), picture.high) for _, value in picture.baselines]
    places = spread(values, name_height * range_of_y)
    for name, value, place in zip(names, values, places, strict=True):
        look: dict[str, Any] = {"color": "0.45", "linestyle": (0, (4, 3))}  # dashed
        if name.startswith(ENTROPY_RATE):
            look = {"color": "0", "linestyle": (0, ())}
        ends = [picture.left, picture.right]
        axes.plot(ends, [value, value], **look, linewidth=0.8, zorder=1)
        arrow = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.6}
        arrow |= {"shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            name,
            (picture.right, value),
            (1.03 - width, place),
            textcoords=("axes fraction", "data"),
            fontsize=8.5,
            va="center",
            color="0.2",
            arrowprops=arrow,
        )


def name_line(picture: Picture, name: str, value: float) -> str:
    """Name a baseline and its loss; an arrow says that it is beyond the axis."""
    arrow = ""
    if value > picture.high:
        arrow = "↑ "
    elif value < picture.low:
        arrow = "↓ "
    return f"{arrow}{name}  {value:.3f}"


def make_room(axes: "Axes", picture: Picture, width: float) -> None:
    """Extend the x axis, so that a part of so much is right of the curves."""
    ends = [(picture.left, 0), (picture.right, 0)]
    start, end = axes.transData.transform(ends)[:, 0]
    new_end = start + (end - start) / (1 - width)
    right, _ = axes.transData.inverted().transform((new_end, 0))
    axes.set_xlim(picture.left, right)


def draw_gap(panel: "Axes", picture: Picture) -> None:
    """Draw how far each run's loss is above the source's own."""
    for number, curve in enumerate(picture.curves):
        panel.plot(*curve.gap, **line_style(number), linewidth=2)
    panel.set(yscale="log", ylabel="KL(source || model)")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def add_perplexity(axes: "Axes") -> None:
    """Add an axis on the right that says the perplexity of nats."""
    bottom, top = (perplexity(nats) for nats in axes.get_ylim())
    numbers = [digit * 10**power for power in range(6) for digit in DIGITS]
    ticks = [number for number in numbers if bottom <= number <= top]
    labels = [f"{tick:,g}" for tick in ticks]
    second = axes.secondary_yaxis("right")
    second.set_yticks([math.log(tick) for tick in ticks], labels)
    second.set_ylabel("perplexity")
