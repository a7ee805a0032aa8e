"""What a sweep claims of its groups holds: by hand, against scipy, and in simulated sweeps."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from string import ascii_lowercase

import numpy as np
import pytest
from scipy.stats import t, ttest_rel, tukey_hsd

from sweeps.statistics import (
    LISTED,
    MISSING,
    PAIRED,
    SEED_COUNTS,
    TUKEY,
    UNEQUAL,
    UNEQUAL_BY_CHANCE,
    Difference,
    add_interval,
    begin_list,
    compare_all,
    compare_layout,
    describe_difference,
    mean_of_seeds,
    name_best,
    order_pair,
    paired_half_width,
    say_all,
    tukey_half_width,
)

SWEEPS = 20_000
INTERVAL = re.compile(r"\((-?\d+\.\d+) to (-?\d+\.\d+)\), (\d+) seeds")

# Two-way layout: group means 12, 14, 16; seed means 12, 14, 16; all 14. The residuals are
# (0, 0, 0), (0, -1, 1) and (0, 1, -1): a sum of squares of 4, with 4 degrees of freedom.
BY_HAND = {
    "b": {1: 12.0, 2: 13.0, 3: 17.0},
    "c": {1: 14.0, 2: 17.0, 3: 17.0},
    "a": {1: 10.0, 2: 12.0, 3: 14.0},
}

Groups = dict[str, dict[int, float]]
Rows = Sequence[Sequence[float] | np.ndarray] | np.ndarray


def make_groups(losses: Rows) -> Groups:
    """Name the rows a, b, ..., and number their seeds from 1."""
    groups = {}
    for name, values in zip(ascii_lowercase, losses, strict=False):
        numbered = enumerate(map(float, values), start=1)
        groups[name] = dict(numbered)
    return groups


def simulate(deviations: Sequence[float], seeds: int, sweeps: int) -> np.ndarray:
    """Draw sweeps whose groups do not differ, (sweeps, groups, seeds): seed effects, and noise."""
    groups = len(deviations)
    rng = np.random.default_rng([groups, seeds])
    of_seeds = 2 * rng.standard_normal((sweeps, 1, seeds))
    noise = rng.standard_normal((sweeps, groups, seeds))
    return of_seeds + noise * np.array(deviations)[:, None]


def simulate_groups(*deviations: float, seeds: int) -> Groups:
    """Draw one sweep."""
    return make_groups(simulate(deviations, seeds, 1)[0])


def standard_error(share: float) -> float:
    return math.sqrt(share * (1 - share) / SWEEPS)


def find_claims(losses: np.ndarray) -> np.ndarray:
    """Tell, for each sweep and each pair, whether more than noise is claimed."""
    layout = compare_layout(losses)
    return np.abs(layout.differences) > layout.half_widths


def by_names(differences: list[Difference]) -> dict[str, Difference]:
    return {f"{pair.better}{pair.worse}": pair for pair in differences}


def check_paired(groups: Groups, pair: Difference, pairs: int) -> None:
    """Check an interval against scipy's paired t test, corrected for a number of pairs."""
    worse = groups[pair.worse]
    better = groups[pair.better]
    seeds = worse.keys() & better.keys()
    assert pair.seeds == len(seeds)
    losses = [worse[seed] for seed in seeds]
    others = [better[seed] for seed in seeds]
    expected = ttest_rel(losses, others).confidence_interval(1 - 0.05 / pairs)
    assert pair.low == pytest.approx(expected.low)
    assert pair.high == pytest.approx(expected.high)


# By hand, and against scipy.


def test_a_block_design_worked_by_hand() -> None:
    half_width = 5.040 / math.sqrt(3)  # tables have q = 5.04 for 3 means and 4 degrees
    first, second, third = compare_all(BY_HAND)
    assert (first.better, first.worse) == ("a", "b")
    assert (second.better, second.worse) == ("a", "c")
    assert (third.better, third.worse) == ("b", "c")
    assert first.difference == third.difference == 2
    assert second.difference == 4
    for pair in (first, second, third):
        assert pair.low == pytest.approx(pair.difference - half_width, abs=1e-3)
        assert pair.high == pytest.approx(pair.difference + half_width, abs=1e-3)
        assert pair.seeds == 3
        assert pair.method == TUKEY
    # q is 4.34 for 4 seeds, 4.04 for 5: 4.34 / sqrt(4) is above 2, 4.04 / sqrt(5) below.
    assert first.needed_seeds == third.needed_seeds == 5
    assert second.needed_seeds is None
    assert say_all([first, second, third]) == [
        "a and b cannot be told apart (-0.910 to 4.910), 3 seeds: about 5 seeds would",
        "with a the loss is lower than with c by 4.000 (1.090 to 6.910), 3 seeds: more than noise",
        "b and c cannot be told apart (-0.910 to 4.910), 3 seeds: about 5 seeds would",
        "95% intervals, 3 pairs at once: Tukey",
    ]


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_two_groups_have_the_interval_of_the_paired_t_test(seeds: int) -> None:
    groups = simulate_groups(1, 2, seeds=seeds)
    (pair,) = compare_all(groups)
    check_paired(groups, pair, pairs=1)
    assert pair.method == PAIRED


def test_the_quantile_is_that_of_tukey_hsd() -> None:
    """3 groups of 3 have 6 degrees of freedom in one way, 3 of 4 have them in two ways."""
    rows = np.reshape([1, 2, 3, 2, 4, 6, 5, 4, 3], (3, 3))
    variance = rows.var(axis=1, ddof=1).mean()
    one_way = tukey_hsd(*rows)
    found = one_way.confidence_interval(0.95)
    half_width = (found.high[0, 1] - found.low[0, 1]) / 2
    quantile = half_width / math.sqrt(variance / 3)
    assert tukey_half_width(3, 4) * math.sqrt(4) == pytest.approx(quantile)


def test_the_mean_of_a_group_has_students_interval() -> None:
    mean = mean_of_seeds({1: 1.0, 2: 3.0, 3: 5.0, 4: math.nan})
    assert mean[:3] == (3.0, 2.0, 3)
    half_width = t.ppf(0.975, 2) * 2 / math.sqrt(3)
    assert mean.low == pytest.approx(3 - half_width)
    assert mean.high == pytest.approx(3 + half_width)
    assert mean_of_seeds({7: 1.5}) == (1.5, None, 1, None, None)
    assert mean_of_seeds({7: math.inf}) == (None, None, 0, None, None)
    same = mean_of_seeds({1: 0.1, 2: 0.1, 3: 0.1})
    assert same[1:] == (0.0, 3, None, None)


# What must not matter.


def test_what_a_seed_adds_to_all_groups_does_not_matter() -> None:
    losses = simulate([1, 1, 1], 5, 1)[0]
    of_seeds = np.array([0, 100, -30, 7, 0.5])
    before = compare_all(make_groups(losses))
    after = compare_all(make_groups(losses + of_seeds))
    for first, second in zip(before, after, strict=True):
        assert first[:2] == second[:2]
        assert first[2:5] == pytest.approx(second[2:5])
        assert first[5:] == second[5:]


def test_the_order_of_groups_and_seeds_does_not_matter() -> None:
    groups = simulate_groups(1, 1, 1, 1, seeds=4)
    turned = {}
    for name in reversed(groups):
        turned[name] = dict(reversed(groups[name].items()))
    assert compare_all(turned) == compare_all(groups)


def test_options_that_change_nothing_do_not_narrow_the_other_intervals() -> None:
    groups = simulate_groups(1, 1, 1, seeds=3)
    alone = by_names(compare_all(groups))
    both = by_names(compare_all({**groups, "z": dict(groups["b"])}))
    assert {name: both[name] for name in alone} == alone
    assert both["bz"] == order_pair("b", "z", 0.0, 3)
    assert describe_difference(both["bz"]) == "b and z have the same loss with each of 3 seeds"
    for name in set(both) - {"bz", *alone}:
        original = alone[name.replace("z", "b")]
        assert both[name][2:] == original[2:]


# Where Tukey's intervals do not hold.


def test_missing_seeds_leave_pairs_on_the_seeds_of_both() -> None:
    groups = simulate_groups(1, 1, 1, 1, seeds=5)
    del groups["a"][2]
    groups["b"][4] = math.nan
    groups["c"] = {1: groups["c"][1]}
    groups["d"] |= {6: 0.0, 7: 1.0}
    groups["failed"] = {}
    groups["diverged"] = {1: math.inf}
    differences = by_names(compare_all(groups))
    del groups["b"][4]
    assert len(differences) == 6
    for name, pair in differences.items():
        if "c" in name:
            assert pair[3:] == (None, None, 1, None, "")
            assert describe_difference(pair).endswith(", 1 seed: no claim without a second seed")
        else:
            assert pair.method == MISSING
            check_paired(groups, pair, pairs=6)


def test_one_noisy_group_leaves_pairs_on_their_own() -> None:
    groups = simulate_groups(1, 1, 1, 30, seeds=10)
    for pair in compare_all(groups):
        assert pair.method == UNEQUAL
        check_paired(groups, pair, pairs=6)


@pytest.mark.parametrize("groups", [3, 4, 8])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_noise_seldom_seems_unequal(groups: int, seeds: int) -> None:
    """That bounds what the choice of the method adds to the false alarms."""
    layout = compare_layout(simulate([1] * groups, seeds, SWEEPS))
    share = layout.is_unequal.mean()
    assert share <= UNEQUAL_BY_CHANCE + 3 * standard_error(UNEQUAL_BY_CHANCE)
    assert share >= UNEQUAL_BY_CHANCE / 2


def test_unequal_noise_is_seen_with_ten_seeds() -> None:
    losses = simulate([1, 1, 1, 4], 10, SWEEPS)
    is_unequal = compare_layout(losses).is_unequal
    assert is_unequal.mean() > 0.8
    claims = find_claims(losses)[is_unequal]
    assert claims.any(axis=(1, 2)).mean() < 0.05


# Where nothing can be claimed.


def test_one_seed_makes_no_claim() -> None:
    groups = {"0.01": {1: 1.5}, "0.03": {1: 1.25}}
    (pair,) = compare_all(groups)
    assert pair == order_pair("0.03", "0.01", 0.25, 1)
    text = (
        "with 0.03 the loss is lower than with 0.01 by 0.250, 1 seed: no claim without a second "
        "seed"
    )
    assert say_all([pair]) == [text]


def test_the_same_loss_of_one_seed_is_not_called_lower() -> None:
    (pair,) = compare_all(make_groups([[1.5], [1.5]]))
    assert describe_difference(pair) == "a and b have the same loss with the only seed"


def test_no_common_seed_makes_no_claim() -> None:
    groups = {"a": {1: 1.5}, "b": {2: 1.25}}
    (pair,) = compare_all(groups)
    assert describe_difference(pair) == "b and a have no seed in common: no claim"


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_without_noise_there_is_no_claim(seeds: int) -> None:
    """Rounding must not pass for noise: 0.1 is added to numbers that it is not exact for."""
    losses = 0.1 + np.arange(seeds) / 7
    (pair,) = compare_all(make_groups([losses, losses + 0.1]))
    assert pair[3:] == (None, None, seeds, None, "")
    lower = "with a the loss is lower than with b by 0.100"
    text = f"{lower} with each of {seeds} seeds: no claim, as there is no noise"
    assert describe_difference(pair).startswith(text)
    (same,) = compare_all(make_groups([losses, losses]))
    assert same == order_pair("a", "b", 0.0, seeds)


def test_nothing_to_compare() -> None:
    assert compare_all({}) == []
    groups: Groups = {"a": {1: 1.0, 2: 2.0}, "b": {}}
    assert compare_all(groups) == []
    assert say_all([]) == []


# Seeds that would be enough.


def test_the_needed_seeds_are_the_first_that_would_exclude_zero() -> None:
    counted = 0
    for pair in random_pairs():
        if pair.low is None or pair.needed_seeds is None:
            continue
        index = SEED_COUNTS.index(pair.needed_seeds)
        deviation = (pair.difference - pair.low) / paired_half_width(1, pair.seeds)
        assert paired_half_width(1, pair.needed_seeds) * deviation < pair.difference
        fewer = SEED_COUNTS[max(0, index - 1)]
        if fewer > pair.seeds:
            assert paired_half_width(1, fewer) * deviation >= pair.difference
            counted += 1
    assert counted > 100


def test_more_seeds_than_a_hundred_are_not_counted() -> None:
    losses: Rows = [[1, 2, 3], [2, 1, 3.001]]
    (pair,) = compare_all(make_groups(losses))
    assert pair.needed_seeds is None
    assert describe_difference(pair).endswith(", 3 seeds: it would take more than 100 seeds")


# Words.


def random_pairs() -> Iterator[Difference]:
    """Make differences of all sizes, many of which have an end close to 0."""
    rng = np.random.default_rng(1)
    by_seeds = partial(paired_half_width, 1)
    for _ in range(5000):
        size = 10 ** rng.uniform(-9, 2)
        ratios = [1 + 1e-9, 1 - 1e-9, 1, 1e-3, rng.uniform(0, 3)]
        half_width = size * rng.choice(ratios)
        difference = rng.choice([-1, 1]) * size
        pair = order_pair("x", "y", difference, int(rng.integers(2, 120)))
        yield add_interval(pair, half_width, by_seeds)


def test_words_never_contradict_the_figures() -> None:
    endings = set()
    for pair in random_pairs():
        text = describe_difference(pair)
        found = INTERVAL.search(text)
        if pair.low is None:
            assert "no claim" in text
            assert found is None
            continue
        assert found is not None
        low, high = float(found[1]), float(found[2])
        assert low < high
        assert int(found[3]) == pair.seeds
        is_claim = text.endswith(": more than noise")
        assert is_claim == (low > 0)
        assert is_claim == (pair.low > 0)
        assert is_claim == (" is lower than " in text)
        assert is_claim != (" cannot be told apart " in text)
        advice = re.search(r": about (\d+) seeds would$", text)
        if advice:
            assert int(advice[1]) > pair.seeds
        elif not is_claim:
            assert text.endswith(": it would take more than 100 seeds")
        if is_claim:
            difference = float(text.split(" by ")[1].split()[0])
            assert low <= difference <= high
        endings.add((is_claim, bool(advice)))
    assert len(endings) == 3


def test_a_figure_has_as_many_digits_as_its_words_need() -> None:
    pair = Difference("a", "b", 0.0334, 0.01234, 0.0544, 3, None, TUKEY)
    text = (
        "with a the loss is lower than with b by 0.033 (0.012 to 0.054), 3 seeds: more than noise"
    )
    assert describe_difference(pair) == text
    close = pair._replace(low=0.00002, high=0.0668)
    lower = "with a the loss is lower than with b by 0.03340"
    text = f"{lower} (0.00002 to 0.06680), 3 seeds: more than noise"
    assert describe_difference(close) == text
    below = pair._replace(low=-0.00002, high=0.0668, needed_seeds=4)
    text = "a and b cannot be told apart (-0.00002 to 0.06680), 3 seeds: about 4 seeds would"
    assert describe_difference(below) == text


def test_many_groups_need_few_lines() -> None:
    """The first of each kind is said in full, the others are listed; no sentence is untrue."""
    losses = simulate([1] * 9, 5, 1)[0] / 100
    groups = make_groups(losses + np.linspace(0, 0.05, 9)[:, None])
    groups["k"] = dict(groups["a"])
    differences = compare_all(groups)
    lines = say_all(differences)
    assert len(lines) == 7
    best = differences[0].better
    assert best == "a"
    pairs = [pair for pair in differences if best in pair[:2]]
    near = [pair for pair in pairs if pair.method and not pair.is_more_than_noise]
    far = [pair for pair in pairs if pair.is_more_than_noise]
    assert lines[0] == "a and k have the same loss with each of 5 seeds"
    assert lines[1] == describe_difference(near[0])
    assert lines[2] == "cannot be told apart from a either: " + list_worse(near[1:])
    assert lines[3] == describe_difference(far[0])
    assert lines[4] == "with a the loss is lower by more than noise than with " + list_worse(
        far[1:]
    )
    others = [pair for pair in differences if pair not in pairs and pair.method]
    share = f"{sum(pair.is_more_than_noise for pair in others)} of {len(others)} pairs"
    assert lines[5].startswith(f"more than noise among the others, {share}: ")
    assert lines[6] == f"95% intervals, {len(near + far + others)} pairs at once: {TUKEY}"


def list_worse(pairs: list[Difference]) -> str:
    assert pairs
    names = [pair.worse for pair in pairs]
    more = len(names) - LISTED
    if more > 0:
        return f"{', '.join(names[:LISTED])} and {more} more"
    return ", ".join(names)


def test_the_best_group_is_the_one_that_fewest_are_below() -> None:
    """Where seeds are missing, that need not be the group with the lowest mean."""
    unclear = Difference("a", "c", 1, -1, 3, 2, None, MISSING)
    below = unclear._replace(better="b", worse="a")
    assert name_best([unclear, below]) == "b"
    circle = unclear._replace(better="c", worse="b")
    assert name_best([unclear, circle, below]) == "a"
    clear = below._replace(low=0.5, high=1.5)
    assert name_best([unclear, circle, clear]) == "c"
    assert begin_list(clear, "b") == "with b the loss is lower by more than noise than with"
    assert begin_list(clear, "a") == "with a the loss is higher by more than noise than with"


def test_what_makes_no_claim_is_only_listed() -> None:
    groups = make_groups([[1], [1.5], [2], [1], [1]])
    assert say_all(compare_all(groups)) == [
        "the same loss as a with each seed: d, e",
        "no claim without a second seed: a against b, c",
    ]
    losses = np.array([1, 1.5, 2.5])
    shifted = make_groups([losses, losses + 1, losses + 2])
    assert say_all(compare_all(shifted)) == [
        "with a the loss is lower than with b by 1.000 with each of 3 seeds: no claim, as there is "
        "no noise to judge it by",
        "with a the loss is lower than with c by 2.000 with each of 3 seeds: no claim, as there is "
        "no noise to judge it by",
    ]


# Simulated sweeps.


@pytest.mark.parametrize("groups", [3, 4])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_alarms_are_as_rare_as_said(groups: int, seeds: int) -> None:
    """In at most 5% of sweeps of equal groups is any pair told apart; and it is not far less."""
    claims = find_claims(simulate([1] * groups, seeds, SWEEPS))
    share = claims.any(axis=(1, 2)).mean()
    assert share <= 0.05 + 3 * standard_error(0.05)
    assert share >= 0.05 - 3 * standard_error(0.05)


def test_a_difference_of_one_deviation_is_found_by_ten_seeds() -> None:
    losses = simulate([1, 1], 10, SWEEPS)
    losses[:, 1] += math.sqrt(2)  # the standard deviation of the paired differences
    share = find_claims(losses)[:, 0, 1].mean()
    assert 0.78 <= share <= 0.82


@pytest.mark.parametrize("deviation", [1, 9])
def test_a_sweep_says_what_was_simulated(deviation: float) -> None:
    """Sentences claim, sweep by sweep and pair by pair, what the simulations count."""
    losses = simulate([1, 1, 1, deviation], 5, 200)
    losses[:, 0] -= 1
    for sweep, claims in zip(losses, find_claims(losses), strict=True):
        for pair in compare_all(make_groups(sweep)):
            better, worse = map(ascii_lowercase.index, pair[:2])
            is_claim = describe_difference(pair).endswith(": more than noise")
            assert is_claim == claims[better, worse]
