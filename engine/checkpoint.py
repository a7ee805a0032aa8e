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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

MODEL = "model."  # begins the names of a model's weights in a checkpoint
OTHER_MODEL = "holds another model than the options describe"
Optimizers = Sequence[torch.optim.Optimizer]
OptimizerState = dict[int, dict[str, Tensor]]  # by the number of the parameter


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Its hash is right, but a forger can compute that."""

    path: Path
    state: TrainState
    options: dict[str, Any]  # that the weights belong to; empty in files of earlier editions
    tensors: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of the model; the other tensors belong to the optimizers."""
        return {name: p for name, p in self.tensors.items() if name.startswith(MODEL)}

    def check_options(self, cfg: Config) -> None:
        """Raise a UserError that names the options with which these weights are another model."""
        wrong = []
        for name, now in kept_options(cfg).items():
            saved = self.options.get(name, now)
            if saved != now:
                wrong.append(f"{name}={saved!s:.40}, not {name}={now!s:.40}")
        if wrong:
            raise UserError(
                f"{self.path}: its weights belong to {'; '.join(wrong)}; set that back in "
                f"{self.path.with_name('config.toml')}, or train another run"
            )

    def copy_to(self, model: GPT, optimizers: Optimizers = ()) -> None:
        """Copy the weights and, if given, the optimizers' states.

        DamagedError if they do not fit: then nothing is copied.
        """
        own = {f"{MODEL}{name}": p.detach() for name, p in model.named_parameters()}
        with _damage(self.path):
            shapes = {name: tensor.shape for name, tensor in self.weights.items()}
            if shapes != {name: p.shape for name, p in own.items()}:
                raise DamagedError(f"{self.path}: {OTHER_MODEL}")
            for name, tensor in self.weights.items():
                if tensor.dtype != torch.float32:
                    raise ValueError(f"{name} is {tensor.dtype}")
            states = self._read_optimizers(optimizers)
            # All of it fits: only now is any of it used.
            for name, p in own.items():
                p.copy_(self.tensors[name])
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    def _read_optimizers(self, optimizers: Optimizers) -> list[OptimizerState]:
        """The state of each optimizer; empty if none has made a step.

        ValueError if there is not exactly what the optimizers keep of their parameters.
        """
        left = self.tensors.keys() - self.weights.keys()
        has_states = bool(left) or self.state.applied_steps > 0
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
                    state[index][key] = self._take_state(name, shape)
                    left.discard(name)
            states.append(state)
        if left:
            raise ValueError(f"{min(left)} belongs to no parameter")
        return states

    def _take_state(self, name: str, shape: torch.Size) -> Tensor:
        """A tensor of an optimizer's state; ValueError if it is not there as expected."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ValueError(f"{name} is missing")
        if tensor.dtype != torch.float32 or tensor.shape != shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name} is {found}, not float32 {tuple(shape)}")
        if name.endswith(".step") and not 1 <= tensor < math.inf:
            raise ValueError(f"{name} is {float(tensor)}")
        return tensor


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
    tensors = {f"{MODEL}{name}": p.detach() for name, p in model.named_parameters()}
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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. UserError if it is missing or damaged."""
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


def load_start(run: Run, model: GPT, optimizers: Optimizers) -> tuple[TrainState, str]:
    """Load what a training starts with: its last checkpoint, or the weights of another run.

    Returns the state, and what the user should know about it.
    """
    remarks: list[str] = []
    if run.is_resumed:
        state = _load_last(run, model, optimizers, remarks)
        if state is not None:
            return state, "; ".join(remarks)
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
    """Load the newest whole checkpoint of a run; None if it stopped before its first.

    Tries last, previous, best, in this order. best has no optimizer states. UserError if none is
    whole. `remarks` gets what the user should know.
    """
    for name in ("last", "previous", "best"):
        path = run.path / f"{name}.safetensors"
        if not path.exists():
            continue
        has_optimizers = name != "best"
        try:
            saved = read_checkpoint(path)
            saved.check_options(run.cfg)
            if has_optimizers:
                saved.copy_to(model, optimizers)
            else:
                saved.copy_to(model)
        except DamagedError as error:
            remarks.append(str(error))
            continue
        if not has_optimizers:
            remarks.append(f"using {path.name} instead; the optimizers start anew")
        elif remarks:
            remarks.append(f"using {path.name} instead")
        _count_windows(saved.state, run)
        _check_best(saved.state, run.path / "best.safetensors", remarks)
        saved.state.nonfinite_in_a_row = 0  # a run that stopped for that has a new chance
        if saved.state.step == 0:  # the same as a new run
            return TrainState()
        return saved.state
    has_trained = any(record["step"] > 0 for record in run.read_metrics())
    if has_trained and run.cfg.run.init_from == "resume" and not remarks:
        remarks.append(f"{run.path}: its checkpoints are gone")
    if remarks:
        raise UserError(
            f"{'; '.join(remarks)}; no whole checkpoint is left: start again without "
            "--init_from=resume"
        )
    return None


def _count_windows(state: TrainState, run: Run) -> None:
    """Count the windows that were read, where a checkpoint of an earlier edition does not."""
    if "windows" not in state.model_fields_set:
        batch_size, _ = run.changes.get("batch_size", [run.cfg.optim.batch_size, None])
        state.windows = state.step * batch_size


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


def read_model(run: Run, checkpoint: str) -> tuple[GPT, TrainState]:
    """The model of a run's `best` or `last` checkpoint, on the CPU in float32, and its state.

    UserError if it is missing or damaged, or config.toml describes another model.
    """
    other = "best" if checkpoint == "last" else "last"
    try:
        saved = read_checkpoint(run.path / f"{checkpoint}.safetensors")
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None
    saved.check_options(run.cfg)
    num_params = sum(tensor.numel() for tensor in saved.weights.values())
    # before it is built: it may be huge
    if num_params != run.cfg.model.num_params(run.info.vocab_size):
        raise UserError(f"{saved.path}: {OTHER_MODEL}")
    model = GPT(run.cfg.model, run.info.vocab_size)
    try:
        saved.copy_to(model)
    except UserError as error:
        raise UserError(f"{error}; try --checkpoint={other}") from None
    return model, saved.state


def load_model(run: Run, checkpoint: str, device: Device) -> tuple[GPT, TrainState]:
    """The model of a run's `best` or `last` checkpoint, for prediction only, and its state."""
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


def load_teacher(path: str, tokenizer: Tokenizer, block_size: int, device: Device) -> GPT:
    """The best model of a run, to learn from.

    UserError if the tokenizer differs or block_size is smaller.
    """
    run = open_run(Path(path))
    if run.tokenizer != tokenizer:
        raise UserError(
            f"teacher={path}: has other tokens than this corpus; it should be a run on the same "
            "corpus, with the same tokenizer and documents"
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
        flat = tensor.cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
