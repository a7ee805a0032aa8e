"""Losses are measured exactly, on the text that they are said to be of, with an honest error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.batches import TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from engine.evaluation import measure_loss, measure_training_text, standard_error
from loss import LossSums, mean_loss, sum_losses
from tests.conftest import CPU, make_batch, make_model


def test_evaluation_is_exact_and_unsmoothed() -> None:
    """It equals the loss of each token on its own window, one at a time, without dropout."""
    model = make_model(dropout=0.5)
    tokens = make_batch()[0].inputs.reshape(-1)
    loss = measure_loss(model, EvalText(Split(tokens), 8), CPU)
    model.eval()
    nll = correct = 0.0
    for i in range(1, len(tokens)):
        start = (i - 1) // 8 * 8
        window = torch.from_numpy(tokens[None, start:i])
        hidden = model.hidden_states(window)
        logits = model.logits(hidden)[0, -1].double().detach()
        nll -= float(logits.log_softmax(-1)[tokens[i]])
        correct += float(logits.argmax() == tokens[i])
    assert loss.num_targets == len(tokens) - 1
    assert loss.nll == pytest.approx(nll / loss.num_targets, rel=1e-5)
    assert loss.accuracy == pytest.approx(correct / loss.num_targets)


def test_the_loss_on_training_text_is_of_what_was_read_and_of_what_was_not() -> None:
    tokens = np.random.default_rng(0).integers(13, size=4001)
    get_batch = TrainBatches(Split(tokens), 8, 10, seed=1)
    model = make_model()
    text = EvalText(Split(tokens), 8)

    def measure_after(windows: int) -> dict[str, float]:
        return measure_training_text(model, text, *get_batch.read_and_unread(windows), CPU)

    found = measure_after(100)
    sums = []
    for first_window in range(0, 100, 10):
        (batch,) = get_batch(first_window)
        inputs, targets = CPU.to_device(batch.inputs, batch.targets)
        sums.append(model(inputs, targets))
    read = mean_loss(sum_losses(sums)).nll
    assert found["train_read_nll"] == pytest.approx(read, rel=1e-5)
    both = np.concatenate(get_batch.read_and_unread(100))
    whole = measure_loss(model, replace(text, only=both), CPU).nll
    share = 100 / get_batch.windows_per_epoch
    mean = share * read + (1 - share) * found["train_unread_nll"]
    assert mean == pytest.approx(whole, rel=1e-5)
    assert set(measure_after(20)) == {"train_unread_nll", "train_unread_error"}
    assert set(measure_after(480)) == {"train_read_nll", "train_read_error"}


def test_the_standard_error_is_that_of_many_texts() -> None:
    """The parts of these texts differ, and have unequal numbers of targets."""
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 10, size=50)
    nothing = LossSums._make([torch.zeros(())] * len(LossSums._fields))
    means = []
    errors = []
    for _ in range(300):
        parts = []
        total = 0.0
        for n in targets:
            nll = rng.normal(0, 1, size=n).sum()
            total += nll
            part = {"nll": torch.tensor(nll), "num_targets": torch.tensor(n)}
            parts.append(nothing._replace(**part))
        means.append(total / targets.sum())
        errors.append(standard_error(parts))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
