"""From the command line to a checked configuration: defaults < TOML recipe < command line."""

import argparse
import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

import tomli_w
from pydantic import ValidationError

from config.errors import UserError
from config.schema import Config, RunConfig, Section

Options = TypeVar("Options", bound=Section)


def load_config(argv: list[str]) -> tuple[Config, set[str]]:
    """The configuration of `train.py [RECIPE] [--name=value ...]`, and the options named on the command line.

    UserError with all mistakes at once.
    """
    paths, given = _parse(Config, argv, "[RECIPE]", "?", "TOML file with the options that differ from the defaults, or "
                          "a run's directory; none = all defaults")
    path = Path(paths[0]) if paths else None
    if path and path.is_dir():
        path = path / "config.toml"  # of a run
    config = _merge(Config, path, given)
    if not config.run.out_dir:
        config = config.with_run(out_dir=str(_choose_out_dir(path, given, config.run.init_from != "scratch")))
    if problems := config.problems():
        raise UserError("\n  ".join(problems))
    return config, set(given)


def load_options(schema: type[Options], argv: list[str], positional: str, nargs: str | int | None, meaning: str
                 ) -> tuple[list[str], Options]:
    """Positional arguments and options of the other commands, such as `sample.py RUN --seed=1`."""
    paths, given = _parse(schema, argv, positional, nargs, meaning)
    return paths, _merge(schema, None, given)


def load_saved(path: Path) -> Config:
    """The configuration that a run saved, or that a user edited since."""
    return _merge(Config, path, {})


def to_toml(config: Config) -> str:
    """A recipe with the value of every option, but for those that say where and how a run starts."""
    return tomli_w.dumps(config.model_dump(exclude={"run": {"out_dir", "init_from"}}))


def _choose_out_dir(path: Path | None, given: dict[str, str], resumes: bool) -> Path:
    """out/RECIPE with the options that differ; beside a run that is the recipe, or that run itself to resume it."""
    base = Path("out") / (path.stem if path else "default")
    if path and path.name == "config.toml":
        base = path.parent
        if resumes:
            return base
    differ = [f"{name}={given[name]}" for name in Config().options()  # in this order, whatever that of `given` is
              if name in given and (name == "seed" or name not in RunConfig.model_fields)]
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join([base.name, *differ]))
    return base.parent / name


def _parse(schema: type[Section], argv: list[str], positional: str, nargs: str | int | None, meaning: str
           ) -> tuple[list[str], dict[str, str]]:
    """Positional arguments and {option: text}, with the words that are neither among them; --help shows the schema."""
    parser = _Parser(usage=f"%(prog)s {positional} [--name=value ...]", allow_abbrev=False)
    parser.add_argument(positional, nargs=nargs, help=meaning)
    for section in _sections(schema).values():
        group = parser.add_argument_group((section.__doc__ or "").rstrip("."))
        for name, field in section.model_fields.items():
            choices = ", ".join(get_args(field.annotation))
            is_flag: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
            group.add_argument(f"--{field.alias or name}", default=argparse.SUPPRESS, **is_flag,
                               metavar=str(field.default).lower() or '""',
                               help=f"{field.description} ({choices})" if choices else field.description)
    found, unknown = parser.parse_known_args(argv)
    unknown = [word.encode(errors="replace").decode() for word in unknown]  # bytes that are no text have no name
    given = vars(found)
    paths = given.pop(positional)
    return [paths] if isinstance(paths, str) else paths or [], given | dict.fromkeys(unknown, "")


def _merge(schema: type[Options], path: Path | None, given: dict[str, str]) -> Options:
    """Validate a recipe's values and the command line's together; UserError with all mistakes."""
    values = _read_toml(path) if path else {}
    section_of = {field.alias or name: section for section, options in _sections(schema).items()
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
            if e["type"] == "extra_forbidden":
                problems.append(f"{where}{'.'.join(map(str, e['loc']))}: no such option{_nearest(name, section_of)}")
            else:
                problems.append(f"{where}{name}={e['input']!s:.80}: {e['msg'][0].lower()}{e['msg'][1:]}")
        raise UserError("\n  ".join(problems)) from None


def _nearest(word: str, section_of: dict[str, str]) -> str:
    name = word.split("=")[0].strip("-").replace("-", "_")
    for close in difflib.get_close_matches(name, [*section_of, *section_of.values()], n=1):
        return f"; did you mean {close}{f' in [{section_of[close]}]' if section_of.get(close) else ''}?"
    return "; --help lists them all"


def _sections(schema: type[Section]) -> dict[str, type[Section]]:
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")
