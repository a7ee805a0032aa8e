"""Tokens for the eye: which of a batch are masked, and what each token of a text cost."""

import sys
from collections.abc import Sequence

import numpy as np

from data.batches import IGNORE_INDEX, Batch
from data.tokenizer import Tokenizer

DIM, RESET = "\x1b[2m", "\x1b[0m"
SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
ROWS = 6  # of a batch that are shown
COLUMNS = 6  # of the list of tokens


def show_masks(batch: Batch, tokenizer: Tokenizer, padded: bool = False, colour: bool | None = None) -> str:
    """Some rows of a batch as text; masked tokens are dim, or [in brackets] where there are no colours."""
    colour = sys.stdout.isatty() if colour is None else colour
    is_target = batch.targets != IGNORE_INDEX
    lines = [f"{is_target.sum():,} of {is_target.size:,} tokens are targets, {is_target.mean():.1%}; the others are "
             f"masked, {'dim' if colour else 'in [brackets]'} here", ""]
    lines += [_paint(*_row(batch, row, padded), tokenizer, colour) for row in range(min(ROWS, len(batch.inputs)))]
    if len(batch.inputs) > ROWS:
        lines.append(f"... and {len(batch.inputs) - ROWS} more")
    return "\n".join(lines)


def show_costs(tokens: Sequence[int], nll: Sequence[float], tokenizer: Tokenizer, colour: bool | None = None) -> str:
    """A text with each token shaded by its NLL, in nats, and a list of all; the first token has no cost (NaN)."""
    colour = sys.stdout.isatty() if colour is None else colour
    costs = np.asarray(nll)
    top = max(float(np.nanmax(costs, initial=0)), 1e-9)
    lines = []
    if colour:
        steps = "".join(f"\x1b[48;5;{shade}m {top * i / len(SHADES):.1f} {RESET}" for i, shade in enumerate(SHADES))
        lines = [f"nats per token, from: {steps}", ""]
        lines += ["".join(f"{DIM if np.isnan(cost) else _shade(cost / top)}{show_token(tokenizer, token)}{RESET}"
                          for token, cost in zip(tokens, costs, strict=True)), ""]
    cells = [f"{show_token(tokenizer, token).replace(' ', '␣'):>12} {'given' if np.isnan(cost) else f'{cost:.3f}':<7}"
             for token, cost in zip(tokens, costs, strict=True)]
    return "\n".join(lines + ["".join(cells[start:start + COLUMNS]) for start in range(0, len(cells), COLUMNS)])


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """A token within a line: line ends become visible, and an eos token has its name."""
    if token == tokenizer.eos:
        return "<|eos|>"
    text = tokenizer.decode([int(token)]).replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() else "�" for character in text)


def _row(batch: Batch, row: int, padded: bool) -> tuple[list[int], list[bool]]:
    """The tokens of a row, and which of them are targets; the padding is left out.

    A masked target is known from the next input. After the last input it is unknown, and left out.
    """
    inputs, targets = batch.inputs[row], batch.targets[row]
    is_target = targets != IGNORE_INDEX
    tokens = np.append(inputs, targets[-1] if is_target[-1] else 0)
    flags = np.concatenate([[False], is_target])
    length = len(tokens) if is_target[-1] else len(inputs)
    if padded:  # the padding repeats the first token
        length = 1 + int(np.flatnonzero(flags[:length] | (tokens[:length] != inputs[0])).max(initial=0))
    return tokens[:length].tolist(), flags[:length].tolist()


def _paint(tokens: list[int], is_target: list[bool], tokenizer: Tokenizer, colour: bool) -> str:
    pieces, masked = [], False
    for token, target in zip(tokens, is_target, strict=True):
        if target == masked:  # a border
            pieces.append((RESET if target else DIM) if colour else "]" if target else "[")
            masked = not target
        pieces.append(show_token(tokenizer, token))
    return "".join(pieces) + ((RESET if colour else "]") if masked else "")


def _shade(share: float) -> str:
    return f"\x1b[48;5;{SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]}m"
