"""What a training says while it runs: the table on the terminal, lines of metrics and samples."""

import time

from tqdm import tqdm

from data.prepare import Corpus
from engine.distributed import Distributed
from engine.run import Record, Run, note_start
from engine.runlog import RunLog, training_record
from engine.state import StepResult, TrainState
from report import words


class TrainLog(RunLog):
    """Writes a run's files, and says the most important part on the terminal."""

    def __init__(self, run: Run, dist: Distributed, corpus: Corpus, state: TrainState) -> None:
        self.bar = tqdm(total=run.config.optim.max_iters, initial=state.step, disable=dist.rank > 0 or None,
                        unit="step", leave=False, dynamic_ncols=True)
        super().__init__(run, dist, state.step, self.bar.write)
        dist.on_rank0(note_start, run, state.step, str(dist))
        self.state, self.info = state, corpus.info
        self.logged_step = state.step or -1  # of a resumed run: its metrics.jsonl has that step
        self.started = time.perf_counter() - state.seconds
        self.results: list[StepResult] = []  # since the last line of metrics

    def add(self, result: StepResult) -> None:
        """Count a step, and say what went wrong in it."""
        rise = self.state.count_step(result)
        self.results.append(result)
        self.bar.update()
        self.bar.set_postfix_str(f"train nll {self.state.mean:.3f}", refresh=False)
        if not result.num_targets and self.state.skipped_steps == 1:
            self.say(words.SKIPPED)
        if not result.is_finite:
            self._tell(words.nonfinite(self.state, result))
        if rise is not None:
            self._tell(words.spike(self.state, result, rise))

    def is_new(self) -> bool:
        return self.state.step > self.logged_step

    def make_record(self) -> Record:
        """A line of metrics of the steps since the last one."""
        self.state.seconds = time.perf_counter() - self.started
        if not self.results:
            return self.state.record()
        return self.state.record() | training_record(self.results, self.run.config.loss, self.info.vocab_size)

    def write(self, record: Record) -> None:
        """Append a line to metrics.jsonl, and show it if there was an evaluation, or there is no progress bar."""
        super().write(record)
        self.results.clear()
        if "val_nll" in record or (self.bar.disable and "tokens" in record):
            self.say(words.progress(record, self.info.baselines))

    def write_sample(self, step: int, text: str) -> None:
        """Append a line to samples.jsonl, and show it."""
        super().write_sample(step, text)
        self.say(words.sample_line(text))

    def passes_a_baseline(self, record: Record) -> bool:
        """Whether an evaluation passes a baseline that none passed before, or is the first."""
        before, now = (len(words.passed_and_ahead(nll, self.info.baselines)[0]) if nll is not None else -1
                       for nll in (self.state.best_nll, record["val_nll"]))
        return now > before

    def close(self) -> None:
        self.bar.close()

    def _tell(self, line: str) -> None:
        if line:
            self.say(line)
