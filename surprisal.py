"""The arithmetic of surprise: what a loss in nats says, in every unit people use.

An event that was given probability q has a surprisal of -log q. Its average over what really
happens is the cross-entropy, the number this repository trains, logs and draws. Everything here is
plain Python on plain numbers; loss.py computes the same thing on tensors.
"""

import math
from collections.abc import Sequence

LN2 = math.log(2.0)  # nats in a bit


def surprisal(q: float) -> float:
    """-log q, in nats: the surprise at an event that was given probability q.

    A forecast of 90% rain costs little when it rains; one of 5% costs a lot:

    >>> round(surprisal(0.9), 3), round(surprisal(0.05), 3)
    (0.105, 2.996)
    """
    if q <= 0:
        return math.inf
    return -math.log(q)


def entropy(p: Sequence[float]) -> float:
    """H(p) = -sum p log p, in nats: the surprise that no model can avoid."""
    return cross_entropy(p, p)


def cross_entropy(p: Sequence[float], q: Sequence[float]) -> float:
    """H(p, q) = -sum p log q, in nats: the average surprise of model q when p is true.

    With the truth one-hot, only the probability of what happened counts. The model says
    [dog, cat, fish] = [0.2, 0.7, 0.1] and it was the cat:

    >>> round(cross_entropy([0, 1, 0], [0.2, 0.7, 0.1]), 3)
    0.357

    Otherwise it is the entropy plus the price of a wrong model, H(p, q) = H(p) + KL(p || q):

    >>> p, q = [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]
    >>> math.isclose(cross_entropy(p, q), entropy(p) + kl_divergence(p, q))
    True
    """
    terms = []
    for p_i, q_i in zip(p, q, strict=True):
        if p_i != 0:  # what never happens costs nothing, even if q is 0
            terms.append(p_i * surprisal(q_i))
    return math.fsum(terms)


def smoothed_entropy(vocab_size: int, label_smoothing: float) -> float:
    """H(p) of a smoothed target p = (1 - e) one_hot + e / V, in nats.

    No model has a lower cross-entropy with this target; what a model has above it is KL(p || q).

    >>> p = [0.9 + 0.1 / 4, 0.1 / 4, 0.1 / 4, 0.1 / 4]
    >>> math.isclose(smoothed_entropy(4, 0.1), entropy(p))
    True
    """
    other = label_smoothing / vocab_size  # the probability of each token but the target
    peak = 1 - label_smoothing + other
    if other == 0:  # 0 log 0 counts as 0
        return peak * surprisal(peak)
    return peak * surprisal(peak) + (vocab_size - 1) * other * surprisal(other)


def kl_divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(p || q) = sum p log(p / q), in nats: the extra surprise of believing q when p is true.

    >>> kl_divergence([0.5, 0.5], [0.5, 0.5])
    0.0
    """
    terms = []
    for p_i, q_i in zip(p, q, strict=True):
        if p_i != 0 and q_i <= 0:
            return math.inf
        if p_i != 0:
            terms.append(p_i * math.log(p_i / q_i))
    return math.fsum(terms)


def uniform_nll(vocab_size: int) -> float:
    """log|V|, in nats: the loss of a model that knows nothing; a new model is at it or near it.

    >>> round(uniform_nll(100_000), 1)
    11.5
    """
    return math.log(vocab_size)


def nats_to_bits(nats: float) -> float:
    """Bits, nats / ln 2.

    >>> round(nats_to_bits(uniform_nll(10)), 2)
    3.32
    """
    return nats / LN2


def perplexity(nats: float) -> float:
    """exp(nats): how many equally likely tokens are as hard to choose between.

    A loss of log(10) nats, or 3.32 bits, is as uncertain as a choice between ten:

    >>> round(perplexity(uniform_nll(10))), round(perplexity(3.32 * LN2))
    (10, 10)
    """
    if nats >= 709:  # float64 ends at exp(709.8)
        return math.inf
    return math.exp(nats)


def bits_per_byte(nats: float, n_bytes: float) -> float:
    """Total nats, as bits, over total bytes: compares tokenizers, and models with compressors.

    >>> bits_per_byte(8 * LN2, 4)
    2.0
    """
    return nats / (LN2 * n_bytes)
