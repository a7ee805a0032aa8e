"""Losses of texts under a model: the mean, that of each part, and that of each target.

`validate` makes the losses of a line of metrics.jsonl. At the end of a training the best model is
measured on all of the validation text, and on training text that it read and did not read.
"""

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from config.errors import UserError
from config.terminal import progress_bar
from data.batches import Batch
from data.eval_text import EvalText
from data.prepare import Corpus
from data.tokenizer import Tokenizer
from data.windows import count_targets
from engine.checkpoint import read_model
from engine.device import Device
from engine.metrics import Record
from engine.run import Run
from engine.scoring import Predictions, detail_targets, predict, score_targets
from engine.state import TrainState
from loss import LossMeans, LossSums, mean_loss, sum_losses
from model import GPT
from surprisal import bits_per_byte, perplexity

MAX_PARTS = 250  # of a text; curves.py compares runs part by part
MIN_PARTS = 50  # of a text whose loss gets an interval or a standard error
MIN_TARGETS = 500  # for a standard error
PASSAGE_TEMPERATURES = (0.5, 0.7, 1.5)  # of the predictions in passage.jsonl

Columns = dict[str, np.ndarray]  # a value for each target of a text, (N,), in its order


# The loss of a text.


def measure_parts(model: GPT, text: EvalText, device: Device, title: str = "") -> list[LossSums]:
    """Measure the loss of contiguous parts of a text, without dropout and smoothing.

    Ranks share the batches, and so do a CPU's cores. All ranks call it. A bar shows the `title`.
    """

    @torch.inference_mode()
    def measure(batch: Batch) -> LossSums:
        inputs, targets = device.to_device(batch.inputs, batch.targets)
        with device.autocast():
            sums: LossSums = model(inputs, targets)
        return sums

    model.eval()
    text = replace(text, batch_tokens=device.eval_batch_tokens)
    batches_per_part = math.ceil(text.num_batches / MAX_PARTS)
    num_parts = math.ceil(text.num_batches / batches_per_part)
    parts: list[list[LossSums]] = [[] for _ in range(num_parts)]
    numbers = range(device.rank, text.num_batches, device.world_size)  # of this rank's batches
    batches = itertools.islice(text.batches(), device.rank, None, device.world_size)
    if title:
        hidden = device.rank > 0 or None  # None: where nobody would see it
        batches = progress_bar(batches, title, total=len(numbers), unit="batch", disable=hidden)
    for number, sums in zip(numbers, device.map(measure, batches), strict=True):
        parts[number // batches_per_part].append(sums)
    model.train()
    return [sum_losses(part, device.all_reduce) for part in parts]


def measure_loss(model: GPT, text: EvalText, device: Device) -> LossMeans:
    """Measure the mean loss on a text."""
    return mean_loss(sum_losses(measure_parts(model, text, device)))


def validate(model: GPT, text: EvalText, corpus: Corpus, device: Device) -> Record:
    """Measure the loss on (a part of) the validation split in every unit, for metrics.jsonl."""
    return make_loss_record(measure_loss(model, text, device), text, corpus)


def make_loss_record(loss: LossMeans, text: EvalText, corpus: Corpus) -> Record:
    """Express a loss on validation text in every unit.

    `kl_gap` is the loss above that of the text's source on the same tokens, where that is known:
    the estimate of KL(source || model) with the least noise.
    """
    targets = text.split.tokens[text.positions]
    bytes_per_token = float(corpus.tokenizer.byte_lengths[targets].mean())
    record = {
        "val_nll": loss.nll,
        "val_perplexity": perplexity(loss.nll),
        "val_accuracy": loss.accuracy,
        "val_bits_per_byte": bits_per_byte(loss.nll, max(bytes_per_token, 1e-9)),
    }
    if corpus.source_nll is not None:
        source_nll = corpus.source_nll[text.positions - 1]
        record["kl_gap"] = loss.nll - float(source_nll.mean())
    return record


# The loss of the best model.


def remeasure_best(
    run: Run, state: TrainState, text: EvalText, corpus: Corpus, device: Device
) -> Record:
    """Measure the best model again where its loss is of other targets, or of another dtype.

    Otherwise that loss would not compare with those of this start. Returns a line for
    metrics.jsonl, {} if nothing was to be measured. All ranks call it.
    """
    targets = zlib.crc32(text.positions.tobytes())
    measured_on = zlib.crc32(device.dtype_name.encode(), targets)
    is_measured = state.best_nll is None or state.measured_on == measured_on
    state.measured_on = measured_on
    if is_measured:
        return {}
    try:
        model, best = read_model(run, "best")
        record = validate(model.to(device.torch_device), text, corpus, device)
    except UserError:  # it is damaged
        record = {"val_nll": math.nan}
    if not math.isfinite(record["val_nll"]):
        state.forget_best()
        return {}
    state.best_nll = record["val_nll"]
    state.forget_rises()
    if state.mean_after_best is None:  # also in a checkpoint of an earlier edition
        state.best_step = min(best.step, state.step)
        state.mean_before_best = best.mean
        state.mean_after_best = best.mean
    remeasured = {f"remeasured_{name}": value for name, value in record.items()}
    return {"step": state.step, "remeasured_step": best.step} | remeasured


def measure_all(
    model: GPT, text: EvalText, corpus: Corpus, device: Device
) -> tuple[Record, list[tuple[float, float]]]:
    """Measure the exact loss on all of the validation text: in every unit, and of each part.

    A part is a sum of nats and a number of targets. There are at least MIN_PARTS parts, if the text
    has so many windows.
    """
    text = replace(text, max_tokens=0, min_batches=MIN_PARTS)
    title = f"exact loss of {len(text.positions):,} targets"
    parts = measure_parts(model, text, device, title)
    record = make_loss_record(mean_loss(sum_losses(parts)), text, corpus)
    return record, [(float(part.nll), float(part.num_targets)) for part in parts]


def measure_training_text(
    model: GPT, text: EvalText, read: np.ndarray, unread: np.ndarray, device: Device
) -> Record:
    """Measure the loss on training text that a model read, and on text that it did not read.

    `read` and `unread` are windows (N, 3) of the text. Returns "train_read_nll" and
    "train_unread_nll" in nats per token, each with its standard error; without that of which there
    is too little. Both are spread over the whole text, so that they compare.
    """
    record: Record = {}
    for name, windows in (("read", read), ("unread", unread)):
        if count_targets(text.split, windows).sum() < MIN_TARGETS:
            continue
        part = replace(text, only=windows, min_batches=MIN_PARTS)
        losses = measure_parts(model, part, device, "loss of training text")
        if len(losses) > 1:
            record[f"train_{name}_nll"] = mean_loss(sum_losses(losses)).nll
            record[f"train_{name}_error"] = standard_error(losses)
    return record


def standard_error(parts: Sequence[LossSums]) -> float:
    """Estimate the standard error of the mean loss, in nats per token, from the parts of a text."""
    nll = np.array([float(part.nll) for part in parts])
    targets = np.array([float(part.num_targets) for part in parts])
    deviations = nll - targets * nll.sum() / targets.sum()
    n = len(parts)
    variance = n / (n - 1) * (deviations**2).sum()
    return float(np.sqrt(variance) / targets.sum())


# The loss of each target.


def score_text(
    predictions: Iterable[Predictions], tokenizer: Tokenizer, temperatures: Sequence[float]
) -> tuple[Columns, np.ndarray]:
    """Measure each target of a text: a column for each quantity, in the order of the text.

    Also returns the mean NLL with the logits divided by each of the temperatures, (K,).
    """
    scores = score_targets(predictions, temperatures)
    n_bytes = tokenizer.byte_lengths[scores.targets]
    columns = {
        "target": scores.targets,
        "context_len": scores.context_len,
        "tokens": np.ones(len(n_bytes)),
        "bytes": n_bytes,
        "nll": scores.nll,
        "top1": scores.top(1),
        "top5": scores.top(5),
        "confidence": scores.confidence,
    }
    return columns, scores.tempered / len(n_bytes)


def nll_without_tables(model: GPT, text: EvalText, device: Device, nll: np.ndarray) -> np.ndarray:
    """Measure each target with some tables left out: all, all but the first, ..., none.

    Returns nats (N, max_ngram): column n - 1 has those with n-grams of at most n tokens. `nll` (N,)
    is known: that with all tables. The model was trained with all of them (but for table_dropout),
    so what it loses is what it leaned on, and not what a model without these tables would have.
    """
    max_ngram = model.tables.cfg.max_ngram
    columns = []
    for longest in range(1, max_ngram):
        model.tables.longest = longest
        predictions = predict(model, text.batches(), device)
        columns.append(score_targets(predictions, temperatures=[1.0]).nll)
    model.tables.longest = max_ngram
    return np.stack([*columns, nll], axis=1)


# The passages of the validation text whose tokens a watcher shows one by one.


def cut_passage(val_text: EvalText, passage: slice) -> tuple[EvalText, int]:
    """Cut a passage out of the validation text, with half a block before it as its context.

    Also returns the number of tokens in that context: near the text's start they are fewer.
    """
    half_block = math.ceil(val_text.block_size / 2)
    start = max(0, passage.start - half_block)
    split = val_text.split.part(slice(start, passage.stop))
    text = replace(val_text, split=split, stride=half_block, max_tokens=0)
    return text, passage.start - start


def measure_passage(
    model: GPT, text: EvalText, skip: int, device: Device, with_tables: bool = False
) -> dict[str, list[Any]]:
    """Measure what each token of a short text costs, without the first `skip`, which are context.

    Returns the columns of a line of passage.jsonl: a value for each token, with three digits after
    the point, None where it is masked. `with_tables` also measures it as `nll_without_tables` does.
    UserError if the model diverged.
    """
    try:
        predictions = predict(model, text.batches(), device)
        details = detail_targets(predictions, PASSAGE_TEMPERATURES)._asdict()
        if with_tables:
            details["by_longest"] = nll_without_tables(model, text, device, details["nll"])
    finally:
        model.train()
    tokens = text.split.tokens.tolist()
    columns = {"tokens": tokens[skip:], "temperatures": list(PASSAGE_TEMPERATURES)}
    for name, values in details.items():
        column: list[Any] = [None] * len(tokens)
        rounded = values.astype(float).round(3).tolist()
        for place, value in zip(text.positions, rounded, strict=True):
            column[place] = value
        columns[name] = column[skip:]
    return columns
