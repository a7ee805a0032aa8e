"""loss.py against the definition, computed another way, in float64."""

import math

import pytest
import torch

from loss import IGNORE_INDEX, Objective, cross_entropy, divide_once, next_token_loss


def reference(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> tuple[float, float]:
    """(objective, nll), summed over tokens one by one: -sum p log q with p the smoothed target."""
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
    objective, nll = reference(logits, targets, smoothing)
    assert sums.objective.item() == pytest.approx(objective, rel=1e-6)
    assert sums.nll.item() == pytest.approx(nll, rel=1e-6)
    assert sums.tokens.item() == 11
    scored = targets != IGNORE_INDEX
    assert sums.correct.item() == int((logits.argmax(-1) == targets)[scored].sum())


def test_gradient_is_q_minus_p_and_zero_where_masked() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6, dtype=torch.float32, requires_grad=True), torch.tensor([1, 5, IGNORE_INDEX, 0])
    cross_entropy(logits, targets, Objective(0.3)).objective.backward()
    q = torch.exp(logits.detach().double())
    q /= q.sum(dim=-1, keepdim=True)
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


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, targets = torch.randn(2000, 65).bfloat16(), torch.randint(65, (2000,))
    nll = cross_entropy(logits, targets).nll
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(reference(logits, targets, 0.0)[1], rel=1e-6)


def test_everything_masked_is_zero_and_has_no_gradient() -> None:
    hidden, head = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    sums = next_token_loss(hidden, head, torch.full((2, 3), IGNORE_INDEX), Objective(0.1))
    sums.objective.backward()
    assert sums.tokens.item() == sums.nll.item() == sums.objective.item() == sums.correct.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_sums_divide_once_whatever_the_split() -> None:
    """One part scores one token, the other seven: the mean of their means would be wrong."""
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5), torch.randint(5, (8,))
    whole = divide_once([cross_entropy(logits, targets)])
    parts = divide_once([cross_entropy(logits[:1], targets[:1]), cross_entropy(logits[1:], targets[1:])])
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert (parts.tokens, parts.accuracy) == (8, whole.accuracy)
    assert math.isnan(divide_once([cross_entropy(logits[:1], torch.tensor([IGNORE_INDEX]))]).nll)
