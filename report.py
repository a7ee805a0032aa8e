"""What the numbers mean, in words and small tables. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.schema import Config
from data.baselines import Baseline
from surprisal import perplexity, uniform_nll

NEAR = 0.1  # nats from log|V| that an untrained model's loss may be
RISE = 0.01  # nats that the validation loss must rise before we speak of overfitting

COLUMNS = "    step   train nll   val nll  perplexity  bits/byte  top-1   tokens/s"


def corpus(meta: dict[str, Any], baselines: Sequence[Baseline]) -> str:
    """The corpus in a line, and its ladder of baselines, from the worst to the best."""
    lines = [f"{meta['corpus']}: {meta['train']['tokens']:,} training and {meta['val']['tokens']:,} validation tokens "
             f"({meta['tokenizer']}, |V| = {meta['vocab_size']:,})", "",
             "  to beat             nats/token  bits/byte  perplexity"]
    lines += [f"  {rung.name:<18} {rung.nats_per_token:11.4f} {rung.bits_per_byte:10.3f} {rung.perplexity:11.2f}"
              for rung in _descending(baselines)]
    return "\n".join(lines)


def step_zero(nll: float, vocab_size: int) -> str:
    """Is the loss of the untrained model log|V|, as it should be? If not, the likely causes."""
    expected = uniform_nll(vocab_size)
    says = f"step 0: loss {nll:.4f} nats, and log|V| = log {vocab_size:,} = {expected:.4f}"
    if abs(nll - expected) <= NEAR:
        return f"{says}: as it should be, the model knows nothing yet"
    if nll > expected:
        return (f"{says}: {nll - expected:.2f} too high, it is confidently wrong. Likely causes: the weights start too "
                "large, or the tokens come from another vocabulary")
    return (f"{says}: {expected - nll:.2f} too low for a model that knows nothing. Likely causes: the inputs contain "
            "the targets (are they shifted by one?), or the weights were trained before")


def progress(record: dict[str, float], baselines: Sequence[Baseline]) -> str:
    """A line under COLUMNS; with an evaluation, where on the ladder it stands."""
    cells = [("step", 8, "{:.0f}"), ("train_nll", 12, "{:.4f}"), ("val_nll", 10, "{:.4f}"), ("val_ppl", 12, "{:.2f}"),
             ("val_bits_per_byte", 11, "{:.3f}"), ("val_accuracy", 7, "{:.1%}"), ("tokens_per_second", 11, "{:,.0f}")]
    line = "".join((form.format(record[key]) if key in record else "").rjust(width) for key, width, form in cells)
    return f"{line}   {standing(record['val_nll'], baselines)}" if "val_nll" in record else line


def standing(nll: float, baselines: Sequence[Baseline]) -> str:
    """Which rung a loss has passed, and which comes next."""
    passed, ahead = _split(nll, baselines)
    says = f"beats {passed[-1].name}" if passed else "beats nothing yet"
    return f"{says}; next {ahead[0].name}, {ahead[0].nats_per_token:.3f}" if ahead else f"{says}, the last rung"


def verdict(records: Sequence[dict[str, float]], baselines: Sequence[Baseline], config: Config) -> str:
    """How a run went, from its metrics: the best loss, the rungs, overfitting, and what to try next."""
    evals = [record for record in records if "val_nll" in record]
    best, last = min(evals, key=lambda record: record["val_nll"]), evals[-1]
    nll, train_nll = best["val_nll"], next((r["train_nll"] for r in reversed(records) if "train_nll" in r), None)
    passed, ahead = _split(nll, baselines)
    lines = [
        f"The best validation loss is {nll:.4f} nats per token, at step {best['step']:,.0f} of {last['step']:,.0f}, "
        f"after {last['seconds']:.0f} s:",
        f"  {_descending(baselines)[0].nats_per_token - nll:.2f} nats below log|V|; "
        f"{best['val_bits_per_byte']:.3f} bits per byte; {best['val_accuracy']:.1%} of the tokens guessed right;",
        f"  a perplexity of {perplexity(nll):.2f}, as unsure as between that many tokens.",
        f"  It beats {', '.join(rung.name for rung in passed) or 'none of the baselines'}"
        + ("." if ahead else ": all of the baselines.")]
    if ahead:
        lines.append(f"  Ahead: {', '.join(f'{rung.name} ({rung.nats_per_token:.3f})' for rung in ahead)}.")
    rise = last["val_nll"] - nll
    if last["step"] < config.optim.max_iters:
        lines.append(f"It stopped early: {config.run.patience} evaluations brought no better loss.")
    if train_nll is None:
        return "\n".join(lines)
    if rise > RISE:
        lines.append(f"It overfitted: since step {best['step']:,.0f} the validation loss rose by {rise:.3f}, and the "
                     f"training loss is at {train_nll:.3f}. best/ keeps the model from before.")
        lines.append(f"Try --dropout={min(0.5, config.model.dropout + 0.1):.1f}, a smaller model, or more text.")
    else:
        gap = last["val_nll"] - train_nll
        lines.append(f"It did not overfit: the last validation loss is as good as the best, and the training loss, "
                     f"{train_nll:.3f}, is {abs(gap):.3f} {'below' if gap > 0 else 'above'} it.")
        lines.append(f"Try longer, --max_iters={2 * config.optim.max_iters}, or larger, "
                     f"--n_layer={config.model.n_layer + 2}.")
    return "\n".join(lines)


def next_commands(run: Path) -> str:
    return (f"The curve:     {run}/curves.png, or: python curves.py {run} --terminal\n"
            f"More samples:  python sample.py {run} --num_samples=3\n"
            f"Compare runs:  python curves.py {run} OTHER_RUN")


def _descending(baselines: Sequence[Baseline]) -> list[Baseline]:
    return sorted(baselines, key=lambda rung: -rung.nats_per_token)


def _split(nll: float, baselines: Sequence[Baseline]) -> tuple[list[Baseline], list[Baseline]]:
    """The rungs a loss has passed, and those ahead of it, each from the worst to the best."""
    ladder = _descending(baselines)
    passed = [rung for rung in ladder if nll < rung.nats_per_token]
    return passed, ladder[len(passed):]
