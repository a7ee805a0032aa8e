"""Writes what the steps of a training measured: a line of metrics.jsonl every few steps."""

import math
import time
from collections.abc import Sequence

from config.errors import UserError
from config.schema import LossConfig
from config.size import count_flops
from config.terminal import progress_bar, say
from data.info import CorpusInfo, passed_and_ahead
from engine.metrics import Record
from engine.run_files import RunFiles
from engine.state import StepResult, TrainState
from engine.step import is_eval_step
from engine.watchers import Watchers
from loss import mean_loss, sum_losses
from report import progress
from report.gpu import measure_gpus
from report.step_zero import check_first_losses, is_early
from surprisal import smoothed_entropy

# What a finished run has, besides checkpoints and the last line of metrics.
OUTCOME = ("evaluation.json", "curves.png", "verdict.txt", "samples.jsonl")


class TrainLog:
    """Collects what steps measured, writes it to metrics.jsonl, shows it, tells the watchers."""

    def __init__(self, files: RunFiles, info: CorpusInfo, state: TrainState) -> None:
        self.files = files
        self.cfg = files.run.cfg
        self.device = files.device
        self.info = info
        self.state = state
        self.bar = progress_bar(
            total=self.cfg.optim.max_iters,
            initial=state.step,
            unit="step",
            disable=self.device.rank > 0 or None,
            dynamic_ncols=True,
        )
        self.started = time.perf_counter() - state.seconds
        self.results: list[StepResult] = []  # since the last line of metrics
        self.evaluate_again = False  # this start measures other targets, or in another dtype
        self.checked_first_losses = False
        self.has_table = False  # on the terminal
        self.logged_step = -1.0  # of the last line
        self.passed = -1  # baselines; -1 = nothing was evaluated yet
        self._read_progress(state)
        names = []
        if self.device.rank == 0:
            names = self.cfg.run.watcher_names
        self.watchers = Watchers(names, files.run, state.step, say)

    def _read_progress(self, state: TrainState) -> None:
        """Look up what a resumed run has logged."""
        records = self.device.on_rank0(self.files.run.read_metrics)
        for record in records:
            self.logged_step = record["step"]
            if "val_nll" in record:
                self.passed = max(self.passed, self.count_passed(record["val_nll"]))
                if record["step"] == state.step and state.is_best(record["val_nll"]):
                    self.files.lost_best = True  # it could not be saved

    def add(self, result: StepResult, state: TrainState, spike: float | None) -> None:
        """Keep what a step measured, and say what went wrong in it."""
        self.results.append(result)
        self.bar.update()
        self.bar.set_postfix_str(f"smoothed train nll {state.mean:.3f}", refresh=False)
        trouble = progress.describe_trouble(state, result, spike)
        if trouble:
            say(trouble, "warning")

    def is_due(self, state: TrainState, is_last: bool) -> bool:
        """Return whether this step gets a line: a resumed run has logged its first step already."""
        run = self.cfg.run
        is_regular = state.step % run.log_interval == 0 or state.step % run.checkpoint_interval == 0
        if not (is_last or is_regular or self.is_eval_step(state)):
            return False
        return state.step > self.logged_step or (is_last and self.must_evaluate_again(state))

    def is_eval_step(self, state: TrainState) -> bool:
        return is_eval_step(state.step, self.cfg.run.eval_interval, self.cfg.optim.max_iters)

    def must_evaluate_again(self, state: TrainState) -> bool:
        """Return whether a run that ends has no evaluation that compares with its best model's."""
        is_needed = self.evaluate_again or self.files.lost_best or state.best_nll is None
        return is_needed and state.is_finished(self.cfg)

    def make_record(self, state: TrainState) -> Record:
        """Make a line of metrics of the steps since the last one."""
        state.seconds = time.perf_counter() - self.started
        block_size = self.cfg.model.block_size
        positions = {"positions": state.windows * block_size}  # also masked ones and padding
        training = describe_training(self.results, self.cfg.loss, self.info.vocab_size)
        gpus = measure_gpus(
            self.device,
            self.results,
            step_positions=self.cfg.optim.batch_size * block_size,
            flops_per_position=count_flops(self.cfg.model, self.info.vocab_size),
            steps_left=self.cfg.optim.max_iters - state.step,
        )
        return state.record() | positions | training | gpus

    def write(self, record: Record) -> bool:
        """Append a line to metrics.jsonl, and show it where there is an evaluation or no bar.

        Returns whether an evaluation passed a baseline that none passed before, or is the first.
        """
        measured = record
        record = without_nonfinite(record)
        self.files.append("metrics.jsonl", record)
        self.results.clear()
        self.logged_step = record["step"]
        if "val_nll" in measured or (self.bar.disable and "tokens" in measured):
            self._show(measured)
        has_passed = False
        if "val_nll" in record:
            has_passed = self._show_standing(record)
        self.watchers.update(record)
        return has_passed

    def _show(self, record: Record) -> None:
        """Add a line to the table of losses on the terminal."""
        if not self.has_table:
            self.has_table = True
            say(progress.title_columns(self.info.split))
        style = ""
        if record.get("val_nll") == self.state.best_nll:
            style = "best"
        say(progress.describe_progress(record), style)

    def _show_standing(self, record: Record) -> bool:
        """Say what an evaluation means; returns whether it passed a baseline or is the first."""
        if "gpu_gigabytes" in record:
            say(progress.describe_gpus(record))
        nll = record["val_nll"]
        passed = self.count_passed(nll)
        has_passed = passed > self.passed
        if has_passed:
            self.passed = passed
            style = "passed"
            if passed == 0:
                style = ""
            say(progress.describe_standing(nll, self.info.baselines), style)
        is_too_early = is_early(
            record, self.info.vocab_size, self.cfg.run.eval_interval, self.cfg.optim.warmup_iters
        )
        if not self.checked_first_losses and not is_too_early:
            self.checked_first_losses = True
            kind = self.info.val_kind
            warning = check_first_losses(record, self.info.baselines, kind)
            if warning:
                say(warning)
        return has_passed

    def count_passed(self, nll: float) -> int:
        """Count the baselines that a loss passes."""
        passed, _ = passed_and_ahead(nll, self.info.baselines)
        return len(passed)

    def add_remeasured(self, record: Record) -> None:
        """Write and say what was measured of the best model of a resumed run, if anything was."""
        if not record:
            return
        self.files.lost_best = False  # which was told from losses that do not compare
        self.evaluate_again = True
        self.files.append("metrics.jsonl", record)
        self.watchers.update(record)
        say(
            f"the best model, of step {record['remeasured_step']:,}, has "
            f"{record['remeasured_val_nll']:.4f} as this start measures it: on other targets, or "
            "in another dtype\n"
        )

    def end(self, final: Record, sample: str, command: str) -> None:
        """Write the last lines: a sample of the best model, then the outcome.

        The outcome in metrics.jsonl says that a run is finished, so it comes last. UserError if a
        file could not be written; `command` finishes the run then.
        """
        if sample and "best_step" in final:
            line = {"step": final["best_step"], "best_step": final["best_step"], "text": sample}
            self.files.append("samples.jsonl", line)
            self.watchers.update(line)
        self.watchers.update(final)
        self.watchers.close()
        lost = [name for name in OUTCOME if name in self.files.failing]
        lost += self.device.on_rank0(self.watchers.unwritten)
        if not lost and not self.files.append("metrics.jsonl", final):
            lost = ["metrics.jsonl"]
        if lost:
            raise UserError(
                f"{self.files.path}: {', '.join(lost)} could not be written; make room, and "
                f"finish the run with: {command}"
            )

    def add_sample(self, text: str, step: int) -> None:
        """Append a line to samples.jsonl, and show it."""
        line = {"step": step, "text": text}
        self.files.append("samples.jsonl", line)
        self.watchers.update(line)
        say(progress.describe_sample(text), "sample")


def without_nonfinite(record: Record) -> Record:
    """Keep the numbers that JSON can hold: it has no NaN."""
    return {key: value for key, value in record.items() if math.isfinite(value)}


def describe_training(
    results: Sequence[StepResult], cfg: LossConfig, vocab_size: int
) -> dict[str, float]:
    """Average some steps, without those that changed nothing: a part of a line of metrics.

    Losses are in nats per token; the gradient's norm and the learning rate are those of the last
    step. The objective comes with its parts, if it is more than the NLL. With label smoothing also
    with H(p), the entropy of the smoothed target p, and KL(p || q) above it; with a teacher also
    with KL(teacher || model).
    """
    if not results:
        return {}
    applied = [result for result in results if result.is_valid]
    loss = mean_loss(sum_losses(result.sums for result in applied))
    seconds = sum(result.seconds for result in results)
    record = {"lr": results[-1].lr, "tokens_per_second": loss.num_targets / max(1e-9, seconds)}
    if not applied:
        return record
    record["grad_norm"] = applied[-1].grad_norm
    record["train_nll"] = loss.nll
    record["objective"] = loss.objective
    if cfg.z_loss:
        record["z_loss"] = loss.z_loss
    if cfg.label_smoothing:
        record["smoothing"] = loss.smoothing
        record["smoothed_entropy"] = smoothed_entropy(vocab_size, cfg.label_smoothing)
        record["smoothed_kl"] = loss.nll + loss.smoothing - record["smoothed_entropy"]
    if cfg.teacher:
        record["teacher_kl"] = loss.teacher_kl
        # What the teacher changes of the objective; it may be negative.
        record["distillation"] = loss.objective - loss.nll - loss.smoothing - loss.z_loss
    return record
