"""Options in TOML: a recipe and the command line's options, checked together; and what a run saves."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from config.errors import UserError
from config.schema import Config, Section

Options = TypeVar("Options", bound=Section)

# Options of earlier editions, and what to write instead. A run that names one still opens: none of
# them changed what a model computes.
REMOVED = {"parallel": "torchrun's ranks always divide each batch"}


def merge(schema: type[Options], path: Path | None, given: dict[str, str]) -> Options:
    """Validate a recipe's values and the command line's together; UserError with all mistakes."""
    values = _read_toml(path) if path else {}
    if path and path.name == "config.toml":  # of a run
        drop_removed(values)
    section_of = {field.alias or name: section for section, options in sections(schema).items()
                  for name, field in options.model_fields.items()}
    for name, text in given.items():
        table = values.setdefault(section_of[name], {}) if section_of.get(name) else values
        if isinstance(table, dict):  # else the recipe has a mistake
            table[name] = text
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            name = str(e["loc"][-1])
            where = f"{path}: " if path and name not in given else ""
            option = name.split("=")[0].strip("-").replace("-", "_")
            if e["type"] == "extra_forbidden" and option in REMOVED:
                problems.append(f"{where}{name}: this option is gone: {REMOVED[option]}")
            elif e["type"] == "extra_forbidden":
                problems.append(f"{where}{'.'.join(map(str, e['loc']))}: no such option{_nearest(name, section_of)}")
            else:
                problems.append(f"{where}{name}={e['input']!s:.80}: {e['msg'][0].lower()}{e['msg'][1:]}")
        raise UserError("\n  ".join(problems)) from None


def load_saved(path: Path) -> Config:
    """The configuration that a run saved, or that a user edited since."""
    return merge(Config, path, {})


def drop_removed(values: dict[str, Any]) -> None:
    """Leave out the options of [run] that an earlier edition saved, and that are gone."""
    section = values.get("run")
    if isinstance(section, dict):
        for name in REMOVED:
            section.pop(name, None)


def to_toml(config: Config) -> str:
    """A recipe with the value of every option, but for those that say where and how a run starts."""
    return tomli_w.dumps(config.model_dump(exclude={"run": {"out_dir", "init_from"}}))


def _nearest(word: str, section_of: dict[str, str]) -> str:
    name = word.split("=")[0].strip("-").replace("-", "_")
    for close in difflib.get_close_matches(name, [*section_of, *section_of.values()], n=1):
        return f"; did you mean {close}{f' in [{section_of[close]}]' if section_of.get(close) else ''}?"
    return "; --help lists them all"


def sections(schema: type[Section]) -> dict[str, type[Section]]:
    """The sections of a schema by name; one without sections is a section itself, without a name."""
    if schema is not Config:
        return {"": schema}
    return {name: type(field.default) for name, field in schema.model_fields.items()}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        folder = Path(__file__).parent
        recipes = ", ".join(sorted(recipe.name for recipe in folder.glob("*.toml")))
        option = f"; for an option, write --{path}" if "=" in path.name else ""
        raise UserError(f"{path}: no such recipe and no run{option}; recipes in {folder}: {recipes}") from None
    except (ValueError, RecursionError) as error:
        text = "" if path.suffix == ".toml" else f"; to train on its text, write --corpus={path}"
        raise UserError(f"{path}: not a readable TOML file: {error}{text}") from None
