"""The scaling law: a known one is found again, and the bench makes its runs once."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bench import scaling
from bench.scaling import fit, predict
from config.schema import DataConfig
from data.prepare import prepare_corpus
from tests.conftest import call

LAW = np.array([1.0, 8.0, 60.0, 0.25, 0.35, 0.35 / 0.6])  # E, A, B, a, b, r
SIZES = np.geomspace(5e3, 4e5, 8)
AMOUNTS = np.geomspace(1e5, 2e6, 4)
N = np.tile(SIZES, len(AMOUNTS))
D = np.repeat(AMOUNTS, len(SIZES))
NUMBER = r"([\d.e+-]+)"


def noisy(noise: float) -> np.ndarray:
    """Make runs whose losses follow LAW, but for a relative error."""
    error = noise * np.random.default_rng(0).standard_normal(len(N))
    losses = predict(LAW, N, D) * np.exp(error)
    return np.stack([N, D, losses])


@pytest.fixture
def small(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bench of two sizes and two amounts of a small text, with few bootstrap samples."""
    monkeypatch.setattr(
        scaling, "prepare_corpus", lambda _: prepare_corpus(DataConfig(corpus="text.txt"))
    )
    monkeypatch.setattr(scaling, "SHAPES", ((2, 4), (2, 8)))
    monkeypatch.setattr(scaling, "AMOUNTS", ((1, 4), (2, 6)))
    monkeypatch.setattr(scaling, "SAMPLES", 5)
    return data_dir / "out/scaling.jsonl"


def test_the_fit_finds_a_law_from_far_away() -> None:
    """One start is enough without noise: the gradient is right, and the fit goes on to the end."""
    start = np.array([0.3, 2.0, 300.0, 0.1, 0.6, 0])
    assert fit(noisy(0), [start]) == pytest.approx(LAW, rel=1e-3)


def test_a_run_gone_wrong_does_not_move_the_law() -> None:
    """Far errors count linearly; with squares, E would move by 0.2."""
    runs = noisy(0.001)
    E_before, *_ = fit(runs, [LAW])
    runs[2, -1] += 0.3
    E, *_ = fit(runs, [LAW])
    assert pytest.approx(E_before, abs=0.05) == E


def test_the_intervals_hold_the_truth(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints and draws all five constants and r; E in bits is E / ln 2."""
    monkeypatch.setattr(scaling, "SAMPLES", 60)
    lines = []
    for n, d, nll in noisy(0.003).T.tolist():
        run = {"step": 1, "n_layer": 1, "width": 1}
        run |= {"N": n, "D": d, "val_nll": nll}
        lines.append(json.dumps(run) + "\n")
    Path("runs.jsonl").write_text("".join(lines), encoding="utf-8")
    printed = call("bench/scaling.py", "runs.jsonl", "--minutes=0").stdout
    rows = re.findall(
        rf"^  (\w) = {NUMBER}  \({NUMBER} to {NUMBER}\)$", printed, flags=re.MULTILINE
    )
    assert [name for name, *_ in rows] == [*"EABabr"]
    for (name, value, low, high), truth in zip(rows, LAW, strict=True):
        assert float(low) < truth < float(high), name
        assert float(low) < float(value) < float(high), name
    _, _, *interval = rows[0]
    low, high = map(float, interval)
    assert 0.01 < high - low < 0.3
    assert f"({low / np.log(2):.2f} to {high / np.log(2):.2f})" in printed
    assert Path("runs.png").stat().st_size > 10_000


def test_runs_are_made_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted bench makes what is missing, as it would have been; a finished one nothing."""
    first = call("bench/scaling.py").stdout
    lines = small.read_text(encoding="utf-8").splitlines(keepends=True)
    runs = [json.loads(line) for line in lines]
    V = vocabulary()
    assert [run["width"] for run in runs] == [4, 8, 4, 8]
    assert [run["D"] for run in runs] == [1024, 1024, 3072, 3072]
    for run in runs:
        assert run["N"] == 24 * run["width"] ** 2 + 2 * run["width"] * V
    less_text = runs[1]["val_nll"]
    more_text = runs[3]["val_nll"]
    assert more_text < less_text < np.log(V)
    # stopped after two of four
    small.write_text("".join([*lines[:2], "{damaged\n"]), encoding="utf-8")
    assert call("bench/scaling.py").stdout.count(" s\n") == 2
    again = small.read_text(encoding="utf-8").splitlines()
    again.remove("{damaged")
    losses = [json.loads(line)["val_nll"] for line in again]
    assert losses == [run["val_nll"] for run in runs]
    monkeypatch.setattr(scaling, "train", None)
    assert call("bench/scaling.py").stdout == first[first.index("        N") :]
    assert small.with_suffix(".png").is_file()


def vocabulary() -> int:
    return prepare_corpus(DataConfig(corpus="text.txt")).info.vocab_size


def test_minutes_scale_the_text(small: Path) -> None:
    call("bench/scaling.py", "--minutes=30")
    lines = small.read_text(encoding="utf-8").splitlines()
    amounts = {json.loads(line)["D"] for line in lines}
    assert amounts == {2048, 6144}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--minutes=0"],
            "out/scaling.jsonl: the fit needs at least two sizes and two amounts of text",
        ),
        (["--minutes=31"], "minutes=31: input should be less than or equal to 30"),
        (["--minute=3"], "minute=3: no such option; did you mean --minutes?"),
    ],
)
def test_a_mistake_gets_one_line(data_dir: Path, arguments: list[str], message: str) -> None:
    done = call("bench/scaling.py", *arguments, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
