"""From the command line to a checked configuration: defaults < TOML recipe < command line."""

import argparse
import os
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

from config.checks import find_problems
from config.errors import UserError
from config.files import check_entries, is_run, short_name
from config.old_options import take_old_words, todays_words
from config.recipe import Options, merge, sections
from config.resume import adopt_shape, resume_config, unused_options
from config.schema import Config, RunConfig
from config.values import Section


def load_config(argv: list[str]) -> tuple[Config, set[str]]:
    """The configuration of `train.py [RECIPE] [--name=value ...]`, and the options in argv.

    A run that is resumed keeps what is not named. UserError with all mistakes at once.
    """
    path, given = _parse_training(argv)
    cfg = merge(Config, path, given)
    given |= todays_words(take_old_words(given), cfg)
    if not cfg.run.out_dir:
        cfg = cfg.with_run(out_dir=str(_choose_out_dir(path, given, cfg.run)))
    run = Path(cfg.run.out_dir)
    if cfg.run.resumes and is_run(run):
        cfg = resume_config(cfg, set(given), run)
    elif cfg.run.init_from == "auto":  # there is no run yet: it starts as the recipe says
        cfg = cfg.with_run(init_from=_recipe(path, given).run.source or "auto")
    if cfg.run.source:
        cfg = adopt_shape(cfg)
    if problems := find_problems(cfg):
        raise UserError("\n  ".join(problems))
    return cfg, set(given)


def describe_unused(argv: list[str], cfg: Config) -> list[str]:
    """What the recipe of a resumed run says, and is not done, a line each."""
    path, given = _parse_training(argv)
    if not cfg.run.resumes or not is_run(Path(cfg.run.out_dir)):
        return []
    return unused_options(_recipe(path, given), cfg, set(given))


def _parse_training(argv: list[str]) -> tuple[Path | None, dict[str, str]]:
    """The recipe of a training, and {option: text}."""
    meaning = (
        "TOML file with the options that differ from the defaults, or a run's directory; "
        "none = all defaults"
    )
    paths, given = _parse(Config, argv, "[RECIPE]", "?", meaning)
    if not paths:
        return None, given
    path = Path(paths[0])
    if path.is_dir():
        path /= "config.toml"  # of a run
        if os.path.lexists(path):
            check_entries(path.parent)
    return path, given


def _recipe(path: Path | None, given: dict[str, str]) -> Config:
    """The same options, but with the model to start from that the recipe names."""
    others = given.copy()
    others.pop("init_from", None)
    return merge(Config, path, others)


def load_options(
    schema: type[Options], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], Options]:
    """Positional arguments and options of the other commands, such as `sample.py RUN --seed=1`."""
    paths, given = _parse(schema, argv, positional, nargs, meaning)
    return paths, merge(schema, None, given)


def _choose_out_dir(path: Path | None, given: dict[str, str], run: RunConfig) -> Path:
    """Name a run out/RECIPE, followed by the options that differ.

    Where the recipe is a run, the new one stands beside it, or it is that run which is resumed.
    """
    base = Path("out/default")
    if path and path.name == "config.toml":  # of a run
        base = path.parent
        if run.resumes:
            return base
    elif path:
        base = Path("out") / path.stem
    telling = {"seed"}  # of the options in [run], those that change the model
    if run.source:
        telling.add("init_from")
    parts = [base.name]
    for name in Config().options():  # in this order, whatever that of `given` is
        changes_model = name in telling or name not in RunConfig.model_fields
        if name in given and changes_model:
            parts.append(f"{name}={given[name]}")
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(parts))
    return base.parent / short_name(name)


def _parse(
    schema: type[Section], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], dict[str, str]]:
    """Positional arguments and {option: text}; --help shows the schema.

    Words that are no options of the schema are among {option: text}, with an empty text.
    """
    parser = _Parser(usage=f"%(prog)s {positional} [--name=value ...]", allow_abbrev=False)
    parser.add_argument(positional, nargs=nargs, help=meaning)
    names = {"-h", "--help", "--"}
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
        given[word.encode(errors="replace").decode()] = ""  # bytes that are no text have no name
    return [os.path.expanduser(path) for path in paths], given


def _add_section(parser: argparse.ArgumentParser, section: type[Section]) -> set[str]:
    """Add the options of a section to a parser; returns their names, with --."""
    group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
    defaults = section()
    names = set()
    for name, field in section.model_fields.items():
        option = f"--{field.alias or name}"
        names.add(option)
        meaning = field.description or ""
        choices = ", ".join(filter(None, get_args(field.annotation)))
        if choices:
            meaning += f" ({choices})"
        default = str(getattr(defaults, name)).lower()
        is_flag: dict[str, Any] = {}
        if field.annotation is bool:
            is_flag = {"nargs": "?", "const": "true"}
        group.add_argument(
            option, default=argparse.SUPPRESS, metavar=default or '""', help=meaning, **is_flag
        )
    return names


def _join_values(argv: list[str], names: set[str]) -> list[str]:
    """Join an unknown option with the word after it: --lr 0.1 becomes --lr=0.1.

    Else 0.1 would be taken for a recipe.
    """
    words: list[str] = []
    last = ""
    for word in argv:
        is_option = re.fullmatch(r"--?[a-zA-Z][\w-]*", last) is not None
        if is_option and last not in names and not word.startswith("-"):
            words[-1] = f"{last}={word}"
        else:
            words.append(word)
        last = words[-1]
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
