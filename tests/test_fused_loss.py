"""The fused loss against float64 arithmetic written out here, over shapes, masks and extremes."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loss
from loss import IGNORE_INDEX, LossSums, Objective, cross_entropy, next_token_loss

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 70))  # N, C, V


def reference(hidden, head, targets, objective: Objective, scale: float):
    """Sums, and the gradients of `scale * objective`, by the formulas, in float64, token by token."""
    hidden, head = hidden.detach().double(), head.detach().double()
    d_hidden, d_head = torch.zeros_like(hidden), torch.zeros_like(head)
    V, e, c = len(head), objective.label_smoothing, objective.softcap
    nll = smoothing = z_loss = 0.0
    for i, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            continue
        raw = head @ hidden[i]
        z = c * torch.tanh(raw / c) if c else raw
        lse = z.max() + torch.log(torch.exp(z - z.max()).sum())
        log_q = z - lse
        p = torch.full_like(z, e / V)
        p[y] += 1 - e
        nll -= float(log_q[y])
        smoothing += float(-(p * log_q).sum() + log_q[y])
        z_loss += objective.z_loss * float(lse) ** 2
        g = torch.exp(log_q) * (1 + 2 * objective.z_loss * lse) - p  # q - p, and the z-loss's slope
        if c:
            g = g * (1 - torch.tanh(raw / c) ** 2)
        d_hidden[i] = scale * (head.T @ g)
        d_head += scale * torch.outer(g, hidden[i])
    return nll, smoothing, z_loss, d_hidden, d_head


def fused(hidden, head, targets, objective: Objective, chunk: int) -> LossSums:
    with mock.patch.multiple(loss, FUSED_LOGITS=0, CHUNKS=10**9, CHUNK_TOKENS=chunk, HEAD_ROWS=chunk):
        return next_token_loss(hidden[None], head, targets[None], objective)


def relative_error(got: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert got is not None
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@settings(deadline=None, max_examples=150)
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([0.0, 1e-3]),
       st.sampled_from([0.0, 5.0, 30.0]), st.sampled_from([1e-3, 1.0, 128.0]), st.sampled_from([1.0, 10.0, 1e3]),
       st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 50))
def test_sums_and_gradients(shape, seed, smoothing, z_loss, softcap, scale, spread, masked, chunk) -> None:
    N, C, V = shape
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator).mul(spread).requires_grad_()
    head = torch.randn(V, C, generator=generator).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < masked] = IGNORE_INDEX
    objective = Objective(smoothing, z_loss, softcap)
    nll, smooth, z, d_hidden, d_head = reference(hidden, head, targets, objective, scale)
    sums = fused(hidden, head, targets, objective, chunk)
    (scale * sums.objective).backward()
    for got, expected in ((sums.nll, nll), (sums.smoothing, smooth), (sums.z_loss, z)):
        assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-3 * max(1.0, spread * 1e-2))
    assert sums.tokens.item() == int((targets != IGNORE_INDEX).sum())
    assert hidden.grad is not None
    assert head.grad is not None
    # float32 knows a logit to 1e-7 of its size, so q to that many times the logits' size; the gradients
    # are sums of (q - p) times weights, or times hidden states, of these sizes:
    logits = float((hidden @ head.T).detach().abs().max())
    slack = 1e-6 * scale * (1 + logits) * (1 + 2 * z_loss * logits) * N
    assert float((hidden.grad.double() - d_hidden).abs().max()) <= slack * float(head.detach().abs().max())
    assert float((head.grad.double() - d_head).abs().max()) <= slack * float(hidden.detach().abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_accuracy_of_the_gradient_at_a_real_size(dtype, tolerance) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(300, 64, requires_grad=True), (torch.randn(5000, 64) * 0.2).requires_grad_()
    targets = torch.randint(5000, (300,))
    *_, d_hidden, d_head = reference(hidden, head, targets, Objective(0.1), 1 / 300)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        (fused(hidden, head, targets, Objective(0.1), 64).objective / 300).backward()
    assert relative_error(hidden.grad, d_hidden) < tolerance
    assert relative_error(head.grad, d_head) < tolerance


@pytest.mark.parametrize("objective", [Objective(), Objective(0.1, 1e-3, 8.0)])
def test_both_paths_give_the_same_numbers(objective) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(70, 8), torch.randn(90, 8)
    targets = torch.randint(90, (70,))
    plain = cross_entropy(hidden @ head.T, targets, objective)
    for name, value in vars(fused(hidden, head, targets, objective, 16)).items():
        assert value.item() == pytest.approx(getattr(plain, name).item(), rel=1e-5), name


def test_ties_go_to_the_first_token_on_both_paths() -> None:
    hidden, head, targets = torch.zeros(4, 2), torch.zeros(5, 2), torch.tensor([0, 1, 2, 0])
    assert fused(hidden, head, targets, Objective(), 3).correct.item() == 2
    assert cross_entropy(hidden @ head.T, targets).correct.item() == 2


@pytest.mark.parametrize("target", [-1, -99, 9])
def test_a_target_outside_the_vocabulary_is_an_error_on_both_paths(target, monkeypatch) -> None:
    hidden, head, targets = torch.randn(1, 3, 4), torch.randn(9, 4), torch.tensor([[0, target, IGNORE_INDEX]])
    for threshold in (0, 2**60):
        monkeypatch.setattr(loss, "FUSED_LOGITS", threshold)
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            next_token_loss(hidden, head, targets)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    head = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    sums = fused(hidden, head, torch.tensor([1, 1]), Objective(0.1), 1)
    sums.objective.backward()
    assert sums.nll.item() == pytest.approx(2e4)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_nothing_larger_than_a_chunk_of_logits_is_kept() -> None:
    """The largest tensor that is made has a chunk's rows, not N; torch tells of every one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    hidden, head = torch.randn(640, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    with Watch():
        fused(hidden, head, torch.randint(500, (640,)), Objective(0.1), 10).objective.backward()
    assert max(made) == 10 * 500
