"""Tells what differs between runs: their options, short names made of these, and repeated seeds."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from report.picture import shorten

# what they change is not learned
IGNORED = ("out_dir", "init_from", "watchers", "log_interval", "checkpoint_interval")
VALUE_LENGTH = 20  # of a value in a short name

Options = dict[str, Any]


def read_options(path: Path) -> Options:
    """Read the options of a run as config.toml has them, unchecked; {} if it cannot be read."""
    options: Options = {}
    with suppress(OSError, ValueError):
        for section in tomllib.loads(path.read_text(encoding="utf-8")).values():
            if isinstance(section, dict):
                options |= section
    return options


def differing_options(options: Sequence[Options]) -> dict[str, list[str]]:
    """Return the options of some runs that differ, with their value in each run."""
    names: dict[str, None] = {}  # in order
    for own in options:
        names |= dict.fromkeys(own)
    differing = {}
    for name in names:
        values = [str(own.get(name, "")) for own in options]
        if name not in IGNORED and len(set(values)) > 1:
            differing[name] = values
    return differing


def short_names(options: Sequence[Options], names: Sequence[str]) -> list[str]:
    """Name each run by the options in which it differs from the others.

    A value that more than two thirds of the runs share is left out, and so is an empty one. A run
    without a name of its own keeps its name from `names`.

    >>> options = [{"seed": seed, "n_layer": 2} for seed in (1, 2, 3)]
    >>> short_names([*options, {"seed": 4, "n_layer": 3}], ["a", "b", "c", "d"])
    ['seed=1', 'seed=2', 'seed=3', 'seed=4,n_layer=3']
    """
    parts: list[list[str]] = [[] for _ in names]
    for option, values in differing_options(options).items():
        usual, count = Counter(values).most_common(1)[0]
        is_rare = 3 * count <= 2 * len(values)
        for own, value in zip(parts, values, strict=True):
            if value and (is_rare or value != usual):
                own.append(f"{option}={shorten(value, VALUE_LENGTH)}")
    short = [",".join(own) for own in parts]
    counts = Counter(short)
    chosen = []
    for own_short, name in zip(short, names, strict=True):
        if own_short == "" or counts[own_short] > 1:
            own_short = name
        chosen.append(own_short)
    return chosen


def group_runs(options: Sequence[Options]) -> list[int]:
    """Number the groups of runs that differ only in the seed; returns each run's.

    Runs that share the seed too differ in what no option says, such as the code: each is a group.

    >>> group_runs([{"seed": 1, "lr": 1}, {"seed": 1, "lr": 2}, {"seed": 2, "lr": 1}])
    [0, 1, 0]
    >>> group_runs([{"seed": 1}, {"seed": 2}, {"seed": 1}])
    [0, 1, 2]
    """
    shared = [without_seed(own) for own in options]
    seeds = [str(own.get("seed")) for own in options]
    known: list[object] = []
    groups = []
    for number, rest in enumerate(shared):
        own_seeds = [seed for seed, other in zip(seeds, shared, strict=True) if other == rest]
        key: object = rest
        if len(set(own_seeds)) < len(own_seeds):
            key = number
        if key not in known:
            known.append(key)
        groups.append(known.index(key))
    return groups


def name_groups(options: Sequence[Options], groups: Sequence[int]) -> list[str]:
    """Name the groups of runs that share all options but the seed."""
    first = [options[groups.index(group)] for group in sorted(set(groups))]
    if len(first) == 1:
        return ["mean"]
    numbers = [f"group {number + 1}" for number in range(len(first))]
    return short_names([without_seed(own) for own in first], numbers)


def without_seed(options: Options) -> Options:
    return {name: value for name, value in options.items() if name not in (*IGNORED, "seed")}
