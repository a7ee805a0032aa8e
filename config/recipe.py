"""Options in TOML: a recipe and the command line's, checked together; and what a run saves."""

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from config.aliases import name_here
from config.checks import find_conflicts
from config.errors import UserError, did_you_mean
from config.files import check_entries, check_regular, nearest_run, read_text
from config.old_options import SECTIONS, take_old_words, translate
from config.schema import Config
from config.terminal import one_line
from config.values import Section

Options = TypeVar("Options", bound=Section)
Words = dict[str, str]

PROBLEMS = 10  # that are told; the others are counted


def merge(schema: type[Options], path: Path | None, given: dict[str, str]) -> Options:
    """Validate a recipe's values and the command line's together; UserError with all mistakes."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    if path:
        try:
            values = _read_toml(path)
        except UserError as error:
            # perhaps a word meant for an option that is not there, as in --lr 0.1
            problems.append(str(error))
    given = given.copy()
    if schema is Config:
        _put(take_old_words(given), values, SECTIONS)
    _put(given, values, section_of(schema))
    if schema is Config:
        is_saved = path is not None and path.name == "config.toml"  # of a run
        for section in values.values():
            if isinstance(section, dict):
                problems += translate(section, is_saved)
    try:
        options = schema.model_validate(values)
        if not problems:
            return options
    except ValidationError as error:
        # Defaults that depend on the form are not made where another option is wrong.
        found = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        for each in found[:PROBLEMS]:
            problems.append(_describe(each, schema, path, given))
        if len(found) > PROBLEMS:
            problems.append(f"... and {len(found) - PROBLEMS:,} more")
    raise UserError("\n  ".join(map(one_line, problems))) from None


def _put(options: Words, values: dict[str, Any], section_of: Words) -> None:
    """Put the command line's options into the sections of a recipe's values."""
    for name, text in options.items():
        section = section_of.get(name)
        table = values.setdefault(section, {}) if section else values
        if isinstance(table, dict):  # else the recipe has a mistake
            table[name] = text


def _describe(
    error: ErrorDetails, schema: type[Options], path: Path | None, given: dict[str, str]
) -> str:
    """Describe a mistake in a recipe or on the command line, in a line."""
    name = str(error["loc"][-1])
    where = ""
    if path and name not in given:
        where = f"{path}: "
    if error["type"] != "extra_forbidden":
        message = error["msg"][0].lower() + error["msg"][1:]
        return f"{where}{name}={error['input']!s:.80}: {message}"
    if name not in given and isinstance(error["input"], dict):
        nearest = did_you_mean(name, list(sections(schema)))
    else:
        nearest = _nearest(name, section_of(schema), on_command_line=name in given)
    full_name = ".".join(map(str, error["loc"]))
    return f"{where}{full_name:.80}: no such option{nearest}"


def load_saved(path: Path) -> Config:
    """Read the configuration that a run saved, or that a user edited since.

    UserError if it is not one. What only a training needs, such as its text, may be gone.
    """
    check_entries(path.parent)
    cfg = merge(Config, path, {})
    if conflicts := find_conflicts(cfg):
        raise UserError(f"{path}: {'; '.join(conflicts)}")
    return cfg


def to_toml(cfg: Config) -> str:
    """Write a recipe with the value of every option but out_dir; init_from only names a model."""
    left_out = {"out_dir"}
    if not cfg.run.source:
        left_out.add("init_from")
    return tomli_w.dumps(cfg.model_dump(exclude={"run": left_out}))


def _nearest(word: str, places: dict[str, str], on_command_line: bool) -> str:
    """Say what to write instead of an option that is not there."""
    name = word.split("=")[0].strip("-").replace("-", "_")
    here = name_here(name.lower(), set(places))
    if here and name not in places:
        return f"; here it is {here}"
    if on_command_line:
        shown = {option: f"--{option}" for option in places}
    else:
        shown = {option: f"{option} in [{section}]" for option, section in places.items()}
    return did_you_mean(name, shown) or "; --help lists them all"


def _nearest_recipe(path: Path) -> str:
    """Say which recipe or run may be meant by one that is not there, or which recipes there are."""
    folder = Path(__file__).parent
    recipes = sorted(folder.glob("*.toml"))
    names = ", ".join(recipe.name for recipe in recipes)
    if "=" in path.name and path == Path(path.name):  # a run, out/RECIPE,n_layer=1, is in a folder
        return f"; for an option, write --{str(path).lstrip('-')}; recipes in {folder}: {names}"
    places = {recipe.stem: os.path.relpath(recipe) for recipe in recipes}
    meant_recipe = did_you_mean(path.stem, places, n=2)
    folder_of_run = path
    if path.name == "config.toml":
        folder_of_run = path.parent
    meant_run = nearest_run(folder_of_run)
    meant = meant_recipe or meant_run
    if path.suffix != ".toml" and path.parent.name != "":  # it looks like a run
        meant = meant_run or meant_recipe
    return meant or f"; recipes in {folder}: {names}"


def sections(schema: type[Section]) -> dict[str, type[Section]]:
    """List the sections of a schema by name; one without sections is a section without a name."""
    if not issubclass(schema, Config):
        return {"": schema}
    return {name: type(field.default) for name, field in schema.model_fields.items()}


def section_of(schema: type[Section]) -> dict[str, str]:
    """Find the section of each option; "" without sections."""
    return {
        field.alias or name: section
        for section, options in sections(schema).items()
        for name, field in options.model_fields.items()
    }


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe and no run{_nearest_recipe(path)}") from None
    except (ValueError, RecursionError) as error:
        text = "" if path.suffix == ".toml" else f"; to train on its text, write --corpus={path}"
        raise UserError(f"{path}: not a readable TOML file: {error}{text}") from None
