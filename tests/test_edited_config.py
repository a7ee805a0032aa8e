"""A config.toml that was edited by hand is obeyed, or refused in one line."""

import re
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from engine.run import open_run
from tests.conftest import TINY, call, write_checkpoint
from tests.one_run import files, resume, steps

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_a_config_that_was_edited_by_hand_still_works(finished: Path) -> None:
    path = finished / "config.toml"
    saved = path.read_text()
    path.write_text(
        "# my best run\n"
        + saved.replace("max_iters = 6", "max_iters = 7").replace(
            "eval_interval = 2", "eval_interval = 7"
        )
    )
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    call("train.py", "out/run", "--init_from=resume")
    assert steps(finished) == [*range(8), 7]
    assert open_run(finished).cfg.run.eval_interval == 7
    for old, new, says in (
        ("max_iters = 7", 'max_iters = "many"', "error: out/run/config.toml: max_iters=many: "),
        ("seed = ", "sead = ", "error: out/run/config.toml: run.sead: no such option"),
        ("[model]", "[model", "error: out/run/config.toml: not a readable TOML file: "),
    ):
        path.write_text(saved.replace("max_iters = 6", "max_iters = 7").replace(old, new))
        before = files(finished)
        done = call("train.py", "out/run", "--init_from=resume", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(says)
        assert files(finished) == before


def edit(run: Path, name: str, value: str) -> None:
    """Replace the value of an option in config.toml, as a user does in an editor."""
    path = run / "config.toml"
    text = path.read_text(encoding="utf-8")
    edited = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    assert edited != text
    path.write_text(edited, encoding="utf-8")


EDITS = {
    "n_head": "4",
    "form": '"gpt2"',
    "qk_norm": "false",
    "embedding_norm": "false",
    "smear": "false",
    "block_size": "16",
    "softcap": "3.0",
    "tied": "true",
    "n_layer": "999999",
    "n_embd": "32",
    "max_ngram": "2",
    "mask": '"the"',
    "val_fraction": "0.5",
    "split": '"tuning"',
    "documents": '"lines"',
}


@pytest.mark.parametrize("name", EDITS)
def test_a_config_edited_to_another_model_or_text_is_refused(finished: Path, name: str) -> None:
    """Before a model of that size is built; the same weights would have another loss."""
    edit(finished, name, EDITS[name])
    before = files(finished)
    done = call("sample.py", "out/run", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: out/run/best.safetensors: its weights belong to {name}=")
    in_python = {"true": "True", "false": "False"}
    value = EDITS[name].strip('"')
    value = in_python.get(value, value)
    assert f", not {name}={value}; set that back in out/run/config.toml, or train " in done.stderr
    assert files(finished) == before


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "out/run", "--init_from=resume", "--max_iters=9"],
        ["evaluate.py", "out/run"],
        ["evaluate.py", "out/run", "--checkpoint=last", "--explain=the cat"],
        ["compress.py", "out/run", "text.txt"],
        ["evaluate.py", "out/other", "--against=out/run"],
        ["train.py", "--corpus=text.txt", "--init_from=out/run", "--out_dir=out/finer", *TINY],
        ["train.py", "--corpus=text.txt", "--teacher=out/run", "--out_dir=out/student", *TINY],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("n_head", ["4", "3"])
def test_every_command_notices_an_edited_config(
    finished: Path, command: list[str], n_head: str
) -> None:
    """With 3 heads, n_embd=16 does not make sense at all."""
    shutil.copytree(finished, finished.with_name("other"))
    edit(finished, "n_head", n_head)
    before = files(finished)
    if "--init_from=out/run" in command:
        command = [word for word in command if "n_head" not in word]  # it comes from the source
    done = call(*command, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    says = {
        "4": "its weights belong to n_head=2, not n_head=4; set that back in out/run/config.toml",
        "3": "n_embd=16 is not a multiple of 2 n_head = 6; try n_embd=18",
    }
    assert says[n_head] in done.stderr
    assert files(finished) == before
    assert not (finished / "../finer/config.toml").exists()


def test_an_export_notices_an_edited_config(small_run: Path, data_dir: Path) -> None:
    shutil.copytree(small_run, data_dir, dirs_exist_ok=True)
    edit(data_dir / "out/run", "n_head", "4")
    done = call("convert.py", "out/run", "model", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its weights belong to n_head=2, not n_head=4; set that back in" in done.stderr
    assert not Path("model").exists()


def test_what_may_be_edited_in_a_config(finished: Path) -> None:
    edits = {
        "dropout": "0.1",
        "learning_rate": "0.02",
        "corpus": '"text.txt#"',
        "watchers": '"page,mlflow"',
        "teacher": '"out/gone"',
    }
    for name, value in edits.items():
        edit(finished, name, value)
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout


def test_a_checkpoint_of_an_earlier_edition_is_read(finished: Path) -> None:
    """It does not say which options its weights belong to."""
    for path in finished.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        del metadata["sha256"], metadata["options"]
        write_checkpoint(path, tensors, metadata)
    assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    assert "resuming out/run at step 6" in resume("--max_iters=7").stdout
