"""Show what goes wrong when each micro-batch is divided by its own number of targets.

    python bench/normalisation.py [CORPUS]

The gradient of a batch is that of its mean loss, sum / count. Averaging the means of its
micro-batches weighs a target the more the fewer stand beside it: the gradient is the same only if
all have equally many. Here one batch is masked more and more unevenly, and both gradients are
taken, of a new model and of one after some training: the size of their difference, relative to the
right one, and the angle's cosine.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from bench.output import write_results
from config.schema import Config, DataConfig
from data.batches import IGNORE_INDEX, Batch, TrainBatches
from data.prepare import prepare_corpus
from engine.device import Device, setup_device
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.state import TrainState
from model import GPT
from train import train_step

Row = dict[str, float]
STEPS = 100  # of training, for the second model

# the smallest share of a sequence that may be targets: from even to uneven
LEAST = (1.0, 0.5, 0.1, 0.02)
HEADER = " steps  least  scored  micro-batch  |m - g|/|g|  |m|/|g|   cosine"
ROW = (
    "{steps:>6} {least:6.0%} {scored:7.1%} {micro_batch_size:>12} {difference:12.1e} "
    "{norm:8.3f} {cosine:8.4f}"
)


def masked(batch: Batch, least: float) -> Batch:
    """Mask all but the end of each sequence: a random share, log-uniform from `least` to 1."""
    B, T = batch.targets.shape
    shares = least ** np.random.default_rng(0).random(B)
    num_targets = np.maximum(1, np.round(shares * T))[:, None]
    is_target = np.arange(T) >= T - num_targets
    return batch._replace(targets=np.where(is_target, batch.targets, IGNORE_INDEX))


def compare(model: GPT, batch: Batch, micro_batch_size: int, device: Device) -> Row:
    """Compare the mean of means with the mean: |m - g| / |g|, |m| / |g|, and their cosine."""
    right = torch.zeros((), dtype=torch.float64)
    wrong = right
    starts = range(0, len(batch.inputs), micro_batch_size)
    for start in starts:
        here = slice(start, start + micro_batch_size)
        inputs, targets = device.to_device(batch.inputs[here], batch.targets[here])
        gradient, num_targets = _sum_gradient(model, inputs, targets)
        right = right + gradient
        wrong = wrong + gradient / num_targets / len(starts)  # 0 / 0 where there is no target
    right = right / int((batch.targets != IGNORE_INDEX).sum())
    return {
        "difference": float((wrong - right).norm() / right.norm()),
        "norm": float(wrong.norm() / right.norm()),
        "cosine": float(torch.cosine_similarity(wrong, right, dim=0)),
    }


def _sum_gradient(model: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Return the gradient of the summed loss, as one vector, and the number of targets."""
    sums = model(inputs, targets)
    gradients = torch.autograd.grad(sums.objective, list(model.parameters()))
    vector = torch.cat([gradient.flatten() for gradient in gradients])
    return vector.double(), int(sums.num_targets)


def main(argv: list[str]) -> None:
    device = setup_device("cpu", "float32")
    cfg = Config(data=DataConfig(corpus=argv[0])) if argv else Config()
    corpus = prepare_corpus(cfg.data)
    block_size = cfg.model.block_size
    batch_size = cfg.optim.batch_size
    batches = TrainBatches(corpus.train, block_size, batch_size, cfg.run.seed)
    torch.manual_seed(cfg.run.seed)
    model = GPT(cfg.model, corpus.tokenizer.vocab_size, cfg.tables).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim)
    objective = load_objective(cfg.loss, corpus.tokenizer, block_size, device)
    rows = []
    print(f"{batch_size} sequences of {block_size} tokens\n\n{HEADER}")
    for step in range(STEPS + 1):
        if step in (0, STEPS):
            (batch,) = batches(STEPS * batch_size)
            for least, size in itertools.product(LEAST, (1, 4, 16)):
                uneven = masked(batch, least)
                row = {
                    "steps": step,
                    "least": least,
                    "scored": float((uneven.targets != IGNORE_INDEX).mean()),
                    "micro_batch_size": size,
                }
                row |= compare(model, uneven, size, device)
                rows.append(row)
                print(ROW.format(**row), flush=True)
        micro_batches = batches(step * batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, micro_batches, objective, device, cfg=cfg, state=state)
    write_results("normalisation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
