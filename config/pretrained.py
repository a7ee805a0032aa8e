"""A model to start from, --init_from: the directory of a run, one in Hugging Face's format, or the
name of a GPT-2.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from config.errors import UserError, did_you_mean
from config.files import nearest_run
from config.huggingface import from_json
from config.recipe import load_saved
from config.schema import Config, ModelConfig, Section

NOTE = "surprisal"  # in config.json, what only this repository knows of a model
NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MODELS = (
    f"the directory of a run or of a model in Hugging Face's format, or one of {', '.join(NAMES)}"
)
FILES = ("config.json", "tokenizer.json", "model.safetensors")
MAY_DIFFER = {"dropout", "zero_init"}


class DocumentsOptions(Section):
    """The documents of a run, as export.py notes them."""

    eos_text: str | None = Field(None, min_length=1, max_length=2)  # what the eos token stands for
    documents: Literal["none", "lines", "paragraphs"] = "none"
    padded: bool = False
    predict_eos: bool = True


def find_source(name: str) -> Path:
    """The directory of a model, fetched if it is a GPT-2; UserError if there is none."""
    if Path(name).is_dir():
        return Path(name)
    if name not in NAMES:
        raise UserError(f"{name}: should be {MODELS}{nearest_run(Path(name))}")
    by_hand = (
        f"or put {', '.join(FILES)} of openai-community/{name} on the Hugging Face Hub into a folder, and give "
        "its name instead"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: fetching it needs a package: pip install -e '.[huggingface]'; {by_hand}"
        ) from None
    try:
        return Path(snapshot_download(f"openai-community/{name}", allow_patterns=list(FILES)))
    except Exception as error:  # of the network, the hub or the disk: many kinds
        raise UserError(
            f"{name}: could not be fetched ({type(error).__name__}); connect to the network once, "
            f"{by_hand}"
        ) from None


def is_hugging_face(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / "config.toml").is_file()


def read_config(path: Path) -> dict[str, Any]:
    """What config.json of a directory in Hugging Face's format says; UserError if it cannot be
    read.
    """
    try:
        return dict(json.loads((path / "config.json").read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:  # not JSON, or no dictionary
        raise UserError(f"{path}/config.json: cannot be used: {error!s:.200}") from None


def read_shape(path: Path) -> ModelConfig:
    """The model that a directory holds."""
    if not is_hugging_face(path):
        return load_saved(path / "config.toml").model
    try:
        return ModelConfig(**from_json(read_config(path), str(path)))
    except ValidationError as error:  # sizes that no model has
        raise UserError(
            f"{path}/config.json: cannot be used: {error.errors()[0]['msg']:.200}"
        ) from None


def read_documents_options(path: Path) -> DocumentsOptions:
    """What export.py noted of the documents that a model was trained on; without a note the
    defaults.
    """
    try:
        return DocumentsOptions.model_validate(read_config(path).get(NOTE, {}))
    except ValidationError as error:
        raise UserError(
            f"{path}/config.json: {NOTE}: cannot be used: {error.errors()[0]['msg']:.200}"
        ) from None


def adopt_shape(cfg: Config) -> Config:
    """The configuration with the shape and the tokens of the model it starts from.

    UserError for options that ask for another model; only `dropout` and a smaller `block_size` may
    differ.
    """
    source = cfg.run.init_from
    if source not in NAMES and not Path(source).is_dir():
        nearest = did_you_mean(source, ("scratch", "resume", "auto", *NAMES)) or nearest_run(
            Path(source)
        )
        raise UserError(f"init_from={source}: should be scratch, resume, auto, {MODELS}{nearest}")
    shape, asked = (
        read_shape(find_source(source)).model_dump(),
        cfg.model.model_dump(exclude_unset=True),
    )
    kept = {
        name: value
        for name, value in asked.items()
        if name in MAY_DIFFER or (name == "block_size" and value < shape[name])
    }
    wrong = [
        f"{name}={value}: {source} has {name}={shape[name]}"
        for name, value in asked.items()
        if name not in kept and value != shape[name]
    ]
    tokenizer = "gpt2" if source in NAMES and not Path(source).is_dir() else source
    if "tokenizer" in cfg.data.model_fields_set and cfg.data.tokenizer != tokenizer:
        wrong.append(f"tokenizer={cfg.data.tokenizer}: {source} has tokens of its own")
    if wrong:
        raise UserError("\n  ".join(wrong))
    return cfg.model_copy(
        update={
            "model": cfg.model.model_copy(update=shape | kept),
            "data": cfg.data.model_copy(update={"tokenizer": tokenizer}),
        }
    )
