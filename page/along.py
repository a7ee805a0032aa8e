"""Collects what the page of a model that learns shows: the loss along a text, and each part of it.

Every target of the text has two costs there, so they are packed: two characters for each.
"""

from typing import Any

import numpy as np

from data.show import show_token
from data.tokenizer import Tokenizer
from report.along_text import LearnedText
from surprisal import LN2

DIGITS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
STEPS_A_BIT = 100
MASKED = len(DIGITS) ** 2 - 1  # as a packed cost; all that costs more than 40.94 bits costs that
MAX_SHOWN = 1_000_000  # tokens in a page; of a longer text, the first ones of each part
MOST_IN_A_PART = 4000

Content = dict[str, Any]


def content_of_along(along: dict[str, Any], learned: LearnedText, tokenizer: Tokenizer) -> Content:
    """Collect the loss along a text, as losses_along_text measured it, and the parts' tokens."""
    offsets = learned.learning["offset"]
    firsts = np.searchsorted(offsets - offsets[0], along["start"]).tolist()
    stops = [*firsts[1:], len(offsets)]
    most = min(MOST_IN_A_PART, max(1, MAX_SHOWN // len(firsts)))
    shown: dict[int, str] = {}  # how each token looks
    parts = []
    for first, stop in zip(firsts, stops, strict=True):
        parts.append(content_of_part(learned, slice(first, min(stop, first + most))))
    for part in parts:
        tokens = part["tokens"]
        for token in set(tokens) - set(shown):
            shown[token] = show_token(tokenizer, token)
        part["bytes"] = sizes_of(tokens, tokenizer)
        part["tokens"] = join_tokens([shown[token] for token in tokens])
    end = offsets[-1] - offsets[0] + learned.learning["bytes"][-1]
    masks = learned.text.split.unmasked is not None
    return {**along, "end": int(end), "masks": masks, "parts": parts}


def content_of_part(learned: LearnedText, part: slice) -> Content:
    """Collect the tokens of a part of the targets, masked ones between them, and their costs."""
    positions = learned.text.positions[part]
    start = int(positions[0])
    stop = min(int(positions[-1]) + 1, start + MOST_IN_A_PART)
    places = positions[positions < stop] - start
    tokens = learned.text.split.tokens[start:stop]
    columns = {"still": learned.standing_still, "learning": learned.learning}
    content: Content = {"tokens": tokens.tolist()}
    for name, own in columns.items():
        bits = own["nll"][part][: len(places)] / LN2
        steps = (bits * STEPS_A_BIT).round().clip(0, MASKED - 1)
        codes = np.full(len(tokens), MASKED)
        codes[places] = steps
        content[name] = pack(codes)
    return content


def pack(codes: np.ndarray) -> str:
    """Write numbers below 4096 as two characters each.

    >>> pack(np.array([0, 63, 64, 4095]))
    'AAA_BA__'
    """
    first, second = np.divmod(codes, len(DIGITS))
    digits = np.stack([first, second], axis=1)
    return "".join(DIGITS[digits.ravel()])


def join_tokens(tokens: list[str]) -> str | list[str]:
    """Join tokens to a text if each is one character."""
    if all(len(token) == 1 for token in tokens):
        return "".join(tokens)
    return tokens


def sizes_of(tokens: list[int], tokenizer: Tokenizer) -> list[int] | None:
    """Return how many bytes each token has; None if each has one."""
    sizes = tokenizer.byte_lengths[tokens]
    if (sizes == 1).all():
        return None
    return [int(size) for size in sizes]
