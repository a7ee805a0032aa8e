"""A checkpoint restores all of a training; all in it is checked before any of it is used.

A forger can compute the right hash, so it proves nothing about what a file holds.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError
from config.schema import Config, ModelConfig, OptimConfig
from engine.checkpoint import Optimizers, save_checkpoint
from engine.optim import make_optimizers
from engine.state import TrainState
from model import GPT
from tests.conftest import CPU, load_checkpoint, make_batch, make_model, take_step, write_checkpoint

STEP = 7
ADAM_FIRST = "optimizer.0.0"
MUON_FIRST = "optimizer.1.0"


Tensors = dict[str, Tensor | None]


def small_training(steps: int = 1) -> tuple[GPT, Optimizers]:
    """Make a model and its optimizers, and take some steps."""
    torch.manual_seed(0)
    shape = ModelConfig(block_size=2, n_layer=1, n_head=1, n_embd=2)
    model = GPT(shape, 3)
    optimizers = make_optimizers(model, OptimConfig())
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Save a checkpoint."""
    model, optimizers = small_training()
    save_checkpoint(tmp_path / "last.safetensors", model, TrainState(step=STEP), optimizers)
    return tmp_path / "last.safetensors"


def forge(path: Path, tensors: Tensors, state: dict[str, str] | None = None) -> None:
    """Replace tensors (None: remove) and the JSON of numbers, and give the file its right hash."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata["sha256"]
    content = load_file(path)
    for name, tensor in tensors.items():
        content.pop(name, None)
        if tensor is not None:
            content[name] = tensor
    numbers = json.loads(metadata["state"])
    texts = {name: json.dumps(number) for name, number in numbers.items()}
    texts |= state or {}
    items = [f'"{name}": {text}' for name, text in texts.items()]
    metadata["state"] = "{" + ", ".join(items) + "}"
    write_checkpoint(path, content, metadata)


def everything(model: GPT, optimizers: Optimizers) -> list[Any]:
    return [model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)]


def assert_damaged(path: Path) -> None:
    """It is refused as damaged, and nothing of it was copied."""
    model, optimizers = small_training(steps=2)
    with pytest.raises(UserError, match=r"last\.safetensors: damaged \("):
        load_checkpoint(path, model, optimizers)
    expected = everything(*small_training(steps=2))
    torch.testing.assert_close(everything(model, optimizers), expected, rtol=0, atol=0)


def test_what_is_not_forged_is_loaded(path: Path) -> None:
    forge(path, {})
    model, optimizers = small_training(steps=0)
    assert load_checkpoint(path, model, optimizers).step == STEP
    expected = everything(*small_training())
    torch.testing.assert_close(everything(model, optimizers), expected, rtol=0, atol=0)


SHAPES: list[Tensors] = [
    {f"{ADAM_FIRST}.exp_avg": torch.zeros(1)},  # fused AdamW would read behind it
    {f"{ADAM_FIRST}.exp_avg": torch.zeros(2, 3)},
    {f"{ADAM_FIRST}.exp_avg_sq": torch.zeros(0)},
    {f"{ADAM_FIRST}.exp_avg_sq": torch.zeros(1000, 1000)},
    {f"{ADAM_FIRST}.step": torch.zeros(3)},
    {f"{MUON_FIRST}.momentum": torch.zeros(1)},
]
DTYPES: list[Tensors] = [
    {f"{ADAM_FIRST}.exp_avg": torch.zeros(3, 2, dtype=torch.complex64)},
    {f"{ADAM_FIRST}.exp_avg": torch.zeros(3, 2, dtype=torch.float64)},
    {f"{ADAM_FIRST}.step": torch.tensor(1)},
    {f"{MUON_FIRST}.momentum": torch.zeros(6, 2, dtype=torch.int32)},
    {"model.wte.weight": torch.zeros(3, 2, dtype=torch.complex64)},
    {"model.wte.weight": torch.zeros(3, 2, dtype=torch.int64)},
    {"model.wte.weight": torch.zeros(3, 2, dtype=torch.bool)},
]
NAMES: list[Tensors] = [
    {f"{ADAM_FIRST}.exp_avg": None},
    {f"{ADAM_FIRST}.step": None},
    {f"{MUON_FIRST}.momentum": None},
    {f"{ADAM_FIRST}.{key}": None for key in ("step", "exp_avg", "exp_avg_sq")},  # of one parameter
    {f"{ADAM_FIRST}.max_exp_avg_sq": torch.zeros(3, 2)},
    {f"{ADAM_FIRST}.momentum": torch.zeros(3, 2)},
    {"optimizer.0.99.exp_avg": torch.zeros(3, 2)},
    {"optimizer.0.-1.exp_avg": torch.zeros(3, 2)},
    {"optimizer.0.x.exp_avg": torch.zeros(3, 2)},
    {"optimizer.0.0": torch.zeros(3, 2)},
    {"optimizer.7.0.exp_avg": torch.zeros(3, 2)},
    {"something": torch.zeros(3, 2)},
]
NO_STEPS = (-1.0, 0.0, math.nan, math.inf)
STEPS: list[Tensors] = [{f"{ADAM_FIRST}.step": torch.tensor(value)} for value in NO_STEPS]


@pytest.mark.parametrize("forged", SHAPES + DTYPES + NAMES + STEPS, ids=str)
def test_tensors_that_do_not_fit_are_damage(path: Path, forged: Tensors) -> None:
    forge(path, forged)
    assert_damaged(path)


def test_optimizers_that_are_gone_are_damage(path: Path) -> None:
    """A step changed the weights: a training would go on with new optimizers, without a word."""
    forge(path, {name: None for name in load_file(path) if name.startswith("optimizer.")})
    assert_damaged(path)


HUGE = "1" + "0" * 400
BAD_NUMBERS = ["-1", "1e999", "NaN", "Infinity", "-Infinity", HUGE, "true", "[]", '"1"']
BAD_STATES = [{name: number} for name in TrainState.model_fields for number in BAD_NUMBERS]
BAD_STATES += [
    {"step": f"{2**63}"},
    {"tokens": f"{2**63}"},
    {"step": "null"},
    {"mean": "null"},
    {"mean": "1e200"},
    {"variance": "1e300"},
    {"best_nll": "1e300"},
    {"loss_scale": "0"},
    {"loss_scale": "1e30"},
    {"seconds": "1e300"},
    {"step": "7.0"},
    {"skipped_steps": f"{STEP + 1}"},
    {"nonfinite_steps": f"{STEP + 1}"},
    {"loss_spikes": f"{STEP + 1}"},
    {"skipped_steps": "4", "nonfinite_steps": "4"},
    {"skipped_steps": "7", "loss_spikes": "1"},
    {"nonfinite_in_a_row": "1"},
]


@pytest.mark.parametrize("forged", BAD_STATES, ids=str)
def test_numbers_out_of_range_are_damage(path: Path, forged: dict[str, str]) -> None:
    forge(path, {}, forged)
    assert_damaged(path)


NO_TABLES = ["", "[1]", "7", "null", "[" * 100_000, '{"n_head": 4', "\x00"]


@pytest.mark.parametrize("options", NO_TABLES)
def test_options_that_are_no_table_are_damage(path: Path, options: str) -> None:
    tensors = load_file(path)
    metadata = {"state": TrainState(step=STEP).model_dump_json(), "options": options}
    write_checkpoint(path, tensors, metadata)
    assert_damaged(path)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_training_at_any_step_is_loaded(tmp_path: Path, steps: int) -> None:
    """Its optimizers may have made no step: at step 0, or where all steps were skipped."""
    model, optimizers = small_training(steps)
    saved = TrainState(
        step=5,
        skipped_steps=5 - steps,
        best_nll=-1e-9,
        mean_after_best=0.0,
        mean=3e38,
        variance=9e76,
    )
    save_checkpoint(tmp_path / "last.safetensors", model, saved, optimizers)
    other, restored = small_training(steps=2)
    assert load_checkpoint(tmp_path / "last.safetensors", other, restored) == saved
    torch.testing.assert_close(
        everything(other, restored), everything(model, optimizers), rtol=0, atol=0
    )
    assert load_checkpoint(tmp_path / "last.safetensors", other) == saved  # for prediction only


def test_a_checkpoint_restores_all_of_a_training(tmp_path: Path) -> None:
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig())
    take_step(model, optimizers, make_batch(), Config(), CPU)
    saved = TrainState(step=7, tokens=123, best_nll=1.5, variance=0.1 + 0.2)
    save_checkpoint(tmp_path / "last.safetensors", model, saved, optimizers)
    other = make_model()
    restored = make_optimizers(other, OptimConfig())
    assert load_checkpoint(tmp_path / "last.safetensors", other, restored) == saved
    for m, o in ((model, optimizers), (other, restored)):
        take_step(m, o, make_batch(1), Config(), CPU, step=1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="needs Linux's /proc",
)
def test_saving_copies_and_reads_nothing(tmp_path: Path) -> None:
    """A large model fits in memory once, not twice: it is written from where it lies."""
    model = make_model(form="gpt2", block_size=400_000)
    # so that everything is imported
    save_checkpoint(tmp_path / "best.safetensors", model, TrainState())
    state = 4 * model.num_params()
    Path("/proc/self/clear_refs").write_text("5")  # peak = now
    before = proc("status", "VmRSS") * 1024
    read = proc("io", "rchar")
    save_checkpoint(tmp_path / "last.safetensors", model, TrainState())
    assert proc("status", "VmHWM") * 1024 - before < state / 4
    assert proc("io", "rchar") - read < state / 4
    assert (tmp_path / "last.safetensors").stat().st_size > state


def proc(file: str, name: str) -> int:
    """Read a number that Linux knows of this process."""
    lines = (line.split() for line in Path(f"/proc/self/{file}").read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{name}:")
