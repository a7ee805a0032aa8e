"""The command line of any command: positional arguments, and the options of a schema."""

import argparse
import os
import re
from functools import partial
from typing import NoReturn, get_args

from config.errors import UserError
from config.recipe import Options, merge, sections
from config.terminal import screen_width
from config.values import Section

BOOLEAN = "0|1|f|false|n|no|off|on|t|true|y|yes"  # what pydantic reads as one


def load_options(
    schema: type[Options], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], Options]:
    """Read positional arguments and options, such as those of `sample.py RUN --seed=1`."""
    paths, given = parse_words(schema, argv, positional, nargs, meaning)
    return paths, merge(schema, None, given)


def parse_words(
    schema: type[Section], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], dict[str, str]]:
    """Read positional arguments and {option: text}; --help shows the schema.

    Words that are no options of the schema are among {option: text}, with an empty text. Of an
    option that is given again, the last text counts.
    """
    paths, texts = parse_repeated(schema, argv, positional, nargs, meaning)
    return paths, {name: values[-1] for name, values in texts.items()}


def parse_repeated(
    schema: type[Section], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], dict[str, list[str]]]:
    """Read positional arguments and {option: each text that is given}, as parse_words does."""
    parser = _Parser(
        usage=f"%(prog)s {positional} [--name=value ...]",
        formatter_class=partial(argparse.HelpFormatter, width=screen_width() - 2),
        allow_abbrev=False,
    )
    vars(parser)["color"] = False  # Python 3.14's escape sequences would be shown as signs
    parser.add_argument(positional, nargs=nargs, help=meaning)
    names = {"-h": False, "--help": False}
    for section in sections(schema).values():
        names |= _add_section(parser, section)
    found, unknown = parser.parse_known_args(_join_values(argv, names))
    given = vars(found)
    paths = given.pop(positional)
    if paths is None:
        paths = []
    elif isinstance(paths, str):
        paths = [paths]
    for word in unknown:
        if nargs == "+" and not word.startswith("-"):
            paths.append(word)  # argparse takes only paths that stand together
            continue
        name = word.encode(errors="replace").decode()  # bytes that are no text have no name
        given[name] = [""]
    return [os.path.expanduser(path) for path in paths], given


def _add_section(parser: argparse.ArgumentParser, section: type[Section]) -> dict[str, bool]:
    """Add the options of a section to a parser; returns {name, with --: is it a flag}."""
    group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
    defaults = section()
    names = {}
    for name, field in section.model_fields.items():
        option = f"--{field.alias or name}"
        names[option] = field.annotation is bool
        meaning = field.description or ""
        choices = ", ".join(filter(None, get_args(field.annotation)))
        if choices:
            meaning += f" ({choices})"
        default = str(getattr(defaults, name)).lower()
        action = group.add_argument(
            option,
            action="append",
            default=argparse.SUPPRESS,
            metavar=default or '""',
            help=meaning,
        )
        if names[option]:
            action.nargs = "?"
            action.const = "true"
    return names


def _join_values(argv: list[str], names: dict[str, bool]) -> list[str]:
    """Join an unknown option with the word after it: --lr 0.1 becomes --lr=0.1.

    Else 0.1 would be taken for a recipe. A flag, such as --json, has no value unless the word after
    it is a boolean: in `--json RUN`, RUN is a run.
    """
    words: list[str] = []
    last = ""
    for word in argv:
        is_option = re.fullmatch(r"--?[a-zA-Z][\w-]*", last) is not None
        if is_option and last not in names and not word.startswith("-"):
            words[-1] = f"{last}={word}"
        else:
            if names.get(last) and not re.fullmatch(BOOLEAN, word.lower()):
                words[-1] = f"{last}=true"
            words.append(word)
        last = words[-1]
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
