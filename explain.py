"""One batch for the eye, `train.py ... --explain_batch`: what is read, what is scored, what each token cost."""

import sys
from pathlib import Path

import numpy as np

from config.schema import Config
from data.batches import Batch
from data.tokenizer import Tokenizer
from engine.checkpoint import load_checkpoint
from engine.distributed import World
from engine.step import nll_by_token
from errors import DIVERGED, UserError
from loss import IGNORE_INDEX
from model import GPT

GIVEN = "\x1b[2m"  # dim
RESET = "\x1b[0m"
SHADES = (22, 28, 64, 100, 136, 130, 124, 160)  # of a terminal's 256 colours, from green to red
UNSEEN = -1  # a token that is neither read nor scored
ROWS = 6  # of the batch that are shown
COLUMNS = 6  # of the list of tokens


def explain_batch(batch: Batch, model: GPT, tokenizer: Tokenizer, config: Config, world: World) -> int:
    """Print a batch as the model sees it: untrained, or with init_from=resume as the run's last checkpoint."""
    if config.run.init_from == "resume":
        load_checkpoint(Path(config.run.out_dir) / "last", model)
    nll = nll_by_token(model, batch, world)
    if not np.isfinite(nll).all():
        raise UserError(DIVERGED)
    print(describe(batch, nll, tokenizer, colour=sys.stdout.isatty(), padded=config.data.padded))
    return 0


def describe(batch: Batch, nll: np.ndarray, tokenizer: Tokenizer, colour: bool, padded: bool = False) -> str:
    """Rows of text with given tokens dim and scored ones shaded by their NLL `(B, T)`, in nats; then a list.

    Without colour, [brackets] are around what is given. Padding, which is no text, is left out.
    """
    following = [_following(batch, row, padded) for row in range(min(ROWS, len(batch.inputs)))]
    scored = batch.targets != IGNORE_INDEX
    mean = nll[scored].mean() if scored.any() else float("nan")
    lines = [f"{scored.sum():,} of {scored.size:,} targets are scored, {scored.mean():.1%}; mean {mean:.4f} nats, from "
             f"{nll[scored].min(initial=np.inf):.4f} to {nll[scored].max(initial=0):.4f}", "", _legend(nll, colour), ""]
    lines += [_row(batch, nll, tokenizer, row, after, colour) for row, after in enumerate(following)]
    if len(scored) > ROWS:
        lines.append(f"... and {len(scored) - ROWS} more")
    lines += ["", "the first row, token by token (NLL in nats):"]
    costs = ["given" if target == IGNORE_INDEX else f"{cost:.3f}"
             for target, cost in zip(batch.targets[0], nll[0], strict=True)]
    cells = [f"{_show(tokenizer, token).replace(' ', '␣'):>12} {cost:<7}"
             for token, cost in zip(following[0], costs, strict=False)]
    lines += ["".join(cells[start: start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    return "\n".join(lines)


def _row(batch: Batch, nll: np.ndarray, tokenizer: Tokenizer, row: int, following: list[int], colour: bool) -> str:
    top = max(float(nll.max()), 1e-9)
    opening = _paint(_show(tokenizer, batch.inputs[row, 0]), GIVEN, colour)
    pieces, brackets = [opening if colour else f"[{opening}"], True
    for token, target, cost in zip(following, batch.targets[row], nll[row], strict=False):
        given = target == IGNORE_INDEX
        if not colour and given != brackets:
            pieces.append("[" if given else "]")
            brackets = given
        style = GIVEN if given else f"\x1b[48;5;{SHADES[min(int(cost / top * len(SHADES)), len(SHADES) - 1)]}m"
        pieces.append(_paint(_show(tokenizer, token), style, colour))
    return "".join(pieces) + ("]" if brackets and not colour else "")


def _following(batch: Batch, row: int, padded: bool) -> list[int]:
    """What comes after each input: the target, or where that is not scored, the next input; UNSEEN after the last.

    A padded row ends where nothing follows but its first token, not scored.
    """
    inputs, targets = batch.inputs[row], batch.targets[row]
    text = (targets != IGNORE_INDEX) | (inputs != inputs[0])
    length = 1 + int(np.flatnonzero(text).max(initial=0)) if padded else len(inputs)
    return np.where(targets != IGNORE_INDEX, targets, np.append(inputs[1:], UNSEEN))[:length].tolist()


def _legend(nll: np.ndarray, colour: bool) -> str:
    if not colour:
        return "[given, not scored]; the rest is scored"
    top, n = max(float(nll.max()), 1e-9), len(SHADES)
    shades = "".join(_paint(f" {top * i / n:.1f} ", f"\x1b[48;5;{shade}m", True) for i, shade in enumerate(SHADES))
    return f"{_paint('given, not scored', GIVEN, True)}   scored, nats: {shades}"


def _show(tokenizer: Tokenizer, token: int) -> str:
    """A token in a line: line ends made visible, and an end token as what it is."""
    if token == UNSEEN:
        return "…"
    if token == tokenizer.end:
        return "<|end|>"
    text = tokenizer.decode([int(token)]).replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() else "�" for character in text)


def _paint(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{RESET}" if colour else text
