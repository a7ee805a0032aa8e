"""Saves and reads checkpoints: a safetensors file with the model, the optimizers and the state.

A file is written beside its place and renamed, so that a whole one is there at every instant; the
hash of all that it holds is in its metadata. Reading a checkpoint executes nothing.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config.errors import DamagedError, UserError, first_line
from config.files import replacing
from config.old_options import translate
from config.resume import kept_options
from config.size import count_params
from engine.device import Device
from engine.run import Run
from engine.state import TrainState
from model import GPT

MODEL = "model."  # begins the names of a model's weights in a checkpoint
TABLES = "tables."  # and those of its tables, which are packed
OTHER_MODEL = "holds another model than the options describe"
Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Checkpoint:
    """Holds what a file says. Its hash is right, but a forger can compute that."""

    path: Path
    state: TrainState
    options: dict[str, Any]  # that the weights belong to; empty in files of earlier editions
    tensors: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the model; the others are its tables, and the optimizers'."""
        return {name: p for name, p in self.tensors.items() if name.startswith(MODEL)}

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise a UserError that names the options with which these weights are another model."""
        wrong = []
        for name, now in kept_options(options).items():
            saved = self.options.get(name, now)
            if saved != now:
                wrong.append(f"{name}={saved!s:.40}, not {name}={now!s:.40}")
        if wrong:
            raise UserError(
                f"{self.path}: its weights belong to {'; '.join(wrong)}; set that back in "
                f"{self.path.with_name('config.toml')}, or train another run"
            )

    def check_weights(self, model: GPT) -> None:
        """Raise a DamagedError if these are not the weights of such a model."""
        shapes = {name: p.shape for name, p in dense_weights(model).items()}
        if shapes != {name: tensor.shape for name, tensor in self.weights.items()}:
            raise DamagedError(f"{self.path}: {OTHER_MODEL}")
        with telling_damage(self.path):
            model.tables.check(self.tensors)
        for name, tensor in self.weights.items():
            if tensor.dtype != torch.float32:
                raise DamagedError(f"{self.path}: damaged ({name} is {tensor.dtype})")

    def copy_to(self, model: GPT) -> None:
        """Copy the weights into a model; DamagedError if they do not fit: then none is copied."""
        self.check_weights(model)
        for name, weight in dense_weights(model).items():
            weight.copy_(self.tensors[name])
        model.tables.unpack(self.tensors)


def dense_weights(model: GPT) -> dict[str, Tensor]:
    """Name the weights of a model without its tables, as in a checkpoint."""
    weights = {}
    for name, p in model.named_parameters():
        if not name.startswith(TABLES):
            weights[f"{MODEL}{name}"] = p.detach()
    return weights


def save_checkpoint(
    path: Path,
    model: GPT,
    state: TrainState,
    optimizers: Optimizers = (),
    options: dict[str, Any] | None = None,
) -> None:
    """Replace the checkpoint `path`; without optimizers it has only what evaluation needs.

    `options` are those that the weights belong to. The checkpoint that last.safetensors was becomes
    previous.safetensors. OSError if there is no room: then all checkpoints are as they were.
    """
    tensors = dense_weights(model) | model.tables.pack()
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in values.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"state": state.model_dump_json(), "options": json.dumps(options or {})}
    metadata["sha256"] = _hash(tensors, metadata)
    previous = None
    if path.name == "last.safetensors":
        previous = path.with_name("previous.safetensors")
    with replacing(path, previous) as new:
        write_tensors(new, tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. OSError with what the system says: "No space left on device"."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        told = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
        if told is None:
            raise OSError(errno.EIO, str(error)) from None
        raise OSError(int(told[2]), told[1]) from None


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Say of what cannot be read, or does not fit, that the checkpoint is damaged."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except (PermissionError, IsADirectoryError) as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise DamagedError(f"{path}: damaged ({first_line(error)})") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. UserError if it is missing or damaged."""
    with telling_damage(path):
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


def read_model(run: Run, checkpoint: str) -> tuple[GPT, TrainState]:
    """Read the model of a run's `best` or `last` checkpoint, on the CPU in float32, and its state.

    UserError if it is missing or damaged, or config.toml describes another model.
    """
    other = "best" if checkpoint == "last" else "last"
    try:
        saved = read_checkpoint(run.path / f"{checkpoint}.safetensors")
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None
    saved.check_options(run.cfg.options())
    num_params = sum(tensor.numel() for tensor in saved.weights.values())
    # before it is built: it may be huge
    if num_params != count_params(run.cfg.model, run.info.vocab_size):
        raise UserError(f"{saved.path}: {OTHER_MODEL}")
    model = GPT(run.cfg.model, run.info.vocab_size, run.cfg.tables)
    try:
        saved.copy_to(model)
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None
    return model, saved.state


def load_model(run: Run, checkpoint: str, device: Device) -> tuple[GPT, TrainState]:
    """Load the model of a run's `best` or `last` checkpoint, for prediction only, and its state."""
    model, state = read_model(run, checkpoint)
    return for_prediction(model.to(device.torch_device), device), state


def for_prediction(model: GPT, device: Device) -> GPT:
    """Keep the weights of products in device.dtype, which autocast would cast at every call."""
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module.weight is model.wte.weight:
            continue
        module.to(device.dtype)
        is_cpu = device.torch_device.type == "cpu"
        is_tall = module.out_features > module.in_features
        if is_cpu and is_tall and device.dtype == torch.float32:
            # One token's product with a weight of many rows reads it twice as fast from the
            # transposed layout.
            module.weight.data = module.weight.data.t().contiguous().t()
    return model.eval()


def _hash(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of names, shapes, dtypes and bytes of all tensors, and of the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
