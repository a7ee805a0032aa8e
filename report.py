"""What the numbers mean, in words and small tables. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config.schema import Config
from data.baselines import UNIFORM, Baseline
from surprisal import perplexity, uniform_nll

NEAR = 0.1  # nats from log|V| that an untrained model's loss may be
EQUAL = 1e-4  # nats that are rounding, not a rung passed
RISE = 0.01  # nats that the validation loss must rise before we speak of overfitting

CELLS = [("step", "step", 7, ".0f"), ("train nll", "train_nll", 11, ".4f"), ("objective", "objective", 11, ".4f"),
         ("val nll", "val_nll", 9, ".4f"), ("perplexity", "val_ppl", 12, ".4g"),
         ("bits/byte", "val_bits_per_byte", 11, ".3f"), ("top-1", "val_accuracy", 7, ".1%"),
         ("|grad|", "grad_norm", 8, ".2g"), ("lr", "lr", 9, ".2g"), ("tokens/s", "tokens_per_second", 10, ",.0f")]
COLUMNS = "".join(title.rjust(width) for title, _, width, _ in CELLS)


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
    line = "".join((format(record[key], form) if key in record else "").rjust(width) for _, key, width, form in CELLS)
    return f"{line}   {standing(record['val_nll'], baselines)}" if "val_nll" in record else line


def standing(nll: float, baselines: Sequence[Baseline]) -> str:
    """Which rung a loss has passed, and which comes next."""
    passed, ahead = passed_and_ahead(nll, baselines)
    says = f"beats {passed[-1].name}" if passed else "beats nothing yet"
    return f"{says}; next {ahead[0].name}, {ahead[0].nats_per_token:.3f}" if ahead else f"{says}, the last rung"


def verdict(records: Sequence[dict[str, float]], baselines: Sequence[Baseline], config: Config) -> str:
    """How a run went, from its metrics: the best loss, the rungs, overfitting, and what to try next."""
    evals = [record for record in records if "val_nll" in record]
    if not evals:
        return "No loss was a number: nothing was learned. Try a lower --learning_rate and --muon_learning_rate."
    best, last = min(evals, key=lambda record: record["val_nll"]), evals[-1]
    nll, uniform = best["val_nll"], next(rung for rung in baselines if rung.name == UNIFORM)
    passed, ahead = passed_and_ahead(nll, baselines)
    lines = [
        f"The best validation loss is {nll:.4f} nats per token, at step {best['step']:,.0f} of "
        f"{records[-1]['step']:,.0f}, after {records[-1]['seconds']:.0f} s:",
        f"  {uniform.nats_per_token - nll:.2f} nats below log|V|; "
        f"{best['val_bits_per_byte']:.3f} bits per byte; {best['val_accuracy']:.1%} of the tokens guessed right;",
        f"  a perplexity of {perplexity(nll):.2f}, as unsure as between that many tokens.",
        f"  It beats {', '.join(rung.name for rung in passed) or 'none of the baselines'}"
        + ("." if ahead else ": all of the baselines.")]
    if ahead:
        lines.append(f"  Ahead: {', '.join(f'{rung.name} ({rung.nats_per_token:.3f})' for rung in ahead)}.")
    return "\n".join(lines + _course(records, best, last, uniform.nats_per_token, config))


def _course(records: Sequence[dict[str, float]], best: dict[str, float], last: dict[str, float], uniform: float,
            config: Config) -> list[str]:
    """Did it diverge, overfit, stop early, or is there more to gain; and what to try next."""
    trained = [record for record in records if record["step"] > 0]
    if not trained:
        return []
    train_nll = trained[-1].get("train_nll", float("nan"))
    if not train_nll < uniform + NEAR:
        return [f"It diverged: the training loss is {train_nll:.4g}, worse than knowing nothing.",
                "Try a lower --learning_rate and --muon_learning_rate, or --warmup_iters."]
    rise, gap = last["val_nll"] - best["val_nll"], last["val_nll"] - train_nll
    if rise > RISE:
        return [f"It overfitted: since step {best['step']:,.0f} the validation loss rose by {rise:.3f}, and the "
                f"training loss is at {train_nll:.3f}. best/ keeps the model from before.",
                f"Try --dropout={min(0.5, config.model.dropout + 0.1):.1f}, a smaller model, or more text."]
    if trained[-1]["step"] < config.optim.max_iters:
        return [f"It stopped early: {config.run.patience} evaluation(s) since step {best['step']:,.0f} were no better.",
                "Try other learning rates, or --patience=0 to go on regardless."]
    return ["It did not overfit: the last validation loss is as good as the best, and the training loss, "
            f"{train_nll:.3f}, is {abs(gap):.3f} {'below' if gap > 0 else 'above'} it.",
            f"Try longer, --max_iters={2 * config.optim.max_iters}, or larger, --n_layer={config.model.n_layer + 2}."]


def next_commands(run: Path) -> str:
    return (f"The curve:     {run}/curves.png, or: python curves.py {run} --terminal\n"
            f"More samples:  python sample.py {run} --num_samples=3\n"
            f"Compare runs:  python curves.py {run} OTHER_RUN")


def _descending(baselines: Sequence[Baseline]) -> list[Baseline]:
    return sorted(baselines, key=lambda rung: -rung.nats_per_token)


def passed_and_ahead(nll: float, baselines: Sequence[Baseline]) -> tuple[list[Baseline], list[Baseline]]:
    """The rungs a loss has passed, and those ahead of it, each from the worst to the best."""
    ladder = _descending(baselines)
    passed = [rung for rung in ladder if nll < rung.nats_per_token - EQUAL]
    return passed, ladder[len(passed):]
