"""The weights of a mixture see no target before they predict it."""

import math

import numpy as np
import pytest

from engine.mixture import WEIGHTS, mix_causally


def test_three_targets_by_hand() -> None:
    """The first costs -log of the mean; then each has the w that was best before it."""
    q = [0.2, 0.6, 0.1]
    p = [0.4, 0.1, 0.5]
    nll, weights = mix_causally(-np.log(q), -np.log(p))
    # After the first target, p alone was best. After the second, the likelihood
    # (0.4 - 0.2 w) (0.1 + 0.5 w) is largest at w = 0.9.
    assert weights.tolist() == [0.5, 0.01, 0.9]
    by_hand = [0.3, 0.01 * 0.6 + 0.99 * 0.1, 0.9 * 0.1 + 0.1 * 0.5]
    assert nll.tolist() == pytest.approx([-math.log(each) for each in by_hand], rel=1e-12)


@pytest.fixture
def random_costs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.exponential(1.4, 10_000), rng.exponential(1.5, 10_000)


def test_each_weight_was_the_best_before(random_costs: tuple[np.ndarray, np.ndarray]) -> None:
    """Also where a chunk of targets ends."""
    nll_q, nll_p = random_costs
    nll, weights = mix_causally(nll_q, nll_p)
    q = np.exp(-nll_q)
    p = np.exp(-nll_p)
    for n in (1, 2, 50, 4095, 4096, 4097, 9999):
        w = WEIGHTS[:, None]
        mixed_before = w * q[:n] + (1 - w) * p[:n]
        likelihoods = np.log(mixed_before).sum(axis=1)
        assert weights[n] == WEIGHTS[likelihoods.argmax()]
        mixed = weights[n] * q[n] + (1 - weights[n]) * p[n]
        assert nll[n] == pytest.approx(-math.log(mixed))


@pytest.mark.parametrize("changed", [0, 7, 4095, 4096, 9000])
def test_a_changed_target_moves_no_earlier_loss(
    changed: int, random_costs: tuple[np.ndarray, np.ndarray]
) -> None:
    nll_q, nll_p = random_costs
    before = mix_causally(nll_q, nll_p)
    nll_q = nll_q.copy()
    nll_q[changed] += 5
    after = mix_causally(nll_q, nll_p)
    assert after.nll[:changed].tolist() == before.nll[:changed].tolist()
    assert after.weights[: changed + 1].tolist() == before.weights[: changed + 1].tolist()
    assert after.nll[changed] > before.nll[changed]


def test_what_is_no_use_gets_little_weight(random_costs: tuple[np.ndarray, np.ndarray]) -> None:
    nll, _ = random_costs
    worse = nll + 1
    mixed, weights = mix_causally(nll, worse)
    assert weights[0] == 0.5
    assert set(weights[1:]) == {0.99}
    assert (mixed - nll).max() < 0.4  # of the first target: log 2, less what the other knows
    assert (mixed - nll)[1:].max() < 0.01
    _, weights = mix_causally(worse, nll)
    assert set(weights[1:]) == {0.01}


def test_the_same_twice_is_itself(random_costs: tuple[np.ndarray, np.ndarray]) -> None:
    nll, _ = random_costs
    mixed, weights = mix_causally(nll, nll)
    assert mixed.tolist() == pytest.approx(nll.tolist())
    assert set(weights) == {0.5}


def test_impossible_targets_stay_finite() -> None:
    """A float32 rounds a probability to 0 from 104 nats on, a float64 from 746 on."""
    nll, _ = mix_causally(np.array([2000.0, 1.0, 1.0]), np.array([3.0, 2000.0, 1.0]))
    assert np.isfinite(nll).all()
    assert nll[1] == pytest.approx(1 - math.log(0.01))
