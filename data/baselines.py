"""Measures what a loss has to beat on validation text: log|V|, n-grams and compressors.

They are measured on the tokens that are a model's targets: val[1:], without the masked ones. The
n-grams are counted in the training split, where they end in a target; their contexts may be masked.
The compressors see val[1:] only; under a mask there are none, because they cannot be told what is
masked.
"""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from data.documents import Split
from data.info import ENTROPY_RATE, MAX_TRAIN_TOKENS, MAX_VAL_TOKENS, PASSAGE, UNIFORM, Baseline
from data.ngrams import ngram_nll
from data.tokenizer import Tokenizer
from surprisal import LN2, bits_per_byte, perplexity, uniform_nll

MAX_ORDER = 6  # tokens in the longest n-gram, for small vocabularies
MAX_ORDER_OF_MANY = 4  # and for others
GZIP_WINDOW = 2**15  # bytes that gzip looks back
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def measure_baselines(
    train: Split, val: Split, tokenizer: Tokenizer, entropy_rate: float | None = None
) -> Iterator[Baseline]:
    """Measure the baselines, one after another; the entropy rate is in nats per token."""
    train = train.last(MAX_TRAIN_TOKENS)
    val = val.first(max(MAX_VAL_TOKENS, val.first_target()))  # one target at least
    vocab_size = tokenizer.vocab_size
    num_targets = val.num_targets()
    num_bytes = tokenizer.count_bytes(val.targets())
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

    most = MAX_ORDER if vocab_size < 500 else MAX_ORDER_OF_MANY
    longest = max(1, min(most, len(train.tokens) - 1))
    names = {longest: f"{longest}-gram", 1: "unigram", 2: "bigram"}
    nll_by_order = ngram_nll(train, val.tokens, vocab_size, longest)
    for order, nll in enumerate(nll_by_order, start=1):
        if order in names:
            of_targets = nll if val.unmasked is None else nll[val.unmasked[1:]]
            of_passage = nll[passage.start - 1 : passage.stop - 1]
            yield baseline(names[order], float(of_targets.sum()), of_passage)

    if val.unmasked is None:
        text = tokenizer.decode_bytes(val.tokens[1:].tolist())
        for name, compress in COMPRESSORS.items():
            nats = 8 * LN2 * len(compress(text))
            of_passage = np.zeros(0)
            if name == "gzip":
                of_passage = gzip_nll(val.tokens, passage, tokenizer)
            yield baseline(name, nats, of_passage)

    if entropy_rate is not None:
        yield baseline(ENTROPY_RATE, num_targets * entropy_rate)


def find_passage(val: Split, tokenizer: Tokenizer) -> slice:
    """Find the tokens of the validation split that a run's page shows.

    They start after a line end, and where gzip's window is full; in a short text, in its middle or
    before. Under a mask, there is a target among them.
    """
    latest = max(1, len(val.tokens) - PASSAGE)
    earliest = min(GZIP_WINDOW, 1 + latest // 2)
    start = earliest
    tokens = val.take(slice(earliest, earliest + PASSAGE)).tolist()
    for number, token in enumerate(tokens, start=1):
        if token == tokenizer.eos or tokenizer.token_bytes[token].endswith(b"\n"):
            start = min(earliest + number, latest)
            break
    if val.unmasked is not None and not val.unmasked[start : start + PASSAGE].any():
        targets = 1 + np.flatnonzero(val.unmasked[1:])
        nearest = int(targets[np.abs(targets - start).argmin()])
        start = max(1, min(nearest - PASSAGE // 2, latest))
    return slice(start, min(start + PASSAGE, len(val.tokens)))


def gzip_nll(tokens: np.ndarray, passage: slice, tokenizer: Tokenizer) -> np.ndarray:
    """Measure what each token of a passage adds to the compressed text before it, in nats.

    gzip counts whole bytes.
    """
    window = tokens[max(0, passage.start - GZIP_WINDOW) : passage.start]
    coder = zlib.compressobj(9)
    written = len(coder.compress(tokenizer.decode_bytes(window.tolist())))
    sizes = [written + len(coder.copy().flush())]
    for token in tokens[passage].tolist():
        written += len(coder.compress(tokenizer.token_bytes[token]))
        sizes.append(written + len(coder.copy().flush()))
    return 8 * LN2 * np.diff(np.maximum.accumulate(sizes))
