"""Puts a run's model into its page, as text; page/web/model.js predicts with it.

It imports no torch: a page of runs is written without it.
"""

import base64
import json
import shlex
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from config.errors import UserError
from config.old_options import translate
from config.resume import kept_options
from config.schema import ModelConfig
from config.size import count_params
from engine.run import Run

MAX_PARAMS = 1_000_000  # 2.7 MB of text in float16
MODEL = "model."  # begins the names of a model's weights in a checkpoint
FLOAT16_MAX = 65_504.0
DType = Literal["float16", "float32"]


def content_of_model(run: Run, dtype: DType = "float16") -> dict[str, Any]:
    """Collect the best model of a run.

    If the page cannot have it, `why` says so, and `commands` do what the page would.
    """
    try:
        check_fits(run)
        weights = read_weights(run)
    except UserError as error:
        path = shlex.quote(str(run.path))
        commands = [
            f'python evaluate.py {path} --explain="a sentence"',
            f'python sample.py {path} --prompt="a sentence"',
        ]
        return {"why": str(error), "commands": commands}
    tokenizer = run.tokenizer
    cfg = run.cfg.model
    return {
        "cfg": cfg.model_dump() | {"is_gpt2": cfg.is_gpt2},
        "vocabulary": [token.decode(errors="replace") for token in tokenizer.token_bytes],
        "eos": tokenizer.eos,
        "end": tokenizer.end,  # with which the model ends a text
        "context": tokenizer.encode_prompt("")[0],  # comes before a text: eos or a new line
        "weights": {name: to_text(values, dtype) for name, values in weights.items()},
    }


def check_fits(run: Run) -> None:
    """Raise a UserError for a model that is too large, or that model.js cannot compute."""
    kind = run.tokenizer.kind
    if kind != "char":
        raise UserError(f"its tokens are {kind}, and only char tokens can be made in a page")
    if run.cfg.tables.are_used:
        raise UserError("it has tables of n-grams, which are too large for a page")
    num_params = count_params(run.cfg.model, run.info.vocab_size)
    if num_params > MAX_PARAMS:
        raise UserError(f"it has {num_params:,} parameters, and a page at most {MAX_PARAMS:,}")


def read_weights(run: Run) -> dict[str, np.ndarray]:
    """Read the weights of best.safetensors by name; UserError if there are none that fit."""
    path = run.path / "best.safetensors"
    if not path.is_file():
        raise UserError(f"there is no {path.name}")
    shapes = shapes_of(run.cfg.model, run.info.vocab_size)
    try:
        options, weights = open_weights(path, shapes)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path.name} cannot be read ({error})") from None
    now = kept_options(run.cfg.options())
    is_same = all(options.get(name, value) == value for name, value in now.items())
    if not is_same or not weights:
        raise UserError(f"{path.name} holds another model than config.toml describes")
    for name, values in weights.items():
        if not np.abs(values).max() <= FLOAT16_MAX:  # nor if it is not a number
            raise UserError(f"its weights, in {name}, are too large for float16: it diverged")
    return weights


def open_weights(
    path: Path, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a checkpoint's options and, if they have these names and shapes, the model's weights.

    Others are not read: a stranger's file may have any size.
    """
    found = {}
    weights = {}
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        for name in file.keys():  # noqa: SIM118
            if name.startswith(MODEL):
                shape = file.get_slice(name).get_shape()
                found[name.removeprefix(MODEL)] = tuple(shape)
        if found == shapes:
            weights = {name: file.get_tensor(f"{MODEL}{name}") for name in shapes}
    options = dict(json.loads(metadata.get("options", "{}")))
    translate(options, is_saved=True)  # of an earlier edition
    return options, weights


def shapes_of(cfg: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name the weights of a GPT without tables, with their shapes, as model.py has them."""
    C = cfg.n_embd
    table = (vocab_size, C)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": table}
    if cfg.is_gpt2:
        shapes["wpe.weight"] = (cfg.block_size, C)
    if cfg.smear:
        shapes["smear"] = (C,)
    if not cfg.tied:
        shapes["lm_head.weight"] = table
    linears = {"attn.qkv": (3 * C, C), "attn.proj": (C, C)}
    linears |= {"mlp.fc": (4 * C, C), "mlp.proj": (C, 4 * C)}
    norms = ["norm"]
    for layer in range(cfg.n_layer):
        norms += [f"blocks.{layer}.norm1", f"blocks.{layer}.norm2"]
        for name, shape in linears.items():
            shapes[f"blocks.{layer}.{name}.weight"] = shape
            if cfg.has_bias:
                shapes[f"blocks.{layer}.{name}.bias"] = shape[:1]
    for name in norms:
        if cfg.is_gpt2:
            shapes[f"{name}.weight"] = (C,)
        if cfg.has_bias:
            shapes[f"{name}.bias"] = (C,)
    return shapes


def to_text(values: np.ndarray, dtype: DType) -> dict[str, Any]:
    """Write a tensor as base64 of its numbers, row after row, the low byte of each first."""
    kind = np.dtype(dtype).newbyteorder("<")
    text = base64.b64encode(values.astype(kind).tobytes()).decode()
    return {"shape": list(values.shape), "dtype": dtype, "base64": text}
