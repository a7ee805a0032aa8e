"""What the numbers of a training mean, in words and small tables."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from config.schema import OVERFITTING_RISE, Config, ModelConfig, OptimConfig
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.info import Baseline, CorpusInfo, beside_baselines, end_of_prompt, passed_and_ahead
from data.windows import describe_empty_windows
from engine.device import Device, micro_batch_size, micro_batches_at_once
from engine.metrics import Record
from engine.optim import get_lr_scale
from engine.run import Run
from engine.state import StepResult, TrainState
from surprisal import nats_to_bits, perplexity, uniform_nll

SKIPPED = "no token of its batch is a target: the step is skipped, and counts in skipped_steps"
TOLD = 10  # troubles of a kind that are told one by one; after that every hundredth

CELLS = [
    ("step", "step", 6, ".0f"),
    ("train nll", "train_nll", 10, ".4f"),
    ("val nll", "val_nll", 8, ".4f"),
    ("perplexity", "val_perplexity", 11, ".4g"),
    ("bits/byte", "val_bits_per_byte", 10, ".3f"),
    ("top-1", "val_accuracy", 7, ".1%"),
    ("grad norm", "grad_norm", 10, ".2g"),
    ("lr", "lr", 8, ".2g"),
    ("tokens/s", "tokens_per_second", 10, ",.0f"),
]  # 80 columns
INDENT = " " * 8  # of lines between those of the table
COLUMNS = "".join(title.rjust(width) for title, _, width, _ in CELLS)
# of the objective
PARTS = {"smoothing": "label smoothing", "z_loss": "z-loss", "distillation": "distillation"}
TROUBLES = {
    "skipped_steps": "Steps that had no target, and were skipped",
    "nonfinite_steps": "Steps that changed nothing, because their loss or gradient was not finite",
    "loss_spikes": "Spikes of the training loss (a lower --learning_rate, a smaller --grad_clip or more "
    "--warmup_iters may help)",
}


def describe_options(cfg: Config) -> str:
    """The options that differ from their defaults."""
    changed = [f"{name}={shown(value)}" for name, value in cfg.changed().items()]
    return f"options that differ from the defaults: {', '.join(changed) or 'none'}"


def shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def progress(record: Record) -> str:
    """A line under COLUMNS."""
    cells = []
    for _, key, width, form in CELLS:
        text = ""
        if key in record:
            text = _fit(record[key], width - 1, form)  # a space before it
        cells.append(text.rjust(width))
    line = "".join(cells).rstrip()
    return f"{line}   {record['kl_gap']:.4f} above the source" if "kl_gap" in record else line


def _fit(value: float, width: int, form: str) -> str:
    """A number in as many digits as there is room for: the losses of a run that diverges are long."""
    text = format(value, form)
    digits = width
    while len(text) > width and digits > 0:
        text = format(value, f".{digits}g")
        digits -= 1
    return text


def gpu_use(record: Record) -> str:
    """What each GPU does, and how long the steps that are left will take."""
    mfu = f", {record['mfu']:.0%} of its best (MFU)" if "mfu" in record else ""
    return (
        f"{INDENT}each GPU: {record['gpu_tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"{record['gpu_gigabytes']:.1f} GB at the peak; {timedelta(seconds=round(record['seconds_left']))} left"
    )


def standing(nll: float, baselines: Sequence[Baseline]) -> str:
    """The last baseline that a loss has passed, and the next."""
    passed, ahead = passed_and_ahead(nll, baselines)
    says = (
        f"beats {passed[-1].name}, {passed[-1].nats_per_token:.3f}"
        if passed
        else "beats nothing yet"
    )
    after = (
        f"; next {ahead[0].name}, {ahead[0].nats_per_token:.3f}" if ahead else ": the last baseline"
    )
    return INDENT + says + after


def sample_line(text: str) -> str:
    """A text that a model wrote, in one line."""
    line = "".join(
        character if character.isprintable() else " " for character in text.replace("\n", "⏎")
    )
    return f"{INDENT}writes: {line[:70]}"


def trouble(state: TrainState, result: StepResult, rise: float | None) -> str:
    """What went wrong in a step; "" if nothing did, or if enough of the kind was told. `rise` is
    that of a spike.
    """
    if not result.num_targets:
        count, says = state.skipped_steps, f"step {state.step:,}: {SKIPPED}"
    elif not result.is_finite:
        count, says = (
            state.nonfinite_steps,
            (
                f"step {state.step:,}: the loss is {result.nll:.4g} and the norm of the gradient {result.grad_norm:.4g}: "
                "the step changes nothing, and counts in nonfinite_steps"
            ),
        )
    elif rise is not None:
        count, says = (
            state.loss_spikes,
            (
                f"step {state.step:,}: a spike: the training loss is {result.nll:.4f}, {rise:.2f} nats above the mean of "
                "the steps before"
            ),
        )
    else:
        return ""
    return says if count <= TOLD or count % 100 == 0 else ""


def verdict(
    records: Sequence[Record],
    final: Record | None,
    info: CorpusInfo,
    cfg: Config,
    state: TrainState,
    epochs: float,
) -> str:
    """How a run went: the best loss, the baselines, overfitting, and what to try next.

    `final` is what was measured of the best model, if there is one; `epochs` says how often the
    training text was read.
    """
    records = [record for record in records if "best_val_nll" not in record]
    if final is None or not any("val_nll" in record for record in records):
        return f"No loss was finite: nothing was learned. {_calmer_steps(cfg)}"
    nll, last = final["best_val_nll"], records[-1]
    below = uniform_nll(info.vocab_size) - nll
    lines = [
        f"The best model, of step {final['best_step']:,.0f} of {last['step']:,.0f}, has a loss of {nll:.4f} nats per "
        f"token on all {info.val.targets:,} validation targets:",
        f"  {abs(below):.2f} nats {'below' if below >= 0 else 'above'} log|V|; "
        f"{final['best_val_bits_per_byte']:.3f} bits per byte; top-1 accuracy {final['best_val_accuracy']:.1%};",
        f"  perplexity {perplexity(nll):.2f}: as uncertain as a choice among {perplexity(nll):.2f} equally likely "
        "tokens.",
        *(f"  {line}" for line in beside_baselines(nll, info.baselines)),
    ]
    if info.tokenizer == "char" and info.name in ("shakespeare", "tinyshakespeare"):
        lines += [
            f"  English has about 1.0 to 1.5 bits per character; this is {nats_to_bits(nll):.2f}. That estimate",
            "  is for modern prose, and for readers who know the world. This model read nothing but old plays.",
        ]
    if info.entropy_rate is not None and info.source_nll is not None:
        lines += [
            f"  H(p, q) = H(p) + KL(p || q): {nll:.4f} is the entropy rate {info.entropy_rate:.4f}, "
            f"{info.source_nll - info.entropy_rate:+.4f} of sampling error of this text,",
            f"  and KL(source || model) = {nll - info.source_nll:.4f}.",
        ]
    lines += [f"{what}: {last[key]:,.0f}." for key, what in TROUBLES.items() if key in last]
    return "\n".join(
        [*lines, *_objective(records), *_advice(records, final, info, cfg, state, epochs)]
    )


def _objective(records: Sequence[Record]) -> Iterator[str]:
    """The parts of the objective at the end, if it is more than the NLL."""
    record = next((record for record in reversed(records) if "objective" in record), {})
    if parts := [f" {record[key]:+.4f} of {name}" for key, name in PARTS.items() if key in record]:
        yield (
            f"The objective at the end, {record['objective']:.4f}, is the training NLL of {record['train_nll']:.4f}"
            f"{''.join(parts)}."
        )
    if "smoothed_kl" in record:
        yield (
            f"  NLL + label smoothing = H(p) + KL(p || q), where p is the smoothed target: H(p) is "
            f"{record['smoothed_entropy']:.4f}, and KL(p || q) is {record['smoothed_kl']:.4f}."
        )
    if "teacher_kl" in record:
        yield (
            "  Distillation is alpha (T^2 KL(teacher || model) - NLL - label smoothing), with both predictions at "
            f"temperature T; this KL is {record['teacher_kl']:.4f}."
        )


def _advice(
    records: Sequence[Record],
    final: Record,
    info: CorpusInfo,
    cfg: Config,
    state: TrainState,
    epochs: float,
) -> list[str]:
    """Did it diverge, overfit, or is there more to gain; and what to try next."""
    train_nll = next(
        (record["train_nll"] for record in reversed(records) if "train_nll" in record), math.nan
    )
    nonfinite, uniform = records[-1].get("nonfinite_in_a_row", 0), uniform_nll(info.vocab_size)
    if nonfinite or train_nll > uniform + 0.1:
        signs = []
        if train_nll > uniform + 0.1:
            signs.append(f"the training loss is {train_nll:.4g}, and log|V| is {uniform:.4g}")
        if nonfinite:
            signs.append(f"the last {nonfinite:,.0f} steps had no finite loss and gradient")
        return [
            f"It diverged: {'; '.join(signs)}. best.safetensors has the model from before.",
            _calmer_steps(cfg),
        ]
    evals = [record for record in records if "val_nll" in record]
    same = list(_on_training_text(final))
    if same and cfg.run.source:
        same.append(
            f"  Read means here: in this training. What {cfg.run.source} had read before is not counted."
        )
    rise = evals[-1]["val_nll"] - (state.best_nll or 0.0)
    if state.overfitting:
        return [
            *_overfitted(rise, cfg, state, epochs),
            *same,
            f"Try --dropout={cfg.model.dropout + 0.1:.1f}, a smaller model, or more text.",
        ]
    if rise > OVERFITTING_RISE:
        return [*_rose(rise, state, epochs), *same, _lower_rates(cfg)]
    worst = max(evals, key=lambda record: record["val_nll"])
    if worst["val_nll"] > uniform + 0.5:
        return [
            f"At step {worst['step']:,.0f} the validation loss was {worst['val_nll']:.3f}, worse than log|V|.",
            *same,
            _calmer_steps(cfg),
        ]
    return [
        "It did not overfit: the last validation loss is as good as the best.",
        *same,
        f"Try longer, --max_iters={2 * cfg.optim.max_iters}"
        + ("." if cfg.run.source else f", or larger, --n_layer={cfg.model.n_layer + 1}."),
    ]


def _on_training_text(final: Record) -> Iterator[str]:
    """What the best model's losses on text that it read, and did not read, say of its validation
    loss.
    """
    val = final["best_val_nll"]
    read, unread = final.get("best_train_read_nll"), final.get("best_train_unread_nll")
    read_error = 2 * final.get("best_train_read_error", 0.0)  # half of a 95% interval
    unread_error = 2 * final.get("best_train_unread_error", 0.0)
    if read is not None and unread is not None:
        yield (
            f"The best model read {final['best_epochs']:.0%} of the training text. Its loss is {read:.4f} on that, "
            f"and {unread:.4f} on the rest."
        )
        worth = unread - read
        error = math.hypot(read_error, unread_error)
        if worth > error:
            yield f"  Having read a text lowers its loss by {worth:.3f} ± {error:.3f}: that is memorisation."
        else:
            yield f"  So memorisation cannot be told from noise: {worth:+.3f} ± {error:.3f}."
    elif read is not None:
        yield (
            f"On training text that it read the best model has {read:.4f}, {abs(val - read):.3f} ± {read_error:.3f} "
            f"{_direction(val > read, 'lower', 'higher')}."
        )
        yield "  That is memorisation and how much harder the validation text is, together."
    elif unread is not None:
        yield f"On training text that it did not read the best model has {unread:.4f}."
    if unread is not None:
        yield (
            f"  The validation text is {abs(val - unread):.3f} ± {unread_error:.3f} "
            f"{_direction(val > unread, 'harder', 'easier')} than training text that it did not read."
        )


def _direction(is_more: bool, more: str, less: str) -> str:
    return more if is_more else less


def _overfitted(rise: float, cfg: Config, state: TrainState, epochs: float) -> Iterator[str]:
    """What shows that a run overfitted, and whether it stopped for that."""
    yield (
        f"It overfitted: since step {state.best_step:,} the validation loss rose by {rise:.3f}, and the training "
        f"loss fell by {-state.train_rise:.3f}."
    )
    yield f"  Training read its text {epochs:.1f} times."
    if state.step < cfg.optim.max_iters and state.is_finished(cfg):
        yield "Therefore it stopped early; --patience=0 trains on."


def _rose(rise: float, state: TrainState, epochs: float) -> Iterator[str]:
    """Why a validation loss rose, where that is not overfitting."""
    since = f"Since step {state.best_step:,} the validation loss rose by {rise:.3f}"
    if state.train_rise > 0:
        yield f"{since}, and the training loss by {state.train_rise:.3f}: the learning rates are too high."
    elif rise <= state.noise:
        yield f"{since}. That is noise: it has fallen by {state.noise:.3f} after a rise before."
    elif epochs <= 1:
        yield f"{since}. That is noise, or the learning rates are too high."
        yield f"  It did not overfit: training read {epochs:.0%} of its text, and nothing twice."
    else:
        yield f"{since}, and the training loss did not fall."
        yield "  It did not overfit: that is noise, or the learning rates are too high."


def _calmer_steps(cfg: Config) -> str:
    """Advice against steps that are too large, without options that have such a value already."""
    optim = cfg.optim
    advice = [f"--learning_rate={optim.learning_rate / 4:g}"]
    if optim.optimizer == "muon":
        advice.append(f"--muon_learning_rate={optim.muon_learning_rate / 4:g}")
    warmup_iters = max(1, optim.max_iters // 10)
    if optim.warmup_iters < warmup_iters:
        advice.append(f"--warmup_iters={warmup_iters}")
    if optim.grad_clip == 0 or optim.grad_clip > 1:  # 0 = unlimited
        advice.append("--grad_clip=1")
    if cfg.run.dtype not in ("auto", "float32"):
        advice.append("--dtype=float32")
    return f"Try smaller steps: {', '.join(advice)}."


def _lower_rates(cfg: Config) -> str:
    """Advice against noise and rates that are too high, without options that have such a value
    already.
    """
    optim = cfg.optim
    rates = [f"--learning_rate={optim.learning_rate / 2:g}"]
    if optim.optimizer == "muon":
        rates.append(f"--muon_learning_rate={optim.muon_learning_rate / 2:g}")
    advice = [f"lower rates, {' '.join(rates)}"]
    if optim.schedule == "constant":
        advice.append("rates that decay, --schedule=linear")
    elif optim.min_lr_ratio > 0:
        advice.append("rates that decay to 0, --min_lr_ratio=0")
    return f"Try {', or '.join([*advice, f'larger batches, --batch_size={2 * optim.batch_size}'])}."


def describe_model(model: ModelConfig, vocab_size: int) -> str:
    """Its size, before it is built, which takes minutes if it is very large."""
    return (
        f"GPT with {model.num_params(vocab_size):,} parameters: n_layer={model.n_layer} n_head={model.n_head} "
        f"n_embd={model.n_embd} block_size={model.block_size}; "
        f"{model.flops_per_token(vocab_size) / 1e6:.1f} MFLOP per training token"
    )


def describe_run(
    run: Run,
    state: TrainState,
    remark: str,
    device: Device,
    get_batch: TrainBatches,
    val_text: EvalText,
) -> str:
    """The run, the machine, the steps ahead, and what the evaluations measure."""
    max_iters, batch_size = run.cfg.optim.max_iters, run.cfg.optim.batch_size
    lines = [f"the run that was in {run.path} is now in {run.moved}"] if run.moved else []
    if remark:
        lines.append(f"{run.path}: {remark}")
    if run.is_resumed:
        lines += [
            f"resuming {run.path} at step {state.step:,}",
            *(
                f"  {name} was {shown(was)} and is now {shown(now)}"
                for name, (was, now) in run.changes.items()
            ),
        ]
        lines += _lr_change(run, state.step)
    if run.had_outcome and state.is_finished(run.cfg):
        return "\n".join([*lines, finished(run.cfg, state)])
    windows = state.windows + max(0, max_iters - state.step) * batch_size
    lines += [
        f"{device}: {max_iters:,} steps of {batch_size * run.cfg.model.block_size:,} tokens, "
        f"{get_batch.epochs(windows):.2f} epochs; writes {run.path}/"
    ]
    if len(val_text.positions) < run.info.val.targets:
        lines += [
            f"validation: {len(val_text.positions):,} of the {run.info.val.targets:,} targets, spread evenly; at "
            "the end the best model",
            "  is measured on all of them, where its loss is a little different",
        ]
    lines += describe_empty_windows(get_batch.split, run.cfg.model.block_size, get_batch.eos)
    lines += idle_ranks(get_batch.num_micro_batches, device.world_size)
    if device.is_emulated:
        lines.append(
            f"warning: this {device.torch_device.type} has no {device.dtype_name} products and emulates them, up to 100 "
            "times slower than --dtype=float32"
        )
    return "\n".join([*lines, ""])


def idle_ranks(micro_batches: int, world_size: int) -> list[str]:
    """A warning where a step has fewer micro-batches than there are ranks."""
    idle = world_size - micro_batches
    if idle <= 0:
        return []
    return [
        f"warning: a step has {micro_batches} micro-batches, so {idle} of the {world_size} ranks have "
        "nothing to do; use --micro_batch_size=1"
    ]


def finished(cfg: Config, state: TrainState) -> str:
    """That a run has nothing left to do, and how to train on."""
    if state.step >= cfg.optim.max_iters:
        return (
            f"it is finished: it has taken {state.step:,} steps; to train longer, add "
            f"--max_iters={2 * state.step}"
        )
    return (
        f"it is finished: it stopped early at step {state.step:,}, because it overfitted; to "
        "train longer, add --patience=0"
    )


def _lr_change(run: Run, step: int) -> list[str]:
    """How far the learning rate jumps where a run is resumed with another schedule; else no line."""
    optim = run.cfg.optim
    if not 0 < step < optim.max_iters:
        return []
    was = {name: was for name, (was, _) in run.changes.items() if name in OptimConfig.model_fields}
    before = optim.model_copy(update=was)
    last, planned = (
        before.learning_rate * get_lr_scale(before, min(number, before.max_iters))
        for number in (step - 1, step)
    )
    now = optim.learning_rate * get_lr_scale(optim, step)
    if math.isclose(planned, now, rel_tol=0.01):
        return []
    verb = "rises" if now > last else "falls"
    why = ""
    if before.max_iters != optim.max_iters:
        why = f", because its schedule now ends at step {optim.max_iters:,}"
    return [f"  the learning rate {verb} from {last:.2g} to {now:.2g}{why}"]


def stopped(run: Run, signal: str, state: TrainState, device: Device, saved: bool) -> str:
    """That a signal has stopped a run, and how to resume it."""
    lost = ""
    if not saved:
        lost = ", which could not be saved: make room first; the checkpoint before it is whole"
    command = resume_command(run, device)
    return f"Stopped by {signal} at step {state.step:,}{lost}. To resume:\n  {command}"


def resume_command(run: Run, device: Device) -> str:
    """The command that continues a run with as many processes as now."""
    launcher = "python"
    if device.world_size > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", device.world_size))
        launcher = f"torchrun --standalone --nproc_per_node={here}"
        if here < device.world_size:
            launcher = (
                f"(on each machine, with the options of before) torchrun --nproc_per_node={here}"
            )
    return f"{launcher} train.py {shlex.quote(str(run.path))} --init_from=resume"


def less_memory(cfg: Config) -> str:
    """What to do when memory runs out in training."""
    smaller = "a smaller --block_size or --n_embd"
    at_once = micro_batches_at_once(cfg)
    # of the sequences in memory
    half = min(cfg.optim.batch_size, at_once * micro_batch_size(cfg)) // 2
    if half == 0:
        return f"use {smaller}"
    fewer = "" if half >= at_once else f" and OMP_NUM_THREADS={half}"
    return (
        f"use --micro_batch_size={max(1, half // at_once)}{fewer}, which gives the same result with half the "
        f"memory (and --init_from=resume if training had begun), or {smaller}"
    )


def samples(prompt: str, texts: Sequence[str]) -> str:
    """Texts that a model wrote, and the prompt that it continued."""
    given = f"Prompt:\n\n{end_of_prompt(prompt).strip()}\n\n" if prompt else ""
    title = "A sample" if len(texts) == 1 else f"{len(texts)} samples"
    return f"{given}{title}:\n\n" + "\n\n".join(text.strip() for text in texts)


def next_commands(run: Path) -> str:
    name = shlex.quote(str(run))
    return (
        f"The curves:    {run}/report.html, {run}/curves.png, or: python curves.py {name} --terminal\n"
        f"More samples:  python sample.py {name} --num_samples=3\n"
        f"Compare runs:  python curves.py {name} OTHER_RUN"
    )
