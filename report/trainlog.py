"""What a training writes and says while it runs, and at its end."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.files import write_atomically
from config.resume import kept_options
from config.schema import LossConfig
from config.terminal import progress_bar
from data.batches import TrainBatches
from data.info import passed_and_ahead
from data.prepare import Corpus
from engine.checkpoint import Optimizers, read_checkpoint, save_checkpoint
from engine.device import Device
from engine.evaluation import (
    cut_passage,
    measure_all,
    measure_passage,
    measure_training_text,
    score_text,
)
from engine.generate import generate_texts
from engine.metrics import Record, append_line
from engine.run import Run
from engine.signals import Stopped, StopSignal
from engine.state import BEST, StepResult, TrainState
from engine.watchers import Watchers
from loss import mean_loss, sum_losses
from model import GPT
from report import figures, words
from report.analysis import (
    PASSAGE_TEMPERATURES,
    TEMPERATURES,
    Passage,
    max_targets,
    summarise,
    write_evaluation,
)
from report.gpu import gpu_record
from report.step_zero import check_first_losses, is_early
from surprisal import smoothed_entropy

# What a finished run has, besides checkpoints and the last line of metrics.
OUTCOME = ("evaluation.json", "curves.png", "verdict.txt", "samples.jsonl")


class TrainLog:
    """Writes a run's files, and says the most important part on the terminal.

    If the disk is full, a warning says so, and training continues without the line, or with the
    checkpoint before.
    """

    def __init__(
        self, run: Run, device: Device, model: GPT, corpus: Corpus, state: TrainState
    ) -> None:
        self.run, self.device, self.model, self.state, self.info = (
            run,
            device,
            model,
            state,
            corpus.info,
        )
        self.passage_text = cut_passage(run.eval_text(corpus.val), corpus.tokenizer)
        self.bar = progress_bar(
            total=run.cfg.optim.max_iters,
            initial=state.step,
            unit="step",
            disable=device.rank > 0 or None,
            dynamic_ncols=True,
        )
        self.say = self.bar.write
        self.started = time.perf_counter() - state.seconds
        self.results: list[StepResult] = []  # since the last line of metrics
        self.failing: set[str] = set()  # files that could not be written the last time
        self.checked_first_losses = False
        # this start measures other targets than the last one, or in another dtype
        self.is_remeasured = False
        # before it is a run: so resuming it always finds the weights that it starts with
        if run.cfg.run.source:
            device.on_rank0(
                save_checkpoint,
                run.path / "last.safetensors",
                model,
                state,
                (),
                kept_options(run.cfg),
            )
        device.on_rank0(run.start, state.step, str(device))
        self.logged_step, self.passed, self.lost_best = device.on_rank0(self.read_progress)
        names: list[str] = []
        if device.rank == 0:
            names = run.cfg.run.watcher_names
        self.watchers = Watchers(names, run, state.step, self.say)

    def read_progress(self) -> tuple[float, int, bool]:
        """Of a resumed run, the step of the last line, and how many baselines were passed.

        Each is -1 without a line. Also whether the model that is resumed was the best, and could
        not be saved as the best.
        """
        records = self.run.read_metrics()
        if not records:
            return -1, -1, False
        of_this_step = [
            record.get("val_nll", math.nan)
            for record in records
            if record["step"] == self.state.step
        ]
        lost_best = any(self.state.is_best(val_nll) for val_nll in of_this_step)
        passed = max(self.count_passed(record.get("val_nll")) for record in records)
        return records[-1]["step"], passed, lost_best

    def add(self, result: StepResult, rise: float | None) -> None:
        """Keep what a step measured, and say what went wrong in it; `rise` is in nats, where its
        loss is a spike.
        """
        self.results.append(result)
        self.bar.update()
        self.bar.set_postfix_str(f"smoothed train nll {self.state.mean:.3f}", refresh=False)
        if trouble := words.trouble(self.state, result, rise):
            self.say(trouble)

    def lacks_this_step(self) -> bool:
        """Whether there is no line of the step, or the run ends and has to be evaluated again.

        That is where its best model is lost, or the last evaluation does not compare with the best
        model's.
        """
        state = self.state
        evaluate_again = self.lost_best or self.is_remeasured or state.best_nll is None
        return state.step > self.logged_step or (evaluate_again and state.is_finished(self.run.cfg))

    def make_record(self) -> Record:
        """A line of metrics of the steps since the last one."""
        self.state.seconds = time.perf_counter() - self.started
        # also masked ones and padding
        positions = self.state.windows * self.run.cfg.model.block_size
        record = self.state.record() | {"positions": positions}
        record |= training_record(self.results, self.run.cfg.loss, self.info.vocab_size)
        return record | gpu_record(
            self.device, self.model, self.results, self.run.cfg.optim, self.state.step
        )

    def write(self, record: Record) -> bool:
        """Append a line to metrics.jsonl, and show it if there was an evaluation, or there is no
        progress bar.

        Returns whether an evaluation passed a baseline that none passed before, or is the first;
        then it says so.
        """
        if "val_nll" in record:
            self.attempt("passage.jsonl", self.write_passage)
        self.append("metrics.jsonl", without_nonfinite(record))
        self.results.clear()
        self.logged_step = record["step"]
        if "val_nll" in record or (self.bar.disable and "tokens" in record):
            self.say(words.progress(record))
        if "val_nll" in record and "gpu_gigabytes" in record:
            self.say(words.gpu_use(record))
        before, self.passed = (
            self.passed,
            max(self.passed, self.count_passed(record.get("val_nll"))),
        )
        if self.passed > before:
            self.say(words.standing(record["val_nll"], self.info.baselines))
        if "val_nll" in record and not self.checked_first_losses:
            self.check_first_losses(record)
        return self.passed > before

    def check_first_losses(self, record: Record) -> None:
        """Once, when it is not early any more: warn if the loss is not below the unigram's."""
        if is_early(record, self.info.vocab_size, self.run.cfg):
            return
        self.checked_first_losses = True
        if warning := check_first_losses(record, self.info.baselines):
            self.say(warning)

    def count_passed(self, nll: float | None) -> int:
        """How many baselines a loss passes; -1 without a loss."""
        return -1 if nll is None else len(passed_and_ahead(nll, self.info.baselines)[0])

    def add_remeasured(self, record: Record) -> None:
        """Write and say what was measured of the best model of a resumed run, if anything was."""
        if record:
            self.lost_best = False  # which was told from losses that do not compare
            self.is_remeasured = True
            self.append("metrics.jsonl", record)
            self.say(
                f"the best model, of step {record['remeasured_step']:,}, has {record['remeasured_val_nll']:.4f} "
                "as this start measures it: on other targets, or in another dtype\n"
            )

    def write_sample(self, text: str) -> None:
        """Append a line to samples.jsonl, and show it."""
        self.append("samples.jsonl", {"step": self.state.step, "text": text})
        self.say(words.sample_line(text))

    def write_passage(self, path: Path) -> None:
        """Append what each token of a passage costs now."""
        with suppress(UserError):  # it diverged
            costs = measure_passage(
                self.model, *self.passage_text, PASSAGE_TEMPERATURES, self.device
            )
            append_line(path, Passage(step=self.state.step, **costs))

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Append a line to a .jsonl file, and show it to the watchers."""
        self.attempt(name, append_line, line)
        self.watchers.update(line)

    def keep_best(self, record: Record, model: GPT, epochs: float) -> None:
        """Count an evaluation, and save the model if it is the best.

        A model that could not be saved does not count: the best is the one on disk.
        """
        before = self.state.model_dump(include=BEST)
        self.lost_best = self.state.count_evaluation(record, epochs) and not self.save(
            "best", model
        )
        if self.lost_best:
            for name, value in before.items():
                setattr(self.state, name, value)

    def save(self, name: str, model: GPT, optimizers: Optimizers | None = None) -> bool:
        """Replace a checkpoint; returns whether that was possible."""
        return self.attempt(
            f"{name}.safetensors",
            save_checkpoint,
            model,
            self.state,
            optimizers or [],
            kept_options(self.run.cfg),
        )

    def attempt(self, name: str, write: Callable[..., object], *arguments: Any) -> bool:
        """Rank 0 calls write(path, *arguments).

        If there is no room, a warning says so, and training continues. Returns whether it was
        written, on every rank.
        """
        path = self.run.path / name

        def write_there() -> None:
            if not self.run.is_there():
                raise OSError("somebody moved or replaced its directory")
            write(path, *arguments)

        try:
            self.device.on_rank0(write_there)
            self.failing.discard(name)
        except OSError as error:
            if name not in self.failing:
                self.say(f"warning: {path} could not be written ({error.strerror or error})")
            self.failing.add(name)
        return name not in self.failing


def without_nonfinite(record: Record) -> Record:
    """The numbers that JSON can hold: it has no NaN."""
    return {key: value for key, value in record.items() if math.isfinite(value)}


def training_record(results: Sequence[StepResult], cfg: LossConfig, vocab_size: int) -> Record:
    """Means over some steps, without those that changed nothing, in nats per token; gradient norm
    and lr of the last.

    The objective comes with its parts, if it is more than the NLL. With label smoothing also with
    H(p), the entropy of the smoothed target p, and KL(p || q) above it; with a teacher also with
    KL(teacher || model).
    """
    if not results:
        return {}
    applied = [result for result in results if result.is_valid]
    loss = mean_loss(sum_losses(result.sums for result in applied))
    record = {
        "lr": results[-1].lr,
        "tokens_per_second": loss.num_targets
        / max(1e-9, sum(result.seconds for result in results)),
    }
    if not applied:
        return record
    record |= {
        "grad_norm": applied[-1].grad_norm,
        "train_nll": loss.nll,
        "objective": loss.objective,
    }
    if cfg.z_loss:
        record["z_loss"] = loss.z_loss
    if cfg.label_smoothing:
        record["smoothing"] = loss.smoothing
        record["smoothed_entropy"] = smoothed_entropy(vocab_size, cfg.label_smoothing)
        record["smoothed_kl"] = loss.nll + loss.smoothing - record["smoothed_entropy"]
    if cfg.teacher:
        record["teacher_kl"] = loss.teacher_kl
        # what the teacher changes of the objective; it may be negative
        record["distillation"] = loss.objective - loss.nll - loss.smoothing - loss.z_loss
    return record


def finish(
    stop: StopSignal, model: GPT, corpus: Corpus, log: TrainLog, get_batch: TrainBatches
) -> int:
    """Say what came of a training, or how to resume it if a signal stopped it.

    Returns the exit code.
    """
    if stop.received:
        return show_stop(stop, log)
    try:
        stop.expect_no_more_steps()
        return show_outcome(model, corpus, log, get_batch)
    except Stopped:
        if log.device.world_size == 1:  # ranks may have stopped at different places
            log.watchers.close()
        return 128 + stop.own
    finally:
        stop.close()


def show_stop(stop: StopSignal, log: TrainLog) -> int:
    """Say how to resume a run that a signal has stopped; returns the exit code."""
    saved = "last.safetensors" not in log.failing
    name = signal.Signals(stop.received).name
    print("\n" + words.stopped(log.run, name, log.state, log.device, saved), flush=True)
    log.watchers.close()
    return 128 + stop.received


def show_outcome(model: GPT, corpus: Corpus, log: TrainLog, get_batch: TrainBatches) -> int:
    """Measure the best model on all validation text, draw the curves, say what came of it.

    The last line of metrics.jsonl is written last: where it is missing, a resumed run comes here
    again. Returns the exit code.
    """
    run, state = log.run, log.state
    final: Record | None = None
    texts: list[str] = []
    if "last.safetensors" in log.failing or log.lost_best:
        checkpoint = "best" if log.lost_best else "last"
        raise UserError(
            f"{run.path}: the {checkpoint} checkpoint could not be written; make room, "
            "or move the directory back, and resume with --init_from=resume"
        )
    if state.best_nll is not None:
        final = measure_best(model, corpus, log, get_batch)
        run = replace(run, final=without_nonfinite(final))
    log.attempt("curves.png", lambda path: figures.draw_png([run], path))
    epochs = get_batch.epochs(state.windows)
    verdict = words.verdict(run.read_metrics(), final, corpus.info, run.recipe, state, epochs)
    print("\n" + verdict, flush=True)
    log.attempt("verdict.txt", lambda path: write_atomically(path, verdict.encode()))
    if not state.nonfinite_in_a_row:
        num_samples = 1 if corpus.tokenizer.eos is None else 5
        texts = generate_texts(model, corpus, log.device, num_samples=num_samples)
    if final is not None and texts:
        step = final["best_step"]
        log.append("samples.jsonl", {"step": step, "best_step": step, "text": texts[0]})
    # Where no loss was finite, there is no best model.
    final = final or {"step": state.step, "finished": 1}
    log.watchers.update(without_nonfinite(final))
    log.watchers.close()
    lost = [name for name in OUTCOME if name in log.failing]
    lost += log.device.on_rank0(log.watchers.unwritten)
    if not lost:
        log.write(final)
        if "metrics.jsonl" in log.failing:
            lost = ["metrics.jsonl"]
    if lost:
        raise UserError(
            f"{run.path}: {', '.join(lost)} could not be written; make room, and "
            f"finish the run with: {words.resume_command(run, log.device)}"
        )
    if state.nonfinite_in_a_row:
        return 1
    print(
        "\n" + words.samples(corpus.info.prompt, texts), words.next_commands(run.path), sep="\n\n"
    )
    return 0


def measure_best(model: GPT, corpus: Corpus, log: TrainLog, get_batch: TrainBatches) -> Record:
    """Measure the best model on all validation text; returns the last line of metrics."""
    run, device = log.run, log.device
    saved = read_checkpoint(run.path / "best.safetensors")
    saved.copy_to(model)
    best = saved.state
    exact, parts = measure_all(model, run.eval_text(corpus.val), corpus, device)

    def write(path: Path) -> None:
        text = run.eval_text(corpus.val, max_targets(corpus.tokenizer.vocab_size))
        columns, tempered = score_text(model, text, corpus.tokenizer, TEMPERATURES, device)
        summary = summarise(columns, tempered, text, corpus.tokenizer, corpus.train)
        write_evaluation(path, summary, parts)

    with suppress(UserError):  # some predictions are not finite
        log.attempt("evaluation.json", write)
    # 0 in files of earlier editions
    windows = best.windows or best.step * run.cfg.optim.batch_size
    found = exact | {"epochs": get_batch.epochs(windows)}
    if not run.was_changed("seed"):  # else other windows were read than those of this seed
        max_tokens = run.cfg.run.eval_tokens or corpus.val.num_targets()
        train_text = run.eval_text(corpus.train, max_tokens)
        read, unread = get_batch.read_and_unread(windows)
        found |= measure_training_text(model, train_text, read, unread, device)
    final: Record = {"step": log.state.step, "best_step": best.step}
    return final | {f"best_{name}": value for name, value in found.items()}
