"""A run in Hugging Face's format: `python export.py out/shakespeare_char my_model`.

Then `AutoModelForCausalLM.from_pretrained("my_model")` and
`AutoTokenizer.from_pretrained("my_model")` of transformers load it. `python train.py
--init_from=my_model --corpus=FILE` trains it further here.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_core import from_json

from config.cli import load_options
from config.errors import UserError, run_command
from config.files import replacing, short_name, write_atomically
from config.huggingface import to_json
from config.pretrained import NOTE, DocumentsOptions, is_hugging_face
from config.schema import Section
from data.huggingface import to_json as tokenizer_json
from data.tokenizer import EOS
from engine.run import Run, open_run
from surprisal import perplexity

MEASURED = {"best_val_nll", "best_val_bits_per_byte"}  # in the last line of metrics.jsonl


class ExportOptions(Section):
    """What to export."""

    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run")


def read_arguments(argv: list[str]) -> tuple[Run, Path, ExportOptions]:
    """The run, the directory to write, and the options; UserError for a model that cannot be
    expressed there.
    """
    (path, folder), options = load_options(
        ExportOptions, argv, "RUN DIRECTORY", 2, "the run, and a new directory"
    )
    run, to = open_run(Path(path)), Path(folder)
    if is_hugging_face(run.path):
        raise UserError(f"{run.path}: is in Hugging Face's format already")
    if to.exists():
        raise UserError(f"{to}: exists already; name a new directory")
    to_json(run.cfg.model, run.info.vocab_size, run.tokenizer.eos, str(run.path))
    return run, to, options


if __name__ == "__main__":
    run_command(read_arguments)  # mistakes are answered here, because importing torch takes seconds


from engine.checkpoint import read_model, write_tensors
from engine.device import DTYPES
from engine.huggingface import to_hugging_face


def main(argv: list[str]) -> None:
    run, to, options = read_arguments(argv)
    model, state = read_model(run, options.checkpoint)
    tokenizer, eos = run.tokenizer, EOS.decode() if run.tokenizer.eos is not None else None
    cfg = to_json(run.cfg.model, run.info.vocab_size, tokenizer.eos, str(run.path))
    if tokenizer.eos is not None:
        data = run.cfg.data
        note = DocumentsOptions(
            eos_text=tokenizer.eos_text,
            documents=data.documents,
            padded=data.padded,
            predict_eos=data.predict_eos,
        )
        cfg[NOTE] = note.model_dump()
    files: dict[str, Any] = {
        "config.json": cfg,
        "generation_config.json": {
            "do_sample": True,
            "temperature": 0.8,
            "bos_token_id": tokenizer.eos,
            "eos_token_id": tokenizer.eos,
        },
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": eos,
            "eos_token": eos,
            "model_max_length": run.cfg.model.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    new = to.with_name(f".{short_name(to.name)}.tmp")  # gets its name when it is whole
    shutil.rmtree(new, ignore_errors=True)
    try:
        for name, content in files.items():
            write_atomically(new / name, json.dumps(content, indent=1, ensure_ascii=False).encode())
        write_atomically(
            new / "README.md", model_card(run, state.step, cfg["architectures"][0]).encode()
        )
        with replacing(new / "model.safetensors") as weights:
            write_tensors(weights, to_hugging_face(model), {"format": "pt"})
        new.rename(to)
    except OSError as error:  # a full disk, for example
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"{to}: could not be written ({error.strerror or error})") from None
    print(
        f"{to}: {cfg['architectures'][0]} with {model.num_params():,} parameters, of step {state.step:,}"
    )


def measured_in(run: Run) -> str:
    """A sentence: in which dtype the loss in metrics.jsonl was measured; "" if nothing says it.

    The exported weights are float32.
    """
    device = ""
    with suppress(OSError, ValueError, LookupError, TypeError):  # the file is missing or damaged
        last_start = (run.path / "history.jsonl").read_bytes().splitlines()[-1]
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
    """What the model is, and its exact loss."""
    info = run.info
    measured = [
        record
        for record in run.read_metrics()
        if record.get("best_step") == step and record.keys() >= MEASURED
    ]
    loss = "Its loss was not measured."
    if measured:
        nll = measured[-1]["best_val_nll"]
        bits = measured[-1]["best_val_bits_per_byte"]
        loss = (
            f"Its loss is {nll:.4f} nats per token on all {info.val.targets:,} targets of the "
            f"validation split: {bits:.4f} bits per byte, perplexity {perplexity(nll):.3f}."
            f"{measured_in(run)}"
        )
    below = "".join(
        f"| {each.name} | {each.nats_per_token:.4f} |\n".replace("log|V|", "log\\|V\\|")
        for each in sorted(info.baselines, key=lambda each: -each.nats_per_token)
    )
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {run.name}\n\n"
        f"A {architecture}, trained with Surprisal on the text `{info.name}` ({info.train.tokens:,} tokens of kind "
        f"{info.tokenizer}, |V| = {info.vocab_size:,}), step {step:,}. {loss}\n\n"
        + (f"| baseline | nats per token |\n|---|---|\n{below}\n" if below else "")
        + f"It read at most {run.cfg.model.block_size:,} tokens at once.\n"
    )


if __name__ == "__main__":
    run_command(main)
