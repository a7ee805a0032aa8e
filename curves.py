"""Loss curves of one run or many: `python curves.py out/a [out/b ...] [--terminal]`."""

import io
import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from config.cli import load_options
from config.schema import Section
from data.baselines import UNIFORM
from errors import UserError, run_command
from files import write_atomically
from runs import Run, open_run
from surprisal import perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 2000  # of a curve that can be told apart
MARKED = 100  # evaluations, at most, that are marked one by one

X_LABELS = {"step": "optimizer steps", "tokens": "training tokens", "seconds": "seconds"}
Y_LABELS = {"nats": "cross-entropy, nats per token", "bits_per_byte": "cross-entropy, bits per byte"}


class CurveOptions(Section):
    """What to draw, and where."""

    x: Literal["step", "tokens", "seconds"] = Field("step", description="what the curves are drawn against")
    unit: Literal["nats", "bits_per_byte"] = Field("nats", description="of the loss; bits per byte compare tokenizers")
    out: str = Field("curves.png", min_length=1, description="the picture to write")
    terminal: bool = Field(False, description="draw in the terminal instead")


def main(argv: list[str]) -> None:
    paths, options = load_options(CurveOptions, argv, "RUN", "+", "directories that train.py made")
    runs = [open_run(Path(path)) for path in paths]
    for run in runs:
        if not run.metrics:
            raise UserError(f"{run.path}: has no metrics yet")
    if options.terminal:
        draw_terminal(runs, options)
    else:
        draw_png(runs, Path(options.out), options)
        print(options.out)


def draw_png(runs: Sequence[Run], path: Path, options: CurveOptions) -> None:
    """Training and validation loss of each run, the baselines as lines, the best checkpoints marked."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(9.6, 5.8), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines["top"].set_visible(False)
    axes.grid(alpha=0.15)
    for number, run in enumerate(runs):
        _draw_run(axes, run, f"C{number}", options, alone=len(runs) == 1)
    axes.set_xlim(0, 1.2 * _right(runs, options))  # room for the baselines' names
    for place, (name, value) in enumerate(_baselines(runs, options)):
        below = place == 0  # the lowest one's name stands where no curve comes
        axes.axhline(value, color="0.45", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(name, (1, value), (-4, -2 if below else 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=8, color="0.3")
    axes.set_xlabel(X_LABELS[options.x])
    axes.set_ylabel(Y_LABELS[options.unit])
    if options.unit == "nats":
        _add_perplexity(axes)
    axes.set_title(", ".join(_plain(run.name) for run in runs), fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=9)
    kind = path.suffix.removeprefix(".") or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: cannot draw a .{kind} file; use .png, .svg or .pdf")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{path}: should be a file in a directory that exists")
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    write_atomically(path, picture.getvalue())


def _plain(name: str) -> str:
    """A run's name with nothing that matplotlib would take for a formula."""
    return name.replace("$", r"\$")


def _add_perplexity(axes: "Axes") -> None:
    """A second axis: exp(nats), at round numbers."""
    low, high = (perplexity(nats) for nats in axes.get_ylim())
    round_numbers = (digit * 10**power for power in range(6) for digit in (1, 1.5, 2, 3, 4, 5, 7))
    ticks = [number for number in round_numbers if low <= number <= high]
    second = axes.secondary_yaxis("right")
    second.set_yticks([math.log(number) for number in ticks], [f"{number:,g}" for number in ticks])
    second.set_ylabel("perplexity")


def _draw_run(axes: "Axes", run: Run, color: str, options: CurveOptions, alone: bool) -> None:
    name = "" if alone else f"{_plain(run.name)}: ".lstrip("_")
    x, y, label = _thin(*_series(run, "train_nll", options), "training")
    axes.plot(x, y, color=color, alpha=0.45, linewidth=1.5, label=label if alone else None)
    x, y = _series(run, "val_nll", options)
    if not y:
        return
    axes.plot(x[:2], y[:2], color=color, linewidth=1, linestyle=":")  # nobody measured how it fell there
    axes.plot(x[1:] or x, y[1:] or y, color=color, linewidth=2, marker="o" if len(x) <= MARKED else None, markersize=4,
              label=f"{name}validation")
    best, says = _best(run, y, options)
    axes.plot(x[best], y[best], color=color, marker="*", markersize=13, markeredgecolor="white", linestyle="none",
              label=f"{name}best, {says}", zorder=3)


def draw_terminal(runs: Sequence[Run], options: CurveOptions) -> None:
    """The same picture in characters."""
    import plotext

    plotext.plot_size(None, 28)
    plotext.theme("clear")
    for marker, run in zip(itertools.cycle(["braille", "dot", "x", "+"]), runs):
        x, y = _series(run, "val_nll", options)
        if y:
            best, says = _best(run, y, options)
            plotext.plot(x, y, label=f"{run.name}: validation, best {says} at {x[best]:,.0f}", marker=marker)
        x, y, label = _thin(*_series(run, "train_nll", options), "training")
        if y and len(runs) == 1:
            plotext.plot(x, y, label=f"{run.name}: {label}", marker="dot")
    for name, value in _baselines(runs, options):
        plotext.hline(value, "gray")
        plotext.text(name, _right(runs, options), value, alignment="right")
    plotext.xlabel(X_LABELS[options.x])
    plotext.title(Y_LABELS[options.unit])
    picture = plotext.build()
    print(picture if sys.stdout.isatty() else plotext.uncolorize(picture))


def _right(runs: Sequence[Run], options: CurveOptions) -> float:
    return max((record.get(options.x, 0) for run in runs for record in run.metrics[-1:]), default=0) or 1.0


def _series(run: Run, key: str, options: CurveOptions) -> tuple[list[float], list[float]]:
    """The x and y of a key of the metrics, in the wanted units, where it was measured."""
    records = [record for record in run.metrics if key in record and options.x in record]
    return [record[options.x] for record in records], [record[key] * _scale(run, options) for record in records]


def _thin(x: list[float], y: list[float], label: str) -> tuple[list[float], list[float], str]:
    """Where there are more points than can be told apart, means of equally many; the label says so."""
    size = -(-len(x) // POINTS)
    if size <= 1:
        return x, y, label
    means = [[statistics.fmean(values[at: at + size]) for at in range(0, len(x), size)] for values in (x, y)]
    return means[0], means[1], f"{label}, means of {size:,} lines"


def _best(run: Run, losses: Sequence[float], options: CurveOptions) -> tuple[int, str]:
    """Which of the validation losses is the lowest, and its value, with the KL gap where that is known."""
    best = min(range(len(losses)), key=losses.__getitem__)
    _, gaps = _series(run, "kl_gap", options)
    return best, f"{losses[best]:.4f}" + (f", KL {gaps[best]:.4f}" if gaps else "")


def _scale(run: Run, options: CurveOptions) -> float:
    """What nats per token are multiplied by: bits per byte are in the ratio that the run measured."""
    measured = next((record for record in run.metrics if record.get("val_nll")), None)
    if options.unit == "nats" or measured is None:
        return 1.0
    return measured["val_bits_per_byte"] / measured["val_nll"]


def _baselines(runs: Sequence[Run], options: CurveOptions) -> list[tuple[str, float]]:
    """Labels and values of the rungs up to log|V|, from the lowest; one that differs between runs says whose it is."""
    values = [{rung.name: rung.nats_per_token if options.unit == "nats" else rung.bits_per_byte
               for rung in run.baselines} for run in runs]
    whose = [run.meta["tokenizer"] for run in runs]
    if len(set(whose)) < len(runs):
        whose = [run.name for run in runs]
    rungs: dict[str, float] = {}
    for own in values:
        for name, value in own.items():
            sharing = [owner for other, owner in zip(values, whose, strict=True)
                       if math.isclose(other.get(name, math.nan), value, rel_tol=1e-3)]
            if value <= own[UNIFORM]:
                rungs[name if len(sharing) == len(runs) else f"{name} ({', '.join(sharing)})"] = value
    labels: list[tuple[str, float]] = []
    room = 0.02 * (max(rungs.values()) - min(rungs.values()))
    for name, value in sorted(rungs.items(), key=lambda item: item[1]):
        label = f"{_plain(name)}  {value:.2f}"
        if labels and value - labels[-1][1] < room:  # too close to tell apart: one label for both
            labels[-1] = (f"{labels[-1][0]},  {label}", labels[-1][1])
        else:
            labels.append((label, value))
    return labels


if __name__ == "__main__":
    run_command(main)
