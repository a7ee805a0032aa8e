"""A sweep trains all its runs, whatever happens to one, and goes on where it stopped."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from config.files import lock_of, locked
from config.recipe import to_toml
from config.terminal import Terminal
from report.status import DIVERGED, FAILED, FINISHED, INTERRUPTED, TRAINING, WAITING
from sweeps.grid import PlannedRun, read_sweep
from sweeps.jobs import ROOT, STOPPED, Jobs, choose_jobs, explain_exit, threads
from sweeps.table import count_statuses
from sweeps.view import View
from tests.conftest import TINY, call, make_text, without_clocks
from tests.screen import Screen, printing_to_a_terminal

FOLDER = Path("out/sweep")
BASE = ["--corpus=text.txt", f"--out_dir={FOLDER}", "--watchers=", *TINY]

# Stands for train.py: makes the files of a run, and ends as its learning rate says.
FAKE = """
import json, os, sys, time
from pathlib import Path
path, rate, config = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
path.mkdir(exist_ok=True)
if rate == "0.3":
    print("error: the disk is full")
    sys.exit(2)
for name in ("corpus.json", "tokenizer.json"):
    (path / name).touch()  # damaged: sweep.html cannot be written
(path / "config.toml").write_text(config)
time.sleep(0.1)
final = {"step": 6, "best_step": 6, "best_val_nll": float(rate), "best_val_bits_per_byte": 2.0}
if rate == "0.4":
    final["diverged"] = 1
    (path / "verdict.txt").write_text("Best.\\nIt diverged: the loss is 9. best.safetensors ...")
if rate == "0.5":
    os.kill(os.getpid(), 9)
line = json.dumps(final | {"seconds": 1.0})
(path / "metrics.jsonl").write_text(line + "\\n")
sys.exit(rate == "0.4")
"""


def start_fake(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
    log = run.path.parent / "logs" / f"{run.path.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    rate = str(run.cfg.optim.learning_rate)
    command = [sys.executable, "-c", FAKE, str(run.path), rate, to_toml(run.cfg)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output)


@pytest.fixture
def fakes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.jobs.start", start_fake)


def make_jobs(rates: str, at_once: int = 2) -> tuple[Jobs, list[PlannedRun]]:
    sweep, _ = read_sweep([*BASE, f"--learning_rate={rates}"])
    return Jobs(sweep.runs, at_once), sweep.runs


def read_table() -> dict[str, Any]:
    return json.loads((FOLDER / "sweep.json").read_bytes())


@pytest.mark.usefixtures("fakes")
def test_a_run_that_fails_or_diverges_is_a_row_with_its_reason() -> None:
    rates = "--learning_rate=0.1,0.2,0.3,0.4,0.5"
    done = call("sweep.py", *BASE, rates, "--jobs=2", check=False)
    assert done.returncode == 1
    printed = done.stdout
    statuses = {run["options"]["learning_rate"]: run["status"] for run in read_table()["runs"]}
    assert statuses == {
        "0.1": FINISHED,
        "0.2": FINISHED,
        "0.3": FAILED,
        "0.4": DIVERGED,
        "0.5": FAILED,
    }
    assert "learning_rate=0.3: failed (error: the disk is full)" in printed
    assert "1 s, diverged (It diverged: the loss is 9)" in printed
    assert "with 0.4, 1 of 1 runs diverged: the loss counts of the best model" in printed
    assert "learning_rate=0.5: failed (killed, maybe because memory ran out" in printed
    rows = [line.split()[0] for line in printed.splitlines() if re.match(r"0\.\d ", line)]
    assert "could not be written" not in printed  # the page leaves damaged runs out
    assert rows[:5] == ["0.1", "0.2", "0.4", "0.3", "0.5"]  # by loss; those without one last


@pytest.mark.usefixtures("fakes")
def test_numbers_that_are_lost_are_dashes() -> None:
    """Also where all that is left of a run's metrics is its loss."""
    call("sweep.py", *BASE, "--learning_rate=0.1,0.2")
    damaged = FOLDER / "learning_rate=0.1/metrics.jsonl"
    damaged.write_text('{"step": 6, "best_step": 6, "best_val_nll": 0.1}\n')
    printed = call("sweep.py", *BASE, "--learning_rate=0.1,0.2").stdout
    assert "learning_rate=0.1: 0.1000 nats, finished\n" in printed
    assert re.search(r"^0\.1 +0\.1000 +1 +- +-  finished$", printed, re.M)


@pytest.mark.usefixtures("fakes")
def test_what_is_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    call("sweep.py", *BASE, "--learning_rate=0.1,0.2,0.3", check=False)
    started = []

    def start(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
        started.append(run.path.name)
        return start_fake(run, at_once)

    monkeypatch.setattr("sweeps.jobs.start", start)
    call("sweep.py", *BASE, "--learning_rate=0.1,0.2,0.3,0.6", check=False)
    assert started == ["learning_rate=0.3", "learning_rate=0.6"]  # a failed one is tried again


@pytest.mark.usefixtures("fakes")
def test_a_run_that_another_process_trains_is_waited_for() -> None:
    jobs, runs = make_jobs("0.1,0.2")
    elsewhere = runs[0].path
    start_fake(runs[0], 1).wait()
    metrics = elsewhere / "metrics.jsonl"
    final = metrics.read_bytes()
    metrics.write_bytes(b"")
    jobs, _ = make_jobs("0.1,0.2")
    seen = []

    def show() -> None:
        seen.append([jobs.status_of(run) for run in runs])
        if seen[-1][1] == FINISHED:
            metrics.write_bytes(final)

    with locked(lock_of(elsewhere.resolve()), "taken"):
        jobs.train(show)
    assert seen[0] == [TRAINING, TRAINING]
    assert seen[-1] == [FINISHED, FINISHED]


@pytest.mark.usefixtures("fakes")
def test_a_run_that_another_process_prepares_is_waited_for() -> None:
    """It has no directory yet, which takes long where its text is large."""
    jobs, runs = make_jobs("0.1,0.2")
    prepared = runs[0].path
    seen = []

    def show() -> None:
        seen.append([run.path in jobs.processes for run in runs])
        if jobs.status_of(runs[1]) == FINISHED:
            other.close()

    with ExitStack() as other:
        other.enter_context(locked(lock_of(prepared.resolve()), "taken"))
        jobs.train(show)
    assert seen[0] == [False, True]
    assert [jobs.status_of(run) for run in runs] == [FINISHED, FINISHED]


@pytest.mark.usefixtures("fakes")
def test_no_more_runs_train_at_once_than_asked_for() -> None:
    jobs, runs = make_jobs("0.1,0.2,0.6,0.7,0.8")
    most = 0

    def show() -> None:
        nonlocal most
        most = max(most, len(jobs.processes))

    jobs.train(show)
    assert most == 2
    assert choose_jobs(0, runs[:1]) == 1
    assert choose_jobs(4, runs) == 4
    assert choose_jobs(9, runs) == 5
    assert threads(1) == {}
    assert int(threads(10_000)["OMP_NUM_THREADS"]) == 1


def start_endless(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


SIGNALS = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_stops_all_runs_and_says_how_to_go_on(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """So does a closed terminal, and a second signal does not hinder the first."""
    number = getattr(signal, name)
    # pytest may be started with nohup, where it would be ignored
    before = signal.signal(number, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(number, before))
    processes = []

    def start(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
        processes.append(start_endless(run, at_once))
        os.kill(os.getpid(), number)
        return processes[-1]

    def show_end(view: View, content: dict[str, Any]) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("sweeps.jobs.start", start)
    monkeypatch.setattr(View, "show_end", show_end)
    done = call("sweep.py", *BASE, "--learning_rate=0.1,0.2", "--jobs=1", check=False)
    assert done.returncode == 128 + number
    assert "Stopped. To go on:\n  python sweep.py --corpus=text.txt" in done.stdout
    assert [run["status"] for run in read_table()["runs"]] == [WAITING, WAITING]
    assert not read_table()["is_live"]
    assert len(processes) == 1
    assert processes[0].poll() in (-signal.SIGINT, -signal.SIGTERM, 1)


@pytest.mark.usefixtures("data_dir")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_signal_that_is_ignored_stays_so() -> None:
    """As with nohup."""
    jobs, _ = make_jobs("0.1,0.2")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with jobs.signals():
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert not jobs.stopped_by


@pytest.mark.usefixtures("data_dir")
def test_a_run_that_somebody_else_stops_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(run: PlannedRun, at_once: int) -> "subprocess.Popen[bytes]":
        process = start_endless(run, at_once)
        process.terminate()
        return process

    monkeypatch.setattr("sweeps.jobs.start", start)
    monkeypatch.setattr("sweeps.jobs.STOPPED", (*STOPPED, 1))  # on Windows
    done = call("sweep.py", *BASE, "--learning_rate=0.1,0.2", check=False)
    assert done.returncode == 1
    assert "Stopped. To go on:\n  python sweep.py --corpus=text.txt" in done.stdout
    assert [run["status"] for run in read_table()["runs"]] == [WAITING, WAITING]


def test_why_a_run_failed_is_said_without_what_it_printed_too(tmp_path: Path) -> None:
    assert explain_exit(2, tmp_path / "removed.txt") == "exit code 2"


def test_warnings_stay_above_the_table_and_few_rows_hold_it() -> None:
    content: dict[str, Any] = {"runs": [], "unit": "", "loss_on": "validation text"}
    group = {"name": "a", "options": {"mask": "a"}, "status": WAITING, "mean": None, "seeds": 0}
    content |= {"groups": [group] * 9, "progress": "0 of 0 runs"}
    with printing_to_a_terminal(LINES="5") as tty:
        sys.stdout = Terminal(tty)
        view = View()
        for _ in range(3):
            view.show(content)
        view.warn("warning: the disk is full")
        for _ in range(3):
            view.show(content)
    screen = Screen()
    screen.write(tty.getvalue())
    rows = screen.text.splitlines()
    assert rows[0] == "warning: the disk is full"
    assert len(rows) == 5
    assert rows[-1].endswith("| 0 of 0 runs")


def test_the_table_has_a_column_for_each_option(fakes: None) -> None:
    """Names of many options are cut, and never their values."""
    printed = call("sweep.py", *BASE, "--learning_rate=0.1,0.2", "--warmup_iters=0,1").stdout
    assert "\nlearning_rate  warmup_iters            loss seeds  bits/byte  seconds" in printed
    assert re.search(r"^0\.1            0 +0\.1000     1      2\.000        1  fin", printed, re.M)
    many = ["--learning_rate=0.1,0.2", "--warmup_iters=0,1", "--min_lr_ratio=0.1,0.2"]
    printed = call("sweep.py", *BASE, *many).stdout
    assert re.search(r"^lear…ate  warm…ers  min_…tio +loss seeds", printed, re.M)
    assert re.search(r"^0\.1 +0 +0\.1 +0\.1000 ", printed, re.M)


def test_statuses_of_a_group_are_counted() -> None:
    assert count_statuses([FINISHED, INTERRUPTED, FINISHED]) == "1 interrupted, 2 finished"


def sweep_command(*arguments: str, **changes: str) -> list[str]:
    """Return the command of a real sweep, with other values of some options of BASE."""
    options = dict(word.split("=", 1) for word in BASE)
    options |= {f"--{name}": value for name, value in changes.items()}
    words = [f"{name}={value}" for name, value in options.items()]
    return [sys.executable, str(ROOT / "sweep.py"), *words, *arguments]


RATES = ["--learning_rate=0.003,0.03", "--seed=1,2"]
LONGER = "20"  # steps: so that some kills come while a model trains


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real sweep, one run at a time, that nothing disturbed."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "text.txt").write_text(make_text(), encoding="utf-8")
    done = subprocess.run(
        sweep_command(*RATES, "--jobs=1", max_iters=LONGER),
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "printed.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def test_a_sweep_says_which_is_better_and_whether_that_is_noise(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs, which every other command takes."""
    monkeypatch.chdir(swept)
    printed = Path("printed.txt").read_text(encoding="utf-8")
    table = read_table()
    better, worse = table["groups"]
    assert better["name"] == "0.03"
    assert better["mean"] < worse["mean"]
    assert better["seeds"] == 2
    assert f"{better['mean']:.4f} ± {better['deviation']:.4f}" in printed
    assert re.search(
        r"^(with )?0\.03 (the loss is lower than with|and) 0\.003 ", printed, re.MULTILINE
    )
    first = FOLDER / "learning_rate=0.003,seed=1"
    assert "seeds" not in call("sample.py", str(first), "--max_new_tokens=5").stdout
    assert len(call("curves.py", str(FOLDER)).stdout.splitlines()) == 3  # two means, a picture
    _, _, *arguments = sweep_command(*RATES, "--jobs=1", max_iters=LONGER)
    again = call("sweep.py", *arguments).stdout
    assert again.splitlines()[-8:] == printed.splitlines()[-8:]


@pytest.mark.slow
def test_losses_do_not_depend_on_how_many_run_at_once(swept: Path, data_dir: Path) -> None:
    subprocess.run(
        sweep_command(*RATES, "--jobs=2", max_iters=LONGER),
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
    )
    metrics = []
    for folder in (swept, data_dir):
        runs = sorted((folder / FOLDER).glob("*/metrics.jsonl"))
        metrics.append([without_clocks(run.parent) for run in runs])
    assert len(metrics[0]) == 4
    assert metrics[0] == metrics[1]


def without_seconds(content: dict[str, Any]) -> dict[str, Any]:
    for part in (*content["runs"], *content["groups"]):
        del part["seconds"]
    for run in content["runs"]:
        del run["command_seconds"]
    return content


@pytest.fixture
def children() -> Iterator[list[int]]:
    """The processes that sweeps left behind."""
    found: list[int] = []
    yield found
    for process in found:
        kill(process)


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True)
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds child processes as Linux does")
def test_a_sweep_killed_at_ten_random_instants_ends_with_the_same_table(
    swept: Path, data_dir: Path, children: list[int]
) -> None:
    """kill -9 of the sweep, and every other time of its runs too."""
    killed = sweep_command(*RATES, max_iters=LONGER)
    rng = random.Random(0)
    for number in range(10):
        process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(1, 5))
        trainings = children_of(process.pid)
        children += trainings
        process.kill()
        process.wait()
        if number % 2 == 0:
            for training in trainings:
                kill(training)
    subprocess.run(killed, check=True, capture_output=True)
    table = without_seconds(read_table())
    expected = without_seconds(json.loads((swept / FOLDER / "sweep.json").read_bytes()))
    for name in ("runs", "groups", "differences", "sentences"):
        assert table[name] == expected[name]
