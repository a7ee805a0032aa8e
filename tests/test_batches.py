"""Batches of a training: each window once an epoch, the same ones however the work is divided."""

import numpy as np
import pytest

from config.errors import UserError
from data.batches import Batch, TrainBatches, cut
from data.documents import Split

TOKENS = np.arange(1000, dtype=np.uint16)


def first_inputs(batches: TrainBatches, first_window: int) -> np.ndarray:
    """Return the inputs of a step, (batch_size, block_size)."""
    (batch,) = batches(first_window)
    return batch.inputs


def rows(made: list[Batch]) -> list[list[list[int]]]:
    """Return the inputs and the targets of micro-batches, row by row."""
    inputs = np.concatenate([micro.inputs for micro in made])
    targets = np.concatenate([micro.targets for micro in made])
    return [inputs.tolist(), targets.tolist()]


def test_batches_cover_an_epoch_once_and_depend_on_what_was_read_alone() -> None:
    batches = TrainBatches(Split(TOKENS), block_size=8, batch_size=10, seed=1)
    assert batches.windows_per_epoch == 124
    read = [batches(first)[0] for first in range(0, 250, 10)]
    inputs = np.concatenate([batch.inputs for batch in read])
    targets = np.concatenate([batch.targets for batch in read])
    assert (targets == inputs + 1).all()
    for epoch in (inputs[:124], inputs[124:248]):
        assert len(np.unique(epoch)) == 124 * 8
    offsets = inputs[:, 0] % 8
    assert len(np.unique(offsets[:124])) == 1
    assert (offsets[124:248] != offsets[0]).all()

    again = TrainBatches(Split(TOKENS), block_size=8, batch_size=10, seed=1)
    assert (first_inputs(again, 120) == first_inputs(batches, 120)).all()
    other = TrainBatches(Split(TOKENS), block_size=8, batch_size=10, seed=2)
    assert (first_inputs(other, 0) != first_inputs(batches, 0)).any()


def test_another_batch_size_goes_on_with_the_windows_that_were_not_read() -> None:
    before = TrainBatches(Split(TOKENS), 8, 10, seed=1)
    after = TrainBatches(Split(TOKENS), 8, 7, seed=1)
    read = [first_inputs(before, first) for first in (0, 10, 20)]
    read += [first_inputs(after, first) for first in range(30, 124, 7)]
    starts = np.concatenate(read)[:124, 0]
    assert len(np.unique(starts)) == 124
    whole = first_inputs(TrainBatches(Split(TOKENS), 8, 124, seed=1), 0)
    assert starts.tolist() == whole[:, 0].tolist()


@pytest.mark.parametrize("eos", [None, 0])
def test_what_was_read_and_what_was_not_make_an_epoch(eos: int | None) -> None:
    split = Split(np.where(TOKENS % 7 == 0, 0, TOKENS))
    batches = TrainBatches(split, 8, 10, seed=1, eos=eos)
    inputs = np.concatenate([first_inputs(batches, 0), first_inputs(batches, 10)])
    read, unread = batches.read_and_unread(20)
    inputs_again = cut(split, read, 8).inputs
    assert sorted(inputs_again.tolist()) == sorted(inputs.tolist())
    assert len(read) + len(unread) == batches.windows_per_epoch
    both = np.concatenate([read, unread])
    assert len(np.unique(both, axis=0)) == len(both)  # none is in both
    assert (np.diff(read[:, 0]) > 0).all()

    nothing, _ = batches.read_and_unread(0)
    _, nothing_left = batches.read_and_unread(batches.windows_per_epoch)
    assert len(nothing) == len(nothing_left) == 0


def test_the_windows_of_an_epoch_are_those_of_before() -> None:
    """Runs of earlier editions go on with the text that they have not read."""
    batches = TrainBatches(Split(np.arange(1003)), 8, 10, seed=1)

    def three_starts(first_window: int) -> list[int]:
        return list(first_inputs(batches, first_window)[:3, 0])

    assert three_starts(0) == [707, 379, 971]
    assert three_starts(50) == [563, 843, 491]
    assert three_starts(110) == [595, 411, 291]


@pytest.mark.parametrize("n", [16, 17, 23, 40, 47])
def test_every_training_token_but_the_first_becomes_a_target(n: int) -> None:
    """Those after the last whole block do too; each epoch lacks less than two blocks."""
    windows = n // 8 - 1
    batches = TrainBatches(Split(np.arange(n)), 8, windows, seed=0)
    all_targets = set()
    for epoch in range(200):
        (batch,) = batches(epoch * windows)
        targets = np.unique(batch.targets)
        assert len(targets) > n - 1 - 2 * 8
        all_targets.update(targets.tolist())
    assert all_targets == set(range(1, n))


class CountingSplit(Split):
    """Notes how many rows of tokens are taken."""

    rows_taken: list[int] = []  # noqa: RUF012

    def take(self, at: np.ndarray | slice) -> np.ndarray:
        taken = super().take(at)
        self.rows_taken.append(len(taken))
        return taken


DIVISIONS = [
    pytest.param(1, 3, id="one process"),
    (2, 0),
    (2, 3),
    (3, 4),
    (4, 1),
    pytest.param(2, 10, id="a rank without a micro-batch"),
]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), DIVISIONS)
def test_each_rank_makes_its_own_micro_batches(world_size: int, micro_batch_size: int) -> None:
    """Together they are the batch of one process, with the numbers that dropout depends on."""
    split = CountingSplit(TOKENS)
    made: list[Batch] = []
    for rank in range(world_size):
        get_batch = TrainBatches(
            split,
            block_size=8,
            batch_size=10,
            seed=1,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
        )
        split.rows_taken.clear()
        own = get_batch(120)  # from two epochs
        # once for inputs and once for targets, and nothing of the other ranks'
        assert sum(split.rows_taken) == 2 * sum(len(micro.inputs) for micro in own)
        made += own
    made.sort(key=lambda micro: micro.number)
    assert [micro.number for micro in made] == list(range(len(made)))
    whole = TrainBatches(Split(TOKENS), 8, 10, seed=1)
    assert rows(made) == rows(whole(120))


def test_a_corpus_shorter_than_a_block_is_refused() -> None:
    with pytest.raises(UserError, match="too few for block_size=64"):
        TrainBatches(Split(np.zeros(100, dtype=np.uint16)), 64, 1, 0)
