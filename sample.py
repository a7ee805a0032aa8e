"""Text from a run: `python sample.py out/shakespeare_char --prompt="ROMEO:" --num_samples=3`."""

import codecs
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from config.cli import load_options
from config.schema import Count, Positive, Rate, Section
from errors import UserError, run_command
from runs import open_run

CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class SampleOptions(Section):
    """What to write, and how freely."""

    prompt: str = Field("", description="text to go on from; empty = what is given first in the validation text, "
                        "or a new line")
    prompt_file: str = Field("", description="a UTF-8 file to go on from, instead of --prompt")
    num_samples: int = Field(1, ge=1, le=100_000, description="how many to write")
    max_new_tokens: Positive = Field(500, description="tokens in each")
    temperature: Rate = Field(0.8, description="below 1 safer, above 1 wilder; 0 = no chance")
    top_k: Count = Field(0, description="choose among the k most probable tokens; 0 = all")
    top_p: float = Field(1.0, gt=0, le=1, description="choose among the fewest tokens of this probability together")
    seed: Count = Field(1337, description="sample i depends on the seed and i only")
    checkpoint: Literal["best", "last"] = Field("best", description="which of the run's checkpoints")
    device: str = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic; bfloat16 is faster for "
                                                  "many samples at once")


def main(argv: list[str]) -> None:
    paths, options = load_options(SampleOptions, argv, "RUN", None, "a directory that train.py made")
    run = open_run(Path(paths[0]))
    tokenizer = run.load_tokenizer()
    text = read_prompt(options) or run.meta.get("opening", "")
    prompt = tokenizer.encode_prompt(text)

    from engine.checkpoint import load_model
    from engine.distributed import find_world
    from engine.generate import generate

    world = find_world(options.device, options.dtype)
    model, _ = load_model(run, options.checkpoint, world)
    steps = generate(model, prompt, world, num_samples=options.num_samples, max_new_tokens=options.max_new_tokens,
                     temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed,
                     end=tokenizer.end)

    # All samples are made together; the first is shown as it comes, the others after it.
    samples: list[list[int]] = [[] for _ in range(options.num_samples)]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may end inside a character
    print(harmless(text), end="", flush=True)
    for tokens in steps:
        for sample, token in zip(samples, tokens, strict=True):
            sample.append(token)
        if tokenizer.end not in samples[0]:
            print(harmless(decoder.decode(tokenizer.token_bytes[tokens[0]])), end="", flush=True)
    print(decoder.decode(b"", final=True))
    for sample in samples[1:]:
        shown = sample[: sample.index(tokenizer.end)] if tokenizer.end in sample else sample
        print("-" * 40 + "\n" + harmless(text + tokenizer.decode(shown)))


def harmless(text: str) -> str:
    """For a terminal, without the control characters by which a stranger's model could command it."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def read_prompt(options: SampleOptions) -> str:
    if not options.prompt_file:
        return options.prompt
    try:
        return Path(options.prompt_file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt_file={options.prompt_file}: {error}") from None


if __name__ == "__main__":
    run_command(main)
