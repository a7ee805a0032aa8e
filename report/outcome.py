"""What came of a training: the best model's loss on all validation text, the curves, the verdict, a sample."""

from config.errors import UserError
from config.schema import Config
from data.batches import EvalText
from data.prepare import Corpus
from engine.checkpoint import load_checkpoint
from engine.distributed import Distributed
from engine.generate import generate_texts
from engine.signals import StopSignal
from engine.step import evaluate, validate
from model import GPT
from report import figures, words
from report.trainlog import TrainLog


def show_stop(stop: StopSignal, log: TrainLog) -> int:
    """Say how to resume a run that a signal has stopped; returns the exit code."""
    saved = "last.safetensors" not in log.failing
    print("\n" + words.stopped(log.run, stop.name, log.state, log.dist, saved), flush=True)
    return stop.exit_code


def show_outcome(model: GPT, corpus: Corpus, cfg: Config, dist: Distributed, log: TrainLog) -> int:
    """Measure the best model, draw, and print; returns the exit code."""
    if "last.safetensors" in log.failing:
        raise UserError(f"{log.run.path}: the last checkpoint could not be written; make room, and resume with "
                        "--init_from=resume")
    run, state, block_size = log.run, log.state, cfg.model.block_size
    eos = corpus.tokenizer.eos if cfg.data.padded else None
    if state.best_nll is not None:
        best = load_checkpoint(run.path / "best.safetensors", model)
        exact = validate(model, EvalText(corpus.val, block_size, eos), corpus, dist)
        # The loss of the same weights on training text: the loss that training logged is of other weights.
        train_text = EvalText(corpus.train, block_size, eos, max_tokens=cfg.run.eval_tokens or len(corpus.val.tokens))
        log.write({"step": state.step, "best_step": best.step,
                   "best_train_nll": evaluate(model, train_text, dist).nll,
                   **{f"best_{name}": value for name, value in exact.items()}})
    log.attempt("curves.png", figures.draw_png, [run], run.path / "curves.png")
    print("\n" + words.verdict(run.read_metrics(), corpus.info, cfg), flush=True)
    if state.nonfinite_in_a_row:
        return 1
    texts = generate_texts(model, corpus, dist, num_samples=1 if corpus.tokenizer.eos is None else 5)
    print("\n" + words.samples(corpus.info.prompt, texts), words.next_commands(run.path), sep="\n\n")
    return 0
