"""Translate the options of a GPT to Hugging Face's config.json, and back.

The models are GPT2LMHeadModel and NanoChatForCausalLM of transformers.
"""

from typing import Any, NamedTuple

from config.errors import UserError
from config.schema import Config
from data.tokenizer import Tokenizer


class Form(NamedTuple):
    """One of their models: what it is called there, and which of our options describe it."""

    architecture: str
    sizes: dict[str, str]  # options of ours by their names there
    options: dict[str, Any]  # of ours, that a model of this form has
    fixed: dict[str, Any]  # options there, which this repository does not vary


FORMS = {
    "gpt2": Form(
        "GPT2LMHeadModel",
        {"n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd"},
        {"qk_norm": False, "embedding_norm": False, "smear": False, "softcap": 0.0},
        {
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
    ),
    "nanochat": Form(
        "NanoChatForCausalLM",
        {
            "max_position_embeddings": "block_size",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "hidden_size": "n_embd",
        },
        {"qk_norm": True, "embedding_norm": True, "smear": False},
        {
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
}
# what neither of them has
NOWHERE = {"max_ngram": 0, "document_attention": False}
# older names of other positions
NEVER = {"rope_theta": 10_000.0, "rope_scaling": None, "partial_rotary_factor": 1.0}


def to_config_json(run_cfg: Config, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """Return config.json of a model; UserError that names what such a model cannot have there."""
    model = run_cfg.model
    kind = "nanochat"
    if model.is_gpt2:
        kind = "gpt2"
    form = FORMS[kind]
    own = model.model_dump() | {"max_ngram": 0}
    if run_cfg.tables.are_used:
        own["max_ngram"] = run_cfg.tables.max_ngram
    others = []
    instead = []  # what to train with
    for option, value in (form.options | NOWHERE).items():
        if own[option] != value:
            others.append(f"{option}={own[option]}".lower())
            instead.append(f"--{option}={value}".lower())
    if others:
        raise UserError(
            f"{name}: {form.architecture}, the nearest model of transformers, has no "
            f"{', '.join(others)}; train with {' '.join(instead)} to export it"
        )
    sizes = {theirs: own[ours] for theirs, ours in form.sizes.items()}
    cfg = {
        "architectures": [form.architecture],
        "model_type": kind,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "float32",
        "tie_word_embeddings": model.tied,
        "bos_token_id": tokenizer.eos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": None,
    }
    cfg |= sizes | form.fixed
    if kind == "gpt2":
        return cfg | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout)
    return cfg | {
        "intermediate_size": 4 * model.n_embd,
        "num_key_value_heads": model.n_head,
        "final_logit_softcapping": model.softcap or None,
        "attention_dropout": model.dropout,
    }


def from_config_json(cfg: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the options in [model]; UserError for a model that this repository does not have."""
    kind = str(cfg.get("model_type", "model without model_type"))
    if kind not in FORMS:
        raise UserError(f"{name}: is a {kind}; should be one of {', '.join(FORMS)}")
    form = FORMS[kind]
    model: dict[str, Any] = {}
    for theirs, ours in form.sizes.items():
        model[ours] = cfg.get(theirs)
        if type(model[ours]) is not int:
            raise UserError(f"{name}/config.json: {theirs} should be a whole number")
    width = model["n_embd"]
    heads = model["n_head"]
    if width % (2 * max(1, heads)):
        raise UserError(
            f"{name}/config.json: a width of {width} in {heads} heads: should be a multiple of "
            "twice that"
        )
    of_width = {"n_inner": 4 * width, "intermediate_size": 4 * width, "num_key_value_heads": heads}
    for option, value in (form.fixed | NEVER | of_width).items():
        if cfg.get(option) not in (None, value):
            raise UserError(
                f"{name}/config.json: {option} is {cfg[option]}; here it can only be {value}"
            )
    model |= form.options | {"form": kind}
    # the values that transformers takes where config.json has none
    is_gpt2 = kind == "gpt2"
    model["tied"] = bool(cfg.get("tie_word_embeddings", is_gpt2))
    if not is_gpt2:
        model["softcap"] = cfg.get("final_logit_softcapping", 15.0) or 0.0
    return model
