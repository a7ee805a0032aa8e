"""loss.py computes the definition, on the plain path and in chunks."""

import math

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
    max_logits = {"plain": 2**60, "chunked": 0}[request.param]
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", max_logits)
    monkeypatch.setattr(chunked_loss, "MIN_CHUNK", 2)
    return request.param


def definition(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[float, float]:
    """Add up -sum p log q token by token, in float64: (objective, nll).

    For the objective p is the smoothed target.
    """
    objective = 0.0
    nll = 0.0
    rows = logits.double().flatten(0, -2)
    for z, y in zip(rows, targets.flatten(), strict=True):
        if y == IGNORE_INDEX:
            continue
        exp = torch.exp(z - z.max())
        q = exp / exp.sum()
        p = torch.full_like(q, smoothing / len(q))
        p[y] += 1 - smoothing
        objective -= float((p * q.log()).sum())
        nll -= float(q[y].log())
    return objective, nll


def draw(*shape: int, V: int, seed: int = 0) -> list[Tensor]:
    """Random logits (*shape, V), and targets (*shape)."""
    torch.manual_seed(seed)
    logits = torch.randn(*shape, V)
    targets = torch.randint(V, shape)
    return [logits, targets]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_sums_are_the_definition(smoothing: float) -> None:
    logits, targets = draw(3, 5, V=7)
    logits *= 3
    targets[0, :4] = IGNORE_INDEX
    sums = cross_entropy(logits, targets, Objective(smoothing))
    objective, nll = definition(logits, targets, smoothing)
    assert sums.objective.item() == pytest.approx(objective, rel=1e-6)
    assert sums.nll.item() == pytest.approx(nll, rel=1e-6)
    assert sums.num_targets.item() == 11
    hits = logits.argmax(-1) == targets  # never where it is masked: no token has that id
    assert sums.correct.item() == hits.sum().item()


def test_the_gradient_is_q_minus_p_and_zero_where_masked() -> None:
    logits, _ = draw(4, V=6)
    logits.requires_grad_()
    targets = torch.tensor([1, 5, IGNORE_INDEX, 0])
    cross_entropy(logits, targets, Objective(0.3)).objective.backward()
    q = logits.detach().double().softmax(dim=-1)
    p = torch.full_like(q, 0.3 / 6)
    for row, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            p[row] = q[row]
        else:
            p[row, y] += 0.7
    assert logits.grad is not None
    expected = (q - p).float()
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_smoothing_leaves_nll_alone() -> None:
    logits, targets = draw(9, V=4)
    plain = cross_entropy(logits, targets)
    smoothed = cross_entropy(logits, targets, Objective(0.2))
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
    logits, targets = draw(2000, V=65)
    logits = logits.bfloat16()
    nll = cross_entropy(logits, targets).nll
    _, expected = definition(logits, targets, 0.0)
    assert nll.item() == pytest.approx(expected, rel=1e-6)


def test_everything_masked_is_zero_and_has_no_gradient(path: str) -> None:
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    lm_head = torch.randn(5, 4, requires_grad=True)
    targets = torch.full((2, 3), IGNORE_INDEX)
    sums = next_token_loss(hidden, lm_head, targets, Objective(0.1, 0.01))
    sums.objective.backward()
    assert not any(number.item() for number in sums)
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert math.isnan(mean_loss(sum_losses([sums])).nll)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e38"])
@pytest.mark.parametrize(
    "objective", [Objective(), Objective(0.1, 1e-3)], ids=["plain", "all parts"]
)
def test_masked_hidden_states_do_not_matter(path: str, objective: Objective, value: str) -> None:
    """They may even be infinite, although 0 times infinity is NaN."""
    torch.manual_seed(0)
    hidden = torch.randn(1, 7, 4)
    lm_head = torch.randn(9, 4)
    targets = torch.randint(9, (1, 7))
    targets[0, [2, 5]] = IGNORE_INDEX
    spoilt = hidden.clone()
    spoilt[0, 2] = float(value)
    spoilt[0, 5, 1] = float(value)

    def sums_and_gradients(states: Tensor) -> list[Tensor]:
        inputs = states.clone().requires_grad_()
        weights = lm_head.clone().requires_grad_()
        sums = next_token_loss(inputs, weights, targets, objective, softcap=5.0)
        sums.objective.backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        return [*sums, inputs.grad, weights.grad]

    pairs = zip(sums_and_gradients(hidden), sums_and_gradients(spoilt), strict=True)
    for expected, got in pairs:
        assert torch.equal(got, expected)
        assert got.isfinite().all()


def test_counts_are_exact_above_2_to_the_24(path: str) -> None:
    """Beyond that float32 has no odd numbers."""
    targets = torch.randint(9, (1, 5))
    hidden = torch.randn(1, 5, 4)
    lm_head = torch.randn(9, 4)
    small = next_token_loss(hidden, lm_head, targets)
    assert {number.dtype for number in small} <= {torch.float64, torch.int64}
    ones = torch.ones(1).expand(2**24 + 1)
    assert loss.sum_targets(ones, ones > 0).item() == 2**24 + 1
    large_number = torch.tensor(2.0**24, dtype=torch.float64)
    large = LossSums._make([large_number] * len(LossSums._fields))
    one = small._replace(correct=torch.tensor(1.0), num_targets=torch.tensor(1))
    total = sum_losses([large, small, one])
    assert total.num_targets.item() == 2**24 + 6
    assert total.correct.item() == 2**24 + small.correct.item() + 1
    assert mean_loss(total).num_targets == 2**24 + 6
    expected = 2.0**24 + 2 * small.nll.item()
    assert total.nll.item() == pytest.approx(expected, rel=1e-12)


def test_sums_of_what_is_not_finite_are_nan() -> None:
    logits, targets = draw(3, V=4)
    one = cross_entropy(logits, targets)
    total = sum_losses([one, one._replace(nll=torch.tensor(math.inf))])
    assert math.isnan(total.nll.item())
    assert total.num_targets.item() == 6


def test_a_sum_of_nothing_is_zero() -> None:
    assert not any(number.item() for number in sum_losses([]))


@pytest.mark.parametrize(
    "objective", [Objective(), Objective(0.1, 1e-3)], ids=["plain", "all parts"]
)
def test_tied_tokens_share_the_accuracy(path: str, objective: Objective) -> None:
    """A model that knows nothing is right one time in V, whatever comes."""
    V = 5
    lm_head = torch.zeros(V, 2)

    def accuracy(*targets: int) -> float:
        hidden = torch.ones(1, 4, 2)
        sums = next_token_loss(hidden, lm_head, torch.tensor([targets]), objective)
        return mean_loss(sums).accuracy

    assert accuracy(0, 1, 4, 0) == pytest.approx(1 / V)
    assert accuracy(0, IGNORE_INDEX, IGNORE_INDEX, 0) == pytest.approx(1 / V)
    lm_head[:2] = 1  # two tokens share the first place
    correct = 1 / 2 + 1 / 2
    assert accuracy(0, 1, 2, 4) == pytest.approx(correct / 4)


def test_sums_are_divided_once_whatever_the_split() -> None:
    """One part has one target, the other seven: the mean of their means would be wrong."""
    logits, targets = draw(8, V=5)
    whole = mean_loss(sum_losses([cross_entropy(logits, targets)]))
    first = cross_entropy(logits[:1], targets[:1])
    rest = cross_entropy(logits[1:], targets[1:])
    parts = mean_loss(sum_losses([first, rest]))
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert (parts.num_targets, parts.accuracy) == (8, whole.accuracy)


def test_all_reduce_adds_the_sums_of_all_ranks() -> None:
    logits, targets = draw(3, V=4)
    one = cross_entropy(logits, targets)

    def double(sums: Tensor) -> Tensor:
        return sums * 2

    assert sum_losses([one], double).num_targets.item() == 6


def test_the_soft_cap_is_tanh() -> None:
    logits = torch.tensor([-1e30, -2.0, 0.0, 1.0, 1e30])
    expected = 3 * torch.tanh(logits / 3)
    torch.testing.assert_close(loss.soft_cap(logits, 3.0), expected)
    assert torch.equal(loss.soft_cap(logits, 0.0), logits)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_adds_its_divergence(temperature: float) -> None:
    """objective = (1 - alpha) (nll + smoothing) + alpha T^2 KL(t_T || q_T), here in float64."""
    T = temperature
    alpha = 0.3
    logits, targets = draw(6, V=5)
    teacher, _ = draw(6, V=5, seed=1)
    targets[2] = IGNORE_INDEX
    sums = cross_entropy(logits, targets, Objective(0.1, 0.0, alpha, T), teacher)

    unmasked = targets != IGNORE_INDEX
    log_q = (logits.double() / T).log_softmax(-1)[unmasked]
    log_t = (teacher.double() / T).log_softmax(-1)[unmasked]
    kl = (log_t.exp() * (log_t - log_q)).sum().item()
    plain = cross_entropy(logits, targets, Objective(0.1))
    expected = (1 - alpha) * plain.objective.item() + alpha * T**2 * kl
    assert sums.objective.item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(sums.nll, plain.nll)
    assert sums.teacher_kl.item() == pytest.approx(kl, rel=1e-6)
