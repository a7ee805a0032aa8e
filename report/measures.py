"""What is behind a run's loss on a text: the cost of each token, calibration, and where the loss
comes from.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from config.files import write_atomically
from data.baselines import MAX_TRAIN_TOKENS, find_passage
from data.batches import Batch, EvalText, TrainBatches, count_targets
from data.documents import Split
from data.prepare import Corpus
from data.tokenizer import Tokenizer
from engine.device import Device
from engine.run import Record, Run
from engine.scoring import explain, predict, score
from engine.step import evaluate_parts
from loss import LossSums, mean_loss, sum_losses
from model import GPT
from report import analysis
from report.explain import show_token
from report.records import PASSAGE_TEMPERATURES, Evaluation, HardOrEasy, Passage, Summary

LENGTH = 64  # targets in a passage that is called hard or easy
SHOWN = 3  # of each
CHUNK = 2**24  # tokens that are counted at once
MAX_TARGETS, MAX_LOGITS = 32_768, 2**25  # for evaluation.json: about a second


def score_targets(
    model: GPT,
    text: EvalText,
    tokenizer: Tokenizer,
    device: Device,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> tuple[analysis.Columns, np.ndarray]:
    """What is known of each target, in the order of the text; and the mean NLL at each of
    TEMPERATURES.
    """
    scores = score(predict(model, progress(text.batches()), device), analysis.TEMPERATURES)
    n_bytes = tokenizer.byte_lengths[text.split.tokens[text.positions]]
    offset, document = byte_offsets(text, tokenizer)
    columns = {
        "target": scores.targets,
        "context_len": scores.context_len,
        "tokens": np.ones(len(n_bytes)),
        "bytes": n_bytes,
        "offset": offset,
        "document": document,
        "nll": scores.nll,
        "top1": scores.top(1),
        "top5": scores.top(5),
        "confidence": scores.confidence,
    }
    return columns, scores.tempered / len(n_bytes)


def byte_offsets(text: EvalText, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the text before each target, (N,), and before the document that has it, (N,)."""
    offsets, documents = (np.empty(len(text.positions), dtype=np.int64) for _ in range(2))
    before = 0  # bytes before this chunk
    document = 0  # bytes before the document that is open where this chunk begins
    eos = -1 if tokenizer.eos is None else tokenizer.eos  # -1 is no token: the text is one document
    for start in range(0, len(text.split.tokens), CHUNK):
        tokens = text.split.take(slice(start, start + CHUNK))
        ends = before + np.cumsum(tokenizer.byte_lengths[tokens])
        here = slice(*np.searchsorted(text.positions, [start, start + CHUNK]))
        places = text.positions[here] - start
        offsets[here] = ends[places] - tokenizer.byte_lengths[tokens[places]]
        is_eos = tokens == eos
        begins = np.append(document, ends[is_eos])  # the open document, and those after each eos
        number = np.cumsum(is_eos) - is_eos  # an eos token belongs to the document that it ends
        documents[here] = begins[number[places]]
        document = int(begins[-1])
        before = int(ends[-1])
    return offsets, documents


def summarise(
    columns: analysis.Columns,
    tempered: np.ndarray,
    text: EvalText,
    tokenizer: Tokenizer,
    train: Split | None,
) -> Summary:
    """Calibration, groups of targets, and passages.

    Without the training split, there is no group by how often a token was a target in training.
    """
    groups = {
        "confidence": analysis.confidence_bins(columns["confidence"]),
        "context length": analysis.number_ranges(columns["context_len"], analysis.DOUBLING),
    }
    by_outcome = {}  # groups that depend on which token came
    if tokenizer.kind == "char":
        kinds = [
            *(analysis.character_kind(each) if len(each) == 1 else "eos" for each in tokenizer.ids),
            "eos",
        ]
        names, number = np.unique(kinds, return_inverse=True)
        by_outcome["kind of character"] = names.tolist(), number[columns["target"]]
    if train is not None:
        train_targets = train.last(MAX_TRAIN_TOKENS).targets()
        counts = np.bincount(train_targets, minlength=tokenizer.vocab_size)
        times = counts[columns["target"]]
        by_outcome["times in training"] = analysis.number_ranges(times, analysis.TENFOLD)
    found = {
        kind: analysis.group(names, number, columns) for kind, (names, number) in groups.items()
    }
    for kind, (names, number) in by_outcome.items():
        found[kind] = analysis.group(names, number, columns, by_outcome=True)
    return Summary.model_validate(
        {
            "targets": len(columns["nll"]),
            "calibration": analysis.calibrate(found["confidence"], tempered),
            "groups": found,
            "passages": find_passages(columns["nll"], text, tokenizer),
        }
    )


def write_evaluation(
    path: Path, run: Run, model: GPT, parts: Sequence[LossSums], corpus: Corpus, device: Device
) -> None:
    """Write evaluation.json; `parts` are the losses of all of the validation text. UserError if it
    diverged.
    """
    text = run.eval_text(corpus.val, min(MAX_TARGETS, MAX_LOGITS // corpus.tokenizer.vocab_size))
    summary = summarise(
        *score_targets(model, text, corpus.tokenizer, device), text, corpus.tokenizer, corpus.train
    )
    evaluation = Evaluation(
        **summary.model_dump(),
        part_nll=[float(part.nll) for part in parts],
        part_targets=[float(part.num_targets) for part in parts],
    )
    write_atomically(path, evaluation.model_dump_json().encode())


def measure_training_text(
    model: GPT, text: EvalText, get_batch: TrainBatches, windows: int, device: Device
) -> Record:
    """The loss on training text that a model read, among its first `windows`, and on text that it
    did not.

    "train_read_nll" and "train_unread_nll" in nats per token, each with its standard error; without
    that of which there is too little. Both are spread over the whole text, so that they compare.
    """
    record: Record = {}
    for name, only in zip(("read", "unread"), get_batch.read_and_unread(windows), strict=True):
        part = replace(text, only=only, min_batches=analysis.BLOCKS)
        if count_targets(text.split, only).sum() < analysis.FEW:
            continue
        losses = evaluate_parts(model, part, device)
        if len(losses) > 1:
            record[f"train_{name}_nll"] = mean_loss(sum_losses(losses)).nll
            record[f"train_{name}_error"] = standard_error(losses)
    return record


def standard_error(parts: Sequence[LossSums]) -> float:
    """The standard error of the mean loss, in nats per token, from the differences between parts of
    a text.
    """
    nll = np.array([float(part.nll) for part in parts])
    targets = np.array([float(part.num_targets) for part in parts])
    deviations = nll - targets * nll.sum() / targets.sum()
    return float(np.sqrt(len(parts) / (len(parts) - 1) * (deviations**2).sum()) / targets.sum())


def find_passages(
    nll: np.ndarray, text: EvalText, tokenizer: Tokenizer
) -> dict[str, list[HardOrEasy]]:
    """The hardest and the easiest passages of LENGTH targets."""
    count = len(nll) // LENGTH
    means = nll[: count * LENGTH].reshape(count, LENGTH).mean(axis=1)
    first, last = text.positions[: count * LENGTH].reshape(count, LENGTH)[:, [0, -1]].T
    # the others jump from one part of the text to another
    whole = np.flatnonzero(last - first < 2 * LENGTH)
    order = whole[means[whole].argsort()]

    def describe(number: int) -> HardOrEasy:
        start = int(first[number])
        tokens = text.split.tokens[start : last[number] + 1]
        costs: list[float | None] = [None] * len(tokens)
        for target in range(number * LENGTH, (number + 1) * LENGTH):
            costs[text.positions[target] - start] = round(float(nll[target]), 3)
        return HardOrEasy(
            nats_per_token=float(means[number]),
            nll=costs,
            tokens=[show_token(tokenizer, token) for token in tokens],
        )

    shown = min(SHOWN, len(order) // 2)
    return {
        "hardest": [describe(number) for number in order[::-1][:shown].tolist()],
        "easiest": [describe(number) for number in order[:shown].tolist()],
    }


def cut_passage(run: Run, corpus: Corpus) -> tuple[EvalText, int]:
    """The passage with half a block before it as its context, and the number of tokens in that
    half.
    """
    half, where = -(-run.cfg.model.block_size // 2), find_passage(corpus.val, corpus.tokenizer)
    start = max(0, where.start - half)
    part = slice(start, where.stop)
    unmasked = None if corpus.val.unmasked is None else corpus.val.unmasked[part]
    return run.eval_text(Split(corpus.val.tokens[part], unmasked), stride=half), where.start - start


def measure_passage(model: GPT, text: EvalText, skip: int, device: Device, step: int) -> Passage:
    """What each token of a short text costs, without the first `skip`, which are context. UserError
    if it diverged.
    """
    details = explain(predict(model, text.batches(), device), PASSAGE_TEMPERATURES)
    tokens = text.split.tokens[skip:].tolist()
    shown = text.positions >= skip
    places = (text.positions[shown] - skip).tolist()

    def column(values: np.ndarray) -> list[Any]:
        found: list[Any] = [None] * len(tokens)
        for place, value in zip(places, values[shown].tolist(), strict=True):
            found[place] = _round(value)
        return found

    columns = {name: column(values) for name, values in details._asdict().items()}
    return Passage(step=step, tokens=tokens, **columns)


def _round(value: Any) -> Any:
    """Four digits: a page has hundreds of thousands of numbers."""
    if isinstance(value, list):
        return [_round(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
