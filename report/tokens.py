"""Tokens for the eye: what each token of a text cost."""

import html
import sys
from collections.abc import Sequence

import numpy as np

from data.show import show_token
from data.tokenizer import Tokenizer
from surprisal import nats_to_bits, uniform_nll

SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
COLUMNS = 6  # of the list of tokens


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


def _shade(text: str, level: int) -> str:
    return f"\x1b[48;5;{SHADES[min(level, len(SHADES) - 1)]}m{text}\x1b[0m"
