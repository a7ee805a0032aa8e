"""Describes the steps of a training as they come: the table of losses, baselines, troubles."""

from collections.abc import Sequence
from datetime import timedelta

from tqdm.utils import disp_trim

from config.terminal import fit_number, one_line
from data.info import Baseline, passed_and_ahead
from engine.metrics import Record
from engine.state import StepResult, TrainState

CELLS = [  # title, name in metrics.jsonl, width, format; with spaces between, 80 columns
    ("step", "step", 7, ".0f"),
    ("train nll", "train_nll", 9, ".4f"),
    ("val nll", "val_nll", 7, ".4f"),
    ("perplexity", "val_perplexity", 10, ".4g"),
    ("bits/byte", "val_bits_per_byte", 9, ".3f"),
    ("top-1", "val_accuracy", 6, ".1%"),
    ("grad norm", "grad_norm", 9, ".2g"),
    ("lr", "lr", 7, ".2g"),
    ("tokens/s", "tokens_per_second", 8, ",.0f"),
]
COLUMNS = " ".join(title.rjust(width) for title, _, width, _ in CELLS)
SAMPLE_COLUMNS = 64  # of a text that the model wrote; 80 with what stands before it
INDENT = " " * 8  # of lines between those of the table
MOST_TOLD = 10  # troubles of a kind that are told one by one; after that every hundredth


def title_columns(split: str) -> str:
    """Return the titles of the columns; the loss is that of the validation or the tuning split."""
    if split == "tuning":
        return COLUMNS.replace("val nll", " tuning")
    return COLUMNS


def describe_progress(record: Record) -> str:
    """Lay out a line of metrics under COLUMNS."""
    cells = []
    for _, name, width, form in CELLS:
        text = ""
        if name in record:
            text = fit_number(record[name], width, form)
        cells.append(text.rjust(width))
    line = " ".join(cells).rstrip()
    if "kl_gap" in record:
        line += f"\n{INDENT}{record['kl_gap']:.4f} above the source"
    return line


def describe_gpus(record: Record) -> str:
    """Say how busy each GPU is, and how long the steps that are left will take."""
    mfu = ""
    if "mfu" in record:
        mfu = f", MFU {record['mfu']:.0%}"
    left = timedelta(seconds=round(record["seconds_left"]))
    return (
        f"{INDENT}each GPU: {record['gpu_tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"{record['gpu_gigabytes']:.1f} GB at peak; {left} left"
    )


def describe_standing(nll: float, baselines: Sequence[Baseline]) -> str:
    """Name the last baseline that a loss has passed, and the next."""
    passed, ahead = passed_and_ahead(nll, baselines)
    beaten = "beats nothing yet"
    if passed:
        beaten = f"beats {passed[-1].name}, {passed[-1].nats_per_token:.3f}"
    following = ": the last baseline"
    if ahead:
        following = f"; next {ahead[0].name}, {ahead[0].nats_per_token:.3f}"
    return INDENT + beaten + following


def describe_sample(text: str) -> str:
    """Show the beginning of a text that the model wrote, in one line."""
    line = one_line(text.replace("\n", "⏎"))
    return f"{INDENT}writes: {disp_trim(line, SAMPLE_COLUMNS)}"


def describe_trouble(state: TrainState, result: StepResult, spike: float | None) -> str:
    """Say what went wrong in a step; "" if nothing did, or if enough of the kind was told.

    `spike` is by how many nats its loss is above the mean of those before, where that is a spike.
    """
    if not result.num_targets:
        count = state.skipped_steps
        trouble = (
            "no token of its batch is a target: the step is skipped, and counts in skipped_steps"
        )
    elif not result.is_finite:
        count = state.nonfinite_steps
        trouble = (
            f"the loss is {result.nll:.4g} and the norm of the gradient {result.grad_norm:.4g}: "
            "the step changes nothing, and counts in nonfinite_steps"
        )
    elif spike is not None:
        count = state.loss_spikes
        trouble = (
            f"a spike: the training loss is {result.nll:.4f}, {spike:.2f} nats above the mean of "
            "the steps before"
        )
    else:
        return ""
    if count > MOST_TOLD and count % 100 != 0:
        return ""
    return f"step {state.step:,}: {trouble}"
