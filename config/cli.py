"""From recipe and command line to a checked configuration: defaults < TOML < command line."""

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from config.schema import Config, Section
from errors import UserError

MAX_RECIPE = 2**14  # characters; tomllib takes memory in the square of a key with many dots

Options = TypeVar("Options", bound=Section)


def load_config(argv: list[str]) -> Config:
    """The configuration of `train.py [RECIPE.toml] [--name=value ...]`; all mistakes are told at once."""
    fields = dict(_knobs(Config))
    paths, given, problems = _parse(Config, argv, "RECIPE", "?", "a TOML file: what differs from the defaults")
    recipe = Path(paths[0]) if paths else None
    values, in_recipe = _read_recipe(recipe) if recipe else ({}, [])
    given_values, on_line = _validate(Config, _nest(given, fields), strict=False)
    problems += in_recipe + on_line
    for name, value in _leaves(given_values):
        values.setdefault(fields[name][0], {})[name] = value
    _raise(problems)
    config = Config.model_validate(values).with_named(given)
    if not config.run.out_dir:
        name = recipe.stem if recipe else f"{Path(config.data.corpus).stem}_{config.data.tokenizer}"
        config = config.with_run(out_dir=f"out/{name}")
    if recipe and "out_dir" not in given and (recipe.parent / "corpus.json").is_file():
        config = config.with_run(out_dir=str(recipe.parent))  # a run's own, wherever it was moved or copied to
    _raise(config.problems())
    return config


def load_options(schema: type[Options], argv: list[str], positional: str, nargs: str | None, meaning: str
                 ) -> tuple[list[str], Options]:
    """Positional arguments and typed options of the smaller commands: `sample.py RUN --seed=1`."""
    paths, given, problems = _parse(schema, argv, positional, nargs, meaning)
    values, more = _validate(schema, given, strict=False)
    _raise(problems + more)
    return paths, schema.model_validate(values)


def parse_config(text: str, path: Path) -> Config:
    """The resolved configuration that a run saved at `path`."""
    values, problems = _parse_recipe(text, path)
    _raise(problems)
    return Config.model_validate(values)


def to_toml(config: Config) -> str:
    """Every knob's value; the text is itself a recipe."""
    return tomli_w.dumps(config.model_dump())


def _knobs(schema: type[Section]) -> Iterator[tuple[str, tuple[str, FieldInfo]]]:
    """(name, (section, field)) of every leaf; the section of a flat schema is ''."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for leaf, leaf_field in field.annotation.model_fields.items():
                yield leaf, (name, leaf_field)
        else:
            yield field.alias or name, ("", field)  # pydantic keeps a name such as json for itself


def _parse(schema: type[Section], argv: list[str], positional: str, nargs: str | None, meaning: str
           ) -> tuple[list[str], dict[str, str], list[str]]:
    """Split argv into positional arguments, {name: text} and problems, with --help made from the schema."""
    parser = _Parser(usage=f"%(prog)s {positional} [--name=value ...]" if nargs != "?" else
                     f"%(prog)s [{positional}] [--name=value ...]", allow_abbrev=False,
                     formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110))
    parser.add_argument(positional, nargs=nargs, default=None, help=meaning)
    groups: dict[str, Any] = {}
    for name, (section, field) in _knobs(schema):
        if section not in groups:
            doc = schema.model_fields[section].annotation.__doc__ if section else "options"
            groups[section] = parser.add_argument_group(doc)
        default = str(field.default).lower() if field.annotation is bool else field.default
        groups[section].add_argument(
            f"--{name}", default=argparse.SUPPRESS, metavar=default if default != "" else '""',
            help=f"{field.description}{_range(field)}".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if field.annotation is bool else {}))
    found, unknown = parser.parse_known_args(argv)
    given = vars(found)
    paths = given.pop(positional)
    names = [name for name, _ in _knobs(schema)]
    return ([paths] if isinstance(paths, str) else paths or []), given, [_unknown(word, names) for word in unknown]


def _range(field: FieldInfo) -> str:
    """What a knob may be, as --help shows it: its choices or its bounds."""
    if choices := get_args(field.annotation):
        return f" ({', '.join(choices)})"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(bound, kind)}" for bound in field.metadata for kind, sign in signs.items()
              if getattr(bound, kind, None) is not None]
    return f" ({', '.join(bounds)})" if bounds else ""


def _unknown(word: str, names: list[str]) -> str:
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    if not word.startswith("-"):
        return f"{word!r}: unexpected argument; options are written --name=value"
    return f"{word}: no such option{_did_you_mean(name, names)}"


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else "; --help lists them all"


def _read_recipe(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The checked values of a TOML file by section, and what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in Path(__file__).parent.glob("*.toml"))
        raise UserError(f"{path}: no such recipe; there are {', '.join(Path(p).stem for p in near)} "
                        "in config/") from None
    except (OSError, ValueError) as error:  # a name with a NUL is the latter, as is what is not UTF-8
        raise UserError(f"{path}: not a readable TOML file: {error}") from None
    return _parse_recipe(text, path)


def _parse_recipe(text: str, path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    if len(text) > MAX_RECIPE:
        raise UserError(f"{path}: not a recipe: it has {len(text):,} characters, and {MAX_RECIPE:,} are enough for any")
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable TOML file: {error}") from None
    home = {name: section for name, (section, _) in _knobs(Config)}
    problems = []
    for section, table in list(raw.items()):
        if not isinstance(table, dict):
            hint = f"it belongs in [{home[section]}]" if section in home else "a recipe has sections only"
            problems.append(f"{path}: {section} stands outside a section; {hint}")
            del raw[section]
        elif section not in Config.model_fields:
            problems.append(f"{path}: [{section}] is no section{_did_you_mean(section, list(Config.model_fields))}")
            del raw[section]
        else:
            for name in [name for name in table if home.get(name) != section]:
                hint = f"; it belongs in [{home[name]}]" if name in home else _did_you_mean(name, list(home))
                problems.append(f"{path}: [{section}] has no {name}{hint}")
                del table[name]
    values, more = _validate(Config, raw, strict=True)
    return values, problems + [f"{path}: {problem}" for problem in more]


def _validate(schema: type[Section], values: dict[str, Any], strict: bool) -> tuple[dict[str, Any], list[str]]:
    """The given values, converted; and one line for each that is of the wrong type or out of range."""
    try:
        checked = schema.model_validate(values, strict=True) if strict else schema.model_validate_strings(values)
    except ValidationError as error:
        return {}, [f"{e['loc'][-1]}={e['input']!s:.80}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in error.errors()]
    values = checked.model_dump(exclude_unset=True, by_alias=True)
    pairs = _leaves(values) if schema is Config else values.items()
    return values, [f"{name}={value!a:.80}: has a character that no file name and no TOML file may have"
                    for name, value in pairs if isinstance(value, str) and not _is_plain(value)]


def _is_plain(text: str) -> bool:
    """No NULs, and no lone surrogates, which stand for bytes of the command line that are not UTF-8."""
    return "\0" not in text and not re.search("[\ud800-\udfff]", text)


def _nest(given: dict[str, str], fields: dict[str, tuple[str, FieldInfo]]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, text in given.items():
        nested.setdefault(fields[name][0], {})[name] = text
    return nested


def _leaves(values: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for table in values.values():
        yield from table.items()


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else
                        "\n  ".join([f"{len(problems)} problems", *problems]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
