"""The arithmetic in plain Python, beyond its examples."""

import math
from fractions import Fraction

import pytest

from surprisal import (
    bits_per_byte,
    cross_entropy,
    entropy,
    kl_divergence,
    nats_to_bits,
    perplexity,
    smoothed_entropy,
    surprisal,
)


@pytest.mark.parametrize(
    "value",
    [
        surprisal(math.nan),
        perplexity(math.nan),
        bits_per_byte(math.nan, 1),
        nats_to_bits(math.nan),
        smoothed_entropy(5, math.nan),
        entropy([math.nan, 1]),
        cross_entropy([math.nan, 1], [0.5, 0.5]),
        cross_entropy([0.5, 0.5], [math.nan, 0.5]),
        kl_divergence([math.nan, 1], [0.5, 0.5]),
        kl_divergence([0.5, 0.5], [math.nan, 0.5]),
    ],
)
def test_what_is_not_a_number_stays_so(value: float) -> None:
    """It is no infinite loss, and no perfect one."""
    assert math.isnan(value)


@pytest.mark.parametrize(
    "value",
    [
        surprisal(0),
        perplexity(1000),
        perplexity(math.inf),
        cross_entropy([1.0], [0.0]),
        kl_divergence([1.0], [0.0]),
    ],
)
def test_what_was_impossible_is_infinite(value: float) -> None:
    assert value == math.inf


def learned(throws: list[int], prior: Fraction) -> Fraction:
    """Multiply the probabilities of throws by a coin whose bias is learned while it is thrown.

    The rule starts with `prior` heads and as many tails: 1 is Laplace's, 1/2 that of Krichevsky and
    Trofimov (1981).
    """
    counts = [prior, prior]
    product = Fraction(1)
    for side in throws:
        product *= counts[side] / sum(counts)
        counts[side] += 1
    return product


def test_a_coin_by_hand() -> None:
    """Heads, heads, tails, heads: as docs/loss.md and the notebook have it."""
    throws = [1, 1, 0, 1]
    by_laplace = learned(throws, Fraction(1))
    assert by_laplace == Fraction(1, 2) * Fraction(2, 3) * Fraction(1, 4) * Fraction(3, 5)
    assert by_laplace == Fraction(1, 20)
    assert learned(throws, Fraction(1, 2)) == Fraction(5, 128)
    bits = nats_to_bits(surprisal(1 / 20))
    assert bits == pytest.approx(4.322, abs=5e-4)
    assert nats_to_bits(surprisal(5 / 128)) == pytest.approx(4.678, abs=5e-4)
    assert nats_to_bits(4 * entropy([3 / 4, 1 / 4])) == pytest.approx(3.245, abs=5e-4)


def test_what_it_costs_to_learn_a_coin() -> None:
    """The order does not count, so of each number of heads one sequence says all.

    Laplace's rule spreads 1 evenly over the n + 1 numbers of heads, and then over their sequences.
    That of Krichevsky and Trofimov costs at most 1 + (log2 n) / 2 bits more than the best coin that
    stands still, which is known only afterwards.
    """
    for n in (1, 2, 7, 60):
        for heads in range(n + 1):
            throws = [1] * heads + [0] * (n - heads)
            by_laplace = learned(throws, Fraction(1))
            assert by_laplace == Fraction(1, (n + 1) * math.comb(n, heads))
            assert by_laplace == learned(throws[::-1], Fraction(1))
            best = n * nats_to_bits(entropy([heads / n, 1 - heads / n]))
            laplace = nats_to_bits(surprisal(float(by_laplace)))
            assert 0 < laplace - best <= math.log2(n + 1) + 1e-9
            trofimov = nats_to_bits(surprisal(float(learned(throws, Fraction(1, 2)))))
            assert 0 < trofimov - best <= 1 + math.log2(n) / 2 + 1e-9


def test_what_is_new_is_dear_once() -> None:
    """Ten heads: 1 bit for the first, and 1.5 for the nine others together."""
    bits = nats_to_bits(surprisal(float(learned([1] * 10, Fraction(1, 2)))))
    assert bits == pytest.approx(2.505, abs=5e-4)
