"""What a model predicted for each target: its surprisal, its rank, and the model's confidence."""

import itertools
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


class Predictions(NamedTuple):
    """The logits before each of n targets, in the order of the text."""

    logits: Tensor  # (n, V) float32
    targets: Tensor  # (n,)
    context_len: Tensor  # (n,) tokens that the model had before the target, 1 ... T


class Scores(NamedTuple):
    """Of each target, in the order of the text, (N,); NLL in nats."""

    nll: np.ndarray  # float64
    targets: np.ndarray
    higher: np.ndarray  # tokens with a higher probability
    ties: np.ndarray  # tokens with the same probability, itself included
    confidence: np.ndarray  # the highest probability
    context_len: np.ndarray
    tempered: np.ndarray  # (K,) total NLL with the logits divided by each of K temperatures

    def top(self, k: int) -> np.ndarray:
        """Whether the target is among the k most probable tokens, 0 to 1: tied tokens share the
        places.
        """
        return np.clip((k - self.higher) / self.ties, 0, 1)


class Details(NamedTuple):
    """Of each target, in the order of the text, what a page shows besides its surprisal."""

    nll: np.ndarray  # (N,) nats
    rank: np.ndarray  # (N,) 1 = the model held it most probable
    top: np.ndarray  # (N, TOP) the most probable tokens
    log_q: np.ndarray  # (N, TOP) their log-probabilities
    # (N, K) log sum_v q_v^(1/T), which normalises the prediction at each of K temperatures T
    log_z: np.ndarray


@torch.inference_mode()
def predict(model: GPT, batches: Iterable[Batch], device: Device) -> Iterator[Predictions]:
    """The predictions of all targets, in chunks whose size depends on the vocabulary only.

    On a CPU its cores compute the hidden states of batches side by side.
    """

    @torch.inference_mode()
    def read(batch: Batch) -> list[Tensor]:
        """Hidden states (n, C), targets (n,) and context lengths (n,) of the targets of a batch."""
        inputs, targets = device.to_device(batch.inputs, batch.targets)
        with device.autocast():
            hidden = model.hidden_states(inputs)  # (B, T, C)
        context_len = torch.arange(1, targets.shape[1] + 1, device=device.torch_device).expand_as(
            targets
        )
        return [part[targets != IGNORE_INDEX] for part in (hidden, targets, context_len)]

    model.eval()
    size = max(MIN_CHUNK, CHUNK_LOGITS // model.vocab_size)
    left: list[Tensor] = []  # what is not yet in a chunk
    for parts in itertools.chain(device.map(read, batches), [None]):
        if parts is not None:
            left = [torch.cat(pair) for pair in zip(left, parts, strict=True)] if left else parts
        while left and len(left[1]) >= (size if parts is not None else 1):
            (hidden, targets, context_len), left = (
                [part[:size] for part in left],
                [part[size:] for part in left],
            )
            with device.autocast():
                logits = model.logits(hidden)
            if not logits.isfinite().all():
                raise UserError(DIVERGED)
            yield Predictions(logits, targets, context_len)


def score(predictions: Iterable[Predictions], temperatures: Sequence[float]) -> Scores:
    """The scores of all targets; only one chunk of logits is in memory."""
    *columns, tempered = zip(*(_score(part, temperatures) for part in predictions), strict=True)
    return Scores._make([*map(np.concatenate, columns), np.sum(tempered, axis=0)])


@torch.inference_mode()
def _score(predictions: Predictions, temperatures: Sequence[float]) -> Scores:
    logits, y = predictions.logits, predictions.targets[:, None]
    z_y, z_max = logits.gather(1, y), logits.amax(dim=1, keepdim=True)  # (n, 1)
    higher, ties = (logits > z_y).sum(dim=1), (logits == z_y).sum(dim=1)
    logits, z_y = logits - z_max, z_y - z_max  # so that no temperature overflows
    exp_sum = logits.exp().sum(dim=1)
    nll = exp_sum.log() - z_y[:, 0]
    scaled = torch.empty_like(logits)
    tempered = [
        (torch.div(logits, T, out=scaled).exp_().sum(dim=1).log() - z_y[:, 0] / T)
        .cpu()
        .double()
        .sum()
        for T in temperatures
    ]
    columns = [
        nll.cpu().double(),
        predictions.targets,
        higher,
        ties,
        1 / exp_sum,
        predictions.context_len,
        torch.stack(tempered),
    ]
    return Scores(*(column.cpu().numpy() for column in columns))


@torch.inference_mode()
def explain(predictions: Iterable[Predictions], temperatures: Sequence[float]) -> Details:
    """The details of all targets of a short text."""
    parts = []
    for logits, targets, _ in predictions:
        log_q = logits.log_softmax(dim=1)
        nll = -log_q.gather(1, targets[:, None])[:, 0]
        top = log_q.topk(min(TOP, log_q.shape[1]), dim=1)
        log_z = torch.stack([(log_q / T).logsumexp(dim=1) for T in temperatures], dim=1)
        parts.append([nll, 1 + (log_q > -nll[:, None]).sum(dim=1), top.indices, top.values, log_z])
    return Details(*(torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True)))
