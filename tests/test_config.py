"""Options: order of precedence, clear mistakes, names of runs; every option does something."""

import math
import os
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from compress import CompressOptions
from config.aliases import ELSEWHERE, name_here
from config.cli import load_config
from config.errors import UserError
from config.files import check_place, lock_of, short_name, write_atomically
from config.parser import load_options
from config.recipe import load_saved, to_toml
from config.schema import Config
from curves import CurveOptions
from engine.run import open_run
from evaluate import EvaluateOptions
from report.progress import COLUMNS
from sample import SampleOptions
from tests.conftest import (
    ROOT,
    TINY,
    call,
    make_text,
    only_numbers,
    other_dtype,
    read_metrics,
    without_clocks,
)

RECIPES = sorted((ROOT / "config").glob("*.toml"))
OPTIONS = list(Config().options())


def test_names_are_unique_across_sections() -> None:
    names = [name for section in Config().model_dump().values() for name in section]
    assert len(names) == len(set(names))


def test_of_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    """Fast, and with names cut where they are long."""
    with pytest.raises(UserError) as told:
        load_config([f"--zzz{number}=1" for number in range(5000)])
    *lines, last = str(told.value).splitlines()
    assert len(lines) == 10
    assert lines[0] == "--zzz0=1: no such option; --help lists them all"
    assert last == "  ... and 4,990 more"
    with pytest.raises(UserError) as told:
        load_config([f"--{'x' * 5000}=1"])
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("words", [["--", "--log_interval=3"], ["log_interval=3"]])
def test_the_advice_for_an_option_that_looks_like_a_recipe(words: list[str]) -> None:
    with pytest.raises(
        UserError, match="no such recipe and no run; for an option, write --log_interval=3; "
    ):
        load_config(words)


def test_defaults_then_recipe_then_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[optim]\nmax_iters = 7\nbatch_size = 3\n")
    cfg, named = load_config([str(recipe), "--batch_size=5"])
    assert (cfg.optim.max_iters, cfg.optim.batch_size) == (7, 5)
    assert cfg.model == Config().model
    assert named == {"batch_size"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_sound_and_survive_saving(recipe: Path, tmp_path: Path) -> None:
    # the model to start from is not here
    from_nothing = ["--init_from=scratch"] * recipe.stem.startswith("finetune")
    cfg, _ = load_config([str(recipe), *from_nothing])
    (tmp_path / "config.toml").write_text(to_toml(cfg), encoding="utf-8")
    assert load_saved(tmp_path / "config.toml") == cfg.with_run(out_dir="")


@pytest.mark.parametrize(
    ("argv", "out_dir"),
    [
        ([], "out/default"),
        (["--n_layer=1"], "out/default,n_layer=1"),
        (["--n_layer=1", "--tied"], "out/default,n_layer=1,tied=true"),
        (["--corpus=../my text/b.txt"], "out/default,corpus=.._my_text_b.txt"),
        (["config/words.toml"], "out/words"),
        (["config/words.toml", "--n_layer=1"], "out/words,n_layer=1"),
        # does not change the model
        (["config/words.toml", "--eval_interval=5", "--device=cpu"], "out/words"),
        (["config/words.toml", "--out_dir=out/mine", "--n_layer=1"], "out/mine"),
    ],
)
def test_a_run_has_the_name_of_its_recipe_and_of_the_options_that_differ(
    argv: list[str], out_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert load_config(argv)[0].run.out_dir == out_dir


@pytest.mark.parametrize("word", ["a" * 250, "日" * 90, "🎉" * 300])
def test_a_long_name_of_a_run_is_shortened(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run, its lock and an older run of that name can be made."""
    monkeypatch.chdir(tmp_path)
    names = []
    for end in ("1", "2", "1"):
        cfg, _ = load_config([f"--mask={word}{end}"])
        names.append(Path(cfg.run.out_dir))
    assert names[0] == names[2] != names[1]
    for name in names:
        assert name.name.startswith("default,")
        name.mkdir(parents=True, exist_ok=True)
        lock_of(name).touch()
        name.with_name(f"{name.name}.1000").touch()
    assert os.fsencode(short_name("é" * 119)) == "é".encode() * 119


def test_a_corpus_may_have_the_longest_name(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_numbers(monkeypatch)
    name = "a" * 251 + ".txt"
    Path(name).write_text(make_text(), encoding="utf-8")
    call("train.py", f"--corpus={name}", *TINY, "--max_iters=1")
    (run,) = Path("out").iterdir()
    assert open_run(run).cfg.data.corpus == name


def test_a_file_may_have_the_longest_name_and_a_longer_one_is_told_first(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    check_place(path)
    write_atomically(path, b"text")
    assert path.read_bytes() == b"text"
    with pytest.raises(OSError, match="too long"):
        check_place(tmp_path / ("a" * 256))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_itrs=5"], r"no such option; did you mean --max_iters\?"),
        (["--weight-decay=0.1"], r"no such option; did you mean --weight_decay\?"),
        (["--data=foo"], "--data=foo: no such option; here it is --corpus$"),
        (["--run=foo"], "--run=foo: no such option; here it is --out_dir$"),
        (
            ["--lr", "0.1"],
            "^--lr=0.1: no such option; here it is --learning_rate, and --muon_learning_rate",
        ),
        (["--epochs=3"], "here it is --max_iters, which counts steps"),
        (["--Seq-Len=3"], "here it is --block_size"),
        (
            ["--resume", "out/mine"],
            "--resume=out/mine: no such option; here it is --init_from=resume",
        ),
        (["--tokenizer=bep"], r"should be char, bpe, gpt2, .*; did you mean bpe\?"),
        (["--init_from=rsume"], r"did you mean resume\?"),
        (
            ["config/shakespeare.toml"],
            "no such recipe .* did you mean .*shakespeare_bpe.toml or .*shakespeare_char.toml",
        ),
        (
            ["wrods", "--dropuot=1"],
            "(?s)did you mean .*config.words.toml.*dropuot=1: no such option",
        ),
        (["--n_layer=two"], "n_layer=two: .*integer"),
        (["--dropout=1.5"], "dropout=1.5: .*less than 1"),
        (["--learning_rate=nan"], "learning_rate=nan: .*finite"),
        (
            ["--tokenizer=word"],
            "tokenizer=word: should be char, bpe, gpt2, or the directory of a run",
        ),
        (
            ["--n_embd=130", "--n_head=4"],
            "n_embd=130 is not a multiple of 2 n_head = 8; try n_embd=128",
        ),
        (["--n_embd=12", "--n_head=4"], "n_embd=12 is not a multiple"),
        (
            ["--corpus=markov", "--tokenizer=bpe"],
            "tokenizer=bpe needs another corpus: the entropy of markov is known",
        ),
        (["--mask=\udcff"], "mask=.*: "),
        (["--teacher=a\0b"], "teacher=.*: "),
        (["--corpus=caf\udce9.txt"], "corpus=caf.*: "),
        (
            ["--documents=lines", "--corpus=a.jsonl"],
            "the documents of this one are its records already",
        ),
        (["--max_ngram=2", "--document_attention", "--documents=lines"], "needs --max_ngram=0"),
        (["--seed"], "--seed: expected one argument"),
        ([str(RECIPES[0]), "b.toml"], "b.toml: no such option"),
        (["missing.toml"], "no such recipe and no run; recipes in .*config: .*shakespeare_char"),
        (["n_layer=2"], "no such recipe and no run; for an option, write --n_layer=2; recipes"),
        (
            ["README.md"],
            "README.md: not a readable TOML file: .*; to train on its text, "
            "write --corpus=README.md",
        ),
        (
            ["--n_layer=0", "--dropuot=1"],
            "n_layer=0(.|\n)*greater than or equal to 1(.|\n)*dropout",
        ),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(argv)


def test_names_from_elsewhere_lead_to_options_that_are_there() -> None:
    schemas = (SampleOptions, EvaluateOptions, CurveOptions, CompressOptions)
    known = {*OPTIONS}
    for schema in schemas:
        known |= {field.alias or name for name, field in schema.model_fields.items()}
    for advice, names in ELSEWHERE.items():
        options = re.findall(r"--(\w+)", advice)
        assert "torchrun" in advice or set(options) <= known, advice
        assert len(names.split()) == len(set(names.split()))
    for name in [
        "lr",
        "steps",
        "epochs",
        "seq_len",
        "wd",
        "resume",
        "wandb_log",
        "bs",
        "hidden_size",
        "num_layers",
        "max_steps",
        "context_length",
        "ctx",
        "out",
        "save_dir",
        "precision",
        "amp",
        "eval_iters",
        "gradient_accumulation_steps",
        "min_lr",
    ]:
        assert name_here(name, set(OPTIONS))
    assert name_here("max_tokens", set(SampleOptions.model_fields)) == "--max_new_tokens"
    assert name_here("max_tokens", set(OPTIONS)) == ""


def test_a_run_that_is_not_there_gets_the_name_of_one_that_is(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0].parent.parent)
    for command in (
        ["sample.py", "out/tinny"],
        ["sample.py", "tinny"],
        ["curves.py", "out/tinny"],
        ["train.py", "out/tinny", "--init_from=resume"],
        ["train.py", "--init_from=out/tinny"],
        ["train.py", "--tokenizer=out/tinny"],
        ["evaluate.py", "out/tiny", "--against=out/tinny"],
        ["train.py", "--init_from=resume", "--out_dir=out/tinny"],
    ):
        done = call(*command, check=False)
        assert done.returncode == 2
        assert done.stderr.endswith("; did you mean out/tiny?\n"), command


def test_a_flag_may_stand_before_the_paths() -> None:
    """The word after it is its value only where it is a boolean."""
    for words, paths, ensemble in (
        ("--ensemble a b", ["a", "b"], True),
        ("a b --ensemble", ["a", "b"], True),
        ("a --ensemble b --json", ["a", "b"], True),
        ("--json --ensemble a --stride 4 b c", ["a", "b", "c"], True),
        ("--ensemble FALSE a", ["a"], False),
        ("--ensemble=no a", ["a"], False),
    ):
        found, options = load_options(EvaluateOptions, words.split(), "RUN", "+", "")
        assert (found, options.ensemble) == (paths, ensemble), words
    cfg, _ = load_config(["--compile", str(ROOT / "config/words.toml")])
    assert cfg.run.compile
    with pytest.raises(UserError, match="interpret"):
        load_options(EvaluateOptions, ["--json=maybe", "a"], "RUN", "+", "")


def test_a_tilde_is_the_home_folder(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell does not see that --corpus=~/text.txt has a path."""
    home = trained[0].parent.parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for schema, argv in (
        (SampleOptions, ["~/out/tiny", "--prompt_file=~/text.txt"]),
        (EvaluateOptions, ["~/out/tiny", "--text=~/text.txt", "--against=~/a", "--html=~/a.html"]),
        (CurveOptions, ["~/out/tiny", "--out=~/a.png", "--html=~/a.html"]),
    ):
        paths, options = load_options(schema, argv, "RUN", None, "")
        assert paths == [os.path.join(str(home), "out/tiny")]
        for value in options.model_dump(exclude_unset=True).values():
            assert Path(value).parent == home
    cfg, _ = load_config(
        ["--corpus=~/out/tiny", "--tokenizer=~/out/tiny", "--teacher=~/out/tiny", "--out_dir=~/a"]
    )
    assert {cfg.data.corpus, cfg.data.tokenizer, cfg.loss.teacher} == {
        os.path.join(str(home), "out/tiny")
    }
    assert Path(cfg.run.out_dir) == home / "a"
    assert load_config(["--init_from=~/out/tiny"])[0].data.tokenizer == str(home / "out/tiny")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[model]\nn_layr = 3", r"model.n_layr: no such option; did you mean n_layer in \[model\]"),
        (
            "[optim]\nn_layer = 3",
            r"optim.n_layer: no such option; did you mean n_layer in \[model\]",
        ),
        ("n_layer = 3", r"n_layer: no such option; did you mean n_layer in \[model\]"),
        ("[modle]\nn_layer = 3", r"modle: no such option; did you mean model\?"),
        ("[modal]\nn_layer = 3", r"modal: no such option; did you mean model\?"),
        ("[optim]\nlr = 3", r"optim.lr: no such option; here it is --learning_rate"),
        ("model = 3", "model"),
        ("[model]\nn_layer = 'three'", "n_layer=three: .*integer"),
        ("[model]\ndropout = true", "dropout=True: .*less than 1"),
        ("[model\n", "not a readable TOML file"),
        ("[model]\nn_head = 0\n[run]\nsede = 1", r"n_head=0.*\n.*sede"),
    ],
)
def test_mistakes_in_a_recipe(toml: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(toml)
    with pytest.raises(UserError, match=message):
        load_config([str(tmp_path / "mine.toml")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--vocab_size=300"], "vocab_size=300 needs --tokenizer=bpe"),
        (
            ["--muon_learning_rate=0.1", "--optimizer=adamw"],
            "muon_learning_rate=0.1 needs --optimizer=muon",
        ),
        (["--momentum=0.5", "--optimizer=adamw"], "momentum=0.5 needs --optimizer=muon"),
        (
            ["--decay_fraction=0.5", "--schedule=constant"],
            "decay_fraction=0.5 needs --schedule=cosine or linear",
        ),
        (
            ["--min_lr_ratio=0.5", "--schedule=constant"],
            "min_lr_ratio=0.5 needs --schedule=cosine or linear",
        ),
        (["--table_rows=5"], "table_rows=5 needs --max_ngram=2 or more"),
        (["--table_dropout=0.5"], "table_dropout=0.5 needs --max_ngram=2 or more"),
        (["--table_learning_rate=1"], "table_learning_rate=1.0 needs --max_ngram=2 or more"),
        (["--alpha=0.2"], "alpha=0.2 needs a --teacher"),
        (["--temperature=3"], "temperature=3.0 needs a --teacher"),
        (["--padded"], "padded=True needs documents"),
        (["--predict_eos=false"], "predict_eos=False needs documents"),
        (["--document_attention"], "document_attention=True needs documents"),
    ],
)
def test_an_option_without_effect_is_a_mistake(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(argv)


def test_help_has_every_option() -> None:
    shown = call("train.py", "--help").stdout
    assert all(f"--{name}" in shown for name in OPTIONS)


def test_a_run_can_be_a_recipe_and_can_be_resumed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dtype that it began with stays, also on a machine that would choose another."""
    only_numbers(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.device._has_bfloat16", lambda kind: False)
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, "--dtype=auto")
    run = open_run(Path("out/run"))
    assert (run.cfg.run.dtype, run.cfg.model.n_embd) == ("float32", 16)
    uniform = math.log(run.tokenizer.vocab_size)
    assert run.info.baselines[0].nats_per_token == pytest.approx(uniform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.device._has_bfloat16", lambda kind: True)
        resume = ["train.py", "out/run", "--init_from=resume"]
        resumed = call(*resume, "--max_iters=8").stdout
        with_auto = call(*resume, "--max_iters=9", "--dtype=auto").stdout
    assert "dtype was float32 and is now bfloat16" in with_auto
    assert "resuming out/run at step 6" in resumed
    assert "dtype was" not in resumed
    assert read_metrics(Path("out/run"))[-1]["step"] == 9

    assert load_config(["out/run", "--n_layer=1"])[0].run.out_dir == "out/run,n_layer=1"
    with pytest.raises(UserError, match="n_layer=1: no such option"):
        load_config(["out/run", "n_layer=1"])


# For each option, arguments that differ from the base run's, and what the base run needs for it to
# show.
OVERFITS = [
    "--val_fraction=0.9",
    "--block_size=16",
    "--n_embd=32",
    "--batch_size=32",
    "--max_iters=100",
    "--eval_interval=10",
    "--checkpoint_interval=60",
    "--log_interval=60",
    "--learning_rate=0.03",
    "--muon_learning_rate=0.1",
    "--dtype=float32",
]
CHANGES: dict[str, tuple[list[str], list[str]]] = {
    "corpus": (["--corpus=other.txt"], []),
    "tokenizer": (["--tokenizer=bpe", "--vocab_size=300"], []),
    "vocab_size": (["--vocab_size=280"], ["--tokenizer=bpe", "--vocab_size=300"]),
    "val_fraction": (["--val_fraction=0.3"], []),
    "split": (["--split=tuning"], []),
    "documents": (["--documents=lines"], []),
    "padded": (["--padded"], ["--documents=lines"]),
    "predict_eos": (["--predict_eos=false"], ["--documents=lines"]),
    "mask": (["--mask=^the"], []),
    "document_attention": (["--document_attention"], ["--documents=lines", "--block_size=64"]),
    "block_size": (["--block_size=16"], []),
    "n_layer": (["--n_layer=1"], []),
    "n_head": (["--n_head=1"], []),
    "n_embd": (["--n_embd=32"], []),
    "dropout": (["--dropout=0.3"], []),
    "form": (["--form=gpt2"], []),
    "qk_norm": (["--qk_norm=false"], []),
    "embedding_norm": (["--embedding_norm=false"], []),
    "smear": (["--smear=false"], []),
    "tied": (["--tied"], []),
    "softcap": (["--softcap=2"], []),
    "max_ngram": (["--max_ngram=2"], []),
    "table_rows": (["--table_rows=5"], ["--max_ngram=2"]),
    "table_dropout": (["--table_dropout=0.5"], ["--max_ngram=2"]),
    "table_learning_rate": (["--table_learning_rate=0.1"], ["--max_ngram=2"]),
    "label_smoothing": (["--label_smoothing=0.1"], []),
    "z_loss": (["--z_loss=0.01"], []),
    "teacher": (["--teacher=teacher"], []),
    "alpha": (["--alpha=0.2"], ["--teacher=teacher"]),
    "temperature": (["--temperature=3"], ["--teacher=teacher"]),
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
    "dtype": ([f"--dtype={other_dtype()}"], []),
    "micro_batch_size": (["--micro_batch_size=1"], ["--dropout=0.3"]),
    "eval_interval": (["--eval_interval=3"], []),
    "eval_tokens": (["--eval_tokens=200"], []),
    "log_interval": (["--log_interval=3"], ["--checkpoint_interval=6"]),
    "checkpoint_interval": (["--checkpoint_interval=1"], ["--log_interval=6"]),
    "max_nonfinite_steps": (
        ["--max_nonfinite_steps=2"],
        ["--optimizer=adamw", "--learning_rate=1e38", "--form=nanogpt", "--grad_clip=0"],
    ),
    "patience": (["--patience=1"], OVERFITS),
}


@pytest.fixture(scope="module")
def observe(tmp_path_factory: pytest.TempPathFactory):
    """Return what a run shows: metrics without clocks, files, and the words before the table."""
    directory = tmp_path_factory.mktemp("options")

    def observe(argv: tuple[str, ...]) -> tuple[object, ...]:
        if "--init_from=resume" not in argv:
            shutil.rmtree(directory / "out", ignore_errors=True)
        done = call("train.py", "--corpus=text.txt", *TINY, *argv, check=False)
        if done.returncode == 2:
            raise UserError(done.stderr)
        (run,) = directory.glob("out/*")
        files = sorted(path.name for path in run.iterdir())
        options, printed = done.stdout.split(COLUMNS)[0].split("\n", maxsplit=1)
        assert options.startswith("options that differ from the defaults: ")  # of course they do
        return run.name, without_clocks(run), files, printed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.prepare.DATA", directory / "data")
        patch.setattr("data.corpora.LENGTH", 3000)  # of the markov corpus
        only_numbers(patch)
        patch.chdir(directory)
        (directory / "text.txt").write_text(make_text(), encoding="utf-8")
        (directory / "other.txt").write_text(make_text(500), encoding="utf-8")
        call("train.py", "--corpus=text.txt", *TINY, "--out_dir=teacher")
        yield observe


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_something(
    option: str, observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option == "compile":  # the compiler itself would take longer than all of these tests
        monkeypatch.setattr(torch, "compile", lambda model: print("compiling") or model)
    if option == "init_from":
        observe(("--out_dir=out/run",))
    if option == "device":  # no second device here: asking for one must at least be answered
        with pytest.raises(UserError, match="this machine"):
            observe(("--device=cuda:99",))
        return
    if option == "watchers":  # test_trackers.py has what it shows
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(UserError, match="needs its package"):
            observe(("--watchers=page,wandb",))
        return
    change, base = CHANGES[option]
    assert observe((*base, "--out_dir=out/run", *change)) != observed_base(observe, tuple(base))


def test_the_same_options_change_nothing(observe) -> None:
    observed_base.cache_clear()
    assert observed_base(observe, ()) == observe(("--out_dir=out/run",))


@lru_cache
def observed_base(observe, base: tuple[str, ...]) -> tuple[object, ...]:
    return observe((*base, "--out_dir=out/run"))


def test_a_run_of_an_earlier_edition_opens(tmp_path: Path) -> None:
    """Its config.toml may name an option that is gone; on the command line that gets one line."""
    (tmp_path / "config.toml").write_text('[run]\nparallel = "ddp"\nseed = 5\n', encoding="utf-8")
    assert load_config([str(tmp_path)])[0].run.seed == 5
    with pytest.raises(UserError, match=r"^parallel=fsdp: this option is gone: torchrun's ranks"):
        load_config(["--parallel=fsdp"])


def test_a_run_that_is_gone_is_not_taken_for_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may have an option in it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="for an option, write --n_layer=1"):
        load_config(["n_layer=1"])
    with pytest.raises(UserError, match="no such recipe and no run") as error:
        load_config(["out/shakespeare_char,n_layer=1"])
    assert "for an option" not in str(error.value)
