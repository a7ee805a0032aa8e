"""The weights of a GPT under the names that they have in Hugging Face's transformers, and back.

The models are those of huggingface/options.py. There, GPT-2 stores the weights of its linear layers
as (in, out), and nanochat's queries, keys and values are three layers.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError
from config.schema import ModelConfig
from model import GPT

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # for several files: which weights are in which
# of each module here, the modules there whose rows follow one another in it
Names = dict[str, list[str]]
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")


def module_names(cfg: ModelConfig) -> Names:
    """Name the modules there that each module here holds.

    The names have no prefix `transformer.` or `model.`, which some files have and others do not.
    """
    if cfg.is_gpt2:
        outer: Names = {"wte": ["wte"], "wpe": ["wpe"], "norm": ["ln_f"]}
        block: Names = {
            "norm1": ["ln_1"],
            "attn.qkv": ["attn.c_attn"],
            "attn.proj": ["attn.c_proj"],
            "norm2": ["ln_2"],
            "mlp.fc": ["mlp.c_fc"],
            "mlp.proj": ["mlp.c_proj"],
        }
    else:
        outer = {"wte": ["embed_tokens"]}
        block = {
            "attn.qkv": [f"self_attn.{each}_proj" for each in "qkv"],
            "attn.proj": ["self_attn.o_proj"],
            "mlp.fc": ["mlp.fc1"],
            "mlp.proj": ["mlp.fc2"],
        }
    blocks = "h" if cfg.is_gpt2 else "layers"
    return outer | {
        f"blocks.{layer}.{ours}": [f"{blocks}.{layer}.{each}" for each in theirs]
        for layer in range(cfg.n_layer)
        for ours, theirs in block.items()
    }


def to_hugging_face(model: GPT) -> dict[str, Tensor]:
    """Name the weights of a model, which options.to_config_json can describe, as they do there."""
    cfg = model.cfg
    if cfg.form == "nanogpt":  # there GPT-2 has biases: these are zero
        weights = model.state_dict()
        model = GPT(cfg.model_copy(update={"form": "gpt2"}), model.vocab_size)
        model.load_state_dict(weights, strict=False)
    prefix = "model"
    if cfg.is_gpt2:
        prefix = "transformer"
    names = module_names(cfg)
    tensors = {}
    for name, p in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if module == "lm_head":
            tensors[name] = p.detach().clone()
            continue
        parts = p.detach().chunk(len(names[module]))
        for theirs, part in zip(names[module], parts, strict=True):
            turned = _turn(cfg.is_gpt2, module, part)
            tensors[f"{prefix}.{theirs}.{kind}"] = turned.clone().contiguous()
    return tensors


def from_hugging_face(cfg: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as we do, in float32. Positions after block_size are left out.

    LookupError if one is missing, ValueError if one has no floating-point numbers.
    """
    theirs = {}
    for name, tensor in tensors.items():
        theirs[name.removeprefix("transformer.").removeprefix("model.")] = tensor
    weights = {}
    if not cfg.tied:
        weights["lm_head.weight"] = theirs["lm_head.weight"]
    for module, names in module_names(cfg).items():
        for kind in ("weight", "bias"):
            if kind == "bias" and f"{names[0]}.bias" not in theirs:
                continue
            parts = [_turn(cfg.is_gpt2, module, theirs[f"{name}.{kind}"]) for name in names]
            if len(parts) == 1:
                weights[f"{module}.{kind}"] = parts[0]
            else:
                weights[f"{module}.{kind}"] = torch.cat(parts)
    if cfg.is_gpt2:
        weights["wpe.weight"] = weights["wpe.weight"][: cfg.block_size]
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}")
    return {name: tensor.float() for name, tensor in weights.items()}


def _turn(is_gpt2: bool, module: str, tensor: Tensor) -> Tensor:
    """Transpose a weight of GPT-2's linear modules, which is (in, out) there."""
    turns = is_gpt2 and tensor.ndim == 2 and module.endswith(LINEAR)
    return tensor.mT if turns else tensor


def load_weights(path: Path, cfg: ModelConfig, vocab_size: int) -> GPT:
    """Load the model of a directory; it is built when its weights are known to be there.

    Rows of a padded vocabulary, and those of added tokens that are left out, are left out too.
    """
    try:
        tensors: dict[str, Tensor] = {}
        for file, names in _weight_files(path).items():
            inside = load_file(path / file)
            tensors |= {name: inside[name] for name in names or inside}
        weights = from_hugging_face(cfg, tensors)
        rows = len(weights["wte.weight"])
        if rows < vocab_size:
            raise UserError(
                f"{path}: its tokenizer.json has {vocab_size:,} tokens, and its embedding has "
                f"{rows:,} rows: they do not belong together"
            )
        for name in {"wte.weight", "lm_head.weight"} & weights.keys():
            weights[name] = weights[name][:vocab_size]
        model = GPT(cfg, vocab_size)
        model.load_state_dict(weights, strict=not cfg.tied)
        return model
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its .safetensors do not hold the model of its config.json ({reason:.200})"
        ) from None


def _weight_files(path: Path) -> dict[str, list[str]]:
    """Find the files that hold a model's weights, with the names in each; no names = all in it.

    Other .safetensors beside them are copies, or something else.
    """
    index = path / INDEX
    if not index.is_file():
        if not (path / WEIGHTS).is_file():
            raise UserError(
                f"{path}: has no {WEIGHTS} and no {INDEX}; other formats are not read: save it "
                "with save_pretrained of transformers"
            )
        return {WEIGHTS: []}
    files: dict[str, list[str]] = {}
    try:
        for name, file in json.loads(index.read_bytes())["weight_map"].items():
            if Path(file).name != file or not (path / file).is_file():
                raise UserError(
                    f"{index}: names {file}, which is not there; get the file, or, if {WEIGHTS} "
                    "is the whole model, remove the index"
                )
            files.setdefault(file, []).append(name)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: cannot be used ({error!s:.200})") from None
    return files
