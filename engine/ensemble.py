"""Averages the probabilities that several models predict for the same targets."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from engine.evaluation import Columns
from engine.scoring import Predictions, Scores, average_logits, score_targets


@torch.inference_mode()
def average_predictions(
    predictions: Sequence[Iterator[Predictions]], scores: list[list[Scores]]
) -> Iterator[Predictions]:
    """Predict with the mean of the probabilities of several models, chunk by chunk.

    Each model reads the text in windows of its own, but all predict the same targets, and their
    chunks have the same size. So one chunk of each model's logits is in memory. The context of a
    target is the longest that a model had. Of each chunk, what the models by themselves score is
    appended to `scores`.
    """
    for parts in zip(*predictions, strict=True):
        targets = parts[0].targets
        assert all(part.targets.equal(targets) for part in parts), "other targets"
        scores.append([score_targets([part], temperatures=[1.0]) for part in parts])
        logits = average_logits([part.logits for part in parts])
        context_len = torch.stack([part.context_len for part in parts]).amax(dim=0)
        yield Predictions(logits, targets, context_len)


def columns_of_model(chunks: Sequence[Scores]) -> Columns:
    """Join what a model by itself scores in each chunk: the loss, and the share of right guesses.

    The other columns of a text are those of the ensemble.
    """
    return {
        "nll": np.concatenate([chunk.nll for chunk in chunks]),
        "top1": np.concatenate([chunk.top(1) for chunk in chunks]),
        "top5": np.concatenate([chunk.top(5) for chunk in chunks]),
    }
