"""The loss along a text, part by part: where a play begins, and who learns its names sooner."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from data.baselines import PPMD_MEMORY, PPMD_ORDER
from data.documents import Split
from data.eval_text import EvalText
from data.info import MAX_TRAIN_TOKENS, TRAINED
from data.tokenizer import Tokenizer
from report.analysis import Columns
from report.new_words import (
    WORD,
    Newcomers,
    bits_by_time,
    find_marks,
    find_words,
    mean_by_time,
    select_new,
    select_newcomers,
)
from surprisal import LN2

STILL = "standing still"
LEARNING = "learning"
PPMD = f"{TRAINED}PPMd"
PART_BYTES = 2000
MAX_PARTS = 1000  # of a long text, whose parts are larger
MAX_WORD_BYTES = 8_000_000  # of a long text, in which words are looked for
EXAMPLES = 6  # of new words


class LearnedText(NamedTuple):
    """Holds what each target of a text cost a model that stood still, and the same that learned."""

    text: EvalText
    standing_still: Columns
    learning: Columns


def losses_along_text(
    learned: LearnedText, tokenizer: Tokenizer, train: Split | None = None
) -> dict[str, Any]:
    """Measure the loss of each part of a text, in its order, standing still and learning.

    Returns the "start" of each part, in bytes after the first token, and "bits_per_byte": a value
    for each part, by the names of who predicted it. A part has PART_BYTES, in whole tokens, and the
    last one what is left. With `train`, the text before, "trained PPMd" is one of them: it read
    that, and learns on. It is left out where pyppmd is missing or tokens are masked.

    "marks" are the places where many words come first that the text before did not have, and
    "new_words" what such words cost the first time, the second time, and so on.
    """
    offsets = learned.learning["offset"]
    starts = offsets - offsets[0]
    part_bytes = max(PART_BYTES, math.ceil(int(starts[-1]) / MAX_PARTS))
    # the number of the first target of each part: no part is empty
    _, firsts = np.unique(starts // part_bytes, return_index=True)
    end = starts[-1] + learned.learning["bytes"][-1]
    borders = np.append(starts[firsts], end)

    split = learned.text.split
    first = int(learned.text.positions[0])
    text = tokenizer.decode_bytes(split.tokens[first:].tolist())
    words = find_words(text[:MAX_WORD_BYTES])
    known = None
    before = b""  # the text that was read before
    if train is not None:
        before = read_end(train, tokenizer)
        known = WORD.findall(before.decode(errors="surrogateescape"))
        before += tokenizer.decode_bytes(split.tokens[:first].tolist())
    new = select_new(words, known, part_bytes)
    newcomers = select_newcomers(new, learned.learning)

    bits = {}  # of each part
    by_time = {}  # of a new word
    for name, columns in ((STILL, learned.standing_still), (LEARNING, learned.learning)):
        bits[name] = np.add.reduceat(columns["nll"], firsts) / LN2
        by_time[name] = bits_by_time(newcomers, columns)
    if train is not None and split.unmasked is None:
        written = trace_ppmd(before, text, borders, newcomers)
        if written is not None:
            bits[PPMD] = 8 * np.diff(written.at_borders)
            by_time[PPMD] = mean_by_time(8 * written.of_newcomers)
    bits_per_byte = {}
    for name, of_parts in bits.items():
        bits_per_byte[name] = (of_parts / np.diff(borders)).round(4).tolist()
    return {
        "start": starts[firsts].tolist(),
        "bits_per_byte": bits_per_byte,
        "marks": find_marks(words, new, part_bytes),
        "new_words": {
            "words": len(newcomers.words),
            "examples": newcomers.words[:EXAMPLES],
            "bits": by_time,
        },
    }


def read_end(split: Split, tokenizer: Tokenizer) -> bytes:
    """Read a text; of a long one, its end."""
    text = tokenizer.decode_bytes(split.last(MAX_TRAIN_TOKENS).tokens.tolist())
    return text[-MAX_TRAIN_TOKENS:]


class Written(NamedTuple):
    """Says how many bytes PPMd has written up to some places of a text, and for new words."""

    at_borders: np.ndarray
    of_newcomers: np.ndarray  # (words, TIMES)


def trace_ppmd(
    before: bytes, text: bytes, borders: np.ndarray, newcomers: Newcomers
) -> Written | None:
    """Measure how many bytes PPMd writes up to each place of a text, after the text before.

    None without pyppmd. The coder writes whole bytes, and up to five of them late. So a part or a
    word may be wrong by a few, and a mean of many hardly: the sum is the size of the baseline.
    """
    try:
        import pyppmd  # here, because it takes a twentieth of a second
    except ImportError:
        return None
    starts = newcomers.starts
    stops = newcomers.stops
    wanted = np.concatenate([borders, starts.ravel(), stops.ravel()])
    places = np.unique(wanted)
    coder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)  # variant H
    coder.encode(before)
    sizes = []
    for start, stop in itertools.pairwise([0, *places.tolist()]):
        sizes.append(len(coder.encode(text[start:stop])))
    written = np.cumsum(sizes)

    def up_to(some: np.ndarray) -> np.ndarray:
        found: np.ndarray = written[np.searchsorted(places, some)]
        return found

    return Written(up_to(borders), up_to(stops) - up_to(starts))
