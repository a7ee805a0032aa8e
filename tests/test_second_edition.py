"""Runs that the second edition made, in tests/second_edition/, open with the same loss and resume.

expected.json has what the second edition itself said of them, in float32 on one CPU.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import call, work_in

SAVED = Path(__file__).with_name("second_edition")
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
EXPECTED.pop("ngrams")  # it has dense tables, which this edition does not read
QUICK = [name for name in EXPECTED if name != "markov"]
NAMES = [*QUICK, pytest.param("markov", marks=pytest.mark.slow)]  # 2 million symbols
EXACT = 1e-5  # nats; CPUs add in different orders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for corpora, which are prepared once for all tests."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def saved(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, as runs/NAME in the current directory."""
    work_in(prepared, monkeypatch)
    shutil.copytree(SAVED, tmp_path / "runs")
    shutil.copy(SAVED / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_is_the_same(saved: Path, name: str) -> None:
    done = call("evaluate.py", f"runs/{name}", "--json", "--device=cpu")
    found = json.loads(done.stdout)
    assert found["targets"] == EXPECTED[name]["targets"]
    nll = found["loss"]["nats_per_token"]["value"]
    assert nll == pytest.approx(EXPECTED[name]["nats_per_token"], abs=EXACT)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_writes_the_same_text(saved: Path, name: str) -> None:
    options = ("--temperature=0", "--max_new_tokens=40", "--device=cpu")
    assert call("sample.py", f"runs/{name}", *options).stdout == EXPECTED[name]["sample"]


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes(saved: Path, name: str) -> None:
    call("train.py", f"runs/{name}", "--init_from=resume", "--max_iters=16")
    lines = (saved / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    last: dict[str, float] = {}
    for record in records:
        if record["step"] == 16:
            last |= record
    assert last["val_nll"] == pytest.approx(EXPECTED[name]["resumed_val_nll"], abs=1e-4)
    assert last["train_nll"] == pytest.approx(EXPECTED[name]["resumed_train_nll"], abs=1e-4)


@pytest.mark.parametrize("name", ["default", "gpt2"])
def test_it_compresses(saved: Path, name: str) -> None:
    text = Path("text.txt").read_bytes()[:300]
    Path("short.txt").write_bytes(text)
    call("compress.py", f"runs/{name}", "short.txt")
    Path("short.txt").unlink()
    call("compress.py", f"runs/{name}", "short.txt.srp")
    assert Path("short.txt").read_bytes() == text


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate.py", "runs/ngrams"],
        ["sample.py", "runs/ngrams"],
        ["train.py", "runs/ngrams", "--init_from=resume"],
        ["train.py", "--corpus=text.txt", "--init_from=runs/ngrams"],
    ],
    ids=" ".join,
)
def test_dense_tables_are_refused_in_one_line(saved: Path, command: list[str]) -> None:
    done = call(*command, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.removeprefix("error: ") == (
        "ngram_embedding=3: this edition cannot read dense tables of n-grams; train anew with "
        "max_ngram=3 in [tables]\n"
    )


def test_their_curves_are_drawn(saved: Path) -> None:
    done = call("curves.py", "runs", "--out=curves.png")
    assert all(name in done.stdout for name in EXPECTED)
    assert Path("curves.png").stat().st_size > 10_000
