"""A resumed run goes on as if it had not stopped, wherever it stopped and however it is named."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train as script
from config.cli import load_config
from engine.run import open_run
from engine.state import TrainState
from tests.conftest import TINY, call, make_text, read_metrics, training_in, without_clocks
from tests.one_run import train
from tests.processes import assert_same_checkpoints, read_checkpoint

pytestmark = pytest.mark.usefixtures("numbers_only")

TUNE = """
data.corpus = "part.txt"
optim = {batch_size = 2, max_iters = 4, learning_rate = 1e-3}
run = {init_from = "origin", eval_interval = 2, checkpoint_interval = 1, eval_tokens = 0}
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that is gone, and two that started with its weights: whole, and killed after a part."""
    folder = tmp_path_factory.mktemp("resuming")
    with training_in(folder) as patch:
        Path("part.txt").write_text(make_text(100), encoding="utf-8")
        Path("tune.toml").write_text(TUNE, encoding="utf-8")
        call("train.py", "--corpus=text.txt", "--out_dir=origin", *TINY)
        call("train.py", "tune.toml", "--out_dir=whole")
        train_step = script.train_step

        def die(*arguments: Any, state: TrainState, **options: Any) -> Any:
            if state.step == 3:
                sys.exit(9)
            return train_step(*arguments, state=state, **options)

        with pytest.MonkeyPatch.context() as dying:
            dying.setattr("train.train_step", die)
            command = ["train.py", "tune.toml", "--out_dir=killed", "--init_from=auto"]
            done = call(*command, check=False)
        assert done.returncode == 9
        assert "starts with the weights of origin" in done.stdout  # as the recipe says
        Path("origin").rename("elsewhere")
        patch.setattr("train.generate_texts", lambda *_, **__: ["a sample"])
        yield folder


@pytest.mark.parametrize(
    "again",
    [
        ["tune.toml", "--out_dir=again", "--init_from=auto"],
        ["tune.toml", "--out_dir=again", "--init_from=resume"],
        ["--out_dir=again", "--init_from=resume"],
        ["again", "--init_from=resume"],
    ],
)
def test_fine_tuning_resumes_itself(again: list[str], tuned: Path) -> None:
    """It ends as if it was not killed, whether its recipe, its directory or nothing is named."""
    shutil.rmtree("again", ignore_errors=True)
    shutil.copytree("killed", "again")
    assert "resuming again at step 3\n" in call("train.py", *again).stdout
    assert without_clocks(Path("again")) == without_clocks(Path("whole"))
    for name in ("verdict.txt", "config.toml"):
        assert Path("again", name).read_bytes() == Path("whole", name).read_bytes()
    assert "it is finished" in call("train.py", *again).stdout


def test_a_run_is_a_recipe_that_starts_as_it_did(tuned: Path) -> None:
    Path("elsewhere").rename("origin")
    cfg, _ = load_config(["whole", "--out_dir=new"])
    assert cfg.run.source == "origin"
    assert cfg.data.tokenizer == "origin"
    assert cfg.model.n_embd == 16
    Path("origin").rename("elsewhere")


def test_what_is_not_named_comes_from_the_run(data_dir: Path) -> None:
    """So do text and shape: where a recipe says something else, a line tells it."""
    call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY)
    run = data_dir / "out/run"
    before = open_run(run).cfg
    Path("other.toml").write_text(
        'data.corpus = "more.txt"\nmodel.n_layer = 5\noptim.max_iters = 8\n'
    )
    assert "it is finished" in call("train.py", "--out_dir=out/run", "--init_from=resume").stdout
    command = ["train.py", "other.toml", "--out_dir=out/run", "--init_from=auto"]
    printed = call(*command).stdout
    assert printed.startswith(
        "corpus=more.txt of the recipe is not used: the run has corpus=text.txt\n"
        "n_layer=5 of the recipe is not used: the run has n_layer=2\n"
    )
    assert "resuming out/run at step 6\n  max_iters was 6 and is now 8\n" in printed
    optim = before.optim.model_copy(update={"max_iters": 8})
    assert open_run(run).cfg == before.model_copy(update={"optim": optim})
    done = call(*command, "--n_layer=5", check=False)
    assert "n_layer was 2 and is now 5: that would be another model or text" in done.stderr


@pytest.mark.parametrize(
    "options",
    [["--optimizer=muon"], ["--optimizer=adamw"], ["--max_ngram=3", "--table_dropout=0.3"]],
)
def test_resuming_continues_bit_for_bit(data_dir: Path, options: list[str]) -> None:
    """6 steps at once equal 4 and 2: weights, optimizers, metrics; with dropout, over epochs."""
    options += ["--dropout=0.2", "--batch_size=8", "--schedule=constant", "--val_fraction=0.99"]
    train(*options, "--out_dir=out/whole")
    train(*options, "--max_iters=4")
    stopped, _ = read_checkpoint(data_dir / "out/run/last.safetensors")
    train(*options, "--init_from=resume")
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_checkpoints(data_dir / "out/run" / name, data_dir / "out/whole" / name)
    resumed, _ = read_checkpoint(data_dir / "out/run/last.safetensors")
    assert not np.array_equal(stopped["model.wte.weight"], resumed["model.wte.weight"])
    assert without_clocks(data_dir / "out/run") == without_clocks(data_dir / "out/whole")


STOPS = [
    pytest.param(0, [], id="before the first step"),
    pytest.param(2, [], id="after a line"),
    pytest.param(3, ["--log_interval=2"], id="between two lines"),
]


@pytest.mark.parametrize(("stop_at", "options"), STOPS)
def test_a_run_stopped_at_any_step_can_be_resumed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, options: list[str]
) -> None:
    """Before the first step, right after a line of metrics, and between two lines."""
    asked = iter(range(100))

    def requested(self: Any) -> bool:
        self.received = 15 * (next(asked) >= stop_at)
        return self.received > 0

    with monkeypatch.context() as patch:
        patch.setattr("engine.signals.StopSignal.requested", requested)
        done = call(
            "train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, *options, check=False
        )
    assert done.returncode == 143
    assert read_checkpoint(data_dir / "out/run/last.safetensors")[1]["step"] == stop_at
    train("--init_from=resume")
    steps = [record["step"] for record in read_metrics(data_dir / "out/run")]
    assert steps == ([0, 1, 2, 3, 4, 5, 6, 6])


@pytest.mark.usefixtures("overfits")
def test_a_run_stopped_by_patience_can_be_resumed(data_dir: Path) -> None:
    """It goes on with more patience; without, it is evaluated again, and stays as it is."""
    train("--patience=2")
    before = without_clocks(data_dir / "out/run")
    steps = [record["step"] for record in before]
    assert steps == [0, 1, 2, 3, 4, 4]
    train("--patience=2", "--init_from=resume")
    assert without_clocks(data_dir / "out/run") == before
    train("--patience=0", "--init_from=resume")
    steps = [record["step"] for record in read_metrics(data_dir / "out/run")]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 6]
