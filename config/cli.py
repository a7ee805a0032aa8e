"""From the command line to a checked configuration: defaults < TOML recipe < command line."""

import argparse
import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from config.errors import UserError
from config.schema import Config, Section

MAX_RECIPE = 2**14  # characters; tomllib's memory grows with the square of a key's dots
RECIPE = "TOML file with the options that differ from the defaults, or a run's directory; none = all defaults"
EXECUTION = {"out_dir", "init_from", "device", "dtype", "compile", "micro_batch_size", "eval_interval", "eval_tokens",
             "log_interval", "checkpoint_interval", "explain_batch", "max_nonfinite_steps", "patience"}

Options = TypeVar("Options", bound=Section)


def load_config(argv: list[str]) -> tuple[Config, set[str]]:
    """The configuration of `train.py [RECIPE] [--name=value ...]`, and the options named on the command line.

    UserError with all mistakes at once.
    """
    paths, given, problems = _parse(Config, argv, "RECIPE", "?", RECIPE)
    path = Path(paths[0]) if paths else None
    path = path / "config.toml" if path and path.is_dir() else path
    run = path.parent if path and (path.parent / "corpus.json").is_file() else None
    config = _merge(Config, _read_toml(path) if path else {}, path, given, problems)
    if not config.run.out_dir or (run and "out_dir" not in given):
        named = {name: value for name, value in given.items() if name not in EXECUTION}
        base = run or Path("out") / (path.stem if path else "default")
        resumes = config.run.init_from != "scratch" and run is not None
        config = config.with_run(out_dir=str(base if resumes else base.with_name(_name(base.name, named))))
    saved = Path(config.run.out_dir) / "config.toml"
    if config.run.init_from != "scratch" and "dtype" not in given and saved.is_file():
        config = config.with_run(dtype=load_saved(saved).run.dtype)  # other arithmetic would be another run
    if problems := config.problems():
        _raise(problems)
    return config, set(given)


def load_options(schema: type[Options], argv: list[str], positional: str, nargs: str | None, meaning: str
                 ) -> tuple[list[str], Options]:
    """Positional arguments and options of the other commands, such as `sample.py RUN --seed=1`."""
    paths, given, problems = _parse(schema, argv, positional, nargs, meaning)
    return paths, _merge(schema, {}, None, given, problems)


def load_saved(path: Path) -> Config:
    """The configuration that a run saved, or that a user edited since."""
    return _merge(Config, _read_toml(path), path, {}, [])


def to_toml(config: Config) -> str:
    """The value of every option; the text is a recipe."""
    return tomli_w.dumps(config.model_dump())


def _parse(schema: type[Section], argv: list[str], positional: str, nargs: str | None, meaning: str
           ) -> tuple[list[str], dict[str, str], list[str]]:
    """Positional arguments, {option: text} and the words that are neither; --help is made from the schema."""
    usage = f"%(prog)s {f'[{positional}]' if nargs == '?' else positional} [--name=value ...]"
    parser = _Parser(usage=usage, allow_abbrev=False,
                     formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=112))
    parser.add_argument(positional, nargs=nargs, default=None, help=meaning)
    groups: dict[str, Any] = {}
    for name, section, field in _options(schema):
        title = (schema.model_fields[section].annotation if section else schema).__doc__
        group = groups.setdefault(section, parser.add_argument_group(title))
        default = str(field.default).lower() if field.annotation is bool else str(field.default) or '""'
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=default,
                           help=f"{field.description}{_range(field)}".replace("%", "%%"),
                           **({"nargs": "?", "const": "true"} if field.annotation is bool else {}))
    found, unknown = parser.parse_known_args(argv)
    given = vars(found)
    paths = given.pop(positional)
    names = [name for name, _, _ in _options(schema)]
    problems = [f"{word}: no such option{_nearest(re.split('=', word)[0].strip('-'), names)}" if word.startswith("-")
                else f"{word!r}: unexpected argument; options are written --name=value" for word in unknown]
    return [paths] if isinstance(paths, str) else paths or [], given, problems


def _merge(schema: type[Options], values: dict[str, Any], path: Path | None, given: dict[str, str],
           problems: list[str]) -> Options:
    """Validate a recipe's values and the command line's together; UserError with all mistakes."""
    section_of = {name: section for name, section, _ in _options(schema)}
    for name, text in given.items():
        table = values.setdefault(section_of[name], {}) if section_of[name] else values
        if isinstance(table, dict):
            table[name] = text
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        for e in error.errors():
            *section, name = (str(part) for part in e["loc"])
            where = f"{path}: " if path and name not in given else ""
            if e["type"] == "extra_forbidden":
                home = section_of.get(name)
                what = f"[{section[0]}] has no {name}" if section else f"[{name}] is no section"
                hint = f"; it belongs in [{home}]" if home else _nearest(
                    name, list(section_of) if section else list(schema.model_fields))
                problems.append(f"{where}{what}{hint}")
            else:
                problems.append(f"{where}{name}={e['input']!s:.80}: {e['msg'][0].lower()}{e['msg'][1:]}")
    if problems:
        _raise(problems)
    return config


def _options(schema: type[Section]) -> Iterator[tuple[str, str, FieldInfo]]:
    """(name, section, field) of every option; the section is "" where a schema has none."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for option, option_field in field.annotation.model_fields.items():
                yield option, name, option_field
        else:
            yield field.alias or name, "", field


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
        if len(text) > MAX_RECIPE:
            raise ValueError(f"{len(text):,} characters, and a recipe has at most {MAX_RECIPE:,}")
        return tomllib.loads(text)
    except FileNotFoundError:
        recipes = ", ".join(sorted(recipe.stem for recipe in Path(__file__).parent.glob("*.toml")))
        raise UserError(f"{path}: no such recipe and no run; the recipes in config/ are {recipes}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable TOML file: {error}") from None


def _name(base: str, given: dict[str, str]) -> str:
    """A run's name: that of its recipe, and the options that differ from it."""
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join([base, *(f"{key}={value}" for key, value in given.items())]))
    return name if len(name) <= 100 else f"{name[:90]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _range(field: FieldInfo) -> str:
    """The values that an option may have, for --help."""
    if choices := get_args(field.annotation):
        return f" ({', '.join(choices)})"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {bound}" for item in field.metadata for kind, sign in signs.items()
              if (bound := getattr(item, kind, None)) is not None and bound != 2**63]
    return f" ({', '.join(bounds)})" if bounds else ""


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists them all"


def _raise(problems: list[str]) -> NoReturn:
    raise UserError(problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems", *problems]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
