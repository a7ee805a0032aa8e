"""Reads what a run's files keep of its evaluations, for the page.

passage.jsonl has, of each evaluation, what each token of some passages of the validation text
costs; evaluation.json has what is behind the loss of the best model.
"""

import re
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data.info import PASSAGES
from data.tokenizer import Tokenizer
from report.analysis import Evaluation, Passage

BEGINNING = re.compile(rb'{"step":(\d+),(?:"number":(\d+),)?')  # of a line of passage.jsonl
FURTHER = 4  # times as many evaluations has the first passage as each further one

Lines = dict[int, bytes]  # by step


def read_passages(
    path: Path, tokenizer: Tokenizer, at_most: int, best_step: float
) -> list[list[Passage]]:
    """Read the evaluations of each passage in passage.jsonl; damaged lines are left out.

    Of more than `at_most` there are so many, spread evenly, and that of the best step; of the
    further passages a part of it, or none.
    """
    lines: list[Lines] = [{} for _ in range(PASSAGES)]
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            found = BEGINNING.match(line)
            if found is not None and int(found[2] or 0) < PASSAGES:
                lines[int(found[2] or 0)][int(found[1])] = line
    passages = [read_evaluations(lines[0], tokenizer, at_most, best_step)]
    for further in lines[1:]:
        passages.append(read_evaluations(further, tokenizer, at_most // FURTHER, best_step))
    return [evaluations for evaluations in passages if evaluations]


def read_evaluations(
    lines: Lines, tokenizer: Tokenizer, at_most: int, best_step: float
) -> list[Passage]:
    """Read some of the evaluations of a passage, those that have the tokens of the last."""
    steps = sorted(lines)
    spread = np.linspace(0, len(steps) - 1, min(at_most, len(steps)))
    chosen = {steps[number] for number in spread.round().astype(int)}
    if at_most > 0 and best_step in lines:
        chosen.add(int(best_step))
    passages: list[Passage] = []  # from the last to the first
    for step in sorted(chosen, reverse=True):
        try:
            passage = Passage.model_validate_json(lines[step])
        except ValidationError:
            continue
        if fits(passage, tokenizer) and (not passages or is_alike(passage, passages[0])):
            passages.append(passage)
    return passages[::-1]


def is_alike(passage: Passage, other: Passage) -> bool:
    """Tell whether two evaluations are of the same tokens, and at the same temperatures."""
    return (passage.tokens, passage.temperatures) == (other.tokens, other.temperatures)


def fits(passage: Passage, tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer has the tokens of a passage, and each token has its numbers."""
    columns = (passage.nll, passage.rank, passage.top, passage.log_q, passage.log_z)
    sizes = {len(column) for column in columns}
    if passage.entropy:  # files of earlier editions have none
        sizes.add(len(passage.entropy))
    lengths = set()
    if passage.by_longest is not None:  # of the best model, if it has tables
        sizes.add(len(passage.by_longest))
        lengths = {len(row) for row in passage.by_longest if row is not None}
    if len(lengths) > 1 or 0 in lengths:
        return False
    if sizes != {len(passage.tokens)} or not passage.tokens:
        return False
    if not all(fits_in_row(passage, i) for i in range(len(passage.tokens))):
        return False
    ids = set(passage.tokens)
    for row in passage.top:
        ids.update(row or [])
    return all(0 <= token < tokenizer.vocab_size for token in ids)


def fits_in_row(passage: Passage, i: int) -> bool:
    """Tell whether token i has all of its numbers, or none because it is masked."""
    top = passage.top[i]
    log_q = passage.log_q[i]
    log_z = passage.log_z[i]
    rows = [passage.nll[i], passage.rank[i], top, log_q, log_z]
    if passage.by_longest is not None:
        rows.append(passage.by_longest[i])
    if top is None or log_q is None or log_z is None:
        return rows == [None] * len(rows)
    sizes = (len(log_q), len(log_z))
    return None not in rows and sizes == (len(top), len(passage.temperatures))


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
