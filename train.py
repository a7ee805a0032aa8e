"""Train a GPT, and show what its loss means: `python train.py [RECIPE] [--name=value ...]`.

Under torchrun, each process (rank) runs this file on its share of every batch; only rank 0 prints
and writes files.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import sys
import time
from collections.abc import Sequence

from config.cli import describe_unused, load_config
from config.errors import out_of_memory, run_command

if __name__ == "__main__":
    # answers --help and mistakes before torch is imported, which takes seconds
    run_command(load_config)

import torch

from config.schema import Config
from data.batches import Batch, TrainBatches
from data.prepare import prepare_corpus
from engine.checkpoint import Optimizers, load_start, load_teacher
from engine.device import Device, lost_ranks, micro_batch_size, setup_device
from engine.evaluation import remeasure_best, validate
from engine.generate import generate_texts
from engine.memory import check_memory
from engine.optim import make_optimizers, set_lr
from engine.run import Run, begin_run, lock_run
from engine.signals import StopSignal
from engine.state import StepResult
from engine.step import (
    add_gradients,
    compile_model,
    is_eval_step,
    make_objective,
    seed_dropout,
    teacher_logits,
)
from loss import LossSums, sum_losses
from model import GPT
from report import words
from report.step_zero import FIRST_BATCHES, check_step_zero
from report.trainlog import TrainLog, finish


def main(argv: list[str]) -> None:
    cfg, named = load_config(argv)  # `named`: the options on the command line
    for line in describe_unused(argv, cfg):
        print(line)
    with lock_run(cfg) as earlier, out_of_memory(words.less_memory(cfg)), lost_ranks():
        sys.exit(train(cfg, named, earlier))


def train(cfg: Config, named: set[str], earlier: Run | None) -> int:
    """Train a new run, or resume an earlier one; returns the exit code."""
    device = setup_device(cfg.run.device, cfg.run.dtype, cfg.options())
    if cfg.run.compile:
        device = device.without_workers()  # a compiled model shares the cores in each operation
    cfg = cfg.with_run(dtype=device.dtype_name)
    check_memory(cfg.model, cfg.optim, device.torch_device)
    torch.manual_seed(cfg.run.seed)

    # data
    tokenizer = earlier.tokenizer if earlier else None  # which may be that of another run
    corpus = device.rank0_first(prepare_corpus, cfg.data, tokenizer)
    eos = corpus.tokenizer.eos if cfg.data.padded else None  # --padded: each row holds one document
    get_batch = TrainBatches(
        corpus.train,
        cfg.model.block_size,
        cfg.optim.batch_size,
        cfg.run.seed,
        eos,
        micro_batch_size=micro_batch_size(cfg),
        rank=device.rank,
        world_size=device.world_size,
    )
    print(words.describe_options(cfg), corpus.info.describe(), sep="\n\n", end="\n\n")

    # model
    print(words.describe_model(cfg.model, corpus.info.vocab_size), flush=True)
    model = GPT(cfg.model, corpus.info.vocab_size).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim, device)
    teacher = (
        load_teacher(cfg.loss.teacher, corpus.tokenizer, cfg.model.block_size, device)
        if cfg.loss.teacher
        else None
    )

    # run: a new directory, or the one to resume
    run = device.on_rank0(begin_run, earlier, cfg, named, corpus)
    state, remark = load_start(run, model, optimizers)
    device.check_same_start(model, corpus.info.sha256)
    val_text = run.eval_text(corpus.val, cfg.run.eval_tokens)
    print(words.describe_run(run, state, remark, device, get_batch, val_text), flush=True)
    if run.had_outcome and state.is_finished(cfg):
        return 0
    remeasured = remeasure_best(run, state, val_text, corpus, device)
    log = TrainLog(run, device, model, corpus, state)
    stop = StopSignal(device, words.resume_command(run, device))
    forward = (
        compile_model(model, get_batch(0), make_objective(cfg), device, log.say)
        if cfg.run.compile
        else model
    )
    log.add_remeasured(remeasured)
    if not run.is_resumed and not cfg.run.source:
        first_batches = [
            get_batch(number * cfg.optim.batch_size) for number in range(FIRST_BATCHES)
        ]
        vocab_size = corpus.tokenizer.vocab_size
        log.say(device.on_rank0(check_step_zero, model, first_batches, vocab_size, device) + "\n")
    log.say(words.COLUMNS)

    while True:
        # log, evaluate, keep the best and the last
        # all steps are done, or it overfits, or it diverged
        ending = stop.requested() or state.is_finished(cfg)
        evaluating = (
            is_eval_step(state.step, cfg.run.eval_interval) or state.step == cfg.optim.max_iters
        )
        saving = state.step % cfg.run.checkpoint_interval == 0
        logging = ending or evaluating or saving or state.step % cfg.run.log_interval == 0
        if logging and log.lacks_this_step():  # a resumed run has logged its first step already
            record = log.make_record()
            if evaluating:
                record |= validate(model, val_text, corpus, device)
                log.keep_best(record, model, get_batch.epochs(state.windows))
            if log.write(record):  # the first evaluation, or one that passes a baseline
                log.write_sample(generate_texts(model, corpus, device, max_new_tokens=80)[0])
            ending = ending or state.is_finished(cfg)  # this evaluation may have shown overfitting
            if ending or saving:
                log.save("last", model, optimizers)
        if ending:
            break
        started = time.perf_counter()
        result = train_step(
            forward,
            optimizers,
            get_batch(state.windows),
            cfg,
            device,
            state.step,
            teacher,
            state.loss_scale,
        )
        result.seconds = time.perf_counter() - started
        log.add(result, state.count_step(result))  # state.step += 1
        state.windows += cfg.optim.batch_size

    log.bar.close()
    return finish(stop, model, corpus, log, get_batch)


def train_step(
    model: torch.nn.Module,
    optimizers: Optimizers,
    batch: list[Batch],
    cfg: Config,
    device: Device,
    step: int,
    teacher: GPT | None = None,
    loss_scale: float = 1.0,
) -> StepResult:
    """One step: sums over micro-batches and ranks, divided once by the number of targets in the
    global batch.

    On a CPU its cores compute micro-batches side by side; gradients are added in the order of the
    micro-batches. A step without targets, or with a loss or gradient that is not finite, changes
    neither weights nor optimizers. In float16 the loss is scaled for backward, because small
    gradients would become zero.
    """
    lr = set_lr(optimizers, cfg.optim, step)
    num_targets = int(device.all_reduce(torch.tensor(sum(micro.num_targets for micro in batch))))
    if num_targets == 0:
        batch = []  # nothing to learn from: only count the step
    if device.dtype != torch.float16:
        loss_scale = 1.0
    parameters = list(model.parameters())

    def forward_backward(micro: Batch) -> tuple[LossSums, Sequence[torch.Tensor]]:
        seed_dropout(cfg.run.seed, step, micro.number)
        inputs, targets = device.to_device(micro.inputs, micro.targets)
        with device.autocast():
            loss = model(inputs, targets, make_objective(cfg), teacher_logits(teacher, inputs))
        objective = loss.objective / num_targets * loss_scale
        gradients = torch.autograd.grad(objective, parameters)
        return loss.detach(), gradients

    sums = []
    for loss, gradients in device.map(forward_backward, batch):
        sums.append(loss)
        add_gradients(parameters, gradients)

    device.all_reduce_gradients(parameters, loss_scale)
    grad_norm = device.clip_gradients(parameters, cfg.optim.grad_clip)
    result = StepResult(sum_losses(sums, device.all_reduce), grad_norm, lr)
    for optimizer in optimizers:
        if result.is_valid:
            optimizer.step()
        optimizer.zero_grad()
    return result


if __name__ == "__main__":
    run_command(main)
