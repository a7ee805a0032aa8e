"""The command line of train.py: defaults < TOML recipe < options, checked together."""

import os
import re
from pathlib import Path

from config.checks import find_problems
from config.errors import UserError
from config.files import check_entries, is_run, short_name
from config.old_options import take_old_words, todays_words
from config.parser import parse_words
from config.recipe import merge
from config.resume import adopt_shape, resume_config, unused_options
from config.schema import Config, RunConfig


def load_config(argv: list[str]) -> tuple[Config, set[str]]:
    """Load the configuration of `train.py [RECIPE] [--name=value ...]`, and the options in argv.

    A run that is resumed keeps what is not named. UserError with all mistakes at once.
    """
    cfg, named, _ = load_training(argv)
    return cfg, named


def load_training(argv: list[str]) -> tuple[Config, set[str], list[str]]:
    """Do as load_config; also say what the recipe of a resumed run has that is not used."""
    path, given = _read_arguments(argv)
    cfg = merge(Config, path, given)
    old_words = take_old_words(given)  # which are no longer in `given`
    given |= todays_words(old_words, cfg.options())
    named = set(given)
    if not cfg.run.out_dir:
        out_dir = choose_out_dir(path, given, cfg.run.source, cfg.run.resumes)
        cfg = cfg.with_run(out_dir=str(out_dir))
    run = Path(cfg.run.out_dir)
    unused: list[str] = []
    if cfg.run.resumes and is_run(run):
        asked = cfg
        cfg = resume_config(asked, named, run)
        unused = unused_options(asked, cfg, named)
    elif cfg.run.init_from == "auto":  # there is no run yet: it starts as the recipe says
        cfg = cfg.with_run(init_from=_recipe_source(path, given) or "auto")
    if cfg.run.source:
        cfg = adopt_shape(cfg)
    if problems := find_problems(cfg):
        raise UserError("\n  ".join(problems))
    return cfg, named, unused


def _read_arguments(argv: list[str]) -> tuple[Path | None, dict[str, str]]:
    """Read the path of the recipe, and {option: text}."""
    meaning = (
        "TOML file with the options that differ from the defaults, or a run's directory; "
        "none = all defaults"
    )
    paths, given = parse_words(Config, argv, "[RECIPE]", "?", meaning)
    if not paths:
        return None, given
    path = Path(paths[0])
    if path.is_dir():
        path /= "config.toml"  # of a run
        if os.path.lexists(path):
            check_entries(path.parent)
    return path, given


def _recipe_source(path: Path | None, given: dict[str, str]) -> str:
    """Return the model to start from that the recipe names, whatever the command line does."""
    others = given.copy()
    others.pop("init_from", None)
    return merge(Config, path, others).run.source


def choose_out_dir(path: Path | None, given: dict[str, str], source: str, resumes: bool) -> Path:
    """Name a run out/RECIPE, followed by the options that differ.

    Where the recipe is a run, the new one stands beside it, or it is that run which is resumed.
    """
    base = Path("out/default")
    if path and path.name == "config.toml":  # of a run
        base = path.parent
        if resumes:
            return base
    elif path:
        base = Path("out") / path.stem
    telling = {"seed"}  # of the options in [run], those that change the model
    if source:
        telling.add("init_from")
    parts = [base.name]
    for name in Config().options():  # in this order, whatever that of `given` is
        changes_model = name in telling or name not in RunConfig.model_fields
        if name in given and changes_model:
            parts.append(f"{name}={given[name]}")
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(parts))
    return base.parent / short_name(name)
