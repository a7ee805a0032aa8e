"""Loss curves as pictures and in the terminal. Needs no torch."""

import io
import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from config.errors import UserError
from config.files import write_atomically
from data.baselines import ENTROPY_RATE, UNIFORM
from engine.run import Run
from surprisal import bits_per_byte, perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1000  # of a curve that can be told apart
MARKED = 60  # evaluations that are marked one by one
X_LABELS = {"step": "steps", "tokens": "training targets", "seconds": "seconds"}
STYLES: list[Literal["-", "--", ":"]] = ["-", "--", ":"]
Y_LABELS = {"nats": "cross-entropy, nats per token", "bits_per_byte": "cross-entropy, bits per byte"}


@dataclass(frozen=True)
class Curve:
    """A run's losses in the unit of the picture, and where they were measured."""

    run: Run
    val_x: list[float]
    val: list[float]
    train_x: list[float]  # the middle of the interval that `train` is a mean of
    train: list[float]
    gap_x: list[float]
    gap: list[float]  # KL(source || model) in nats, where the source is known
    best_x: float | None
    best: float

    @property
    def label(self) -> str:
        return f"{self.run.name.lstrip('_')}: " + (
            f"best {self.best:.4f}" + (f", KL {min(self.gap):.4f}" if self.gap else "")
            if self.best_x is not None else "no evaluation")


def read_curve(run: Run, x: str, unit: str) -> Curve:
    records = run.read_metrics()
    info = run.info.val
    scale = bits_per_byte(1.0, max(info.bytes, 1) / max(info.tokens, 1)) if unit == "bits_per_byte" else 1.0
    evals = [record for record in records if "val_nll" in record and x in record]
    val_x, val = [record[x] for record in evals], [
        record["val_bits_per_byte" if unit == "bits_per_byte" else "val_nll"] for record in evals]
    train_x, train, before = [], [], 0.0
    for record in records:
        if "train_nll" in record and x in record:
            train_x.append((before + record[x]) / 2)
            train.append(record["train_nll"] * scale)
            before = record[x]
    gaps = [record for record in evals if record.get("kl_gap", 0) > 0]
    best = min(range(len(val)), key=val.__getitem__) if val else None
    final = next((record for record in reversed(records) if "best_val_nll" in record), {})
    lowest = val[best] if best is not None else math.nan
    return Curve(run, val_x, val, *_thin(train_x, train), [record[x] for record in gaps],
                 [record["kl_gap"] for record in gaps], val_x[best] if best is not None else None,
                 final.get("best_val_bits_per_byte" if unit == "bits_per_byte" else "best_val_nll", lowest))


def draw_png(runs: Sequence[Run], path: Path, x: str = "step", scale: str = "log", unit: str = "nats") -> None:
    """Training and validation loss of each run, the best models marked, and the baselines as lines."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global
    from matplotlib.lines import Line2D

    curves = [read_curve(run, x, unit) for run in runs]
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 10}):
        has_gap = any(curve.gap for curve in curves)
        figure = Figure(figsize=(9.6, 6.4 if has_gap else 5.6), dpi=130, layout="constrained")
        axes, *more = figure.subplots(2 if has_gap else 1, 1, sharex=True, squeeze=False,
                                      height_ratios=[3, 1] if has_gap else None)[:, 0]
        handles = []
        for number, curve in enumerate(curves):
            color, style = f"C{number % 10}", STYLES[number // 10 % len(STYLES)]
            axes.plot(curve.train_x, curve.train, color=color, alpha=0.35, linewidth=1, linestyle=style, zorder=2)
            axes.plot(curve.val_x, curve.val, color=color, linewidth=2, linestyle=style, zorder=3, markersize=3.5,
                      marker="o" if len(curve.val) <= MARKED and len(curves) < 5 else None)
            if curve.best_x is not None:
                axes.plot(curve.best_x, curve.best, color=color, marker="*", markersize=14, markeredgecolor="white",
                          zorder=4)
            for panel in more:
                panel.plot(curve.gap_x, curve.gap, color=color, linewidth=2, linestyle=style)
            handles.append(Line2D([], [], color=color, linewidth=2, linestyle=style, label=_drawable(curve.label)))
        if x == "step" and any(curve.train for curve in curves):
            handles.append(Line2D([], [], color="0.5", alpha=0.6, linewidth=1, label="thin: training"))
        _set_axes(axes, curves, x, scale, unit)
        for panel in more:
            panel.set_yscale("log")
            panel.set_ylabel("KL(source || model)")
            panel.grid(alpha=0.15)
        (more or [axes])[-1].set_xlabel(X_LABELS[x])
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9,
                      ncols=1 if max(len(str(handle.get_label())) for handle in handles) > 60 else min(3, len(handles)))
        kind = path.suffix.removeprefix(".") or "png"
        if kind not in figure.canvas.get_supported_filetypes():
            raise UserError(f"{path}: cannot draw a .{kind} file; use .png, .svg or .pdf")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{path}: should be a file in a directory that exists")
        picture = io.BytesIO()
        figure.savefig(picture, format=kind)
    write_atomically(path, picture.getvalue())


def _set_axes(axes: "Axes", curves: Sequence[Curve], x: str, scale: str, unit: str) -> None:
    """Limits, baselines with their names, and perplexity on the right."""
    right = max((value for curve in curves for value in (*curve.val_x, *curve.train_x)), default=1.0) or 1.0
    first = min((value for curve in curves for value in curve.val_x if value > 0), default=right)
    if scale == "log":
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlim(-0.02 * (first if scale == "log" else right), right * (1.15 if scale == "log" else 1.02))
    baselines = find_baselines([curve.run for curve in curves], unit)
    shown = [value for curve in curves for value in (*curve.val, *curve.train)] + [value for _, value in baselines]
    low, high = min(shown, default=0.0), max((value for _, value in baselines), default=1.0)
    height = max(high - low, 1e-3)
    axes.set_ylim(low - 0.06 * height, high + 0.07 * height)
    axes.set_ylabel(Y_LABELS[unit])
    axes.spines["top"].set_visible(False)
    axes.grid(alpha=0.15)
    last, column = math.inf, 0
    for name, value in sorted(baselines, key=lambda pair: -pair[1]):
        axes.axhline(value, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        column = column + 1 if last - value < 0.035 * height else 0  # too close to the one above: further to the side
        last = value
        place = 0.01 + 0.24 * column
        axes.annotate(_drawable(f"{name}  {value:.3f}"), (place if scale == "log" else 1 - place, value), (0, 2),
                      xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8, color="0.25",
                      zorder=5, ha="left" if scale == "log" else "right", va="bottom")
    if unit == "nats":
        bottom, top = (perplexity(nats) for nats in axes.get_ylim())
        numbers = [digit * 10**power for power in range(6) for digit in (1, 1.5, 2, 3, 4, 5, 7)]
        ticks = [number for number in numbers if bottom <= number <= top]
        second = axes.secondary_yaxis("right")
        second.set_yticks([math.log(number) for number in ticks], [f"{number:,g}" for number in ticks])
        second.set_ylabel("perplexity")


def draw_terminal(runs: Sequence[Run], x: str = "step", scale: str = "log", unit: str = "nats") -> str:
    """The same picture in characters; baselines are the marks of the y axis."""
    import plotext

    curves, rows = [read_curve(run, x, unit) for run in runs], 26
    plotext.clear_figure()
    plotext.plot_size(None, rows)
    plotext.theme("clear")
    shift = 1.0 if scale == "log" else 0.0  # log(0) is not drawn
    for marker, curve in zip(itertools.cycle(["braille", "dot", "x", "+"]), curves, strict=False):
        if curve.val:
            plotext.plot([value + shift for value in curve.val_x], curve.val, marker=marker)
    if scale == "log":
        plotext.xscale("log")
    right = max((value for curve in curves for value in curve.val_x), default=1.0)
    ticks = [0.0, *(10.0**power for power in range(int(math.log10(max(right, 1))) + 1)), right]
    plotext.xticks([tick + shift for tick in ticks], [f"{tick:,g}" for tick in ticks])
    baselines = find_baselines(runs, unit)
    shown = [value for curve in curves for value in curve.val] + [value for _, value in baselines]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    high = max(high, low + 1e-3)  # a vocabulary of one token has no loss
    plotext.ylim(low, high)
    marks: dict[int, list[tuple[str, float]]] = {}  # by the row of the picture
    for name, value in sorted(baselines, key=lambda pair: -pair[1]):
        plotext.hline(value, "gray")
        marks.setdefault(round((value - low) / (high - low) * (rows - 5)), []).append((name, value))
    plotext.yticks([group[0][1] for group in marks.values()],
                   [", ".join(f"{name} {value:.3f}" for name, value in group) for group in marks.values()])
    plotext.title(f"{Y_LABELS[unit]}, against {X_LABELS[x]}")
    picture = plotext.build()
    names = itertools.cycle(["line", "dots", "x", "+"])
    lines = [f"{name:>8}  {curve.label}" for name, curve in zip(names, curves, strict=False)]
    return "\n".join([picture if sys.stdout.isatty() else plotext.uncolorize(picture), *lines])


def find_baselines(runs: Sequence[Run], unit: str) -> list[tuple[str, float]]:
    """Names and losses of the baselines up to log|V|; a name that means different losses says whose each is."""
    values = [{each.name: each.nats_per_token if unit == "nats" else each.bits_per_byte for each in run.info.baselines}
              for run in runs]
    owners = [f"{run.info.name}, {run.info.tokenizer}" for run in runs]
    found: dict[str, float] = {}
    for own, owner in zip(values, owners, strict=True):
        for name, value in own.items():
            shared = all(math.isclose(other.get(name, math.nan), value, rel_tol=1e-3) for other in values)
            if value <= own[UNIFORM] or name == ENTROPY_RATE:
                found[name if shared else f"{name} ({owner})"] = value
    return sorted(found.items(), key=lambda item: item[1])


def _thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points where there are more than can be told apart."""
    size = -(-len(x) // POINTS)
    if size <= 1:
        return x, y
    starts = range(0, len(x), size)
    return [statistics.fmean(x[at:at + size]) for at in starts], [statistics.fmean(y[at:at + size]) for at in starts]


def _drawable(text: str) -> str:
    """The text without characters that the font does not have."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "□" for character in text)
