"""N-grams with interpolated modified Kneser-Ney smoothing, the strongest model that only counts.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling".
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.documents import Split


class NGrams(NamedTuple):
    """The n-grams of one order n in a text; equal n-grams have one number, 0 to D - 1."""

    numbers: np.ndarray  # of the n-gram that ends at each position, from position n - 1 on
    contexts: np.ndarray  # (D,), the number of the (n-1)-gram that each n-gram starts with


def ngram_nll(train: Split, val: np.ndarray, vocab_size: int, longest: int) -> Iterator[np.ndarray]:
    """Yield the NLL of each token of val[1:], in nats, by n-grams of order 1, 2, ... `longest`.

    Under a mask only those n-grams of `train` count that end in a target. The text runs on from
    train into val, so every token has its whole context.

    >>> train = np.array([0, 1] * 500)
    >>> [round(float(nll.mean()), 2) for nll in ngram_nll(Split(train), train[:9], 2, 2)]
    [0.69, 0.0]
    """
    tokens = np.concatenate([train.tokens, val]).astype(np.int64)
    num_scored = len(val) - 1
    is_counted = np.ones(len(train.tokens), bool)
    if train.unmasked is not None:
        is_counted[:] = train.unmasked
        is_counted[0] = False  # nothing precedes it

    # The n-gram without tokens ends before each position, and after the last.
    everywhere = np.zeros(len(tokens) + 1, np.int64)
    shorter = NGrams(everywhere, contexts=np.zeros(1, np.int64))
    lower = np.full(num_scored, 1.0 / vocab_size)  # the probabilities by shorter n-grams
    for n in range(1, longest + 1):
        grams = find_ngrams(tokens[n - 1 :], shorter, vocab_size)
        in_train = grams.numbers[: len(is_counted) - (n - 1)]
        counted = in_train[is_counted[n - 1 :]]
        counts = np.bincount(counted, minlength=len(grams.contexts))
        if n > 1:
            continuations = count_continuations(grams, counts, shorter)
            lower = interpolate(continuations, shorter, lower)
        yield -np.log(interpolate(counts, grams, lower))
        shorter = grams


def find_ngrams(last_tokens: np.ndarray, shorter: NGrams, vocab_size: int) -> NGrams:
    """Number the n-grams that consist of an (n-1)-gram and the token after it."""
    keys = shorter.numbers[:-1] * vocab_size + last_tokens
    unique_keys, numbers = distinct(keys)
    return NGrams(numbers, unique_keys // vocab_size)


def count_continuations(grams: NGrams, counts: np.ndarray, shorter: NGrams) -> np.ndarray:
    """Count the distinct tokens that come before each (n-1)-gram in training.

    These are the n-grams of training that end in it. Kneser-Ney counts them, not occurrences, for
    all n-grams but the longest.
    """
    suffixes = np.empty(len(grams.contexts), np.int64)
    suffixes[grams.numbers] = shorter.numbers[1:]
    return np.bincount(suffixes[counts > 0], minlength=len(shorter.contexts))


def interpolate(counts: np.ndarray, grams: NGrams, lower: np.ndarray) -> np.ndarray:
    """Compute P(token | context) at the last positions, (M,); `lower` is that by shorter n-grams.

    P = (count - discount) / total(context) + freed(context) / total(context) x lower: what is
    discounted from the counts goes to the shorter context. A context without counts leaves it all.
    """
    discounts = find_discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(grams.contexts, weights=counts)
    freed = np.bincount(grams.contexts, weights=discounts)

    scored = grams.numbers[len(grams.numbers) - len(lower) :]
    context = grams.contexts[scored]
    has_counts = total[context] > 0
    divisor = np.where(has_counts, total[context], 1.0)
    own = (counts - discounts)[scored] / divisor
    left = np.where(has_counts, freed[context] / divisor, 1.0)
    return own + left * lower


def find_discounts(counts: np.ndarray) -> np.ndarray:
    """Estimate what to take from counts of 0, 1, 2, and 3 or more, (4,), by how many there are."""
    occurrences = np.bincount(np.minimum(counts, 5), minlength=5)
    n1, n2, n3, n4 = occurrences[1:5].clip(1)
    y = n1 / (n1 + 2 * n2)
    discount1 = np.clip(1 - 2 * y * n2 / n1, 0.01, 1)
    discount2 = np.clip(2 - 3 * y * n3 / n2, 0.01, 2)
    discount3 = np.clip(3 - 4 * y * n4 / n3, 0.01, 3)
    return np.array([0, discount1, discount2, discount3])


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct keys, in order, and the index of each key among them.

    np.unique does the same in 4 times the time: NumPy sorts numbers several times faster than it
    finds their order. So each key carries its position in its low bits while it is sorted.
    """
    bits = len(keys).bit_length()
    if int(keys.max()) >> (63 - bits):  # no room for them
        return np.unique(keys, return_inverse=True)
    pairs = np.sort(keys << bits | np.arange(len(keys)))
    position = pairs & (2**bits - 1)
    keys = pairs >> bits
    is_new = np.append(True, keys[1:] != keys[:-1])
    index = np.empty_like(keys)
    index[position] = np.cumsum(is_new) - 1
    return keys[is_new], index
