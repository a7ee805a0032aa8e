"""Ranks that cannot work together end at the start, with one line that says why."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

import config.errors
from config.checks import find_problems
from config.errors import UserError
from config.schema import Config, OptimConfig
from engine import device as device_module
from engine import ranks as ranks_module
from engine.device import Device, setup_device
from engine.ranks import join_ranks
from model import GPT
from tests.conftest import CPU, ROOT, TINY, call, in_ranks, make_model, other_dtype, trained_dtype
from tests.one_run import train
from tests.processes import read_checkpoint, start_ranks


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


def run_code(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in the repository."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)


def test_a_module_can_be_imported_with_odd_variables() -> None:
    """A notebook does so; a command then tells the mistake."""
    code = "from config.errors import *; print(RANK, WORLD_SIZE, flush=True); run_command(print)"
    done = run_code(code, os.environ | RANKS | {"RANK": "x"})
    assert (done.returncode, done.stdout) == (2, "0 1\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: the environment variable RANK=x should be a number from 0 to 1; "
    )


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


@pytest.mark.usefixtures("numbers_only")
def test_ranks_compare_weights_that_they_loaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[torch.Tensor] = []

    def check(device: Device, model: GPT, sha256: str) -> None:
        compared.append(model.wte.weight.detach().clone())

    monkeypatch.setattr(Device, "check_same_start", check)
    train("--max_iters=2")
    train("--max_iters=3", "--init_from=resume")
    # what the second started from
    tensors, _ = read_checkpoint(data_dir / "out/run/previous.safetensors")
    assert len(compared) == 2
    assert np.array_equal(compared[1].numpy(), tensors["model.wte.weight"])
    assert not torch.equal(*compared)
