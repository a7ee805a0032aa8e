"""From the loss of each target to statements: where the loss comes from, and calibration.

Columns have a value for each target of a text, (N,), in its order; NLL in nats. Needs no torch: the
page reads evaluation.json, whose shape is here, without it.
"""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from config.files import write_atomically
from data.documents import Split
from data.eval_text import EvalText
from data.info import MAX_TRAIN_TOKENS
from data.show import show_token
from data.tokenizer import Tokenizer

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

Columns = dict[str, np.ndarray]


# The shapes of a line of passage.jsonl, and of evaluation.json.


class Passage(BaseModel):
    """A line of passage.jsonl: what each token of a text costs at a step; None where masked.

    Lines of earlier editions are of one passage, with six temperatures and without the entropy.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    number: int = 0  # of the passage
    best_step: int | None = None  # in what was measured of the best model after the last step
    tokens: list[int]
    nll: list[float | None]
    rank: list[int | None]
    top: list[list[int] | None]
    log_q: list[list[float] | None]
    entropy: list[float | None] = []
    # nll with n-grams of at most 1, 2, ... tokens; None = not measured
    by_longest: list[list[float] | None] | None = None
    temperatures: list[float] = [0.5, 0.7, 0.85, 1.2, 1.5, 2.0]
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
    """Says how sure the model is, as `calibrate` finds it."""

    confidence: float
    ece: float
    temperature: float
    at_end: bool = False  # a temperature beyond those that were tried may be better
    nats_gained: float


class Summary(BaseModel):
    """Holds what `summarise` finds."""

    model_config = ConfigDict(allow_inf_nan=False)

    targets: int
    calibration: Calibration
    groups: dict[str, list[Group]]
    passages: dict[str, list[HardOrEasy]]


class Evaluation(Summary):
    """Holds evaluation.json: the best model on a part of the validation text, and its loss."""

    part_nll: list[float]  # sums, in nats
    part_targets: list[float]


# What is behind a loss.


def max_targets(vocab_size: int) -> int:
    """Return about how many targets are scored for evaluation.json."""
    return min(MAX_TARGETS, MAX_LOGITS // vocab_size)


def summarise(
    columns: Columns,
    tempered: np.ndarray,
    text: EvalText,
    tokenizer: Tokenizer,
    train: Split | None,
) -> Summary:
    """Find calibration, groups of targets, and passages.

    Without the training split, there is no group by how often a token was a target in training.
    """
    target = columns["target"]
    by_confidence = group_targets(*confidence_bins(columns["confidence"]), columns)
    by_context = group_targets(*number_ranges(columns["context_len"], DOUBLING), columns)
    groups = {"confidence": by_confidence, "context length": by_context}
    if tokenizer.kind == "char":
        names, number = character_kinds(tokenizer)
        by_kind = group_targets(names, number[target], columns, by_outcome=True)
        groups["kind of character"] = by_kind
    if train is not None:
        train_targets = train.last(MAX_TRAIN_TOKENS).targets()
        counts = np.bincount(train_targets, minlength=tokenizer.vocab_size)
        names, number = number_ranges(counts[target], TENFOLD)
        groups["times in training"] = group_targets(names, number, columns, by_outcome=True)
    return Summary.model_validate(
        {
            "targets": len(target),
            "calibration": calibrate(by_confidence, tempered),
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
    """Find the hardest and the easiest passages of PASSAGE_LENGTH targets."""
    shape = (len(nll) // PASSAGE_LENGTH, PASSAGE_LENGTH)
    count = math.prod(shape)  # targets in whole passages
    costs = nll[:count].reshape(shape)
    positions = text.positions[:count].reshape(shape)
    means = costs.mean(axis=1)
    # the others jump from one part of the text to another
    lengths = positions[:, -1] - positions[:, 0]
    whole = np.flatnonzero(lengths < 2 * PASSAGE_LENGTH)
    from_easiest = whole[means[whole].argsort()]
    from_hardest = from_easiest[::-1]
    shown = min(EXAMPLES, len(whole) // 2)
    examples = {"hardest": from_hardest[:shown], "easiest": from_easiest[:shown]}
    found: dict[str, list[HardOrEasy]] = {}
    for kind, numbers in examples.items():
        found[kind] = []
        for number in numbers:
            found[kind].append(show_passage(costs[number], positions[number], text, tokenizer))
    return found


def show_passage(
    costs: np.ndarray, positions: np.ndarray, text: EvalText, tokenizer: Tokenizer
) -> HardOrEasy:
    """Show the targets at some positions of a text, and the tokens between them."""
    start = int(positions[0])
    tokens = text.split.tokens[start : positions[-1] + 1]
    nll: list[float | None] = [None] * len(tokens)
    for position, cost in zip(positions, costs, strict=True):
        nll[position - start] = round(float(cost), 3)
    return HardOrEasy(
        nats_per_token=float(costs.mean()),
        nll=nll,
        tokens=[show_token(tokenizer, token) for token in tokens],
    )


def group_targets(
    names: Sequence[str], number: np.ndarray, columns: Columns, by_outcome: bool = False
) -> list[dict[str, Any]]:
    """Measure the part in the loss of each group that has tokens.

    `number` is the index of each target's group. Groups `by_outcome` depend on which token came.
    They have no confidence: where a rare token came, even a perfectly calibrated model is right
    less often than its confidence says, and where a frequent one came more often.
    """
    sums = {}
    for name in ("tokens", "nll", "top1", "confidence"):
        sums_of_groups = np.bincount(number, weights=columns[name], minlength=len(names))
        sums[name] = sums_of_groups.tolist()
    all_nats = sum(sums["nll"]) or 1.0
    groups = []
    for i, name in enumerate(names):
        n = sums["tokens"][i]
        if n == 0:
            continue
        found = {
            "name": name,
            "tokens": int(n),
            "share": n / len(number),
            "nats_per_token": sums["nll"][i] / n,
            "share_of_nats": sums["nll"][i] / all_nats,
            "top1": sums["top1"][i] / n,
        }
        if not by_outcome:
            found["confidence"] = sums["confidence"][i] / n
        groups.append(found)
    return groups


def confidence_bins(confidence: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Name bins of equal width, and find the index of each value's."""
    names = [f"{i / BINS:.0%} to {(i + 1) / BINS:.0%}" for i in range(BINS)]
    return names, np.minimum((confidence * BINS).astype(int), BINS - 1)


def number_ranges(values: np.ndarray, ends: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Name the ranges of whole numbers that end at `ends`, and find the index of each value's.

    >>> number_ranges(np.array([1, 2, 3, 4, 5, 6]), [1, 2, 4, 1000])
    (['1', '2', '3-4', '5-1,000'], array([0, 1, 2, 2, 3, 3]))
    """
    names = []
    start = ends[0]
    for end in ends:
        name = f"{end:,}"
        if start < end:
            name = f"{start:,}-{end:,}"
        names.append(name)
        start = end + 1
    return names, np.searchsorted(ends, values)


def character_kinds(tokenizer: Tokenizer) -> tuple[list[str], np.ndarray]:
    """Name the kinds of characters, and find the index of each token's."""
    kinds = ["eos"] * tokenizer.vocab_size
    for character, token in tokenizer.ids.items():
        if len(character) == 1:
            kinds[token] = character_kind(character)
    names, number = np.unique(kinds, return_inverse=True)
    return names.tolist(), number


def character_kind(character: str) -> str:
    """Say what kind a character is.

    >>> [character_kind(character) for character in "aÉ日7"]
    ['lower-case letter', 'upper-case letter', 'other letter', 'digit']
    >>> [character_kind(character) for character in " \\n;$"]
    ['space', 'new line', 'punctuation', 'punctuation']
    """
    if character in "\r\n":
        return "new line"
    category = unicodedata.category(character)
    return CHARACTER_KINDS.get(category) or CHARACTER_KINDS.get(category[0], "other")


def calibrate(by_confidence: Sequence[dict[str, Any]], tempered: np.ndarray) -> dict[str, Any]:
    """Find the expected calibration error, and the temperature with the lowest loss.

    ECE is the mean distance of a bin's confidence and accuracy, weighted by its tokens. `tempered`
    is the mean NLL at each of TEMPERATURES; a polynomial through the lowest five refines it (Guo
    et al. 2017).
    """
    confidence = 0.0
    ece = 0.0
    for each in by_confidence:
        confidence += each["share"] * each["confidence"]
        ece += each["share"] * abs(each["confidence"] - each["top1"])

    # the temperature, on a fine grid around the lowest of those that were tried
    middle = int(np.clip(tempered.argmin(), 2, len(tempered) - 3))
    near = slice(middle - 2, middle + 3)
    log_T = np.log(TEMPERATURES[near])
    curve = np.polynomial.Polynomial.fit(log_T, tempered[near], deg=4)
    fine_log_T, fine_nll = curve.linspace(2001)
    lowest = int(fine_nll.argmin())
    at_1 = tempered[len(tempered) // 2]
    return {
        "confidence": confidence,
        "ece": ece,
        "temperature": float(np.exp(fine_log_T[lowest])),
        "at_end": lowest in (0, len(fine_nll) - 1),
        "nats_gained": max(0.0, float(at_1 - fine_nll[lowest])),
    }
