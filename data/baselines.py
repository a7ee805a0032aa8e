"""Measures what a loss has to beat on validation text: log|V|, n-grams and compressors.

They are measured on the tokens that are a model's targets: val[1:], without the masked ones. The
n-grams are counted in the training split, where they end in a target; their contexts may be masked.
Like a model's weights, their counts stand still on validation text. Compressors learn while they
read: each is measured on val[1:] alone, and after the training text, which makes it a `trained`
one, by the difference of two lengths. Under a mask there are none, because they cannot be told what
is masked.
"""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np

from data.documents import Split
from data.info import (
    ENTROPY_RATE,
    MAX_TRAIN_TOKENS,
    MAX_VAL_TOKENS,
    PASSAGE,
    PASSAGES,
    TRAINED,
    UNIFORM,
    Baseline,
)
from data.ngrams import ngram_nll
from data.tokenizer import Tokenizer
from surprisal import LN2, bits_per_byte, perplexity, uniform_nll

Compress = Callable[[bytes], bytes]
Compute = Callable[[], Iterable[bytes]]

NGRAMS = ("unigram", "bigram", "3-gram", "4-gram", "5-gram", "6-gram")
MAX_ORDER = 6  # tokens in the longest n-gram, for small vocabularies
MAX_ORDER_OF_MANY = 4  # and for others
PPMD_ORDER = 6  # bytes in its longest context
PPMD_MEMORY = 2**27  # bytes that it keeps contexts in
GZIP_WINDOW = 2**15  # bytes that gzip looks back


def find_compressors() -> dict[str, Compress]:
    """Return the compressors by name; PPMd is one if pyppmd is installed, else a line says so.

    PPMd is prediction by partial matching (Cleary & Witten 1984) in Shkarin's variant H.
    """
    compressors: dict[str, Compress] = {}
    try:
        import pyppmd  # here, because it takes a twentieth of a second
    except ImportError:
        print("PPMd is left out: it needs `pip install pyppmd`", file=sys.stderr)
    else:
        compressors["PPMd"] = partial(
            pyppmd.compress, max_order=PPMD_ORDER, mem_size=PPMD_MEMORY, variant="H"
        )
    return compressors | {"xz": lzma.compress, "bzip2": bz2.compress, "gzip": gzip.compress}


def measure_baselines(
    train: Split, val: Split, tokenizer: Tokenizer, entropy_rate: float | None = None
) -> Iterator[Baseline]:
    """Measure the baselines, one after another; the entropy rate is in nats per token."""
    train = train.last(MAX_TRAIN_TOKENS)
    val = measured_part(val)
    vocab_size = tokenizer.vocab_size
    num_targets = val.num_targets()
    num_bytes = tokenizer.count_bytes(val.targets())
    passages = choose_passages(val, tokenizer)
    shown = np.concatenate([np.arange(each.start, each.stop) for each in passages])

    def baseline(name: str, nats: float, passage_nll: Iterable[float] = ()) -> Baseline:
        mean = nats / num_targets
        return Baseline(
            name=name,
            nats_per_token=mean,
            perplexity=min(perplexity(mean), sys.float_info.max),
            bits_per_byte=bits_per_byte(nats, num_bytes),
            passage_nll=[round(float(each), 4) for each in passage_nll],
        )

    compressed = compress_all(train, val, tokenizer)
    yield baseline(UNIFORM, num_targets * uniform_nll(vocab_size))

    most = MAX_ORDER if vocab_size < 500 else MAX_ORDER_OF_MANY
    longest = max(1, min(most, len(train.tokens) - 1))
    nll_by_order = ngram_nll(train, val.tokens, vocab_size, longest)
    for name, nll in zip(NGRAMS, nll_by_order, strict=False):
        of_targets = nll if val.unmasked is None else nll[val.unmasked[1:]]
        yield baseline(name, float(of_targets.sum()), nll[shown - 1])

    for name, compute in compressed.items():
        alone, before, both = (8 * LN2 * len(each) for each in compute())
        costs: list[float] = []
        if name == "gzip":
            for passage in passages:
                costs.extend(gzip_nll(val.tokens, passage, tokenizer))
        yield baseline(name, alone, costs)
        yield baseline(TRAINED + name, max(0.0, both - before))

    if entropy_rate is not None:
        yield baseline(ENTROPY_RATE, num_targets * entropy_rate)


def compress_all(train: Split, val: Split, tokenizer: Tokenizer) -> dict[str, Compute]:
    """Compress the validation targets, the text before them, and both; nothing under a mask.

    Threads do it while the caller is busy. PPMd waits until it is asked for: it takes Python's lock
    so often that beside another thread it would take a hundred times as long.
    """
    if val.unmasked is not None:
        return {}
    tokens = [*train.tokens.tolist(), val.tokens[0]]
    before = tokenizer.decode_bytes(tokens)[-MAX_TRAIN_TOKENS:]
    targets = tokenizer.decode_bytes(val.tokens[1:].tolist())
    texts = (targets, before, before + targets)
    results: dict[str, Compute] = {}
    pool = ThreadPool(2)  # whose threads do not keep the program from ending
    for name, compress in find_compressors().items():
        results[name] = partial(map, compress, texts)
        if name != "PPMd":
            results[name] = pool.map_async(compress, texts).get
    pool.close()
    return results


def measured_part(val: Split) -> Split:
    """Return the beginning of a validation split; it has one target at least."""
    return val.first(max(MAX_VAL_TOKENS, val.first_target()))


def choose_passages(val: Split, tokenizer: Tokenizer) -> list[slice]:
    """Choose the tokens of the validation split that a run's page shows: whole lines, if these fit.

    The first passage is where gzip's window is full, in a short text in its middle or before; the
    others are spread over the rest. Each has a target, and none overlaps another.
    """
    val = measured_part(val)
    size = len(val.tokens)
    targets = np.arange(1, size)
    if val.unmasked is not None:
        targets = targets[val.unmasked[1:]]
    earliest = min(GZIP_WINDOW, 1 + max(0, size - PASSAGE) // 2)
    first = min(int(np.searchsorted(targets, earliest)), len(targets) - 1)
    passages = []
    stop = 0
    for number in np.linspace(first, len(targets), PASSAGES, endpoint=False).astype(int):
        place = int(targets[number])
        start = max(find_line_ends(val, tokenizer, place - PASSAGE // 2, place), default=place)
        if start >= stop:
            full = start + PASSAGE
            ends = find_line_ends(val, tokenizer, full - PASSAGE // 2, full)
            stop = max(ends, default=min(full, size))
            passages.append(slice(start, stop))
    return passages


def find_line_ends(val: Split, tokenizer: Tokenizer, start: int, stop: int) -> list[int]:
    """Find the places after the line ends in a part of a split."""
    start = max(0, start)
    ends = []
    for place, token in enumerate(val.take(slice(start, stop)).tolist(), start=start + 1):
        if token == tokenizer.eos or tokenizer.token_bytes[token].endswith(b"\n"):
            ends.append(place)
    return ends


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
