"""Make an ordinary run of a model in Hugging Face's format."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from config.files import write_atomically
from config.recipe import to_toml
from config.resume import kept_options
from config.schema import Config, DataConfig, RunConfig
from data.info import CorpusInfo, SplitInfo
from engine.checkpoint import save_checkpoint
from engine.metrics import append_line
from engine.state import TrainState
from huggingface.directory import (
    fetch,
    new_directory,
    read_documents_options,
    read_shape,
    read_tokenizer,
)
from huggingface.weights import load_weights


def adopt(name: str, to: Path) -> str:
    """Write a run that holds the model; returns a line about it.

    How the model was trained is unknown: the run has no text and no metrics. Its weights are
    float32, and so is the dtype in which its loss is measured unless told otherwise.
    UserError for a model that this repository does not have, and for a full disk.
    """
    path = fetch(name)
    shape = read_shape(path)
    tokenizer = read_tokenizer(path)
    model = load_weights(path, shape, tokenizer.vocab_size)
    documents = read_documents_options(path).model_dump(exclude={"eos_text"})
    cfg = Config(
        data=DataConfig(corpus="", tokenizer=tokenizer.kind, **documents),
        model=shape,
        run=RunConfig(dtype="float32"),
    )
    nothing = SplitInfo(tokens=0, documents=0, targets=0)
    info = CorpusInfo(
        name=Path(name).name,
        sha256="",
        tokenizer=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        train=nothing,
        val=nothing,
        prompt="",
        baselines=[],
    )
    start = {
        "step": 0,
        "time": datetime.now(UTC).isoformat(),
        "converted_from": name,
        "torch": version("torch"),
    }
    with new_directory(to) as new:
        write_atomically(new / "tokenizer.json", tokenizer.model_dump_json().encode())
        write_atomically(new / "corpus.json", info.model_dump_json(indent=1).encode())
        kept = kept_options(cfg.options())
        save_checkpoint(new / "best.safetensors", model, TrainState(), options=kept)
        append_line(new / "history.jsonl", start)
        write_atomically(new / "config.toml", to_toml(cfg).encode())
    return f"{to}: a run with the {model.num_params():,} parameters of {name}"
