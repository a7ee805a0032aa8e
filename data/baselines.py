"""What a loss has to beat: log|V|, n-grams and compressors, all measured on validation text.

They are measured on the tokens that are a model's targets: val[1:], without the masked ones. The
n-grams are counted in the training split, where they end in a target; their contexts may be masked.
They are interpolated modified Kneser-Ney (Chen & Goodman 1999, "An empirical study of smoothing
techniques for language modeling"), the strongest model that only counts. The compressors see
val[1:] only; under a mask there are none, because they cannot be told what is masked.
"""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from config.terminal import one_line
from data.documents import Split
from data.tokenizer import Tokenizer
from surprisal import LN2, bits_per_byte, perplexity, uniform_nll

UNIFORM = "uniform, log|V|"  # where every untrained model is
ENTROPY_RATE = "entropy rate"  # of the text's source, where it is known: no model has a lower loss
MAX_NATS = 1e6  # that a file may say of a token; a compressor's header can cost hundreds
EQUAL = 1e-4  # nats that are rounding
MAX_ORDER = 6  # tokens in the longest n-gram, for small vocabularies
MAX_TRAIN_TOKENS = 8_000_000  # counted; of a longer text, the last ones
MAX_VAL_TOKENS = 1_000_000  # measured on; of a longer text, the first ones
PASSAGE = 256  # tokens of the validation split that a run's page shows one by one
GZIP_WINDOW = 2**15  # bytes that gzip looks back
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


Name = Annotated[str, AfterValidator(one_line)]  # from a file that somebody may have sent
Nats = Annotated[float, Field(gt=-1e-3, le=MAX_NATS)]  # a certain prediction may round to below 0


class Baseline(BaseModel):
    """A predictor's name, and its loss on the validation split."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Name
    nats_per_token: Nats
    bits_per_byte: Nats
    perplexity: float = Field(ge=0)
    # In nats, of each token of the passage, where it is known.
    passage_nll: list[Nats] = Field([], max_length=PASSAGE)


def passed_and_ahead(
    nll: float, baselines: Sequence[Baseline]
) -> tuple[list[Baseline], list[Baseline]]:
    """The baselines that a loss has passed and those ahead, each from the worst to the best; not
    the entropy rate.
    """
    ordered = sorted(
        (each for each in baselines if each.name != ENTROPY_RATE),
        key=lambda each: -each.nats_per_token,
    )
    passed = [each for each in ordered if nll < each.nats_per_token - EQUAL]
    return passed, ordered[len(passed) :]


def measure_baselines(
    train: Split, val: Split, tokenizer: Tokenizer, entropy_rate: float | None = None
) -> Iterator[Baseline]:
    """The baselines, one after another; the entropy rate is in nats per token."""
    train = train.last(MAX_TRAIN_TOKENS)
    val = val.first(max(MAX_VAL_TOKENS, val.first_target()))  # one target at least
    vocab_size, num_targets = tokenizer.vocab_size, val.num_targets()
    num_bytes = tokenizer.count_bytes(val.targets())
    unmasked = slice(None) if val.unmasked is None else val.unmasked[1:]
    passage = find_passage(val, tokenizer)

    def baseline(name: str, nats: float, passage_nll: Iterable[float] = ()) -> Baseline:
        mean = nats / num_targets
        return Baseline(
            name=name,
            nats_per_token=mean,
            perplexity=min(perplexity(mean), sys.float_info.max),
            bits_per_byte=bits_per_byte(nats, num_bytes),
            passage_nll=[round(float(each), 4) for each in passage_nll],
        )

    yield baseline(UNIFORM, num_targets * uniform_nll(vocab_size))
    longest = max(1, min(MAX_ORDER if vocab_size < 500 else 4, len(train.tokens) - 1))
    for order, nll in enumerate(ngram_nll(train, val.tokens, vocab_size, longest), start=1):
        if order in (1, 2, longest):
            yield baseline(
                {1: "unigram", 2: "bigram"}.get(order, f"{order}-gram"),
                float(nll[unmasked].sum()),
                nll[passage.start - 1 : passage.stop - 1],
            )
    if val.unmasked is None:
        text = tokenizer.decode_bytes(val.tokens[1:].tolist())
        for name, compress in COMPRESSORS.items():
            yield baseline(
                name,
                8 * LN2 * len(compress(text)),
                gzip_nll(val.tokens, passage, tokenizer) if name == "gzip" else (),
            )
    if entropy_rate is not None:
        yield baseline(ENTROPY_RATE, num_targets * entropy_rate)


def find_passage(val: Split, tokenizer: Tokenizer) -> slice:
    """The tokens of the validation split that a run's page shows: after a line end, and where
    gzip's window is full.

    A short text is shown from its middle or before. Under a mask, there is a target among them.
    """
    latest = max(1, len(val.tokens) - PASSAGE)
    start = min(GZIP_WINDOW, 1 + latest // 2)
    tokens = val.take(slice(start, start + PASSAGE))
    line_ends = (
        start + number + 1
        for number, token in enumerate(tokens.tolist())
        if token == tokenizer.eos or tokenizer.token_bytes[token].endswith(b"\n")
    )
    start = min(next(line_ends, start), latest)
    if val.unmasked is not None and not val.unmasked[start : start + PASSAGE].any():
        targets = 1 + np.flatnonzero(val.unmasked[1:])
        nearest = int(targets[np.abs(targets - start).argmin()])
        start = max(1, min(nearest - PASSAGE // 2, latest))
    return slice(start, min(start + PASSAGE, len(val.tokens)))


def gzip_nll(tokens: np.ndarray, passage: slice, tokenizer: Tokenizer) -> np.ndarray:
    """What each token of a passage adds to the compressed text before it, in nats; gzip counts
    whole bytes.
    """
    before = tokenizer.decode_bytes(
        tokens[max(0, passage.start - GZIP_WINDOW) : passage.start].tolist()
    )
    coder = zlib.compressobj(9)
    done = len(coder.compress(before))
    sizes = [done + len(coder.copy().flush())]
    for token in tokens[passage].tolist():
        done += len(coder.compress(tokenizer.token_bytes[token]))
        sizes.append(done + len(coder.copy().flush()))
    return 8 * LN2 * np.diff(np.maximum.accumulate(sizes))


def ngram_nll(train: Split, val: np.ndarray, vocab_size: int, longest: int) -> Iterator[np.ndarray]:
    """The NLL in nats of each token of val[1:], by n-grams of order 1, 2, ... `longest`.

    Under a mask only those n-grams of `train` count that end in a target. The text runs on from
    train into val, so every token has its whole context. Each distinct n-gram gets an id by
    sorting, so that orders and vocabularies of any size fit in memory.

    >>> train = np.array([0, 1] * 500)
    >>> [round(float(nll.mean()), 2) for nll in ngram_nll(Split(train), train[:9], 2, 2)]
    [0.69, 0.0]
    """
    tokens = np.concatenate([train.tokens, val]).astype(np.int64)
    n_train, first = len(train.tokens), len(train.tokens) + 1  # `first` is the position of val[1]
    is_counted = None if train.unmasked is None else np.array(train.unmasked)
    if is_counted is not None:
        is_counted[0] = False  # nothing precedes it
    context = np.zeros(len(tokens), dtype=np.int64)  # id of the n-1 tokens before each position
    # probabilities by the next shorter n-grams
    shorter = np.full(len(tokens) - first, 1.0 / vocab_size)
    contexts = scored = suffix = context[:0]  # of the next shorter n-grams
    for start in range(longest):  # the first position at which a whole n-gram ends
        unique, gram = distinct(context[start:] * vocab_size + tokens[start:])
        in_train = gram[: n_train - start]
        if is_counted is not None:
            in_train = in_train[is_counted[start:]]
        occurrences = np.bincount(in_train, minlength=len(unique))
        if start:
            # The longest n-grams count occurrences. Shorter ones count the distinct tokens that
            # come before them: the n-grams of training that are one longer and end in them.
            ending = np.empty(len(unique), dtype=np.int64)
            ending[gram] = suffix[1:]
            continuations = np.bincount(ending[occurrences > 0], minlength=len(contexts))
            shorter = _interpolate(continuations, contexts, scored, shorter)
        contexts, scored, suffix = unique // vocab_size, gram[first - start :], gram
        yield -np.log(_interpolate(occurrences, contexts, scored, shorter))
        context[start + 1 :] = gram[:-1]


def _interpolate(
    counts: np.ndarray, contexts: np.ndarray, scored: np.ndarray, shorter: np.ndarray
) -> np.ndarray:
    """P(token | context) of the n-grams `scored`, (M,), given the probabilities by the shorter
    ones.

    P = (count - discount) / total(context) + freed(context) P(token | shorter context): what is
    discounted from the counts goes to the shorter context, and a context without counts leaves it
    everything.
    """
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5].clip(1)
    y = n1 / (n1 + 2 * n2)
    discounts = np.clip(
        [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0.01, [1, 1, 2, 3]
    )
    discounts[0] = 0
    discount = discounts[np.minimum(counts, 3)]
    total, freed = np.bincount(contexts, weights=counts), np.bincount(contexts, weights=discount)
    own = contexts[scored]
    divisor = np.where(total[own] > 0, total[own], 1.0)
    return (counts - discount)[scored] / divisor + np.where(
        total[own] > 0, freed[own] / divisor, 1.0
    ) * shorter


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in order, and the index of each key among them: np.unique, but 4 times
    faster.

    NumPy sorts numbers several times faster than it finds their order, so each key carries its
    position in low bits.
    """
    bits = len(keys).bit_length()
    if int(keys.max()) >> (63 - bits):  # no room for them
        return np.unique(keys, return_inverse=True)
    pairs = np.sort(keys << bits | np.arange(len(keys)))
    position, keys = pairs & (2**bits - 1), pairs >> bits
    is_new = np.concatenate([[True], keys[1:] != keys[:-1]])
    index = np.empty_like(keys)
    index[position] = np.cumsum(is_new) - 1
    return keys[is_new], index
