"""Write a run as a directory in Hugging Face's format, which transformers loads."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from config.files import replacing, write_atomically
from data.tokenizer import EOS, Tokenizer
from engine.checkpoint import read_model, write_tensors
from engine.device import DTYPES
from engine.run import Run
from huggingface.directory import NOTE, DocumentsOptions, new_directory
from huggingface.options import to_config_json
from huggingface.tokens import to_tokenizer_json
from huggingface.weights import to_hugging_face
from surprisal import perplexity

YES_OR_NO = {True: "yes", False: "no"}
MEASURED = {"best_val_nll", "best_val_bits_per_byte"}  # in the last line of metrics.jsonl


def export(run: Run, to: Path, checkpoint: str) -> str:
    """Write the best or the last model of a run; returns a line about it.

    UserError for a model that transformers does not have, and for a full disk.
    """
    model, state = read_model(run, checkpoint)
    tokenizer = run.tokenizer
    cfg = to_config_json(run.cfg, tokenizer, str(run.path))
    architecture = cfg["architectures"][0]
    if tokenizer.eos is not None:
        data = run.cfg.data
        note = DocumentsOptions(
            eos_text=tokenizer.eos_text,
            documents=data.documents,
            padded=data.padded,
            predict_eos=data.predict_eos,
        )
        cfg[NOTE] = note.model_dump()
    files = describe_tokenizer(tokenizer, run.cfg.model.block_size) | {"config.json": cfg}
    card = model_card(run, state.step, architecture)
    with new_directory(to) as new:
        for name, content in files.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(new / name, text.encode())
        write_atomically(new / "README.md", card.encode())
        with replacing(new / "model.safetensors") as weights:
            write_tensors(weights, to_hugging_face(model), {"format": "pt"})
    return f"{to}: {architecture} with {model.num_params():,} parameters, of step {state.step:,}"


def describe_tokenizer(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """Return the JSON files that tell transformers how texts begin, end and become tokens."""
    eos = None
    if tokenizer.eos is not None:
        eos = EOS.decode()
    return {
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.8,
            "bos_token_id": tokenizer.eos,
            "eos_token_id": tokenizer.eos,
        },
        "tokenizer.json": to_tokenizer_json(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos,
            "eos_token": eos,
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        },
    }


def dtype_of_loss(history: Path) -> str:
    """Say in a sentence in which dtype the loss in metrics.jsonl was measured; "" if unknown.

    The exported weights are float32.
    """
    device = ""
    with suppress(OSError, ValueError, LookupError, TypeError):  # the file is missing or damaged
        last_start = history.read_bytes().splitlines()[-1]
        device = str(from_json(last_start)["device"])
    dtype = device.rpartition(", ")[2]  # "cpu with 2 threads, AVX512, bfloat16"
    if dtype not in DTYPES:
        return ""
    if dtype == "float32":
        return " It was measured in float32, as these weights are."
    return (
        f" It was measured with matrix products in {dtype}; in float32, as these weights are, it "
        "differs a little."
    )


def model_card(run: Run, step: int, architecture: str) -> str:
    """Say what the model is, and its exact loss."""
    info = run.info
    measured = [
        record
        for record in run.read_metrics()
        if record.get("best_step") == step and record.keys() >= MEASURED
    ]
    loss = "Its loss was not measured."
    if measured:
        dtype = dtype_of_loss(run.path / "history.jsonl")
        nll = measured[-1]["best_val_nll"]
        bits = measured[-1]["best_val_bits_per_byte"]
        loss = (
            f"Its loss is {nll:.4f} nats per token on all {info.val.targets:,} targets of the "
            f"{info.val_kind} split: {bits:.4f} bits per byte, perplexity {perplexity(nll):.3f}."
            f"{dtype}"
        )
    origin = f"A {architecture}, trained with Surprisal on the text `{info.name}` "
    if not info.has_text:
        origin = f"A {architecture}, which Surprisal read from `{info.name}` "
    table = ""
    if info.baselines:
        table = "| baseline | nats per token | read the training text | learns while it reads |\n"
        table += "|---|---|---|---|\n"
    for baseline in sorted(info.baselines, key=lambda baseline: -baseline.nats_per_token):
        name = baseline.name.replace("log|V|", "log\\|V\\|")
        nats = f"{baseline.nats_per_token:.4f}"
        has_read = YES_OR_NO[baseline.has_read]
        table += f"| {name} | {nats} | {has_read} | {YES_OR_NO[baseline.learns]} |\n"
    if table:
        table += "\n"
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {run.name}\n\n"
        f"{origin}({info.train.tokens:,} tokens of kind {info.tokenizer}, |V| = "
        f"{info.vocab_size:,}), step {step:,}. {loss}\n\n{table}"
        f"It read at most {run.cfg.model.block_size:,} tokens at once.\n"
    )
