"""Configuration: order of precedence, mistakes told well, and every knob does something."""

import io
import json
import shutil
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import pytest

import report
from config.cli import load_config, parse_config, to_toml
from config.schema import Config
from errors import UserError
from model import GPT
from tests.conftest import ROOT, TINY
from train import train

RECIPES = sorted((ROOT / "config").glob("*.toml"))
KNOBS = [name for section in Config().model_dump().values() for name in section]


def test_names_are_unique_across_sections() -> None:
    assert len(KNOBS) == len(set(KNOBS))


def test_defaults_then_recipe_then_command_line(tmp_path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[optim]\nmax_iters = 7\nbatch_size = 3\n")
    config = load_config([str(recipe), "--batch_size=5"])
    assert (config.optim.max_iters, config.optim.batch_size) == (7, 5)
    assert config.model == Config().model
    assert config.run.out_dir == "out/mine"
    assert load_config([]).run.out_dir == "out/shakespeare_char"
    assert load_config(["--corpus=a/b.txt", "--tokenizer=bpe"]).run.out_dir == "out/b_bpe"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_sound_and_survive_saving(recipe, tmp_path) -> None:
    config = load_config([str(recipe)])
    assert parse_config(to_toml(config), tmp_path / "config.toml") == config


@pytest.mark.parametrize(("argv", "message"), [
    (["--max_itrs=5"], "no such option; did you mean max_iters"),
    (["--n_layer=two"], "n_layer=two: .*integer"),
    (["--dropout=1.5"], "dropout=1.5: .*less than 1"),
    (["--learning_rate=nan"], "learning_rate=nan: .*finite"),
    (["--tokenizer=word"], "tokenizer=word: .*'char', 'bpe' or 'gpt2'"),
    (["--n_embd=130"], "n_embd=130 is not a multiple of n_head=4; try n_embd=128"),
    (["--n_embd=12", "--n_head=4"], "rotary positions need an even head width"),
    (["--warmup_iters=900"], "warmup_iters=900 is more than max_iters"),
    (["--corpus=markov", "--tokenizer=bpe"], "entropy of markov is known .*: leave tokenizer as it is"),
    (["--mask=a{9999999999}"], "not a regular expression"),
    (["--mask=" + "(" * 9999 + ")" * 9999], "not a regular expression"),
    (["--mask=[[a]"], "not a regular expression: Possible nested set"),
    (["--mask=\udcff"], "mask='.udcff': has a character that no file name and no TOML file may have"),
    (["--teacher=a\0b"], "teacher='a.x00b': has a character that no file name"),
    (["--corpus=caf\udce9.txt"], "corpus=caf.*: "),
    (["--markov_order=1"], "markov_order=1 needs --corpus=markov"),
    (["--micro_batch_size=65"], "micro_batch_size=65 is more than batch_size"),
    (["--seed"], "--seed: expected one argument"),
    ([str(RECIPES[0]), "b.toml"], "unexpected argument"),
    (["missing.toml"], "no such recipe; there are .*shakespeare_char"),
    (["--n_layer=0", "--dropuot=1"], "2 problems(.|\n)*dropout(.|\n)*greater than or equal to 1"),
])
def test_mistakes_on_the_command_line(argv, message) -> None:
    with pytest.raises(UserError, match=message):
        load_config(argv)


@pytest.mark.parametrize(("toml", "message"), [
    ("[model]\nn_layr = 3", r"\[model\] has no n_layr; did you mean n_layer"),
    ("[optim]\nn_layer = 3", r"\[optim\] has no n_layer; it belongs in \[model\]"),
    ("n_layer = 3", r"n_layer stands outside a section; it belongs in \[model\]"),
    ("[modle]\nn_layer = 3", r"\[modle\] is no section; did you mean model"),
    ("[model]\nn_layer = '3'", "n_layer=3: .*integer"),
    ("[model]\ndropout = true", "dropout=True: .*number"),
    ("[model\n", "not a readable TOML file"),
    ("[model]\nn_head = 0\n[run]\nsede = 1", "2 problems"),
])
def test_mistakes_in_a_recipe(toml, message, tmp_path) -> None:
    (tmp_path / "mine.toml").write_text(toml)
    with pytest.raises(UserError, match=message):
        load_config([str(tmp_path / "mine.toml")])


# For each knob, arguments that differ from the base run's; and what the base run needs for it to show.
CHANGES: dict[str, tuple[list[str], list[str]]] = {
    "corpus": (["--corpus=other.txt"], []),
    "tokenizer": (["--tokenizer=bpe", "--vocab_size=300"], []),
    "vocab_size": (["--vocab_size=280"], ["--tokenizer=bpe", "--vocab_size=300"]),
    "val_fraction": (["--val_fraction=0.3"], []),
    "documents": (["--documents=lines"], []),
    "padded": (["--padded"], ["--documents=lines"]),
    "score_end": (["--score_end=false"], ["--documents=lines"]),
    "mask": (["--mask=^the"], []),
    "document_attention": (["--document_attention"], ["--documents=lines", "--block_size=64"]),
    "markov_order": (["--markov_order=1"], ["--corpus=markov"]),
    "markov_alphabet": (["--markov_alphabet=5"], ["--corpus=markov"]),
    "markov_temperature": (["--markov_temperature=2"], ["--corpus=markov"]),
    "block_size": (["--block_size=16"], []),
    "n_layer": (["--n_layer=1"], []),
    "n_head": (["--n_head=1"], []),
    "n_embd": (["--n_embd=32"], []),
    "dropout": (["--dropout=0.3"], []),
    "bias": (["--bias"], []),
    "position": (["--position=learned"], []),
    "norm": (["--norm=layernorm"], []),
    "activation": (["--activation=gelu"], []),
    "qk_norm": (["--qk_norm=false"], []),
    "tied": (["--tied"], []),
    "ngram": (["--ngram=2"], []),
    "zero_init": (["--zero_init=false"], []),
    "label_smoothing": (["--label_smoothing=0.1"], []),
    "teacher": (["--teacher=teacher"], []),
    "alpha": (["--alpha=0.2"], ["--teacher=teacher"]),
    "temperature": (["--temperature=3"], ["--teacher=teacher"]),
    "softcap": (["--softcap=2"], []),
    "z_loss": (["--z_loss=0.01"], []),
    "batch_size": (["--batch_size=5"], []),
    "max_iters": (["--max_iters=3"], []),
    "optimizer": (["--optimizer=adamw"], []),
    "learning_rate": (["--learning_rate=0.1"], []),
    "muon_learning_rate": (["--muon_learning_rate=0.1"], []),
    "schedule": (["--schedule=cosine"], []),
    "warmup_iters": (["--warmup_iters=2"], []),
    "decay_fraction": (["--decay_fraction=0.5"], []),
    "min_lr_ratio": (["--min_lr_ratio=0.5"], []),
    "weight_decay": (["--weight_decay=0.5"], []),
    "beta1": (["--beta1=0.5"], []),
    "beta2": (["--beta2=0.5"], []),
    "momentum": (["--momentum=0.5"], []),
    "grad_clip": (["--grad_clip=0.001"], []),
    "out_dir": (["--out_dir=out/elsewhere"], []),
    "init_from": (["--init_from=resume"], []),
    "seed": (["--seed=2"], []),
    "compile": (["--compile"], []),
    "dtype": (["--dtype=bfloat16"], []),
    "micro_batch_size": (["--micro_batch_size=1"], ["--dropout=0.3"]),
    "eval_interval": (["--eval_interval=3"], []),
    "eval_tokens": (["--eval_tokens=200"], []),
    "log_interval": (["--log_interval=3"], ["--checkpoint_interval=6"]),
    "checkpoint_interval": (["--checkpoint_interval=1"], ["--log_interval=6"]),
    "max_bad_steps": (["--max_bad_steps=2"], ["--optimizer=adamw", "--learning_rate=1e38", "--norm=layernorm",
                                              "--qk_norm=false", "--grad_clip=0"]),
    "patience": (["--patience=1"], ["--learning_rate=0", "--muon_learning_rate=0"]),
}


@pytest.fixture(scope="module")
def observe(tmp_path_factory):
    """Everything that a run shows: metrics but for clocks, files, and printed lines."""
    directory = tmp_path_factory.mktemp("knobs")

    def observe(argv: tuple[str, ...]) -> tuple[object, ...]:
        out = io.StringIO()
        if "--init_from=resume" not in argv:
            shutil.rmtree(directory / "out", ignore_errors=True)
        with redirect_stdout(out):
            train(load_config(["--corpus=text.txt", *TINY, *argv]))
        folder = next(directory.glob("out/*"))
        metrics = [{key: value for key, value in json.loads(line).items() if "second" not in key}
                   for line in (folder / "metrics.jsonl").read_text().splitlines()]
        files = sorted(path.name for path in folder.rglob("*"))
        return folder.name, metrics, files, out.getvalue().split(report.COLUMNS)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.prepare.DATA", directory / "data")
        patch.setattr("data.prepare.LENGTH", 3000)  # of the markov corpus
        patch.chdir(directory)
        from tests.conftest import make_text

        (directory / "text.txt").write_text(make_text(), encoding="utf-8")
        (directory / "other.txt").write_text(make_text(500), encoding="utf-8")
        with redirect_stdout(out := io.StringIO()):
            train(load_config(["--corpus=text.txt", *TINY, "--out_dir=teacher"]))
        assert out.getvalue()
        yield observe


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_changes_something(knob, observe, monkeypatch) -> None:
    if knob == "compile":  # the compiler itself would take longer than all of these tests
        monkeypatch.setattr(GPT, "compile", lambda model: print("compiling"))
    if knob == "explain_batch":  # nothing is trained
        with redirect_stdout(out := io.StringIO()):
            train(load_config(["--corpus=text.txt", *TINY, "--out_dir=explained", "--explain_batch"]))
        assert "token by token" in out.getvalue()
        assert not Path("explained").exists()
        return
    if knob == "init_from":
        observe(("--out_dir=out/run",))
    if knob == "device":  # no second device here: asking for one must at least be answered
        with pytest.raises(UserError, match="this machine"):
            observe(("--device=cuda:99",))
        return
    change, base = CHANGES[knob]
    assert observe((*base, "--out_dir=out/run", *change)) != observed_base(observe, tuple(base))


def test_the_same_knobs_change_nothing(observe) -> None:
    observed_base.cache_clear()
    assert observed_base(observe, ()) == observe(("--out_dir=out/run",))


@lru_cache
def observed_base(observe, base: tuple[str, ...]) -> tuple[object, ...]:
    return observe((*base, "--out_dir=out/run"))
