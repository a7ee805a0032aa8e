"""Any command line, recipe or corpus gives a good result or a clear error, never a traceback.

All run in one process and derandomised: the same examples each time. What they found has a plain
test elsewhere.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curves
import evaluate
import sample
import train
from config.cli import load_config
from config.errors import UserError, run_command
from config.recipe import to_toml
from config.schema import Config, DataConfig
from data import prepare
from data.documents import read_exchanges
from engine.generate import generate_texts
from engine.run import Run
from report.figures import draw_run
from tests.one_run import steps

Main = Callable[[list[str]], None]  # of a command
FIELDS = {}
SECTIONS = {}
for section_name, section in Config.model_fields.items():
    for field_name, field in type(section.default).model_fields.items():
        FIELDS[field_name] = field
        SECTIONS[field_name] = section_name
# any Unicode: NULs, emoji, lone surrogates
ANY = st.text(st.characters(exclude_categories=()), max_size=12)
NUMBERS = st.one_of(
    st.integers(-3, 70).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "1e999",
            "-0",
            "0x10",
            "1_000",
            "\uff11\uff12",
            "",
            " 7",
            "7 ",
            "true",
            "False",
            "9" * 5000,
            "1e-400",
        ]
    ),
)
WORDS = st.sampled_from(
    [
        "scratch",
        "resume",
        "auto",
        "muon",
        "adamw",
        "char",
        "bpe",
        "gpt2",
        "none",
        "lines",
        "markov",
        "cpu",
        "cuda:0",
        "cuda:99999",
        "bfloat16",
        "linear",
        "text.txt",
        ".",
        "/",
        "..",
        "~",
        "(",
        "[[a]",
        "a{99999999999}",
        "\\",
        "(?P<x",
        "(?i)^[A-Z]+:$",
        "config",
        "a.jsonl",
        "nul\0l",
        "\ud800",
    ]
)
OPTION = st.sampled_from(sorted(FIELDS))
ARGUMENT = st.one_of(
    st.builds("--{}={}".format, OPTION, st.one_of(NUMBERS, WORDS, ANY)),
    ANY,
    WORDS,
    NUMBERS,
    OPTION.map(lambda name: f"--{name}"),
    OPTION.map(lambda name: f"--{name[:-1]}=3"),
    ANY.map(lambda name: f"--{name}"),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3)


SCALARS = st.booleans() | st.integers() | st.floats()
JUST_ANY = st.recursive(st.none() | SCALARS | ANY, containers, max_leaves=6)
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.text(st.sampled_from("ab \n\r\0\ufeff\u2028é🎉\x85"), max_size=400),
    st.lists(
        st.sampled_from(["CAT:\nNo.\n\n", "a", "\n\n", "\r\n", "🎉", "\0", "the cat "]), max_size=60
    ).map("".join),
)


def run_examples(
    function: Callable[..., None], examples: int, *strategies: st.SearchStrategy[Any]
) -> None:
    settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(*strategies)(function))()


def fuzz(
    examples: int, *strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a test of a function: quick tests take a tenth of the examples, slow ones all."""
    parts = [10, pytest.param(1, marks=pytest.mark.slow)]

    def make_test(function: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("part", parts, ids=["a tenth", "all"])
        def test(part: int) -> None:
            run_examples(function, examples // part, *strategies)

        return test

    return make_test


def command(main: Main, argv: list[str]) -> int:
    """Run a command; returns its exit code. If that is 2, it must have said what was wrong."""
    out = io.StringIO()
    err = io.StringIO()
    before = sys.argv
    sys.argv = ["command", *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(main)
    except SystemExit as stopped:
        code = stopped.code or 0
    else:
        code = 0
    finally:
        sys.argv = before
    assert code in (0, 1, 2), (code, err.getvalue())
    assert (code == 2) == err.getvalue().startswith("error: "), err.getvalue()
    err.getvalue().encode(errors="replace")
    return int(code)


@pytest.fixture(autouse=True)
def _here(data_dir) -> None:
    """Nothing is read or written elsewhere."""


def load(argv: list[str]) -> None:
    cfg, named = load_config(argv)
    assert named <= cfg.options().keys() == Config().options().keys()


@fuzz(2500, st.lists(ARGUMENT, max_size=6))
def test_command_lines(argv) -> None:
    command(load, argv)


@fuzz(
    400,
    st.lists(ARGUMENT, max_size=4),
    st.sampled_from(["sample", "evaluate", "curves", "prepare"]),
)
def test_command_lines_of_the_others(argv, name) -> None:
    """No run is there, so no device is looked for, and the corpora are not fetched."""
    main = {
        "sample": sample.main,
        "evaluate": evaluate.main,
        "curves": curves.main,
        "prepare": prepare.main,
    }[name]
    argv = [word for word in argv if "resume" not in word]
    if name == "prepare":
        argv.append("--corpus=nowhere.txt")
    if "--help" not in argv and "-h" not in argv:
        assert command(main, argv) == 2 or "markov" in argv


@fuzz(
    1000,
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(Config.model_fields)), ANY),
        st.dictionaries(st.one_of(OPTION, ANY), JUST_ANY, max_size=4) | JUST_ANY,
        max_size=3,
    ),
    st.integers(0, 400),
    ANY,
)
def test_recipes(recipe, cut, garbage) -> None:
    """Tables hold anything that TOML can say; a sound recipe has garbage in the middle."""
    import tomli_w

    sound = to_toml(Config())
    texts = [sound[:cut] + garbage + sound[cut:]]
    with contextlib.suppress(Exception):  # tomli_w cannot write None, for one
        texts.append(tomli_w.dumps(recipe))
    for text in texts:
        Path("fuzz.toml").write_bytes(text.encode("utf-8", errors="surrogatepass"))
        command(load, ["fuzz.toml"])


@fuzz(500, JUST_ANY, st.booleans())
def test_records(value, raw) -> None:
    line = json.dumps(value)
    if raw:
        line = str(value)
    with contextlib.suppress(UserError):
        for record in read_exchanges(line, "fuzz.jsonl"):
            assert isinstance(record.prompt, str)
            assert record.completion


@fuzz(
    700,
    TEXT,
    st.sampled_from(["char", "bpe"]),
    st.sampled_from(["none", "none", "lines", "paragraphs"]),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.sampled_from(["", "", "^[A-Z]+:$", "a*", "🎉|\\0"]),
    st.booleans(),
    st.sampled_from(["val", "val", "tuning"]),
)
def test_corpora(text, tokenizer, documents, val_fraction, mask, predict_eos, split) -> None:
    """Every byte is in a token, and every token is counted."""
    Path("fuzz.txt").write_bytes(text.encode())
    text = Path("fuzz.txt").read_text(encoding="utf-8-sig")  # with \n at the end of each line
    cfg = DataConfig(
        corpus="fuzz.txt",
        tokenizer=tokenizer,
        vocab_size=300,
        documents=documents,
        val_fraction=val_fraction,
        mask=mask,
        predict_eos=predict_eos or documents == "none",
        split=split,
    )
    try:
        corpus = prepare.prepare_corpus(cfg)
    except UserError:
        return
    splits = {"train": corpus.train, "val": corpus.val}
    for name, part in splits.items():
        info = getattr(corpus.info, name)
        assert info.tokens == len(part.tokens)
        assert info.targets == part.num_targets() <= info.tokens - 1
    if documents == "none":
        if split == "tuning":
            text = text[: int(len(text) * (1 - val_fraction))]
        decode = corpus.tokenizer.decode_bytes
        whole = decode(corpus.train.tokens) + decode(corpus.val.tokens)
        assert whole == text.encode()
        if tokenizer == "char":
            assert sum(len(part.tokens) for part in splits.values()) == len(text)
    for each in corpus.info.baselines:
        assert np.isfinite(each.nats_per_token)
        assert each.nats_per_token >= 0


@fuzz(100, st.binary(max_size=60))
def test_corpora_that_are_no_text(content) -> None:
    Path("fuzz.txt").write_bytes(content * 9)
    command(prepare.main, ["--corpus=fuzz.txt"])


SMALL = [
    "--corpus=fuzz.txt",
    "--out_dir=out/fuzz",
    "--max_iters=2",
    "--eval_interval=1",
    "--device=cpu",
    "--n_layer=1",
    "--eval_tokens=50",
    "--batch_size=3",
    "--block_size=4",
]
CHOICES: dict[str, list[object]] = {
    "block_size": [1, 2, 7],
    "n_head": [1, 2],
    "n_embd": [2, 8, 12],
    "dropout": [0, 0.5],
    "form": ["nanochat", "gpt2", "nanogpt"],
    "max_ngram": [0, 2, 9],
    "table_dropout": [0, 0.5],
    "table_learning_rate": [0, 0.01, 1e30],
    "embedding_norm": [True, False],
    "smear": [True, False],
    "tied": [True, False],
    "softcap": [0, 3],
    "label_smoothing": [0, 0.9],
    "z_loss": [0, 0.1],
    "micro_batch_size": [0, 1, 2],
    "optimizer": ["muon", "adamw"],
    "grad_clip": [0, 1],
    "warmup_iters": [0, 2],
    "learning_rate": [0, 0.01, 1e30],
    "weight_decay": [0, 1],
    "documents": ["none", "lines", "paragraphs"],
    "padded": [True, False],
    "document_attention": [True, False],
    "mask": ["", "a", "^.*:$"],
    "predict_eos": [True, False],
    "tokenizer": ["char", "bpe"],
    "vocab_size": [257, 300],
    "val_fraction": [0.1, 0.5],
    "dtype": ["float32", "bfloat16"],
    "max_nonfinite_steps": [1, 10],
    "init_from": ["auto", "auto", "resume"],
    "seed": [0, 2**32 - 1],
}


def values_of(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    """A value for each of these options."""
    options = [[f"--{name}={value}" for value in CHOICES[name]] for name in names]
    return st.tuples(*map(st.sampled_from, options))


NAMES = st.lists(st.sampled_from(sorted(CHOICES)), max_size=4, unique=True)
OPTIONS = NAMES.flatmap(values_of)


@pytest.mark.slow
def test_whole_trainings(monkeypatch) -> None:
    """Trainings follow each other in one directory: later ones rename or resume earlier ones.

    One in four draws its curves, which takes longer than the training.
    """
    codes: list[int] = []

    def draw_some(run: Run, path: Path) -> None:
        if len(codes) % 4 == 0:
            draw_run(run, path)
        else:
            path.touch()

    monkeypatch.setattr("train.draw_run", draw_some)
    monkeypatch.setattr("train.generate_texts", partial(generate_texts, max_new_tokens=9))

    def trainings(text, options) -> None:
        if len(text) > 1:
            text = f"{text}\nCAT:\nThe mat.\n\n" * 4
        Path("fuzz.txt").write_bytes(text.encode())
        code = command(train.main, [*SMALL, *options])
        codes.append(code)
        if code == 0:
            assert steps(Path("out/fuzz")) == [0, 1, 2, 2]
            assert command(sample.main, ["out/fuzz", "--max_new_tokens=3", "--device=cpu"]) == 0
        assert not list(Path("out").glob(".*"))

    run_examples(trainings, 60, TEXT, OPTIONS)
    assert codes.count(0) > 0.2 * len(codes)


def test_there_are_five_thousand() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    examples = re.findall(r"^(?:@fuzz\(\s*|    run_examples\(trainings, )(\d+)", here, re.MULTILINE)
    assert len(examples) == 7
    assert sum(map(int, examples)) >= 5000
