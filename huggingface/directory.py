"""A directory in Hugging Face's format: read what it says of its model, without the weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from pydantic import Field, ValidationError

from config.errors import UserError
from config.files import GPT2_NAMES, is_hugging_face, nearest_run, short_name
from config.schema import ModelConfig
from config.values import Section
from data.tokenizer import Tokenizer, with_eos
from huggingface.options import from_config_json
from huggingface.tokens import from_tokenizer_json

NOTE = "surprisal"  # the key in config.json for what only this repository knows of a model
FILES = ("config.json", "tokenizer.json", "model.safetensors")


class DocumentsOptions(Section):
    """The documents of a run, as the note in config.json keeps them."""

    eos_text: str | None = Field(None, min_length=1, max_length=2)  # what the eos token stands for
    documents: Literal["none", "lines", "paragraphs"] = "none"
    padded: bool = False
    predict_eos: bool = True


def is_model(name: str) -> bool:
    """Return whether a name is a directory in Hugging Face's format, or that of a GPT-2."""
    path = Path(name)
    return is_hugging_face(path) or (name in GPT2_NAMES and not path.exists())


def fetch(name: str) -> Path:
    """Return the directory of a model; download it if it is a GPT-2. UserError if that fails."""
    if Path(name).is_dir():
        return Path(name)
    by_hand = (
        f"or put {', '.join(FILES)} of openai-community/{name} on the Hugging Face Hub into a "
        "folder, and give its name instead"
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
            f"{name}: could not be fetched ({type(error).__name__}); connect to the network "
            f"once, {by_hand}"
        ) from None


def read_config_json(path: Path) -> dict[str, Any]:
    """Read config.json of a directory; UserError if it cannot be read."""
    try:
        return dict(json.loads((path / "config.json").read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:  # not JSON, or no dictionary
        raise UserError(f"{path}/config.json: cannot be used: {error!s:.200}") from None


def read_shape(path: Path) -> ModelConfig:
    """Read the options of the model; UserError if this repository has no such model."""
    try:
        return ModelConfig(**from_config_json(read_config_json(path), str(path)))
    except ValidationError as error:  # sizes that no model has
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}/config.json: cannot be used: {reason:.200}") from None


def read_documents_options(path: Path) -> DocumentsOptions:
    """Read the note on documents; without a note the defaults."""
    try:
        return DocumentsOptions.model_validate(read_config_json(path).get(NOTE, {}))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{path}/config.json: {NOTE}: cannot be used: {reason:.200}") from None


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json; UserError if this repository has no such tokenizer."""
    path = folder / "tokenizer.json"
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file")
    eos = read_config_json(folder).get("eos_token_id")
    try:
        tokenizer = from_tokenizer_json(json.loads(path.read_bytes()), str(path), eos)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    eos_text = read_documents_options(folder).eos_text
    if eos_text is None:
        return tokenizer
    return with_eos(tokenizer, eos_text, str(folder))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a directory beside `path` to write into; it gets that name when all of it is there.

    It is removed if anything fails, Ctrl-C included. UserError for a full disk.
    """
    new = path.with_name(f".{short_name(path.name)}.tmp")
    rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        new.rename(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None
    finally:
        rmtree(new, ignore_errors=True)


def describe_choices(name: str) -> str:
    """Say what convert.py takes, for a name that is neither a run nor a model."""
    return (
        f"{name}: should be the directory of a run, to write it in Hugging Face's format; or a "
        "directory in that format, or one of "
        f"{', '.join(GPT2_NAMES)}, to make a run of it{nearest_run(Path(name))}"
    )
