"""Hugging Face's format, in and out.

`python convert.py gpt2 out/gpt2` makes an ordinary run of a GPT-2, or of a directory in that
format. `python convert.py out/RUN my_model` writes a run as a directory in that format, which
`AutoModelForCausalLM.from_pretrained("my_model")` of transformers loads, and `AutoTokenizer` too.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

from pathlib import Path
from typing import Literal

from pydantic import Field

from config.errors import UserError, run_command, slow_imports
from config.files import is_run
from config.parser import load_options
from config.values import Section
from engine.run import open_run
from huggingface.directory import describe_choices, is_model
from huggingface.options import to_config_json


class ConvertOptions(Section):
    """What to write of a run."""

    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run")


def main(argv: list[str]) -> None:
    (source, target), options = load_options(
        ConvertOptions,
        argv,
        "SOURCE DIRECTORY",
        2,
        "a run, or a model in Hugging Face's format; and the directory to write",
    )
    to = Path(target)
    if to.exists():
        raise UserError(f"{to}: exists already; name a new directory")
    if is_run(Path(source)):
        run = open_run(Path(source))
        to_config_json(run.cfg, run.tokenizer, source)  # tells what transformers has not

        with slow_imports():
            from huggingface.export import export

        print(export(run, to, options.checkpoint))
    elif is_model(source):
        if options.model_fields_set:
            raise UserError(f"checkpoint: {source} is no run, and has one model only")

        with slow_imports():
            from huggingface.adopt import adopt

        print(adopt(source, to))
    else:
        raise UserError(describe_choices(source))


if __name__ == "__main__":
    run_command(main)
