"""The optimizers: Muon for the blocks' matrices, AdamW for everything else, or AdamW for all."""

import torch
from torch.optim import Optimizer

from config.schema import OptimConfig
from engine.muon import Muon
from engine.schedule import rate_scale
from model import GPT


def make_optimizers(model: GPT, config: OptimConfig) -> list[Optimizer]:
    """One or two optimizers; each parameter is in exactly one.

    Weight decay, as in GPT-2, is for matrices only, embeddings among them: biases and norms are left alone.
    """
    named = [(name, p) for name, p in model.named_parameters()]
    muon = [p for name, p in named if config.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2]
    taken = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in taken]
    fused = rest[0].device.type in ("cuda", "cpu")
    optimizers: list[Optimizer] = [torch.optim.AdamW(
        [{"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
         {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)]
    if muon:
        optimizers.append(Muon(muon, config.muon_learning_rate, config.momentum, config.weight_decay))
    return optimizers


def set_rates(optimizers: list[Optimizer], config: OptimConfig, step: int) -> float:
    """Set the learning rates of a step; returns AdamW's, the one called `learning_rate`."""
    scale = rate_scale(config, step)
    for optimizer in optimizers:
        peak = config.muon_learning_rate if isinstance(optimizer, Muon) else config.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
    return config.learning_rate * scale
