"""Says what differences between groups of runs are worth: means, intervals, sentences.

The runs of a group differ in their seed only; losses are in nats per token. Runs of one seed read
the same batches and start from the same random weights, so a lucky seed is lucky in all groups.
That makes seeds the blocks of a randomised block design (Fisher 1935): a loss is an effect of its
group, plus one of its seed, plus noise, and differences between groups are judged by the noise.

All pairs of groups are judged at once: where no groups differ, 95% of sweeps claim nothing. Tukey
(1949) gives such intervals for groups of equal noise that all have the same seeds; Kramer (1956)
for unequal numbers, which blocks rule out. Otherwise each pair is judged by its own differences
(Student's paired t), with Bonferroni's correction for the number of pairs.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of all intervals
# The share of sweeps of equal noise in which the noise seems to differ. Each of them may be a false
# alarm that Tukey's intervals would not give, so there may be few.
UNEQUAL_BY_CHANCE = 0.002
# Seeds that may be advised: "about 37" would promise too much, and each costs a slow quantile.
SEED_COUNTS = (
    *range(2, 11),  # exact
    *(12, 15, 20, 25, 30, 40, 50, 70, 100),  # round
)
ROUNDING = 1e-12  # nats; what is smaller comes from float64, not from training
MIN_DIGITS = 3  # after the point

TUKEY = "Tukey"
PAIRED = "paired t"  # the same, for two groups
UNEQUAL = "paired t, Bonferroni (noise differs)"
MISSING = "paired t, Bonferroni (seeds are missing)"

IN_FULL = 4  # sentences about the best group
LISTED = 4  # names, or pairs, in one sentence

Losses = Mapping[int, float]  # by seed
Groups = Mapping[str, Losses]
HalfWidth = Callable[[int], float]  # of an interval, by number of seeds, in standard deviations


class MeanLoss(NamedTuple):
    """The mean loss of a group. None where there are too few seeds, or seeds change nothing."""

    mean: float | None
    deviation: float | None  # standard deviation over seeds
    seeds: int
    low: float | None  # 95% interval of the mean
    high: float | None


class Difference(NamedTuple):
    """How much lower the loss of one group is than that of another, over the seeds of both.

    The 95% interval and its method are missing with fewer than two seeds, and without noise.
    needed_seeds says how many seeds would exclude 0, None for more than 100.
    """

    better: str
    worse: str
    difference: float
    low: float | None
    high: float | None
    seeds: int
    needed_seeds: int | None
    method: str

    @property
    def is_more_than_noise(self) -> bool:
        return self.low is not None and self.low > 0


class Layout(NamedTuple):
    """All pairs of K groups, (..., K, K): the second group's loss minus the first one's."""

    differences: np.ndarray
    half_widths: np.ndarray  # of the intervals
    is_unequal: np.ndarray  # (...): whether noise differs, and pairs are judged one by one


# Measure.


def mean_of_seeds(losses: Losses) -> MeanLoss:
    """Return the mean loss of a group, its standard deviation, and Student's 95% interval.

    >>> mean = mean_of_seeds({1: 1.5, 2: 1.6, 3: 1.7})
    >>> [round(value, 2) for value in (mean.mean, mean.deviation, mean.low, mean.high)]
    [1.6, 0.1, 1.35, 1.85]
    """
    values = np.array(list(keep_finite(losses).values()))
    seeds = len(values)
    if seeds == 0:
        return MeanLoss(None, None, 0, None, None)
    mean = float(values.mean())
    if seeds == 1:
        return MeanLoss(mean, None, 1, None, None)
    deviation = float(values.std(ddof=1))
    if deviation <= ROUNDING:
        return MeanLoss(mean, 0.0, seeds, None, None)
    half_width = paired_half_width(1, seeds) * deviation
    return MeanLoss(mean, deviation, seeds, mean - half_width, mean + half_width)


def compare_all(groups: Groups) -> list[Difference]:
    """Compare all pairs of groups, the groups with the lowest mean first.

    Losses that are not finite are left out, and groups without a loss. Groups of identical losses
    (their options change nothing) are one group to the statistics.
    """
    measured = sort_groups(groups)
    originals = find_originals(measured)
    distinct = {name: measured[name] for name in measured if originals[name] == name}
    if is_complete(list(distinct.values())):
        judged = compare_complete(distinct)
    else:
        judged = compare_incomplete(distinct)
    differences = []
    for first, second in combinations(measured, 2):
        names = {originals[first]: first, originals[second]: second}
        if len(names) == 1:
            difference = order_pair(first, second, 0.0, len(measured[first]))
        else:
            known = judged[frozenset(names)]
            difference = known._replace(better=names[known.better], worse=names[known.worse])
        differences.append(difference)
    return differences


def keep_finite(losses: Losses) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}


def sort_groups(groups: Groups) -> dict[str, dict[int, float]]:
    """Return the groups that have losses, the lowest mean first."""
    finite = {name: keep_finite(groups[name]) for name in groups}
    measured = [name for name in finite if finite[name]]
    measured.sort(key=lambda name: mean_of(finite[name]))
    return {name: finite[name] for name in measured}


def mean_of(losses: Losses) -> float:
    return math.fsum(losses.values()) / len(losses)


def find_originals(groups: Groups) -> dict[str, str]:
    """Name, for each group, the first one with the same losses: itself, if no other has them."""
    originals = {}
    for name, losses in groups.items():
        originals[name] = next(other for other in groups if groups[other] == losses)
    return originals


def is_complete(groups: Sequence[Losses]) -> bool:
    """Tell whether there are groups to compare, all with the same seeds, at least two."""
    if len(groups) < 2 or len(groups[0]) < 2:
        return False
    return all(losses.keys() == groups[0].keys() for losses in groups)


# Groups that all have the same seeds.


def compare_complete(groups: Groups) -> dict[frozenset[str], Difference]:
    """Compare all pairs of groups that have the same seeds."""
    names = list(groups)
    seeds = sorted(groups[names[0]])
    losses = [[groups[name][seed] for seed in seeds] for name in names]
    layout = compare_layout(np.array(losses))
    num_pairs = math.comb(len(names), 2)
    method = TUKEY
    by_seeds = partial(tukey_half_width, len(names))
    if num_pairs == 1:
        method = PAIRED
    if layout.is_unequal:
        method = UNEQUAL
        by_seeds = partial(paired_half_width, num_pairs)
    judged = {}
    for first, second in combinations(range(len(names)), 2):
        difference = float(layout.differences[first, second])
        half_width = float(layout.half_widths[first, second])
        pair = order_pair(names[first], names[second], difference, len(seeds))
        pair = add_interval(pair, half_width, by_seeds)
        judged[frozenset([pair.better, pair.worse])] = name_method(pair, method)
    return judged


def compare_layout(losses: np.ndarray) -> Layout:
    """Compare all pairs of groups in the two-way layout group + seed.

    `losses` are (..., K groups, n seeds). The noise is what group and seed don't explain; its
    mean square has (K - 1)(n - 1) degrees of freedom. For two groups, the interval is that of
    Student's paired t.
    """
    groups, seeds = losses.shape[-2:]
    without_groups = losses - losses.mean(axis=-1, keepdims=True)
    noise = without_groups - without_groups.mean(axis=-2, keepdims=True)
    squares = np.square(noise).sum(axis=-1)
    degrees = (groups - 1) * (seeds - 1)
    deviation = np.sqrt(squares.sum(axis=-1) / degrees)
    together = tukey_half_width(groups, seeds) * deviation[..., None, None]

    pairs = losses[..., None, :, :] - losses[..., :, None, :]
    deviations = pairs.std(axis=-1, ddof=1)
    one_by_one = paired_half_width(math.comb(groups, 2), seeds) * deviations

    is_unequal = find_unequal_noise(squares, seeds)
    half_widths = np.where(is_unequal[..., None, None], one_by_one, together)
    return Layout(pairs.mean(axis=-1), half_widths, is_unequal)


def find_unequal_noise(squares: np.ndarray, seeds: int) -> np.ndarray:
    """Tell whether one group is clearly noisier than the others, (...).

    `squares` are the squared residuals summed over the seeds, (..., K groups). Those of one group,
    times K / (K - 1), and the rest of the sum are independent, and have n - 1 and (K - 2)(n - 1)
    degrees of freedom: their ratio has an F distribution, which is exact. The noisiest of K groups
    takes Bonferroni's correction (Cochran 1941). Of two groups, neither is noisier.

    Few seeds show little: if one group of four is 4 times as noisy, 5% of sweeps of 3 seeds notice,
    and 85% of 10 seeds; 10% and 5.5% of sweeps then claim a difference where there is none.
    """
    groups = squares.shape[-1]
    if groups < 3:
        return np.zeros(squares.shape[:-1], dtype=bool)
    noisiest = squares.max(axis=-1) * groups / (groups - 1)
    others = squares.sum(axis=-1) - noisiest
    return noisiest * (groups - 2) > variance_ratio(groups, seeds) * others


# Groups of which some lack seeds.


def compare_incomplete(groups: Groups) -> dict[frozenset[str], Difference]:
    """Compare each pair of groups on the seeds that both have."""
    by_seeds = partial(paired_half_width, math.comb(len(groups), 2))
    judged = {}
    for first, second in combinations(groups, 2):
        difference = mean_of(groups[second]) - mean_of(groups[first])
        by_seed = subtract(groups[second], groups[first])
        if by_seed:
            difference = mean_of(by_seed)
        pair = order_pair(first, second, difference, len(by_seed))
        if len(by_seed) >= 2:
            deviation = float(np.std(list(by_seed.values()), ddof=1))
            pair = add_interval(pair, by_seeds(len(by_seed)) * deviation, by_seeds)
        judged[frozenset([first, second])] = name_method(pair, MISSING)
    return judged


def subtract(losses: Losses, others: Losses) -> dict[int, float]:
    """Return the differences of the seeds that both have."""
    common = [seed for seed in losses if seed in others]
    return {seed: losses[seed] - others[seed] for seed in common}


# Intervals.


def order_pair(first: str, second: str, difference: float, seeds: int) -> Difference:
    """Return a difference without an interval; `difference` is the second minus the first."""
    if difference < 0:
        return order_pair(second, first, -difference, seeds)
    return Difference(first, second, difference, None, None, seeds, None, "")


def add_interval(pair: Difference, half_width: float, by_seeds: HalfWidth) -> Difference:
    """Return a difference with its interval, unless there is no noise to judge it by."""
    if half_width <= ROUNDING:
        return pair
    low = pair.difference - half_width
    high = pair.difference + half_width
    needed = None
    if low <= 0:
        needed = count_needed_seeds(pair, half_width, by_seeds)
    return pair._replace(low=low, high=high, needed_seeds=needed)


def name_method(pair: Difference, method: str) -> Difference:
    if pair.low is None:
        return pair
    return pair._replace(method=method)


def count_needed_seeds(pair: Difference, half_width: float, by_seeds: HalfWidth) -> int | None:
    """Return the first of SEED_COUNTS whose interval would exclude 0, None for more than 100.

    If the true difference is the observed one, that many seeds find it in about half of all sweeps.
    """
    deviation = half_width / by_seeds(pair.seeds)

    def is_enough(seeds: int) -> bool:
        return by_seeds(seeds) * deviation < pair.difference

    more = bisect_right(SEED_COUNTS, pair.seeds)
    index = bisect_left(SEED_COUNTS, True, lo=more, key=is_enough)
    if index == len(SEED_COUNTS):
        return None
    return SEED_COUNTS[index]


@cache
def tukey_half_width(groups: int, seeds: int) -> float:
    """Return half of Tukey's interval, in standard deviations of the noise of a run.

    >>> round(tukey_half_width(3, 4) * 2, 2)  # the tables have 4.34 for 3 means and 6 degrees
    4.34
    """
    from scipy.stats import studentized_range

    degrees = (groups - 1) * (seeds - 1)
    quantile = float(studentized_range.ppf(LEVEL, groups, degrees))
    return quantile / math.sqrt(seeds)


@cache
def paired_half_width(pairs: int, seeds: int) -> float:
    """Return half of the paired interval of one of several pairs, in deviations of a difference.

    With Bonferroni's correction each pair has its share of the 5%, so that all intervals hold in
    95% of sweeps, whatever their noise.
    """
    from scipy.stats import t

    share = (1 - LEVEL) / pairs
    quantile = float(t.isf(share / 2, seeds - 1))
    return quantile / math.sqrt(seeds)


@cache
def variance_ratio(groups: int, seeds: int) -> float:
    """Return the ratio above which the noisiest group is clearly noisier than the others."""
    from scipy.stats import f

    share = UNEQUAL_BY_CHANCE / groups
    of_one = seeds - 1  # degrees of freedom
    of_others = (groups - 2) * of_one
    return float(f.isf(share, of_one, of_others))


# Say.


def describe_difference(pair: Difference) -> str:
    """Say what a difference is worth; the words and the figures follow from one interval."""
    if pair.low is None or pair.high is None:
        return describe_without_interval(pair)
    half_width = (pair.high - pair.low) / 2
    digits = choose_digits(pair.low, half_width)
    low = f"{pair.low:.{digits}f}"
    high = f"{pair.high:.{digits}f}"
    interval = f"({low} to {high}), {pair.seeds} seeds"
    if pair.is_more_than_noise:
        return f"{describe_lower(pair, digits)} {interval}: more than noise"
    advice = "it would take more than 100 seeds"
    if pair.needed_seeds:
        advice = f"about {pair.needed_seeds} seeds would"
    return f"{pair.better} and {pair.worse} cannot be told apart {interval}: {advice}"


def describe_without_interval(pair: Difference) -> str:
    """Say why no claim is made about a pair."""
    both = f"{pair.better} and {pair.worse}"
    lower = describe_lower(pair, choose_digits(pair.difference))
    each = f"with each of {pair.seeds} seeds"
    if pair.seeds == 1:
        each = "with the only seed"
    if pair.seeds == 0:
        return f"{both} have no seed in common: no claim"
    if pair.difference == 0:
        return f"{both} have the same loss {each}"
    if pair.seeds == 1:
        return f"{lower}, 1 seed: no claim without a second seed"
    return f"{lower} {each}: no claim, as there is no noise to judge it by"


def describe_lower(pair: Difference, digits: int) -> str:
    difference = f"{pair.difference:.{digits}f}"
    return f"with {pair.better} the loss is lower than with {pair.worse} by {difference}"


def choose_digits(*values: float) -> int:
    """Return so many digits that no value is rounded to 0, unless it is 0."""
    digits = MIN_DIGITS
    while any(value != 0 and round(value, digits) == 0 for value in values):
        digits += 1
    return digits


def say_all(differences: Sequence[Difference]) -> list[str]:
    """Say what all differences are worth, in at most 8 lines.

    First the best group against each other one, the nearest first; then the other pairs, and the
    method of the intervals.
    """
    if not differences:
        return []
    best = name_best(differences)
    about_best = [pair for pair in differences if best in (pair.better, pair.worse)]
    others = [pair for pair in differences if pair not in about_best]
    has_noise = all(pair.seeds >= 2 for pair in about_best)
    if len(about_best) <= IN_FULL and has_noise:
        lines = [describe_difference(pair) for pair in about_best]
    else:
        lines = say_of_best(best, about_best)
    lines += describe_others(others)
    lines += describe_method(differences)
    return lines


def name_best(differences: Sequence[Difference]) -> str:
    """Name the group to which the fewest are superior, by more than noise above all."""
    names = dict.fromkeys(pair.better for pair in differences)
    worse = [pair.worse for pair in differences]
    clearly_worse = [pair.worse for pair in differences if pair.is_more_than_noise]
    fewest = sorted(names, key=worse.count)
    return min(fewest, key=clearly_worse.count)


def say_of_best(best: str, differences: Sequence[Difference]) -> list[str]:
    """Say in full the first difference from the best of each kind, and list the others.

    Differences without an interval are only listed.
    """
    kinds: dict[str, list[Difference]] = {}
    for pair in differences:
        kinds.setdefault(begin_list(pair, best), []).append(pair)
    lines = []
    for kind, pairs in kinds.items():
        if pairs[0].method or len(pairs) == 1:
            lines.append(describe_difference(pairs.pop(0)))
        if pairs:
            others = [other_than(best, pair) for pair in pairs]
            lines.append(f"{kind} {list_some(others)}")
    return lines


def other_than(name: str, pair: Difference) -> str:
    if pair.better == name:
        return pair.worse
    return pair.better


def begin_list(pair: Difference, best: str) -> str:
    """Begin the sentence that lists the other groups of which the same is true."""
    if pair.is_more_than_noise and pair.better == best:
        return f"with {best} the loss is lower by more than noise than with"
    if pair.is_more_than_noise:
        return f"with {best} the loss is higher by more than noise than with"
    if pair.method:
        return f"cannot be told apart from {best} either:"
    if pair.difference == 0:
        return f"the same loss as {best} with each seed:"
    if pair.seeds >= 2:
        return f"no claim, as there is no noise to judge it by: {best} against"
    return f"no claim without a second seed: {best} against"


def describe_others(differences: Sequence[Difference]) -> list[str]:
    """Say in one line which groups differ, among those that are not the best."""
    judged = [pair for pair in differences if pair.method]
    if len(judged) == 1:
        return [describe_difference(judged[0])]
    if not judged:
        return []
    told_apart = [f"{pair.better} < {pair.worse}" for pair in judged if pair.is_more_than_noise]
    if not told_apart:
        return [f"among the others, none of {len(judged)} pairs can be told apart"]
    share = f"{len(told_apart)} of {len(judged)} pairs"
    return [f"more than noise among the others, {share}: {list_some(told_apart)}"]


def describe_method(differences: Sequence[Difference]) -> list[str]:
    """Say what the intervals are, if there are any."""
    judged = [pair for pair in differences if pair.method]
    if not judged:
        return []
    intervals = "95% interval"
    if len(judged) > 1:
        intervals = f"95% intervals, {len(judged)} pairs at once"
    return [f"{intervals}: {judged[0].method}"]


def list_some(texts: Sequence[str]) -> str:
    """List the first of some texts, and count the others."""
    shown = ", ".join(texts[:LISTED])
    rest = len(texts) - LISTED
    if rest > 0:
        return f"{shown} and {rest} more"
    return shown
