"""Options in TOML: a recipe and the command line's options, checked together; and what a run saves."""

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from config.aliases import name_here
from config.errors import UserError, did_you_mean
from config.files import check_entries, check_regular, nearest_run, read_text
from config.schema import Config, Section
from config.terminal import one_line

Options = TypeVar("Options", bound=Section)

# Options of earlier editions, and what to write instead. A run that names one still opens: none of
# them changed what a model computes.
REMOVED = {"parallel": "torchrun's ranks always divide each batch"}

PROBLEMS = 10  # that are told; the others are counted


def merge(schema: type[Options], path: Path | None, given: dict[str, str]) -> Options:
    """Validate a recipe's values and the command line's together; UserError with all mistakes."""
    problems = []
    untold = 0
    values: dict[str, Any] = {}
    try:
        if path:
            values = _read_toml(path)
    except UserError as error:
        # perhaps a word meant for an option that is not there, as in --lr 0.1
        problems.append(str(error))
    if path and path.name == "config.toml":  # of a run
        drop_removed(values)
    section_of = {
        field.alias or name: section
        for section, options in sections(schema).items()
        for name, field in options.model_fields.items()
    }
    for name, text in given.items():
        table = values.setdefault(section_of[name], {}) if section_of.get(name) else values
        if isinstance(table, dict):  # else the recipe has a mistake
            table[name] = text
    try:
        options = schema.model_validate(values)
        if not problems:
            return options
    except ValidationError as error:
        untold = error.error_count() - PROBLEMS
        for e in error.errors()[:PROBLEMS]:
            name = str(e["loc"][-1])
            where = f"{path}: " if path and name not in given else ""
            option = name.split("=")[0].strip("-").replace("-", "_")
            if e["type"] == "extra_forbidden" and option in REMOVED:
                problems.append(f"{where}{name}: this option is gone: {REMOVED[option]}")
            elif e["type"] == "extra_forbidden":
                is_section = name not in given and isinstance(e["input"], dict)
                if is_section:
                    nearest = did_you_mean(name, list(sections(schema)))
                else:
                    nearest = _nearest(name, section_of, on_command_line=name in given)
                problems.append(
                    f"{where}{'.'.join(map(str, e['loc'])):.80}: no such option{nearest}"
                )
            else:
                problems.append(
                    f"{where}{name}={e['input']!s:.80}: {e['msg'][0].lower()}{e['msg'][1:]}"
                )
    if untold > 0:
        problems.append(f"... and {untold:,} more")
    raise UserError("\n  ".join(map(one_line, problems))) from None


def load_saved(path: Path) -> Config:
    """The configuration that a run saved, or that a user edited since.

    UserError if it is not one. What only a training needs, such as its text, may be gone.
    """
    check_entries(path.parent)
    cfg = merge(Config, path, {})
    if conflicts := cfg.conflicts():
        raise UserError(f"{path}: {'; '.join(conflicts)}")
    return cfg


def drop_removed(values: dict[str, Any]) -> None:
    """Leave out the options of [run] that an earlier edition saved, and that are gone."""
    section = values.get("run")
    if isinstance(section, dict):
        for name in REMOVED:
            section.pop(name, None)


def to_toml(cfg: Config) -> str:
    """A recipe with the value of every option but out_dir; of init_from only a model's name."""
    left_out = {"out_dir"} if cfg.run.source else {"out_dir", "init_from"}
    return tomli_w.dumps(cfg.model_dump(exclude={"run": left_out}))


def _nearest(word: str, section_of: dict[str, str], on_command_line: bool) -> str:
    """What to write instead of an option that is not there, on the command line or in a recipe."""
    name = word.split("=")[0].strip("-").replace("-", "_")
    here = name_here(name.lower(), set(section_of))
    if here and name not in section_of:
        return f"; here it is {here}"
    if on_command_line:
        places = {option: f"--{option}" for option in section_of}
    else:
        places = {option: f"{option} in [{section}]" for option, section in section_of.items()}
    return did_you_mean(name, places) or "; --help lists them all"


def _nearest_recipe(path: Path) -> str:
    """What may be meant by a recipe or a run that is not there, or which recipes there are."""
    folder = Path(__file__).parent
    recipes = sorted(folder.glob("*.toml"))
    names = ", ".join(recipe.name for recipe in recipes)
    if "=" in path.name and path == Path(path.name):  # a run, out/RECIPE,n_layer=1, is in a folder
        return f"; for an option, write --{str(path).lstrip('-')}; recipes in {folder}: {names}"
    recipe = did_you_mean(path.stem, {each.stem: os.path.relpath(each) for each in recipes}, n=2)
    run = nearest_run(path.parent if path.name == "config.toml" else path)
    is_run = path.suffix != ".toml" and path.parent.name != ""
    meant = run or recipe if is_run else recipe or run
    return meant or f"; recipes in {folder}: {names}"


def sections(schema: type[Section]) -> dict[str, type[Section]]:
    """The sections of a schema by name; one without sections is a section itself, without a name."""
    if schema is not Config:
        return {"": schema}
    return {name: type(field.default) for name, field in schema.model_fields.items()}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe and no run{_nearest_recipe(path)}") from None
    except (ValueError, RecursionError) as error:
        text = "" if path.suffix == ".toml" else f"; to train on its text, write --corpus={path}"
        raise UserError(f"{path}: not a readable TOML file: {error}{text}") from None
