"""From the surprisal of each token to statements: intervals, calibration, where the loss comes from. Needs no torch.

Arrays are by scored token, `(N,)`, in order of the text; NLL in nats.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from data.baselines import Baseline
from surprisal import LN2

RESAMPLES = 2000
BLOCKS = 50  # in a text: the fewest that still give a steady interval, and so the longest
BINS = 15  # of confidence
EXTREME = 4.0  # the temperatures looked at are 1 / EXTREME to EXTREME
_NODES = np.cos(np.pi * (np.arange(11) + 0.5) / 11)  # Chebyshev's: a polynomial through them does not swing
INVERSE_TEMPERATURES: list[float] = (EXTREME**_NODES).tolist()


@dataclass(frozen=True)
class Estimate:
    """A number, and its 95% interval over resamples of the text."""

    value: float
    low: float
    high: float


class Blocks:
    """A text in contiguous blocks, resampled with replacement: each resample is a text it might have been.

    Tokens near each other are surprising together, so that resampling short pieces promises too narrow an interval
    (Carlstein 1986). On the plays it still widens, from 0.006 nats to 0.014 and 0.021 either way, with blocks of 256,
    4,096 and 16,384 bytes: so they are as long as can be. All quantities, of all runs, are measured on the same
    resamples: a difference between runs leaves out what both find hard.
    """

    def __init__(self, *offsets: np.ndarray) -> None:
        """For each run, the byte of the text at which each of its scored tokens begins, `(N,)`."""
        n_bytes = 1 + max(int(own[-1]) for own in offsets)
        self.bytes = -(-n_bytes // BLOCKS)
        numbers = [own // self.bytes for own in offsets]
        shared = reduce(np.intersect1d, map(np.unique, numbers))  # a block where a run begins no token joins the last
        self.count = max(1, len(shared))
        self._block_of = [np.searchsorted(shared, own, side="right").clip(min=1) - 1 for own in numbers]
        rng = np.random.default_rng(0)
        resamples = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=RESAMPLES)
        self._weights = np.vstack([np.ones(self.count), resamples])  # the text itself comes first

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray, run: int = 0) -> np.ndarray:
        """sum(numerator) / sum(denominator), of the text and of each resample, `(1 + RESAMPLES,)`."""
        above, below = (np.bincount(self._block_of[run], weights=values) for values in (numerator, denominator))
        return (self._weights @ above) / (self._weights @ below)


def interval(values: np.ndarray) -> Estimate:
    """The estimate from a quantity's value on the text, and on each resample."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


@dataclass(frozen=True)
class Loss:
    """The loss of a run on a text, in every unit, and the guesses that were right."""

    tokens: int
    bytes: int
    nats_per_token: Estimate
    bits_per_token: Estimate
    bits_per_byte: Estimate
    perplexity: Estimate
    top1: Estimate  # share of tokens that were the most probable one
    top5: Estimate


def measure_loss(blocks: Blocks, nll: np.ndarray, rank: np.ndarray, n_bytes: np.ndarray, run: int = 0) -> Loss:
    """Sums over all tokens, divided once; `n_bytes` are those of each token."""
    one = np.ones(len(nll))
    nats = blocks.ratio(nll, one, run)
    return Loss(
        len(nll), int(n_bytes.sum()), interval(nats), interval(nats / LN2),
        interval(blocks.ratio(nll, n_bytes, run) / LN2), interval(np.exp(np.minimum(nats, 709))),  # float64 ends there
        interval(blocks.ratio(rank < 1, one, run)), interval(blocks.ratio(rank < 5, one, run)))


@dataclass(frozen=True)
class Comparison:
    """A run's loss less another's on the same text; what depends on tokens is None if theirs are not the same."""

    run: str
    step: int
    loss: Loss  # the other's
    bits_per_byte: Estimate
    nats_per_token: Estimate | None
    kl: Estimate | None  # KL(this || other) of the predictions, nats per token
    kl_back: Estimate | None  # KL(other || this)
    noise: bool  # the interval of the difference holds 0: another such text might well reverse it


@dataclass(frozen=True)
class Bin:
    """The tokens before which the model was about so sure."""

    low: float
    high: float
    tokens: int
    confidence: float  # mean probability of the guess
    accuracy: float  # share of the guesses that were right


@dataclass(frozen=True)
class Calibration:
    """Whether a model that says 70% is right 7 times in 10."""

    ece: float
    bins: list[Bin]
    temperature: float
    nats_gained: float  # per token, by dividing the logits by that temperature


def calibrate(confidence: np.ndarray, right: np.ndarray, tempered: np.ndarray) -> Calibration:
    """Reliability in equal-width bins, ECE, and the best temperature (Guo et al. 2017), from the guesses.

    ECE, the expected calibration error, is the mean distance between confidence and accuracy of the bins, weighted by
    their tokens. `tempered` is the total NLL at each of INVERSE_TEMPERATURES, through which a polynomial
    in log T is laid and minimised.
    """
    number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    tokens, sure, correct = (np.bincount(number, weights=values, minlength=BINS)
                             for values in (np.ones(len(number)), confidence, right))
    bins = [Bin(i / BINS, (i + 1) / BINS, int(n), s / n, c / n)
            for i, (n, s, c) in enumerate(zip(tokens.tolist(), sure.tolist(), correct.tolist(), strict=True)) if n]
    ece = float(np.abs(sure - correct).sum() / len(number))
    curve = np.polynomial.Chebyshev.fit(_NODES, tempered / len(number), deg=len(_NODES) - 1, domain=[-1, 1])
    x = np.linspace(-1, 1, 8001)  # of which the middle is a temperature of 1
    nats = curve(x)
    return Calibration(ece, bins, EXTREME ** -float(x[nats.argmin()]), float(nats[len(x) // 2] - nats.min()))


@dataclass(frozen=True)
class Group:
    """Tokens that have something in common, and their part in the loss."""

    name: str
    tokens: int
    share: float  # of the tokens
    nats_per_token: float
    share_of_nats: float
    top1: float


def group(names: Sequence[str], number: np.ndarray, nll: np.ndarray, right: np.ndarray) -> list[Group]:
    """The groups that have tokens, in the order of their names; `number` is the index of each token's name."""
    tokens, nats, correct = (np.bincount(number, weights=values, minlength=len(names)).tolist()
                             for values in (np.ones(len(number)), nll, right))
    return [Group(name, int(n), n / len(number), total / n, total / (sum(nats) or 1.0), c / n)
            for name, n, total, c in zip(names, tokens, nats, correct, strict=True) if n]


def context_kinds(seen: np.ndarray, block_size: int) -> tuple[list[str], np.ndarray]:
    """Names of doubling numbers of tokens seen, 1, 2, 3-4, 5-8, ..., and the index of each token's.

    >>> context_kinds(np.array([1, 2, 3, 4, 5, 6]), block_size=6)
    (['1', '2', '3-4', '5-6'], array([0, 1, 2, 2, 3, 3]))
    """
    ends = [min(2**power, block_size) for power in range((block_size - 1).bit_length() + 1)]
    starts = [1, *(end + 1 for end in ends[:-1])]
    names = [str(end) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return names, np.searchsorted(ends, seen)


CHARACTER_KINDS = ["lower-case letter", "upper-case letter", "other letter", "digit", "space", "new line",
                   "punctuation", "other", "end of document"]


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


def frequency_kinds(counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of tenfold numbers of occurrences, and the index of each, from counts `(V,)`.

    >>> frequency_kinds(np.array([5, 0, 10, 99, 4_000]))
    (['never', '1-9', '10-99', '100-999', '1,000-9,999'], array([1, 0, 2, 2, 4]))
    """
    powers = [10**power for power in range(len(str(counts.max())) + 1)]
    names = ["never", *(f"{low:,}-{10 * low - 1:,}" for low in powers[:-1])]
    return names, np.searchsorted(powers, counts, side="right")


@dataclass(frozen=True)
class Evaluation:
    """All that evaluate.py finds; its JSON has the same names."""

    run: str
    checkpoint: str
    step: int
    text: str
    world: str
    block_size: int
    stride: int
    notes: list[str]
    loss: Loss
    resamples: int
    blocks: int
    block_bytes: int
    logged_nll: float | None  # training's own, where it evaluated this checkpoint on this text
    beats: list[Baseline]
    ahead: list[Baseline]
    kl_gap: float | None  # nats per token above what the text's source itself pays for it, where that is known
    calibration: Calibration
    groups: dict[str, list[Group]]  # by "context", and by "character" or by "frequency"
    against: Comparison | None
