"""Options may change when a run is resumed; the change is told and noted."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from config.schema import Config
from data.batches import Batch, TrainBatches
from engine.run import open_run
from tests.conftest import call, other_dtype, read_metrics, trained_dtype, write_checkpoint
from tests.one_run import files, resume, steps, train
from tests.processes import read_checkpoint

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_what_may_change_is_changed_and_noted(finished: Path) -> None:
    changes = {
        "max_iters": 9,
        "learning_rate": 0.012,
        "eval_interval": 3,
        "log_interval": 2,
        "micro_batch_size": 2,
        "dropout": 0.1,
        "device": "cpu",
        "eval_tokens": 100,
    }
    printed = resume(*(f"--{name}={value}" for name, value in changes.items())).stdout
    for said in (
        "max_iters was 6 and is now 9",
        f"learning_rate was {Config().optim.learning_rate} and is now 0.012",
        "device was auto and is now cpu",
    ):
        assert f"\n  {said}\n" in printed
    first, second = map(json.loads, (finished / "history.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 6)
    assert "changes" not in first
    assert second["changes"].keys() == changes.keys()
    for name, now in changes.items():
        assert second["changes"][name][1] == now
    assert second["changes"]["max_iters"] == [6, 9]
    cfg = open_run(finished).cfg
    assert (cfg.optim.max_iters, cfg.run.init_from) == (9, "scratch")
    assert steps(finished)[-1] == 9
    assert read_metrics(finished)[-1]["best_step"] > 6  # losses on other targets do not compare


@pytest.mark.parametrize("option", ["seed", "batch_size"])
def test_a_new_seed_or_batch_size_has_to_be_named(finished: Path, option: str) -> None:
    saved = (finished / "config.toml").read_text()
    value = next(line for line in saved.splitlines() if line.startswith(f"{option} = "))
    recipe = Path("other.toml")
    recipe.write_text(
        saved.replace(value, f"{option} = 5").replace("max_iters = 6", "max_iters = 8")
    )
    before = files(finished)
    done = call("train.py", "other.toml", "--out_dir=out/run", "--init_from=resume", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: out/run: {value.replace('=', 'was')} and is now 5: ")
    assert done.stderr.endswith(f"; if you want that, add --{option}=5\n")
    assert files(finished) == before
    call("train.py", "other.toml", "--out_dir=out/run", "--init_from=resume", f"--{option}=5")
    assert open_run(finished).cfg.options()[option] == 5


def forget_windows(path: Path) -> None:
    """Make a checkpoint one of an earlier edition, which did not count windows."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata["sha256"]
    state = json.loads(metadata["state"])
    del state["windows"]
    metadata["state"] = json.dumps(state)
    tensors = load_file(path)
    write_checkpoint(path, tensors, metadata)


@pytest.mark.parametrize("edition", ["this", "earlier"])
def test_another_batch_size_skips_and_repeats_no_window(
    finished: Path, monkeypatch: pytest.MonkeyPatch, edition: str
) -> None:
    assert read_checkpoint(finished / "last.safetensors")[1]["windows"] == 6 * 4
    if edition == "earlier":
        forget_windows(finished / "last.safetensors")
    read: list[int] = []
    get_batch = TrainBatches.__call__

    def note(self: TrainBatches, first_window: int) -> list[Batch]:
        read.append(first_window)
        return get_batch(self, first_window)

    monkeypatch.setattr(TrainBatches, "__call__", note)
    resume("--max_iters=8", "--batch_size=5")
    assert read == [24, 29]
    assert read_checkpoint(finished / "last.safetensors")[1]["windows"] == 34
    resume("--max_iters=9", "--batch_size=2")
    assert read == [24, 29, 34]


def test_a_jump_of_the_learning_rate_is_told(finished: Path) -> None:
    """A finished run goes on: its last step had 1/6 of the peak, and the next has 3/9 of it."""
    peak = Config().optim.learning_rate
    printed = resume("--max_iters=9").stdout
    assert (
        f"\n  the learning rate rises from {peak / 6:.2g} to {peak / 3:.2g}, "
        "because its schedule now ends at step 9\n"
    ) in printed
    constant = ["--learning_rate=0.001", "--schedule=constant"]
    told = resume("--max_iters=10", *constant).stdout
    assert (
        f"\n  the learning rate falls from {peak / 9:.2g} to 0.001, because its schedule now ends"
        in told
    )
    assert "the learning rate" not in resume("--max_iters=12", *constant).stdout


def test_a_new_dtype_has_to_be_named(finished: Path) -> None:
    (finished / "config.toml").rename("other.toml")
    shutil.copy("other.toml", finished / "config.toml")
    was = trained_dtype()
    now = other_dtype()
    Path("other.toml").write_text(Path("other.toml").read_text().replace(was, now))
    options = ["other.toml", "--out_dir=out/run", "--init_from=resume", "--max_iters=8"]
    done = call("train.py", *options, check=False)
    assert (
        f"error: out/run: dtype was {was} and is now {now}: the arithmetic changes; if you want"
        in done.stderr
    )
    assert open_run(finished).cfg.run.dtype == was
    printed = call("train.py", *options, f"--dtype={now}").stdout
    assert f"\n  dtype was {was} and is now {now}\n" in printed
    assert open_run(finished).cfg.run.dtype == now


def test_auto_resumes_a_run_or_starts_one(data_dir: Path) -> None:
    assert "resuming" not in train("--init_from=auto", "--max_iters=2").stdout
    assert "resuming out/run at step 2\n  max_iters was 2 and is now 4\n" in (
        train("--init_from=auto", "--max_iters=4").stdout
    )
    assert not (data_dir / "out/run.1").exists()


def test_resuming_another_model_or_text_is_refused(data_dir: Path) -> None:
    train("--max_iters=2")
    before = {path: path.read_bytes() for path in (data_dir / "out/run").iterdir()}

    def refusal(*arguments: str) -> str:
        done = call("train.py", "out/run", "--init_from=resume", *arguments, check=False)
        assert done.returncode == 2
        return done.stderr

    for option, says in (
        ("--n_layer=3", "n_layer was 2 and is now 3"),
        ("--optimizer=adamw", "optimizer was muon"),
        ("--val_fraction=0.5", "val_fraction was 0.1"),
    ):
        assert says in refusal(option)
    (data_dir / "text.txt").write_text("Something else entirely.\n" * 50, encoding="utf-8")
    assert "its text has changed (sha256 was " in refusal()
    assert {path: path.read_bytes() for path in (data_dir / "out/run").iterdir()} == before
