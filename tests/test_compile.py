"""torch.compile: where it works the losses are the same; where it fails, a warning says why."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import chunked_loss
from config.cli import load_config
from data.batches import TrainBatches
from data.documents import Split
from engine.device import Device
from engine.objective import TrainingObjective
from engine.optim import make_optimizers
from engine.step import compile_model
from loss import Objective
from model import GPT

CPU = Device(torch.device("cpu"), torch.float32)
V = 50
HEADER = Path(sysconfig.get_path("include"), "Python.h")
HAS_COMPILER = shutil.which("g++") is not None and HEADER.exists()
from tests.conftest import take_step


def train(compiled: bool, *argv: str) -> list[float]:
    """Take some steps; returns their losses in nats per token."""
    cfg, _ = load_config(["--n_layer=1", "--n_embd=16", "--block_size=16", "--batch_size=4", *argv])
    tokens = np.random.default_rng(0).integers(V, size=4000) // 2
    get_batch = TrainBatches(Split(tokens), 16, 4, seed=0)
    torch.manual_seed(0)
    model = GPT(cfg.model, V, cfg.tables)
    optimizers = make_optimizers(model, cfg.optim)
    forward: torch.nn.Module = model
    if compiled:
        forward = compile_model(model, get_batch(0), TrainingObjective(Objective(), []), CPU)
        assert all(p.grad is None for p in model.parameters())
    losses = []
    for step in range(5):
        result = take_step(forward, optimizers, get_batch(4 * step), cfg, CPU, step=step)
        losses.append(result.nll)
    return losses


def test_a_failing_compiler_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it fails at once, or when the model is called."""

    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nand a long story")

    plain = train(compiled=False)
    for compiler in (fail, lambda model: fail):
        monkeypatch.setattr(torch, "compile", compiler)
        assert train(compiled=True) == plain
        assert capsys.readouterr().out == (
            "warning: torch.compile failed, training continues without it: no C++ compiler\n"
        )
    monkeypatch.setattr(torch, "compile", lambda model: model)  # one that works
    assert train(compiled=True) == plain
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs g++ and Python's headers")
@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_a_compiled_model_has_the_same_losses(
    chunked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no more processes
    if chunked:
        monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 0)
        monkeypatch.setattr(chunked_loss, "MIN_CHUNK", 16)
    argv = ["--z_loss=0.01", "--max_ngram=3", "--table_rows=64"]
    losses = train(True, *argv)
    assert capsys.readouterr().out == ""
    assert losses == pytest.approx(train(False, *argv), abs=1e-4)
