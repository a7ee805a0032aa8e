"""What a resumed run takes from its directory: every option that is not named."""

from pathlib import Path

from config.recipe import load_saved
from config.schema import Config, DataConfig, ModelConfig

# These stay on resume: with others it would be another model or text.
MUST_STAY = {*DataConfig.model_fields, *ModelConfig.model_fields, "optimizer"} - {"dropout"}


def resume_config(asked: Config, named: set[str], path: Path) -> Config:
    """The configuration of the run in `path`, with the options that are asked for.

    These are the `named` ones, of the command line, and those of a recipe, but for what must stay:
    a recipe may name a text or a shape that the command line replaced when the run began.
    """
    saved = load_saved(path / "config.toml")
    updates = {}
    for section, options in asked:
        changes = {
            name: getattr(options, name)
            for name in options.model_fields_set
            if name in named or name not in MUST_STAY
        }
        updates[section] = getattr(saved, section).model_copy(update=changes)
    return saved.model_copy(update=updates)


def unused_options(recipe: Config, cfg: Config, named: set[str]) -> list[str]:
    """What a recipe says that a resumed run does not do, a line each."""
    lines = []
    for section, options in recipe:
        for name in sorted(options.model_fields_set & MUST_STAY - named):
            value = getattr(options, name)
            kept = getattr(getattr(cfg, section), name)
            if value != kept:
                lines.append(f"{name}={value} of the recipe is not used: the run has {name}={kept}")
    return lines
