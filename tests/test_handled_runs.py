"""Runs whose files users copied, moved, linked, deleted or spoilt still work."""

import os
import shutil
from pathlib import Path

import pytest

from config.cli import load_config
from tests.conftest import call
from tests.one_run import files, flip, resume, steps, train
from tests.processes import read_checkpoint

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_a_damaged_line_of_metrics_takes_no_other_with_it(finished: Path) -> None:
    metrics = finished / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"step", b"st\xb3p")
    lines[3] = lines[3].replace(b'"step": 3', b'"step": 73')
    metrics.write_bytes(b"\n".join(lines))
    resume("--max_iters=8")
    assert metrics.read_bytes().startswith(b"\n".join(lines[:7]))
    assert steps(finished) == [0, 1, 73, *range(4, 9), 8]


ODD_LINES = [
    b"",
    b'{"step": "x", "val_nll": "y", "seconds": 1, "tokens": 1}',
    b"[[" * 10**5,
    b"\xff",
    b'{"step": 5}',
    b'{"val_nll": 5}',
    b'{"step": true}',
    b"null",
]


def test_odd_metrics_stop_nothing(finished: Path) -> None:
    metrics = finished / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + b"\n".join(ODD_LINES) + b"\n")
    for x in ("step", "tokens"):
        assert call("curves.py", "out/run", f"--x={x}", "--terminal").stdout
    resume("--max_iters=7")
    for line in ODD_LINES:
        metrics.write_bytes(line)
        assert call("curves.py", "out/run", "--terminal", check=False).returncode in (0, 2)
    resume("--max_iters=8")
    metrics.unlink()
    resume("--max_iters=9")


def test_a_copied_or_moved_run_continues_where_it_is(finished: Path) -> None:
    """The original is not touched."""
    copied = finished.with_name("copied")
    shutil.copytree(finished, copied)
    before = files(finished)
    call("train.py", "out/copied", "--init_from=resume", "--max_iters=8")
    assert files(finished) == before
    assert steps(copied)[-1] == 8
    shutil.move(copied, "moved")
    call("train.py", "moved/config.toml", "--init_from=resume", "--max_iters=9")
    assert steps(Path("moved"))[-1] == 9
    assert load_config(["moved/config.toml", "--out_dir=out/new"])[0].run.out_dir == "out/new"


def test_what_is_not_ours_is_left_alone(data_dir: Path) -> None:
    thesis = data_dir / "out/run/thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    for name in ("corpus.json", "config.toml"):  # with which it looks a little like a run
        assert (
            "out_dir=out/run: exists and is not a run; choose another --out_dir"
            in train(returns=2).stderr
        )
        (thesis.parent / name).touch()
    thesis.unlink()
    assert "exists and is not a run" in train(returns=2).stderr
    assert {path.name for path in thesis.parent.iterdir()} == {"corpus.json", "config.toml"}


@pytest.mark.parametrize("out_dir", ["/", "//", ".."])
def test_directories_that_cannot_be_runs(data_dir: Path, out_dir: str) -> None:
    assert "should be a directory of its own" in train(f"--out_dir={out_dir}", returns=2).stderr


def test_a_run_may_be_a_link_to_another_disk(data_dir: Path) -> None:
    """A link stays a link, and the run that it led to is renamed beside where it was."""
    real = data_dir / "disk/real"
    real.mkdir(parents=True)
    (data_dir / "out").mkdir()
    (data_dir / "out/run").symlink_to(real)
    train()
    assert (real / "last.safetensors").is_file()
    resume("--max_iters=8")
    before = [*files(real).values()]
    train()
    assert (data_dir / "out/run").is_symlink()
    assert [*files(data_dir / "disk/real.1").values()] == before
    assert read_checkpoint(real / "last.safetensors")[1]["step"] == 6


def test_a_best_model_of_steps_that_are_taken_anew_is_no_best_model(finished: Path) -> None:
    """The best model is of step 6, but the run resumes at step 4 with another learning rate."""
    os.replace(finished / "previous.safetensors", finished / "last.safetensors")
    resume("--max_iters=5", "--learning_rate=0", "--muon_learning_rate=0")
    assert read_checkpoint(finished / "best.safetensors")[1]["step"] == 5
    (finished / "best.safetensors").unlink()
    resume("--max_iters=6")
    assert read_checkpoint(finished / "best.safetensors")[1]["step"] == 6


def test_a_damaged_best_model_does_not_keep_a_run_from_its_end(finished: Path) -> None:
    """Its header is whole: measured only at the end, it would end every start with an error."""
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    flip(finished / "best.safetensors", -20)
    printed = resume().stdout
    assert (
        "best.safetensors: damaged (its content does not match its sha256): the next model that is"
        in printed
    )
    assert "The best model, of step 6 of 6" in printed
    assert "becomes the best" not in resume("--max_iters=7").stdout


def test_a_finished_run_without_its_metrics_or_tokenizer(finished: Path) -> None:
    (finished / "metrics.jsonl").unlink()
    assert "The best model, of step 6 of 6" in resume().stdout
    (finished / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: " in resume(returns=2).stderr
