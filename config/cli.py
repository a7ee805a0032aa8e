"""From the command line to a checked configuration: defaults < TOML recipe < command line."""

import argparse
import os
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

from config.errors import UserError
from config.files import check_entries, is_run, short_name
from config.old_options import take_old_words, todays_words
from config.recipe import Options, merge, sections
from config.resume import adopt_shape, resume_config, unused_options
from config.schema import Config, RunConfig, Section


def load_config(argv: list[str]) -> tuple[Config, set[str]]:
    """The configuration of `train.py [RECIPE] [--name=value ...]`, and the options named on the
    command line.

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
    if problems := cfg.problems():
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
    path = Path(paths[0]) if paths else None
    if path and path.is_dir():
        path = path / "config.toml"  # of a run
        if os.path.lexists(path):
            check_entries(path.parent)
    return path, given


def _recipe(path: Path | None, given: dict[str, str]) -> Config:
    """The same options, but with the model to start from that the recipe names."""
    return merge(Config, path, {name: text for name, text in given.items() if name != "init_from"})


def load_options(
    schema: type[Options], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], Options]:
    """Positional arguments and options of the other commands, such as `sample.py RUN --seed=1`."""
    paths, given = _parse(schema, argv, positional, nargs, meaning)
    return paths, merge(schema, None, given)


def _choose_out_dir(path: Path | None, given: dict[str, str], run: RunConfig) -> Path:
    """out/RECIPE with the options that differ; beside a run that is the recipe, or that run itself
    to resume it.
    """
    base = Path("out") / (path.stem if path else "default")
    if path and path.name == "config.toml":
        base = path.parent
        if run.resumes:
            return base
    telling = {"seed", "init_from"} if run.source else {"seed"}  # of [run], what changes the model
    # in this order, whatever that of `given` is
    differ = [
        f"{name}={given[name]}"
        for name in Config().options()
        if name in given and (name in telling or name not in RunConfig.model_fields)
    ]
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join([base.name, *differ]))
    return base.parent / short_name(name)


def _parse(
    schema: type[Section], argv: list[str], positional: str, nargs: str | int | None, meaning: str
) -> tuple[list[str], dict[str, str]]:
    """Positional arguments and {option: text}, with the words that are neither among them; --help
    shows the schema.
    """
    parser = _Parser(usage=f"%(prog)s {positional} [--name=value ...]", allow_abbrev=False)
    parser.add_argument(positional, nargs=nargs, help=meaning)
    names = {"-h", "--help", "--"}
    for section in sections(schema).values():
        group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
        defaults = section()
        for name, field in section.model_fields.items():
            choices = ", ".join(filter(None, get_args(field.annotation)))
            is_flag: dict[str, Any] = (
                {"nargs": "?", "const": "true"} if field.annotation is bool else {}
            )
            group.add_argument(
                f"--{field.alias or name}",
                default=argparse.SUPPRESS,
                **is_flag,
                metavar=str(getattr(defaults, name)).lower() or '""',
                help=f"{field.description} ({choices})" if choices else field.description,
            )
            names.add(f"--{field.alias or name}")
    found, unknown = parser.parse_known_args(_join_values(argv, names))
    # bytes that are no text have no name
    unknown = [word.encode(errors="replace").decode() for word in unknown]
    given = vars(found)
    paths = given.pop(positional)
    if isinstance(paths, str):
        paths = [paths]
    return [os.path.expanduser(path) for path in paths or []], given | dict.fromkeys(unknown, "")


def _join_values(argv: list[str], names: set[str]) -> list[str]:
    """The same words, but --lr 0.1 becomes --lr=0.1 where there is no --lr: else 0.1 would be taken
    for a recipe.
    """
    words: list[str] = []
    for word in argv:
        last = words[-1] if words else ""
        is_unknown = bool(re.fullmatch(r"--?[a-zA-Z][\w-]*", last)) and last not in names
        if is_unknown and not word.startswith("-"):
            words[-1] = f"{last}={word}"
        else:
            words.append(word)
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
