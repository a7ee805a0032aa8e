"""Says what a training is about to do, how to resume it, and what to do with its outcome."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.schema import Config, OptimConfig
from config.size import count_flops, count_params, count_table_params
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.info import end_of_prompt
from data.windows import describe_empty_windows
from engine.device import Device, micro_batch_size, micro_batches_at_once
from engine.logged_run import open_logged_run
from engine.optim import get_lr_scale
from engine.run import Run
from engine.signals import StopSignal, name_of
from engine.state import TrainState


def describe_options(changed: dict[str, object]) -> str:
    """Name the options that differ from their defaults."""
    options = [f"{name}={show_value(value)}" for name, value in changed.items()]
    return f"options that differ from the defaults: {', '.join(options) or 'none'}"


def show_value(value: object) -> str:
    """Write the value of an option as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or '""'


def describe_model(cfg: Config, vocab_size: int) -> str:
    """Say how large a model will be: to build a very large one takes minutes."""
    shape = cfg.model
    text = (
        f"GPT with {count_params(shape, vocab_size):,} parameters: n_layer={shape.n_layer} "
        f"n_head={shape.n_head} n_embd={shape.n_embd} block_size={shape.block_size}; "
        f"{count_flops(shape, vocab_size) / 1e6:.1f} MFLOP per training token"
    )
    if cfg.tables.are_used:
        in_tables = count_table_params(cfg.tables, shape.n_embd)
        text += f"\nand {in_tables:,} in tables of the last 2 to {cfg.tables.max_ngram} tokens"
    return text


def describe_start(run: Run, state: TrainState, remark: str) -> Iterator[str]:
    """Say where a training starts, and what changed since it stopped."""
    if run.moved:
        yield f"the run that was in {run.path} is now in {run.moved}"
    if remark:
        yield f"{run.path}: {remark}"
    if not run.is_resumed:
        yield from warn_of_seen_text(run)
        return
    yield f"resuming {run.path} at step {state.step:,}"
    for name, (before, now) in run.changes.items():
        yield f"  {name} was {show_value(before)} and is now {show_value(now)}"
    yield from describe_lr_jump(run.cfg.optim, run.changes, state.step)


def warn_of_seen_text(run: Run) -> Iterator[str]:
    """Warn where a model that a new run learns from has itself learned from the tuning text."""
    if run.info.split == "val":
        return
    for path in filter(None, (run.source, *run.cfg.loss.teachers)):
        info = open_logged_run(Path(path)).info
        if (info.sha256, info.split) == (run.info.sha256, "val"):
            yield f"warning: {path} was trained with split=val, so it learned from the tuning text"


def describe_lr_jump(
    now: OptimConfig, changes: dict[str, list[object]], step: int
) -> Iterator[str]:
    """Say how far the learning rate jumps where a run is resumed with another schedule."""
    if not 0 < step < now.max_iters:
        return
    saved = {name: was for name, (was, _) in changes.items() if name in OptimConfig.model_fields}
    before = now.model_copy(update=saved)
    last_lr = lr_at(before, step - 1)
    planned_lr = lr_at(before, step)
    next_lr = lr_at(now, step)
    if math.isclose(planned_lr, next_lr, rel_tol=0.01):
        return
    verb = "rises" if next_lr > last_lr else "falls"
    why = ""
    if before.max_iters != now.max_iters:
        why = f", because its schedule now ends at step {now.max_iters:,}"
    yield f"  the learning rate {verb} from {last_lr:.2g} to {next_lr:.2g}{why}"


def lr_at(cfg: OptimConfig, step: int) -> float:
    """Return AdamW's learning rate at a step, which may be past the last."""
    return cfg.learning_rate * get_lr_scale(cfg, min(step, cfg.max_iters))


def describe_finished(state: TrainState, max_iters: int) -> str:
    """Say that a run has nothing left to do, and how to train on."""
    if state.step >= max_iters:
        return (
            f"it is finished: it has taken {state.step:,} steps; to train longer, add "
            f"--max_iters={2 * state.step}"
        )
    return (
        f"it is finished: it stopped early at step {state.step:,}, because it overfitted; to "
        "train longer, add --patience=0"
    )


def describe_plan(
    run: Run, state: TrainState, device: Device, get_batch: TrainBatches, val_text: EvalText
) -> Iterator[str]:
    """Describe the machine, the steps ahead, and what evaluations measure."""
    max_iters = run.cfg.optim.max_iters
    block_size = get_batch.block_size
    steps_left = max(0, max_iters - state.step)
    windows = state.windows + steps_left * get_batch.batch_size
    yield (
        f"{device}: {max_iters:,} steps of {get_batch.batch_size * block_size:,} tokens, "
        f"{get_batch.epochs(windows):.2f} epochs; writes {run.path}/"
    )
    num_targets = len(val_text.positions)
    if num_targets < run.info.val.targets:
        yield (
            f"{run.info.val_kind}: {num_targets:,} of the {run.info.val.targets:,} targets, spread "
            "evenly; at the end the best model is measured on all of them, where its loss is a "
            "little different"
        )
    yield from describe_empty_windows(get_batch.split, block_size, get_batch.eos)
    yield from warn_of_idle_ranks(get_batch.num_micro_batches, device.world_size)
    if device.is_emulated:
        yield (
            f"warning: this {device.torch_device.type} has no {device.dtype_name} products and "
            "emulates them, up to 100 times slower than --dtype=float32"
        )
    yield ""


def warn_of_idle_ranks(micro_batches: int, world_size: int) -> Iterator[str]:
    """Warn where a step has fewer micro-batches than there are ranks."""
    idle = world_size - micro_batches
    if idle > 0:
        yield (
            f"warning: a step has {micro_batches} micro-batches, so {idle} of the {world_size} "
            "ranks have nothing to do; use --micro_batch_size=1"
        )


def resume_command(path: Path, device: Device) -> str:
    """Return the command that continues a run with as many processes as now."""
    launcher = "python"
    if device.world_size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", device.world_size))
        launcher = f"torchrun --standalone --nproc_per_node={here}"
        if here < device.world_size:
            launcher = (
                f"(on each machine, with the options of before) torchrun --nproc_per_node={here}"
            )
    return f"{launcher} train.py {shlex.quote(str(path))} --init_from=resume"


def describe_stop(stop: StopSignal, step: int, is_saved: bool) -> str:
    """Say that a signal has stopped a training, and how to resume it."""
    name = name_of(stop.received)
    lost = ""
    if not is_saved:
        lost = ", which could not be saved: make room first; the checkpoint before it is whole"
    return f"Stopped by {name} at step {step:,}{lost}. To resume:\n  {stop.resume_command}"


def advise_less_memory(cfg: Config) -> str:
    """Say what to do when memory runs out in training."""
    smaller = "a smaller --block_size or --n_embd"
    at_once = micro_batches_at_once(cfg.run.device, cfg.run.compile)
    in_memory = min(cfg.optim.batch_size, at_once * micro_batch_size(cfg))  # sequences
    half = in_memory // 2
    if half == 0:
        return f"use {smaller}"
    fewer_threads = ""
    if half < at_once:
        fewer_threads = f" and OMP_NUM_THREADS={half}"
    return (
        f"use --micro_batch_size={max(1, half // at_once)}{fewer_threads}, which gives the same "
        "result with half the memory (and --init_from=resume if training had begun), or "
        f"{smaller}"
    )


def show_samples(prompt: str, texts: Sequence[str]) -> str:
    """Show texts that a model wrote, and the prompt that it continued."""
    title = "A sample" if len(texts) == 1 else f"{len(texts)} samples"
    parts = [f"{title}:", *(text.strip() for text in texts)]
    if prompt:
        parts = ["Prompt:", end_of_prompt(prompt).strip(), *parts]
    return "\n\n".join(parts)


def next_commands(run: Path) -> str:
    """Name the commands that show more of a run."""
    name = shlex.quote(str(run))
    curves = f"{run}/report.html, {run}/curves.png, or: python curves.py {name} --terminal"
    return (
        f"The curves:    {curves}\n"
        f"More samples:  python sample.py {name} --num_samples=3\n"
        f"Compare runs:  python curves.py {name} OTHER_RUN"
    )
