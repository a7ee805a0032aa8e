"""README.md and docs/ are true: their commands work, and what they name is there."""

import importlib
import re
import shlex
import shutil
import string
import tomllib
from pathlib import Path

import pytest
import tomli_w

from compress import CompressOptions
from config.cli import load_config
from config.parser import load_options
from config.schema import Config
from config.values import Section
from convert import ConvertOptions
from curves import CurveOptions
from evaluate import EvaluateOptions
from sample import SampleOptions
from sweeps.grid import SweepOptions, read_sweep
from tests.conftest import ROOT, RUN_FILES, TINY, call

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {
    path.name: path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
ALL = "\n".join(DOCS.values())
EXAMPLES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ")
]
COMMANDS = sorted(
    set(re.findall(r"(?:python|torchrun[^`\n]*?|uv run) ((?:\w+/)?\w+\.py[^\n`#|]*)", ALL))
)
PLACEHOLDERS = {
    "RECIPE": "config/shakespeare_char.toml",
    "RUN": "out/shakespeare_char",
    "out/RUN": "out/shakespeare_char",
}
OF_A_RUN = RUN_FILES | {
    "out/shakespeare_char/report.html",
    "compare.html",
    "sweep.html",
    "find_lr.png",
    "runs.html",
    "page.html",
    "model.safetensors",
}
# not ours
OF_OTHERS = {
    "standalone",
    "nproc_per_node",
    "max",
    "nanogpt",
    "seeds",
    "docs",
    "array",
    "quick",
    "minutes",
    "help",
    "show_batch",
    "name",
    "logdir",
    "project",
    "backend",
    "nnodes",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "megabytes",
    "for_gpu",
    "nodes",
    "ntasks",
    "gpus",
    "requeue",
}


OF_A_USER = {"path/to/your.txt", "your.txt", "play.txt", "data/shakespeare/input.txt"}
FOLDERS = (
    "",
    "config",
    "data",
    "page/web",
    "engine",
    "report",
    "huggingface",
    "large",
    "page",
    "bench",
    "docs",
    "tests",
)


def make_small(recipe: Path) -> str:
    """A recipe with a tiny model and few steps, on text.txt where it can be."""
    values = tomllib.loads(recipe.read_text(encoding="utf-8"))
    for section in ("data", "model", "optim", "run"):
        values.setdefault(section, {})
    corpus = values["data"].get("corpus", "shakespeare")
    if corpus.endswith("shakespeare") or corpus.startswith("hf:"):
        values["data"] |= {"corpus": "text.txt", "val_fraction": 0.1}
    values["model"] |= {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    values["optim"] |= {"batch_size": 4, "max_iters": 4, "warmup_iters": 0}
    values["run"].pop("init_from", None)  # the model to start from is not here
    values["run"] |= {"dtype": "float32", "compile": False}
    values["run"] |= {"eval_interval": 100, "eval_tokens": 300}
    return tomli_w.dumps(values)


@pytest.fixture
def small(data_dir: Path) -> Path:
    """A directory with every recipe made small, and the texts that the commands read."""
    (data_dir / "config").mkdir()
    for recipe in (ROOT / "config").glob("*.toml"):
        (data_dir / "config" / recipe.name).write_text(make_small(recipe), encoding="utf-8")
    text = "ROMEO:\nTo be, or not to be: that is the question.\n\n" * 60
    text += string.printable.replace("\r", "")
    (data_dir / "text.txt").write_text(text, encoding="utf-8")
    (data_dir / "play.txt").write_text(text, encoding="utf-8")  # in the README a part of the plays
    shutil.copy(ROOT / "README.md", data_dir)
    return data_dir


def test_the_examples_work_one_after_another(small: Path) -> None:
    first = "config/shakespeare_char.toml"
    # what `make train` runs
    assert f"ARGS ?= {first}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in [f"python train.py {first}", *EXAMPLES]:
        script, *arguments = shlex.split(re.sub(r"max_iters=\d+", "max_iters=3", command))[1:]
        if script.startswith("bench/"):  # minutes of measuring; the test below imports it
            continue
        has_recipe = any(argument.endswith(".toml") for argument in arguments)
        if script == "train.py" and not has_recipe:
            arguments += TINY
        elif script == "sample.py":
            arguments.append("--max_new_tokens=9")
        done = call(script, *arguments, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_one(command: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script is there, and it has these options."""
    # without fetching a model to start from
    monkeypatch.setattr("config.cli.adopt_shape", lambda cfg: cfg)
    script, *words = shlex.split(command)
    words = [word for word in words if word not in ("...", "OTHER_RUN")]
    words = [PLACEHOLDERS.get(word, word) for word in words]
    assert (ROOT / script).is_file()
    schemas: dict[str, type[Section]] = {
        "sample.py": SampleOptions,
        "evaluate.py": EvaluateOptions,
        "curves.py": CurveOptions,
        "compress.py": CompressOptions,
        "convert.py": ConvertOptions,
    }
    if script.startswith("bench/"):
        importlib.import_module(script.removesuffix(".py").replace("/", "."))
    elif script == "sweep.py":
        read_sweep(words)
    elif words == ["--help"]:
        assert "--" in call(script, "--help").stdout
    elif script in ("train.py", "data/prepare.py", "large/prepare.py"):
        # a run to resume; and no option of a training
        others = ("out/shakespeare_char", "--show_batch")
        load_config([word for word in words if word not in others])
    else:
        paths, _ = load_options(schemas[script], words, "RUN", "*", "")
        assert paths


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


def test_every_file_named_is_there() -> None:
    files = set()
    for folder in FOLDERS:
        paths = [path for path in (ROOT / folder).iterdir() if path.is_file()]
        files |= {path.relative_to(ROOT).as_posix() for path in paths}
        files |= {path.name for path in paths}
    kinds = "py|toml|png|md|ipynb|txt|html|js|safetensors|jsonl"
    named = set(re.findall(rf"[\w/]+\.(?:{kinds})\b", ALL))
    assert named - OF_A_RUN - OF_A_USER <= files
    for text in DOCS.values():
        for link in re.findall(r"\]\(([\w./]+)\)", text):
            assert (ROOT / link).is_file() or (ROOT / "docs" / link).is_file(), link


def test_defaults_in_the_table_are_the_defaults() -> None:
    options = Config().options()
    rows = re.findall(r"^\| `(--[^`]*)` \| ([^|]*) \|", README, flags=re.MULTILINE)
    assert len(rows) >= 8
    for names, values in rows:
        if "=" in names:
            continue
        options_of_row = names.replace("--", "").split()
        values_of_row = values.replace("`", "").split(",")
        for name, value in zip(options_of_row, values_of_row, strict=True):
            default = str(options[name]).removesuffix(".0").lower()
            assert default == value.strip(), name


def test_every_option_named_is_one() -> None:
    schemas = (SampleOptions, EvaluateOptions, CurveOptions, CompressOptions, SweepOptions)
    known = set(Config().options())
    for schema in schemas:
        known |= {field.alias or name for name, field in schema.model_fields.items()}
    assert set(re.findall(r"(?<!-)--(\w+)", ALL)) - OF_OTHERS <= known


def test_every_dependency_has_a_reason_and_no_other_has() -> None:
    rows = re.findall(r"^\| ([^|]*) \|", DOCS["dependencies.md"], flags=re.MULTILINE)
    named = ",".join(rows[1:]).split(",")
    reasons = {name.strip() for name in named}
    packages = set()
    for file in ROOT.glob("requirements*.txt"):
        requirements = file.read_text(encoding="utf-8")
        packages |= set(re.findall(r"^([\w.-]+)==", requirements, flags=re.MULTILINE))
    assert reasons == packages


def test_every_test_named_is_there() -> None:
    files = [*(ROOT / "tests").glob("test_*.py")]
    known = {file.name for file in files}
    for file in files:
        known |= set(re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8")))
    names = set(re.findall(r"\btest_\w+(?:\.py)?", ALL))
    assert len(names) >= 6
    assert names <= known


def test_the_readme_is_short_and_its_code_fits_a_terminal() -> None:
    assert len(README.split()) <= 1300
    code = re.findall(r"^    .*$", README, flags=re.MULTILINE)
    for block in re.findall(r"^```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL):
        code += block.splitlines()
    assert len(code) > 30
    assert not [line for line in code if len(line) > 100]
