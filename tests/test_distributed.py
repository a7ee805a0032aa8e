"""The gradient, and the curve, are those of one big batch, however it is cut and whoever computes the pieces."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import errors
from bench.normalisation import compare, masked
from config.cli import load_config
from config.schema import ModelConfig
from data.batches import Batch, eval_batches
from data.documents import Split
from engine.distributed import World, find_world
from engine.signals import StopSignal
from engine.step import evaluate, train_step
from errors import UserError, run_command
from loss import IGNORE_INDEX
from model import GPT
from runs import read_metrics
from tests.conftest import TINY, without_clocks

CPU = World(torch.device("cpu"), torch.float32)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]


@dataclass(frozen=True)
class Apart(World):
    """A rank whose sums stay its own, to be added up by the test: no processes needed."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def ranks(size: int) -> list[World]:
    return [Apart(CPU.device, CPU.dtype, rank, size) for rank in range(size)]


def make_model(dropout: float = 0.0) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=dropout), 13)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def uneven_batch() -> Batch:
    """8 sequences that score 8, 8, 7, 3, 1, 0, 0 and 0 tokens: some cuts of it score nothing."""
    tokens = np.random.default_rng(0).integers(13, size=(8, 9))
    targets = tokens[:, 1:].copy()
    for row, scored in enumerate((8, 8, 7, 3, 1, 0, 0, 0)):
        targets[row, scored:] = IGNORE_INDEX
    return Batch(tokens[:, :-1], targets, np.zeros(len(tokens), dtype=np.int64))


def gradient(size: int, micro_batch_size: int, dropout: float = 0.0) -> torch.Tensor:
    """The sum of the ranks' gradients of one step, as one vector."""
    config = load_config([f"--micro_batch_size={micro_batch_size}", "--label_smoothing=0.1", "--grad_clip=0",
                          "--batch_size=8", f"--dropout={dropout}"])
    total = torch.zeros(0)
    for world in ranks(size):
        model = make_model(dropout)
        train_step(model, [], uneven_batch(), config, world, step=3)  # no optimizer: the gradients stay
        own = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                         for p in model.parameters()])
        total = own if not len(total) else total + own
    return total


@pytest.mark.parametrize(("size", "micro_batch_size"), [
    (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (3, 2), (3, 0), (8, 1), (2, 8)])
def test_any_split_gives_the_gradient_of_the_whole_batch(size: int, micro_batch_size: int) -> None:
    """1 x 8, 8 x 1, 2 ranks x 2, ranks with nothing to score, and with (2, 8) a rank without a micro-batch."""
    torch.testing.assert_close(gradient(size, micro_batch_size), gradient(1, 8), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, 2), (3, 2), (4, 1)])
def test_dropout_does_not_depend_on_who_computes(size: int, micro_batch_size: int) -> None:
    alone = gradient(1, micro_batch_size, dropout=0.5)
    torch.testing.assert_close(gradient(size, micro_batch_size, dropout=0.5), alone, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(alone, gradient(1, 8, dropout=0.5), atol=1e-3)


@pytest.mark.parametrize("size", [2, 4])
def test_evaluation_is_shared_out_without_loss(size: int) -> None:
    """Three batches of validation text: with four ranks one has none, and counts nothing."""
    tokens, model = np.random.default_rng(0).integers(13, size=10_000), make_model()
    whole = evaluate(model, eval_batches(Split(tokens), 8), CPU)
    shares = [evaluate(model, eval_batches(Split(tokens), 8), world) for world in ranks(size)]
    assert sum(share.tokens for share in shares) == whole.tokens == 9_999
    assert math.fsum(share.nll * share.tokens for share in shares if share.tokens) / 9_999 == pytest.approx(
        whole.nll, rel=1e-12)
    assert [bool(share.tokens) for share in shares] == [True] * min(size, 3) + [False] * (size - 3)


def test_the_mean_of_means_is_another_gradient() -> None:
    """What dividing each micro-batch by its own count does: nothing to even masks, a lot to uneven ones."""
    inputs, targets = np.random.default_rng(0).integers(13, size=(2, 8, 8))
    model, whole = make_model(), Batch(inputs, targets, np.zeros(8, dtype=np.int64))
    even = compare(model, masked(whole, 1.0), 1, CPU)
    uneven = compare(model, masked(whole, 0.1), 1, CPU)
    assert even["difference"] < 1e-5
    assert even["cosine"] == pytest.approx(1, abs=1e-5)
    assert uneven["difference"] > 0.2
    assert uneven["cosine"] < 0.98
    assert math.isnan(compare(model, uneven_batch(), 1, CPU)["difference"])  # a mean over no tokens


def test_ranks_stop_together() -> None:
    """A signal that another rank got counts as received here, with its name and exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = type("Told", (Apart,), {"max": lambda self, number: 143})(CPU.device, CPU.dtype, 0, 2)
        stop, alone = StopSignal(told), StopSignal(CPU)
        assert stop
        assert (stop.name, stop.exit_code) == ("SIGTERM", 143)
        assert not alone
        os.kill(os.getpid(), signal.SIGINT)
        assert alone
        assert (alone.name, alone.exit_code) == ("SIGINT", 130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_world_of_several_ranks(monkeypatch) -> None:
    assert str(World(CPU.device, CPU.dtype, 1, 2)).startswith("2 ranks of cpu with ")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for device, batch_size, said in (("cpu", 2, "3 ranks, and batch_size=2"), ("cpu", 1, "3 ranks")):
        with pytest.raises(UserError, match=said):
            find_world(device, "float32", batch_size)


def test_a_rank_tells_only_mistakes_of_its_own(monkeypatch, capsys) -> None:
    """Rank 1 first waits for torchrun to end it, once rank 0 has told the same mistake."""
    waited: list[float] = []
    monkeypatch.setattr(errors, "RANK", 1)
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    handler = signal.getsignal(signal.SIGTERM)

    def main(argv: list[str]) -> None:
        print("said again")
        raise UserError("this rank's disk is full")

    with pytest.raises(SystemExit, match="2"):
        run_command(main)
    sys.stdout.close()
    signal.signal(signal.SIGTERM, handler)
    assert waited
    assert capsys.readouterr() == ("", "error: this rank's disk is full\n")


def torchrun(clone: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*TORCHRUN, "--corpus=text.txt", *TINY, *arguments], cwd=clone, text=True, encoding="utf-8",
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_two_ranks_stopped_and_resumed_are_one_process(run, clone) -> None:
    """Metrics, checkpoints and words, by the real commands.

    With two micro-batches on two ranks everything should be equal bit for bit: of two addends the order
    does not matter. The tolerance is for matrix products that depend on where in memory a gradient lies.
    """
    knobs = ["--micro_batch_size=2", "--dropout=0.1", "--ngram=3", "--val_fraction=0.5", "--eval_tokens=0",
             "--schedule=constant", "--patience=0"]
    two, one = clone / "out/two", clone / "out/one"
    process = torchrun(clone, *knobs, "--out_dir=out/two", "--max_iters=100000")
    deadline = time.monotonic() + 120
    while len(read_metrics(two / "metrics.jsonl")) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to torchrun, which passes it on
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1  # whatever ranks exit with, torchrun exits with 1
    assert "\n  torchrun --standalone --nproc_per_node=2 train.py " in printed
    assert printed.count("Stopped by SIGTERM at step") == printed.count("2 ranks of cpu with 1 threads, float32") == 1
    stopped = json.loads((two / "last/progress.json").read_text())["step"]

    last = f"--max_iters={stopped + 3}"
    process = torchrun(clone, *knobs, "--out_dir=out/two", last, "--init_from=resume")
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    for said in (f"going on from step {stopped}", "The best validation loss is", "A sample:"):
        assert printed.count(said) == 1

    run("train.py", "--corpus=text.txt", *TINY, *knobs, "--out_dir=out/one", last)
    assert len(without_clocks(one)) == stopped + 4
    for together, alone in zip(without_clocks(two), without_clocks(one), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


def test_a_mistake_under_torchrun_is_told_once(clone) -> None:
    """One that rank 0 alone meets, when all have already joined: the others neither hang nor repeat it."""
    (clone / "out/mine").mkdir(parents=True)
    (clone / "out/mine/thesis.doc").write_text("years of work")
    process = torchrun(clone, "--out_dir=out/mine")
    printed, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert told.count("error: ") == told.count("out_dir=out/mine: exists and is not a run") == 1
    assert printed.count("to beat") == 1
    assert [path.name for path in (clone / "out/mine").iterdir()] == ["thesis.doc"]
