"""Holds what a training optimises: the terms of the loss, and a teacher if there is one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.errors import UserError
from config.schema import LossConfig
from data.tokenizer import Tokenizer
from engine.checkpoint import load_model
from engine.device import Device
from engine.run import open_run
from loss import Objective
from model import GPT


@dataclass(frozen=True)
class TrainingObjective:
    """The terms of the loss, and the model whose predictions are learned too."""

    terms: Objective
    teacher: GPT | None = None

    @torch.inference_mode()
    def teacher_logits(self, inputs: Tensor) -> Tensor | None:
        """Return what the teacher predicts for tokens (B, T): logits (B, T, V), or None."""
        if self.teacher is None:
            return None
        logits: Tensor = self.teacher(inputs)
        return logits


def load_objective(
    cfg: LossConfig, tokenizer: Tokenizer, block_size: int, device: Device
) -> TrainingObjective:
    """Load the teacher, if there is one. UserError if it cannot teach this model."""
    terms = Objective(cfg.label_smoothing, cfg.z_loss, cfg.alpha, cfg.temperature)
    if not cfg.teacher:  # alpha and temperature are not used then
        return TrainingObjective(terms)
    teacher = load_teacher(cfg.teacher, tokenizer, block_size, device)
    return TrainingObjective(terms, teacher)


def load_teacher(path: str, tokenizer: Tokenizer, block_size: int, device: Device) -> GPT:
    """Load the best model of a run, to learn from.

    UserError if the tokenizer differs or block_size is smaller.
    """
    run = open_run(Path(path))
    if run.tokenizer != tokenizer:
        raise UserError(
            f"teacher={path}: has other tokens than this corpus; it should be a run on the same "
            "corpus, with the same tokenizer and documents"
        )
    if run.cfg.model.block_size < block_size:
        raise UserError(
            f"teacher={path}: its block_size is {run.cfg.model.block_size}, less than {block_size}"
        )
    return load_model(run, "best", device)[0]
