"""From a model's predictions to a score of each target: its surprisal, its rank, the confidence."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.errors import DIVERGED, UserError
from data.batches import IGNORE_INDEX, Batch
from engine.device import Device
from model import GPT

TOP = 5  # tokens that are shown beside the target
CHUNK_LOGITS = 2**20  # logits that are worked on at once, so that they stay in the cache
MIN_CHUNK = 256  # tokens


TensorColumns = tuple[Tensor, ...]  # with as many rows each


class Predictions(NamedTuple):
    """The logits before each of n targets, in the order of the text."""

    logits: Tensor  # (n, V) float32
    targets: Tensor  # (n,)
    context_len: Tensor  # (n,) tokens that the model had before the target, 1 ... T


class Scores(NamedTuple):
    """The scores of N targets, in the order of the text, (N,) each; NLL in nats."""

    nll: np.ndarray  # float64
    targets: np.ndarray
    higher: np.ndarray  # tokens with a higher probability
    ties: np.ndarray  # tokens with the same probability, itself included
    confidence: np.ndarray  # the highest probability
    context_len: np.ndarray
    tempered: np.ndarray  # (K,) total NLL with the logits divided by each of K temperatures

    def top(self, k: int) -> np.ndarray:
        """Score whether each target is among the k most probable tokens, 0 to 1.

        Tied tokens share the places.
        """
        return np.clip((k - self.higher) / self.ties, 0, 1)


class Details(NamedTuple):
    """Holds what a page shows of N targets, in the order of the text."""

    nll: np.ndarray  # (N,) nats
    rank: np.ndarray  # (N,) 1 = the model held it most probable
    top: np.ndarray  # (N, TOP) the most probable tokens
    log_q: np.ndarray  # (N, TOP) their log-probabilities
    entropy: np.ndarray  # (N,) of the prediction, in nats: the surprisal that it expects
    # (N, K) log sum_v q_v^(1/T), which normalises the prediction at each of K temperatures T
    log_z: np.ndarray


@torch.inference_mode()
def predict(model: GPT, batches: Iterable[Batch], device: Device) -> Iterator[Predictions]:
    """Predict all targets, in chunks whose size depends on the vocabulary only.

    On a CPU its cores compute the hidden states of batches side by side. UserError if a prediction
    is not finite.
    """

    @torch.inference_mode()
    def read(batch: Batch) -> TensorColumns:
        """Hidden states (n, C), targets (n,) and context lengths (n,) of the targets of a batch."""
        inputs, targets = device.to_device(batch.inputs, batch.targets)
        with device.autocast():
            hidden = model.hidden_states(inputs)  # (B, T, C)
        context_len = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        context_len = context_len.expand_as(targets)
        is_target = targets != IGNORE_INDEX
        return hidden[is_target], targets[is_target], context_len[is_target]

    model.eval()
    size = max(MIN_CHUNK, CHUNK_LOGITS // model.vocab_size)
    for hidden, targets, context_len in regroup(device.map(read, batches), size):
        with device.autocast():
            logits = model.logits(hidden)
        if not logits.isfinite().all():
            raise UserError(DIVERGED)
        yield Predictions(logits, targets, context_len)


def regroup(parts: Iterable[TensorColumns], size: int) -> Iterator[TensorColumns]:
    """Cut rows that come in parts of any size into groups of `size` rows; the last has the rest."""
    left: TensorColumns = ()
    for part in parts:
        if left:
            part = tuple(torch.cat(columns) for columns in zip(left, part, strict=True))
        while len(part[0]) >= size:
            yield tuple(column[:size] for column in part)
            part = tuple(column[size:] for column in part)
        left = part
    if left and len(left[0]) > 0:
        yield left


def average_logits(logits_of_each: list[Tensor]) -> Tensor:
    """Return the log of the mean of the probabilities that models predict, (..., V).

    The logits (..., V) of a single model stay as they are.
    """
    if len(logits_of_each) == 1:
        return logits_of_each[0]
    log_q = torch.stack(logits_of_each).log_softmax(dim=-1)
    return log_q.logsumexp(dim=0) - np.log(len(log_q))


def score_targets(predictions: Iterable[Predictions], temperatures: Sequence[float]) -> Scores:
    """Score all targets; only one chunk of logits is in memory."""
    chunks = [_score_chunk(chunk, temperatures) for chunk in predictions]
    *columns, tempered = zip(*chunks, strict=True)
    return Scores._make([*map(np.concatenate, columns), sum(tempered)])


@torch.inference_mode()
def _score_chunk(predictions: Predictions, temperatures: Sequence[float]) -> Scores:
    """Score the targets of a chunk."""
    logits = predictions.logits
    z_y = logits.gather(1, predictions.targets[:, None])  # (n, 1) logits of the targets
    higher = (logits > z_y).sum(dim=1)
    ties = (logits == z_y).sum(dim=1)

    # The largest logit becomes 0, so that no temperature overflows.
    z_max = logits.amax(dim=1, keepdim=True)
    logits = logits - z_max
    z_y = (z_y - z_max)[:, 0]
    exp_sum = logits.exp().sum(dim=1)
    nll = exp_sum.log() - z_y

    tempered = []
    scaled = torch.empty_like(logits)  # one buffer for all temperatures
    for T in temperatures:
        torch.div(logits, T, out=scaled)
        nll_at_T = scaled.exp_().sum(dim=1).log() - z_y / T
        tempered.append(nll_at_T.cpu().double().sum())
    columns = [
        nll.cpu().double(),
        predictions.targets,
        higher,
        ties,
        1 / exp_sum,
        predictions.context_len,
        torch.stack(tempered),
    ]
    return Scores._make(column.cpu().numpy() for column in columns)


@torch.inference_mode()
def detail_targets(predictions: Iterable[Predictions], temperatures: Sequence[float]) -> Details:
    """Measure all targets of a short text in detail."""
    chunks = []
    for logits, targets, _ in predictions:
        log_q = logits.log_softmax(dim=1)
        log_q_y = log_q.gather(1, targets[:, None])  # (n, 1)
        rank = 1 + (log_q > log_q_y).sum(dim=1)
        top = log_q.topk(min(TOP, log_q.shape[1]), dim=1)
        nll = -log_q_y[:, 0]
        entropy = -(log_q.exp() * log_q).sum(dim=1)
        log_z = [(log_q / T).logsumexp(dim=1) for T in temperatures]
        log_z_of_each = torch.stack(log_z, dim=1)
        chunks.append((nll, rank, top.indices, top.values, entropy, log_z_of_each))
    columns = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    return Details(*(column.cpu().numpy() for column in columns))
