"""The hand-written gradients are the gradients, and grouped Muon is torch's Muon."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from engine.optimizers import AdamW, Muon, orthogonalise
from kernels import relu2, rms_norm, rotate
from tests.conftest import ROOT


def angles(T: int, width: int, heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    theta = torch.rand(T, width // 2, dtype=dtype)
    return torch.cat([theta, theta], 1).cos().repeat(1, heads), torch.cat([-theta, theta], 1).sin().repeat(1, heads)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = angles(3, 4, 2, torch.float64)
    for function in (relu2, rms_norm, lambda x: rotate(x, cos, sin, 4)):
        assert torch.autograd.gradcheck(function, (x,))
        grad = torch.randn_like(x)
        given = grad.clone()
        torch.autograd.grad(function(x), x, given)
        assert torch.equal(given, grad)  # others may want it too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_formulas(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12).to(dtype)
    near = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(relu2(x), F.relu(x) ** 2)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (12,)), atol=near, rtol=near)
    cos, sin = angles(5, 6, 2, torch.float32)
    for head in range(2):  # as complex numbers
        here = slice(6 * head, 6 * head + 6)
        a, b = x[..., here].float().chunk(2, -1)
        turned = torch.complex(a, b) * torch.complex(cos[:, :3], sin[:, 3:6])
        ours = rotate(x, cos.to(dtype), sin.to(dtype), 6)[..., here].float()
        torch.testing.assert_close(ours, torch.cat([turned.real, turned.imag], -1), atol=near, rtol=near)


def test_nothing_is_not_divided_by() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_grouped_muon_is_muon() -> None:
    shapes = [(8, 4), (4, 8), (8, 4), (6, 6), (4, 8), (24, 8)]
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for step in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = None if step == 1 and p.shape == (6, 6) else torch.randn(p.shape)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-3, rtol=1e-3)  # bfloat16 inside


def test_adamw_is_adamw() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in [(3, 4), (5,)]]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = AdamW(ours, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    b = torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_training_does_not_import_the_compiler() -> None:
    """It takes as long as torch does."""
    code = """import sys
import numpy as np
from config.cli import load_config
from data.batches import TrainBatches
from data.documents import Split
from data.ngrams import count_ngrams
from engine.distributed import find_world
from engine.optim import make_optimizers
from engine.step import train_step
from model import GPT
config = load_config(["--n_layer=1", "--n_embd=16", "--block_size=8", "--batch_size=2", "--ngram=3"])
tokens = np.arange(300) % 7
model = GPT(config.model, 7, count_ngrams(tokens, 3, 7, parts=True))
train_step(model, make_optimizers(model, config.optim), TrainBatches(Split(tokens), 8, 2, 0)(0), config,
           find_world("cpu", "float32"), 0)
sys.exit("torch._dynamo" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_orthogonalised_matrices_are_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 5), (2, 5, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.4
        assert values.max() < 1.4
