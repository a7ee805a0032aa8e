"""From the loss of each target to statements: where the loss comes from, calibration, intervals.

Columns have a value for each target of a text, (N,), in its order; NLL in nats. Needs no torch: the
page reads evaluation.json, whose shape is here, without it.
"""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from config.files import write_atomically
from data.documents import Split
from data.eval_text import EvalText
from data.info import MAX_TRAIN_TOKENS
from data.show import show_token
from data.tokenizer import Tokenizer
from surprisal import LN2

RESAMPLES = 2000
# in a text; fewer and longer blocks give unsteady intervals, more give intervals that are too
# narrow
BLOCKS = 50
MIN_DOCUMENT_BLOCKS = 10  # blocks of whole documents that make an interval
Z_95 = 1.645  # 95% of a normal distribution are below it
FEW = 10 * BLOCKS  # targets: resamples of fewer promise too much
BINS = 15  # of confidence
TEMPERATURES: list[float] = np.geomspace(1 / 4, 4, 17).tolist()  # 1 is in the middle
DOUBLING = [2**power for power in range(21)]  # up to the longest context
TENFOLD = [10**power - 1 for power in range(13)]
CHARACTER_KINDS = {
    "Ll": "lower-case letter",
    "Lu": "upper-case letter",
    "Lt": "upper-case letter",
    "L": "other letter",
    # by Unicode's category
    "N": "digit",
    "Z": "space",
    "P": "punctuation",
    "S": "punctuation",
}

PASSAGE_LENGTH = 64  # targets in a passage that is called hard or easy
EXAMPLES = 3  # hard passages, and as many easy ones
MAX_TARGETS = 32_768  # scored for evaluation.json: about a second
MAX_LOGITS = 2**25  # of these targets
PASSAGE_TEMPERATURES = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)  # of the predictions in passage.jsonl

Columns = dict[str, np.ndarray]
Estimate = dict[str, float]  # a value, and the ends "low" and "high" of 95% of its resamples


# The shapes of a line of passage.jsonl, and of evaluation.json.


class Passage(BaseModel):
    """A line of passage.jsonl: what each token of a text costs at a step; None where it is masked."""

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    tokens: list[int]
    nll: list[float | None]
    rank: list[int | None]
    top: list[list[int] | None]
    log_q: list[list[float] | None]
    log_z: list[list[float] | None]


class Group(BaseModel):
    """Some targets, and their part in the loss."""

    name: str
    tokens: int
    share: float  # of all targets
    nats_per_token: float
    share_of_nats: float
    top1: float
    confidence: float | None = None  # of groups that do not depend on which token came


class HardOrEasy(BaseModel):
    """A passage, as its tokens look, and what each costs; None where it is masked."""

    nats_per_token: float
    tokens: list[str]
    nll: list[float | None]


class Calibration(BaseModel):
    """How sure the model is, and what `calibrate` finds."""

    confidence: float
    ece: float
    temperature: float
    at_end: bool = False  # a temperature beyond those that were tried may be better
    nats_gained: float


class Summary(BaseModel):
    """What `summarise` finds."""

    model_config = ConfigDict(allow_inf_nan=False)

    targets: int
    calibration: Calibration
    groups: dict[str, list[Group]]
    passages: dict[str, list[HardOrEasy]]


class Evaluation(Summary):
    """evaluation.json: the best model on a part of the validation text, and its loss on all of it,
    part by part.
    """

    part_nll: list[float]  # sums, in nats
    part_targets: list[float]


# What is behind a loss.


def max_targets(vocab_size: int) -> int:
    """How many targets are scored for evaluation.json, about."""
    return min(MAX_TARGETS, MAX_LOGITS // vocab_size)


def summarise(
    columns: Columns,
    tempered: np.ndarray,
    text: EvalText,
    tokenizer: Tokenizer,
    train: Split | None,
) -> Summary:
    """Calibration, groups of targets, and passages.

    Without the training split, there is no group by how often a token was a target in training.
    """
    groups = {
        "confidence": group(*confidence_bins(columns["confidence"]), columns),
        "context length": group(*number_ranges(columns["context_len"], DOUBLING), columns),
    }
    target = columns["target"]
    if tokenizer.kind == "char":
        kinds = ["eos"] * tokenizer.vocab_size
        for character, token in tokenizer.ids.items():
            if len(character) == 1:
                kinds[token] = character_kind(character)
        names, number = np.unique(kinds, return_inverse=True)
        groups["kind of character"] = group(names.tolist(), number[target], columns, True)
    if train is not None:
        train_targets = train.last(MAX_TRAIN_TOKENS).targets()
        times = np.bincount(train_targets, minlength=tokenizer.vocab_size)[target]
        ranges = number_ranges(times, TENFOLD)
        groups["times in training"] = group(*ranges, columns, True)
    confidence = groups["confidence"]
    return Summary.model_validate(
        {
            "targets": len(columns["nll"]),
            "calibration": calibrate(confidence, tempered),
            "groups": groups,
            "passages": find_passages(columns["nll"], text, tokenizer),
        }
    )


def write_evaluation(path: Path, summary: Summary, parts: Sequence[tuple[float, float]]) -> None:
    """Write evaluation.json; each part of the text has a sum of nats, and a number of targets."""
    part_nll, part_targets = zip(*parts, strict=True)
    evaluation = Evaluation(**summary.model_dump(), part_nll=part_nll, part_targets=part_targets)
    write_atomically(path, evaluation.model_dump_json().encode())


def find_passages(
    nll: np.ndarray, text: EvalText, tokenizer: Tokenizer
) -> dict[str, list[HardOrEasy]]:
    """The hardest and the easiest passages of PASSAGE_LENGTH targets."""
    count = len(nll) // PASSAGE_LENGTH
    means = nll[: count * PASSAGE_LENGTH].reshape(count, PASSAGE_LENGTH).mean(axis=1)
    positions = text.positions[: count * PASSAGE_LENGTH].reshape(count, PASSAGE_LENGTH)
    first, last = positions[:, [0, -1]].T
    # the others jump from one part of the text to another
    whole = np.flatnonzero(last - first < 2 * PASSAGE_LENGTH)
    order = whole[means[whole].argsort()]

    def describe(number: int) -> HardOrEasy:
        start = int(first[number])
        tokens = text.split.tokens[start : last[number] + 1]
        costs: list[float | None] = [None] * len(tokens)
        for target in range(number * PASSAGE_LENGTH, (number + 1) * PASSAGE_LENGTH):
            costs[text.positions[target] - start] = round(float(nll[target]), 3)
        return HardOrEasy(
            nats_per_token=float(means[number]),
            nll=costs,
            tokens=[show_token(tokenizer, token) for token in tokens],
        )

    shown = min(EXAMPLES, len(order) // 2)
    return {
        "hardest": [describe(number) for number in order[::-1][:shown].tolist()],
        "easiest": [describe(number) for number in order[:shown].tolist()],
    }


# Intervals.


class Blocks(NamedTuple):
    """What is drawn with replacement in a resample of a text."""

    of_documents: bool  # whole documents in each; else parts of one text
    number: int


def measure_losses(runs: Sequence[Columns]) -> tuple[list[Columns], Blocks]:
    """The loss of one or two runs in every unit, in the text and in resamples of it, (1 +
    RESAMPLES,).

    A block is what begins in the same fiftieth of the text's bytes. Blocks of whole documents say
    what other documents would give. They are used if there are MIN_DOCUMENT_BLOCKS of them, and
    neighbours are not alike. Otherwise a block is a part of the text (Carlstein 1986), and
    resamples only say how much the loss varies within this text: what all of its parts have in
    common, and other texts have not, is the same in every resample.

    All runs use the same resamples: the difference of two leaves out what is hard for both.
    """
    block_bytes = max(int(columns["offset"][-1]) for columns in runs) // BLOCKS + 1
    numbers, count = join_blocks([columns["document"] // block_bytes for columns in runs])
    of_documents = count >= MIN_DOCUMENT_BLOCKS
    for number, columns in zip(numbers, runs, strict=True):
        if of_documents and neighbours_are_alike(number, columns):
            of_documents = False
    if not of_documents:
        numbers, count = join_blocks([columns["offset"] // block_bytes for columns in runs])

    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = np.vstack([np.ones(count), drawn])  # the text itself comes first
    losses = []
    for number, columns in zip(numbers, runs, strict=True):
        tokens, n_bytes, nll, top1, top5 = (
            weights @ np.bincount(number, weights=columns[name])
            for name in ("tokens", "bytes", "nll", "top1", "top5")
        )
        losses.append(
            {
                "nats_per_token": nll / tokens,
                "bits_per_token": nll / tokens / LN2,
                "bits_per_byte": nll / n_bytes / LN2,
                "perplexity": np.exp(np.minimum(nll / tokens, 709)),  # where float64 ends
                "top1": top1 / tokens,
                "top5": top5 / tokens,
            }
        )
    return losses, Blocks(of_documents, count)


def join_blocks(numbers: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Of each target, the index of its block, from 0; and the number of blocks.

    `numbers` are those of the blocks of one or two runs. A block without a target of some run
    joins the one before.
    """
    shared = np.intersect1d(numbers[0], numbers[-1])
    joined = [np.searchsorted(shared, number, side="right").clip(min=1) - 1 for number in numbers]
    return joined, max(1, len(shared))


def neighbours_are_alike(block: np.ndarray, columns: Columns) -> bool:
    """Whether the losses of neighbouring blocks are correlated, so that these are no random sample.

    So it is with the lines or the speeches of a few plays: plays differ as wholes. `block` is the
    index of each target's block. Of random samples, 5% look so by chance.
    """
    nll, tokens = (np.bincount(block, weights=columns[name]) for name in ("nll", "tokens"))
    count = len(tokens)
    deviation = nll / tokens - (nll / tokens).mean()
    correlation = (deviation[1:] @ deviation[:-1]) / ((deviation @ deviation) or 1.0)
    return bool(correlation > Z_95 / math.sqrt(count) - 1 / count)


def intervals(quantities: Columns, blocks: Blocks) -> dict[str, Estimate]:
    """The estimate of each quantity from its values in the text and in each resample."""
    tail = tail_share(blocks.number)
    estimates = {}
    for name, values in quantities.items():
        low, high = np.quantile(values[1:], [tail, 1 - tail])
        estimates[name] = {"value": float(values[0]), "low": float(low), "high": float(high)}
    return estimates


def tail_share(count: int) -> float:
    """The share of resamples of `count` blocks that are above a 95% interval, and below it.

    It is less than 2.5%, because resamples of few blocks vary too little (Hesterberg 2015).

    >>> [round(tail_share(count), 4) for count in (10, 50, 10**6)]
    [0.0086, 0.0212, 0.025]
    """
    if count < 2:
        return 0.025
    n = count - 1
    z = NormalDist().inv_cdf(0.975)
    # Student's t with n degrees of freedom, as a series in 1 / n.
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return NormalDist().cdf(-t * math.sqrt(count / n))


def group(
    names: Sequence[str], number: np.ndarray, columns: Columns, by_outcome: bool = False
) -> list[dict[str, Any]]:
    """The groups that have tokens, and their part in the loss.

    `number` is the index of each target's group. Groups `by_outcome` depend on which token came.
    They have no confidence: where a rare token came, even a perfectly calibrated model is right
    less often than its confidence says, and where a frequent one came more often.
    """
    tokens, nll, top1, confidence = (
        np.bincount(number, weights=columns[name], minlength=len(names)).tolist()
        for name in ("tokens", "nll", "top1", "confidence")
    )
    groups = []
    for i, name in enumerate(names):
        n = tokens[i]
        if n == 0:
            continue
        found = {
            "name": name,
            "tokens": int(n),
            "share": n / len(number),
            "nats_per_token": nll[i] / n,
            "share_of_nats": nll[i] / (sum(nll) or 1.0),
            "top1": top1[i] / n,
        }
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
    names = [
        f"{end:,}" if start == end else f"{start:,}-{end:,}"
        for start, end in zip(starts, ends, strict=True)
    ]
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

    ECE is the mean distance of a bin's confidence and accuracy, weighted by its tokens. `tempered`
    is the mean NLL at each of TEMPERATURES; a polynomial through the lowest five refines it.
    """
    lowest = int(np.clip(tempered.argmin(), 2, len(tempered) - 3))
    near = slice(lowest - 2, lowest + 3)
    log_T, nll = np.polynomial.Polynomial.fit(
        np.log(TEMPERATURES[near]), tempered[near], deg=4
    ).linspace(2001)
    return {
        "confidence": sum(each["share"] * each["confidence"] for each in by_confidence),
        "ece": sum(
            each["share"] * abs(each["confidence"] - each["top1"]) for each in by_confidence
        ),
        "temperature": float(np.exp(log_T[nll.argmin()])),
        "at_end": bool(nll.argmin() in (0, len(nll) - 1)),
        "nats_gained": max(0.0, float(tempered[len(tempered) // 2] - nll.min())),
    }
