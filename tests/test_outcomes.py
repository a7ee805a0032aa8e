"""A finished run is left as it is, and a part of its outcome that is lacking is written."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

import engine.evaluation
from config.files import write_atomically
from engine.metrics import Record
from engine.run_files import RunFiles
from engine.state import TrainState
from report.outcome import measure_best
from report.trainlog import OUTCOME
from tests.conftest import call, without_clocks
from tests.one_run import RUN, STEPS, files, resume, steps, train

pytestmark = pytest.mark.usefixtures("numbers_only")


@pytest.mark.parametrize("options", [[], ["--seed=3"]])
def test_a_finished_run_is_left_as_it_is(finished: Path, options: list[str]) -> None:
    before = files(finished.parent)
    printed = resume(*options).stdout
    assert printed.endswith(
        "it is finished: it has taken 6 steps; to train longer, add --max_iters=12\n"
    )
    assert files(finished.parent) == before
    assert "resuming out/run at step 6\n" in resume("--max_iters=7").stdout


def test_a_run_that_stopped_early_is_finished_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting it again adds no sample. With --patience=0 it goes on as one that never stopped."""
    options = ["--init_from=auto", "--schedule=constant"]
    count_evaluation = TrainState.count_evaluation

    def count(self: TrainState, record: Record, epochs: float) -> bool:
        is_best = count_evaluation(self, record, epochs)
        self.overfitting = int(record["step"] >= 4)
        return is_best

    monkeypatch.setattr(TrainState, "count_evaluation", count)
    train(*options, "--patience=1")
    assert steps(data_dir / "out/run") == [*range(5), 4]
    before = files(data_dir / "out")
    assert train(*options, "--patience=1").stdout.endswith(
        "it is finished: it stopped early at step 4, because it overfitted; to train longer, add "
        "--patience=0\n"
    )
    assert files(data_dir / "out") == before
    train(*options, "--patience=0")
    call("train.py", *RUN, *options, "--patience=0", "--out_dir=out/whole")
    run = data_dir / "out/run"
    whole = data_dir / "out/whole"
    assert without_clocks(run) == without_clocks(whole)
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_run_without_a_finite_loss_is_finished_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no best model. Starting it again adds neither a line nor a sample."""
    measure_loss = engine.evaluation.measure_loss
    monkeypatch.setattr(
        engine.evaluation,
        "measure_loss",
        lambda *arguments: measure_loss(*arguments)._replace(nll=math.nan),
    )
    assert "No loss was finite" in train().stdout
    assert steps(data_dir / "out/run") == STEPS
    before = files(data_dir / "out")
    assert "it is finished" in resume().stdout
    assert files(data_dir / "out") == before


@pytest.mark.parametrize("name", [*OUTCOME, "metrics.jsonl", "report.html", "report.js"])
def test_an_outcome_that_could_not_be_written_is_written_on_resuming(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = RunFiles.attempt
    is_at_the_end = False

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def measure(*arguments: Any) -> Record:
        nonlocal is_at_the_end
        is_at_the_end = True
        return measure_best(*arguments)

    def fail(self: RunFiles, file: str, write: Any, *arguments: Any) -> bool:
        if file == name and is_at_the_end:
            write = refuse
        return attempt(self, file, write, *arguments)

    def fail_of_page(path: Path, content: bytes) -> None:
        if path.name == name:
            refuse()
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("train.measure_best", measure)
        patch.setattr(RunFiles, "attempt", fail)
        patch.setattr("page.page.write_atomically", fail_of_page)
        told = train(returns=2).stderr
    assert (
        f"error: out/run: {name} could not be written; make room, and finish the run with: "
        "python train.py"
    ) in told
    assert "it is finished" not in resume().stdout
    assert "it is finished" in resume().stdout
    call("train.py", *RUN, "--out_dir=out/whole")
    run = data_dir / "out/run"
    whole = data_dir / "out/whole"
    assert sorted(os.listdir(run)) == sorted(os.listdir(whole))
    for file in ("evaluation.json", "curves.png", "verdict.txt", "samples.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert without_clocks(run)[-1] == without_clocks(whole)[-1]


def test_a_finished_run_of_an_earlier_edition_is_finished(finished: Path) -> None:
    """Its last line says so, whatever else is there."""
    (finished / "verdict.txt").unlink()
    assert "it is finished" in resume().stdout
