"""Tokens for the eye: which of a batch are masked, and what each token of a text cost."""

import html
import itertools
import sys
from collections.abc import Sequence

import numpy as np

from data.batches import IGNORE_INDEX, Batch
from data.tokenizer import Tokenizer
from surprisal import nats_to_bits, uniform_nll

SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
ROWS = 6  # of a batch that are shown
COLUMNS = 6  # of the list of tokens


def show_masks(batch: Batch, tokenizer: Tokenizer, padded: bool = False) -> str:
    """Some rows of a batch as text, with masked tokens in [brackets]."""
    is_target = batch.targets != IGNORE_INDEX
    lines = [
        f"{is_target.sum():,} of {is_target.size:,} tokens are targets, {is_target.mean():.1%}; the others are "
        "masked, in [brackets] here",
        "",
    ]
    for inputs, targets in zip(batch.inputs[:ROWS], batch.targets[:ROWS], strict=True):
        tokens, masked = np.append(inputs, targets[-1]), np.append(True, targets == IGNORE_INDEX)
        # a masked target is known from the next input, but for the last
        end = len(tokens) - masked[-1]
        if padded:  # the padding repeats the first token
            end = 1 + int(
                np.flatnonzero(~masked[:end] | (tokens[:end] != tokens[0])).max(initial=0)
            )
        line = ""
        for is_masked, indices in itertools.groupby(range(end), key=masked.__getitem__):
            text = "".join(show_token(tokenizer, tokens[i]) for i in indices)
            line += f"[{text}]" if is_masked else text
        lines.append(line)
    if len(batch.inputs) > ROWS:
        lines.append(f"... and {len(batch.inputs) - ROWS} more")
    return "\n".join(lines)


def show_costs(
    tokens: Sequence[int], costs: np.ndarray, tokenizer: Tokenizer, unit: str = "nats"
) -> str:
    """Tokens (N,), each but the first with its cost (N - 1,); on a terminal, first the text, shaded
    by it.
    """
    shown = [show_token(tokenizer, token) for token in tokens]
    cells = [
        f"{text.replace(' ', '␣'):>12} {cost:<7}"
        for text, cost in zip(shown, ["given", *(f"{cost:.3f}" for cost in costs)], strict=True)
    ]
    lines = [
        f"{unit} of each token:",
        *("".join(cells[at : at + COLUMNS]) for at in range(0, len(cells), COLUMNS)),
    ]
    if sys.stdout.isatty():
        step = max(costs, default=0.0) / len(SHADES)
        scale = "".join(_shade(f" {step * i:.1f} ", i) for i in range(len(SHADES)))
        text = "".join(
            _shade(text, int(cost // (step or 1)))
            for text, cost in zip(shown[1:], costs, strict=True)
        )
        lines = [f"colours from: {scale} {unit}", "", shown[0] + text, "", *lines]
    return "\n".join(lines)


def paint_costs(
    tokens: Sequence[int], bits: np.ndarray, ranks: np.ndarray, tokenizer: Tokenizer
) -> str:
    """HTML of tokens (N,), each but the first, which is dim, with its bits (N - 1,) and rank; a
    tooltip has both.

    The more bits, the stronger is the vermillion behind a token, up to that of a guess among all
    tokens: colour-blind people see it too, and both black and white letters can be read on it.
    """
    V, most = tokenizer.vocab_size, nats_to_bits(uniform_nll(tokenizer.vocab_size))

    def paint(text: str, cost: float, title: str = "") -> str:
        opacity = 0.8 * min(1.0, cost / (most or 1.0))
        return f'<span title="{title}" style="background-color: rgba(213, 94, 0, {opacity:.2f})">{text}</span>'

    context, *texts = [
        html.escape(show_token(tokenizer, token)).replace("⏎", "⏎<br>") for token in tokens
    ]
    painted = [
        paint(text, cost, f"{cost:.2f} bits, probability {2**-cost:.3g}, rank {rank:,} of {V:,}")
        for text, cost, rank in zip(texts, bits, ranks, strict=True)
    ]
    legend = [paint(f"&nbsp;{cost:.1f}&nbsp;", cost) for cost in np.linspace(0, most, 5)]
    return (
        '<div style="font-family: monospace; white-space: pre-wrap; line-height: 1.7">'
        f'<span title="context, not scored" style="opacity: 0.4">{context}</span>{"".join(painted)}</div>'
        f"<p>{''.join(legend)} bits; {most:.1f} bits are a guess among all {V:,} tokens</p>"
    )


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """A token within a line: line ends become visible, and an eos token has its name."""
    if token == tokenizer.eos:
        return "<|eos|>"
    text = tokenizer.decode([int(token)]).replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() else "�" for character in text)


def _shade(text: str, level: int) -> str:
    return f"\x1b[48;5;{SHADES[min(level, len(SHADES) - 1)]}m{text}\x1b[0m"
