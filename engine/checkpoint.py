"""Checkpoints: one safetensors file each, with the model, the optimizers and, as metadata, the
state of the training.

A file is written beside its place and renamed, so that a whole one is there at every instant; the
hash of all that it holds is in its metadata. Reading a checkpoint executes nothing.
"""

import errno
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config.errors import DamagedError, UserError
from config.files import replacing
from config.old_options import translate
from config.resume import kept_options
from config.schema import Config
from data.tokenizer import Tokenizer
from engine.device import Device
from engine.optim import state_shapes
from engine.run import Run, open_run
from engine.state import TrainState
from model import GPT

Optimizers = list[torch.optim.Optimizer]
State = dict[int, dict[str, Tensor]]  # of an optimizer, by the number of the parameter


class Checkpoint(NamedTuple):
    """What a file holds. Its hash is right, but a forger can compute that."""

    path: Path
    state: TrainState
    options: dict[str, Any]  # that the weights belong to; empty in files of earlier editions
    tensors: dict[str, Tensor]


def save_checkpoint(
    path: Path,
    model: GPT,
    state: TrainState,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    options: dict[str, Any] | None = None,
) -> None:
    """Replace the checkpoint `path`; without optimizers it has only what evaluation needs.

    `options` are those that the weights belong to. The checkpoint that last.safetensors was becomes
    previous.safetensors. OSError if there is no room: then all checkpoints are as they were.
    """
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in values.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"state": state.model_dump_json(), "options": json.dumps(options or {})}
    with replacing(
        path, path.with_name("previous.safetensors") if path.name == "last.safetensors" else None
    ) as new:
        write_tensors(new, tensors, metadata | {"sha256": _hash(tensors, metadata)})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. OSError with what the system says: "No space left on device"."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        told = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
        if told is None:
            raise OSError(errno.EIO, str(error)) from None
        raise OSError(int(told[2]), told[1]) from None


def load_checkpoint(path: Path, model: GPT, optimizers: Optimizers | None = None) -> TrainState:
    """Load the weights and, if given, the optimizers; returns the state. UserError if missing or
    damaged.
    """
    return copy_checkpoint(open_checkpoint(path), model, optimizers)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of what cannot be read, or does not fit, that the checkpoint is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except (PermissionError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise DamagedError(f"{path}: damaged ({reason[0]})") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """What a checkpoint holds. UserError if it is missing or damaged."""
    with _damage(path):
        # says why, where safetensors says "No such file" of all that it cannot open
        path.open("rb").close()
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.pop("sha256", "") != _hash(tensors, metadata):
            raise ValueError("its content does not match its sha256")
        state = TrainState.model_validate_json(metadata["state"], strict=True)
        options = dict(json.loads(metadata.get("options", "{}")))
        translate(options, is_saved=True)  # of an earlier edition
        return Checkpoint(path, state, options, tensors)


def check_options(saved: Checkpoint, cfg: Config) -> None:
    """UserError that names the options with which the weights would be another model."""
    now = kept_options(cfg)
    wrong = [
        f"{name}={saved.options[name]!s:.40}, not {name}={now[name]!s:.40}"
        for name in now
        if name in saved.options and saved.options[name] != now[name]
    ]
    if wrong:
        raise UserError(
            f"{saved.path}: its weights belong to {'; '.join(wrong)}; set that back in "
            f"{saved.path.with_name('config.toml')}, or train another run"
        )


def copy_checkpoint(
    saved: Checkpoint, model: GPT, optimizers: Optimizers | None = None
) -> TrainState:
    """Copy the weights and, if given, the optimizers' states; returns the state.

    DamagedError if they do not fit: then nothing is copied.
    """
    with _damage(saved.path):
        own = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        weights = {
            name: tensor for name, tensor in saved.tensors.items() if name.startswith("model.")
        }
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if shapes != {name: p.shape for name, p in own.items()}:
            raise DamagedError(f"{saved.path}: holds another model than the options describe")
        for name, tensor in weights.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}")
        has_states = saved.state.applied_steps > 0
        optimizer_states = _read_optimizers(saved.tensors, optimizers or [], has_states)
        # All of it fits: only now is any of it used.
        for name, p in own.items():
            p.copy_(weights[name])
        for optimizer, values in zip(optimizers or [], optimizer_states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
        return saved.state


def _read_optimizers(
    tensors: dict[str, Tensor], optimizers: Optimizers, has_states: bool
) -> list[State]:
    """The state of each optimizer, from the tensors of a checkpoint; empty if none has made a step:
    not `has_states`.

    ValueError if there is not exactly what the optimizers keep of their parameters.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    if not optimizers or not (found or has_states):
        return [{} for _ in optimizers]
    states: list[State] = []
    for number, optimizer in enumerate(optimizers):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        state: State = {}
        for index, p in enumerate(params):
            state[index] = {}
            for key, shape in state_shapes(optimizer, p).items():
                name = f"optimizer.{number}.{index}.{key}"
                state[index][key] = _take(found, name, shape)
        states.append(state)
    if found:
        raise ValueError(f"{min(found)} belongs to no parameter")
    return states


def _take(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Remove a tensor of an optimizer's state; ValueError if it is not there as expected."""
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise ValueError(f"{name} is missing")
    if tensor.dtype != torch.float32 or tensor.shape != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}, not float32 {tuple(shape)}")
    if name.endswith(".step") and not 1 <= tensor < math.inf:
        raise ValueError(f"{name} is {float(tensor)}")
    return tensor


def load_last(run: Run, model: GPT, optimizers: Optimizers) -> tuple[TrainState, str]:
    """The newest whole checkpoint of a run to resume, and what the user should know about it.

    If last is damaged, that is previous; if that is damaged too, best, whose optimizers start anew.
    """
    remarks: list[str] = []
    for name in ("last", "previous", "best"):
        path = run.path / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            saved = open_checkpoint(path)
            check_options(saved, run.cfg)
            state = copy_checkpoint(saved, model, optimizers if name != "best" else None)
        except DamagedError as error:
            remarks.append(str(error))
            continue
        if remarks or name == "best":
            remarks.append(
                f"using {path.name} instead"
                + ("; the optimizers start anew" if name == "best" else "")
            )
        state.nonfinite_in_a_row = 0  # a run that stopped for that has a new chance
        if "windows" not in state.model_fields_set:  # a checkpoint of an earlier edition
            batch_size, _ = run.changes.get("batch_size", [run.cfg.optim.batch_size, None])
            state.windows = state.step * batch_size
        best_step, lost = _read_best_step(run.path / "best.safetensors")
        if best_step is None and state.best_nll is not None:
            remarks.append(f"{lost}: the next model that is evaluated becomes the best")
        if best_step is None or best_step > state.step:  # or it is of steps that are taken anew
            state.forget_best()
        # step 0 is the same as a new run
        return state if state.step else TrainState(), "; ".join(remarks)
    if remarks or (
        run.cfg.run.init_from == "resume"
        and any(record["step"] > 0 for record in run.read_metrics())
    ):
        raise UserError(
            f"{'; '.join(remarks) or f'{run.path}: its checkpoints are gone'}; no whole checkpoint is "
            "left: start again without --init_from=resume"
        )
    remark = "stopped before its first checkpoint"
    if run.source:
        remark += f"; {load_source(run, model)}"
    return TrainState(), remark


def _read_best_step(path: Path) -> tuple[int | None, str]:
    """The step of a checkpoint. If it is missing or damaged, None, and what is wrong.

    All of it is read: damage would otherwise show after the last step, where nothing can replace
    it.
    """
    try:
        return open_checkpoint(path).state.step, ""
    except UserError as error:
        return None, str(error)


def load_start(run: Run, model: GPT, optimizers: Optimizers) -> tuple[TrainState, str]:
    """Where training starts: at the last checkpoint, with the weights of another model, or from
    scratch.

    Returns the state, and what the user should know about it.
    """
    if run.is_resumed:
        return load_last(run, model, optimizers)
    return TrainState(), load_source(run, model) if run.source else ""


def load_source(run: Run, model: GPT) -> str:
    """Load the weights of --init_from=MODEL; returns what to say."""
    source = open_run(Path(run.source))
    weights = dict(read_model(source, "best")[0].named_parameters())
    # of positions, a smaller block_size needs the first ones only
    for name, p in model.named_parameters():
        p.detach().copy_(weights[name].detach()[: len(p)])
    return f"starts with the weights of {source.path}"


def load_model(run: Run, checkpoint: str, device: Device) -> tuple[GPT, TrainState]:
    """The model of a run's `best` or `last` checkpoint, for prediction only, and its state."""
    model, state = read_model(run, checkpoint)
    return for_prediction(model.to(device.torch_device), device), state


def read_model(run: Run, checkpoint: str) -> tuple[GPT, TrainState]:
    """The model of a run's `best` or `last` checkpoint, on the CPU in float32, and its state.

    UserError if it is missing or damaged, or config.toml describes another model.
    """
    other = "best" if checkpoint == "last" else "last"
    try:
        saved = open_checkpoint(run.path / f"{checkpoint}.safetensors")
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None
    check_options(saved, run.cfg)
    num_params = sum(
        tensor.numel() for name, tensor in saved.tensors.items() if name.startswith("model.")
    )
    # before it is built: it may be huge
    if num_params != run.cfg.model.num_params(run.info.vocab_size):
        raise UserError(f"{saved.path}: holds another model than the options describe")
    model = GPT(run.cfg.model, run.info.vocab_size)
    try:
        return model, copy_checkpoint(saved, model)
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None


def for_prediction(model: GPT, device: Device) -> GPT:
    """The model with the weights of its products in device.dtype, where autocast would cast them at
    every call.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight is not model.wte.weight:
            module.to(device.dtype)
            if (
                device.torch_device.type == "cpu"
                and device.dtype == torch.float32
                and module.out_features > module.in_features
            ):
                # One token's product with a weight of many rows reads it twice as fast from the
                # transposed layout.
                module.weight.data = module.weight.data.t().contiguous().t()
    return model.eval()


def load_teacher(path: str, tokenizer: Tokenizer, block_size: int, device: Device) -> GPT:
    """The best model of a run, to learn from; UserError if its tokens differ or its block_size is
    smaller.
    """
    run = open_run(Path(path))
    if run.tokenizer != tokenizer:
        raise UserError(
            f"teacher={path}: has other tokens than this corpus; it should be a run on the same corpus, "
            "with the same tokenizer and documents"
        )
    if run.cfg.model.block_size < block_size:
        raise UserError(
            f"teacher={path}: its block_size is {run.cfg.model.block_size}, less than {block_size}"
        )
    return load_model(run, "best", device)[0]


def _hash(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of names, shapes, dtypes and bytes of all tensors, and of the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
