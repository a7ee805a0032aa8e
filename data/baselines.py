"""What a loss has to beat: a ladder from log|V|, through counting, to compressors.

Every rung is measured on the whole validation split, on the tokens that a model is scored on,
`val[1:]` or those of it that a loss mask leaves. The n-grams count the training split only; the
compressors see nothing but `val[1:]`, and as nothing can be given to them, have no rung under a mask.
How n-grams are smoothed is in data/ngrams.py.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.documents import Split
from data.ngrams import kneser_ney, rank
from data.tokenizer import Tokenizer
from surprisal import LN2, bits_per_byte, perplexity, uniform_nll

UNIFORM = "uniform, log|V|"  # the rung that every model starts on
FLOOR = "entropy rate"  # where it is known: the rung that no model passes
MAX_ORDER = 6  # tokens in the longest n-gram, for a small vocabulary
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0), "bzip2": bz2.compress, "xz": lzma.compress}


@dataclass(frozen=True)
class Baseline:
    """One rung: a predictor's name and its loss on the validation split."""

    name: str
    nats_per_token: float
    bits_per_byte: float
    perplexity: float


def ladder(train: np.ndarray, split: Split, tokenizer: Tokenizer, entropy_rate: float | None = None
           ) -> Iterator[Baseline]:
    """The rungs on a validation split, computed one after another; `train` is token ids `(N,)`.

    The entropy rate, in nats per token, is that of the text's source, not of this split, and known to few.
    """
    vocab_size, val = tokenizer.vocab_size, split.tokens
    chosen = slice(None) if split.scored is None else split.scored[1:]
    scored, scored_bytes = split.count_scored(), tokenizer.count_bytes(split.targets())

    def rung(name: str, total_nats: float) -> Baseline:
        nats = total_nats / scored
        return Baseline(name, nats, bits_per_byte(total_nats, scored_bytes), perplexity(nats))

    yield rung(UNIFORM, scored * uniform_nll(vocab_size))
    longest = max(1, min(MAX_ORDER if vocab_size < 500 else 4, len(train) - 1))
    for order, nll in enumerate(ngram_nll(train, val, vocab_size, longest), start=1):
        if order in (1, 2, longest):
            yield rung({1: "unigram", 2: "bigram"}.get(order, f"{order}-gram"), float(nll[chosen].sum()))
    if split.scored is not None:
        return
    text = tokenizer.decode_bytes(val[1:].tolist())
    for name, compress in COMPRESSORS.items():
        yield rung(name, 8 * LN2 * len(compress(text)))
    if entropy_rate is not None:
        yield rung(FLOOR, scored * entropy_rate)


def ngram_nll(train: np.ndarray, val: np.ndarray, vocab_size: int, longest: int) -> Iterator[np.ndarray]:
    """NLL in nats of each token of `val[1:]`, `(len(val) - 1,)`, by n-grams of order 1, 2, ... `longest`.

    Text runs on from train into val, so every validation token has its whole context. Each n-gram
    that occurs gets an id by sorting, so orders and vocabularies of any size fit in memory.

    >>> train = np.array([0, 1] * 500)
    >>> [round(float(nll.mean()), 2) for nll in ngram_nll(train, train[:9], 2, 2)]
    [0.69, 0.0]
    """
    tokens = np.concatenate([train, val]).astype(np.int64)
    n_train, first = len(train), len(train) + 1  # `first` is the position of val[1]
    context = np.zeros(len(tokens), dtype=np.int64)  # id of the n-1 tokens before each position
    backoff = np.full(len(tokens) - first, 1.0 / vocab_size)
    # Kneser-Ney: the longest order counts occurrences; lower ones, the distinct tokens that come before.
    # Each order is asked for as the longest, so both kinds of count are made.
    for order in range(1, longest + 1):
        start = order - 1  # the first position with a whole n-gram behind it
        unique, gram = rank(context[start:] * vocab_size + tokens[start:])
        in_train = gram[: n_train - start]
        occurrences = np.bincount(in_train, minlength=len(unique))
        contexts = unique // vocab_size
        at = gram[first - start:]  # the n-grams to be scored
        yield -np.log(_interpolate(occurrences, contexts, at, backoff))
        # An n-gram one longer, ending at position i, is the id of the n-gram ending at i - 1, and token i.
        if order == longest:
            return
        longer = np.unique(gram[: n_train - start - 1] * vocab_size + tokens[start + 1: n_train], return_index=True)[1]
        continuations = np.bincount(gram[1:][longer], minlength=len(unique))
        backoff = _interpolate(continuations, contexts, at, backoff)
        context[start + 1:] = gram[:-1]


def _interpolate(counts: np.ndarray, contexts: np.ndarray, at: np.ndarray, backoff: np.ndarray) -> np.ndarray:
    """Probability of the n-grams `at`, `(M,)`, given the next shorter ones'."""
    share, left = kneser_ney(counts, contexts, int(contexts.max()) + 1)
    return share[at] + left[contexts[at]] * backoff
