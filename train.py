"""Train a GPT, and show what its loss means: `python train.py [RECIPE.toml] [--name=value ...]`.

The story, in order: configuration, corpus, model, the loop, and what came of it.
"""

import math
import shlex
import sys
import time

import report
from config.cli import load_config, write_config
from config.schema import Config
from errors import run_command


def main(argv: list[str]) -> None:
    config = load_config(argv)  # --help and every mistake are answered before torch is loaded
    sys.exit(train(config))


def train(config: Config) -> int:
    """Train as configured, from scratch or from the last checkpoint; returns the exit code."""
    import torch
    from tqdm import tqdm

    from curves import CurveOptions, draw_png
    from data.batches import TrainBatches, eval_batches
    from data.prepare import prepare_corpus
    from engine.checkpoint import Progress, load_checkpoint, save_checkpoint
    from engine.diagnosis import diagnose
    from engine.distributed import find_world
    from engine.generate import generate
    from engine.optim import make_optimizers
    from engine.runlog import RunLog, training_record, validation_record
    from engine.signals import StopSignal
    from engine.step import StepResult, evaluate, train_step, try_compile
    from model import GPT
    from runs import Record, create_run, resume_run

    max_iters, tokens_per_step = config.optim.max_iters, config.optim.batch_size * config.model.block_size
    world = find_world(config.run.device, config.run.dtype)

    # The corpus, and what a loss on it must beat.
    corpus = prepare_corpus(config.data)
    tokenizer, baselines = corpus.tokenizer, corpus.baselines
    batches = TrainBatches(corpus.train, config.model.block_size, config.optim.batch_size, config.run.seed)
    val = corpus.val[: config.run.eval_tokens + 1] if config.run.eval_tokens else corpus.val
    bytes_per_token, floor = tokenizer.count_bytes(val[1:]) / (len(val) - 1), corpus.floor(len(val) - 1)
    print(report.corpus(corpus.meta, baselines) + "\n")
    if len(val) < len(corpus.val):
        print(f"evaluating on the first {len(val) - 1:,} validation tokens; the ladder is measured on all of them\n")

    # The model, new or from the last checkpoint.
    torch.manual_seed(config.run.seed)
    model = GPT(config.model, tokenizer.vocab_size).to(world.device)
    optimizers = make_optimizers(model, config.optim)
    if config.run.init_from == "resume":
        run = resume_run(config, corpus)
        progress = load_checkpoint(run.path / "last", model, optimizers)
        write_config(config.with_run(init_from="scratch"), run.path / "config.toml")
        print(f"going on from step {progress.step:,} of {run.path}")
    else:
        run, progress = create_run(config, corpus), Progress()
        if run.earlier:
            print(f"the run that was in {run.path}/ is now in {run.earlier}/")
    print(f"{model.describe()}\n{world}: {max_iters:,} steps of {tokens_per_step:,} tokens, "
          f"{max_iters * tokens_per_step / len(corpus.train):.2f} epochs; into {run.path}/\n")
    if config.run.compile and (reason := try_compile(model, batches(progress.step), config, world)):
        print(f"warning: torch.compile failed, going on without it: {reason}\n")

    # The loop.
    log, stop = RunLog(run.path / "metrics.jsonl", progress.step), StopSignal()
    bar = tqdm(total=max_iters, initial=progress.step, disable=None, unit="step", leave=False, dynamic_ncols=True)
    began = time.perf_counter() - progress.seconds

    def measure() -> Record:
        return training_record(results, since, config.loss, tokenizer.vocab_size)

    def validate() -> Record:
        bar.set_postfix_str("evaluating")
        loss = evaluate(model, eval_batches(val, config.model.block_size), world)
        progress.evals_since_best += 1
        if loss.nll < progress.best_nll:
            progress.best_nll, progress.evals_since_best = loss.nll, 0
            save_checkpoint(run.path / "best", model, progress)
        return validation_record(loss, bytes_per_token, floor)

    def write(record: Record) -> None:
        progress.seconds = time.perf_counter() - began
        record = {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds} | record
        log.write(record)
        if "val_nll" in record or bar.disable:
            bar.write(report.progress(record, baselines))

    def due(interval: int) -> bool:
        return progress.step % interval == 0 or progress.step == max_iters

    if progress.step > 0:
        bar.write(report.COLUMNS)
    else:
        record = validate()
        bar.write(f"{report.step_zero(diagnose(model, batches, world), tokenizer.vocab_size)}\n\n{report.COLUMNS}")
        write(record)
    results: list[StepResult] = []  # since the last line of metrics
    since = time.perf_counter()
    patient = finite = True
    while progress.step < max_iters and patient and finite and not stop:
        results.append(train_step(model, optimizers, batches(progress.step), config, world, progress.step))
        progress.step += 1
        progress.tokens += tokens_per_step
        bar.update()
        evaluating, saving = due(config.run.eval_interval), due(config.run.checkpoint_interval)
        if evaluating or saving or due(config.run.log_interval):
            record = measure()
            write(record | validate() if evaluating else record)
            bar.set_postfix_str(f"train {record['train_nll']:.4f}")
            patient = not (evaluating and 0 < config.run.patience <= progress.evals_since_best)
            finite = math.isfinite(record["train_nll"])
            results.clear()
            since = time.perf_counter()
        if saving and progress.step < max_iters:
            save_checkpoint(run.path / "last", model, progress, optimizers)
    if results:  # stopped between two lines
        write(measure())
    bar.close()
    save_checkpoint(run.path / "last", model, progress, optimizers)

    # What came of it.
    draw_png([run], run.path / "curves.png", CurveOptions())
    if stop:
        print(f"\nStopped by {stop.name} at step {progress.step:,}. To go on:\n"
              f"  python train.py {shlex.quote(str(run.path / 'config.toml'))} --init_from=resume")
        return stop.exit_code
    print("\n" + report.verdict(run.metrics, baselines, config))
    if not finite:
        return 1
    load_checkpoint(run.path / "best", model)
    prompt = [tokenizer.first_token()]
    sample = [token for (token,) in generate(model, prompt, world, max_new_tokens=300, seed=config.run.seed)]
    print(f"\nA sample:\n\n{tokenizer.decode(sample).strip()}\n\n{report.next_commands(run.path)}")
    return 0


if __name__ == "__main__":
    run_command(main)
