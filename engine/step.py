"""Holds the details of a training step that train.py does not need to show."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from config.errors import first_line
from config.terminal import say
from data.batches import Batch
from engine.device import Device
from engine.objective import TrainingObjective
from kernels import set_dropout_seed
from model import GPT


def is_eval_step(step: int, interval: int, max_iters: int) -> bool:
    """Return whether a step has an evaluation: 0, 1, 2, 4, 8, ..., each interval, and the last do.

    >>> [step for step in range(36) if is_eval_step(step, 10, 35)]
    [0, 1, 2, 4, 8, 10, 20, 30, 35]
    """
    is_power_of_two = step & (step - 1) == 0
    is_early = step < interval and is_power_of_two
    return is_early or step % interval == 0 or step == max_iters


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Make dropout depend on (seed, step, number of the micro-batch in the global batch) only."""
    numbers = np.random.SeedSequence((seed, step, micro_batch)).generate_state(1)
    set_dropout_seed(int(numbers[0]))


def add_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add the gradients of a micro-batch to what the parameters have in .grad."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.grad is None:
            p.grad = gradient
        else:
            p.grad += gradient


def compile_model(
    model: GPT, batch: list[Batch], objective: TrainingObjective, device: Device
) -> torch.nn.Module:
    """Compile the model for training; if that fails, say why and return the model itself."""
    try:
        compiled: torch.nn.Module = torch.compile(model)  # type: ignore[assignment]
        for micro in batch[:1]:  # a rank may have none
            inputs, targets = device.to_device(micro.inputs, micro.targets)
            with device.autocast():
                loss = compiled(inputs, targets, objective.terms)
                loss.objective.backward()
        return compiled
    except Exception as error:  # no C++ compiler, an old GPU, ...: many kinds
        reason = first_line(error)
        say(f"warning: torch.compile failed, training continues without it: {reason}")
        return model
    finally:
        model.zero_grad()
