"""Measures what a model's tables of n-grams know, by leaving them out."""

import numpy as np

from data.eval_text import EvalText
from engine.device import Device
from engine.scoring import predict, score_targets
from model import GPT


def nll_without_tables(model: GPT, text: EvalText, device: Device) -> dict[int, np.ndarray]:
    """Measure each target with the tables left out one after the other, the longest first.

    Returns nats (N,) by the longest n-gram that is left; with 1 there is no table. The model was
    trained with all of them (but for table_dropout), so what it loses is what it leaned on, and not
    what a model without these tables would have.
    """
    nll = {}
    for longest in range(model.tables.cfg.max_ngram, 0, -1):
        model.tables.longest = longest
        predictions = predict(model, text.batches(), device)
        nll[longest] = score_targets(predictions, temperatures=[1.0]).nll
    model.tables.longest = model.tables.cfg.max_ngram
    return nll
