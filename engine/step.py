"""What a training step needs besides the loop in train.py."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from data.batches import Batch
from engine.device import Device
from kernels import set_dropout_seed
from loss import Objective
from model import GPT


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
