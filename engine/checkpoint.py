"""Checkpoints: at every instant a whole one is on disk, and reading one executes nothing.

A checkpoint is a folder with model.safetensors, progress.json and, where training can go on from
it, optimizer.safetensors. It is written beside, flushed, and renamed into its place.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.ngrams import load_ngrams
from data.tokenizer import Tokenizer
from engine.distributed import World
from engine.optimizers import Optimizer
from errors import UserError
from model import GPT
from runs import Record, Run, open_run


@dataclass
class Progress:
    """How far a run has come. The batch and the dropout of a step follow from (seed, step)."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # tokens scored in them
    seconds: float = 0.0
    best_nll: float = math.inf  # lowest validation loss, nats per token
    evals_since_best: int = 0
    skipped_steps: int = 0  # those with nothing to score

    def record(self) -> Record:
        """What a line of metrics begins with."""
        record: Record = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        return record | ({"skipped_steps": self.skipped_steps} if self.skipped_steps else {})


def save_checkpoint(folder: Path, model: GPT, progress: Progress, optimizers: list[Optimizer] | None = None) -> None:
    """Replace the checkpoint in `folder` by this one; without `optimizers` it only serves to evaluate."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old) if folder.exists() else (new,):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, new / "model.safetensors")
    (new / "progress.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
    if optimizers is not None:
        save_file({f"{number}.{name}": tensor for number, optimizer in enumerate(optimizers)
                   for name, tensor in optimizer.state_dict().items()}, new / "optimizer.safetensors")
    for path in [*new.iterdir(), new]:
        _flush(path)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: GPT, optimizers: list[Optimizer] | None = None) -> Progress:
    """Restore the weights and, if given, the optimizers; returns the progress. UserError if damaged."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # stopped between the two renames: the one before is whole
        folder = old
    for file in ("model.safetensors", "progress.json", *(["optimizer.safetensors"] if optimizers else [])):
        if not (folder / file).exists():
            raise UserError(f"{folder}: no checkpoint to load, {file} is missing")
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        if optimizers is not None:
            states = load_file(folder / "optimizer.safetensors")
            for number, optimizer in enumerate(optimizers):
                optimizer.load_state_dict({name.removeprefix(f"{number}."): tensor for name, tensor in states.items()
                                           if name.startswith(f"{number}.")})
        progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (SafetensorError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise UserError(f"{folder}: damaged, or of another model: {str(error).splitlines()[0]}") from None
    return progress


def load_model(run: Run, checkpoint: str, world: World) -> tuple[GPT, Progress]:
    """The model of a run's `best` or `last` checkpoint, to predict with, and how far it was trained."""
    ngrams = load_ngrams(run.path / "ngrams.safetensors") if run.config.model.ngram else None
    if ngrams and (ngrams.vocab_size, ngrams.order) != (run.meta["vocab_size"], run.config.model.ngram):
        raise UserError(f"{run.path}/ngrams.safetensors: of another run: {ngrams.order}-grams of {ngrams.vocab_size} "
                        "tokens")
    model = GPT(run.config.model, run.meta["vocab_size"], ngrams).to(world.device)
    progress = load_checkpoint(run.path / checkpoint, model)
    return model.to_predict(world.dtype), progress


def load_teacher(path: str, tokenizer: Tokenizer, block_size: int, world: World) -> GPT:
    """The best model of a run, to learn from; UserError if it speaks of other tokens, or of fewer at once."""
    run = open_run(Path(path))
    if (theirs := run.load_tokenizer()).to_json() != tokenizer.to_json():
        raise UserError(f"teacher={path}: has another vocabulary (|V| = {theirs.vocab_size}, end token for "
                        f"{theirs.separator!r}) than this corpus (|V| = {tokenizer.vocab_size}, end token for "
                        f"{tokenizer.separator!r}); it should be a run on the same corpus and documents")
    if run.config.model.block_size < block_size:
        raise UserError(f"teacher={path}: its block_size is {run.config.model.block_size}, less than {block_size}")
    if run.config.model.ngram:
        raise UserError(f"teacher={path}: its n-grams were counted in the text that it should teach, so it knows too "
                        "much of it; train one with --ngram=0")
    return load_model(run, "best", world)[0]


def _flush(path: Path) -> None:
    """Have the operating system put a file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
