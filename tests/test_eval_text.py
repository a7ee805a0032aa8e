"""A text to evaluate: each target once, and a fair choice of windows if not all are asked for."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from config.errors import UserError
from data.batches import IGNORE_INDEX
from data.documents import Split
from data.eval_text import EvalText


def targets_of(text: EvalText) -> list[int]:
    """Return all targets, in the order of the batches."""
    targets = np.concatenate([batch.targets.ravel() for batch in text.batches()])
    return targets[targets != IGNORE_INDEX].tolist()


@pytest.mark.parametrize("stride", [0, 1, 3, 7, 8])
@pytest.mark.parametrize("n", [2, 8, 9, 10, 17, 64, 9000])
def test_every_token_but_the_first_is_a_target_once_whatever_the_stride(
    n: int, stride: int
) -> None:
    text = EvalText(Split(np.arange(n, dtype=np.uint16)), 8, stride=stride)
    assert targets_of(text) == text.positions.tolist() == list(range(1, n))
    least = 8 - (stride or 8) + 1  # tokens of context, where there are that many
    for inputs, targets, _ in text.batches():
        unmasked = targets != IGNORE_INDEX
        assert (targets[unmasked] == inputs[unmasked] + 1).all()
        context_len = np.nonzero(unmasked)[1] + 1
        assert (context_len >= np.minimum(targets[unmasked], least)).all()


def test_targets_of_some_windows_are_evaluated() -> None:
    """Other windows' targets, and what is masked, count nowhere."""
    split = Split(np.arange(100), np.arange(100) % 3 == 0)
    windows = [[first, 8, 0] for first in (0, 40, 80, 88)]
    text = EvalText(split, 8, only=np.array(windows))
    by_window = [[3, 6], [42, 45, 48]]
    by_window += [[81, 84, 87], [90, 93, 96]]
    assert text.positions.tolist() == list(itertools.chain(*by_window))
    assert replace(text, max_tokens=3).positions.tolist() in by_window


@pytest.mark.parametrize("eos", [None, 0])
@pytest.mark.parametrize("stride", [0, 3])
def test_a_part_of_a_text_is_spread_evenly_over_it(eos: int | None, stride: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(30, size=20_001).astype(np.uint16)
    unmasked = rng.random(20_001) < 0.8
    whole = EvalText(Split(tokens, unmasked), 8, eos, stride)
    part = replace(whole, max_tokens=2000)
    assert targets_of(part) == tokens[part.positions].tolist()
    assert 0.5 * 2000 < len(part.positions) < 1.1 * 2000
    assert len(np.unique(part.positions)) == len(part.positions)
    assert unmasked[part.positions].all()
    tenths = np.bincount(part.positions // 2001, minlength=10)
    assert tenths.min() > 0.7 * tenths.mean()
    all_of_it = replace(whole, max_tokens=10**6)
    assert all_of_it.positions.tolist() == whole.positions.tolist()


def sparse_split(n: int = 30_000) -> Split:
    """Every eighth stretch of 200 tokens is dense with targets; others have few or none."""
    stretch = np.arange(n) // 200
    share = np.where(stretch % 3 == 0, 0.002, 0.0)
    share[stretch % 8 == 0] = 0.9
    unmasked = np.random.default_rng(0).random(n) < share
    tokens = np.random.default_rng(1).integers(30, size=n)
    return Split(tokens.astype(np.uint16), unmasked)


@pytest.mark.parametrize("eos", [None, 0])
@pytest.mark.parametrize("stride", [0, 3])
@pytest.mark.parametrize("max_tokens", [1, 10, 100, 1000])
def test_windows_are_chosen_by_their_targets(max_tokens: int, stride: int, eos: int | None) -> None:
    """They come as near to the budget as whole windows allow; none lacks a target."""
    text = EvalText(sparse_split(), 16, eos, stride, max_tokens)
    for batch in text.batches():
        assert (batch.targets != IGNORE_INDEX).any(axis=1).all()
    if max_tokens == 1:
        assert len(text.windows) == 1
    else:
        assert abs(len(text.positions) - max_tokens) <= 16 / 2
    assert len(np.unique(text.positions)) == len(text.positions)


def test_dense_windows_are_no_more_likely_to_be_chosen() -> None:
    """Otherwise their text would weigh more in the loss than it does in the loss of all targets."""
    whole = EvalText(sparse_split(), 16)
    part = EvalText(sparse_split(), 16, max_tokens=1000)

    def dense_share(text: EvalText) -> float:
        return float(np.mean(text.positions // 200 % 8 == 0))

    assert dense_share(part) == pytest.approx(dense_share(whole), abs=0.01)
    share_of_windows = len(part.windows) / len(whole.windows)
    share_of_targets = len(part.positions) / len(whole.positions)
    assert share_of_windows == pytest.approx(share_of_targets, rel=0.1)


@pytest.mark.parametrize("max_tokens", [0, 100])
def test_all_targets_are_evaluated_if_they_are_no_more_than_asked_for(max_tokens: int) -> None:
    unmasked = np.arange(10_000) % 1000 == 999
    text = EvalText(Split(np.arange(10_000), unmasked), 16, max_tokens=max_tokens)
    assert text.positions.tolist() == np.flatnonzero(unmasked).tolist()
    assert len(text.windows) == 10


ONE_TOKEN = Split(np.arange(1))
FIRST_OF_NINE = Split(np.arange(9), np.arange(9) == 0)


@pytest.mark.parametrize("split", [ONE_TOKEN, FIRST_OF_NINE], ids=["one token", "nine"])
def test_a_text_without_targets_is_refused(split: Split) -> None:
    with pytest.raises(UserError, match="the text has no target"):
        next(EvalText(split, 4, max_tokens=2).batches())
