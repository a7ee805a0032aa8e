"""Dynamic evaluation: a model learns from each part of a text, once it has predicted it.

Each target is predicted before any step on it, so the sum of the losses is a code length like any
other: a receiver who repeats the steps can decode the text (Mikolov et al. 2010; Krause et al.
2018).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from config.size import count_flops
from data.batches import IGNORE_INDEX, Batch, cut
from data.eval_text import EvalText
from data.windows import count_targets, find_windows
from engine.device import Device
from engine.scoring import CHUNK_LOGITS, MIN_CHUNK, Predictions
from engine.torch_startup import AdamW
from loss import cross_entropy
from model import GPT
from tables import RowwiseRMSProp, rows_and_gradients

INTERVAL = 128  # targets between two steps, if nothing else is said
MEAN_SQUARE = 1 / 64  # of a row's gradient, before there is one; it was chosen as the rates were
BETAS = (0.0, 0.999)  # AdamW's decays of the running means of the gradient and of its square
# of a step; a CPU's cores share larger ones, and for smaller ones they would wait for each other
SHARED_FLOPS = 2**33


def default_stride(block_size: int) -> int:
    """Choose how many targets a window has: at most half of block_size."""
    return min(INTERVAL, max(1, block_size // 2))


def default_context(block_size: int, stride: int) -> int:
    """Choose how many tokens before its targets a window has: at least a quarter of block_size.

    More of them took longer and gained nothing (bench/NOTES.md).
    """
    return min(math.ceil(block_size / 4), block_size - stride)


class LearningDivergedError(UserError):
    """Says that the steps were too large: predictions are no longer finite."""


class Rates(NamedTuple):
    """The learning rates of a model that learns while it reads; what has a rate of 0 stands still.

    They were chosen on tuning text (bench/NOTES.md).
    """

    learning_rate: float = 0.0002  # AdamW's, of all weights but the tables of n-grams
    table_learning_rate: float = 0.02


class RowwiseAdaGrad(RowwiseRMSProp):
    """Takes steps in the rows that occurred, and the shorter the more often a row did.

    The step of a row is lr g / sqrt(v): g is its gradient, and v is MEAN_SQUARE plus the sum of the
    mean squares of all its gradients so far (Duchi et al. 2011; one number a row: Naumov et al.
    2019). So an n-gram that surprises is learned at once where it comes first, one that does not
    moves little, and a frequent one stays near what training learned. Rows are not rounded to 16
    bits: no checkpoint keeps them.
    """

    @torch.no_grad()
    def _step_table(self, table: Tensor) -> None:
        rows, g = rows_and_gradients(table)
        state = self.state[table]
        if not state:
            state["square_sum"] = torch.full((len(table),), MEAN_SQUARE, device=table.device)
        square_sum = state["square_sum"]
        v = square_sum[rows] + g.square().mean(dim=1)
        square_sum[rows] = v
        lr = self.param_groups[0]["lr"]
        step = lr * g * v.rsqrt()[:, None]
        table.index_copy_(0, rows, table.index_select(0, rows) - step)
        table[0] = 0.0


class Learner:
    """Moves the weights of a model by steps on what it has predicted.

    `predict` and `learn` take turns. Give it a copy: nothing writes the weights back to a run. The
    steps lower the plain cross-entropy, without dropout. Their optimizers start without a memory of
    the training, so two learners that have read the same text are the same, bit for bit, on the
    same machine.
    """

    def __init__(self, model: GPT, rates: Rates, device: Device) -> None:
        self.model = model.eval()
        self.device = device
        self.optimizers: list[torch.optim.Optimizer] = []
        tables = list(model.tables.parameters())
        others = []
        for name, p in model.named_parameters():
            p.requires_grad_(False)  # what stands still costs no time
            if not name.startswith("tables."):
                others.append(p)
        if rates.learning_rate > 0:
            adamw = AdamW(others, rates.learning_rate, BETAS, weight_decay=0.0, fused=True)
            self.optimizers.append(adamw)
        if tables and rates.table_learning_rate > 0:
            self.optimizers.append(RowwiseAdaGrad(tables, rates.table_learning_rate))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.requires_grad_()

    def predict(self, inputs: Tensor, targets: Tensor) -> Predictions:
        """Predict the targets (B, T) that are not masked, after inputs (B, T).

        LearningDivergedError if a prediction is not finite.
        """
        is_target = targets != IGNORE_INDEX
        with self.device.autocast():
            hidden = self.model.hidden_states(inputs)
            logits = self.model.logits(hidden[is_target])
        if not logits.isfinite().all():
            raise LearningDivergedError(
                "the model diverged while it learned: use lower learning rates"
            )
        context_len = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        return Predictions(logits, targets[is_target], context_len.expand_as(targets)[is_target])

    def learn(self, predictions: Predictions) -> None:
        """Take one step that lowers the loss of the targets that `predict` predicted last.

        It is their sum, so that the gradient of a row does not depend on how many there are.
        """
        if not self.optimizers:
            return
        sums = cross_entropy(predictions.logits, predictions.targets)
        sums.objective.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def predict_and_learn(learner: Learner, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Predict the targets of each batch, then learn them."""
    for batch in batches:
        flops = batch.inputs.size * count_flops(learner.model.cfg, learner.model.vocab_size)
        with one_thread(flops < SHARED_FLOPS):
            predictions = learner.predict(*learner.device.to_device(batch.inputs, batch.targets))
        yield predictions._replace(logits=predictions.logits.detach())
        with one_thread(flops < SHARED_FLOPS):
            learner.learn(predictions)


@contextmanager
def one_thread(is_small: bool) -> Iterator[None]:
    """Let a single core of a CPU compute what is small."""
    threads = torch.get_num_threads()
    if is_small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def predict_only(learner: Learner, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Predict the targets of each batch; a CPU's cores take a batch each.

    With the same weights, the predictions are those of `predict_and_learn`, bit for bit.
    """

    @torch.no_grad()
    def read(batch: Batch) -> Predictions:
        return learner.predict(*learner.device.to_device(batch.inputs, batch.targets))

    return learner.device.map(read, batches)


def join(parts: Iterable[Predictions], vocab_size: int) -> Iterator[Predictions]:
    """Join small parts to larger ones, which are scored faster."""
    size = max(MIN_CHUNK, CHUNK_LOGITS // vocab_size)
    waiting: list[Predictions] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += len(part.targets)
        if rows >= size:
            yield _concatenate(waiting)
            waiting = []
            rows = 0
    if waiting:
        yield _concatenate(waiting)


def _concatenate(parts: Sequence[Predictions]) -> Predictions:
    return Predictions._make(torch.cat(columns) for columns in zip(*parts, strict=True))


def cut_for_learning(text: EvalText, context: int) -> EvalText:
    """Cut a text into windows with at most `stride` new targets each, and `context` before them.

    The first windows of a document have less context. With all that block_size leaves, the windows
    of other places are those of an ordinary text with this stride, if it divides block_size.

    >>> from data.documents import Split
    >>> text = EvalText(Split(np.arange(8)), block_size=4, stride=2)
    >>> cut_for_learning(text, context=2).windows.tolist()  # start, length, how many are context
    [[0, 2, 0], [0, 4, 2], [2, 4, 2], [4, 3, 2]]
    """
    tokens = text.split.tokens
    windows = find_windows(tokens, text.stride, text.eos, text.stride)
    starts = windows[:, 0]
    borders = np.array([0])
    if text.eos is not None:
        borders = np.union1d(borders, np.flatnonzero(tokens == text.eos))
    document = np.searchsorted(borders, starts, side="right") - 1
    before = np.minimum(starts - borders[document], context)
    windows += np.stack([-before, before, before], axis=1)
    return replace(text, only=windows)


def group_windows(text: EvalText) -> list[np.ndarray]:
    """Group the windows of a text in order, (N, 3) each: the model learns after each group.

    Short documents, and windows with masked targets, share a group that has at most `stride`
    targets together.
    """
    windows = text.windows
    groups = []
    first = 0
    total = 0
    for number, count in enumerate(count_targets(text.split, windows).tolist()):
        if total + count > text.stride:
            groups.append(windows[first:number])
            first = number
            total = 0
        total += count
    groups.append(windows[first:])
    return groups


def make_batches(text: EvalText, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Make a batch of each group of windows, no longer than its longest window."""
    for windows in groups:
        longest = int(windows[:, 1].max())
        yield cut(text.split, windows, longest)
