"""However a batch is cut, and whoever computes the pieces, gradient and loss are the same."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from bench.normalisation import compare, masked
from config.cli import load_config
from config.schema import TablesConfig
from data.batches import IGNORE_INDEX, Batch, TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from engine import device as device_module
from engine.device import Device
from engine.evaluation import measure_loss
from engine.optim import make_optimizers
from engine.state import StepResult
from model import GPT
from report import words
from tests.conftest import CPU, in_ranks, make_model
from tests.conftest import take_step as take_one


def batches(micro_batch_size: int, rank: int = 0, world_size: int = 1) -> TrainBatches:
    """Make batches of 8 sequences; the text's first 80 tokens and half of the others are masked."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(13, size=200)
    is_target = rng.random(200) < 0.5
    is_target[:81] = False
    text = Split(tokens, is_target)
    return TrainBatches(
        text, 8, 8, 0, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
    )


def take_step(
    device: Device, micro_batch_size: int, dropout: float = 0.0
) -> tuple[torch.Tensor, StepResult]:
    """Return the gradient of a step, as one vector, and its result."""
    get_batch = batches(micro_batch_size, device.rank, device.world_size)
    cfg, _ = load_config(["--label_smoothing=0.1", "--grad_clip=0", f"--dropout={dropout}"])
    tables = TablesConfig(max_ngram=3, table_rows=50, table_dropout=dropout)
    model = make_model(dropout=dropout, tables=tables)
    # without an optimizer the gradients stay
    result = take_one(model, [], get_batch(24), cfg, device, step=3)
    gradients = []
    for p in model.parameters():
        if p.grad is None:
            continue
        gradient = p.grad.to_dense()
        if p.grad.is_sparse:
            gradient[0] = 0.0  # this row does not move
        gradients.append(gradient.flatten())
    return torch.cat(gradients), result


@pytest.mark.parametrize(
    ("size", "micro_batch_size"),
    [
        pytest.param(1, 1, id="8 micro-batches"),
        (1, 3),
        (2, 0),
        (2, 1),
        (2, 2),
        (3, 2),
        (3, 0),
        pytest.param(8, 1, id="8 ranks, two without targets"),
        pytest.param(2, 8, id="a rank without a micro-batch"),
    ],
)
def test_any_split_gives_the_gradient_of_the_whole_batch(size: int, micro_batch_size: int) -> None:
    num_targets = [micro.num_targets for micro in batches(1)(24)]
    assert num_targets == [3, 2, 5, 4, 1, 4, 0, 0]
    gradient, whole = take_step(CPU, 8)
    assert whole.num_targets == 19
    for part, result in in_ranks(size, partial(take_step, micro_batch_size=micro_batch_size)):
        torch.testing.assert_close(part, gradient, atol=1e-6, rtol=1e-4)
        assert result.num_targets == 19
        assert result.nll == pytest.approx(whole.nll, rel=1e-5)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "gpus", "ranks", "expected"),
    [
        ("--batch_size=64", 0, 1, 4),
        ("--batch_size=64", 0, 3, 4),
        ("--batch_size=24", 0, 1, 6),
        ("--batch_size=8", 0, 1, 4),
        ("--batch_size=12 --block_size=64", 0, 1, 6),
        ("--batch_size=1", 0, 1, 1),
        ("--batch_size=64 --block_size=9000", 0, 1, 1),
        ("--batch_size=64 --device=cpu", 1, 1, 4),
        ("--batch_size=64", 1, 1, 64),
        ("--batch_size=64", 1, 2, 32),
        ("--batch_size=64 --micro_batch_size=33", 0, 1, 33),
    ],
)
def test_the_cut_of_a_cpus_batch_depends_on_options_only(
    options: str, gpus: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "WORLD_SIZE", ranks)
    monkeypatch.setattr(device_module, "count_devices", lambda: {"cuda": gpus, "mps": 0, "cpu": 1})
    assert device_module.micro_batch_size(load_config(options.split())[0]) == expected


SPLITS = [(2, 2), (3, 2), (4, 1)]


@pytest.mark.parametrize(("size", "micro_batch_size"), SPLITS)
def test_dropout_does_not_depend_on_who_computes(size: int, micro_batch_size: int) -> None:
    step = partial(take_step, micro_batch_size=micro_batch_size, dropout=0.5)
    alone, _ = step(CPU)
    for gradient, _ in in_ranks(size, step):
        torch.testing.assert_close(gradient, alone, atol=1e-6, rtol=1e-4)
    in_one_piece, _ = take_step(CPU, 8, dropout=0.5)
    assert not torch.allclose(alone, in_one_piece, atol=1e-3)


def test_a_step_without_targets_on_any_rank_changes_nothing() -> None:
    """The gradients are then zeros, which momentum and weight decay would follow."""
    inputs = np.zeros((4, 8), dtype=np.int64)
    without_targets = np.full_like(inputs, IGNORE_INDEX)
    batch = [Batch(inputs, without_targets)]
    cfg, _ = load_config(["--weight_decay=0.1"])

    def step(device: Device) -> tuple[bool, GPT]:
        model = make_model()
        optimizers = make_optimizers(model, cfg.optim)
        result = take_one(model, optimizers, batch, cfg, device)
        return result.is_valid, model

    before = make_model().state_dict()
    for is_valid, model in in_ranks(2, step):
        assert not is_valid
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_an_evaluation(size: int) -> None:
    """Three batches of validation text: of four ranks one has none."""
    tokens = np.random.default_rng(0).integers(13, size=5_000)
    text = EvalText(Split(tokens), 8)
    model = make_model()
    assert len(list(text.batches())) == 3
    whole = measure_loss(model, text, CPU)
    assert whole.num_targets == 4_999
    for loss in in_ranks(size, partial(measure_loss, model, text)):
        assert loss == pytest.approx(whole, rel=1e-12)


def test_the_mean_of_means_is_another_gradient() -> None:
    """Dividing each micro-batch by its own count changes a lot if masks are uneven."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(13, size=(2, 8, 8))
    model = make_model()
    whole = Batch(inputs, targets)
    even = compare(model, masked(whole, 1.0), 1, CPU)
    uneven = compare(model, masked(whole, 0.1), 1, CPU)
    assert even["difference"] < 1e-5
    assert even["cosine"] == pytest.approx(1, abs=1e-5)
    assert uneven["difference"] > 0.2
    assert uneven["cosine"] < 0.98
    targets[4:] = IGNORE_INDEX
    empty = Batch(inputs, targets)
    assert math.isnan(compare(model, empty, 1, CPU)["difference"])  # a mean over no tokens


def test_ranks_without_work_are_told() -> None:
    """The cut of a batch does not depend on their number, so they may outnumber micro-batches."""
    get_batch = batches(3)
    assert get_batch.num_micro_batches == len(get_batch(0)) == 3
    assert not list(words.warn_of_idle_ranks(3, 3))
    (warning,) = words.warn_of_idle_ranks(get_batch.num_micro_batches, 4)
    assert "3 micro-batches, so 1 of the 4 ranks have nothing to do" in warning
