"""loss.py against the definition, computed another way, in float64; on the plain path and in
chunks.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import chunked_loss
import loss
from chunked_loss import next_token_loss
from loss import IGNORE_INDEX, LossSums, Objective, cross_entropy, mean_loss, sum_losses


@pytest.fixture(params=["plain", "chunked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way of next_token_loss."""
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 2**60 if request.param == "plain" else 0)
    monkeypatch.setattr(chunked_loss, "MIN_CHUNK", 2)
    return request.param


def definition(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[float, float]:
    """(objective, nll), summed over tokens one by one: -sum p log q, where p is the smoothed
    target.
    """
    objective = nll = 0.0
    for z, y in zip(logits.double().flatten(0, -2), targets.flatten(), strict=True):
        if y == IGNORE_INDEX:
            continue
        q = torch.exp(z - z.max()) / torch.exp(z - z.max()).sum()
        p = torch.full_like(q, smoothing / len(q))
        p[y] += 1 - smoothing
        objective -= float((p * q.log()).sum())
        nll -= float(q[y].log())
    return objective, nll


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_sums_are_the_definition(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 7) * 3, torch.randint(7, (3, 5))
    targets[0, :4] = IGNORE_INDEX
    sums = cross_entropy(logits, targets, Objective(smoothing))
    objective, nll = definition(logits, targets, smoothing)
    assert sums.objective.item() == pytest.approx(objective, rel=1e-6)
    assert sums.nll.item() == pytest.approx(nll, rel=1e-6)
    assert sums.num_targets.item() == 11
    unmasked = targets != IGNORE_INDEX
    assert sums.correct.item() == int((logits.argmax(-1) == targets)[unmasked].sum())


def test_the_gradient_is_q_minus_p_and_zero_where_masked() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6, requires_grad=True), torch.tensor([1, 5, IGNORE_INDEX, 0])
    cross_entropy(logits, targets, Objective(0.3)).objective.backward()
    q = logits.detach().double().softmax(dim=-1)
    p = torch.full_like(q, 0.3 / 6)
    for row, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            p[row] = q[row]
        else:
            p[row, y] += 0.7
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), q - p, atol=1e-6, rtol=0)


def test_smoothing_leaves_nll_alone() -> None:
    logits, targets = torch.randn(9, 4), torch.randint(4, (9,))
    plain, smoothed = cross_entropy(logits, targets), cross_entropy(logits, targets, Objective(0.2))
    assert torch.equal(plain.nll, smoothed.nll)
    assert torch.equal(plain.objective, plain.nll)
    assert not torch.equal(smoothed.objective, smoothed.nll)


@pytest.mark.parametrize("scale", [1e4, -1e4, 1e30])
def test_extreme_logits_stay_finite(scale: float) -> None:
    logits = torch.tensor([[scale, 0.0, -scale]], requires_grad=True)
    sums = cross_entropy(logits, torch.tensor([0]))
    sums.objective.backward()
    assert math.isfinite(sums.nll.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_bfloat16_logits_are_summed_as_exactly_as_others() -> None:
    logits, targets = torch.randn(2000, 65).bfloat16(), torch.randint(65, (2000,))
    nll = cross_entropy(logits, targets).nll
    assert nll.item() == pytest.approx(definition(logits, targets, 0.0)[1], rel=1e-6)


def test_everything_masked_is_zero_and_has_no_gradient(path: str) -> None:
    hidden, lm_head = (
        torch.randn(2, 3, 4, requires_grad=True),
        torch.randn(5, 4, requires_grad=True),
    )
    sums = next_token_loss(hidden, lm_head, torch.full((2, 3), IGNORE_INDEX), Objective(0.1, 0.01))
    sums.objective.backward()
    assert [number.item() for number in sums] == [0] * len(LossSums._fields)
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert math.isnan(mean_loss(sum_losses([sums])).nll)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38])
@pytest.mark.parametrize(
    "objective", [Objective(), Objective(0.1, 1e-3)], ids=["plain", "all parts"]
)
def test_masked_hidden_states_do_not_matter(path: str, objective: Objective, value: float) -> None:
    """Not even if they are infinite: 0 times infinity is NaN."""
    torch.manual_seed(0)
    hidden, lm_head, targets = torch.randn(1, 7, 4), torch.randn(9, 4), torch.randint(9, (1, 7))
    targets[0, [2, 5]] = IGNORE_INDEX
    spoilt = hidden.clone()
    spoilt[0, 2], spoilt[0, 5, 1] = value, value
    found = []
    for states in (hidden, spoilt):
        own, weights = states.clone().requires_grad_(), lm_head.clone().requires_grad_()
        sums = next_token_loss(own, weights, targets, objective, softcap=5.0)
        sums.objective.backward()
        found.append([*sums, own.grad, weights.grad])
    for expected, got in zip(*found, strict=True):
        assert torch.equal(got, expected)
        assert got.isfinite().all()


def test_counts_are_exact_above_2_to_the_24(path: str) -> None:
    """Where float32 has no odd numbers."""
    hidden, lm_head, targets = torch.randn(1, 5, 4), torch.randn(9, 4), torch.randint(9, (1, 5))
    small = next_token_loss(hidden, lm_head, targets)
    assert {number.dtype for number in small} <= {torch.float64, torch.int64}
    ones = torch.ones(1).expand(2**24 + 1)
    assert loss.sum_targets(ones, ones > 0).item() == 2**24 + 1
    big = LossSums(*(torch.tensor(2.0**24, dtype=torch.float64) for _ in LossSums._fields))
    total = sum_losses(
        [big, small, small._replace(correct=torch.tensor(1.0), num_targets=torch.tensor(1))]
    )
    assert total.num_targets.item() == 2**24 + 6
    assert total.correct.item() == 2**24 + small.correct.item() + 1
    assert mean_loss(total).num_targets == 2**24 + 6
    assert total.nll.item() == pytest.approx(2.0**24 + 2 * small.nll.item(), rel=1e-12)


def test_sums_of_what_is_not_finite_are_nan() -> None:
    one = cross_entropy(torch.randn(3, 4), torch.randint(4, (3,)))
    total = sum_losses([one, one._replace(nll=torch.tensor(math.inf))])
    assert math.isnan(total.nll.item())
    assert total.num_targets.item() == 6
    assert [number.item() for number in sum_losses([])] == [0] * len(LossSums._fields)


@pytest.mark.parametrize(
    "objective", [Objective(), Objective(0.1, 1e-3)], ids=["plain", "all parts"]
)
def test_tied_tokens_share_the_accuracy(path: str, objective: Objective) -> None:
    """A model that knows nothing is right one time in V, whatever comes."""
    V = 5
    hidden, lm_head, targets = torch.ones(1, 4, 2), torch.zeros(V, 2), torch.tensor([[0, 1, 4, 0]])
    assert mean_loss(
        next_token_loss(hidden, lm_head, targets, objective)
    ).accuracy == pytest.approx(1 / V)
    targets[0, 1:3] = IGNORE_INDEX
    assert mean_loss(
        next_token_loss(hidden, lm_head, targets, objective)
    ).accuracy == pytest.approx(1 / V)
    lm_head[:2] = 1  # two tokens share the first place
    sums = next_token_loss(hidden, lm_head, torch.tensor([[0, 1, 2, 4]]), objective)
    assert sums.correct.item() == pytest.approx(1 / 2 + 1 / 2)


def test_sums_are_divided_once_whatever_the_split() -> None:
    """One part has one target, the other seven: the mean of their means would be wrong."""
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5), torch.randint(5, (8,))
    whole = mean_loss(sum_losses([cross_entropy(logits, targets)]))
    parts = mean_loss(
        sum_losses([cross_entropy(logits[:1], targets[:1]), cross_entropy(logits[1:], targets[1:])])
    )
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert (parts.num_targets, parts.accuracy) == (8, whole.accuracy)
    assert math.isnan(mean_loss(cross_entropy(logits[:1], torch.tensor([IGNORE_INDEX]))).nll)


def test_all_reduce_adds_the_sums_of_all_ranks() -> None:
    one = cross_entropy(torch.randn(3, 4), torch.randint(4, (3,)))
    double: Callable[[Tensor], Tensor] = lambda sums: sums * 2  # noqa: E731
    assert sum_losses([one], double).num_targets.item() == 6


def test_the_soft_cap_is_tanh() -> None:
    logits = torch.tensor([-1e30, -2.0, 0.0, 1.0, 1e30])
    torch.testing.assert_close(loss.soft_cap(logits, 3.0), 3 * torch.tanh(logits / 3))
    assert torch.equal(loss.soft_cap(logits, 0.0), logits)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_adds_its_divergence(temperature: float) -> None:
    """objective = (1 - alpha) (nll + smoothing) + alpha T^2 KL(t_T || q_T), by hand and in float64."""
    torch.manual_seed(0)
    logits, teacher, targets = torch.randn(6, 5), torch.randn(6, 5), torch.randint(5, (6,))
    targets[2] = IGNORE_INDEX
    alpha, T = 0.3, temperature
    sums = cross_entropy(logits, targets, Objective(0.1, 0.0, alpha, T), teacher)
    log_q, log_t = (
        z.double().div(T).log_softmax(-1)[targets != IGNORE_INDEX] for z in (logits, teacher)
    )
    kl = (log_t.exp() * (log_t - log_q)).sum().item()
    plain = cross_entropy(logits, targets, Objective(0.1))
    assert sums.objective.item() == pytest.approx(
        (1 - alpha) * plain.objective.item() + alpha * T**2 * kl, rel=1e-6
    )
    assert torch.equal(sums.nll, plain.nll)
    assert sums.teacher_kl.item() == pytest.approx(kl, rel=1e-6)
