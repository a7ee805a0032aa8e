"""Compares the runs of a page: which have the same targets, and how far apart their losses are."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.run import Run
from report.analysis import Columns, Evaluation
from report.differences import VALUE_LENGTH
from report.intervals import intervals, measure_losses
from report.picture import shorten

Pair = dict[str, Any]  # the numbers of two runs, and how much higher the second one's loss is


def number_targets(runs: Sequence[Run]) -> tuple[list[int], list[str]]:
    """Number the sets of targets that runs are measured on; the largest number of runs shares 0.

    Returns the number of each run's, and what each set is called: its options of the data that
    differ from those of set 0.
    """
    keys = [(*targets_of(run), run.info.tokenizer, run.info.vocab_size) for run in runs]
    known = sorted(dict.fromkeys(keys), key=lambda key: -keys.count(key))  # stable
    numbers = [known.index(key) for key in keys]
    usual = runs[numbers.index(0)].cfg.data.model_dump()
    names = []
    for number in range(len(known)):
        own = runs[numbers.index(number)].cfg.data.model_dump()
        parts = []
        for name, value in own.items():
            if value != usual[name]:
                parts.append(f"{name}={shorten(str(value), VALUE_LENGTH)}")
        names.append(", ".join(parts) or "another text")
    return numbers, names


def targets_of(run: Run) -> tuple[object, ...]:
    """Return what decides which bytes are validation targets."""
    data = run.cfg.data
    text = (run.info.sha256, data.val_fraction, data.split, data.documents)
    return (*text, data.mask, data.predict_eos)


def compare_pairs(runs: Sequence[Run], evaluations: Sequence[Evaluation | None]) -> list[Pair]:
    """Compare all pairs of runs that were evaluated on the same targets.

    A difference comes with its interval. Runs whose evaluations have the same parts share their
    resamples, which are drawn once.
    """
    sets: dict[object, list[int]] = {}  # of the numbers of runs with the same targets
    for number, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        if evaluation is not None:
            sets.setdefault(targets_of(run), []).append(number)
    found = []
    for numbers in sets.values():
        if len(numbers) > 1:
            found += compare_set(runs, evaluations, numbers)
    return found


def compare_set(
    runs: Sequence[Run], evaluations: Sequence[Evaluation | None], numbers: Sequence[int]
) -> list[Pair]:
    """Compare all pairs of some runs that have the same targets."""
    columns = {}
    layouts: dict[object, list[int]] = {}  # of runs whose texts have the same parts
    for number in numbers:
        evaluation = evaluations[number]
        assert evaluation is not None
        columns[number] = part_columns(evaluation, runs[number].info.bytes_per_target)
        layout = (runs[number].info.tokenizer, tuple(evaluation.part_targets))
        layouts.setdefault(layout, []).append(number)
    found = []
    for alike in layouts.values():
        found += compare_columns(runs, columns, alike)
    for some, others in itertools.combinations(layouts.values(), 2):
        for pair in itertools.product(some, others):
            found += compare_columns(runs, columns, sorted(pair))
    return found


def compare_columns(
    runs: Sequence[Run], columns: dict[int, Columns], numbers: Sequence[int]
) -> list[Pair]:
    """Compare all pairs of runs whose texts have the same parts, or of two runs."""
    if len(numbers) < 2:
        return []
    losses, blocks = measure_losses([columns[number] for number in numbers])
    losses_of = dict(zip(numbers, losses, strict=True))
    found = []
    for first, second in itertools.combinations(numbers, 2):
        unit = "bits_per_byte"
        if runs[first].tokenizer == runs[second].tokenizer:
            unit = "nats_per_token"
        difference = losses_of[second][unit] - losses_of[first][unit]
        estimate = intervals({unit: difference}, blocks)[unit]
        pair = {"runs": [first, second], "unit": unit, "of_documents": blocks.of_documents}
        found.append(pair | estimate)
    return found


def part_columns(evaluation: Evaluation, bytes_per_target: float) -> Columns:
    """Return the parts of the validation text in the form of tokens."""
    targets = np.array(evaluation.part_targets)
    num_bytes = targets * bytes_per_target
    offset = np.cumsum(num_bytes) - num_bytes
    nothing = np.zeros(len(targets))
    return {
        "tokens": targets,
        "bytes": num_bytes,
        "offset": offset.astype(int),
        # parts end where batches do, within documents: they are parts of one text
        "document": nothing.astype(int),
        "nll": np.array(evaluation.part_nll),
        "top1": nothing,
        "top5": nothing,
    }
