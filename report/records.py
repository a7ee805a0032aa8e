"""What report/measures.py finds, as a run's files keep it and as the page shows it. Needs no torch.

passage.jsonl has, of each evaluation, what each token of one passage of the validation text costs;
evaluation.json has what is behind the loss of the best model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from data.tokenizer import Tokenizer
from report.explain import show_token

PASSAGE_TEMPERATURES = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)  # of its predictions, besides 1


class Passage(BaseModel):
    """A text's tokens, and what engine.scoring.Details has of each; None where a token is masked."""

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    tokens: list[int]
    nll: list[float | None]
    rank: list[int | None]
    top: list[list[int] | None]
    log_q: list[list[float] | None]
    log_z: list[list[float] | None]

    def fits(self, tokenizer: Tokenizer) -> bool:
        """Whether a tokenizer has these tokens, and each token has its numbers."""
        columns = (self.nll, self.rank, self.top, self.log_q, self.log_z)
        ids = {*self.tokens, *(token for row in self.top for token in row or [])}
        return all(len(column) == len(self.tokens) for column in columns) and all(
            0 <= token < tokenizer.vocab_size for token in ids
        )


class Group(BaseModel):
    """Some targets, and their part in the loss."""

    name: str
    tokens: int
    share: float  # of all targets
    nats_per_token: float
    share_of_nats: float
    top1: float
    confidence: float | None = None  # of groups that do not depend on which token came


class HardOrEasy(BaseModel):
    """A passage, as its tokens look, and what each costs; None where it is masked."""

    nats_per_token: float
    tokens: list[str]
    nll: list[float | None]


class Calibration(BaseModel):
    """How sure the model is, and what report.analysis.calibrate finds."""

    confidence: float
    ece: float
    temperature: float
    at_end: bool = False  # a temperature beyond those that were tried may be better
    nats_gained: float


class Summary(BaseModel):
    """What `summarise` finds."""

    model_config = ConfigDict(allow_inf_nan=False)

    targets: int
    calibration: Calibration
    groups: dict[str, list[Group]]
    passages: dict[str, list[HardOrEasy]]


class Evaluation(Summary):
    """evaluation.json: the best model on a part of the validation text, and its loss on all of it,
    part by part.
    """

    part_nll: list[float]  # sums, in nats
    part_targets: list[float]


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
        if passage.tokens == first and passage.fits(tokenizer):
            yield passage


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
