"""One optimizer step, and one evaluation."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from config.schema import Config
from data.batches import Batch
from engine.distributed import World
from engine.optim import set_rates
from engine.optimizers import Optimizer
from loss import IGNORE_INDEX, LossMeans, LossSums, Objective, add_up, divide_once, next_token_loss, token_nll
from model import GPT


@dataclass(frozen=True)
class StepResult:
    """What a step measured, over all ranks; it was taken unless it is skipped or bad."""

    sums: LossSums  # float64, on the CPU
    grad_norm: float  # before clipping
    learning_rate: float

    @property
    def tokens(self) -> int:
        """Scored in the whole batch."""
        return int(self.sums.tokens)

    @property
    def nll(self) -> float:
        """Nats per token."""
        return float(self.sums.nll) / (self.tokens or math.nan)

    @property
    def skipped(self) -> bool:
        """Nothing was to be scored."""
        return self.tokens == 0

    @property
    def bad(self) -> bool:
        """The loss or the gradient is not a number, or infinite."""
        return not (self.skipped or (math.isfinite(self.sums.objective) and math.isfinite(self.grad_norm)))

    @property
    def taken(self) -> bool:
        return not (self.skipped or self.bad)


def train_step(model: GPT, optimizers: list[Optimizer], batch: Batch, config: Config, world: World, step: int,
               teacher: GPT | None = None) -> StepResult:
    """Take one step; the first is step 0.

    The gradient is that of the mean objective over every token scored in the whole batch, however it
    is cut and shared out: each micro-batch's sum is divided by the whole batch's number of scored
    tokens, which every rank knows. A batch with nothing to score leaves weights and optimizers alone, and so
    does one whose loss or gradient is not a number.
    """
    learning_rate = set_rates(optimizers, config.optim, step)
    scored = int((batch.targets != IGNORE_INDEX).sum())
    if not scored:
        return StepResult(add_up([]), math.nan, learning_rate)
    objective = Objective(config.loss.label_smoothing, config.loss.z_loss, config.model.softcap, config.loss.alpha,
                          config.loss.temperature)
    parts = []
    for index, inputs, targets, left_out in _micro_batches(batch, config.run.micro_batch_size, world):
        if config.model.dropout:  # dropout, like the batch, depends on (seed, step, micro-batch) alone
            torch.manual_seed(np.random.SeedSequence((config.run.seed, step, index)).generate_state(1)[0])
        with world.autocast():
            hidden = model(inputs, left_out=left_out)
            sums = next_token_loss(hidden, model.head, targets, objective, _taught(teacher, inputs))
        (sums.objective / scored).backward()  # type: ignore[no-untyped-call]
        parts.append(sums)
    world.sum_gradients(model.parameters())
    max_norm = config.optim.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    result = StepResult(add_up(parts, world.sum), float(grad_norm), learning_rate)  # waits for the device
    for optimizer in optimizers:
        if result.taken:
            optimizer.step()
        optimizer.zero_grad()
    return result


@torch.no_grad()
def _taught(teacher: GPT | None, inputs: torch.Tensor) -> torch.Tensor | None:
    """The teacher's logits (B, T, V)."""
    return teacher.logits(teacher(inputs)) if teacher is not None else None


@torch.inference_mode()
def evaluate(model: GPT, batches: Iterable[Batch], world: World) -> LossMeans:
    """The exact mean loss over some batches, shared out over ranks, without dropout or smoothing."""
    model.eval()
    parts, blank = [], model.is_blank
    for batch in itertools.islice(batches, world.rank, None, world.size):
        inputs, targets, _ = _to_device(batch, world)
        with world.autocast():
            if blank:  # then hidden states do not matter, and the first step need not wait for them
                hidden = torch.zeros(*inputs.shape, model.head.shape[1], device=world.device)
            else:
                hidden = model.forward(inputs)  # not compiled: shapes vary
            parts.append(next_token_loss(hidden, model.head, targets, Objective(softcap=model.config.softcap)))
    model.train()
    return divide_once(parts, world.sum)


@torch.inference_mode()
def nll_by_token(model: GPT, batch: Batch, world: World) -> np.ndarray:
    """NLL in nats of each target of a batch, `(B, T)`; 0 where it is not scored."""
    model.eval()
    inputs, targets, left_out = _to_device(batch, world)
    with world.autocast():
        hidden = model.forward(inputs, left_out=left_out)
        return token_nll(hidden, model.head, targets, model.config.softcap).cpu().numpy()


def try_compile(model: GPT, batch: Batch, config: Config, world: World) -> str:
    """torch.compile the model in place; where that fails, leave it as it was and return why."""
    reason = ""
    _, inputs, _, left_out = next(_micro_batches(batch, config.run.micro_batch_size, replace(world, rank=0)))
    model.compile()
    try:
        with world.autocast():
            model(inputs, left_out=left_out).sum().backward()
    except Exception as error:  # a missing C++ compiler, an old GPU, ...: many kinds
        model._compiled_call_impl = None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    model.zero_grad(set_to_none=True)
    return reason


def _micro_batches(batch: Batch, size: int, world: World
                   ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches, `(index, inputs, targets, left_out)`: of all those in the batch, numbers r, r + W, ...

    A size of 0 is an equal share of the batch for every rank.
    """
    B = len(batch.inputs)
    size = size or -(-B // world.size)
    for index in range(world.rank, -(-B // size), world.size):
        here = slice(index * size, (index + 1) * size)
        yield index, *_to_device(Batch(*(array[here] for array in batch)), world)


def _to_device(batch: Batch, world: World) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, targets, left_out = (torch.from_numpy(array).to(world.device, non_blocking=True) for array in batch)
    return inputs, targets, left_out
