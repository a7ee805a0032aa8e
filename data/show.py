"""Tokens for the eye: as text in a line, and which tokens of a batch are masked."""

import itertools

import numpy as np

from data.batches import IGNORE_INDEX, Batch
from data.tokenizer import Tokenizer

ROWS = 6  # of a batch that are shown


def show_masks(batch: Batch, tokenizer: Tokenizer, padded: bool = False) -> str:
    """Show some rows of a batch as text, with masked tokens in [brackets]."""
    is_target = batch.targets != IGNORE_INDEX
    lines = [
        f"{is_target.sum():,} of {is_target.size:,} tokens are targets, {is_target.mean():.1%}; "
        "the others are masked, in [brackets] here",
        "",
    ]
    for row in range(min(ROWS, len(batch.inputs))):
        inputs = batch.inputs[row]
        targets = batch.targets[row]
        lines.append(_show_row(inputs, targets, tokenizer, padded))
    if len(batch.inputs) > ROWS:
        lines.append(f"... and {len(batch.inputs) - ROWS} more")
    return "\n".join(lines)


def _show_row(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer, padded: bool) -> str:
    """Show a row of inputs (T,) and the target after the last of them."""
    tokens = np.append(inputs, targets[-1])
    masked = np.append(True, targets == IGNORE_INDEX)
    end = len(tokens)
    if masked[-1]:  # the last target is not known; of the others, the next input says it
        end -= 1
    if padded:  # padding repeats the first token, and is masked
        is_text = ~masked[:end] | (tokens[:end] != tokens[0])
        end = 1 + int(np.flatnonzero(is_text).max(initial=0))
    row = ""
    for is_masked, indices in itertools.groupby(range(end), key=masked.__getitem__):
        text = "".join(show_token(tokenizer, tokens[i]) for i in indices)
        row += f"[{text}]" if is_masked else text
    return row


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """Show a token within a line: line ends become visible, and an eos token has its name."""
    if token == tokenizer.eos:
        return "<|eos|>"
    text = tokenizer.decode([int(token)])
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    for character in set(text):
        if not character.isprintable():
            text = text.replace(character, "�")
    return text
