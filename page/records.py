"""What the page reads of a run's evaluations.

passage.jsonl has, of each evaluation, what each token of one passage of the validation text costs;
evaluation.json has what is behind the loss of the best model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from data.show import show_token
from data.tokenizer import Tokenizer
from report.analysis import PASSAGE_TEMPERATURES, Evaluation, Passage


def read_passages(
    path: Path, tokenizer: Tokenizer, at_most: int, best_step: float
) -> Iterator[Passage]:
    """Passages of the same tokens from passage.jsonl, from the last to the first; without damaged
    lines.

    Of more than `at_most` there are so many, spread evenly, and that of the best step.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    best = {
        number for number, line in enumerate(lines) if line.startswith(b'{"step":%d,' % best_step)
    }
    spread = np.linspace(0, len(lines) - 1, min(at_most, len(lines))).round().astype(int).tolist()
    first: list[int] | None = None
    for number in sorted({*spread, *best}, reverse=True):
        try:
            passage = Passage.model_validate_json(lines[number])
        except ValidationError:
            continue
        first = first or passage.tokens
        if passage.tokens == first and fits(passage, tokenizer):
            yield passage


def fits(passage: Passage, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the tokens of a passage, and each token has its numbers."""
    columns = (passage.nll, passage.rank, passage.top, passage.log_q, passage.log_z)
    if any(len(column) != len(passage.tokens) for column in columns):
        return False
    ids = set(passage.tokens)
    for row in passage.top:
        ids.update(row or [])
    return all(0 <= token < tokenizer.vocab_size for token in ids)


def describe_text(
    tokenizer: Tokenizer, passages: Sequence[Passage], others: dict[str, list[float]]
) -> dict[str, Any] | None:
    """A text for the page, at the steps of some passages; `others` are the NLLs of its tokens by
    other models.
    """
    if not passages:
        return None
    tokens, names = (
        passages[0].tokens,
        {token for each in passages for row in each.top for token in row or []},
    )
    return {
        "ids": tokens,
        "tokens": [show_token(tokenizer, token) for token in tokens],
        "names": {token: show_token(tokenizer, token) for token in sorted(names)},
        "bytes": tokenizer.byte_lengths[tokens].tolist(),
        "vocab_size": tokenizer.vocab_size,
        "temperatures": PASSAGE_TEMPERATURES,
        "evaluations": [each.model_dump(exclude={"tokens"}) for each in passages],
        "others": {name: values for name, values in others.items() if len(values) == len(tokens)},
    }


def read_evaluation(path: Path) -> Evaluation | None:
    """None if it is missing or damaged."""
    try:
        found = Evaluation.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if len(found.part_nll) == len(found.part_targets) > 0 else None
