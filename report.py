"""What the numbers mean, in words and small tables. Needs no torch."""

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.schema import Config
from data.baselines import FLOOR, UNIFORM, Baseline
from surprisal import perplexity, uniform_nll

if TYPE_CHECKING:
    from engine.diagnosis import Diagnosis
    from engine.progress import Progress
    from engine.step import StepResult
    from runs import Run

NEAR = 0.01  # nats from what is expected that an untrained model's loss may be, at least
LARGE = 0.5  # nats that an untrained model's logits may cost by themselves
SKIPPED = "no token of this step's batch is to be scored: it is skipped, and counted in skipped_steps"
SHOWN = 10  # troubles of a kind that are told one by one; of more, every hundredth
EQUAL = 1e-4  # nats that are rounding, not a rung passed
RISE = 0.01  # nats that the validation loss must rise before we speak of overfitting

CELLS = [("step", "step", 7, ".0f"), ("train nll", "train_nll", 11, ".4f"), ("objective", "objective", 11, ".4f"),
         ("val nll", "val_nll", 9, ".4f"), ("perplexity", "val_ppl", 12, ".4g"),
         ("bits/byte", "val_bits_per_byte", 11, ".3f"), ("top-1", "val_accuracy", 7, ".1%"),
         ("|grad|", "grad_norm", 8, ".2g"), ("lr", "lr", 9, ".2g"), ("tokens/s", "tokens_per_second", 10, ",.0f")]
COLUMNS = "".join(title.rjust(width) for title, _, width, _ in CELLS)
PARTS = {"smoothing": "smoothing", "z_loss": "z-loss", "distillation": "distillation"}  # key: name
SHIFTED = {0: "each target is its own input", 2: "each target is two tokens after its input",
           -1: "each target is the token before its input"}


def corpus(meta: dict[str, Any], baselines: Sequence[Baseline]) -> str:
    """The corpus in a line, and its ladder of baselines, from the worst to the best."""
    train, val = meta["train"], meta["val"]
    lines = [f"{meta['corpus']}: {train['tokens']:,} training and {val['tokens']:,} validation tokens "
             f"({meta['tokenizer']}, |V| = {meta['vocab_size']:,})"]
    if train["documents"] > 1:
        lines.append(f"  in {train['documents']:,} and {val['documents']:,} documents, each closed by an end token")
    if val["scored"] < val["tokens"] - 1:
        lines.append(f"  of which {train['scored'] / train['tokens']:.1%} and {val['scored'] / val['tokens']:.1%} are "
                     "scored, the others given")
    lines += ["",
             "  to beat             nats/token  bits/byte  perplexity"]
    lines += [f"  {rung.name:<18} {rung.nats_per_token:11.4f} {rung.bits_per_byte:10.3f} {rung.perplexity:11.2f}"
              for rung in _descending(baselines)]
    if "entropy_rate" in meta:
        luck = meta["source_nll"] - meta["entropy_rate"]
        lines += ["", f"  The entropy rate is the floor: the source itself pays it, {luck:+.4f} of luck on this text.",
                  "  What a model pays more than the source is KL(source || model)."]
    return "\n".join(lines)


def step_zero(first: "Diagnosis", vocab_size: int) -> str:
    """Is the first loss what it should be for a model that knows nothing? If not, what is wrong.

    Logits of variance s^2 that know nothing cost log|V| + s^2 / 2, if they are Gaussian: log mean exp z
    is s^2 / 2 above their mean. Whatever their shape, they never cost less than log|V|.
    """
    if not first.scored:
        return "step 0: WRONG: nothing to score: every target of the first batches is masked"
    uniform, expected = uniform_nll(vocab_size), first.logit_variance / 2
    says = (f"step 0: loss {first.nll:.4f} nats; log|V| + half the logits' variance = log {vocab_size:,} + "
            f"{expected:.4f} = {uniform + expected:.4f}")
    if faults := [*_label_faults(first), *_loss_faults(first, vocab_size)]:
        return "\n  WRONG: ".join([says, *faults])
    if first.nll > uniform + expected + _near(first):  # tied weights expect each token to come again
        says += f" (the logits are not Gaussian: by themselves they cost {first.spread:.4f})"
    return f"{says}: as it should be, the model knows nothing yet"


def _near(first: "Diagnosis") -> float:
    """How far the loss may be from what its logits cost by themselves: some tokens are more frequent than others."""
    return NEAR + first.logit_variance**0.5 / 3


def _label_faults(first: "Diagnosis") -> Iterator[str]:
    shift = max(first.agreement, key=first.agreement.__getitem__)  # the first of equals, which is the right one
    if shift != 1 and first.agreement[shift] > 0.9:
        yield f"the labels are off by one: {SHIFTED[shift]}"
    elif first.agreement[1] < 0.5:
        yield f"only {first.agreement[1]:.0%} of the targets are the input that comes next; are they shuffled?"


def _loss_faults(first: "Diagnosis", vocab_size: int) -> Iterator[str]:
    excess = first.nll - uniform_nll(first.rows)
    if first.rows != vocab_size:
        yield (f"the vocabulary is padded: the head has {first.rows:,} rows for {vocab_size:,} tokens, which adds "
               f"log({first.rows:,} / {vocab_size:,}) = {uniform_nll(first.rows) - uniform_nll(vocab_size):.3f} nats")
    if not math.isfinite(first.nll):
        yield "the loss is not a number"
    elif excess < -_near(first):
        yield (f"the loss is {-excess:.2f} below log|V|, too low for a model that knows nothing: its weights were "
               "trained before, or it sees its targets")
    elif first.spread > LARGE:
        yield (f"the weights start too large: logits with a standard deviation of {first.logit_variance**0.5:.2f} are "
               f"sure of what they cannot know, which costs {excess:.2f} nats")
    elif excess > first.spread + _near(first):
        yield (f"the loss is {excess:.2f} above log|V|, and not for the logits' spread: they favour tokens that do not "
               "come; are the targets of another vocabulary?")


def progress(record: dict[str, float], baselines: Sequence[Baseline]) -> str:
    """A line under COLUMNS; with an evaluation, where on the ladder it stands."""
    line = "".join((format(record[key], form) if key in record else "").rjust(width) for _, key, width, form in CELLS)
    return f"{line}   {standing(record['val_nll'], baselines, record.get('kl_gap'))}" if "val_nll" in record else line


def standing(nll: float, baselines: Sequence[Baseline], kl_gap: float | None = None) -> str:
    """Which rung a loss has passed, which comes next, and how far it is above the floor where there is one."""
    passed, ahead = passed_and_ahead(nll, baselines)
    says = f"beats {passed[-1].name}" if passed else "beats nothing yet"
    says += f"; next {ahead[0].name}, {ahead[0].nats_per_token:.3f}" if ahead else ", the last rung"
    return says if kl_gap is None else f"{says}; {kl_gap:.4f} above the floor"


def trouble(progress: "Progress", result: "StepResult", spike: float | None) -> str:
    """What went wrong in a step, or nothing."""
    if result.skipped and progress.skipped_steps == 1:
        return SKIPPED
    if result.bad and _is_told(progress.bad_steps):
        return (f"step {progress.step:,}: the loss is {result.nll:.4g} and the gradient's norm {result.grad_norm:.4g}: "
                "the step is not taken, and counted in bad_steps")
    if spike is not None and _is_told(progress.loss_spikes):
        return (f"step {progress.step:,}: a spike: the loss is {result.nll:.4f}, {spike:.2f} nats above the mean of "
                "those before")
    return ""


def _is_told(number: int) -> bool:
    return number <= SHOWN or number % 100 == 0


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
    if skipped := records[-1].get("skipped_steps"):
        lines.append(f"{skipped:,.0f} of the steps had nothing to score, and were skipped.")
    if bad := records[-1].get("bad_steps"):
        lines.append(f"{bad:,.0f} of the steps were not taken: their loss or gradient was not a number.")
    if spikes := records[-1].get("loss_spikes"):
        lines.append(f"The training loss spiked {spikes:,.0f} time(s); a lower --learning_rate, a smaller --grad_clip "
                     "or --warmup_iters may help.")
    if "kl_gap" in best:
        entropy_rate, kl_gap = next(rung.nats_per_token for rung in baselines if rung.name == FLOOR), best["kl_gap"]
        lines.append(f"  H(p, q) = H(p) + KL(p || q): {nll:.4f} is the entropy rate {entropy_rate:.4f}, "
                     f"{nll - kl_gap - entropy_rate:+.4f} of luck with this text,\n"
                     f"  and {kl_gap:.4f} above the floor, the KL gap that is left.")
    parts = [_parts(record) for record in records if "objective" in record][-1:]
    return "\n".join([*lines, *itertools.chain(*parts), *_course(records, best, last, uniform.nats_per_token, config)])


def _parts(record: dict[str, float]) -> Iterator[str]:
    """What the objective of some training steps was made of, where that is more than the NLL."""
    added = [(record[key], name) for key, name in PARTS.items() if key in record]
    if not added:
        return
    yield (f"The objective, in the end {record['objective']:.4f}, is the training NLL of {record['train_nll']:.4f}"
           + "".join(f" {'-' if nats < 0 else '+'} {abs(nats):.4f} of {name}" for nats, name in added) + ".")
    if "smoothed_kl" in record:
        yield (f"  NLL + smoothing = H(p) + KL(p || q), p being the smoothed target: a floor of "
               f"{record['smoothed_floor']:.4f}, and {record['smoothed_kl']:.4f} above it.")
    if "teacher_kl" in record:
        yield f"  KL(teacher || model), both softened, is {record['teacher_kl']:.4f}."


def _course(records: Sequence[dict[str, float]], best: dict[str, float], last: dict[str, float], uniform: float,
            config: Config) -> list[str]:
    """Did it diverge, overfit, stop early, or is there more to gain; and what to try next."""
    trained = [record for record in records if record["step"] > 0 and (
        record.get("tokens_per_second") != 0 or "bad_in_a_row" in record)]
    if not trained:
        return []
    train_nll = trained[-1].get("train_nll", float("nan"))
    if (bad := records[-1].get("bad_in_a_row")) or not train_nll < uniform + 0.1:
        why = (f"the last {bad:,.0f} step(s) had a loss or gradient that is not a number" if bad else
               f"the training loss is {train_nll:.4g}, worse than knowing nothing")
        return [f"It diverged: {why}. best/ keeps the model from before.",
                "Try a lower --learning_rate and --muon_learning_rate, --warmup_iters, --grad_clip=1, or "
                "--dtype=float32."]
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


def going_on(run: "Run", step: int, remark: str) -> str:
    """From where a run goes on, and with which knobs changed."""
    changes = [f"  {name} was {before} and is now {now}" for name, (before, now) in (run.changes or {}).items()]
    says = [f"{run.path}: {remark}"] if remark else []
    return "\n".join([*says, f"going on from step {step:,} of {run.path}", *changes])


def stopped(run: "Run", signal: str, step: int, saved: bool, ranks: int) -> str:
    """That a signal has stopped a run, and how to go on."""
    launcher = "python" if ranks == 1 else f"torchrun --standalone --nproc_per_node={ranks}"
    command = f"{launcher} train.py {shlex.quote(str(run.path / 'config.toml'))} --init_from=resume"
    lost = "" if saved else ", which could not be saved: make room first; the checkpoint before is whole"
    return f"Stopped by {signal} at step {step:,}{lost}. To go on:\n  {command}"


def less_memory(config: Config) -> str:
    """What to do where memory runs out."""
    size = config.run.micro_batch_size or config.optim.batch_size
    smaller = "a smaller --block_size, --n_embd or --n_layer"
    if size == 1:
        return f"use {smaller}"
    return (f"use --micro_batch_size={size // 2}, half of what it is, which does not change the result, and "
            f"--init_from=resume if training had begun; or {smaller}")


def samples(opening: str, texts: Sequence[str]) -> str:
    """Texts that a model wrote, after an opening that it was given."""
    texts = [text.strip() for text in texts]
    given = f"Given:\n\n{opening.strip()}\n\n" if opening else ""
    between = "\n\n" if any("\n" in text for text in texts) else "\n"
    return f"{given}{'A sample' if len(texts) == 1 else f'{len(texts)} samples'}:\n\n{between.join(texts)}"


def next_commands(run: Path) -> str:
    return (f"The curve:     {run}/curves.png, or: python curves.py {run} --terminal\n"
            f"More samples:  python sample.py {run} --num_samples=3\n"
            f"Compare runs:  python curves.py {run} OTHER_RUN")


def _descending(baselines: Sequence[Baseline]) -> list[Baseline]:
    return sorted(baselines, key=lambda rung: -rung.nats_per_token)


def passed_and_ahead(nll: float, baselines: Sequence[Baseline]) -> tuple[list[Baseline], list[Baseline]]:
    """The rungs a loss has passed, and those ahead of it, each from the worst to the best; not the floor."""
    ladder = [rung for rung in _descending(baselines) if rung.name != FLOOR]
    passed = [rung for rung in ladder if nll < rung.nats_per_token - EQUAL]
    return passed, ladder[len(passed):]
