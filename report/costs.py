"""Shows what each token of a text cost, on a terminal or in a notebook."""

import html
import sys
from collections.abc import Sequence

import numpy as np

from config.terminal import has_colours
from data.show import show_token
from data.tokenizer import Tokenizer
from surprisal import nats_to_bits, uniform_nll

SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
COLUMNS = 4  # of the list of tokens, of 20 characters each


def show_costs(
    tokens: Sequence[int], costs: np.ndarray, tokenizer: Tokenizer, unit: str = "nats"
) -> str:
    """List tokens (N,), each but the first with its cost (N - 1,).

    On a terminal with colours the text comes first, shaded by the costs.
    """
    shown = [show_token(tokenizer, token) for token in tokens]
    costs_shown = ["given", *(f"{cost:.3f}" for cost in costs)]
    cells = []
    for text, cost in zip(shown, costs_shown, strict=True):
        cells.append(f"{text.replace(' ', '␣'):>12} {cost:<7}")
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    lines = [f"{unit} of each token:", *("".join(row).rstrip() for row in rows)]
    if has_colours(sys.stdout):
        lines = [*_shade_text(shown, costs, unit), "", *lines]
    return "\n".join(lines)


def show_costs_without_tables(
    tokens: Sequence[int], by_longest: np.ndarray, tokenizer: Tokenizer
) -> str:
    """List each token but the first with its nats, as tables of n-grams are left out.

    Column n - 1 of by_longest (N - 1, max_ngram) has the NLL with n-grams of at most n tokens. The
    last is shown first.
    """
    heads = [str(longest) for longest in range(by_longest.shape[1], 1, -1)]
    heads.append("none")
    lines = ["nats with n-grams of at most so many tokens:"]
    lines.append("            " + "".join(f"{head:>6}" for head in heads))
    names = [show_token(tokenizer, token).replace(" ", "␣") for token in tokens[1:]]
    names.append("mean")
    table = by_longest[:, ::-1]
    rows = [*table, table.mean(axis=0)]
    for name, costs in zip(names, rows, strict=True):
        cells = "".join(f"{cost:6.2f}" for cost in costs)
        lines.append(f"{name:>12}{cells}")
    return "\n".join(lines)


def _shade_text(shown: Sequence[str], costs: np.ndarray, unit: str) -> list[str]:
    """Colour a text by the costs of its tokens; the first line says what the colours mean."""
    step = max(costs, default=0.0) / len(SHADES)
    scale = "".join(_shade(f" {step * i:.1f} ", i) for i in range(len(SHADES)))
    text = shown[0]
    for token, cost in zip(shown[1:], costs, strict=True):
        text += _shade(token, int(cost // (step or 1)))
    return [f"colours from: {scale} {unit}", "", text]


def _shade(text: str, level: int) -> str:
    shade = SHADES[min(level, len(SHADES) - 1)]
    return f"\x1b[48;5;{shade}m{text}\x1b[0m"


def paint_costs(
    tokens: Sequence[int], bits: np.ndarray, ranks: np.ndarray, tokenizer: Tokenizer
) -> str:
    """Paint tokens (N,) as HTML, each but the first, which is dim, with its bits and rank (N - 1,).

    The more bits, the stronger is the vermillion behind a token, up to that of a guess among all
    tokens: colour-blind people see it too, and both black and white letters can be read on it. A
    tooltip has bits and rank.
    """
    V = tokenizer.vocab_size
    most = nats_to_bits(uniform_nll(V))
    shown = []
    for token in tokens:
        text = html.escape(show_token(tokenizer, token))
        shown.append(text.replace("⏎", "⏎<br>"))
    painted = []
    for text, cost, rank in zip(shown[1:], bits, ranks, strict=True):
        title = f"{cost:.2f} bits, probability {2**-cost:.3g}, rank {rank:,} of {V:,}"
        painted.append(_paint(text, cost / (most or 1.0), title))
    strengths = np.linspace(0, 1, 5)
    legend = [_paint(f"&nbsp;{strength * most:.1f}&nbsp;", strength) for strength in strengths]
    return (
        '<div style="font-family: monospace; white-space: pre-wrap; line-height: 1.7">'
        f'<span title="context, not scored" style="opacity: 0.4">{shown[0]}</span>'
        f"{''.join(painted)}</div>"
        f"<p>{''.join(legend)} bits; {most:.1f} bits are a guess among all {V:,} tokens</p>"
    )


def _paint(text: str, strength: float, title: str = "") -> str:
    """Paint a text; strength 1 is that of a guess among all tokens."""
    opacity = 0.8 * min(1.0, strength)
    colour = f"rgba(213, 94, 0, {opacity:.2f})"
    return f'<span title="{title}" style="background-color: {colour}">{text}</span>'
