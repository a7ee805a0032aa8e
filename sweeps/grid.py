"""Reads what a sweep varies: each combination of values is a run, with a folder of its own."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from config.cli import choose_out_dir, load_config
from config.errors import UserError
from config.files import check_place, is_run
from config.parser import parse_repeated
from config.recipe import load_saved, merge, section_of, sections
from config.schema import Config
from config.values import Count, Rate, Section

SAME = "the recipe"  # names the group of a sweep in which only the seed varies
RECIPE = "recipe"  # stands among the options that vary, where a sweep has several recipes
LONGEST = 60  # characters of a run's name; a run whose name would be longer gets a number
MAX_RUNS = 10_000
# Options that say where a run is, what it shows, or that it goes on: two runs that differ in
# nothing else are the same.
UNCOMPARED = {"watchers", "log_interval", "checkpoint_interval"}
WITHOUT_EFFECT = {"out_dir", "init_from", *UNCOMPARED}

Steps = dict[str, int]  # {options of a group: steps}
NO_STEPS: Steps = {}
Values = dict[str, list[str]]  # {name of an option: values}
Runs = list[tuple[Path, Config]]  # that are trained already
Options = dict[str, str]  # {name: value}, as on the command line


class SweepOptions(Section):
    """[sweep] How the runs are trained. Options of train.py take several values: --seed=1,2,3."""

    jobs: Count = Field(0, description="runs at once; 0 = what is fastest on this machine")
    list: bool = Field(
        False, description="only print the command of each run, a line each, for other schedulers"
    )
    only: Count = Field(0, description="only train the run of this line of --list, the first is 1")
    equal_seconds: Rate = Field(
        0.0, description="give each run the steps that fit into so many seconds; 0 = max_iters"
    )
    find_lr: bool = Field(
        False, description="only look which learning rate is best, and at which training breaks"
    )


class SweepConfig(Config):
    """All options of train.py, and those of a sweep."""

    sweep: SweepOptions = SweepOptions()


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep, which may be there already."""

    path: Path
    recipe: str  # "" = all defaults
    given: Options  # all options on its command line but out_dir and init_from
    varied: Options  # those that vary in the sweep, and the recipe where that varies
    cfg: Config

    @property
    def group(self) -> str:
        """The name of what all runs share that differ from this one in their seed only."""
        return name_group(self.varied)

    @property
    def seed(self) -> int:
        return self.cfg.run.seed

    def arguments(self) -> list[str]:
        """List the arguments of train.py that train it, or train it on."""
        init_from = self.given.get("init_from", "auto")  # resume it if it is there
        if is_run(self.path):
            init_from = "resume"
        options = self.given | {"out_dir": str(self.path), "init_from": init_from}
        return to_arguments(self.recipe, options)


@dataclass(frozen=True)
class Sweep:
    """Runs whose options differ, in a folder of their own."""

    folder: Path
    fixed: Options
    varied: Values
    runs: list[PlannedRun]


def read_sweep(argv: list[str], steps: Steps = NO_STEPS) -> tuple[Sweep, SweepOptions]:
    """Read the arguments of sweep.py, and plan its runs.

    `steps` has the max_iters of each group, where they follow from the time.

    UserError with the mistakes of all combinations of options at once.
    """
    meaning = "the recipe of train.py, or several with commas between; none = all defaults"
    words, given = parse_repeated(SweepConfig, argv, "[RECIPE]", "?", meaning)
    own = {}
    for name in SweepOptions.model_fields:
        if name in given:
            own[name] = given.pop(name)[-1]
    for name in given:
        if name not in section_of(Config) and not name.startswith("-"):
            raise UserError(f"{name}: recipes and values have commas between them, and no spaces")
    options = merge(SweepOptions, None, own)
    check_modes(options, own)
    recipes = split_recipes(words)
    values = {name: split_values(name, texts) for name, texts in given.items()}
    check_values(values)
    folder = name_folder(recipes, values, options)
    if is_run(folder) or folder.is_file():
        raise UserError(f"{folder}: is no folder of a sweep; name another --out_dir")
    check_place(folder)
    values.pop("out_dir", None)
    if len(recipes) > 1:
        values = {RECIPE: recipes, **values}
    fixed = fixed_options(values)
    varied = {name: texts for name, texts in values.items() if len(texts) > 1}
    runs = plan_runs(folder, recipes[0], fixed, varied, steps)
    for name in varied:  # without those that another writing has, as 1e-2 of 0.01
        varied[name] = list(dict.fromkeys(run.varied[name] for run in runs))
    return Sweep(folder, fixed, varied, runs), options


def check_modes(options: SweepOptions, own: Options) -> None:
    """Raise a UserError for options of a sweep that do not go together.

    `own` are those that were given. A job array that counts from 0 would train all runs first.
    """
    modes = [name for name in ("list", "only", "find_lr") if getattr(options, name)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} do not go together: name one of them")
    if "only" in own and not options.only:
        raise UserError("only=0: the lines of --list are counted from 1; leave it out to train all")


def check_values(values: Values) -> None:
    """Raise a UserError for options whose values cannot be compared."""
    for name, texts in values.items():
        if name in UNCOMPARED and len(texts) > 1:
            raise UserError(f"{name}: changes no loss, so there is nothing to compare; name one")
    if len(values.get("split", [])) > 1:
        raise UserError("split: losses on two texts cannot be compared; name one")
    if "resume" in values.get("init_from", []):
        raise UserError("init_from=resume: leave it out; a sweep resumes runs that were cut off")


def fixed_options(values: Values) -> Options:
    """Return the options that have one value."""
    return {name: texts[0] for name, texts in values.items() if len(texts) == 1}


def split_recipes(words: list[str]) -> list[str]:
    """List the recipes that are named; the name of a run's directory may have commas itself."""
    if not words:
        return [""]
    if Path(words[0]).exists():
        return words
    names = [name.strip() for name in words[0].split(",")]
    return list(dict.fromkeys(filter(None, names))) or [""]


def split_values(name: str, texts: list[str]) -> list[str]:
    """List the values of an option: numbers and choices have commas between them.

    An option whose value is a text is given again for each value.
    """
    values = texts
    if not takes_text(name):
        values = [value.strip() for text in texts for value in text.split(",")]
    return list(dict.fromkeys(values))


def takes_text(name: str) -> bool:
    """Return whether an option's value is a text, which may have commas, or a word unknown here."""
    for section in sections(Config).values():
        field = section.model_fields.get(name)
        if field is not None:
            return field.annotation is str
    return True


def name_folder(recipes: list[str], values: Values, options: SweepOptions) -> Path:
    """Name the folder of a sweep after its recipe, and the options that stay fixed in it."""
    out_dir = values.get("out_dir", [""])
    if len(out_dir) > 1:
        raise UserError("out_dir is the folder of the whole sweep: name one")
    if out_dir[0]:
        return Path(out_dir[0]).expanduser()
    recipe = Path("recipes.toml")
    if len(recipes) == 1:
        recipe = Path(recipes[0] or "default.toml")
        if recipe.is_dir():  # a run
            recipe /= "config.toml"
    fixed = fixed_options(values)
    path = choose_out_dir(recipe, fixed, source=fixed.get("init_from", ""), resumes=False)
    name = f"sweep-{path.name}"  # beside the run of this recipe
    if options.equal_seconds:
        name += f",equal_seconds={options.equal_seconds:g}"
    return path.with_name(name)


def plan_runs(
    folder: Path, recipe: str, fixed: Options, varied: Values, steps: Steps
) -> list[PlannedRun]:
    """Plan a run for each combination of the values that vary.

    A run that is there already keeps its name. UserError with the mistakes of all combinations.
    """
    count = 1
    for values in varied.values():
        count *= len(values)
    if count > MAX_RUNS:
        raise UserError(f"these are {count:,} runs, and at most {MAX_RUNS:,} are a sweep")
    there = find_runs(folder)
    trained = index_runs(there)
    identities: set[str] = set()
    taken = {path.name for path, _ in there}
    planned = {"logs"}  # names in lower case: file systems of macOS and Windows know no other
    problems: dict[str, None] = {}
    runs: list[PlannedRun] = []
    for combination in itertools.product(*varied.values()):
        own = dict(zip(varied, combination, strict=True))
        given = fixed | own
        own_recipe = given.pop(RECIPE, recipe)
        setting = name_options(own)
        if setting in steps:
            given["max_iters"] = str(steps[setting])
        try:
            cfg = load_planned(own_recipe, given)
        except UserError as error:
            problems |= dict.fromkeys(str(error).split("\n  "))
            continue
        path = trained.get(identify(cfg))
        is_planned = path is not None and path.name.lower() in planned  # dtype=auto, and its choice
        if is_planned or identify(cfg) in identities:  # 0.01 and 1e-2
            continue
        identities.add(identify(cfg))
        if path is None:
            name = choose_name(own)
            if name is None or name.lower() in planned:  # as of a/recipe.toml and b/recipe.toml
                name = next(number for number in numbers() if number not in taken)
            path = folder / name
            refuse_other(path, there, cfg)
            taken.add(name)
        planned.add(path.name.lower())
        runs.append(PlannedRun(path, own_recipe, given, own, cfg))
    if problems:
        raise UserError("\n  ".join(problems))
    return runs


def load_planned(recipe: str, given: Options) -> Config:
    """Load the configuration that a new run of these options would have."""
    cfg, _ = load_config(to_arguments(recipe, given))
    return cfg


def to_arguments(recipe: str, given: Options) -> list[str]:
    """List the arguments of train.py; unknown words, which it refuses, stand as they were given."""
    arguments = []
    if recipe:
        arguments.append(recipe)
    for name, value in given.items():
        if name.startswith("-"):
            arguments.append(name)
        else:
            arguments.append(f"--{name}={value}")
    return arguments


def find_runs(folder: Path) -> Runs:
    """Find the runs in a folder, and the options that they were trained with."""
    paths = sorted(filter(is_run, folder.glob("*")))
    return [(path, load_saved(path / "config.toml")) for path in paths]


def index_runs(there: Runs) -> dict[str, Path]:
    """Find the first run of each identity; also with dtype=auto, which chose that of the run."""
    found: dict[str, Path] = {}
    for path, cfg in there:
        found.setdefault(identify(cfg), path)
        found.setdefault(identify(cfg.with_run(dtype="auto")), path)
    return found


def compared_options(cfg: Config) -> dict[str, Any]:
    """Return the options that decide what a training learns."""
    options = cfg.options()
    for name in WITHOUT_EFFECT:
        del options[name]
    return options | {"init_from": cfg.run.source}


def identify(cfg: Config) -> str:
    """Return a text that two configurations share if they train the same."""
    return repr(compared_options(cfg))


def refuse_other(path: Path, there: Runs, cfg: Config) -> None:
    """Raise a UserError if a run of that name was trained with other options."""
    for other, saved in there:
        if other == path:
            before = compared_options(saved)
            now = compared_options(cfg)
            if now["dtype"] == "auto":  # the run has what was chosen then
                now["dtype"] = before["dtype"]
            changes = [
                f"{name} was {before[name]} and is now {value}"
                for name, value in now.items()
                if value != before[name]
            ]
            raise UserError(
                f"{path}: was trained with other options ({', '.join(changes)}); name another "
                "--out_dir for this sweep"
            )


def choose_name(varied: Options) -> str | None:
    """Name a run after what it varies; None where that would be long, or no name of a file."""
    parts = []
    for name, value in varied.items():
        if name == RECIPE:
            parts.append(Path(value).stem)
        else:
            parts.append(f"{name}={value}")
    name = ",".join(parts) or "run"
    if len(name) > LONGEST or not re.fullmatch(r"[\w.,=+-]*[\w,=+-]", name):
        return None
    return name


def name_group(varied: Options) -> str:
    """Name a group of runs after what varies but the seed; the value alone, where one option does.

    >>> name_group({"n_layer": "2", "seed": "1"}), name_group({"n_layer": "2", "n_head": "4"})
    ('2', 'n_layer=2,n_head=4')
    """
    values = [value for name, value in varied.items() if name != "seed"]
    if len(values) == 1:
        return values[0]
    return name_options(varied)


def name_options(varied: Options) -> str:
    """Name the options that vary but the seed, with their values, also where it is only one."""
    options = {name: value for name, value in varied.items() if name != "seed"}
    return ",".join(f"{name}={value}" for name, value in options.items()) or SAME


def numbers() -> Iterator[str]:
    return map(str, itertools.count(1))
