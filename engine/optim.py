"""Which optimizer steps what, and how fast: Muon for the blocks' matrices, AdamW for everything else, or for all."""

from config.schema import OptimConfig
from engine.optimizers import AdamW, Muon, Optimizer
from engine.schedule import rate_scale
from model import GPT


def make_optimizers(model: GPT, config: OptimConfig) -> list[Optimizer]:
    """Each parameter is in exactly one.

    Weight decay, as in GPT-2, is for matrices only, embeddings among them: biases and norms are left alone.
    """
    muon = [p for name, p in model.named_parameters()
            if config.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2]
    taken = {id(p) for p in muon}
    rest = [p for p in model.parameters() if id(p) not in taken]
    matrices, vectors = ([p for p in rest if (p.ndim >= 2) == wanted] for wanted in (True, False))
    betas = (config.beta1, config.beta2)
    return [optimizer for optimizer in (AdamW(matrices, config.learning_rate, betas, config.weight_decay),
                                        AdamW(vectors, config.learning_rate, betas, 0.0),
                                        Muon(muon, config.muon_learning_rate, config.momentum, config.weight_decay))
            if optimizer.params]


def set_rates(optimizers: list[Optimizer], config: OptimConfig, step: int) -> float:
    """Set the learning rates of a step; returns AdamW's, the one called `learning_rate`."""
    scale = rate_scale(config, step)
    for optimizer in optimizers:
        optimizer.lr = scale * (config.muon_learning_rate if isinstance(optimizer, Muon) else config.learning_rate)
    return config.learning_rate * scale
