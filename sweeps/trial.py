"""Trains a few steps without the files of a run: to find a learning rate, or to measure speed."""

import time

import torch

from config.schema import Config
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.prepare import Corpus
from engine.device import Device, micro_batch_size
from engine.evaluation import validate
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.state import StepResult, TrainState
from model import GPT
from train import train_step


class Trial:
    """A model in training, and what its steps need."""

    def __init__(self, cfg: Config, corpus: Corpus, device: Device) -> None:
        self.cfg = cfg
        self.corpus = corpus
        self.device = device
        tokenizer = corpus.tokenizer
        block_size = cfg.model.block_size
        eos = tokenizer.window_border(cfg.data.padded)
        torch.manual_seed(cfg.run.seed)
        self.model = GPT(cfg.model, tokenizer.vocab_size, cfg.tables).to(device.torch_device)
        self.optimizers = make_optimizers(self.model, cfg.optim, device)
        self.objective = load_objective(cfg.loss, tokenizer, block_size, device)
        self.state = TrainState()
        self.get_batch = TrainBatches(
            corpus.train,
            block_size,
            cfg.optim.batch_size,
            cfg.run.seed,
            eos=eos,
            micro_batch_size=micro_batch_size(cfg),
        )
        self.val_text = EvalText(corpus.val, block_size, eos, max_tokens=cfg.run.eval_tokens)

    def step(self) -> StepResult:
        """Take one step of training."""
        started = time.perf_counter()
        result = train_step(
            self.model,
            self.optimizers,
            self.get_batch(self.state.windows),
            self.objective,
            self.device,
            cfg=self.cfg,
            state=self.state,
        )
        result.seconds = time.perf_counter() - started
        self.state.step += 1
        self.state.windows += self.cfg.optim.batch_size
        self.state.count_step(result)
        return result

    def measure(self) -> float:
        """Measure the loss on the validation text that evaluations read, in nats per token."""
        return validate(self.model, self.val_text, self.corpus, self.device)["val_nll"]
