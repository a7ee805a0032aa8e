"""A sweep trains each combination of the values once, in a folder that tells what differs."""

import os
import shlex
from pathlib import Path

import pytest

from sweeps.grid import read_sweep
from tests.conftest import TINY, call

TWO_STEPS = [word for word in TINY if "max_iters" not in word] + ["--max_iters=2"]
BASE = ["--corpus=text.txt", *TWO_STEPS]


def names(*arguments: str) -> list[str]:
    sweep, _ = read_sweep([*BASE, *arguments])
    return [run.path.name for run in sweep.runs]


def error(*arguments: str) -> str:
    done = call("sweep.py", *BASE, *arguments, check=False)
    assert done.returncode == 2
    return done.stderr


def train(path: Path, *options: str) -> None:
    call("train.py", *BASE, *options, f"--out_dir={path}")


@pytest.mark.usefixtures("data_dir")
def test_each_combination_is_a_run() -> None:
    assert names("--learning_rate=0.003,0.01", "--seed=1,2") == [
        "learning_rate=0.003,seed=1",
        "learning_rate=0.003,seed=2",
        "learning_rate=0.01,seed=1",
        "learning_rate=0.01,seed=2",
    ]
    # numbers that are equal are one value, and so are values that are given twice
    assert names("--learning_rate=0.01,1e-2,0.01") == ["learning_rate=0.01"]
    assert names("--optimizer=muon,adamw") == ["optimizer=muon", "optimizer=adamw"]
    assert names("--qk_norm=true,false") == ["qk_norm=true", "qk_norm=false"]
    assert names("--seed=1, 2") == ["seed=1", "seed=2"]
    assert names() == ["run"]
    # what auto chooses is known only when it is trained
    assert names("--dtype=float32,auto") == ["dtype=float32", "dtype=auto"]
    sweep, _ = read_sweep([*BASE, "--learning_rate=0.01,1e-2,0.1"])
    assert sweep.varied == {"learning_rate": ["0.01", "0.1"]}


@pytest.mark.usefixtures("data_dir")
def test_an_option_that_is_a_text_is_given_again() -> None:
    """It may have commas itself; where its value is no name of a file, the run gets a number."""
    sweep, _ = read_sweep([*BASE, "--mask=a{1,2}", "--mask=t", "--seed=1,2"])
    assert [run.path.name for run in sweep.runs] == ["1", "2", "mask=t,seed=1", "mask=t,seed=2"]
    assert [run.varied["mask"] for run in sweep.runs] == ["a{1,2}", "a{1,2}", "t", "t"]
    assert [run.cfg.data.mask for run in sweep.runs] == ["a{1,2}", "a{1,2}", "t", "t"]
    many = ("warmup_iters", "eval_interval", "patience", "n_layer", "eval_tokens")
    assert len(names(*(f"--{name}=1,2" for name in many))[-1]) <= 2


@pytest.mark.usefixtures("data_dir")
def test_several_recipes() -> None:
    for name in ("a", "b"):
        Path(f"{name}.toml").write_text(f"[optim]\nlearning_rate = 0.{ord(name)}\n")
    sweep, _ = read_sweep(["a.toml,b.toml", *BASE, "--seed=1,2"])
    assert [run.path.name for run in sweep.runs] == ["a,seed=1", "a,seed=2", "b,seed=1", "b,seed=2"]
    assert [run.cfg.optim.learning_rate for run in sweep.runs] == [0.97, 0.97, 0.98, 0.98]
    assert sweep.folder.name.startswith("sweep-recipes,")
    assert names("a.toml, b.toml,") == ["a", "b"]
    for words in (["a.toml", "b.toml"], ["a.toml", "--seed=1", "b.toml"]):
        done = call("sweep.py", *words, check=False)
        assert (
            done.stderr
            == "error: b.toml: recipes and values have commas between them, and no spaces\n"
        )


@pytest.mark.usefixtures("data_dir")
def test_no_two_runs_have_one_directory() -> None:
    """Recipes may have one name, and some file systems do not tell a from A."""
    Path("other").mkdir()
    for path in ("a.toml", "other/a.toml", "logs.toml"):
        Path(path).write_text(f"[optim]\nlearning_rate = 0.{len(path)}\n")
    assert names("a.toml,other/a.toml,logs.toml") == ["a", "1", "2"]  # logs/ has what runs printed
    assert names("--mask=t", "--mask=T") == ["mask=t", "1"]
    assert names("--mask=t", "--mask=t.") == ["mask=t", "1"]  # Windows knows no dot at the end


@pytest.mark.usefixtures("data_dir")
def test_options_that_do_not_go_together() -> None:
    assert "list and only do not go together" in error("--list", "--only=1")
    assert "only and find_lr do not go together" in error("--find_lr", "--only=1")
    assert "only=0: the lines of --list are counted from 1" in error("--only=0", "--seed=1,2")
    assert "log_interval: changes no loss" in error("--log_interval=1,2")
    assert "watchers: changes no loss" in error("--watchers=", "--watchers=page")
    assert "init_from=resume: leave it out" in error("--init_from=resume", "--seed=1,2")
    assert not os.path.exists("out")


@pytest.mark.usefixtures("data_dir")
def test_the_folder_is_named_after_what_stays() -> None:
    """It stands beside the run of the same recipe, and is never that run."""
    Path("small.toml").write_text("[model]\nn_layer = 1\n")
    options = ["--corpus=text.txt", "--max_iters=5"]
    sweep, _ = read_sweep(["small.toml", *options, "--learning_rate=0.1,0.2", "--seed=1,2"])
    assert sweep.folder == Path("out/sweep-small,corpus=text.txt,max_iters=5")
    sweep, _ = read_sweep(["small.toml", *options, "--out_dir="])
    assert sweep.folder == Path("out/sweep-small,corpus=text.txt,max_iters=5")
    sweep, _ = read_sweep(["small.toml", *options, "--seed=1,2", "--out_dir=out/mine"])
    assert sweep.folder == Path("out/mine")
    train(Path("out/mine"))
    assert "out/mine: is no folder of a sweep; name another --out_dir" in error(
        "--out_dir=out/mine"
    )
    for mode in ("--only=1", "--list", "--find_lr", "--equal_seconds=1"):
        assert "is no folder of a sweep" in error("--out_dir=out/mine", mode)
        assert "text.txt/x: nothing can be written into" in error("--out_dir=text.txt/x", mode)
    assert "out_dir is the folder of the whole sweep" in error("--out_dir=a", "--out_dir=b")


@pytest.mark.usefixtures("data_dir")
def test_a_larger_sweep_keeps_the_runs_of_a_smaller_one() -> None:
    folder = Path("out/sweep")
    train(folder / "first", "--learning_rate=0.01", "--seed=1")
    larger = names(f"--out_dir={folder}", "--learning_rate=1e-2,0.1", "--seed=1,2")
    assert larger[:2] == ["first", "learning_rate=1e-2,seed=2"]


@pytest.mark.usefixtures("data_dir")
def test_a_run_of_other_options_is_not_taken_for_one_of_the_sweep() -> None:
    folder = Path("out/sweep")
    train(folder / "learning_rate=0.1", "--learning_rate=0.1", "--dropout=0.1")
    said = error(f"--out_dir={folder}", "--learning_rate=0.1,0.2")
    assert "learning_rate=0.1: was trained with other options (dropout was 0.1 and is now" in said


@pytest.mark.usefixtures("data_dir")
def test_mistakes_are_told_before_anything_is_trained() -> None:
    said = error("--n_head=3,5", "--learning_rate=0.1,-1")
    assert "n_embd=16 is not a multiple of 2 n_head = 6; try n_embd=18" in said
    assert "n_embd=16 is not a multiple of 2 n_head = 10; try n_embd=20" in said
    assert said.count("learning_rate=-1: ") == 1
    assert "--lr=3,4: no such option; here it is --learning_rate" in error("--lr=3,4")
    assert "these are 100,000,000 runs" in error(
        *(f"--{name}=" + ",".join(map(str, range(1, 101))) for name in ("seed", "n_layer")),
        *(f"--{name}=" + ",".join(map(str, range(1, 101))) for name in ("n_head", "warmup_iters")),
    )
    assert not os.path.exists("out")


@pytest.mark.usefixtures("data_dir")
def test_the_list_has_the_commands_for_other_schedulers() -> None:
    arguments = ["--learning_rate=0.1,0.2", "--out_dir=out/a sweep"]
    lines = call("sweep.py", *BASE, *arguments, "--list").stdout.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[1])
    assert words[:2] == ["python", "train.py"]
    call("train.py", *words[2:])
    assert "learning_rate = 0.2" in Path("out/a sweep/learning_rate=0.2/config.toml").read_text()
    assert "only=3: the last line of --list is 2" in error(*arguments, "--only=3")


@pytest.mark.usefixtures("data_dir")
def test_a_text_that_is_not_there_is_told_before_anything_is_trained() -> None:
    done = call("sweep.py", "--corpus=no.txt", "--seed=1,2", *TWO_STEPS, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: corpus 'no.txt': no such file")
    assert not list(Path("out").glob("*/*"))
