"""Step 0 is a test: a model that knows nothing has a loss of log|V|. If not, what is wrong?

Where its logits are all equal, it has that loss for any targets. So the targets are compared with
the inputs themselves, and the model's vocabulary with the tokenizer's. The loss shows only later
whether targets and inputs belong together: it then falls below the unigram's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.batches import IGNORE_INDEX, Batch, TrainBatches
from data.info import Baseline
from engine.device import Device
from engine.metrics import Record
from model import GPT
from surprisal import uniform_nll

FIRST_BATCHES = 4  # to look at; one of them must have a target
MAX_TOKENS = 8192  # in the sequences whose loss is measured
NEAR = 0.01  # nats that the loss may be from what is expected, at least
LARGE = 0.5  # nats; logits that cost more by themselves start too large
EARLY_STEPS = 40  # in which a model may still be above the unigram,
EARLY_TOKENS = 20  # or until each token of the vocabulary came so many times, on average
ORDER = 0.1  # nats that the bigram is below the unigram where the order of a text says something
SHIFTED = {  # by the distance of target and input
    0: "each target is its own input",
    2: "each target is two tokens after its input",
    -1: "each target is the token before its input",
}


class Start(NamedTuple):
    """Holds the loss of an untrained model, and what it should be, in nats per token."""

    nll: float
    uniform: float  # log|V|
    cost: float  # KL(uniform || softmax(logits)): what random logits cost


def check_start(model: GPT, get_batch: TrainBatches, vocab_size: int, device: Device) -> str:
    """Say whether a training that is about to start is as it should be: see `check_step_zero`."""
    starts = range(0, FIRST_BATCHES * get_batch.batch_size, get_batch.batch_size)
    first_batches = [get_batch(start) for start in starts]
    return check_step_zero(model, first_batches, vocab_size, device)


def check_step_zero(
    model: GPT, first_batches: Sequence[list[Batch]], vocab_size: int, device: Device
) -> str:
    """Say whether an untrained model, its loss and the first batches are as they should be.

    `vocab_size` is the tokenizer's. Of first_batches, all micro-batches are looked at.
    """
    batches = []
    for batch in first_batches:
        batches += [micro for micro in batch if micro.num_targets > 0]
    if not batches:
        return "step 0: WRONG: no targets: every target of the first batches is masked"
    faults = check_vocabulary(model.vocab_size, vocab_size) + check_labels(batches)
    largest_input = max(batch.inputs.max() for batch in batches)
    largest_target = max(batch.targets.max() for batch in batches)
    largest = max(largest_input, largest_target)
    if largest >= model.vocab_size:
        faults.append(
            f"token {largest} is in a batch, and the model knows tokens below "
            f"{model.vocab_size} only"
        )
        return "\n  WRONG: ".join(["step 0: the loss cannot be measured", *faults])
    start = measure_start(model, batches[0], device)
    faults += check_loss(start)
    says = (
        f"step 0: loss {start.nll:.4f} nats; expected log|V| = log {model.vocab_size:,} = "
        f"{start.uniform:.4f}"
    )
    if start.cost >= 1e-4:
        says += f", plus {start.cost:.4f} for its random logits"
    if not faults:
        return f"{says}: as it should be, the model knows nothing yet"
    return "\n  WRONG: ".join([says, *faults])


def check_vocabulary(predicted: int, known: int) -> list[str]:
    """Compare the number of tokens that a model predicts with that of its tokenizer."""
    if predicted == known:
        return []
    others = "more, which never come: a padded vocabulary, with a loss of log|V| that is too high"
    if predicted < known:
        others = "fewer, which it cannot predict"
    return [
        f"the model has {predicted:,} tokens and the tokenizer {known:,}; it has "
        f"{abs(predicted - known):,} {others}"
    ]


def check_labels(batches: Sequence[Batch]) -> list[str]:
    """Compare each target with the next input, where that is in the batch."""
    wrong = 0
    checked = 0
    num_targets = 0
    num_shifted = dict.fromkeys(SHIFTED, 0)  # targets that are at that distance of their input
    for batch in batches:
        has_next = find_next(batch)
        following = np.roll(batch.inputs, -1, axis=1)
        wrong += int((batch.targets != following)[has_next].sum())
        checked += int(has_next.sum())
        is_target = batch.targets != IGNORE_INDEX
        num_targets += int(is_target.sum())
        for shift in SHIFTED:
            is_shifted = batch.targets == np.roll(batch.inputs, -shift, axis=1)
            num_shifted[shift] += int(is_shifted[is_target].sum())
    if not wrong:
        return []
    shift = max(num_shifted, key=num_shifted.__getitem__)
    if num_shifted[shift] > num_targets / 2:
        return [f"the labels are off by one: {SHIFTED[shift]}"]
    return [
        f"{wrong:,} of {checked:,} targets are not the next token of their input: the targets "
        "do not belong to the inputs"
    ]


def find_next(batch: Batch) -> np.ndarray:
    """Mark the targets whose token the next input should be, (B, T) bool.

    Not at the end of a row, and not before the padding, which repeats the row's first token.
    """
    is_target = batch.targets != IGNORE_INDEX
    may_be_padding = ~is_target & (batch.inputs == batch.inputs[:, :1])
    # True from the first of those positions on that reach to the end of the row.
    is_padding = np.logical_and.accumulate(may_be_padding[:, ::-1], axis=1)[:, ::-1]
    has_next = np.zeros_like(is_target)
    has_next[:, :-1] = is_target[:, :-1] & ~is_padding[:, 1:]
    return has_next


@torch.inference_mode()
def measure_start(model: GPT, batch: Batch, device: Device) -> Start:
    """Measure the loss of an untrained model on the first rows of a batch that have a target."""
    has_target = (batch.targets != IGNORE_INDEX).any(axis=1)
    most_rows = max(1, MAX_TOKENS // batch.inputs.shape[1])
    rows = np.flatnonzero(has_target)[:most_rows]
    inputs, targets = device.to_device(batch.inputs[rows], batch.targets[rows])
    is_target = targets != IGNORE_INDEX
    model.eval()
    with device.autocast():
        hidden = model.hidden_states(inputs)[is_target]
        logits = model.logits(hidden)  # (N, V)
    model.train()
    nll = torch.nn.functional.cross_entropy(logits, targets[is_target]).item()
    uniform = uniform_nll(logits.shape[1])
    # What random logits z cost on average over all tokens: log sum exp z - mean z, less log|V|.
    mean_cost = (logits.logsumexp(dim=1) - logits.mean(dim=1)).mean().item()
    return Start(nll, uniform, mean_cost - uniform)


def check_loss(start: Start) -> list[str]:
    """Compare a loss with log|V| plus what random logits cost: half their variance if Gaussian."""
    nll, uniform, cost = start
    near = NEAR + math.sqrt(2 * max(cost, 0)) / 3
    if not math.isfinite(nll):
        return ["the loss is not finite"]
    if nll < uniform - near:
        return [
            f"the loss is {uniform - nll:.2f} below log|V|, too low for a model that knows "
            "nothing: its weights are trained already, or it sees its targets"
        ]
    if cost > LARGE:
        return ["the weights start too large: the logits are confident without reason"]
    if nll > uniform + cost + near:
        return [
            f"the loss is {nll - uniform:.2f} above log|V|, and the spread of the logits does "
            "not explain it: they favour tokens that do not come"
        ]
    return []


def is_early(record: Record, vocab_size: int, eval_interval: int, warmup_iters: int) -> bool:
    """Return whether a sound model may still be above the unigram at an evaluation."""
    steps = max(EARLY_STEPS, eval_interval, 2 * warmup_iters)
    return record["step"] < steps or record["tokens"] < EARLY_TOKENS * vocab_size


def check_first_losses(record: Record, baselines: Sequence[Baseline], kind: str) -> str:
    """Return a warning if the loss of an evaluation is not below the unigram's; else "".

    `kind` is the word for its text.
    """
    nats = {each.name: each.nats_per_token for each in baselines}
    unigram = nats.get("unigram", math.inf)
    bigram = nats.get("bigram", math.inf)
    if record["val_nll"] < unigram or bigram > unigram - ORDER:
        return ""
    step = record["step"]
    nll = record["val_nll"]
    return (
        f"warning: after {step:,.0f} steps the {kind} loss, {nll:.3f}, is not below the "
        f"unigram's, {unigram:.3f}: the model has not learned more than how often each token "
        "comes. Its learning rate is far too low or too high, or its targets do not belong to its "
        "inputs: data/prepare.py --show_batch shows some"
    )
