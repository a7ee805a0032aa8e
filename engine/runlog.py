"""What a run measured, a flat JSON object a line; and writing it, on disks that may be full."""

import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from config.schema import LossConfig
from engine.checkpoint import save_checkpoint
from engine.distributed import World
from engine.optimizers import Optimizer
from engine.progress import Progress
from engine.step import StepResult
from loss import LossMeans, divide_once
from model import GPT
from runs import Record, Run, parse_record
from surprisal import bits_per_byte, perplexity, smoothed_entropy

P = ParamSpec("P")


def training_record(results: list[StepResult], since: float, config: LossConfig, vocab_size: int) -> Record:
    """Means over some steps, begun at that time.perf_counter(); rate and gradient norm are the last one's.

    Steps that were not taken count for nothing: if none was, there is no loss here, and no token a second.
    The objective comes with its parts, where it has more than the NLL; and with label smoothing, also
    with the floor H(p) under the cross-entropy of the smoothed target p, and the excess KL(p || q); with a
    teacher, also with KL(teacher || model), both softened.
    """
    taken = [result for result in results if result.taken]
    loss = divide_once(result.sums for result in taken)
    record = {"lr": results[-1].learning_rate, "tokens_per_second": loss.tokens / (time.perf_counter() - since)}
    if not taken:
        return record
    record |= {"grad_norm": taken[-1].grad_norm, "train_nll": loss.nll, "objective": loss.objective}
    if config.label_smoothing:
        floor = smoothed_entropy(vocab_size, config.label_smoothing)
        record |= {"smoothing": loss.smoothing, "smoothed_floor": floor,
                   "smoothed_kl": loss.nll + loss.smoothing - floor}
    if config.z_loss:
        record["z_loss"] = loss.z_loss
    if config.teacher:
        record["distillation"] = loss.distillation
    if config.teacher and config.alpha:
        record["teacher_kl"] = (loss.distillation / config.alpha + loss.nll + loss.smoothing) / config.temperature**2
    return record


def validation_record(loss: LossMeans, bytes_per_token: float, floor: float | None = None) -> Record:
    """`floor` is what the text's source itself pays for the same tokens, in nats per token, where that is known."""
    record = {"val_nll": loss.nll, "val_ppl": perplexity(loss.nll), "val_accuracy": loss.accuracy,
              "val_bits_per_byte": bits_per_byte(loss.nll, bytes_per_token)}
    return record if floor is None else record | {"kl_gap": loss.nll - floor}


class RunLog:
    """What a run writes while it trains: metrics.jsonl and checkpoints.

    Where the disk is full, training goes on: that is told, and what could not be written is tried again with the
    next. A run that is gone on with first loses the lines after the step that it goes on from.
    """

    def __init__(self, run: Run, world: World, step: int, say: Callable[[str], None]) -> None:
        self.run, self.world, self.say = run, world, say
        self.metrics = run.path / "metrics.jsonl"
        self.failing: set[str] = set()  # what could not be written the last time
        self.waiting: list[str] = []  # lines of metrics that are not on disk yet
        self.end = world.once(_end_of, self.metrics, step) if step else 0  # bytes of those that are

    def write(self, record: Record) -> None:
        """Append a line to metrics.jsonl."""
        record = {key: value for key, value in record.items() if math.isfinite(value)}  # JSON knows no NaN
        self.waiting.append(json.dumps(record) + "\n")
        if self.attempt("metrics.jsonl", self._append):
            self.waiting.clear()

    def save(self, name: str, model: GPT, progress: Progress, optimizers: list[Optimizer] | None = None) -> bool:
        """Replace the checkpoint of that name, if the disk has room."""
        return self.attempt(f"{name}/", save_checkpoint, self.run.path / name, model, progress, optimizers)

    def attempt(self, name: str, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Have rank 0 write a part of the run; where the disk does not let it, say so, and go on."""
        try:
            self.world.once(function, *args, **kwargs)
        except OSError as error:
            if name not in self.failing:
                self.say(f"warning: {self.run.path}/{name} could not be written ({error.strerror or error}); going on")
            self.failing.add(name)
            return False
        if name in self.failing:
            self.say(f"{self.run.path}/{name} could be written again")
            self.failing.remove(name)
        return True

    def _append(self) -> None:
        with self.metrics.open("r+b" if self.metrics.exists() else "wb") as file:
            file.truncate(min(self.end, file.seek(0, io.SEEK_END)))  # without what a full disk took of a line
            file.seek(0, io.SEEK_END)
            file.write("".join(self.waiting).encode())
            end = file.tell()
        self.end = end


def _end_of(metrics: Path, step: int) -> int:
    """How many bytes of a metrics.jsonl there are up to its last line of `step` or before; the rest is measured anew.

    Damaged lines in between stay: they are not read, and nothing is lost with them.
    """
    end = at = 0
    with metrics.open("rb") if metrics.exists() else io.BytesIO() as file:
        for line in file:
            at += len(line)
            record = parse_record(line)
            if record and record["step"] <= step and line.endswith(b"\n"):
                end = at
    return end
