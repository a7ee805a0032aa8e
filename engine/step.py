"""Evaluation, and what a training step needs besides the loop in train.py."""

import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from config.schema import Config
from data.batches import Batch, EvalText
from data.prepare import Corpus
from engine.checkpoint import read_model
from engine.device import Device
from engine.run import Record, Run
from engine.state import TrainState
from kernels import set_dropout_seed
from loss import LossMeans, LossSums, Objective, mean_loss, sum_losses
from model import GPT
from surprisal import bits_per_byte, perplexity

MAX_PARTS = 250  # of a text; curves.py compares runs part by part


def make_objective(cfg: Config) -> Objective:
    loss = cfg.loss
    return Objective(
        loss.label_smoothing, loss.z_loss, loss.alpha if loss.teacher else 0.0, loss.temperature
    )


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout depends on (seed, step, number of the micro-batch in the global batch) only."""
    set_dropout_seed(int(np.random.SeedSequence((seed, step, micro_batch)).generate_state(1)[0]))


def add_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add the gradients of a micro-batch to what the parameters have in .grad."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        else:
            p.grad += gradient


def evaluate_parts(model: GPT, text: EvalText, device: Device) -> list[LossSums]:
    """The loss of contiguous parts of a text, without dropout and smoothing.

    Ranks share the batches, and so do a CPU's cores.
    """

    @torch.inference_mode()
    def measure(batch: Batch) -> LossSums:
        inputs, targets = device.to_device(batch.inputs, batch.targets)
        with device.autocast():
            sums: LossSums = model(inputs, targets)
        return sums

    model.eval()
    text = replace(text, batch_tokens=device.eval_batch_tokens)
    size = -(-text.num_batches // MAX_PARTS)
    parts: list[list[LossSums]] = [[] for _ in range(0, text.num_batches, size)]
    own = slice(device.rank, None, device.world_size)
    numbers = range(text.num_batches)[own]
    batches = itertools.islice(text.batches(), own.start, None, own.step)
    for number, sums in zip(numbers, device.map(measure, batches), strict=True):
        parts[number // size].append(sums)
    model.train()
    return [sum_losses(part, device.all_reduce) for part in parts]


def evaluate(model: GPT, text: EvalText, device: Device) -> LossMeans:
    """The mean loss on a text."""
    return mean_loss(sum_losses(evaluate_parts(model, text, device)))


def validate(model: GPT, text: EvalText, corpus: Corpus, device: Device) -> Record:
    """The loss on (a part of) the validation split in every unit, for metrics.jsonl."""
    return validation_record(evaluate(model, text, device), text, corpus)


def remeasure_best(
    run: Run, state: TrainState, text: EvalText, corpus: Corpus, device: Device
) -> Record:
    """Measure the best model again where its loss is of other targets, or of another dtype.

    Otherwise that loss would not compare with those of this start. Returns a line for
    metrics.jsonl, {} if nothing was to be measured. All ranks call it.
    """
    measured_on = zlib.crc32(device.dtype_name.encode(), zlib.crc32(text.positions.tobytes()))
    if state.best_nll is None or state.measured_on == measured_on:
        state.measured_on = measured_on
        return {}
    state.measured_on = measured_on
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
        state.mean_before_best = state.mean_after_best = best.mean
    remeasured = {f"remeasured_{name}": value for name, value in record.items()}
    return {"step": state.step, "remeasured_step": best.step} | remeasured


def validation_record(loss: LossMeans, text: EvalText, corpus: Corpus) -> Record:
    """A loss in every unit.

    `kl_gap` is the loss above that of the text's source on the same tokens, where that is known:
    the estimate of KL(source || model) with the least noise.
    """
    bytes_per_token = float(corpus.tokenizer.byte_lengths[text.split.tokens[text.positions]].mean())
    record = {
        "val_nll": loss.nll,
        "val_perplexity": perplexity(loss.nll),
        "val_accuracy": loss.accuracy,
        "val_bits_per_byte": bits_per_byte(loss.nll, max(bytes_per_token, 1e-9)),
    }
    if corpus.source_nll is not None:
        record["kl_gap"] = loss.nll - float(corpus.source_nll[text.positions - 1].mean())
    return record


def is_eval_step(step: int, interval: int) -> bool:
    """Steps 0, 1, 2, 4, 8, ... up to the interval, and all its multiples.

    >>> [step for step in range(31) if is_eval_step(step, 10)]
    [0, 1, 2, 4, 8, 10, 20, 30]
    """
    return step % interval == 0 or (step < interval and step & (step - 1) == 0)


@torch.inference_mode()
def teacher_logits(teacher: GPT | None, inputs: Tensor) -> Tensor | None:
    return None if teacher is None else teacher(inputs)


def compile_model(
    model: GPT, batch: list[Batch], objective: Objective, device: Device, say: Callable[[str], None]
) -> torch.nn.Module:
    """The model for training, compiled by torch.compile; if that fails, the model itself, and a
    warning says why.
    """
    try:
        compiled: torch.nn.Module = torch.compile(model)  # type: ignore[assignment]
        for micro in batch[:1]:  # a rank may have none
            inputs, targets = device.to_device(micro.inputs, micro.targets)
            with device.autocast():
                compiled(inputs, targets, objective).objective.backward()
        return compiled
    except Exception as error:  # no C++ compiler, an old GPU, ...: many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"warning: torch.compile failed, training continues without it: {reason}")
        return model
    finally:
        model.zero_grad()
