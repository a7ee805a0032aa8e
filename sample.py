"""Text from a run: `python sample.py out/shakespeare_char --prompt="ROMEO:" --num_samples=3`."""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import codecs
import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from config.errors import UserError, run_command, slow_imports
from config.files import check_regular, read_text
from config.parser import load_options
from config.values import Count, FileName, Positive, Rate, Section, Text, UnknownCharacters
from data.info import end_of_prompt
from data.unknown import make_replacer
from engine.run import Run, open_run

LONGEST_WORD = 20  # characters; some languages have no space between words


class SampleOptions(Section):
    """What to write, and how freely."""

    prompt: str = Field(
        "",
        description="text to continue; empty = the prompt that the text of the run's evaluations "
        "starts with, or a new line",
    )
    prompt_file: FileName = Field("", description="a UTF-8 file with the prompt")
    unknown: UnknownCharacters = Field(
        "refuse",
        description="characters of the prompt that the run does not know: "
        "replace = by similar ones, or leave them out",
    )
    num_samples: int = Field(1, ge=1, le=100_000, description="how many to write")
    max_new_tokens: Positive = Field(500, description="tokens in each")
    temperature: Rate = Field(0.8, description="below 1 safer, above 1 wilder; 0 = greedy")
    top_k: Count = Field(0, description="sample from the k most probable tokens; 0 = all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample from the fewest tokens with this probability together"
    )
    seed: Count = Field(1337, description="sample i depends on the seed and i only")
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run")
    device: Text = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products; bfloat16 can be faster for many samples at once"
    )


def main(argv: list[str]) -> None:
    run, options, prompt = read_arguments(argv)
    with slow_imports():
        from engine.checkpoint import load_model
        from engine.device import setup_device
        from engine.generate import append_tokens, generate

    device = setup_device(options.device, options.dtype)
    model, _ = load_model(run, options.checkpoint, device)
    tokenizer = run.tokenizer
    shown = prompt
    if not options.prompt and not options.prompt_file:
        shown = end_of_prompt(prompt)  # the corpus's own may be long
    steps = generate(
        model,
        tokenizer.encode_prompt(prompt),
        device,
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        eos=tokenizer.end,
    )

    # all samples grow together; the first is shown as it grows
    print(shown, end="", flush=True)
    samples: list[list[int]] = [[] for _ in range(options.num_samples)]
    # a token may end within a character, and within a word, which the screen shows as a whole
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = ""
    for tokens in steps:
        append_tokens(samples, tokens, tokenizer.end)
        if tokens[0] != tokenizer.end:
            text += decoder.decode(tokenizer.token_bytes[tokens[0]])
            before, text = cut_last_word(text)
            print(before, end="", flush=True)
    print(text + decoder.decode(b"", final=True))

    for sample in samples[1:]:
        print("-" * 40)
        print(shown + tokenizer.decode(sample))


def cut_last_word(text: str) -> tuple[str, str]:
    """Cut off the word at the end of a text, with the space before it.

    Of a word that does not end, it leaves the last characters.

    >>> cut_last_word("the mat and th")
    ('the mat and', ' th')
    """
    word = re.search(rf"\s?\S{{0,{LONGEST_WORD}}}\Z", text)
    start = len(text)
    if word is not None:
        start = word.start()
    return text[:start], text[start:]


def read_arguments(argv: list[str]) -> tuple[Run, SampleOptions, str]:
    """Read the run, the options and the prompt. UserError for what cannot be done."""
    paths, options = load_options(SampleOptions, argv, "RUN", None, "the directory of a run")
    run = open_run(Path(paths[0]))
    prompt = options.prompt or run.info.prompt
    if options.prompt_file:
        if options.prompt:
            raise UserError("prompt and prompt_file: use one of them")
        check_regular(Path(options.prompt_file))
        try:
            prompt = read_text(Path(options.prompt_file))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompt_file={options.prompt_file}: {error}") from None
    replacer = make_replacer([run.tokenizer], options.unknown)
    if replacer is not None:
        prompt = replacer.replace(prompt)
    run.tokenizer.encode_prompt(prompt)  # tells unknown characters
    return run, options, prompt


if __name__ == "__main__":
    run_command(main)
