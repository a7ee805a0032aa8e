"""What goes wrong when each micro-batch is divided by its own number of scored tokens.

    python bench/normalisation.py [CORPUS]

The gradient of a batch is that of its mean loss, sum / count. Averaging the means of its
micro-batches weighs a token the more the fewer are scored beside it: the same gradient only if all
score equally many. Here one batch is masked more and more unevenly, and both gradients are taken,
of a new model and of one after some training: the size of their difference, relative to the right
one, and the angle's cosine.
"""

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

STEPS = 100  # of training, for the second model

# the smallest share of a sequence that may be scored: from even to uneven
LEAST = (1.0, 0.5, 0.1, 0.02)


def masked(batch: Batch, least: float) -> Batch:
    """The batch with only the end of each sequence scored: a random share of it, log-uniform from
    `least` to 1.
    """
    B, T = batch.targets.shape
    shares = least ** np.random.default_rng(0).random(B)
    scored = np.maximum(1, np.round(shares * T))[:, None]
    return batch._replace(targets=np.where(np.arange(T) >= T - scored, batch.targets, IGNORE_INDEX))


def compare(model: GPT, batch: Batch, micro_batch_size: int, device: Device) -> dict[str, float]:
    """The mean of means against the mean: |m - g| / |g|, |m| / |g|, and their cosine."""
    right = wrong = torch.zeros((), dtype=torch.float64)
    starts = range(0, len(batch.inputs), micro_batch_size)
    for start in starts:
        here = slice(start, start + micro_batch_size)
        inputs, targets = device.to_device(batch.inputs[here], batch.targets[here])
        gradient, tokens = _sum_gradient(model, inputs, targets)
        right = right + gradient
        wrong = wrong + gradient / tokens / len(starts)  # 0 / 0 where nothing is scored
    right = right / int((batch.targets != IGNORE_INDEX).sum())
    return {
        "difference": float((wrong - right).norm() / right.norm()),
        "norm": float(wrong.norm() / right.norm()),
        "cosine": float(torch.cosine_similarity(wrong, right, dim=0)),
    }


def _sum_gradient(model: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The gradient of the summed loss, as one vector, and the number of tokens scored."""
    sums = model(inputs, targets)
    gradients = torch.autograd.grad(sums.objective, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]).double(), int(sums.num_targets)


def main(argv: list[str]) -> None:
    device = setup_device("cpu", "float32")
    cfg = Config(data=DataConfig(corpus=argv[0])) if argv else Config()
    corpus = prepare_corpus(cfg.data)
    batches = TrainBatches(corpus.train, cfg.model.block_size, cfg.optim.batch_size, cfg.run.seed)
    torch.manual_seed(cfg.run.seed)
    model = GPT(cfg.model, corpus.tokenizer.vocab_size).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim)
    objective = load_objective(cfg.loss, corpus.tokenizer, cfg.model.block_size, device)
    rows = []
    print(
        f"{cfg.optim.batch_size} sequences of {cfg.model.block_size} tokens\n\n"
        f"{'steps':>6} {'least':>6} {'scored':>7} {'micro-batch':>12} {'|m - g|/|g|':>12} "
        f"{'|m|/|g|':>8} {'cosine':>8}"
    )
    for step in range(STEPS + 1):
        if step in (0, STEPS):
            for least in LEAST:
                batch = masked(batches(STEPS * cfg.optim.batch_size)[0], least)
                for size in (1, 4, 16):
                    row = {
                        "steps": step,
                        "least": least,
                        "scored": float((batch.targets != IGNORE_INDEX).mean()),
                        "micro_batch_size": size,
                    } | compare(model, batch, size, device)
                    rows.append(row)
                    print(
                        "{steps:>6} {least:6.0%} {scored:7.1%} {micro_batch_size:>12} {difference:12.1e} {norm:8.3f} "
                        "{cosine:8.4f}".format(**row),
                        flush=True,
                    )
        micro_batches = batches(step * cfg.optim.batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, micro_batches, objective, device, cfg=cfg, state=state)
    write_results("normalisation", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
