"""Checkpoints: at every instant a whole one is on disk, and reading one executes nothing.

A checkpoint is a sealed folder with model.safetensors, progress.json and, where training can go on from it,
optimizer.safetensors. It is written beside, and renamed into its place; of last/, the one before is kept as previous/.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from data.ngrams import load_ngrams
from data.tokenizer import Tokenizer
from engine.distributed import World
from engine.optimizers import Optimizer
from engine.progress import Progress
from errors import RANK, UserError
from files import made_anew, read_sealed
from model import GPT
from runs import Run, open_run


def save_checkpoint(folder: Path, model: GPT, progress: Progress, optimizers: list[Optimizer] | None = None) -> None:
    """Replace the checkpoint in `folder` by this one; without `optimizers` it only serves to evaluate.

    OSError if there is no room: the checkpoints that were there, still are.
    """
    with made_anew(folder, _before(folder)) as new:
        (new / "model.safetensors").write_bytes(save({n: t.contiguous() for n, t in model.state_dict().items()}))
        (new / "progress.json").write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
        if optimizers is not None:
            (new / "optimizer.safetensors").write_bytes(save({
                f"{number}.{name}": tensor for number, optimizer in enumerate(optimizers)
                for name, tensor in optimizer.state_dict().items()}))
    if folder.name != "last":
        shutil.rmtree(_before(folder), ignore_errors=True)


def load_checkpoint(folder: Path, model: GPT, optimizers: list[Optimizer] | None = None) -> Progress:
    """Restore the weights and, if given, the optimizers; returns the progress. UserError if missing or damaged."""
    if not folder.exists() and _before(folder).exists():  # stopped between the two renames: the one before is whole
        folder = _before(folder)
    other = "best" if folder.name == "last" else "last"
    remedy = f"the {other} checkpoint, if it is whole, is for --checkpoint={other}"
    if not folder.exists():
        raise UserError(f"{folder}: there is no such checkpoint; {remedy}")
    made = folder.stat().st_ino
    try:
        content = {name: read_sealed(folder / name, remedy) for name in (
            "model.safetensors", "progress.json", *(["optimizer.safetensors"] if optimizers else []))}
    except UserError:
        if folder.exists() and folder.stat().st_ino == made:
            raise
        return load_checkpoint(folder, model, optimizers)  # training has just replaced it
    try:
        progress = Progress.from_json(json.loads(content["progress.json"]))
        states = load(content["optimizer.safetensors"]) if optimizers else {}
        model.load_state_dict(load(content["model.safetensors"]))
        for number, optimizer in enumerate(optimizers or []):
            optimizer.load_state_dict({name.removeprefix(f"{number}."): tensor for name, tensor in states.items()
                                       if name.startswith(f"{number}.")})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise UserError(f"{folder}: damaged, or of another model: {str(error).splitlines()[0]}; {remedy}") from None
    return progress


def load_last(run: Run, model: GPT, optimizers: list[Optimizer]) -> tuple[Progress, str]:
    """The newest checkpoint of a run that is whole, to go on from; and what there is to say of it.

    Where last/ is damaged, that is previous/; where that is too, best/, whose optimizers start anew. A run that
    was stopped before its first checkpoint starts from the beginning.
    """
    there = [name for name in ("last", "previous", "best") if (run.path / name).exists()]
    if not there and any(record["step"] > 0 for record in run.metrics):
        raise UserError(f"{run.path}: its checkpoints are gone; start again, without --init_from=resume, which moves "
                        "what is left of it aside")
    if not there:
        return Progress(), "stopped before its first checkpoint"
    said = ["last/ is missing"] if there == ["best"] else []
    for name in there:
        try:
            progress = load_checkpoint(run.path / name, model, optimizers if name != "best" else None)
        except UserError as error:
            said.append(str(error).rpartition(";")[0] or str(error))
            continue
        if said:
            said.append(f"going on from {name}/ instead")
            for damaged in there[:there.index(name)] if RANK == 0 else []:  # or it would become previous/
                _set_aside(run.path / damaged)
        if name == "best":
            said.append("the optimizers start anew")
        if progress.bad_in_a_row >= run.config.run.max_bad_steps:  # it was stopped for that: it gets another chance
            progress.bad_in_a_row = 0
        return progress, "; ".join(said)
    raise UserError(f"{'; '.join(said)}; no checkpoint is whole: start again, without --init_from=resume")


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


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _before(folder: Path) -> Path:
    """Where the checkpoint goes that `folder` had before."""
    return folder.with_name("previous" if folder.name == "last" else f"{folder.name}.old")
