"""Reads what a run's files keep of its evaluations, for the page.

passage.jsonl has, of each evaluation, what each token of one passage of the validation text costs;
evaluation.json has what is behind the loss of the best model.
"""

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data.tokenizer import Tokenizer
from report.analysis import Evaluation, Passage


def read_passages(
    path: Path, tokenizer: Tokenizer, at_most: int, best_step: float
) -> list[Passage]:
    """Read the passages of passage.jsonl that have the tokens of the last; without damaged lines.

    Of more than `at_most` there are so many, spread evenly, and that of the best step.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    spread = np.linspace(0, len(lines) - 1, min(at_most, len(lines)))
    chosen = {int(number) for number in spread.round()}
    best_start = b'{"step":%d,' % best_step
    for number, line in enumerate(lines):
        if line.startswith(best_start):
            chosen.add(number)
    passages: list[Passage] = []  # from the last to the first
    for number in sorted(chosen, reverse=True):
        try:
            passage = Passage.model_validate_json(lines[number])
        except ValidationError:
            continue
        is_same_text = not passages or passage.tokens == passages[0].tokens
        if is_same_text and fits(passage, tokenizer):
            passages.append(passage)
    return passages[::-1]


def fits(passage: Passage, tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer has the tokens of a passage, and each token has its numbers."""
    columns = (passage.nll, passage.rank, passage.top, passage.log_q, passage.log_z)
    if any(len(column) != len(passage.tokens) for column in columns):
        return False
    ids = set(passage.tokens)
    for row in passage.top:
        ids.update(row or [])
    return all(0 <= token < tokenizer.vocab_size for token in ids)


def read_evaluation(path: Path) -> Evaluation | None:
    """Read evaluation.json; None if it is missing or damaged."""
    try:
        evaluation = Evaluation.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    num_parts = len(evaluation.part_targets)
    if num_parts == 0 or len(evaluation.part_nll) != num_parts:
        return None
    return evaluation
