"""The chunked loss against float64 arithmetic written out here, over shapes, masks and extremes."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import chunked_loss
from chunked_loss import next_token_loss
from loss import IGNORE_INDEX, LossSums, Objective, cross_entropy, soft_cap

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 70))  # N, C, V


def by_hand(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    objective: Objective,
    softcap: float,
    scale: float,
) -> tuple[float, float, float, Tensor, Tensor]:
    """Sums, and the gradients of `scale * objective`, by the formulas, in float64, token by token."""
    hidden, lm_head = hidden.detach().double(), lm_head.detach().double()
    d_hidden, d_lm_head = torch.zeros_like(hidden), torch.zeros_like(lm_head)
    V, e = len(lm_head), objective.label_smoothing
    nll = smoothing = z_loss = 0.0
    for i, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            continue
        raw = lm_head @ hidden[i]
        z = softcap * torch.tanh(raw / softcap) if softcap else raw
        lse = z.max() + torch.log(torch.exp(z - z.max()).sum())
        log_q = z - lse
        p = torch.full_like(z, e / V)
        p[y] += 1 - e
        nll -= float(log_q[y])
        smoothing += float(-(p * log_q).sum() + log_q[y])
        z_loss += objective.z_loss * float(lse) ** 2
        g = torch.exp(log_q) * (1 + 2 * objective.z_loss * lse) - p  # q - p, and the z-loss's slope
        if softcap:
            g = g * (1 - torch.tanh(raw / softcap) ** 2)
        d_hidden[i] = scale * (lm_head.T @ g)
        d_lm_head += scale * torch.outer(g, hidden[i])
    return nll, smoothing, z_loss, d_hidden, d_lm_head


def in_chunks(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    objective: Objective,
    softcap: float,
    chunk: int,
) -> LossSums:
    with mock.patch.multiple(
        chunked_loss, MAX_LOGITS=0, CHUNKS=10**9, MIN_CHUNK=chunk, CACHED_ROWS=chunk
    ):
        return next_token_loss(hidden[None], lm_head, targets[None], objective, softcap)


def relative_error(got: Tensor | None, expected: Tensor) -> float:
    assert got is not None
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    SHAPES,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.sampled_from([0.0, 1e-3]),
    st.sampled_from([0.0, 5.0, 30.0]),
    st.sampled_from([1e-3, 1.0, 128.0]),
    st.sampled_from([1.0, 10.0, 1e3]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 50),
)
def test_sums_and_gradients(
    shape, seed, smoothing, z_loss, softcap, scale, spread, masked, chunk
) -> None:
    N, C, V = shape
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, C, generator=generator).mul(spread).requires_grad_()
    lm_head = torch.randn(V, C, generator=generator).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < masked] = IGNORE_INDEX
    objective = Objective(smoothing, z_loss)
    nll, smooth, z, d_hidden, d_lm_head = by_hand(
        hidden, lm_head, targets, objective, softcap, scale
    )
    sums = in_chunks(hidden, lm_head, targets, objective, softcap, chunk)
    (scale * sums.objective).backward()
    for got, expected in ((sums.nll, nll), (sums.smoothing, smooth), (sums.z_loss, z)):
        assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-3 * max(1.0, spread * 1e-2))
    assert sums.num_targets.item() == int((targets != IGNORE_INDEX).sum())
    assert hidden.grad is not None
    assert lm_head.grad is not None
    # float32 knows a logit to 1e-7 of its size, so q to that many times the logits' size; the
    # gradients are sums of (q - p) times weights, or times hidden states, of these sizes:
    logits = float((hidden @ lm_head.T).detach().abs().max())
    slack = 1e-6 * scale * (1 + logits) * (1 + 2 * z_loss * logits) * N
    assert float((hidden.grad.double() - d_hidden).abs().max()) <= slack * float(
        lm_head.detach().abs().max()
    )
    assert float((lm_head.grad.double() - d_lm_head).abs().max()) <= slack * float(
        hidden.detach().abs().max()
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_gradient_at_a_real_size(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    hidden, lm_head = (
        torch.randn(300, 32, requires_grad=True),
        (torch.randn(2000, 32) * 0.2).requires_grad_(),
    )
    targets = torch.randint(2000, (300,))
    *_, d_hidden, d_lm_head = by_hand(hidden, lm_head, targets, Objective(0.1), 0.0, 1 / 300)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        (in_chunks(hidden, lm_head, targets, Objective(0.1), 0.0, 64).objective / 300).backward()
    assert relative_error(hidden.grad, d_hidden) < tolerance
    assert relative_error(lm_head.grad, d_lm_head) < tolerance


@pytest.mark.parametrize(
    ("objective", "softcap"), [(Objective(), 0.0), (Objective(0.1, 1e-3), 8.0)]
)
def test_both_paths_give_the_same_numbers(objective: Objective, softcap: float) -> None:
    torch.manual_seed(0)
    hidden, lm_head = torch.randn(70, 8), torch.randn(90, 8)
    targets = torch.randint(90, (70,))
    plain = cross_entropy(soft_cap(hidden @ lm_head.T, softcap), targets, objective)
    chunked = in_chunks(hidden, lm_head, targets, objective, softcap, 16)
    for name, got, expected in zip(LossSums._fields, chunked, plain, strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=1e-5), name


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    hidden, lm_head, targets = torch.randn(6, 4), torch.randn(5, 4), torch.randint(5, (6,))
    for needs in ((True, False), (False, True)):
        states, weights = (
            hidden.clone().requires_grad_(needs[0]),
            lm_head.clone().requires_grad_(needs[1]),
        )
        in_chunks(states, weights, targets, Objective(), 0.0, 2).objective.backward()
        assert (states.grad is not None, weights.grad is not None) == needs


def test_a_second_backward_is_an_error() -> None:
    """The first one scales the gradients in place."""
    sums = in_chunks(
        torch.randn(6, 4, requires_grad=True),
        torch.randn(5, 4),
        torch.randint(5, (6,)),
        Objective(),
        0.0,
        2,
    )
    sums.objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        sums.objective.backward()


@pytest.mark.parametrize("target", [-1, -99, 9])
@pytest.mark.parametrize("threshold", [0, 2**60], ids=["chunked", "plain"])
def test_a_target_outside_the_vocabulary_is_an_error(
    target: int, threshold: int, monkeypatch
) -> None:
    hidden, lm_head, targets = (
        torch.randn(1, 3, 4),
        torch.randn(9, 4),
        torch.tensor([[0, target, IGNORE_INDEX]]),
    )
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", threshold)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        next_token_loss(hidden, lm_head, targets)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    lm_head = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    sums = in_chunks(hidden, lm_head, torch.tensor([1, 1]), Objective(0.1), 0.0, 1)
    sums.objective.backward()
    assert sums.nll.item() == pytest.approx(2e4)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


class Sizes(TorchDispatchMode):
    """The largest tensor that is made; torch tells of every one."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [
            t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)
        ]
        self.largest = max([self.largest, *sizes])
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    """A chunk's rows, not N."""
    hidden, lm_head = (
        torch.randn(640, 4, requires_grad=True),
        torch.randn(500, 4, requires_grad=True),
    )
    with Sizes() as sizes:
        in_chunks(
            hidden, lm_head, torch.randint(500, (640,)), Objective(), 0.0, 10
        ).objective.backward()
    assert sizes.largest == 10 * 500
