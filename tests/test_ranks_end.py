"""Ranks stop together, and one of them says why, and how to resume."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import config.errors
from config.errors import UserError, run_command
from engine import ranks as ranks_module
from engine.device import Device
from engine.ranks import lost_ranks
from engine.signals import StopSignal
from report import words
from tests.conftest import CPU, call


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


def test_a_report_that_cannot_be_written_hides_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "nowhere/error.json"))
    done = call("sample.py", "out/nowhere", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: out/nowhere: not a run")


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
