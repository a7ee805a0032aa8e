"""How much a loss varies in a text: its losses in resamples of the text's parts, or documents.

Columns have a value for each target of a text, (N,), in its order; NLL in nats.
"""

import math
from collections.abc import Sequence
from functools import reduce
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from data.eval_text import EvalText
from data.tokenizer import Tokenizer
from report.analysis import Columns
from surprisal import LN2

RESAMPLES = 2000
# In a text. Fewer and longer blocks give unsteady intervals, more give intervals that are too
# narrow.
BLOCKS = 50
MIN_DOCUMENT_BLOCKS = 10  # blocks of whole documents that make an interval
Z_95 = 1.645  # 95% of a normal distribution are below it
FEW = 10 * BLOCKS  # targets: resamples of fewer promise too much

CHUNK = 2**24  # tokens whose bytes are counted at once

Estimate = dict[str, float]  # a value, and the ends "low" and "high" of 95% of its resamples


class Blocks(NamedTuple):
    """Says what a resample of a text draws with replacement: so many blocks, or documents."""

    of_documents: bool  # whole documents in each; else parts of one text
    number: int


def byte_offsets(text: EvalText, tokenizer: Tokenizer) -> Columns:
    """Count the bytes of the text before each target ("offset"), and before its "document"."""
    offsets = np.empty(len(text.positions), dtype=np.int64)
    documents = np.empty(len(text.positions), dtype=np.int64)
    before = 0  # bytes before this chunk
    document = 0  # bytes before the document that is open where this chunk begins
    eos = -1 if tokenizer.eos is None else tokenizer.eos  # -1 is no token: the text is one document
    for start in range(0, len(text.split.tokens), CHUNK):
        tokens = text.split.take(slice(start, start + CHUNK))
        ends = before + np.cumsum(tokenizer.byte_lengths[tokens])
        here = slice(*np.searchsorted(text.positions, [start, start + CHUNK]))
        places = text.positions[here] - start
        offsets[here] = ends[places] - tokenizer.byte_lengths[tokens[places]]
        is_eos = tokens == eos
        begins = np.append(document, ends[is_eos])  # the open document, and those after each eos
        number = np.cumsum(is_eos) - is_eos  # an eos token belongs to the document that it ends
        documents[here] = begins[number[places]]
        document = int(begins[-1])
        before = int(ends[-1])
    return {"offset": offsets, "document": documents}


def measure_losses(runs: Sequence[Columns]) -> tuple[list[Columns], Blocks]:
    """Measure the loss of runs in every unit, in a text and in resamples of it.

    Each quantity is (1 + RESAMPLES,); the text itself comes first.

    A block is what begins in the same fiftieth of the text's bytes. Blocks of whole documents say
    what other documents would give. They are used if there are MIN_DOCUMENT_BLOCKS of them, and
    neighbours are not alike. Otherwise a block is a part of the text (Carlstein 1986), and
    resamples only say how much the loss varies within this text: what all of its parts have in
    common, and other texts have not, is the same in every resample.

    All runs use the same resamples: the difference of two leaves out what is hard for both.
    """
    block_bytes = max(int(columns["offset"][-1]) for columns in runs) // BLOCKS + 1
    numbers, count = join_blocks([columns["document"] // block_bytes for columns in runs])
    of_documents = count >= MIN_DOCUMENT_BLOCKS
    for number, columns in zip(numbers, runs, strict=True):
        if of_documents and neighbours_are_alike(number, columns):
            of_documents = False
    if not of_documents:
        numbers, count = join_blocks([columns["offset"] // block_bytes for columns in runs])

    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = np.vstack([np.ones(count), drawn])  # how often each block counts
    losses = []
    for number, columns in zip(numbers, runs, strict=True):
        sums = {}
        for name in ("tokens", "bytes", "nll", "top1", "top5"):
            sums[name] = weights @ np.bincount(number, weights=columns[name])
        losses.append(losses_in_units(sums))
    return losses, Blocks(of_documents, count)


def losses_in_units(sums: Columns) -> Columns:
    """Divide sums over a text by its tokens or bytes."""
    nats_per_token = sums["nll"] / sums["tokens"]
    return {
        "nats_per_token": nats_per_token,
        "bits_per_token": nats_per_token / LN2,
        "bits_per_byte": sums["nll"] / sums["bytes"] / LN2,
        "perplexity": np.exp(np.minimum(nats_per_token, 709)),  # where float64 ends
        "top1": sums["top1"] / sums["tokens"],
        "top5": sums["top5"] / sums["tokens"],
    }


def join_blocks(numbers: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Number the blocks of runs from 0, and count them.

    `numbers` has the number of each target's block. A block without a target of some run joins the
    one before.
    """
    shared = reduce(np.intersect1d, map(np.unique, numbers))
    joined = []
    for number in numbers:
        place = np.searchsorted(shared, number, side="right")
        joined.append(place.clip(min=1) - 1)
    return joined, max(1, len(shared))


def neighbours_are_alike(block: np.ndarray, columns: Columns) -> bool:
    """Return whether losses of neighbouring blocks are correlated: they are no random sample then.

    So it is with the lines or the speeches of a few plays: plays differ as wholes. `block` is the
    index of each target's block. Of random samples, 5% look so by chance.
    """
    nll = np.bincount(block, weights=columns["nll"])
    tokens = np.bincount(block, weights=columns["tokens"])
    count = len(tokens)
    loss = nll / tokens
    deviation = loss - loss.mean()
    variance = float(deviation @ deviation) or 1.0
    correlation = float(deviation[1:] @ deviation[:-1]) / variance
    return correlation > Z_95 / math.sqrt(count) - 1 / count


def intervals(quantities: Columns, blocks: Blocks) -> dict[str, Estimate]:
    """Estimate each quantity from its values in the text and in each resample."""
    tail = tail_share(blocks.number)
    estimates = {}
    for name, values in quantities.items():
        low, high = np.quantile(values[1:], [tail, 1 - tail]).tolist()
        estimates[name] = {"value": float(values[0]), "low": low, "high": high}
    return estimates


def tail_share(count: int) -> float:
    """Return the share of resamples of `count` blocks above a 95% interval, and below it.

    It is less than 2.5%, because resamples of few blocks vary too little (Hesterberg 2015).

    >>> [round(tail_share(count), 4) for count in (10, 50, 10**6)]
    [0.0086, 0.0212, 0.025]
    """
    if count < 2:
        return 0.025
    n = count - 1
    z = NormalDist().inv_cdf(0.975)
    # Student's t with n degrees of freedom, as a series in 1 / n.
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    t = z + first / n + second / n**2
    return NormalDist().cdf(-t * math.sqrt(count / n))
