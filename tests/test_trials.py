"""A few steps without the files of a run: the learning rate, and the speed of a training."""

import json
import math
from pathlib import Path

import pytest

from config.cli import load_config
from config.files import lock_of, locked
from config.schema import Config, TablesConfig
from sweeps.rates import RateTrial, describe_rates, find_best_trial, list_rates, with_rate
from tests.conftest import TINY, call, read_metrics

FOLDER = Path("out/sweep")
BASE = ["--corpus=text.txt", f"--out_dir={FOLDER}", "--watchers=", *TINY]

UNLIMITED = [word for word in BASE if not word.startswith(("--max_iters", "--n_head"))]


def error(*arguments: str) -> str:
    done = call("sweep.py", *BASE, *arguments, check=False)
    assert done.returncode == 2
    return done.stderr


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.rates.LEAST_STEPS", 5)


@pytest.mark.usefixtures("data_dir", "few_steps")
def test_eight_rates_take_the_same_batches() -> None:
    """The seed decides all else, so the same command finds the same losses."""
    printed = call("sweep.py", *BASE, "--find_lr").stdout
    rows = [line.split() for line in printed.splitlines()[3:11]]
    assert [float(row[0]) for row in rows] == list_rates()
    for row in rows:
        assert float(row[1]) / float(row[0]) == pytest.approx(3, rel=1e-2)  # Muon's
    losses = [float(row[2]) for row in rows]
    best = losses.index(min(losses))
    assert rows[best][3:5] == ["the", "best"]
    rate = float(rows[best][0])
    assert f"--learning_rate={rate / 2:.2g},{rate:.2g},{2 * rate:.2g} --seed=1,2,3" in printed
    command = next(line for line in printed.splitlines() if line.startswith("  python sweep.py "))
    assert "--corpus=text.txt" in command  # and what else its user chose
    assert command.count("--learning_rate=") == 1
    assert "tables" not in printed
    assert (FOLDER / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    assert call("sweep.py", *BASE, "--find_lr").stdout == printed
    assert [path.name for path in FOLDER.iterdir()] == ["find_lr.png"]  # it leaves no run


@pytest.mark.usefixtures("data_dir", "few_steps")
def test_the_rate_of_tables_stays_and_that_is_said() -> None:
    tables = ["--max_ngram=3", "--table_rows=100", "--table_learning_rate=0.05"]
    printed = call("sweep.py", *BASE, "--find_lr", *tables).stdout
    assert "The tables of n-grams keep their rate: table_learning_rate=0.05.\n" in printed
    assert "--table_learning_rate=0.05" in printed.split("  python sweep.py ")[1]
    cfg, _ = load_config(["--corpus=text.txt", *tables])
    assert with_rate(cfg, 0.1, 20).tables == cfg.tables


@pytest.mark.usefixtures("data_dir")
def test_a_rate_is_looked_for_with_one_recipe() -> None:
    assert "find_lr looks at one recipe: name one value" in error("--find_lr", "--seed=1,2")
    assert "learning_rate=0: the ratio" in error("--find_lr", "--learning_rate=0")


def test_training_breaks_where_its_loss_rises_far_above_where_it_began() -> None:
    falls = RateTrial(0.01, None, [4.0, 4.1, 3.0], 3.0)
    recovers = RateTrial(0.1, None, [4.0, 9.0, 2.0], 2.0)
    ends = RateTrial(1.0, None, [4.0, math.nan, math.nan], math.nan)
    assert [trial.breaks for trial in (falls, recovers, ends)] == [False, True, True]
    assert find_best_trial([falls, recovers, ends]) is falls
    tables = TablesConfig()
    said = describe_rates([falls, recovers, ends], [], tables)
    assert said[3].endswith("3.0000  the best")
    assert said[4].endswith("breaks: the training loss rose to 9")
    assert (
        "Training breaks at each of these rates" in describe_rates([recovers, ends], [], tables)[-1]
    )
    assert "It breaks at none of these rates." in describe_rates([falls], [], tables)


def test_a_short_training_has_its_share_of_warmup() -> None:
    optim = Config().optim.model_copy(update={"warmup_iters": 80})
    short = with_rate(Config(optim=optim), 0.02, 100).optim
    assert (short.max_iters, short.warmup_iters) == (100, 10)
    assert (short.learning_rate, short.muon_learning_rate) == pytest.approx((0.02, 0.06))


@pytest.mark.usefixtures("data_dir")
def test_equal_seconds_give_each_group_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured once, and kept: the same command trains the same runs."""

    def measure(cfg: Config) -> float:
        return 0.1 * cfg.model.n_head

    monkeypatch.setattr("sweeps.speed.measure_step", measure)
    options = ["--n_head=1,2", "--seed=1,2", "--equal_seconds=0.8"]
    listed = call("sweep.py", *UNLIMITED, *options, "--list").stdout.splitlines()
    assert ["--max_iters=8" in line for line in listed] == [True, True, False, False]
    assert ["--max_iters=4" in line for line in listed] == [False, False, True, True]
    assert json.loads((FOLDER / "steps.json").read_bytes()) == {"n_head=1": 8, "n_head=2": 4}
    monkeypatch.setattr("sweeps.speed.measure_step", lambda cfg: 99.0)
    assert call("sweep.py", *UNLIMITED, *options, "--list").stdout.splitlines() == listed
    # the value 1 of another option is another setting
    other = ["--n_layer=1", "--n_layer=2", "--equal_seconds=99", "--list"]
    assert "--max_iters=1 " in call("sweep.py", *UNLIMITED, *other).stdout


@pytest.mark.usefixtures("data_dir")
def test_steps_that_cannot_be_read_are_told() -> None:
    FOLDER.mkdir(parents=True)
    steps = FOLDER / "steps.json"
    for content in ("{", "[1]", '{"n_head=1": "x"}'):
        steps.write_text(content)
        done = call("sweep.py", *UNLIMITED, "--equal_seconds=1", "--list", check=False)
        assert done.stderr.startswith(f"error: {steps}: is damaged; remove it")
        assert steps.read_text() == content


@pytest.mark.usefixtures("data_dir")
def test_only_one_process_measures_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of an array start together, and train the same number of steps."""
    monkeypatch.setattr("sweeps.speed.LONGEST_WAIT", 0)
    with locked(lock_of((FOLDER / "steps.json").resolve()), "taken"):
        done = call("sweep.py", *UNLIMITED, "--equal_seconds=1", "--only=1", check=False)
    assert "another sweep.py measures the speed" in done.stderr


@pytest.mark.usefixtures("data_dir")
def test_the_speed_of_a_step_is_measured() -> None:
    call("sweep.py", *UNLIMITED, "--equal_seconds=0.05", "--list")
    steps = json.loads((FOLDER / "steps.json").read_bytes())
    assert 1 <= steps["the recipe"] < 1000


@pytest.mark.usefixtures("data_dir")
def test_what_does_not_go_with_equal_seconds() -> None:
    assert "max_iters follows from equal_seconds" in error("--equal_seconds=1")
    assert "jobs=2: runs that share a machine" in error("--equal_seconds=1", "--jobs=2")
    assert read_metrics(FOLDER) == []
