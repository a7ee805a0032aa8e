"""The loss along a text, part by part: where a play begins, and who learns its names sooner."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.baselines import PPMD_MEMORY, PPMD_ORDER
from data.documents import Split
from data.eval_text import EvalText
from data.info import MAX_TRAIN_TOKENS, TRAINED
from data.tokenizer import Tokenizer
from report.analysis import Columns
from surprisal import LN2

PART_BYTES = 2000
MAX_PARTS = 1000  # of a long text, whose parts are larger


def losses_along_text(
    text: EvalText, tokenizer: Tokenizer, models: Mapping[str, Columns], train: Split | None = None
) -> dict[str, Any]:
    """Measure the loss of each part of a text, in the order of the text, for each of the models.

    Returns the "start" of each part, in bytes after the first token, and "bits_per_byte": a value
    for each part, by the names of the models. A part has PART_BYTES, in whole tokens, and the last
    one what is left. With `train`, the text before, "trained PPMd" is one of them: it read that,
    and learns on. It is left out where pyppmd is missing or tokens are masked.
    """
    any_model = next(iter(models.values()))
    starts = any_model["offset"] - any_model["offset"][0]
    part_bytes = max(PART_BYTES, math.ceil(int(starts[-1]) / MAX_PARTS))
    # the number of the first target of each part: no part is empty
    _, firsts = np.unique(starts // part_bytes, return_index=True)
    num_bytes = np.add.reduceat(any_model["bytes"], firsts)
    bits = {}
    for name, columns in models.items():
        bits[name] = np.add.reduceat(columns["nll"], firsts) / LN2
    if train is not None and text.split.unmasked is None:
        read = train.last(MAX_TRAIN_TOKENS).tokens
        before = np.append(read, text.split.tokens[0])
        parts = np.split(text.split.targets(), firsts[1:])
        sizes = measure_ppmd([before, *parts], tokenizer)
        if sizes:
            bits[f"{TRAINED}PPMd"] = 8 * np.array(sizes)
    bits_per_byte = {}
    for name, of_parts in bits.items():
        bits_per_byte[name] = (of_parts / num_bytes).round(4).tolist()
    return {"start": starts[firsts].tolist(), "bits_per_byte": bits_per_byte}


def measure_ppmd(parts: list[np.ndarray], tokenizer: Tokenizer) -> list[int]:
    """Measure how many bytes PPMd takes for each part of a text but the first, one after another.

    Empty without pyppmd. The coder writes whole bytes, and up to five of them late. So a part may
    be wrong by a few, and the sum is the size of the baseline.
    """
    try:
        import pyppmd  # here, because it takes a twentieth of a second
    except ImportError:
        return []
    coder = pyppmd.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)  # variant H
    sizes = []
    for tokens in parts:
        text = tokenizer.decode_bytes(tokens.tolist())
        sizes.append(len(coder.encode(text[-MAX_TRAIN_TOKENS:])))
    return sizes[1:]
