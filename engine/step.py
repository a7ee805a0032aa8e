"""One optimizer step, and one evaluation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from config.schema import Config
from data.batches import Batch
from engine.distributed import World
from engine.optim import set_rates
from loss import IGNORE_INDEX, LossMeans, LossSums, Objective, divide_once, next_token_loss, token_nll
from model import GPT


@dataclass(frozen=True)
class StepResult:
    sums: list[LossSums]  # of each micro-batch
    grad_norm: torch.Tensor  # before clipping
    learning_rate: float
    tokens: int  # scored in all of the batch


def train_step(model: GPT, optimizers: list[Optimizer], batch: Batch, config: Config, world: World, step: int,
               teacher: GPT | None = None) -> StepResult:
    """Take one step; the first is step 0.

    The gradient is that of the mean objective over every token scored in the whole batch, however
    it is cut: each micro-batch's sum is divided by the whole batch's number of scored tokens.
    """
    learning_rate = set_rates(optimizers, config.optim, step)
    scored = int((batch.targets != IGNORE_INDEX).sum())
    objective = Objective(config.loss.label_smoothing, config.loss.z_loss, config.model.softcap, config.loss.alpha,
                          config.loss.temperature)
    parts = []
    for index, (inputs, targets) in enumerate(_micro_batches(batch, config.run.micro_batch_size, world)):
        if config.model.dropout:  # dropout, like the batch, depends on (seed, step, micro-batch) alone
            torch.manual_seed(np.random.SeedSequence((config.run.seed, step, index)).generate_state(1)[0])
        with world.autocast():
            sums = next_token_loss(model(inputs), model.head, targets, objective, _taught(teacher, inputs))
        (sums.objective / max(1, scored)).backward()  # type: ignore[no-untyped-call]
        parts.append(sums)
    max_norm = config.optim.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepResult(parts, grad_norm, learning_rate, scored)


@torch.no_grad()
def _taught(teacher: GPT | None, inputs: torch.Tensor) -> torch.Tensor | None:
    """The teacher's logits (B, T, V)."""
    return teacher.logits(teacher(inputs)) if teacher is not None else None


@torch.inference_mode()
def evaluate(model: GPT, batches: Iterable[Batch], world: World) -> LossMeans:
    """The exact mean loss over some batches, without dropout or smoothing."""
    model.eval()
    parts = []
    for batch in batches:
        inputs, targets = _to_device(batch, world)
        with world.autocast():
            hidden = model.forward(inputs)  # not compiled: shapes vary
            parts.append(next_token_loss(hidden, model.head, targets, Objective(softcap=model.config.softcap)))
    model.train()
    return divide_once(parts)


@torch.inference_mode()
def nll_by_token(model: GPT, batch: Batch, world: World) -> np.ndarray:
    """NLL in nats of each target of a batch, `(B, T)`; 0 where it is not scored."""
    model.eval()
    inputs, targets = _to_device(batch, world)
    with world.autocast():
        return token_nll(model.forward(inputs), model.head, targets, model.config.softcap).cpu().numpy()


def try_compile(model: GPT, batch: Batch, config: Config, world: World) -> str:
    """torch.compile the model in place; where that fails, leave it as it was and return why."""
    reason = ""
    inputs, _ = next(_micro_batches(batch, config.run.micro_batch_size, world))
    model.compile()
    try:
        with world.autocast():
            model(inputs).sum().backward()
    except Exception as error:  # a missing C++ compiler, an old GPU, ...: many kinds
        model._compiled_call_impl = None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    model.zero_grad(set_to_none=True)
    return reason


def _micro_batches(batch: Batch, size: int, world: World) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    inputs, targets = _to_device(batch, world)
    size = size or len(inputs)
    return zip(torch.split(inputs, size), torch.split(targets, size), strict=True)


def _to_device(batch: Batch, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = (torch.from_numpy(array).to(world.device, non_blocking=True) for array in batch)
    return inputs, targets
