"""Mixes a model's probabilities with those of an n-gram: what counting knows that it does not."""

from typing import NamedTuple

import numpy as np

from config.errors import UserError
from data.baselines import NGRAMS
from data.documents import Split
from data.info import MAX_TRAIN_TOKENS
from data.ngrams import ngram_nll
from engine.run import Run

# of the model, that are tried; none is 0 or 1, so no target costs more than either's plus log 100
WEIGHTS = np.arange(1, 100) / 100
CHUNK = 4096  # targets that are worked on at once


class Mixture(NamedTuple):
    """What a mixture of two predictions costs, target by target, (N,) each."""

    nll: np.ndarray  # nats
    weights: np.ndarray  # of the first prediction


def mix_causally(nll_q: np.ndarray, nll_p: np.ndarray) -> Mixture:
    """Predict each target with w q + (1 - w) p, and the w that was best on the targets before it.

    `nll_q` and `nll_p` (N,) are the nats of the targets by either prediction alone. Of equally good
    w that nearest to 1/2 counts, so the first is 1/2. No target has a part in its own w, so the sum
    is a code length: a receiver who has both predictions finds the same w.

    >>> mixture = mix_causally(-np.log([0.5, 0.9, 0.9]), -np.log([0.1, 0.1, 0.1]))
    >>> mixture.weights.tolist(), np.exp(-mixture.nll).round(3).tolist()
    ([0.5, 0.99, 0.99], [0.3, 0.892, 0.892])
    """
    nll = []
    weights = []
    # of each weight, on all targets before; what is added decides only between equals
    nats_before = 1e-9 * abs(WEIGHTS - 0.5)
    for start in range(0, len(nll_q), CHUNK):
        part = slice(start, start + CHUNK)
        log_q = np.log(WEIGHTS) - nll_q[part, None]  # (n, K)
        log_p = np.log(1 - WEIGHTS) - nll_p[part, None]
        costs = -np.logaddexp(log_q, log_p)
        after = nats_before + np.cumsum(costs, axis=0)
        before = np.vstack([nats_before, after[:-1]])
        best = before.argmin(axis=1)  # (n,)
        nll.append(costs[np.arange(len(best)), best])
        weights.append(WEIGHTS[best])
        nats_before = after[-1]
    return Mixture(np.concatenate(nll), np.concatenate(weights))


def find_order(run: Run, name: str) -> int:
    """Find how many tokens the n-gram of that name has; UserError if the run has none to mix with.

    Only n-grams give each target a probability of its own, so only they can be mixed.
    """
    names = [each.name for each in run.info.baselines if each.name in NGRAMS]
    if not names:
        raise UserError(f"mix={name}: {run.path} has no n-gram among its baselines to mix with")
    if name not in names:
        raise UserError(f"mix={name}: {run.path} can be mixed with {', '.join(names)}")
    return names.index(name) + 1


def count_ngrams(train: Split, tokens: np.ndarray, run: Run, order: int) -> np.ndarray:
    """Measure each of tokens[1:] by n-grams of that order, in nats, as the baseline does."""
    train = train.last(MAX_TRAIN_TOKENS)
    *_, longest = ngram_nll(train, tokens, run.tokenizer.vocab_size, order)
    return longest
