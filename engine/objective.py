"""What a training optimises: the terms of the loss, and a teacher if there is one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from config.schema import LossConfig
from data.tokenizer import Tokenizer
from engine.checkpoint import load_teacher
from engine.device import Device
from loss import LossSums, Objective
from model import GPT


@dataclass(frozen=True)
class TrainingObjective:
    """The terms of the loss, and the model whose predictions are learned too."""

    terms: Objective
    teacher: GPT | None = None

    def loss(self, model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> LossSums:
        """Return the loss sums of a micro-batch, (B, T) each."""
        teacher_logits = None
        if self.teacher is not None:
            with torch.inference_mode():
                teacher_logits = self.teacher(inputs)
        sums: LossSums = model(inputs, targets, self.terms, teacher_logits)
        return sums


def load_objective(
    cfg: LossConfig, tokenizer: Tokenizer, block_size: int, device: Device
) -> TrainingObjective:
    """Load the teacher, if there is one. UserError if it cannot teach this model."""
    if not cfg.teacher:
        return TrainingObjective(Objective(cfg.label_smoothing, cfg.z_loss))
    teacher = load_teacher(cfg.teacher, tokenizer, block_size, device)
    terms = Objective(cfg.label_smoothing, cfg.z_loss, cfg.alpha, cfg.temperature)
    return TrainingObjective(terms, teacher)
