"""No run is lost: killed at any instant, stopped by a signal, one of two ranks dead, it goes on bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs import read_metrics
from tests.conftest import TINY, without_clocks

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
KNOBS = ["--corpus=text.txt", *TINY, "--dropout=0.2", "--micro_batch_size=2", "--val_fraction=0.9", "--eval_interval=7",
         "--eval_tokens=100", "--checkpoint_interval=1", "--schedule=constant", "--patience=0", "--init_from=auto"]
# Kills itself as it is about to open, rename, make or remove the n-th file or folder under out/.
SUICIDAL = """
import os, runpy, signal, sys
left, sys.argv = int(sys.argv[1]), sys.argv[2:]
def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and "out/" in str(arguments[0]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
runpy.run_path("train.py", run_name="__main__")
"""


def start(clone: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], cwd=clone, text=True, encoding="utf-8",
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill(process: subprocess.Popen[str]) -> None:
    """With kill -9, and all that it has started."""
    process.send_signal(signal.SIGSTOP)  # so that it starts no more
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_for(run: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(run / "metrics.jsonl")) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish_and_compare(clone: Path, out: str, script: list[str]) -> None:
    """Take a killed run three steps further; it must be, bit for bit, one that was never killed."""
    killed, whole = clone / out, clone / f"{out}-whole"
    steps = 3 + max((int(record["step"]) for record in read_metrics(killed / "metrics.jsonl")), default=0)
    for path in (killed, whole):
        process = start(clone, *script, *KNOBS, f"--out_dir={path}", f"--max_iters={steps}")
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    for file in ("last/model.safetensors", "last/optimizer.safetensors", "best/model.safetensors"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert [record["step"] for record in read_metrics(killed / "metrics.jsonl")] == list(range(steps + 1))
    assert without_clocks(killed) == without_clocks(whole)
    names = {entry.name for entry in killed.iterdir()}
    assert {entry.name for entry in whole.iterdir()} == names - {"last.new", "best.new", "best.old"}
    for path in (killed, whole):
        shutil.rmtree(path)


def kill_at_random_moments(clone: Path, out: str, script: list[str], kills: int, begin: float, end: float) -> None:
    """Each process gets a random time between `begin` and `end` seconds; each finds whatever the last one left."""
    moments, reached = random.Random(out), []
    for _ in range(kills):
        process = start(clone, *script, *KNOBS, f"--out_dir={clone / out}", "--max_iters=1000000")
        time.sleep(moments.uniform(begin, end))
        assert process.poll() is None, process.communicate()
        kill(process)
        reached.append(len(read_metrics(clone / out / "metrics.jsonl")))
    assert len(set(reached)) > kills / 2, reached  # most of them hit training, not starting up
    finish_and_compare(clone, out, script)


@pytest.mark.slow
def test_thirty_kills_at_random_moments(clone: Path, trained) -> None:
    seconds = time_to_start(clone)
    kill_at_random_moments(clone, "out/killed", ["train.py"], 30, 0.5 * seconds, 1.5 * seconds)


@pytest.mark.slow
def test_kills_of_both_ranks_at_random_moments(clone: Path, trained) -> None:
    seconds = time_to_start(clone, *TORCHRUN)
    kill_at_random_moments(clone, "out/killed-two", [*TORCHRUN, "train.py"], 8, 0.8 * seconds, 1.4 * seconds)


def time_to_start(clone: Path, *launcher: str) -> float:
    began = time.monotonic()
    process = start(clone, *launcher, "train.py", *KNOBS, "--out_dir=out/timed", "--max_iters=1000000")
    wait_for(clone / "out/timed", 2, process)
    seconds = time.monotonic() - began
    kill(process)
    shutil.rmtree(clone / "out/timed")
    return seconds


def kill_at_changes(clone: Path, out: str, changes: Iterator[int]) -> None:
    for change in changes:
        process = start(clone, "-c", SUICIDAL, str(change), "train.py", *KNOBS, f"--out_dir={out}",
                        "--max_iters=1000000")
        _, told = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, told
    finish_and_compare(clone, out, ["train.py"])


def test_kills_while_something_is_written(clone: Path, trained) -> None:
    """While the run is made, and while a checkpoint is."""
    kill_at_changes(clone, "out/killed-few", iter([6, 11, 50]))


@pytest.mark.slow
def test_kills_at_each_change_of_what_is_on_disk(clone: Path, trained) -> None:
    """40 of them: one after the other, of making a run and of going on with it."""
    kill_at_changes(clone, "out/killed-many", iter(range(1, 81, 2)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigusr1_saves_and_goes_on(clone: Path, trained, ranks) -> None:
    """Of two ranks, only the second is asked."""
    out = clone / f"out/saved-{ranks}"
    process = start(clone, *(TORCHRUN if ranks > 1 else []), "train.py", "--corpus=text.txt", *TINY, "--patience=0",
                    "--max_iters=100000", "--checkpoint_interval=100000", "--eval_interval=100000", f"--out_dir={out}")
    wait_for(out, 5, process)
    os.kill(process.pid if ranks == 1 else children(process.pid)[1], signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while json.loads((out / "last/progress.json").read_text())["step"] == 0:
        assert time.monotonic() < deadline
        with contextlib.suppress(FileNotFoundError):
            time.sleep(0.05)
    saved = json.loads((out / "last/progress.json").read_text())["step"]
    wait_for(out, saved + 5, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert f"SIGUSR1: saved a checkpoint of step {saved:,} in {out}/last; going on" in printed
    assert printed.count("SIGUSR1") == 1
    assert process.returncode == (130 if ranks == 1 else 1)
    assert "Stopped by SIGINT at step" in printed
    shutil.rmtree(out)


def test_a_second_sigint_stops_at_once(clone: Path, trained) -> None:
    """In the middle of a step that takes a minute: what is on disk stays whole."""
    out = clone / "out/twice"
    slow = ("import sys, time, runpy, engine.step; step = engine.step.train_step; "
            "engine.step.train_step = lambda *a: (step(*a), a[5] == 4 and time.sleep(60))[0]; "
            "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')")
    process = start(clone, "-c", slow, "train.py", "--corpus=text.txt", *TINY, f"--out_dir={out}")
    wait_for(out, 5, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the step is not done
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - began < 5
    again = start(clone, "train.py", "--corpus=text.txt", *TINY, f"--out_dir={out}", "--init_from=resume")
    printed, told = again.communicate(timeout=60)
    assert again.returncode == 0, told
    assert "going on from step 4" in printed
    assert "which trained in" in printed  # and was cut off
    shutil.rmtree(out)


def children(parent: int) -> list[int]:
    """The processes that a process has started, in order."""
    return sorted(pid for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")) if parent_of(pid) == parent)


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return -1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_job_with_a_message(clone: Path, trained, rank) -> None:
    out = clone / f"out/dead-{rank}"
    process = start(clone, *TORCHRUN, "train.py", *KNOBS, f"--out_dir={out}", "--max_iters=1000000")
    wait_for(out, 5, process)
    began = time.monotonic()
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in told
    if rank == 1:
        assert told.count("error: another process of this training is gone") == 1
        assert "--init_from=resume" in told
    assert 'train.py", line' not in told  # torchrun shows where in itself it noticed, and nothing of ours
    shutil.rmtree(out)


def test_torchrun_restarts_a_dead_job_which_goes_on_by_itself(clone: Path, trained) -> None:
    """Without --init_from: it knows its own run by the job that made it, and moves another's aside."""
    knobs = [knob for knob in KNOBS if not knob.startswith("--init_from")]
    for out, deaths in (("out/restarted", 1), ("out/undisturbed", 0)):
        process = start(clone, *TORCHRUN, "--max-restarts=2", "train.py", *knobs, f"--out_dir={out}", "--max_iters=60")
        if deaths:
            wait_for(clone / out, 10, process)
            os.kill(children(process.pid)[1], signal.SIGKILL)
        printed, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert printed.count("going on from step") == deaths
    one, other = (clone / out for out in ("out/restarted", "out/undisturbed"))
    assert (one / "last/model.safetensors").read_bytes() == (other / "last/model.safetensors").read_bytes()
    assert without_clocks(one) == without_clocks(other)
    assert not (clone / "out/restarted.1").exists()
    history = [json.loads(line) for line in (one / "history.jsonl").read_text().splitlines()]
    assert [line["step"] > 0 for line in history] == [False, True]
    assert history[0]["job"] == history[1]["job"]
