"""Options of earlier editions are translated, or refused in a line that says what to write."""

from pathlib import Path

import pytest

from config.cli import load_config
from config.errors import UserError
from config.old_options import FORMS, translate
from config.recipe import load_saved
from config.schema import Config, ModelConfig, RunConfig
from tests.conftest import ROOT

GPT2 = ["--position=learned", "--norm=layernorm", "--activation=gelu", "--zero_init=false"]


@pytest.mark.parametrize("form", FORMS)
def test_old_options_express_a_form(form: str) -> None:
    old = dict(FORMS[form])
    assert translate(old, is_saved=False) == []
    assert old == {"form": form, "qk_norm": True, "embedding_norm": True, "tied": False}


def test_words_of_the_command_line_are_translated() -> None:
    cfg, named = load_config([*GPT2, "--bias", "--qk_norm=false", "--tied=true"])
    expected = ModelConfig(form="gpt2", qk_norm=False, embedding_norm=True, tied=True)
    assert cfg.model == expected
    assert named == {"form", "qk_norm", "tied"}
    assert cfg.run.out_dir == "out/default,form=gpt2,qk_norm=false,tied=true"
    assert load_config(["--tracker=none"])[0].run.watchers == "page"


def test_an_old_word_changes_the_form_of_a_recipe() -> None:
    recipe = str(ROOT / "config/nanogpt_cpu.toml")
    cfg, _ = load_config([recipe, "--bias=true"])
    assert cfg.model == load_config([recipe, "--form=gpt2"])[0].model
    assert cfg.model.form == "gpt2"


def test_a_markov_corpus_has_its_options_in_its_name() -> None:
    cfg, named = load_config(["--corpus=markov", "--markov_order=1", "--markov_alphabet=5"])
    assert cfg.data.corpus == "markov-1-5-0.5"
    assert cfg.data.markov == (1, 5, 0.5)
    assert named == {"corpus"}
    assert load_config(["--corpus=markov", "--markov_order=2"])[0].data.corpus == "markov"
    recipe = str(ROOT / "config/markov.toml")
    assert load_config([recipe, "--markov_order=1"])[0].data.corpus == "markov-1-16-0.5"


def test_a_tracker_becomes_a_watcher() -> None:
    section = {"tracker": "wandb"}
    assert translate(section, is_saved=False) == []
    assert section == {"watchers": "page,wandb"}
    assert RunConfig.model_validate(section).watcher_names == ["page", "wandb"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--bias"], "bias=True: form replaces bias, .*: write form=nanochat"),
        (GPT2[:1], "position=learned: form replaces"),
        (GPT2[:3], "position=learned, norm=layernorm, activation=gelu: form replaces"),
        (["--bias=perhaps"], "bias=perhaps: form replaces"),
        (["--zero_init=false"], "zero_init=False: form replaces"),
        (["--markov_order=1"], "markov_order=1: write --corpus=markov-ORDER-ALPHABET-TEMPERATURE"),
        (["--corpus=markov", "--markov_order=4"], "corpus=markov-4-27-0.5: .* an order of 1 to 3"),
        (["--tracker=wand"], "watchers=page,wand: should be one of page, tensorboard, wandb"),
        (["--parallel=fsdp"], "parallel=fsdp: this option is gone: torchrun's ranks"),
        (["--ngram_rows=5"], "ngram_rows=5: this option is gone: write table_rows in "),
        (["--ngram_embedding=4"], "ngram_embedding=4: this edition .* with max_ngram=4 in "),
        (["--explain_batch"], "explain_batch=True: this option is gone: python data/prepare.py"),
    ],
    ids=str,
)
def test_what_no_option_expresses_is_refused_in_one_line(argv: list[str], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}") as error:
        load_config(argv)
    assert "\n" not in str(error.value)


def test_a_saved_run_needs_no_options_of_its_start(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[data]\nmarkov_order = 3\n[model]\nzero_init = false\n"
        '[run]\nparallel = "fsdp"\ntracker = "none"\nseed = 5\n',
        encoding="utf-8",
    )
    assert load_saved(path) == Config(run=RunConfig(seed=5))
    recipe = path.rename(tmp_path / "recipe.toml")
    with pytest.raises(UserError, match="zero_init=False: form replaces"):
        load_config([str(recipe)])


def test_defaults_depend_on_the_form() -> None:
    assert Config().changed() == {}
    assert Config(model=ModelConfig(form="gpt2")).changed() == {"form": "gpt2"}
    mixed = ModelConfig(form="nanogpt", tied=False)
    assert (mixed.qk_norm, mixed.embedding_norm) == (False, False)
    assert Config(model=mixed).changed() == {"form": "nanogpt", "tied": False}


def test_another_mistake_beside_the_form_is_told_alone() -> None:
    with pytest.raises(UserError) as error:
        load_config(["--form=gpt3", "--n_layer=0"])
    first, second = str(error.value).split("\n")
    assert first.strip().startswith("form=")
    assert second.strip().startswith("n_layer=")


def test_a_saved_model_of_before_has_no_smear() -> None:
    saved = {"n_embd": 96}
    translate(saved, is_saved=True)
    assert saved == {"n_embd": 96, "smear": False}
    recipe = {"n_embd": 96}
    translate(recipe, is_saved=False)
    assert ModelConfig.model_validate(recipe).smear
