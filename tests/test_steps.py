"""A step moves every parameter as its options say, and one without targets moves none."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.schema import Config, OptimConfig, TablesConfig
from data.batches import IGNORE_INDEX, Batch, TrainBatches
from engine.optim import Muon, get_lr_scale, make_optimizers, set_lr
from model import GPT
from tables import RowwiseRMSProp
from tests.conftest import CPU, make_batch, make_model, read_metrics, take_step
from tests.one_run import train

pytestmark = pytest.mark.usefixtures("numbers_only")


def without_targets(batch: list[Batch]) -> list[Batch]:
    return [micro._replace(targets=np.full_like(micro.targets, IGNORE_INDEX)) for micro in batch]


def test_a_batch_without_targets_changes_nothing() -> None:
    """Neither weights, nor momentum, nor weight decay: as if there had been no step."""
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    assert take_step(model, optimizers, make_batch(), Config(), CPU).is_valid
    before = copy.deepcopy(state_of(model, optimizers))
    batch = without_targets(make_batch())
    result = take_step(model, optimizers, batch, Config(), CPU, step=1)
    assert (result.num_targets, result.is_valid, result.is_finite) == (0, False, True)
    assert result.lr > 0
    torch.testing.assert_close(state_of(model, optimizers), before, rtol=0, atol=0)


def state_of(model: GPT, optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """Return the weights, and what each optimizer keeps of the steps before."""
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    return [model.state_dict(), *states]


SOME_STEPS = {1, 2, 5}
ALL_STEPS = set(range(6))


@pytest.mark.parametrize("empty", [SOME_STEPS, ALL_STEPS], ids=["some", "all"])
def test_skipped_steps_are_counted_also_after_a_resume(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, empty: set[int]
) -> None:
    get_batch = TrainBatches.__call__

    def get_some(self: TrainBatches, first_window: int) -> list[Batch]:
        batch = get_batch(self, first_window)
        if first_window // self.batch_size in empty:
            batch = without_targets(batch)
        return batch

    monkeypatch.setattr(TrainBatches, "__call__", get_some)
    printed = train("--max_iters=4").stdout
    skipped = len(empty & set(range(4)))
    assert printed.count("the step is skipped, and counts in skipped_steps") == skipped
    printed = train("--init_from=resume").stdout
    assert f"Steps that had no target, and were skipped: {len(empty)}." in printed
    assert "diverged" not in printed
    *records, _ = read_metrics(data_dir / "out/run")
    assert [record["step"] for record in records] == list(range(7))
    for done, record in enumerate(records):
        assert record.get("skipped_steps", 0) == len(empty & set(range(done)))
    for record in records[1:]:
        assert ("train_nll" in record) == (record["step"] - 1 not in empty)


def test_every_parameter_has_one_optimizer() -> None:
    model = make_model(form="gpt2", tables=TablesConfig(max_ngram=3, table_rows=9))
    for kind in ("muon", "adamw"):
        decays = []
        for optimizer in make_optimizers(model, OptimConfig(optimizer=kind, weight_decay=0.1)):
            for group in optimizer.param_groups:
                decay = group.get("weight_decay", 0.0)
                decays += [(id(p), decay) for p in group["params"]]
        expected = []
        for name, p in model.named_parameters():
            is_decayed = p.ndim == 2 and not name.startswith("tables.")
            expected.append((id(p), 0.1 * is_decayed))
        assert sorted(decays) == sorted(expected)
    cfg = OptimConfig(warmup_iters=3, learning_rate=0.4, muon_learning_rate=0.8)
    adamw, muon, rows = make_optimizers(model, cfg)
    assert isinstance(muon, Muon)
    assert isinstance(rows, RowwiseRMSProp)
    assert len(muon.param_groups[0]["params"]) == 2 * 4
    assert len(rows.param_groups[0]["params"]) == 2
    assert set_lr([adamw, muon, rows], cfg, 0) == 0.1
    assert adamw.param_groups[0]["lr"] == 0.1
    assert muon.param_groups[0]["lr"] == 0.2
    assert rows.param_groups[0]["lr"] == model.tables.cfg.table_learning_rate / 4


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_go_from_the_peak_to_the_lowest_lr(schedule: str) -> None:
    cfg = OptimConfig(max_iters=100, warmup_iters=10, schedule=schedule, min_lr_ratio=0.2)
    scales = [get_lr_scale(cfg, step) for step in range(100)]
    assert scales[10] == max(scales) == 1.0
    assert scales[:10] == sorted(scales[:10])
    assert scales[10:] == sorted(scales[10:], reverse=True)
    lowest = {"cosine": 0.2, "linear": 0.2, "constant": 1.0}
    assert get_lr_scale(cfg, 100) == pytest.approx(lowest[schedule])
    if schedule == "cosine":
        assert get_lr_scale(cfg, 55) == pytest.approx(0.6)
