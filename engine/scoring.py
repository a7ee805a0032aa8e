"""What a model makes of each token: its surprisal, its rank, and how sure the model was."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batches import Batch
from engine.distributed import World
from errors import DIVERGED, UserError
from loss import IGNORE_INDEX
from model import GPT

CHUNK_LOGITS = 2**20  # logits worked on at once, which stay in the cache
MIN_CHUNK = 256  # tokens, so that a large vocabulary's matrix products stay efficient


class Predictions(NamedTuple):
    """What a model says before each of n scored tokens, in order of the text."""

    logits: Tensor  # (n, V) float32
    targets: Tensor  # (n,) the tokens that came
    seen: Tensor  # (n,) tokens that the model had before it, 1 ... T


@dataclass(frozen=True)
class Scores:
    """Of each scored token, in order of the text, `(N,)`; NLL in nats."""

    nll: np.ndarray  # float64
    targets: np.ndarray
    rank: np.ndarray  # tokens that were held more probable; 0 where the guess was right
    confidence: np.ndarray  # probability of the most probable token
    seen: np.ndarray  # tokens that the model had before it
    tempered: np.ndarray  # (K,) total NLL with the logits multiplied by each of K inverse temperatures


@torch.inference_mode()
def predict(model: GPT, batches: Iterable[Batch], world: World) -> Iterator[Predictions]:
    """The predictions for each scored token, in chunks of a size that depends on the vocabulary only."""
    model.eval()
    size = max(MIN_CHUNK, CHUNK_LOGITS // len(model.head))
    left: list[Tensor] = []  # hidden states, targets and seen that are still to be scored
    for batch in batches:
        inputs, targets = (torch.from_numpy(array).to(world.device) for array in (batch.inputs, batch.targets))
        with world.autocast():
            hidden = model.forward(inputs)  # (B, T, C)
        scored = targets != IGNORE_INDEX
        seen = torch.arange(1, targets.shape[1] + 1, device=world.device).expand_as(targets)
        parts = [part[scored] for part in (hidden, targets, seen)]
        left = [torch.cat(pair) for pair in zip(left, parts, strict=True)] if left else parts
        while len(left[1]) >= size:
            yield _predictions(model, world, *(part[:size] for part in left))
            left = [part[size:] for part in left]
    if left and len(left[1]):
        yield _predictions(model, world, *left)


def _predictions(model: GPT, world: World, hidden: Tensor, targets: Tensor, seen: Tensor) -> Predictions:
    with world.autocast():
        logits = model.logits(hidden)
    if not logits.isfinite().all():
        raise UserError(DIVERGED)
    return Predictions(logits, targets, seen)


def score(predictions: Iterable[Predictions], inverse_temperatures: Sequence[float]) -> Scores:
    """The scores of all tokens; the logits of a chunk of them are in memory at a time."""
    return _join([_score(part, inverse_temperatures) for part in predictions])


def score_both(ours: Iterable[Predictions], theirs: Iterable[Predictions], inverse_temperatures: Sequence[float]
               ) -> tuple[Scores, Scores, np.ndarray]:
    """The scores of two models on the same tokens; and KL(ours || theirs), KL(theirs || ours) at each, `(2, N)`."""
    pairs = [(_score(a, inverse_temperatures), _score(b, inverse_temperatures), _divergence(a.logits, b.logits))
             for a, b in zip(ours, theirs, strict=True)]
    a, b, divergences = zip(*pairs, strict=True)
    return _join(a), _join(b), np.concatenate(divergences, axis=1)


@torch.inference_mode()
def _score(predictions: Predictions, inverse_temperatures: Sequence[float]) -> Scores:
    z, y = predictions.logits, predictions.targets[:, None]
    z_y = z.gather(1, y)  # (n, 1)
    before_y = torch.arange(z.shape[1], device=z.device) < y  # of equal logits, the first is the guess
    rank = ((z > z_y) | ((z == z_y) & before_y)).sum(dim=1)
    largest = z.amax(dim=1, keepdim=True)
    z, z_y = z - largest, z_y - largest  # so that no temperature makes them overflow
    exp_sum = z.exp().sum(dim=1)
    nll = exp_sum.log() - z_y[:, 0]
    scaled = torch.empty_like(z)
    tempered = [(torch.mul(z, beta, out=scaled).exp_().sum(dim=1).log() - beta * z_y[:, 0]).cpu().double().sum()
                for beta in inverse_temperatures]
    columns = [nll.cpu().double(), predictions.targets, rank, 1 / exp_sum, predictions.seen, torch.stack(tempered)]
    return Scores(*(column.cpu().numpy() for column in columns))


@torch.inference_mode()
def _divergence(a: Tensor, b: Tensor) -> np.ndarray:
    """KL(q || p) and KL(p || q), `(2, n)`, of the predictions q and p with logits a and b `(n, V)`."""
    log_q, log_p = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    gap = log_q - log_p
    return torch.stack([(log_q.exp() * gap).sum(dim=-1), -(log_p.exp() * gap).sum(dim=-1)]).cpu().double().numpy()


def _join(parts: Sequence[Scores]) -> Scores:
    *columns, tempered = ([getattr(part, field.name) for part in parts] for field in fields(Scores))
    arrays = [*map(np.concatenate, columns), np.sum(tempered, axis=0)]
    return Scores(*arrays)
