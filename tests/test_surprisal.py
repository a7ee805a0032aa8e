"""The arithmetic in plain Python, beyond its examples."""

import math

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
