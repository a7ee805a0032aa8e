"""However a batch is cut, and whoever computes the pieces, gradient and curve are the same."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch.distributed import HashStore, ReduceOp  # type: ignore[attr-defined]

import config.errors
from bench.normalisation import compare, masked
from config.checks import find_problems
from config.cli import load_config
from config.errors import UserError, run_command
from config.schema import Config, OptimConfig
from data.batches import IGNORE_INDEX, Batch, TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from engine import device as device_module
from engine import ranks as ranks_module
from engine.device import Device, setup_device
from engine.evaluation import measure_loss
from engine.optim import make_optimizers
from engine.ranks import join_ranks, lost_ranks
from engine.signals import StopSignal
from engine.state import StepResult
from model import GPT
from report import words
from tests.conftest import (
    ROOT,
    TINY,
    call,
    make_model,
    other_dtype,
    read_metrics,
    trained_dtype,
    without_clocks,
)
from tests.conftest import take_step as take_one
from tests.processes import Process, start_ranks

CPU = Device(torch.device("cpu"), torch.float32)
T = TypeVar("T")


class Meeting:
    """Where ranks that are threads exchange numbers.

    Between two exchanges one thread runs at a time.
    """

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: dict[int, torch.Tensor] = {}

    def gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the tensors of all ranks."""
        self.brought[rank] = tensor.clone()
        self._wait()
        gathered = torch.stack([self.brought[rank] for rank in sorted(self.brought)])
        self._wait()
        return gathered

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@dataclass(frozen=True)
class Thread(Device):
    """A rank that is a thread of this process: no processes are needed."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def all_reduce(
        self, tensor: torch.Tensor, op: ReduceOp.RedOpType = ReduceOp.SUM
    ) -> torch.Tensor:
        gathered = self.meeting.gather(self.rank, tensor)
        if op == ReduceOp.SUM:
            return tensor.copy_(gathered.sum(dim=0))
        return tensor.copy_(gathered.amax(dim=0))


def in_ranks(size: int, function: Callable[[Device], T]) -> list[T]:
    """Return what a function returns on each of so many ranks."""
    meeting = Meeting(size)

    def work(rank: int) -> T:
        device = Thread(CPU.torch_device, CPU.dtype, rank, size, meeting=meeting)
        with meeting.turn:
            return function(device)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def batches(micro_batch_size: int, rank: int = 0, world_size: int = 1) -> TrainBatches:
    """Make batches of 8 sequences; the text's first 80 tokens and half of the others are masked."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(13, size=200)
    is_target = rng.random(200) < 0.5
    is_target[:81] = False
    text = Split(tokens, is_target)
    return TrainBatches(
        text, 8, 8, 0, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
    )


def take_step(
    device: Device, micro_batch_size: int, dropout: float = 0.0
) -> tuple[torch.Tensor, StepResult]:
    """Return the gradient of a step, as one vector, and its result."""
    get_batch = batches(micro_batch_size, device.rank, device.world_size)
    cfg, _ = load_config(["--label_smoothing=0.1", "--grad_clip=0", f"--dropout={dropout}"])
    model = make_model(dropout=dropout)
    # without an optimizer the gradients stay
    result = take_one(model, [], get_batch(24), cfg, device, step=3)
    gradients = [p.grad for p in model.parameters()]
    return torch.cat([grad.flatten() for grad in gradients if grad is not None]), result


@pytest.mark.parametrize(
    ("size", "micro_batch_size"),
    [
        pytest.param(1, 1, id="8 micro-batches"),
        (1, 3),
        (2, 0),
        (2, 1),
        (2, 2),
        (3, 2),
        (3, 0),
        pytest.param(8, 1, id="8 ranks, two without targets"),
        pytest.param(2, 8, id="a rank without a micro-batch"),
    ],
)
def test_any_split_gives_the_gradient_of_the_whole_batch(size: int, micro_batch_size: int) -> None:
    num_targets = [micro.num_targets for micro in batches(1)(24)]
    assert num_targets == [3, 2, 5, 4, 1, 4, 0, 0]
    gradient, whole = take_step(CPU, 8)
    assert whole.num_targets == 19
    for part, result in in_ranks(size, partial(take_step, micro_batch_size=micro_batch_size)):
        torch.testing.assert_close(part, gradient, atol=1e-6, rtol=1e-4)
        assert result.num_targets == 19
        assert result.nll == pytest.approx(whole.nll, rel=1e-5)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "gpus", "ranks", "expected"),
    [
        ("--batch_size=64", 0, 1, 4),
        ("--batch_size=64", 0, 3, 4),
        ("--batch_size=24", 0, 1, 6),
        ("--batch_size=8", 0, 1, 4),
        ("--batch_size=12 --block_size=64", 0, 1, 6),
        ("--batch_size=1", 0, 1, 1),
        ("--batch_size=64 --block_size=9000", 0, 1, 1),
        ("--batch_size=64 --device=cpu", 1, 1, 4),
        ("--batch_size=64", 1, 1, 64),
        ("--batch_size=64", 1, 2, 32),
        ("--batch_size=64 --micro_batch_size=33", 0, 1, 33),
    ],
)
def test_the_cut_of_a_cpus_batch_depends_on_options_only(
    options: str, gpus: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "WORLD_SIZE", ranks)
    monkeypatch.setattr(device_module, "count_devices", lambda: {"cuda": gpus, "mps": 0, "cpu": 1})
    assert device_module.micro_batch_size(load_config(options.split())[0]) == expected


SPLITS = [(2, 2), (3, 2), (4, 1)]


@pytest.mark.parametrize(("size", "micro_batch_size"), SPLITS)
def test_dropout_does_not_depend_on_who_computes(size: int, micro_batch_size: int) -> None:
    step = partial(take_step, micro_batch_size=micro_batch_size, dropout=0.5)
    alone, _ = step(CPU)
    for gradient, _ in in_ranks(size, step):
        torch.testing.assert_close(gradient, alone, atol=1e-6, rtol=1e-4)
    in_one_piece, _ = take_step(CPU, 8, dropout=0.5)
    assert not torch.allclose(alone, in_one_piece, atol=1e-3)


def test_a_step_without_targets_on_any_rank_changes_nothing() -> None:
    """The gradients are then zeros, which momentum and weight decay would follow."""
    inputs = np.zeros((4, 8), dtype=np.int64)
    without_targets = np.full_like(inputs, IGNORE_INDEX)
    batch = [Batch(inputs, without_targets)]
    cfg, _ = load_config(["--weight_decay=0.1"])

    def step(device: Device) -> tuple[bool, GPT]:
        model = make_model()
        optimizers = make_optimizers(model, cfg.optim)
        result = take_one(model, optimizers, batch, cfg, device)
        return result.is_valid, model

    before = make_model().state_dict()
    for is_valid, model in in_ranks(2, step):
        assert not is_valid
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_an_evaluation(size: int) -> None:
    """Three batches of validation text: of four ranks one has none."""
    tokens = np.random.default_rng(0).integers(13, size=5_000)
    text = EvalText(Split(tokens), 8)
    model = make_model()
    assert len(list(text.batches())) == 3
    whole = measure_loss(model, text, CPU)
    assert whole.num_targets == 4_999
    for loss in in_ranks(size, partial(measure_loss, model, text)):
        assert loss == pytest.approx(whole, rel=1e-12)


def test_the_mean_of_means_is_another_gradient() -> None:
    """Dividing each micro-batch by its own count changes a lot if masks are uneven."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(13, size=(2, 8, 8))
    model = make_model()
    whole = Batch(inputs, targets)
    even = compare(model, masked(whole, 1.0), 1, CPU)
    uneven = compare(model, masked(whole, 0.1), 1, CPU)
    assert even["difference"] < 1e-5
    assert even["cosine"] == pytest.approx(1, abs=1e-5)
    assert uneven["difference"] > 0.2
    assert uneven["cosine"] < 0.98
    targets[4:] = IGNORE_INDEX
    empty = Batch(inputs, targets)
    assert math.isnan(compare(model, empty, 1, CPU)["difference"])  # a mean over no tokens


# What ranks tell each other.


class Told(Device):
    """A rank whose neighbour got a signal."""

    def max(self, number: int) -> int:
        return signal.SIGTERM


def test_ranks_stop_together() -> None:
    """A signal that another rank got counts as received here, with its name and exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = Told(CPU.torch_device, CPU.dtype, 0, 2)
        stop = StopSignal(told, "resume")
        alone = StopSignal(CPU, "resume")
        assert stop.requested()
        assert stop.received == signal.SIGTERM
        assert not alone.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert alone.requested()
        assert alone.received == signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ranks_compare_their_weights_and_texts() -> None:
    def start_alike(device: Device) -> None:
        device.check_same_start(make_model(), "text")

    def start_with_other_weights(device: Device) -> None:
        device.check_same_start(make_model(seed=device.rank // 2), "text")

    def start_with_another_text(device: Device) -> None:
        device.check_same_start(make_model(), f"text {device.rank // 2}")

    in_ranks(3, start_alike)
    with pytest.raises(UserError, match="the ranks start with different weights or texts"):
        in_ranks(3, start_with_other_weights)
    with pytest.raises(UserError, match="the ranks start with different weights or texts"):
        in_ranks(3, start_with_another_text)


@pytest.mark.parametrize(
    "error",
    [
        "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242",
        "NCCL communicator was aborted on rank 1.",
        "Timed out waiting 7200000ms for recv operation to complete",
    ],
)
def test_a_lost_connection_means_that_a_process_is_gone(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", 2)
    with pytest.raises(UserError, match="another process of this training is gone"), lost_ranks():
        raise RuntimeError(error)


@pytest.mark.parametrize(
    "error",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB.",
        "NCCL error: unhandled cuda error ... Last error: Cuda failure 2 'out of memory'",
        "The size of tensor a (3) must match the size of tensor b (4)",
    ],
)
def test_another_error_does_not(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", 2)
    with pytest.raises(RuntimeError, match=re.escape(error)), lost_ranks():
        raise RuntimeError(error)


# Ranks as processes.


def test_several_ranks_are_refused_where_they_have_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(Device(CPU.torch_device, CPU.dtype, 1, 2)).startswith("2 ranks of cpu with ")
    monkeypatch.setattr("config.checks.WORLD_SIZE", 3)
    assert find_problems(Config(optim=OptimConfig(batch_size=2))) == [
        "batch_size=2 with 3 ranks: each needs a sequence of its own"
    ]
    assert not find_problems(Config(optim=OptimConfig(batch_size=3)))
    monkeypatch.setattr("engine.device.WORLD_SIZE", 3)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    with pytest.raises(UserError, match="several ranks need --device=cpu, or --device=cuda"):
        setup_device("mps", "float32")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(device_module, "count_devices", lambda: {"cuda": 2, "mps": 0, "cpu": 1})
    with pytest.raises(
        UserError, match="finds 2 cuda on this machine; start at most 2 ranks: --nproc_per_node=2"
    ):
        setup_device("auto", "float32")


def test_ranks_without_work_are_told() -> None:
    """The cut of a batch does not depend on their number, so they may outnumber micro-batches."""
    get_batch = batches(3)
    assert get_batch.num_micro_batches == len(get_batch(0)) == 3
    assert not list(words.warn_of_idle_ranks(3, 3))
    (warning,) = words.warn_of_idle_ranks(get_batch.num_micro_batches, 4)
    assert "3 micro-batches, so 1 of the 4 ranks have nothing to do" in warning


def test_how_to_resume_on_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, with two ranks each."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    stray = words.resume_command(Path("out/it"), CPU)
    assert stray == "python train.py out/it --init_from=resume"
    four = Device(CPU.torch_device, CPU.dtype, 0, 4)
    assert words.resume_command(Path("out/it"), four) == (
        "(on each machine, with the options of before) torchrun --nproc_per_node=2 train.py out/it "
        "--init_from=resume"
    )


def run_code(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in the repository."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)


@pytest.mark.parametrize("stray", ["RANK=1", "RANK=1 WORLD_SIZE=1", "WORLD_SIZE=4"])
def test_a_stray_variable_silences_nothing(stray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tools set RANK or WORLD_SIZE too."""
    code = "from config.errors import *; run_command(lambda argv: print(RANK, WORLD_SIZE))"
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for variable in stray.split():
        monkeypatch.setenv(*variable.split("="))
    done = run_code(code, dict(os.environ))
    assert (done.stdout, done.stderr) == ("0 1\n", "")


def test_a_rank_tells_only_mistakes_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Rank 1 first waits for torchrun to end it, because rank 0 tells the same mistake."""
    waited: list[float] = []
    monkeypatch.setattr(config.errors, "RANK", 1)
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no SIGTERM")
def test_two_ranks_stopped_and_resumed_equal_one_process(clone: Path) -> None:
    """Metrics, checkpoints and words.

    With two micro-batches on two ranks everything should be equal bit for bit: of two addends the
    order does not matter. The tolerance is for matrix products that depend on where in memory a
    gradient lies.
    """
    options = [
        "--corpus=text.txt",
        *TINY,
        "--device=cpu",
        "--micro_batch_size=2",
        "--dropout=0.1",
        "--val_fraction=0.5",
        "--eval_tokens=0",
        "--eval_interval=16",
        "--schedule=constant",
        "--patience=0",
    ]
    two = clone / "out/two"
    one = clone / "out/one"
    ranks = start_ranks(clone, *options, "--out_dir=out/two", "--max_iters=100000")
    ranks[0].wait_until(lambda: len(read_metrics(two)) > 3)
    ranks[1].send_signal(signal.SIGTERM)
    (code, printed), (_, nothing) = (rank.wait() for rank in ranks)
    step = int(read_metrics(two)[-1]["step"])
    assert code == 143
    assert (
        f"Stopped by SIGTERM at step {step:,}. To resume:\n"
        "  torchrun --standalone --nproc_per_node=2 train.py out/two --init_from=resume\n"
    ) in printed
    assert len(re.findall(r"2 ranks of cpu with \d+ threads?, ", printed)) == 1
    assert nothing == ""

    last = f"--max_iters={step + 3}"
    ranks = start_ranks(clone, *options, "--out_dir=out/two", last, "--init_from=resume")
    (code, printed), (_, nothing) = (rank.wait() for rank in ranks)
    assert code == 0, printed
    for said in (f"resuming out/two at step {step:,}", "The best model, of step", "A sample:"):
        assert printed.count(said) == 1
    assert nothing == ""

    Process(clone, *options, "--out_dir=out/one", last).succeed()
    assert len(without_clocks(one)) == step + 5
    for together, alone in zip(without_clocks(two), without_clocks(one), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)
    assert sorted(os.listdir(two)) == sorted(os.listdir(one))


# of a rank for torchrun, which would end it
NO_WAIT = "import time; time.sleep = lambda seconds: None"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--eval_interval=3", "eval_interval is 2 on rank 0 and 3 on rank 2"),
        ("--max_iters=7", "max_iters is 6 on rank 0 and 7 on rank 2"),
        ("--mask=the", 'mask is "" on rank 0 and "the" on rank 2'),
        (
            f"--dtype={other_dtype()}",
            f'dtype is "{trained_dtype()}" on rank 0 and "{other_dtype()}" on rank 2',
        ),
    ],
)
def test_ranks_with_other_options_end_with_one_clear_line(
    clone: Path, option: str, says: str
) -> None:
    """All end before a run is made: with other intervals they would wait for ever."""
    ranks = start_ranks(
        clone,
        "--corpus=text.txt",
        *TINY,
        "--device=cpu",
        "--out_dir=out/unequal",
        size=3,
        last=(option,),
        prelude=NO_WAIT,
    )
    for rank in ranks:
        code, printed = rank.wait()
        assert (code, printed.count("\n")) == (2, 1), printed
        assert (
            printed == f"error: the ranks differ: {says}; start all of them with the same options\n"
        )
    assert not (clone / "out/unequal").exists()


RANKS = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "4242",
    "LOCAL_RANK": "0",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", "x"),
        ("RANK", ""),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("WORLD_SIZE", "x"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "9" * 5000),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
        ("MASTER_PORT", "http"),
        ("MASTER_PORT", "65536"),
        ("LOCAL_RANK", "2"),
        ("LOCAL_RANK", "one"),
        ("LOCAL_WORLD_SIZE", "0"),
    ],
)
def test_odd_variables_of_ranks_are_one_clear_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.errors.read_ranks(RANKS) == (0, 2)
    assert config.errors.read_ranks(
        RANKS | {"WORLD_SIZE": "1", name: value} | {"WORLD_SIZE": "1"}
    ) == (0, 1)
    for variable, text in (RANKS | {name: value}).items():
        monkeypatch.setenv(variable, text)
    done = call("sample.py", "out/nowhere", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert name in done.stderr
    assert "start several ranks with torchrun" in done.stderr


def test_a_module_can_be_imported_with_odd_variables() -> None:
    """A notebook does so; a command then tells the mistake."""
    code = "from config.errors import *; print(RANK, WORLD_SIZE, flush=True); run_command(print)"
    done = run_code(code, os.environ | RANKS | {"RANK": "x"})
    assert (done.returncode, done.stdout) == (2, "0 1\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: the environment variable RANK=x should be a number from 0 to 1; "
    )


def test_a_report_that_cannot_be_written_hides_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "nowhere/error.json"))
    done = call("sample.py", "out/nowhere", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: out/nowhere: not a run")


def test_ranks_that_cannot_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has the port."""
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _, port = taken.getsockname()
        for variable, text in RANKS.items():
            monkeypatch.setenv(variable, text)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(
            UserError, match=r"^rank 0 could not meet the others at MASTER_ADDR:MASTER_PORT = 127"
        ):
            join_ranks("gloo", {})


def test_two_processes_of_one_rank_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has been here already."""
    store = HashStore()
    store.add("attempt 0/processes of rank 1", 1)
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", 2)
    monkeypatch.setattr(ranks_module, "RANK", 1)
    monkeypatch.setattr(ranks_module, "rendezvous", lambda url: iter([(store, 1, 2)]))
    with pytest.raises(
        UserError, match=r"^another process has RANK=1 too; start several ranks with torchrun"
    ):
        join_ranks("gloo", {})


def test_torchrun_repeats_a_mistake_in_its_report(clone: Path) -> None:
    """The ranks meet it when they have joined. None of them hangs, and rank 0 alone tells it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "train.py",
            "--corpus=nowhere.txt",
            "--device=cpu",
        ],
        cwd=clone,
        text=True,
        capture_output=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    mistake = "error: corpus 'nowhere.txt': no such file"
    assert done.returncode == 1
    told, repeated = [line for line in done.stderr.splitlines() if mistake in line]
    assert told.startswith("error: ")
    assert not repeated.startswith("error: ")
    report = done.stderr.partition("Root Cause")[2]
    assert "rank      : 0" in report
    assert mistake in report
    assert done.stdout == ""
