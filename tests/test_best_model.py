"""A resumed run compares its best model only with losses on the same targets and dtype."""

from pathlib import Path

import pytest
import torch

import engine.evaluation
from engine.checkpoint import load_model, read_model
from engine.device import Device
from engine.evaluation import measure_loss
from engine.metrics import find_best
from engine.run import open_run
from engine.run_text import make_eval_text, open_corpus
from engine.state import TrainState
from report.picture import picture_run
from tests.conftest import load_checkpoint, other_dtype, read_metrics, trained_dtype
from tests.one_run import train
from tests.processes import read_checkpoint

pytestmark = pytest.mark.usefixtures("numbers_only")

AS_TRAINED = Device(torch.device("cpu"), getattr(torch, trained_dtype()))


@pytest.mark.parametrize("change", ["--eval_tokens=100", f"--dtype={other_dtype()}"])
def test_the_best_model_is_measured_again_where_losses_do_not_compare(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Its targets and dtype are those of the new start: else a worse model would replace it."""
    losses = {0: 3.0, 1: 2.9, 2: 2.0, 4: 2.5, 6: 2.4}
    now = {2: 2.2, 8: 2.1, 10: 2.3}  # the same model is measured as 2.2 now

    def set_losses(found: dict[int, float]) -> None:
        def count(self: TrainState, record: dict[str, float], epochs: float) -> bool:
            record["val_nll"] = found[self.step]
            return count_evaluation(self, record, epochs)

        monkeypatch.setattr(TrainState, "count_evaluation", count)

    def best() -> tuple[int, float]:
        state = read_checkpoint(data_dir / "out/run/best.safetensors")[1]
        return state["step"], state["best_nll"]

    count_evaluation = TrainState.count_evaluation
    set_losses(losses)
    train()
    assert best() == (2, 2.0)
    set_losses({2: 2.2, 8: 2.3, 10: 2.25})
    validated = vars(engine.evaluation)["validate"]
    monkeypatch.setattr(
        engine.evaluation, "validate", lambda *arguments: validated(*arguments) | {"val_nll": 2.2}
    )
    resumed = train("--init_from=resume", "--max_iters=8", change).stdout
    assert "the best model, of step 2, has 2.2000 as this start measures it" in resumed
    assert best()[0] == 2  # not replaced by step 8 with 2.3, and its star is at its step
    curve = picture_run(open_run(data_dir / "out/run")).curves[0]
    assert curve.best[0] == [2]
    find = find_best(read_metrics(data_dir / "out/run")[:-1])
    assert (find["step"], find["val_nll"]) == (2, 2.2)
    set_losses(now)
    # nothing changes: it is not measured again
    train("--init_from=resume", "--max_iters=10", change)
    records = read_metrics(data_dir / "out/run")
    (line,) = [record for record in records if "remeasured_val_nll" in record]
    assert (line["step"], line["remeasured_step"]) == (6, 2)


def test_a_run_of_an_earlier_edition_measures_its_best_model_again(data_dir: Path) -> None:
    """Its checkpoints do not say on what the loss was measured, nor at which step."""
    train("--max_iters=30", "--eval_interval=10")
    run = open_run(data_dir / "out/run")
    new = {
        "best_step",
        "measured_on",
        "mean_before_best",
        "mean_after_best",
        "peak",
        "recovered",
        "eval_step",
        "overfitting_step",
    }
    last, _ = read_model(run, "last")
    state = load_checkpoint(run.path / "last.safetensors", last)
    saved = read_checkpoint(run.path / "best.safetensors")[1]
    old = TrainState.model_validate(state.model_dump(exclude=new))
    text = make_eval_text(run, open_corpus(run).val, run.cfg.run.eval_tokens)
    record = engine.evaluation.remeasure_best(run, old, text, open_corpus(run), AS_TRAINED)
    assert record["remeasured_step"] == old.best_step == state.best_step
    assert old.best_nll == pytest.approx(state.best_nll, rel=1e-6)
    assert old.mean_after_best == saved["mean"]
    assert old.measured_on == state.measured_on


def test_resuming_with_fewer_targets_measures_what_it_says(data_dir: Path) -> None:
    train()
    path = data_dir / "out/run"
    train("--init_from=resume", "--eval_tokens=100", "--max_iters=8")
    records = read_metrics(path)
    (line,) = [record for record in records if "remeasured_val_nll" in record]
    run = open_run(path)
    model, _ = load_model(run, "last", AS_TRAINED)
    text = make_eval_text(run, open_corpus(run).val, 100)
    by_hand = measure_loss(model, text, AS_TRAINED).nll
    before = next(record for record in records if record["step"] == 6)
    last = next(record for record in records if record["step"] == 8)
    assert last["val_nll"] == pytest.approx(by_hand, rel=1e-6)
    assert line["remeasured_val_nll"] != pytest.approx(before["val_nll"], rel=1e-6)


def test_a_finished_run_is_evaluated_on_the_targets_of_its_best_model(data_dir: Path) -> None:
    """It was killed after its last step, and resumed with other targets.

    Else the verdict would compare two texts.
    """
    train()
    path = data_dir / "out/run"
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    train("--init_from=resume", "--eval_tokens=100")
    run = open_run(path)
    model, state = load_model(run, "last", AS_TRAINED)
    *_, evaluation, _ = run.read_metrics()
    by_hand = measure_loss(model, make_eval_text(run, open_corpus(run).val, 100), AS_TRAINED).nll
    assert evaluation["step"] == 6
    assert evaluation["val_nll"] == pytest.approx(by_hand, rel=1e-6)
    assert state.eval_step == 6
