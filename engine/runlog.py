"""What a run writes while it trains: lines of metrics, samples and checkpoints, on disks that may be full."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from config.schema import LossConfig
from engine.checkpoint import Optimizers, save_checkpoint
from engine.distributed import Distributed
from engine.run import Record, Run, append_line, parse_record
from engine.state import StepResult, TrainState
from loss import mean_loss, sum_losses
from model import GPT
from surprisal import smoothed_entropy

P = ParamSpec("P")


def training_record(results: list[StepResult], config: LossConfig, vocab_size: int) -> Record:
    """Means over some steps, without those that changed nothing, in nats per token; gradient norm and lr of the last.

    The objective comes with its parts, if it is more than the NLL. With label smoothing also with H(p), the entropy of
    the smoothed target p, and KL(p || q) above it; with a teacher also with KL(teacher || model).
    """
    applied = [result for result in results if result.is_applied]
    loss = mean_loss(sum_losses(result.sums for result in applied))
    record = {"lr": results[-1].lr,
              "tokens_per_second": loss.num_targets / max(1e-9, sum(result.seconds for result in results))}
    if not applied:
        return record
    record |= {"grad_norm": applied[-1].grad_norm, "train_nll": loss.nll, "objective": loss.objective}
    if config.label_smoothing:
        entropy = smoothed_entropy(vocab_size, config.label_smoothing)
        record |= {"smoothing": loss.smoothing, "smoothed_entropy": entropy,
                   "smoothed_kl": loss.nll + loss.smoothing - entropy}
    if config.z_loss:
        record["z_loss"] = loss.z_loss
    if config.teacher:
        record["distillation"] = loss.distillation
    if config.teacher and config.alpha:
        kl = loss.distillation / config.alpha + loss.nll + loss.smoothing
        record["teacher_kl"] = kl / config.temperature**2
    return record


class RunLog:
    """Writes a run's files. If the disk is full, training continues, and what is missing is written once it fits."""

    def __init__(self, run: Run, dist: Distributed, step: int, say: Callable[[str], None]) -> None:
        self.run, self.dist, self.say = run, dist, say
        self.metrics = run.path / "metrics.jsonl"
        self.failing: set[str] = set()  # files that could not be written the last time
        self.waiting: list[str] = []  # lines of metrics that are not on disk yet
        self.size = dist.on_rank0(_size_until, self.metrics, step)  # of metrics.jsonl
        dist.on_rank0(_truncate, run.path / "samples.jsonl", step)

    def write(self, record: Record) -> None:
        """Append a line to metrics.jsonl."""
        record = {key: value for key, value in record.items() if math.isfinite(value)}  # JSON has no NaN
        self.waiting.append(json.dumps(record) + "\n")
        if self.attempt("metrics.jsonl", self._append):
            self.waiting.clear()

    def write_sample(self, step: int, text: str) -> None:
        """Append a line to samples.jsonl."""
        self.attempt("samples.jsonl", append_line, self.run.path / "samples.jsonl",
                     {"step": step, "text": text})

    def save(self, name: str, model: GPT, state: TrainState, optimizers: Optimizers | None = None) -> bool:
        """Replace a checkpoint; False if the disk has no room for it."""
        return self.attempt(f"{name}.safetensors", save_checkpoint, self.run.path / f"{name}.safetensors", model, state,
                            optimizers)

    def attempt(self, name: str, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Rank 0 writes a file of the run; if it cannot, a warning says so, and training continues."""
        try:
            self.dist.on_rank0(function, *args, **kwargs)
        except OSError as error:
            if name not in self.failing:
                self.say(f"warning: {self.run.path}/{name} could not be written ({error.strerror or error})")
            self.failing.add(name)
            return False
        if name in self.failing:
            self.say(f"{self.run.path}/{name} could be written again")
            self.failing.remove(name)
        return True

    def _append(self) -> None:
        with self.metrics.open("r+b" if self.metrics.exists() else "wb") as file:
            file.truncate(min(self.size, file.seek(0, io.SEEK_END)))  # a full disk may have taken part of a line
            file.seek(0, io.SEEK_END)
            file.write("".join(self.waiting).encode())
            size = file.tell()
        self.size = size


def _size_until(path: Path, step: int) -> int:
    """The bytes of a .jsonl file up to its last line of `step` or before, without the outcome of a finished run.

    Resuming truncates the file there. Damaged lines in between stay: nobody reads them.
    """
    size = position = 0
    if step == 0:  # step 0 is measured anew
        return 0
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        for line in file:
            position += len(line)
            record = parse_record(line) or _parse_sample(line)
            if record and record["step"] <= step and "best_step" not in record and line.endswith(b"\n"):
                size = position
    return size


def _truncate(path: Path, step: int) -> None:
    if path.exists():
        os.truncate(path, _size_until(path, step))


def _parse_sample(line: bytes) -> Record | None:
    try:
        return {"step": int(json.loads(line)["step"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
