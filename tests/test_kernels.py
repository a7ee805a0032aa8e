"""The hand-written operations and Muon are PyTorch's own, and cost what they should."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.device import Device
from engine.optim import Muon, orthogonalise
from kernels import dropout, relu2, rms_norm
from tests.conftest import ROOT


def torch_relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def torch_rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (8,), eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["relu2", "rms_norm"])
def test_values_and_gradients_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = {"relu2": relu2, "rms_norm": rms_norm}[name]
    theirs = {"relu2": torch_relu2, "rms_norm": torch_rms_norm}[name]
    near = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.04}[dtype]
    x = torch.randn(2, 3, 8).to(dtype)
    grad = torch.randn(2, 3, 8).to(dtype)
    grad_before = grad.clone()
    exact = x.double()  # the same numbers
    x.requires_grad_()
    exact.requires_grad_()
    y = ours(x)
    expected = theirs(exact)
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype
    assert torch.equal(grad, grad_before)  # others may need the gradient that came in
    assert x.grad is not None
    assert exact.grad is not None
    for got, wanted in ((y, expected), (x.grad, exact.grad)):
        torch.testing.assert_close(got.double(), wanted, atol=near, rtol=near)


@pytest.mark.parametrize("function", [relu2, rms_norm], ids=["relu2", "rms_norm"])
def test_gradients_are_those_of_finite_differences(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), atol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_rms_norm_of_small_numbers_is_finite(size: float) -> None:
    """In small numbers eps counts."""
    torch.manual_seed(0)
    x = (size * torch.randn(2, 8)).requires_grad_()
    exact = x.detach().clone().requires_grad_()
    y = rms_norm(x)
    expected = torch_rms_norm(exact)
    (y * torch.arange(8)).sum().backward()
    (expected * torch.arange(8)).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, exact.grad, atol=1e-3, rtol=1e-4)
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.2, 0.75])
def test_dropout_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # an odd number of elements, and not contiguous
    x = torch.ones(1001, 101).to(dtype).T.requires_grad_()
    y = dropout(x, p)
    kept = y != 0
    assert y.dtype == dtype
    share = kept.double().mean().item()
    standard_error = (p * (1 - p) / x.numel()) ** 0.5
    assert share == pytest.approx(1 - p, abs=5 * standard_error)
    neighbours = kept.double().flatten().unfold(0, 5, 5).T
    correlation = torch.corrcoef(neighbours) - torch.eye(5)
    assert correlation.abs().max() < 0.03
    torch.testing.assert_close(y, kept.to(dtype) / (1 - p))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), y)
    assert not torch.equal(dropout(x, p), y)
    assert dropout(x, p, training=False) is x
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_muon_is_muon(dtype: torch.dtype) -> None:
    tall = (8, 4)
    wide = (4, 8)
    square = (6, 6)
    shapes = [tall, wide, tall, square, wide, (24, 8)]
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    device = Device(torch.device("cpu"), dtype)
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1, device=device)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)  # computes in bfloat16
    for step in range(3):
        a.zero_grad()
        b.zero_grad()
        for p, q in zip(ours, theirs, strict=True):
            if step == 1 and p.shape == square:
                continue  # a parameter without a gradient
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-3)


def test_orthogonalised_matrices_are_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 5), (2, 5, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_neither_predicting_nor_training_imports_the_compiler() -> None:
    """Its import takes as long as that of torch."""
    code = """import sys
import numpy as np
import torch
import evaluate, sample
from config.schema import Config, ModelConfig
from data.batches import Batch
from data.eval_text import EvalText
from data.documents import Split
from engine.device import setup_device
from engine.objective import TrainingObjective
from engine.state import TrainState
from loss import Objective
from engine.generate import generate
from engine.scoring import predict
from engine.optim import make_optimizers
from model import GPT
from train import train_step
model = GPT(ModelConfig(n_layer=1, n_embd=16, block_size=8), 7)
device = setup_device("cpu", "float32")
list(generate(model, [1, 2], device, max_new_tokens=3))
list(predict(model, EvalText(Split(np.arange(3)), 8).batches(), device))
cfg = Config()
optimizers = make_optimizers(model, cfg.optim)
batch = [Batch(np.ones((1, 8), int), np.ones((1, 8), int))]
objective = TrainingObjective(Objective(), [])
state = TrainState()
result = train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)
assert result.is_valid
for optimizer in optimizers:
    optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
