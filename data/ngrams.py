"""N-grams, counted in a text and smoothed: interpolated modified Kneser-Ney (Chen & Goodman 1999, "An empirical
study of smoothing techniques for language modeling"), the strongest model that only counts.

A context that was never seen leaves the prediction to the one that is a token shorter:

    P(token | context) = share(context, token) + backoff(context) P(token | context but for its first token)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from errors import UserError
from files import read_sealed

MAX_VOCABULARY = 2048  # tokens: a model's head then has as many columns more
MAX_COUNTS = 2**28  # n-grams times views: each has two numbers of 4 bytes
REMEDY = "going on with the run, --init_from=resume, writes it anew"
PARTS = 10  # of a training text; for each there are shares and backoffs that leave its n-grams out


@dataclass(frozen=True)
class NGrams:
    """N-grams of 1 ... `order` tokens as a tree: an n-gram's node is the child of that of all but its last token.

    Node 0 is the empty context, node i + 1 the n-gram with key i. A key is (the parent's node) V + (the last
    token); as the keys are sorted, a node's children lie side by side, and shorter n-grams before longer.
    There are one or more views of the text: view 0 is all of it, view p leaves out its part p.
    """

    vocab_size: int
    order: int
    keys: np.ndarray  # (G,) int64
    share: np.ndarray  # (views, G) float32
    backoff: np.ndarray  # (views, G + 2) float32, by node; 1 where no child was seen, as after the last, which is none

    def to_bytes(self) -> bytes:
        """View 0, which is what predictions are made with, as safetensors."""
        return save({"keys": self.keys, "share": self.share[:1], "backoff": self.backoff[:1],
                     "sizes": np.array([self.vocab_size, self.order])})


def load_ngrams(path: Path) -> NGrams:
    """Those that a run was given; UserError if the file is not there or damaged."""
    try:
        saved = load(read_sealed(path, REMEDY))
        keys, share, backoff, sizes = (saved[name] for name in ("keys", "share", "backoff", "sizes"))
        vocab_size, order = map(int, sizes)
        if keys.dtype != np.int64 or share.shape != (1, len(keys)) or backoff.shape != (1, len(keys) + 2) or not (
                len(keys) and keys[0] >= 0 and (np.diff(keys) > 0).all()
                and (keys // vocab_size <= np.arange(len(keys))).all()):
            raise ValueError("they are no tree of n-grams")
        return NGrams(vocab_size, order, keys, share, backoff)
    except (SafetensorError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: no n-grams to load ({error}); {REMEDY}") from None


def part_of(places: np.ndarray, length: int) -> np.ndarray:
    """Which part of a text of `length` tokens some places are in, 1 ... PARTS."""
    return 1 + places * PARTS // length


def count_ngrams(tokens: np.ndarray, order: int, vocab_size: int, parts: bool = False) -> NGrams:
    """The n-grams of a text `(N,)`; with `parts`, in a view for each part too."""
    tokens = tokens.astype(np.int64)
    part = part_of(np.arange(len(tokens)), len(tokens)) - 1 if parts else np.zeros(len(tokens), dtype=np.int64)
    rows = PARTS if parts else 1
    context = np.zeros(len(tokens), dtype=np.int64)  # node of the n - 1 tokens before each place
    keys: list[np.ndarray] = []  # by n
    parents: list[np.ndarray] = []  # by n: each n-gram's context, an index among the (n - 1)-grams
    occurrences: list[np.ndarray] = []  # by n: in each part, (rows, G_n)
    shorter: list[np.ndarray] = []  # by n: each n-gram without its first token, an index among the (n - 1)-grams
    ending = np.zeros(len(tokens), dtype=np.int64)  # which (n - 1)-gram ends at each place
    nodes = 1
    for start in range(min(order, len(tokens))):  # the first place where an n-gram ends
        unique, gram = rank(context[start:] * vocab_size + tokens[start:])
        counts = np.bincount(part[start:] * len(unique) + gram, minlength=rows * len(unique))
        occurrences.append(counts.astype(np.int32).reshape(rows, -1))
        parents.append(unique // vocab_size - (nodes - len(keys[-1]) if keys else 0))
        keys.append(unique)
        somewhere = np.empty(len(unique), dtype=np.int64)
        somewhere[gram] = np.arange(start, len(tokens))
        shorter.append(ending[somewhere])
        ending[start:] = gram
        context[start + 1:] = gram[:-1] + nodes
        nodes += len(unique)
    totals = [counts.sum(axis=0) for counts in occurrences]
    views = 1 + PARTS if parts else 1
    if views * nodes > MAX_COUNTS:
        raise UserError(f"ngram={order}: {nodes - 1:,} n-grams, which take more than {8 * MAX_COUNTS / 2**30:.0f} GB; "
                        "use a smaller --ngram, or a shorter text")
    share = np.empty((views, nodes - 1), dtype=np.float32)
    backoff = np.ones((views, nodes + 1), dtype=np.float32)
    for view in range(views):
        seen = [total - own[view - 1] if view else total for total, own in zip(totals, occurrences, strict=True)]
        _smooth(seen, parents, shorter, share[view], backoff[view])
    return NGrams(vocab_size, order, np.concatenate(keys), share, backoff)


def _smooth(occurrences: list[np.ndarray], parents: list[np.ndarray], shorter: list[np.ndarray], share: np.ndarray,
            backoff: np.ndarray) -> None:
    """Fill in shares `(G,)` and backoffs `(G + 2,)`, given how often each n-gram occurs, by n."""
    context, contexts = 0, 1  # the first node of a context, and how many there are
    for n, counts in enumerate(occurrences):
        if n + 1 < len(occurrences):  # but for the longest: the distinct tokens that come before
            counts = np.bincount(shorter[n + 1][occurrences[n + 1] > 0], minlength=len(counts))
        first = context + contexts  # n-gram's node
        share[first - 1:first - 1 + len(counts)], backoff[context:first] = kneser_ney(counts, parents[n], contexts)
        context, contexts = first, len(counts)


def kneser_ney(counts: np.ndarray, contexts: np.ndarray, n_contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of n-grams, `(G,)`, with some counts and numbers of contexts `(G,)`; and backoffs, by context.

    What is discounted from the counts goes to the shorter contexts. One without counts leaves them everything.
    """
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].clip(1)
    y = n1 / (n1 + 2 * n2)
    discounts = np.clip([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0.01, [1, 1, 2, 3])
    discounts[0] = 0
    discount = discounts[np.minimum(counts, 3)]
    total = np.bincount(contexts, weights=counts, minlength=n_contexts)
    freed = np.bincount(contexts, weights=discount, minlength=n_contexts)
    divisor = np.where(total > 0, total, 1.0)
    return (counts - discount) / divisor[contexts], np.where(total > 0, freed / divisor, 1.0)


def rank(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in order, and each key's index among them: np.unique, faster for small keys."""
    if keys.max() >= min(8 * len(keys), 2**25):
        return np.unique(keys, return_inverse=True)
    present = np.bincount(keys) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[keys]
