"""Starts train.py in processes of its own, without the seconds that importing torch takes.

The processes are forked from a server that has imported torch, but nothing of this repository.
"""

import atexit
import contextlib
import itertools
import json
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

CONTEXT: Any = multiprocessing.get_context("spawn")
if hasattr(os, "fork"):
    CONTEXT = multiprocessing.get_context("forkserver")
    CONTEXT.set_forkserver_preload(
        [
            "tests.processes",
            "pytest",
            "torch",
            "torch._dynamo",
            "torch.distributed",
            "safetensors.torch",
            "multiprocessing.pool",
            "numpy.ctypeslib",
            "pydantic.main",
            "pydantic.type_adapter",
            "tqdm",
            "regex",
            "tomli_w",
            "filelock",
            "matplotlib.figure",
            "matplotlib.backends.backend_agg",
            "PIL.GifImagePlugin",
            "PIL.JpegImagePlugin",
            "bokeh",
        ]
    )
Words = Sequence[str]
Variables = dict[str, str]
LIMIT = 180  # seconds that a process may take, compiling on a slow machine
PORTS = itertools.count()


class Process:
    """Runs `python train.py ARGUMENTS` in a folder.

    `prelude` is code to run first; `env` are variables.
    """

    def __init__(
        self, folder: Path, *arguments: str, script: str = "train.py", prelude: str = "", **env: str
    ) -> None:
        descriptor, self.log = tempfile.mkstemp(dir=folder, suffix=".log")
        os.close(descriptor)
        env["OMP_NUM_THREADS"] = "1"
        details = (self.log, [script, *arguments], prelude, env)
        self.process = CONTEXT.Process(target=_run, daemon=True, args=details)
        self.process.start()

    def wait(self) -> tuple[int, str]:
        """Its exit code, or minus the number of the signal that ended it; and what it printed."""
        self.process.join(LIMIT)
        code = self.process.exitcode
        self.process.kill()
        assert code is not None, f"it hangs: {self.printed()}"
        return code, self.printed()

    def succeed(self) -> None:
        code, printed = self.wait()
        assert code == 0, printed

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.process.is_alive(), self.printed()
            assert time.monotonic() < deadline, f"it hangs: {self.printed()}"
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def printed(self) -> str:
        return Path(self.log).read_text(encoding="utf-8")


def free_port() -> str:
    """A port that nothing takes before a rank listens on it, which is seconds later.

    Systems give connections ports from 32768 on (Linux) or 49152 on; this one is below them, and
    differs from that of tests beside this one.
    """
    for number in PORTS:
        port = 10_000 + (os.getpid() * 50 + number) % 20_000
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError


def start_ranks(
    folder: Path, *arguments: str, size: int = 2, last: Words = (), prelude: str = ""
) -> list[Process]:
    """Start a process for each rank, as torchrun does; `last` are options of the last rank only."""
    port = free_port()
    ranks = []
    for rank in range(size):
        words = list(arguments)
        if rank == size - 1:
            words += last
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1",
        }
        ranks.append(Process(folder, *words, prelude=prelude, **variables))
    return ranks


def _run(log: str, command: Words, prelude: str, env: Variables) -> None:
    folder = str(Path(log).parent)
    sys.dont_write_bytecode = False  # the next process need not compile what this one did
    vars(os)["fsync"] = lambda descriptor: None  # nobody kills the machine
    os.environ.update(env)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = list(command)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        exec(prelude, {})
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


Tensors = dict[str, np.ndarray]


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read the tensors of a checkpoint, and the state of the training without its time."""
    with safe_open(path, framework="np") as file:
        state = json.loads(file.metadata()["state"])
        del state["seconds"]
        return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """Assert that two are equal bit for bit, but for the time that their trainings took."""
    tensors, state = read_checkpoint(one)
    expected, expected_state = read_checkpoint(other)
    assert state == expected_state
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert tensor.tobytes() == expected[name].tobytes(), name
