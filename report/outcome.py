"""Measures what came of a training: the best model exactly, and what is behind its loss."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from config.errors import UserError
from config.terminal import progress_bar
from data.baselines import choose_passages
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.prepare import Corpus
from data.tokenizer import Tokenizer
from engine.checkpoint import read_checkpoint
from engine.evaluation import (
    cut_passage,
    measure_all,
    measure_passage,
    measure_training_text,
    score_text,
)
from engine.metrics import Record, append_line
from engine.run_files import RunFiles
from engine.scoring import predict
from model import GPT
from report.analysis import TEMPERATURES, Passage, max_targets, summarise, write_evaluation


def measure_best(
    model: GPT, corpus: Corpus, get_batch: TrainBatches, files: RunFiles, step: int
) -> Record:
    """Load the best model of a training of `step` steps, and measure it on all validation text.

    Writes evaluation.json, with what is behind the loss, and returns the last line of metrics. All
    ranks call it.
    """
    run = files.run
    device = files.device
    checkpoint = read_checkpoint(run.path / "best.safetensors")
    checkpoint.copy_to(model)
    best = checkpoint.state
    tokenizer = corpus.tokenizer
    val_text = EvalText(corpus.val, get_batch.block_size, get_batch.eos)
    exact, parts = measure_all(model, val_text, corpus, device)
    if run.cfg.run.watchers and model.tables:
        write_passages(model, val_text, tokenizer, files, best.step, best_step=best.step)

    def write(path: Path) -> None:
        text = replace(val_text, max_tokens=max_targets(tokenizer.vocab_size))
        bar = progress_bar(text.batches(), "calibration", total=text.num_batches, unit="batch")
        columns, tempered = score_text(predict(model, bar, device), tokenizer, TEMPERATURES)
        summary = summarise(columns, tempered, text, tokenizer, corpus.train)
        write_evaluation(path, summary, parts)

    with suppress(UserError):  # some predictions are not finite
        files.attempt("evaluation.json", write)
    windows = best.windows
    if windows == 0:  # in files of earlier editions
        windows = best.step * get_batch.batch_size
    measured = exact | {"epochs": get_batch.epochs(windows)}
    if not run.was_changed("seed"):  # else other windows were read than those of this seed
        max_tokens = run.cfg.run.eval_tokens or corpus.val.num_targets()
        train_text = replace(val_text, split=corpus.train, max_tokens=max_tokens)
        read, unread = get_batch.read_and_unread(windows)
        measured |= measure_training_text(model, train_text, read, unread, device)
    final: Record = {"step": step, "best_step": best.step}
    for name, value in measured.items():
        if math.isfinite(value):  # JSON has no NaN
            final[f"best_{name}"] = value
    return final


def write_passages(
    model: GPT,
    val_text: EvalText,
    tokenizer: Tokenizer,
    files: RunFiles,
    step: int,
    *,
    best_step: int | None = None,
) -> None:
    """Append to passage.jsonl what each token of the passages costs now, for the watchers to show.

    The first passage is measured at each evaluation, the others at the last and at those whose
    number is a power of two: the file and the page stay small. The best model is measured on all of
    them after the last step, also with tables left out; these lines have its `best_step`.
    """
    passages = choose_passages(val_text.split, tokenizer)
    cfg = files.run.cfg
    number = step // cfg.run.eval_interval
    is_best = best_step is not None
    is_last = step == cfg.optim.max_iters
    if number & (number - 1) != 0 and not is_last and not is_best:
        passages = passages[:1]

    def write(path: Path) -> None:
        with suppress(UserError):  # it diverged
            for number, passage in enumerate(passages):
                text, skip = cut_passage(val_text, passage)
                costs = measure_passage(model, text, skip, files.device, is_best)
                line = Passage(step=step, number=number, best_step=best_step, **costs)
                append_line(path, line)

    files.attempt("passage.jsonl", write)
