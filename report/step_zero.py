"""Step 0 is a test: a model that knows nothing has a loss of log|V|. If this one has not, what is wrong?"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from data.batches import IGNORE_INDEX, Batch
from engine.distributed import Distributed
from model import GPT
from surprisal import uniform_nll

FIRST_BATCHES = 4  # to look at; one of them must have a target
MAX_TOKENS = 8192  # in the sequences whose loss is measured
NEAR = 0.01  # nats that the loss may be from what is expected, at least
LARGE = 0.5  # nats; logits that cost more by themselves start too large
LABELS = {1: "right", 0: "each target is its own input", 2: "each target is two tokens after its input",
          -1: "each target is the token before its input"}  # by their distance from the input


@torch.inference_mode()
def check_step_zero(model: GPT, first_batches: Sequence[list[Batch]], dist: Distributed) -> str:
    """Whether the loss of an untrained model, and the labels of its first batches, are as they should be.

    Such a model has a loss of log|V| plus what its random logits cost: KL(uniform || softmax(logits)), which is half
    their variance if they are Gaussian.
    """
    batches = [micro_batches[0] for micro_batches in first_batches]
    inputs, targets, _ = max(batches, key=lambda batch: batch.num_targets > 0)
    unmasked = targets != IGNORE_INDEX
    if not unmasked.any():
        return "step 0: WRONG: no targets: every target of the first batches is masked"
    same = {shift: (np.roll(inputs, -shift, axis=1) == targets)[unmasked].mean() for shift in LABELS}
    shift = max(same, key=same.__getitem__)  # of equals the first, which is the right one
    rows = np.flatnonzero(unmasked.any(axis=1))[:max(1, MAX_TOKENS // inputs.shape[1])]
    x, y = dist.to_device(inputs[rows], targets[rows])
    model.eval()
    with dist.autocast():
        logits = model.logits(model.hidden_states(x)[y != IGNORE_INDEX])  # (N, V)
    model.train()
    nll = torch.nn.functional.cross_entropy(logits, y[y != IGNORE_INDEX]).item()
    uniform = uniform_nll(logits.shape[1])
    cost = (logits.logsumexp(dim=1) - logits.mean(dim=1)).mean().item() - uniform
    near = NEAR + math.sqrt(2 * max(cost, 0)) / 3
    says = [f"step 0: loss {nll:.4f} nats; expected log|V| = log {logits.shape[1]:,} = {uniform:.4f}"
            + (f", plus {cost:.4f} for its random logits" if cost >= 1e-4 else "")]
    if shift != 1 and same[shift] > 0.5:
        says.append(f"the labels are off by one: {LABELS[shift]}")
    if not math.isfinite(nll):
        says.append("the loss is not finite")
    elif nll < uniform - near:
        says.append(f"the loss is {uniform - nll:.2f} below log|V|, too low for a model that knows nothing: its "
                    "weights are trained already, or it sees its targets")
    elif cost > LARGE:
        says.append("the weights start too large: the logits are confident without reason")
    elif nll > uniform + cost + near:
        says.append(f"the loss is {nll - uniform:.2f} above log|V|, and the spread of the logits does not explain it: "
                    "they favour tokens that do not come; do the targets have another vocabulary?")
    return "\n  WRONG: ".join(says) if len(says) > 1 else f"{says[0]}: as it should be, the model knows nothing yet"
