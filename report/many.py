"""The picture of several runs: short names, the mean of repeated seeds, and what to show of it."""

import math
import statistics
from collections.abc import Sequence
from copy import copy

from config.files import unique_names
from engine.logged_run import LoggedRun
from report.differences import group_runs, name_groups, read_options, short_names
from report.picture import NAME_LENGTH, Baseline, Curve, Picture, read_baselines, shorten

OWNER_LENGTH = 16  # of what a baseline belongs to, in its name

Range = tuple[float, float]


def make_picture(
    runs: Sequence[LoggedRun],
    x: str = "step",
    scale: str = "log",
    unit: str = "nats",
    *,
    mean: bool = False,
    smooth: float = 0.0,
) -> Picture:
    """Collect what a picture of several runs shows, each of which is named by what differs.

    With `mean`, runs that differ only in the seed are one curve; `smooth` is the weight of the past
    in their training losses.
    """
    options = [read_options(run.path / "config.toml") for run in runs]
    names = unique_names([run.path for run in runs])
    if len(runs) > 1:
        names = short_names(options, names)
    curves = []
    for run, name in zip(runs, shorten_all(names, NAME_LENGTH), strict=True):
        curve = Curve(run, name, x, unit)
        smooth_train(curve, smooth)
        curves.append(curve)
    if mean:
        groups = group_runs(options)
        curves = average_seeds(curves, groups, name_groups(options, groups))
    return Picture(curves, find_baselines(runs, unit), x, scale, unit)


def average_seeds(
    curves: Sequence[Curve], groups: Sequence[int], names: Sequence[str]
) -> list[Curve]:
    """Return the mean of the curves of each group, with a band.

    A run that did not come as far as the others of its group keeps its own curve.
    """
    averaged = []
    for number, name in enumerate(names):
        own = [curve for curve, group in zip(curves, groups, strict=True) if group == number]
        furthest = max(curve.steps[-1:] for curve in own)
        full = [curve for curve in own if curve.steps[-1:] == furthest]
        if len(full) > 1 and furthest:
            averaged.append(mean_curve(full, name))
        else:
            averaged += full
        averaged += [curve for curve in own if curve not in full]
    return averaged


def mean_curve(curves: Sequence[Curve], name: str) -> Curve:
    """Return the mean of the validation losses at the steps that all curves have.

    The band is one standard deviation wide to each side.
    """
    curve = copy(curves[0])
    for series in ("val", "train", "gap", "best"):
        setattr(curve, series, ([], []))  # new lists: those of the copy are shared
    curve.steps = []
    curve.band = []
    columns = []
    for own in curves:
        pairs = zip(*own.val, strict=True)
        columns.append(dict(zip(own.steps, pairs, strict=True)))
    for step in curves[0].steps:
        found = [column[step] for column in columns if step in column]
        if len(found) < len(columns):
            continue
        losses = [loss for _, loss in found]
        curve.steps.append(step)
        curve.val[0].append(statistics.fmean(place for place, _ in found))
        curve.val[1].append(statistics.fmean(losses))
        curve.band.append(statistics.stdev(losses))
    best = [loss for own in curves for loss in own.best[1]]
    curve.best[0].append(statistics.fmean(own.best[0][0] for own in curves))
    curve.best[1].append(statistics.fmean(best))
    deviation = statistics.stdev(best)
    loss = f"best {curve.best[1][0]:.4f} ± {deviation:.4f}"
    curve.name = name
    curve.label = f"{loss}  {name}, {len(curves)} seeds"
    return curve


def smooth_train(curve: Curve, weight: float) -> None:
    """Smooth the training losses: an exponential mean without the first point's extra weight."""
    total = 0.0
    weights = 0.0
    smoothed = []
    for loss in curve.train[1]:
        total = weight * total + loss
        weights = weight * weights + 1
        smoothed.append(total / weights)
    curve.train = (curve.train[0], smoothed)


def limit(picture: Picture, x_range: Range | None, y_range: Range | None) -> None:
    """Show only a part of the axes."""
    if x_range is not None:
        picture.left, picture.right = x_range
        picture.first = max(picture.first, picture.left)
        picture.set_ticks()
    if y_range is not None:
        picture.low, picture.high = y_range


def find_baselines(runs: Sequence[LoggedRun], unit: str) -> list[Baseline]:
    """Return the names and losses of the baselines, from the lowest to the highest.

    A name that means different losses says whose each is.
    """
    values = [dict(read_baselines(run.info, unit)) for run in runs]
    owners = shorten_all(find_owners(runs, values), OWNER_LENGTH)
    found: dict[str, float] = {}
    for number, own in enumerate(values):
        if own in values[:number]:  # they are those of an earlier run
            continue
        owner = owners[number]
        for name, value in own.items():
            label = name
            if not is_shared(name, value, values):
                label = f"{name} ({owner})"
            found[label] = value
    return sorted(found.items(), key=lambda pair: pair[1])


def find_owners(runs: Sequence[LoggedRun], values: Sequence[dict[str, float]]) -> list[str]:
    """Name what each run's baselines belong to: the corpus, the split, the tokens, or the run."""
    by_corpus = [run.info.name for run in runs]
    by_split = [run.info.val_kind for run in runs]
    by_tokens = [run.info.tokenizer for run in runs]
    for owners in (by_corpus, by_split, by_tokens):
        first = [values[owners.index(owner)] for owner in owners]
        if first == list(values):
            return owners
    return unique_names([run.path for run in runs])


def is_shared(name: str, value: float, values: Sequence[dict[str, float]]) -> bool:
    """Tell whether a baseline has the same loss in all runs."""
    losses = [other.get(name, math.nan) for other in values]
    return all(math.isclose(loss, value, rel_tol=1e-3) for loss in losses)


def shorten_all(names: Sequence[str], length: int) -> list[str]:
    """Shorten the names if they stay different."""
    short = [shorten(name, length) for name in names]
    if len(set(short)) < len(set(names)):
        return list(names)
    return short
