"""Says how a training went: its best loss, the baselines, overfitting, and what to try next."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from config.schema import Config, OptimConfig
from data.info import ENGLISH, PLAYS, CorpusInfo, beside_baselines, passed_and_ahead
from engine.metrics import Record, is_outcome
from engine.state import OVERFITTING_RISE, TrainState
from surprisal import nats_to_bits, perplexity, uniform_nll

DIVERGED_RISE = 0.1  # nats of the training loss above log|V|
FAR = 5  # times its default is a rate that explains why a training diverged
BAD_START = 0.5  # nats of a validation loss above log|V|
PARTS = {  # of the objective
    "smoothing": "label smoothing",
    "z_loss": "z-loss",
    "distillation": "distillation",
}
TROUBLES = {
    "skipped_steps": "Steps that had no target, and were skipped",
    "nonfinite_steps": "Steps that changed nothing, because their loss or gradient was not finite",
    "loss_spikes": "Spikes of the training loss (a lower --learning_rate, a smaller --grad_clip or "
    "more --warmup_iters may help)",
}


class Verdict(NamedTuple):
    """Says how a training ended, in a word and in sentences."""

    ending: Literal["finished", "stopped_early", "diverged"]
    text: str


def make_verdict(
    records: Sequence[Record],
    final: Record,
    info: CorpusInfo,
    *,
    cfg: Config,
    state: TrainState,
    epochs: float,
) -> Verdict:
    """Say how a training went.

    `records` are the lines of metrics.jsonl; `final` is the last of them, with what was measured of
    the best model, if there is one. `epochs` is how often the training text was read.
    """
    records = [record for record in records if not is_outcome(record)]
    evaluations = [record for record in records if "val_nll" in record]
    if "best_val_nll" not in final or not evaluations:
        advice = advise_calmer_steps(cfg.optim, cfg.run.dtype)
        return Verdict("diverged", f"No loss was finite: nothing was learned. {advice}")
    lines = [*describe_best(final, records[-1]["step"], info)]
    for name, meaning in TROUBLES.items():
        if name in records[-1]:
            lines.append(f"{meaning}: {records[-1][name]:,.0f}.")
    lines += describe_objective(records)
    log_v = uniform_nll(info.vocab_size)
    signs = []
    train_nll = [record["train_nll"] for record in records if "train_nll" in record]
    if train_nll and train_nll[-1] > log_v + DIVERGED_RISE:
        signs.append(f"the training loss is {train_nll[-1]:.4g}, and log|V| is {log_v:.4g}")
    if state.diverged(cfg.run):
        signs.append(
            f"the last {state.nonfinite_in_a_row:,} step(s) had no finite loss and gradient"
        )
    if signs:
        lines.append(
            f"It diverged: {'; '.join(signs)}. best.safetensors has the model from before."
        )
        lines.append(advise_calmer_steps(cfg.optim, cfg.run.dtype))
        return Verdict("diverged", "\n".join(lines))

    ending: Literal["finished", "stopped_early"] = "finished"
    kind = info.val_kind
    memorised = [*describe_memorisation(final, kind)]
    if memorised and cfg.run.source:
        memorised.append(
            f"  Read means here: in this training. What {cfg.run.source} had read before is not "
            "counted."
        )
    rise = evaluations[-1]["val_nll"] - (state.best_nll or 0.0)
    worst = max(evaluations, key=lambda record: record["val_nll"])
    if state.overfitting:
        is_early = state.step < cfg.optim.max_iters and state.is_finished(cfg)
        if is_early:
            ending = "stopped_early"
        lines += describe_overfitting(rise, state, epochs, kind, stopped_early=is_early)
        advice = f"Try --dropout={cfg.model.dropout + 0.1:.1f}, a smaller model, or more text."
    elif rise > OVERFITTING_RISE:
        lines += explain_rise(rise, state, epochs, kind)
        advice = advise_lower_rates(cfg.optim)
    elif worst["val_nll"] > log_v + BAD_START:
        lines.append(
            f"At step {worst['step']:,.0f} the {kind} loss was {worst['val_nll']:.3f}, worse than "
            "log|V|."
        )
        advice = advise_calmer_steps(cfg.optim, cfg.run.dtype)
    else:
        lines.append(f"It did not overfit: the last {kind} loss is as good as the best.")
        longer = f"longer, --max_iters={2 * cfg.optim.max_iters}"
        larger = f"larger, --n_layer={cfg.model.n_layer + 1}"
        advice = f"Try {longer}, or {larger}."
        if cfg.tables.are_used:  # a second reading harms them
            advice = f"Try {larger}."
        if cfg.run.source:
            advice = f"Try {longer}."
    _, ahead = passed_and_ahead(final["best_val_nll"], info.baselines)
    if info.name == "shakespeare" and "6-gram" in [each.name for each in ahead]:
        advice += "\nconfig/shakespeare_ngram.toml beats the 6-gram: it adds tables of n-grams."
    return Verdict(ending, "\n".join([*lines, *memorised, advice]))


def describe_best(final: Record, last_step: float, info: CorpusInfo) -> Iterator[str]:
    """Say what the exact loss of the best model means."""
    nll = final["best_val_nll"]
    below = uniform_nll(info.vocab_size) - nll
    direction = "below" if below >= 0 else "above"
    yield (
        f"The best model, of step {final['best_step']:,.0f} of {last_step:,.0f}, has a loss of "
        f"{nll:.4f} nats per token on all {info.val.targets:,} {info.val_kind} targets:"
    )
    yield (
        f"  {abs(below):.2f} nats {direction} log|V|; {final['best_val_bits_per_byte']:.3f} bits "
        f"per byte; top-1 accuracy {final['best_val_accuracy']:.1%};"
    )
    yield (
        f"  perplexity {perplexity(nll):.2f}: as uncertain as a choice among "
        f"{perplexity(nll):.2f} equally likely tokens."
    )
    for line in beside_baselines(nll, info.baselines):
        yield f"  {line}"
    if info.tokenizer == "char" and info.name in PLAYS:
        yield f"  {ENGLISH.format(nats_to_bits(nll))}"
    if info.entropy_rate is not None and info.source_nll is not None:
        yield (
            f"  H(p, q) = H(p) + KL(p || q): {nll:.4f} is the entropy rate "
            f"{info.entropy_rate:.4f}, {info.source_nll - info.entropy_rate:+.4f} of sampling "
            f"error of this text, and KL(source || model) = {nll - info.source_nll:.4f}."
        )


def describe_objective(records: Sequence[Record]) -> Iterator[str]:
    """Name the parts of the objective at the end, if it is more than the NLL."""
    measured = [record for record in records if "objective" in record]
    if not measured:
        return
    record = measured[-1]
    parts = [f" {record[name]:+.4f} of {title}" for name, title in PARTS.items() if name in record]
    if parts:
        yield (
            f"The objective at the end, {record['objective']:.4f}, is the training NLL of "
            f"{record['train_nll']:.4f}{''.join(parts)}."
        )
    if "smoothed_kl" in record:
        yield (
            "  NLL + label smoothing = H(p) + KL(p || q), where p is the smoothed target: H(p) is "
            f"{record['smoothed_entropy']:.4f}, and KL(p || q) is {record['smoothed_kl']:.4f}."
        )
    if "teacher_kl" in record:
        yield (
            "  Distillation is alpha (T^2 KL(teacher || model) - NLL - label smoothing), with both "
            f"predictions at temperature T; this KL is {record['teacher_kl']:.4f}."
        )


def describe_memorisation(final: Record, kind: str) -> Iterator[str]:
    """Compare the best model's losses on text that it read or did not read, and on validation.

    `kind` is the word for validation text, here and below: tuning text may take its place.
    """
    val = final["best_val_nll"]
    read = final.get("best_train_read_nll")
    unread = final.get("best_train_unread_nll")
    read_error = 2 * final.get("best_train_read_error", 0.0)  # half of a 95% interval
    unread_error = 2 * final.get("best_train_unread_error", 0.0)
    if read is not None and unread is not None:
        yield (
            f"The best model read {final['best_epochs']:.0%} of the training text. Its loss is "
            f"{read:.4f} on that, and {unread:.4f} on the rest."
        )
        worth = unread - read
        error = math.hypot(read_error, unread_error)
        if worth > error:
            yield (
                f"  Having read a text lowers its loss by {worth:.3f} ± {error:.3f}: that is "
                "memorisation."
            )
        else:
            yield f"  So memorisation cannot be told from noise: {worth:+.3f} ± {error:.3f}."
    elif read is not None:
        direction = "lower" if val > read else "higher"
        yield (
            f"On training text that it read the best model has {read:.4f}, "
            f"{abs(val - read):.3f} ± {read_error:.3f} {direction}."
        )
        yield f"  That is memorisation and how much harder the {kind} text is, together."
    elif unread is not None:
        yield f"On training text that it did not read the best model has {unread:.4f}."
    if unread is not None:
        direction = "harder" if val > unread else "easier"
        yield (
            f"  The {kind} text is {abs(val - unread):.3f} ± {unread_error:.3f} {direction} "
            "than training text that it did not read."
        )


def describe_overfitting(
    rise: float, state: TrainState, epochs: float, kind: str, *, stopped_early: bool
) -> Iterator[str]:
    """Say what shows that a training overfitted, and whether it stopped for that."""
    yield (
        f"It overfitted: since step {state.best_step:,} the {kind} loss rose by {rise:.3f}, "
        f"and the training loss fell by {-state.train_rise:.3f}."
    )
    yield f"  Training read its text {epochs:.1f} times."
    if stopped_early:
        yield "Therefore it stopped early; --patience=0 trains on."


def explain_rise(rise: float, state: TrainState, epochs: float, kind: str) -> Iterator[str]:
    """Say why a validation loss rose, where that is not overfitting."""
    since = f"Since step {state.best_step:,} the {kind} loss rose by {rise:.3f}"
    if state.train_rise > 0:
        yield (
            f"{since}, and the training loss by {state.train_rise:.3f}: the learning rates are too "
            "high."
        )
    elif rise <= state.noise:
        yield f"{since}. That is noise: it has fallen by {state.noise:.3f} after a rise before."
    elif epochs <= 1:
        yield f"{since}. That is noise, or the learning rates are too high."
        yield f"  It did not overfit: training read {epochs:.0%} of its text, and nothing twice."
    else:
        yield f"{since}, and the training loss did not fall."
        yield "  It did not overfit: that is noise, or the learning rates are too high."


def advise_calmer_steps(cfg: OptimConfig, dtype: str) -> str:
    """Name options against steps that are too large; none that has such a value already.

    Where a rate is far above its default, it is the one to change.
    """
    rates = {"learning_rate": cfg.learning_rate}
    if cfg.optimizer == "muon":
        rates["muon_learning_rate"] = cfg.muon_learning_rate
    advice = []
    far = []
    for name, rate in rates.items():
        advice.append(f"--{name}={rate / 4:g}")
        default = OptimConfig.model_fields[name].default
        if rate >= FAR * default:
            times = f"{name}={rate:g} is {rate / default:g} times its default of {default:g}"
            far.append(f"{times}: try --{name}={default:g}.")
    if far:
        return "\n".join(far)
    warmup_iters = max(1, cfg.max_iters // 10)
    if cfg.warmup_iters < warmup_iters:
        advice.append(f"--warmup_iters={warmup_iters}")
    if cfg.grad_clip == 0 or cfg.grad_clip > 1:  # 0 = unlimited
        advice.append("--grad_clip=1")
    if dtype not in ("auto", "float32"):
        advice.append("--dtype=float32")
    return f"Try smaller steps: {', '.join(advice)}."


def advise_lower_rates(cfg: OptimConfig) -> str:
    """Name options against noise and high rates; none that has such a value already."""
    rates = [f"--learning_rate={cfg.learning_rate / 2:g}"]
    if cfg.optimizer == "muon":
        rates.append(f"--muon_learning_rate={cfg.muon_learning_rate / 2:g}")
    advice = [f"lower rates, {' '.join(rates)}"]
    if cfg.schedule == "constant":
        advice.append("rates that decay, --schedule=linear")
    elif cfg.min_lr_ratio > 0:
        advice.append("rates that decay to 0, --min_lr_ratio=0")
    advice.append(f"larger batches, --batch_size={2 * cfg.batch_size}")
    return f"Try {', or '.join(advice)}."
