"""Starts a training: a new run, a run to resume, or one from the weights of another.

lock_run gives the run to resume, begin_run makes the run of this training, and load_start its
state.
"""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from config.errors import RANK, DamagedError, UserError
from config.files import (
    RUN_FILES,
    TEMPORARY,
    is_run,
    lock_of,
    locked,
    nearest_run,
    write_atomically,
)
from config.resume import changed_options, refuse_changes
from config.schema import Config
from data.prepare import Corpus
from engine.checkpoint import (
    MODEL,
    TABLES,
    Checkpoint,
    Optimizers,
    read_checkpoint,
    read_model,
    telling_damage,
)
from engine.optim import Muon
from engine.run import Run, open_run
from engine.state import TrainState
from model import GPT
from tables import RowwiseRMSProp

CHECKPOINTS = ("last.safetensors", "previous.safetensors")
LOCK_WAIT = 1  # seconds: who asks whether a run is being trained holds its lock for a moment
OptimizerState = dict[int, dict[str, Tensor]]  # by the number of the parameter


@contextmanager
def lock_run(cfg: Config) -> Iterator[Run | None]:
    """Be the only process that trains in out_dir; gives the run to resume, or None for a new one.

    UserError if out_dir cannot be a run's directory, or another process trains there.
    """
    path = Path(cfg.run.out_dir)
    _check_out_dir(path)
    if cfg.run.init_from == "resume" and not is_run(path):
        raise UserError(
            f"{path}: no run to resume; name the directory of one: python train.py out/RUN "
            f"--init_from=resume{nearest_run(path)}"
        )
    for teacher in cfg.loss.teachers:
        open_run(Path(teacher))  # tells mistakes before a corpus is prepared
    earlier = None
    with ExitStack() as stack:
        if RANK == 0:  # which holds the lock for all
            taken = (
                f"out_dir={path}: another process is training there; wait for it, or choose "
                "another --out_dir"
            )
            lock = lock_of(path.resolve())
            stack.enter_context(locked(lock, taken, LOCK_WAIT))
        if cfg.run.resumes and is_run(path):
            earlier = open_run(path)
        if earlier is not None and not earlier.info.has_text:
            raise UserError(
                f"{path}: came without the text that it was trained on, so it cannot be resumed; "
                f"train another run from it: --init_from={path}"
            )
        yield earlier


def _check_out_dir(path: Path) -> None:
    """Raise a UserError if a directory cannot become, or is not, that of a run."""
    if not path.resolve().name or path.name in ("", ".."):
        raise UserError(f"out_dir={path}: should be a directory of its own, such as out/mine")
    is_other = path.is_file()
    if path.is_dir() and not is_run(path):
        # a process that died while it made a run leaves such files
        temporaries = [temporary.name for temporary in path.glob(TEMPORARY)]
        unfinished = {*RUN_FILES[1:], *CHECKPOINTS, *temporaries}
        is_other = any(file.name not in unfinished for file in path.iterdir())
    if is_other:
        raise UserError(f"out_dir={path}: exists and is not a run; choose another --out_dir")


def begin_run(earlier: Run | None, cfg: Config, named: set[str], corpus: Corpus) -> Run:
    """Create a run in out_dir, or return the earlier one with the options of this start.

    `named` are the options on the command line. UserError if the run would continue with another
    model or text.
    """
    if earlier is None:
        return create_run(cfg, corpus)
    problems = []
    if corpus.info.sha256 != earlier.info.sha256:
        problems.append(
            f"its text has changed (sha256 was {earlier.info.sha256[:8]} and is now "
            f"{corpus.info.sha256[:8]})"
        )
    elif corpus.tokenizer != earlier.tokenizer:
        problems.append("the tokens of its text have changed")
    changes = changed_options(earlier.cfg.options(), cfg.options())
    problems += refuse_changes(changes, named)
    if problems:
        raise UserError(f"{earlier.path}: {'; '.join(problems)}")
    return replace(
        earlier,
        cfg=cfg,
        changes=changes,
        is_resumed=True,
        source=earlier.cfg.run.source,
        had_outcome=earlier.has_outcome(),
    )


def create_run(cfg: Config, corpus: Corpus) -> Run:
    """Create a run; an older one of that name is renamed to NAME.1, NAME.2, ..."""
    path = Path(cfg.run.out_dir)
    real = path.resolve()  # a link stays a link, and lock_run has locked where it leads
    moved = None
    if is_run(path):
        moved = _move_aside(real)
        if not path.is_absolute():
            moved = Path(os.path.relpath(moved))
    real.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINTS:  # of a start that failed
        (path / name).unlink(missing_ok=True)
    write_atomically(path / "tokenizer.json", corpus.tokenizer.model_dump_json().encode())
    write_atomically(path / "corpus.json", corpus.info.model_dump_json(indent=1).encode())
    return Run(path, corpus.info, cfg, moved, source=cfg.run.source)


def _move_aside(path: Path) -> Path:
    """Rename a run's directory to the first free one of NAME.1, NAME.2, ...; returns that."""
    n = 1
    while path.with_name(f"{path.name}.{n}").exists():
        n += 1
    return path.rename(path.with_name(f"{path.name}.{n}"))


def load_start(run: Run, model: GPT, optimizers: Optimizers) -> tuple[TrainState, str]:
    """Load what a training starts with: its last checkpoint, or the weights of another run.

    Returns the state, and what the user should know about it.
    """
    remarks: list[str] = []
    if run.is_resumed:
        state = _load_last(run, model, optimizers, remarks)
        if state is not None:
            _check_best(state, run.path / "best.safetensors", remarks)
            if state.step == 0:  # the same as a new run
                state = TrainState()
            return state, "; ".join(remarks)
        _check_untrained(run, remarks)
        remarks = ["stopped before its first checkpoint"]
    if run.source:
        source = open_run(Path(run.source))
        weights = dict(read_model(source, "best")[0].named_parameters())
        for name, p in model.named_parameters():
            # of positions, a smaller block_size needs the first ones only
            p.detach().copy_(weights[name].detach()[: len(p)])
        remarks.append(f"starts with the weights of {source.path}")
    return TrainState(), "; ".join(remarks)


def _load_last(
    run: Run, model: GPT, optimizers: Optimizers, remarks: list[str]
) -> TrainState | None:
    """Load the newest whole checkpoint of a run: last, previous or best; None if there is none.

    `remarks` gets what the user should know.
    """
    for name in ("last", "previous", "best"):
        path = run.path / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            state = _load_checkpoint(path, run, model, optimizers)
        except DamagedError as error:
            remarks.append(str(error))
            continue
        if name == "best":
            remarks.append(f"using {path.name} instead; the optimizers start anew")
        elif remarks:
            remarks.append(f"using {path.name} instead")
        return state
    return None


def _load_checkpoint(path: Path, run: Run, model: GPT, optimizers: Optimizers) -> TrainState:
    """Load weights, optimizers and state; DamagedError if they are not whole, or do not fit."""
    saved = read_checkpoint(path)
    saved.check_options(run.cfg.options())
    if path.name == "best.safetensors":  # which has no optimizer states
        saved.copy_to(model)
    else:
        copy_all(saved, model, optimizers)
    state = saved.state
    state.nonfinite_in_a_row = 0  # a run that stopped for that has a new chance
    if "windows" not in state.model_fields_set:  # in checkpoints of earlier editions
        before, _ = run.changes.get("batch_size", [run.cfg.optim.batch_size, None])
        state.windows = state.step * before
    return state


def _check_untrained(run: Run, remarks: list[str]) -> None:
    """Raise a UserError if a run has lost its checkpoints; `remarks` say which are damaged."""
    has_trained = any(record["step"] > 0 for record in run.read_metrics())
    if has_trained and run.cfg.run.init_from == "resume" and not remarks:
        remarks.append(f"{run.path}: its checkpoints are gone")
    if remarks:
        raise UserError(
            f"{'; '.join(remarks)}; no whole checkpoint is left: start again without "
            "--init_from=resume"
        )


def _check_best(state: TrainState, path: Path, remarks: list[str]) -> None:
    """Forget the best model if its checkpoint is lost, or is of steps that are taken anew.

    All of the checkpoint is read: damage would otherwise show after the last step, where nothing
    can replace it.
    """
    try:
        if read_checkpoint(path).state.step > state.step:
            state.forget_best()
    except UserError as error:
        if state.best_nll is not None:
            remarks.append(f"{error}: the next model that is evaluated becomes the best")
        state.forget_best()


def copy_all(saved: Checkpoint, model: GPT, optimizers: Optimizers) -> None:
    """Copy the weights and the optimizers' states of a checkpoint.

    DamagedError if they do not fit: then nothing is copied.
    """
    with telling_damage(saved.path):
        saved.check_weights(model)
        states = _read_optimizers(saved, optimizers)
        # All of it fits: only now is any of it used.
        saved.copy_to(model)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _read_optimizers(saved: Checkpoint, optimizers: Optimizers) -> list[OptimizerState]:
    """Read the state of each optimizer; empty if none has made a step.

    ValueError if there is not exactly what the optimizers keep of their parameters.
    """
    left = {name for name in saved.tensors if not name.startswith((MODEL, TABLES))}
    has_states = bool(left) or saved.state.applied_steps > 0
    if not has_states or not optimizers:
        return [{} for _ in optimizers]
    states = []
    for number, optimizer in enumerate(optimizers):
        state: OptimizerState = {}
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(params):
            state[index] = {}
            for key, shape in state_shapes(optimizer, p).items():
                name = f"optimizer.{number}.{index}.{key}"
                state[index][key] = _take_state(saved.tensors, name, shape)
                left.discard(name)
        states.append(state)
    if left:
        raise ValueError(f"{min(left)} belongs to no parameter")
    return states


def _take_state(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Return a tensor of an optimizer's state; ValueError if it is not there as expected."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"{name} is missing")
    if tensor.dtype != torch.float32 or tensor.shape != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}, not float32 {tuple(shape)}")
    if name.endswith(".step") and not 1 <= tensor < math.inf:
        raise ValueError(f"{name} is {float(tensor)}")
    return tensor


def state_shapes(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, torch.Size]:
    """List what an optimizer keeps of a parameter from its first step on, all in float32.

    A checkpoint's tensors are compared with it: PyTorch's fused AdamW does not look at their
    shapes, and reads and writes past the end of one that is too small.
    """
    if isinstance(optimizer, Muon):
        return {"momentum": p.shape}
    if isinstance(optimizer, RowwiseRMSProp):
        return {"count": p.shape[:1], "mean_square": p.shape[:1]}
    return {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}
