"""Takes options from the directory of a run: one that a training resumes, or starts from."""

from pathlib import Path
from typing import Any

from config.errors import UserError, did_you_mean
from config.files import is_run, nearest_run
from config.recipe import load_saved
from config.schema import Config, DataConfig, ModelConfig, TablesConfig
from config.values import Section

SHAPE = {*ModelConfig.model_fields, *TablesConfig.model_fields}
# These may be named where a training resumes a run, or starts with its model.
MAY_DIFFER = {"dropout", "table_dropout", "table_learning_rate"}
# These stay on resume: with others it would be another model or text.
MUST_STAY = {*DataConfig.model_fields, *SHAPE, "optimizer"} - MAY_DIFFER

# What a checkpoint keeps with the weights: a text may move.
KEPT = MUST_STAY - {"corpus", "tokenizer"}
# What changes on resume only if it is named on the command line.
BY_NAME = {
    "seed": "the weights stay, batches and dropout change",
    "batch_size": "the rest of the text is divided into other batches",
    "dtype": "the arithmetic changes",
}


def kept_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that weights belong to: others mean another model or text."""
    return {name: value for name, value in options.items() if name in KEPT}


def resume_config(asked: Config, named: set[str], path: Path) -> Config:
    """Load the configuration of the run in `path`, and put the options that are asked for into it.

    These are the `named` ones, of the command line, and those of a recipe, but for what must stay:
    a recipe may name a text or a shape that the command line replaced when the run began.
    """
    saved = load_saved(path / "config.toml")
    updates = {}
    for section, options in asked:
        changes = {}
        for name in options.model_fields_set:
            if name in named or name not in MUST_STAY:
                changes[name] = getattr(options, name)
        updates[section] = getattr(saved, section).model_copy(update=changes)
    return saved.model_copy(update=updates)


def unused_options(recipe: Config, cfg: Config, named: set[str]) -> list[str]:
    """Name the options of a recipe that a resumed run does not use, a line each."""
    lines = []
    for section, options in recipe:
        for name in sorted(options.model_fields_set & MUST_STAY - named):
            value = getattr(options, name)
            kept = getattr(getattr(cfg, section), name)
            if value != kept:
                lines.append(f"{name}={value} of the recipe is not used: the run has {name}={kept}")
    return lines


def adopt_shape(cfg: Config) -> Config:
    """Return the configuration with the shape and the tokens of the run that it starts from.

    UserError for options that ask for another model; only those in MAY_DIFFER and a smaller
    `block_size` may differ.
    """
    source = cfg.run.source
    if not is_run(Path(source)):
        meant = did_you_mean(source, ("scratch", "resume", "auto")) or nearest_run(Path(source))
        raise UserError(
            f"init_from={source}: should be scratch, resume, auto, or the directory of a run{meant}"
        )
    saved = load_saved(Path(source) / "config.toml")
    data = cfg.data.model_copy(update={"tokenizer": source})
    updates: dict[str, Section] = {"data": data}
    wrong = []
    for section in ("model", "tables"):
        asked = getattr(cfg, section)
        shape = getattr(saved, section)
        kept = {}
        for name, value in asked.model_dump(exclude_unset=True).items():
            own = getattr(shape, name)
            is_smaller = name == "block_size" and value < own
            if name in MAY_DIFFER or is_smaller:
                kept[name] = value
            elif value != own:
                wrong.append(f"{name}={value}: {source} has {name}={own}")
        updates[section] = shape.model_copy(update=kept)
    tokenizer = cfg.data.tokenizer
    if "tokenizer" in cfg.data.model_fields_set and tokenizer != source:
        wrong.append(f"tokenizer={tokenizer}: {source} has tokens of its own")
    if wrong:
        raise UserError("\n  ".join(wrong))
    return cfg.model_copy(update=updates)


def changed_options(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the options of a resumed run that are not as before, as [before, after].

    Where the text and the run are does not matter.
    """
    changes = {}
    for name, now in after.items():
        if before[name] != now and name not in ("corpus", "out_dir", "init_from"):
            changes[name] = [before[name], now]
    return changes


def refuse_changes(changes: dict[str, list[Any]], named: set[str]) -> list[str]:
    """Return what is wrong with the changes of a resumed run; `named`: on the command line."""
    problems = []
    for name, (was, now) in changes.items():
        if name in MUST_STAY:
            problems.append(
                f"{name} was {was} and is now {now}: that would be another model or text"
            )
        elif name in BY_NAME and name not in named:
            problems.append(
                f"{name} was {was} and is now {now}: {BY_NAME[name]}; if you want that, add "
                f"--{name}={now}"
            )
    return problems
