"""Holds what a training optimises: the terms of the loss, and its teachers if there are any."""

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
from engine.scoring import average_logits
from loss import Objective
from model import GPT


@dataclass(frozen=True)
class TrainingObjective:
    """The terms of the loss, and the models whose predictions are learned too."""

    terms: Objective
    teachers: list[GPT]

    @torch.inference_mode()
    def teacher_logits(self, inputs: Tensor) -> Tensor | None:
        """Return what the teachers predict for tokens (B, T), on average: (B, T, V), or None."""
        if not self.teachers:
            return None
        return average_logits([teacher(inputs) for teacher in self.teachers])


def load_objective(
    cfg: LossConfig, tokenizer: Tokenizer, block_size: int, device: Device
) -> TrainingObjective:
    """Load the best model of each run to learn from.

    UserError if the tokenizer of one differs, or its block_size is smaller.
    """
    teachers = []
    for path in cfg.teachers:
        run = open_run(Path(path))
        if run.tokenizer != tokenizer:
            raise UserError(
                f"teacher={path}: has other tokens than this corpus; it should be a run on the "
                "same corpus, with the same tokenizer and documents"
            )
        if run.cfg.model.block_size < block_size:
            raise UserError(
                f"teacher={path}: its block_size is {run.cfg.model.block_size}, less than "
                f"{block_size}"
            )
        teachers.append(load_model(run, "best", device)[0])
    # without a teacher, alpha and temperature are not used
    terms = Objective(cfg.label_smoothing, cfg.z_loss, cfg.alpha, cfg.temperature)
    return TrainingObjective(terms, teachers)
