"""Tokens for the eye: which of a batch are masked, and what each token of a text cost."""

import itertools
import sys
from collections.abc import Sequence

import numpy as np

from data.batches import IGNORE_INDEX, Batch
from data.tokenizer import Tokenizer

SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
ROWS = 6  # of a batch that are shown
COLUMNS = 6  # of the list of tokens


def show_masks(batch: Batch, tokenizer: Tokenizer, padded: bool = False) -> str:
    """Some rows of a batch as text, with masked tokens in [brackets]."""
    is_target = batch.targets != IGNORE_INDEX
    lines = [f"{is_target.sum():,} of {is_target.size:,} tokens are targets, {is_target.mean():.1%}; the others are "
             "masked, in [brackets] here", ""]
    for inputs, targets in zip(batch.inputs[:ROWS], batch.targets[:ROWS], strict=True):
        tokens, masked = np.append(inputs, targets[-1]), np.append(True, targets == IGNORE_INDEX)
        end = len(tokens) - masked[-1]  # a masked target is known from the next input, but for the last
        if padded:  # the padding repeats the first token
            end = 1 + int(np.flatnonzero(~masked[:end] | (tokens[:end] != tokens[0])).max(initial=0))
        line = ""
        for is_masked, indices in itertools.groupby(range(end), key=masked.__getitem__):
            text = "".join(show_token(tokenizer, tokens[i]) for i in indices)
            line += f"[{text}]" if is_masked else text
        lines.append(line)
    if len(batch.inputs) > ROWS:
        lines.append(f"... and {len(batch.inputs) - ROWS} more")
    return "\n".join(lines)


def show_costs(tokens: Sequence[int], nll: np.ndarray, tokenizer: Tokenizer) -> str:
    """Tokens (N,), each but the first with its NLL (N - 1,) in nats; on a terminal, first the text, shaded by it."""
    shown = [show_token(tokenizer, token) for token in tokens]
    cells = [f"{text.replace(' ', '␣'):>12} {cost:<7}"
             for text, cost in zip(shown, ["given", *(f"{cost:.3f}" for cost in nll)], strict=True)]
    lines = ["".join(cells[start:start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    if sys.stdout.isatty():
        step = max(nll, default=0.0) / len(SHADES)
        scale = "".join(_shade(f" {step * i:.1f} ", i) for i in range(len(SHADES)))
        text = "".join(_shade(text, int(cost // (step or 1))) for text, cost in zip(shown[1:], nll, strict=True))
        lines = [f"nats per token, from: {scale}", "", shown[0] + text, "", *lines]
    return "\n".join(lines)


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """A token within a line: line ends become visible, and an eos token has its name."""
    if token == tokenizer.eos:
        return "<|eos|>"
    text = tokenizer.decode([int(token)]).replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() else "�" for character in text)


def _shade(text: str, level: int) -> str:
    return f"\x1b[48;5;{SHADES[min(level, len(SHADES) - 1)]}m{text}\x1b[0m"
