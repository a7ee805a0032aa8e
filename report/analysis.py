"""From the surprisal of each token to statements: intervals, calibration, and where the loss comes from.

Arrays are per target, (N,), in the order of the text; NLL in nats.
"""

import unicodedata
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from surprisal import LN2

RESAMPLES = 2000
BLOCKS = 50  # in a text; fewer and longer blocks give unsteady intervals, more give intervals that are too narrow
BINS = 15  # of confidence
MAX_TEMPERATURE = 4.0
TEMPERATURES: list[float] = np.geomspace(1 / MAX_TEMPERATURE, MAX_TEMPERATURE, 17).tolist()  # 1 is in the middle

Estimate = dict[str, float]  # a value, and the ends "low" and "high" of its 95% interval


class Blocks:
    """A text in contiguous blocks, resampled with replacement (Carlstein 1986).

    Neighbouring tokens are surprising together, so short blocks would promise too narrow an interval. All quantities of
    all runs use the same resamples: the difference of two runs leaves out what is hard for both.
    """

    def __init__(self, *offsets: np.ndarray) -> None:
        """For each run, the byte of the text where each of its targets begins, (N,)."""
        n_bytes = 1 + max(int(own[-1]) for own in offsets)
        self.bytes = -(-n_bytes // BLOCKS)
        numbers = [own // self.bytes for own in offsets]
        shared = reduce(np.intersect1d, map(np.unique, numbers))  # a block without a target of some run joins the last
        self.count = max(1, len(shared))
        self._block_of = [np.searchsorted(shared, own, side="right").clip(min=1) - 1 for own in numbers]
        rng = np.random.default_rng(0)
        resamples = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=RESAMPLES)
        self._weights = np.vstack([np.ones(self.count), resamples])  # the text itself comes first

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray, run: int = 0) -> np.ndarray:
        """sum(numerator) / sum(denominator) in the text and in each resample, (1 + RESAMPLES,)."""
        above, below = (np.bincount(self._block_of[run], weights=values) for values in (numerator, denominator))
        return (self._weights @ above) / (self._weights @ below)


def interval(values: np.ndarray) -> Estimate:
    """The estimate from a quantity's value in the text and in each resample."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def measure_loss(blocks: Blocks, nll: np.ndarray, top1: np.ndarray, top5: np.ndarray, n_bytes: np.ndarray, run: int = 0
                 ) -> dict[str, Any]:
    """A run's loss in every unit, and its accuracy; `n_bytes` are those of each target."""
    ones = np.ones(len(nll))
    nats = blocks.ratio(nll, ones, run)
    return {"tokens": len(nll), "bytes": int(n_bytes.sum()), "nats_per_token": interval(nats),
            "bits_per_token": interval(nats / LN2),
            "bits_per_byte": interval(blocks.ratio(nll, np.maximum(n_bytes, 1e-9), run) / LN2),
            "perplexity": interval(np.exp(np.minimum(nats, 709))),  # where float64 ends
            "top1": interval(blocks.ratio(top1, ones, run)), "top5": interval(blocks.ratio(top5, ones, run))}


def calibrate(confidence: np.ndarray, correct: np.ndarray, tempered: np.ndarray) -> dict[str, Any]:
    """Reliability in bins of equal width, ECE, and the temperature with the lowest loss (Guo et al. 2017).

    ECE, the expected calibration error, is the mean distance of a bin's confidence and accuracy, weighted by its
    tokens. `tempered` is the total NLL at each of TEMPERATURES; a polynomial through the lowest five refines it.
    """
    number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    tokens, sure, right = (np.bincount(number, weights=values, minlength=BINS)
                           for values in (np.ones(len(number)), confidence, correct))
    bins = [{"low": i / BINS, "high": (i + 1) / BINS, "tokens": int(n), "confidence": s / n, "accuracy": r / n}
            for i, (n, s, r) in enumerate(zip(tokens.tolist(), sure.tolist(), right.tolist(), strict=True)) if n]
    curve = tempered / len(number)
    lowest = int(np.clip(curve.argmin(), 2, len(curve) - 3))
    log_T = np.log(TEMPERATURES[lowest - 2:lowest + 3])
    fine = np.linspace(log_T[0], log_T[-1], 2001)
    nats = np.polynomial.Polynomial.fit(log_T, curve[lowest - 2:lowest + 3], deg=4)(fine)
    return {"ece": float(np.abs(sure - right).sum() / len(number)), "bins": bins,
            "temperature": float(np.exp(fine[nats.argmin()])),
            "nats_gained": max(0.0, float(curve[len(curve) // 2] - nats.min()))}


def group(names: Sequence[str], number: np.ndarray, nll: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """The groups that have tokens, and their part in the loss; `number` is the index of each target's name."""
    tokens, nats, right = (np.bincount(number, weights=values, minlength=len(names)).tolist()
                           for values in (np.ones(len(number)), nll, correct))
    return [{"name": name, "tokens": int(n), "share": n / len(number), "nats_per_token": total / n,
             "share_of_nats": total / (sum(nats) or 1.0), "top1": r / n}
            for name, n, total, r in zip(names, tokens, nats, right, strict=True) if n]


def group_by_context(context_len: np.ndarray, block_size: int) -> tuple[list[str], np.ndarray]:
    """Names for doubling context lengths, 1, 2, 3-4, 5-8, ..., and the index of each target's.

    >>> group_by_context(np.array([1, 2, 3, 4, 5, 6]), block_size=6)
    (['1', '2', '3-4', '5-6'], array([0, 1, 2, 2, 3, 3]))
    """
    ends = [min(2**power, block_size) for power in range((block_size - 1).bit_length() + 1)]
    starts = [1, *(end + 1 for end in ends[:-1])]
    names = [str(end) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return names, np.searchsorted(ends, context_len)


CHARACTER_KINDS = ["lower-case letter", "upper-case letter", "other letter", "digit", "space", "new line",
                   "punctuation", "other", "eos"]


def character_kind(character: str) -> int:
    """The index in CHARACTER_KINDS.

    >>> [CHARACTER_KINDS[character_kind(character)] for character in "aÉ日7 \\n;$"]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['lower-case letter', 'upper-case letter', 'other letter', 'digit', 'space', 'new line', 'punctuation',
     'punctuation']
    """
    category = unicodedata.category(character)
    tests = [category == "Ll", category in ("Lu", "Lt"), category[0] == "L", category[0] == "N",
             character.isspace() and character not in "\r\n", character in "\r\n", category[0] in "PS", True]
    return tests.index(True)


def group_by_frequency(counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names for tenfold numbers of occurrences, and the index of each token's, from counts (V,).

    >>> group_by_frequency(np.array([5, 0, 10, 99, 4_000]))
    (['never', '1-9', '10-99', '100-999', '1,000-9,999'], array([1, 0, 2, 2, 4]))
    """
    powers = [10**power for power in range(len(str(counts.max())) + 1)]
    names = ["never", *(f"{low:,}-{10 * low - 1:,}" for low in powers[:-1])]
    return names, np.searchsorted(powers, counts, side="right")
