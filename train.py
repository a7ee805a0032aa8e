"""Train a GPT, and show what its loss means: `python train.py [RECIPE] [--name=value ...]`.

Under torchrun, each process (rank) runs this file on its share of every batch; only rank 0 prints
and writes files.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)  # Ctrl-C while torch is imported ends quietly

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from config.cli import load_training
from config.errors import out_of_memory, run_command

if __name__ == "__main__":
    # Answers --help and mistakes at once, because importing torch takes seconds. main() reads the
    # options again.
    run_command(load_training)

import torch

from config.schema import Config
from config.terminal import say
from data.batches import Batch, TrainBatches
from data.eval_text import EvalText
from data.prepare import Corpus, prepare_corpus
from engine.device import Device, micro_batch_size, setup_device
from engine.evaluation import remeasure_best, validate
from engine.generate import generate_texts
from engine.memory import check_memory
from engine.metrics import Record
from engine.objective import TrainingObjective, load_objective
from engine.optim import make_optimizers, set_lr
from engine.ranks import lost_ranks
from engine.run import Run
from engine.run_files import RunFiles
from engine.signals import StopSignal
from engine.start import begin_run, load_start, lock_run
from engine.state import StepResult, TrainState
from engine.step import add_gradients, compile_model, seed_dropout
from loss import LossSums, sum_losses
from model import GPT
from report import words
from report.figures import draw_run
from report.outcome import measure_best, write_passages
from report.step_zero import check_start
from report.trainlog import TrainLog
from report.verdict import make_verdict


def main(argv: list[str]) -> None:
    # `named`: the options on the command line. A resumed run keeps its others, such as its seed.
    # `unused`: lines that say which options of its recipe a resumed run ignores.
    cfg, named, unused = load_training(argv)
    for line in unused:
        print(line)
    advice = words.advise_less_memory(cfg)
    # `earlier` is the run to resume, or None. No other process trains in its directory meanwhile.
    with lock_run(cfg) as earlier, out_of_memory(advice), lost_ranks():
        sys.exit(train(cfg, named, earlier))


def train(cfg: Config, named: set[str], earlier: Run | None) -> int:
    """Train a new run, or resume an earlier one; returns the exit code."""
    # Several ranks first compare their options.
    device = setup_device(cfg.run.device, cfg.run.dtype, cfg.options())
    if cfg.run.compile:
        # Otherwise each core of a CPU takes a micro-batch; a compiled model uses all cores at once.
        device = device.without_workers()
    cfg = cfg.with_run(dtype=device.dtype_name)
    check_memory(cfg, device.torch_device)
    torch.manual_seed(cfg.run.seed)

    # data
    tokenizer = None  # a new run gets its vocabulary from the corpus, and a resumed one keeps it
    if earlier is not None:
        tokenizer = earlier.tokenizer
    corpus = device.rank0_first(prepare_corpus, cfg.data, tokenizer)
    tokenizer = corpus.tokenizer
    prompt = corpus.info.prompt
    block_size = cfg.model.block_size
    eos = tokenizer.window_border(cfg.data.padded)  # None unless each row holds one document
    get_batch = TrainBatches(
        corpus.train,
        block_size,
        cfg.optim.batch_size,
        cfg.run.seed,
        eos=eos,
        micro_batch_size=micro_batch_size(cfg),
        rank=device.rank,
        world_size=device.world_size,
    )
    val_text = EvalText(corpus.val, block_size, eos, max_tokens=cfg.run.eval_tokens)
    print(f"{words.describe_options(cfg.changed())}\n")
    print(f"{corpus.info.describe()}\n")

    # model
    vocab_size = tokenizer.vocab_size
    print(words.describe_model(cfg, vocab_size), flush=True)
    model = GPT(cfg.model, vocab_size, cfg.tables).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim, device)
    objective = load_objective(cfg.loss, tokenizer, block_size, device)

    # run: a new directory, or the earlier one, whose last checkpoint is loaded
    run = device.on_rank0(begin_run, earlier, cfg, named, corpus)
    state, remark = load_start(run, model, optimizers)  # a remark tells of a damaged checkpoint
    device.check_same_start(model, corpus.info.sha256)
    for line in words.describe_start(run, state, remark):
        print(line)
    if run.had_outcome and state.is_finished(cfg):  # nothing is left to do, not even finish()
        print(words.describe_finished(state, cfg.optim.max_iters))
        return 0
    for line in words.describe_plan(run, state, device, get_batch, val_text):
        print(line, flush=True)

    # A resumed run may evaluate on other targets now: its best model is measured on them first.
    remeasured = remeasure_best(run, state, val_text, corpus, device)
    command = words.resume_command(run.path, device)
    stop = StopSignal(device, command)
    files = RunFiles(run, device)
    files.start(model, state)
    log = TrainLog(files, corpus.info, state)
    log.add_remeasured(remeasured)
    if not run.is_resumed and not cfg.run.source:  # an untrained model has a loss near log|V|
        finding = device.on_rank0(check_start, model, get_batch, vocab_size, device)
        say(f"{finding}\n")
    forward: torch.nn.Module = model  # for training steps; evaluation never uses a compiled one
    if cfg.run.compile:
        forward = compile_model(model, get_batch(0), objective, device)

    while True:
        # once in a while: evaluate, log, keep the best model and the last
        is_last = stop.requested() or state.is_finished(cfg)
        if log.is_due(state, is_last):  # at evaluations, log lines, checkpoints and the end
            record = log.make_record(state)
            if log.is_eval_step(state):
                record |= validate(model, val_text, corpus, device)
                epochs = get_batch.epochs(state.windows)
                files.keep_best(model, state, record, epochs)
                # keep_best counts evaluations that show overfitting, which may end the training
                is_last = is_last or state.is_finished(cfg)
                if cfg.run.watchers:
                    write_passages(model, val_text, tokenizer, files, state.step)
            # true at the first evaluation, and at one that passes a baseline
            is_worth_a_sample = log.write(record)
            if is_worth_a_sample:
                samples = generate_texts(model, tokenizer, prompt, device, max_new_tokens=80)
                log.add_sample(samples[0], state.step)
            if is_last or state.step % cfg.run.checkpoint_interval == 0:
                files.save("last.safetensors", model, state, optimizers)
        if is_last:
            break

        # one training step
        started = time.perf_counter()
        batch = get_batch(state.windows)
        result = train_step(forward, optimizers, batch, objective, device, cfg=cfg, state=state)
        result.seconds = time.perf_counter() - started

        # count it
        state.step += 1
        state.windows += cfg.optim.batch_size
        spike = state.count_step(result)
        log.add(result, state, spike)

    log.bar.close()
    try:
        if stop.received:
            is_saved = "last.safetensors" not in files.failing
            print(words.describe_stop(stop, state.step, is_saved))
            return 128 + stop.received  # as shells report a signal
        with stop.at_once():  # all is saved: from here on a signal ends it without delay
            return finish(model, corpus, get_batch, log, state)
    finally:
        log.watchers.close()


def train_step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: list[Batch],
    objective: TrainingObjective,
    device: Device,
    *,
    cfg: Config,
    state: TrainState,
) -> StepResult:
    """Take one step on a batch, which is a list of this rank's micro-batches.

    The loss of each is divided by the number of targets in the global batch, so that gradients add
    up to that of one big batch. A step without targets, or with a loss or gradient that is not
    finite, changes neither weights nor optimizers.
    """
    lr = set_lr(optimizers, cfg.optim, state.step)
    own_targets = sum(micro.num_targets for micro in batch)
    num_targets = int(device.all_reduce(torch.tensor(own_targets)))
    if num_targets == 0:
        batch = []  # nothing to learn from: only count the step
    loss_scale = 1.0
    if device.dtype == torch.float16:  # where small gradients would become zero
        loss_scale = state.loss_scale
    parameters = list(model.parameters())

    # autograd.grad and not backward(): a CPU's cores take a micro-batch each, and gradients are
    # added in the order of the micro-batches, so that the result is the same to the last bit.
    def forward_backward(micro: Batch) -> tuple[LossSums, Sequence[torch.Tensor]]:
        seed_dropout(cfg.run.seed, state.step, micro.number)  # of the thread that computes it
        inputs, targets = device.to_device(micro.inputs, micro.targets)
        with device.autocast():
            teacher_logits = objective.teacher_logits(inputs)  # None without a teacher
            loss = model(inputs, targets, objective.terms, teacher_logits)
        # loss.objective: what these terms make of the loss, summed over this micro-batch
        share = loss.objective / num_targets  # of the mean over the global batch
        gradients = torch.autograd.grad(share * loss_scale, parameters)
        return loss.detach(), gradients

    sums = []
    for loss, gradients in device.map(forward_backward, batch):
        sums.append(loss)
        add_gradients(parameters, gradients)

    device.all_reduce_gradients(parameters, loss_scale)  # and divides them by the scale
    grad_norm = device.clip_gradients(parameters, cfg.optim.grad_clip)
    total = sum_losses(sums, device.all_reduce)
    result = StepResult(total, grad_norm, lr)
    for optimizer in optimizers:
        if result.is_valid:  # it has targets, and a finite loss and gradient
            optimizer.step()
        optimizer.zero_grad()
    return result


def finish(
    model: GPT, corpus: Corpus, get_batch: TrainBatches, log: TrainLog, state: TrainState
) -> int:
    """Measure the best model exactly, draw the curves, and say what came of the training.

    Returns the exit code. The last line of metrics.jsonl is written last: where it is missing, a
    resumed run comes here again.
    """
    files = log.files
    cfg = files.run.recipe
    files.check_saved()  # raises an error if a checkpoint could not be written
    final: Record = {"step": state.step, "finished": 1}
    if state.best_nll is not None:  # otherwise no loss was finite
        final = measure_best(model, corpus, get_batch, files, state.step)
    run = replace(files.run, final=final)  # metrics.jsonl does not have it yet
    files.attempt("curves.png", lambda path: draw_run(run, path))
    epochs = get_batch.epochs(state.windows)
    records = run.read_metrics()
    verdict = make_verdict(records, final, corpus.info, cfg=cfg, state=state, epochs=epochs)
    print(f"\n{verdict.text}", flush=True)
    files.write_text("verdict.txt", verdict.text)
    final[verdict.ending] = 1

    # If a file could not be written, log.end says to resume with this command.
    command = words.resume_command(run.path, files.device)
    if state.diverged(cfg.run):
        log.end(final, "", command)
        return 1
    prompt = corpus.info.prompt
    tokenizer = corpus.tokenizer
    num_samples = 1
    if tokenizer.eos is not None:  # documents may be short
        num_samples = 5
    samples = generate_texts(model, tokenizer, prompt, files.device, num_samples)
    log.end(final, samples[0], command)
    say(f"\n{words.show_samples(prompt, samples)}", "sample")
    print(f"\n{words.next_commands(run.path)}")
    return 0


if __name__ == "__main__":
    run_command(main)
