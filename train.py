"""Train a GPT, and show what its loss means: `python train.py [RECIPE.toml] [--name=value ...]`.

The story, in order: configuration, corpus, model, the loop, and what came of it. Several processes,
`torchrun --standalone --nproc_per_node=2 train.py ...`, share out the same steps; all of them walk
through this file, and what is to happen once, `world.once` does on rank 0.
"""

import math
import sys
import time
from datetime import UTC, datetime

import report
from config.cli import load_config
from config.schema import Config
from errors import UserError, forgiving, out_of_memory, run_command


def main(argv: list[str]) -> None:
    config = load_config(argv)  # --help and every mistake are answered before torch is loaded
    sys.stdout, sys.stderr = forgiving(sys.stdout), forgiving(sys.stderr)  # a log that cannot be written stops nothing
    from engine.begin import hold_run

    with hold_run(config), out_of_memory(report.less_memory(config)):
        code = train(config)
    sys.exit(code)


def train(config: Config) -> int:
    """Train as configured, from scratch or from the last checkpoint; returns the exit code."""
    import torch
    from tqdm import tqdm

    from curves import CurveOptions, draw_png
    from data.batches import TrainBatches, eval_batches
    from data.prepare import prepare_corpus
    from engine.begin import begin_run, note_start
    from engine.checkpoint import load_checkpoint, load_last, load_teacher
    from engine.diagnosis import diagnose
    from engine.distributed import find_world
    from engine.generate import generate
    from engine.optim import make_optimizers
    from engine.progress import Progress
    from engine.runlog import RunLog, training_record, validation_record
    from engine.signals import StopSignal
    from engine.step import StepResult, evaluate, train_step, try_compile
    from explain import explain_batch
    from model import GPT
    from runs import Record

    max_iters, tokens_per_step = config.optim.max_iters, config.optim.batch_size * config.model.block_size
    world = find_world(config.run.device, config.run.dtype, config.optim.batch_size)

    # The corpus, and what a loss on it must beat.
    corpus = world.first(prepare_corpus, config.data)
    tokenizer, baselines = corpus.tokenizer, corpus.baselines
    pad_after = tokenizer.end if config.data.padded else None
    batches = TrainBatches(corpus.train, config.model.block_size, config.optim.batch_size, config.run.seed, pad_after)
    val = corpus.val.first(config.run.eval_tokens)
    bytes_per_token = tokenizer.count_bytes(val.targets()) / val.count_scored()
    floor = corpus.floor(len(val.tokens) - 1)
    print(report.corpus(corpus.meta, baselines) + "\n")
    if len(val.tokens) < len(corpus.val.tokens):
        print(f"evaluating on the first {config.run.eval_tokens:,} validation tokens; the ladder is measured on all of "
              "them\n")

    # The model, new or from the last checkpoint.
    torch.manual_seed(config.run.seed)
    ngrams = corpus.count_ngrams(config.model.ngram)
    model = GPT(config.model, tokenizer.vocab_size, ngrams).to(world.device)
    optimizers = make_optimizers(model, config.optim)
    teacher = (load_teacher(config.loss.teacher, tokenizer, config.model.block_size, world) if config.loss.teacher
               else None)
    if config.run.explain_batch:
        return explain_batch(batches(0), model, tokenizer, config, world)
    run, progress = world.once(begin_run, config, corpus, ngrams), Progress()
    if run.changes is not None:
        progress, remark = load_last(run, model, optimizers)
        print(report.going_on(run, progress.step, remark))
    elif run.earlier:
        print(f"the run that was in {run.path}/ is now in {run.earlier}/")
    world.once(note_start, run, ngrams, {"step": progress.step, "time": datetime.now(UTC).isoformat(timespec="seconds"),
                                         "on": str(world), "torch": torch.__version__})
    print(f"{model.describe()}\n{world}: {max_iters:,} steps of {tokens_per_step:,} tokens, "
          f"{max_iters * config.optim.batch_size / batches.windows:.2f} epochs; into {run.path}/\n")
    if config.run.compile and (reason := try_compile(model, batches(progress.step), config, world)):
        print(f"warning: torch.compile failed, going on without it: {reason}\n")

    # The loop.
    stop = StopSignal(world)
    bar = tqdm(total=max_iters, initial=progress.step, disable=world.rank > 0 or None, unit="step", leave=False,
               dynamic_ncols=True)
    log = RunLog(run, world, progress.step, bar.write)
    began = time.perf_counter() - progress.seconds

    def measure() -> Record:
        return training_record(results, since, config.loss, tokenizer.vocab_size)

    def validate() -> Record:
        bar.set_postfix_str("evaluating")
        loss = evaluate(model, eval_batches(val, config.model.block_size, pad_after), world)
        progress.evals_since_best += 1
        if loss.nll < progress.best_nll:
            progress.best_nll, progress.evals_since_best = loss.nll, 0
            log.save("best", model, progress)
        return validation_record(loss, bytes_per_token, floor)

    def write(record: Record) -> None:
        progress.seconds = time.perf_counter() - began
        record = progress.record() | record
        log.write(record)
        if "val_nll" in record or bar.disable:
            bar.write(report.progress(record, baselines))

    def due(interval: int) -> bool:
        return progress.step % interval == 0 or progress.step == max_iters

    if progress.step > 0:
        bar.write(report.COLUMNS)
    else:
        log.save("last", model, progress, optimizers)  # before hours of work: is there room?
        record = validate()
        bar.write(f"{report.step_zero(diagnose(model, batches, world), tokenizer.vocab_size)}\n\n{report.COLUMNS}")
        write(record)
    results: list[StepResult] = []  # since the last line of metrics
    since = time.perf_counter()
    patient = True
    while progress.step < max_iters and patient and progress.bad_in_a_row < config.run.max_bad_steps and not stop:
        results.append(train_step(model, optimizers, batches(progress.step), config, world, progress.step, teacher))
        spike = progress.count(results[-1])
        if trouble := report.trouble(progress, results[-1], spike):
            bar.write(trouble)
        bar.update()
        evaluating, saving = due(config.run.eval_interval), due(config.run.checkpoint_interval) or stop.saving
        if evaluating or saving or due(config.run.log_interval):
            record = measure()
            write(record | validate() if evaluating else record)
            bar.set_postfix_str(f"train {record.get('train_nll', math.nan):.4f}")
            patient = not (evaluating and 0 < config.run.patience <= progress.evals_since_best)
            results.clear()
            since = time.perf_counter()
        if saving and progress.step < max_iters and log.save("last", model, progress, optimizers) and stop.saving:
            bar.write(f"SIGUSR1: saved a checkpoint of step {progress.step:,} in {run.path}/last; going on")
    if results:  # stopped between two lines
        write(measure())
    bar.close()
    saved = log.save("last", model, progress, optimizers)

    # What came of it.
    log.attempt("curves.png", draw_png, [run], run.path / "curves.png", CurveOptions())
    if stop:
        world.once(print, "\n" + report.stopped(run, stop.name, progress.step, saved, world.size), flush=True)
        return stop.exit_code
    world.once(print, "\n" + report.verdict(run.metrics, baselines, config), flush=True)
    if not saved:
        raise UserError(f"{run.path}: its last checkpoint could not be written; make room, and go on from the one "
                        "before with --init_from=resume")
    if progress.bad_in_a_row:
        return 1
    load_checkpoint(run.path / "best", model)
    opening = corpus.meta["opening"]
    steps = generate(model, tokenizer.encode_prompt(opening), world, num_samples=1 if tokenizer.end is None else 5,
                     max_new_tokens=300, seed=config.run.seed, end=tokenizer.end)
    samples = [tokenizer.decode(sample) for sample in zip(*steps, strict=True)]
    print(f"\n{report.samples(opening, samples)}\n\n{report.next_commands(run.path)}")
    return 0


if __name__ == "__main__":
    run_command(main)
