"""From the surprisal of each token to statements: intervals, calibration, and where the loss comes from.

Columns have a value for each target of a text, (N,), in its order; NLL in nats.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from surprisal import LN2

RESAMPLES = 2000
BLOCKS = 50  # in a text; fewer and longer blocks give unsteady intervals, more give intervals that are too narrow
FEW = 10 * BLOCKS  # targets: resamples of fewer promise too much
BINS = 15  # of confidence
TEMPERATURES: list[float] = np.geomspace(1 / 4, 4, 17).tolist()  # 1 is in the middle
DOUBLING = [2**power for power in range(21)]  # up to the longest context
TENFOLD = [10**power - 1 for power in range(13)]
CHARACTER_KINDS = {"Ll": "lower-case letter", "Lu": "upper-case letter", "Lt": "upper-case letter", "L": "other letter",
                   "N": "digit", "Z": "space", "P": "punctuation", "S": "punctuation"}  # by Unicode's category

Columns = dict[str, np.ndarray]
Estimate = dict[str, float]  # a value, and the ends "low" and "high" of its 95% interval


def measure_losses(runs: Sequence[Columns]) -> list[Columns]:
    """The loss of one or two runs in every unit, in the text and in resamples of it, (1 + RESAMPLES,).

    The text is cut into contiguous blocks, which are drawn with replacement (Carlstein 1986): neighbouring tokens are
    surprising together, so short blocks would promise too narrow an interval. All runs use the same resamples: the
    difference of two leaves out what is hard for both.
    """
    offsets = [columns["offset"] for columns in runs]  # the byte of the text where each target begins
    block_bytes = max(int(offset[-1]) for offset in offsets) // BLOCKS + 1
    numbers = [offset // block_bytes for offset in offsets]
    shared = np.intersect1d(numbers[0], numbers[-1])  # a block without a target of some run joins the one before
    count = max(1, len(shared))
    resamples = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = np.vstack([np.ones(count), resamples])  # the text itself comes first
    losses = []
    for number, columns in zip(numbers, runs, strict=True):
        block = np.searchsorted(shared, number, side="right").clip(min=1) - 1
        tokens, n_bytes, nll, top1, top5 = (weights @ np.bincount(block, weights=columns[name])
                                            for name in ("tokens", "bytes", "nll", "top1", "top5"))
        losses.append({"nats_per_token": nll / tokens, "bits_per_token": nll / tokens / LN2,
                       "bits_per_byte": nll / n_bytes / LN2,
                       "perplexity": np.exp(np.minimum(nll / tokens, 709)),  # where float64 ends
                       "top1": top1 / tokens, "top5": top5 / tokens})
    return losses


def intervals(quantities: Columns) -> dict[str, Estimate]:
    """The estimate of each quantity from its values in the text and in each resample."""
    ends = {name: np.quantile(values[1:], [0.025, 0.975]) for name, values in quantities.items()}
    return {name: {"value": float(values[0]), "low": float(ends[name][0]), "high": float(ends[name][1])}
            for name, values in quantities.items()}


def group(names: Sequence[str], number: np.ndarray, columns: Columns, by_outcome: bool = False
          ) -> list[dict[str, Any]]:
    """The groups that have tokens, and their part in the loss; `number` is the index of each target's group.

    Groups `by_outcome` depend on which token came. They have no confidence: where a rare token came, a perfectly
    calibrated model is right less often than it was sure, and where a frequent one came more often.
    """
    tokens, nll, top1, confidence = (np.bincount(number, weights=columns[name], minlength=len(names)).tolist()
                                     for name in ("tokens", "nll", "top1", "confidence"))
    groups = []
    for i, name in enumerate(names):
        n = tokens[i]
        if n == 0:
            continue
        found = {"name": name, "tokens": int(n), "share": n / len(number), "nats_per_token": nll[i] / n,
                 "share_of_nats": nll[i] / (sum(nll) or 1.0), "top1": top1[i] / n}
        if not by_outcome:
            found["confidence"] = confidence[i] / n
        groups.append(found)
    return groups


def confidence_bins(confidence: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names for bins of equal width, and the index of each value's."""
    names = [f"{i / BINS:.0%} to {(i + 1) / BINS:.0%}" for i in range(BINS)]
    return names, np.minimum((confidence * BINS).astype(int), BINS - 1)


def number_ranges(values: np.ndarray, ends: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Names for the ranges of whole numbers that end at `ends`, and the index of each value's.

    >>> number_ranges(np.array([1, 2, 3, 4, 5, 6]), [1, 2, 4, 1000])
    (['1', '2', '3-4', '5-1,000'], array([0, 1, 2, 2, 3, 3]))
    """
    starts = [ends[0], *(end + 1 for end in ends[:-1])]
    names = [f"{end:,}" if start == end else f"{start:,}-{end:,}" for start, end in zip(starts, ends, strict=True)]
    return names, np.searchsorted(ends, values)


def character_kind(character: str) -> str:
    """
    >>> [character_kind(character) for character in "aÉ日7 \\n;$"]  # doctest: +NORMALIZE_WHITESPACE
    ['lower-case letter', 'upper-case letter', 'other letter', 'digit', 'space', 'new line', 'punctuation',
     'punctuation']
    """
    category = unicodedata.category(character)
    kind = CHARACTER_KINDS.get(category) or CHARACTER_KINDS.get(category[0], "other")
    return "new line" if character in "\r\n" else kind


def calibrate(by_confidence: Sequence[dict[str, Any]], tempered: np.ndarray) -> dict[str, Any]:
    """The expected calibration error, and the temperature with the lowest loss (Guo et al. 2017).

    ECE is the mean distance of a bin's confidence and accuracy, weighted by its tokens. `tempered` is the mean NLL
    at each of TEMPERATURES; a polynomial through the lowest five refines it.
    """
    lowest = int(np.clip(tempered.argmin(), 2, len(tempered) - 3))
    near = slice(lowest - 2, lowest + 3)
    log_T, nll = np.polynomial.Polynomial.fit(np.log(TEMPERATURES[near]), tempered[near], deg=4).linspace(2001)
    return {"confidence": sum(each["share"] * each["confidence"] for each in by_confidence),
            "ece": sum(each["share"] * abs(each["confidence"] - each["top1"]) for each in by_confidence),
            "temperature": float(np.exp(log_T[nll.argmin()])),
            "at_end": bool(nll.argmin() in (0, len(nll) - 1)),
            "nats_gained": max(0.0, float(tempered[len(tempered) // 2] - nll.min()))}
