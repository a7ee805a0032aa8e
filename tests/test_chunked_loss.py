"""The chunked loss against float64 arithmetic written out here, over shapes, masks and extremes."""

from typing import Any
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

N_TOKENS = st.integers(1, 40)
WIDTHS = st.integers(1, 12)
VOCABULARIES = st.integers(1, 70)


def by_hand(
    hidden: Tensor,
    lm_head: Tensor,
    targets: Tensor,
    objective: Objective,
    softcap: float,
    scale: float,
) -> tuple[float, float, float, Tensor, Tensor]:
    """Return sums, and the gradients of `scale * objective`, by the formulas.

    All is computed in float64, token by token.
    """
    hidden = hidden.detach().double()
    lm_head = lm_head.detach().double()
    d_hidden = torch.zeros_like(hidden)
    d_lm_head = torch.zeros_like(lm_head)
    V = len(lm_head)
    e = objective.label_smoothing
    nll = smoothing = z_loss = 0.0
    for i, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            continue
        raw = lm_head @ hidden[i]
        z = raw
        if softcap:
            z = softcap * torch.tanh(raw / softcap)
        highest = z.max()
        lse = highest + torch.log(torch.exp(z - highest).sum())
        log_q = z - lse
        p = torch.full_like(z, e / V)
        p[y] += 1 - e
        nll -= float(log_q[y])
        smoothing += float(-(p * log_q).sum() + log_q[y])
        z_loss += objective.z_loss * float(lse) ** 2
        z_loss_slope = 2 * objective.z_loss * lse
        g = torch.exp(log_q) * (1 + z_loss_slope) - p
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
    sizes: dict[str, Any] = {
        "MAX_LOGITS": 0,
        "CHUNKS": 10**9,
        "MIN_CHUNK": chunk,
        "CACHED_ROWS": chunk,
    }
    with mock.patch.multiple(chunked_loss, **sizes):
        return next_token_loss(hidden[None], lm_head, targets[None], objective, softcap)


def relative_error(got: Tensor | None, expected: Tensor) -> float:
    assert got is not None
    error = got.double() - expected
    return float(error.norm() / expected.norm().clamp(min=1e-30))


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    st.tuples(N_TOKENS, WIDTHS, VOCABULARIES),
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
    tolerance = 1e-3 * max(1.0, spread * 1e-2)
    got = torch.stack([sums.nll, sums.smoothing, sums.z_loss])
    expected = pytest.approx([nll, smooth, z], rel=1e-4, abs=tolerance)
    assert got.tolist() == expected
    assert sums.num_targets.item() == int((targets != IGNORE_INDEX).sum())
    assert hidden.grad is not None
    assert lm_head.grad is not None
    # float32 knows a logit to 1e-7 of its size, so q to that many times the logits' size; the
    # gradients are sums of (q - p) times weights, or times hidden states, of these sizes:
    logits = largest(hidden @ lm_head.T)
    slack = 1e-6 * scale * (1 + logits) * (1 + 2 * z_loss * logits) * N
    assert largest(hidden.grad.double() - d_hidden) <= slack * largest(lm_head)
    assert largest(lm_head.grad.double() - d_lm_head) <= slack * largest(hidden)


TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_the_gradient_at_a_real_size(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 32, requires_grad=True)
    lm_head = (torch.randn(2000, 32) * 0.2).requires_grad_()
    targets = torch.randint(2000, (300,))
    smoothed = Objective(0.1)
    *_, d_hidden, d_lm_head = by_hand(hidden, lm_head, targets, smoothed, 0.0, 1 / 300)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        sums = in_chunks(hidden, lm_head, targets, smoothed, 0.0, 64)
        (sums.objective / 300).backward()
    assert relative_error(hidden.grad, d_hidden) < TOLERANCES[dtype]
    assert relative_error(lm_head.grad, d_lm_head) < TOLERANCES[dtype]


PLAIN = Objective()
BOTH = [(PLAIN, 0.0), (Objective(0.1, 1e-3), 8.0)]


@pytest.mark.parametrize(("objective", "softcap"), BOTH)
def test_both_paths_give_the_same_numbers(objective: Objective, softcap: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(70, 8)
    lm_head = torch.randn(90, 8)
    targets = torch.randint(90, (70,))
    plain = cross_entropy(soft_cap(hidden @ lm_head.T, softcap), targets, objective)
    chunked = in_chunks(hidden, lm_head, targets, objective, softcap, 16)
    for name, got, expected in zip(LossSums._fields, chunked, plain, strict=True):
        assert got.item() == pytest.approx(expected.item(), rel=1e-5), name


@pytest.mark.parametrize("of_hidden", [True, False])
def test_only_the_gradients_that_are_needed_are_computed(of_hidden: bool) -> None:
    hidden = torch.randn(6, 4, requires_grad=of_hidden)
    lm_head = torch.randn(5, 4, requires_grad=not of_hidden)
    targets = torch.randint(5, (6,))
    in_chunks(hidden, lm_head, targets, PLAIN, 0.0, 2).objective.backward()
    assert (hidden.grad is not None) == of_hidden
    assert (lm_head.grad is None) == of_hidden


def test_a_second_backward_is_an_error() -> None:
    """The first one scales the gradients in place."""
    hidden = torch.randn(6, 4, requires_grad=True)
    lm_head = torch.randn(5, 4)
    targets = torch.randint(5, (6,))
    sums = in_chunks(hidden, lm_head, targets, PLAIN, 0.0, 2)
    sums.objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        sums.objective.backward()


@pytest.mark.parametrize("target", [-1, -99, 9])
@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "plain"])
def test_a_target_outside_the_vocabulary_is_an_error(
    target: int, is_chunked: bool, monkeypatch
) -> None:
    hidden = torch.randn(1, 3, 4)
    lm_head = torch.randn(9, 4)
    targets = torch.tensor([[0, target, IGNORE_INDEX]])
    if is_chunked:
        monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 0)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        next_token_loss(hidden, lm_head, targets)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    lm_head = torch.tensor([1.0, -1.0, 0.0])[:, None].requires_grad_()
    targets = torch.tensor([1, 1])
    sums = in_chunks(hidden, lm_head, targets, Objective(0.1), 0.0, 1)
    sums.objective.backward()
    assert sums.nll.item() == pytest.approx(2e4)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that is made; torch tells of every one."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple) else (out,)
        for tensor in made:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    """Its size is that of a chunk's rows, not N's."""
    hidden = torch.randn(640, 4, requires_grad=True)
    lm_head = torch.randn(500, 4, requires_grad=True)
    targets = torch.randint(500, (640,))
    with Sizes() as sizes:
        in_chunks(hidden, lm_head, targets, PLAIN, 0.0, 10).objective.backward()
    assert sizes.largest == 10 * 500
