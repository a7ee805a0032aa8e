"""Draws loss curves in the terminal, as characters."""

import itertools
import math
import string
import sys

from config.terminal import has_colours, screen_width
from report.picture import X_LABELS, Y_LABELS, Picture, show_number

ROWS = 21  # of the picture
MARKERS = ["braille", "dot", *"x+", *string.ascii_letters]  # of the curves
SHOWN_MARKERS = {"braille": "⠒⠒", "dot": "••"}  # in the legend; of the others, two


def draw_terminal(picture: Picture) -> str:
    """Return the picture of figures.py in characters; baselines are the marks of the y axis."""
    import plotext

    def place(value: float) -> float:
        if picture.scale == "log":
            return math.log10(value / picture.first + 1)
        return value

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(screen_width(), ROWS + 3)  # with the frame and the marks of the x axis
    plotext.theme("clear")
    legend = []
    for marker, curve in zip(itertools.cycle(MARKERS), picture.curves, strict=False):
        places, losses = curve.val
        if places:
            shown = [min(loss, 2 * picture.high) for loss in losses]
            plotext.plot([place(value) for value in places], shown, marker=marker)
        legend.append(f"{SHOWN_MARKERS.get(marker, 2 * marker):>8}  {curve.label}")
    plotext.xlim(place(picture.left), place(picture.right))
    plotext.ylim(picture.low, picture.high)
    tick_places = [place(tick) for tick in picture.ticks]
    plotext.xticks(tick_places, [show_number(tick) for tick in picture.ticks])

    labels = label_rows(picture)
    heights = [row_height(picture, row) for row in labels]
    for height in heights:
        plotext.hline(height, "gray")
    if labels:  # else the marks are numbers
        plotext.yticks(heights, [cut_label(label) for label in labels.values()])

    drawn = plotext.build()
    if not has_colours(sys.stdout):
        drawn = plotext.uncolorize(drawn)
    return "\n".join([f"{Y_LABELS[picture.unit]}, against {X_LABELS[picture.x]}", drawn, *legend])


def label_rows(picture: Picture) -> dict[int, str]:
    """Return the names of the baselines in each row that has some, from the top."""
    names: dict[int, list[str]] = {}
    for name, value in reversed(picture.baselines):
        part = (value - picture.low) / (picture.high - picture.low)
        row = round(min(max(part, 0.0), 1.0) * (ROWS - 1))
        names.setdefault(row, []).append(f"{name} {value:.3f}")
    return {row: ", ".join(group) for row, group in names.items()}


def row_height(picture: Picture, row: int) -> float:
    """Return the loss in the middle of a row."""
    return picture.low + row * (picture.high - picture.low) / (ROWS - 1)


def cut_label(label: str) -> str:
    """Cut a label at half of the terminal."""
    half = screen_width() // 2
    if len(label) <= half:
        return label
    return f"{label[: half - 1]}…"
