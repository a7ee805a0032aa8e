"""A small corpus, a copy of the repository to run commands in, and a tiny run made there."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runs import Record, read_metrics

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--block_size=8", "--n_layer=2", "--n_head=2", "--n_embd=16", "--batch_size=4", "--max_iters=6",
        "--eval_interval=2", "--log_interval=1", "--checkpoint_interval=2", "--eval_tokens=300", "--dtype=float32"]

torch.set_num_threads(1)  # models this small are slower with more


def without_clocks(run: Path) -> list[Record]:
    """A run's metrics but for what depends on time: equal for runs that are."""
    return [{key: value for key, value in record.items() if "second" not in key}
            for record in read_metrics(run / "metrics.jsonl")]


def make_text(n_lines: int = 400) -> str:
    """Words in an order that has something to learn, and a little of everything Unicode."""
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat;", "naïve", "doré", "日本", "🎉"]
    return "\n".join(" ".join(rng.choices(words, weights=range(10, 0, -1), k=6)) for _ in range(n_lines)) + "\n"


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a newcomer has it, without anything that was prepared, trained or installed."""
    path = tmp_path_factory.mktemp("clone")
    for source in [*ROOT.glob("*.py"), ROOT / "README.md", ROOT / "Makefile"]:
        shutil.copy(source, path)
    for folder in ("config", "engine", "data", "bench"):
        shutil.copytree(ROOT / folder, path / folder, ignore=lambda _, names: [
            name for name in names if not name.endswith((".py", ".toml"))])
    (path / "text.txt").write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(clone: Path):
    """`run("train.py", "--max_iters=5")` runs that command in the clone."""

    def run_command(script: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, script, *arguments], cwd=clone, capture_output=True, text=True,
                              encoding="utf-8", stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert not check or done.returncode == 0, done.stderr
        return done

    return run_command


@pytest.fixture(scope="session")
def trained(run, clone: Path) -> tuple[Path, str]:
    """A tiny run, by the real command, and what it printed."""
    done = run("train.py", "--corpus=text.txt", "--out_dir=out/tiny", *TINY)
    return clone / "out/tiny", done.stdout


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared corpora go to a temporary directory, which is also the current one."""
    monkeypatch.setattr("data.prepare.DATA", tmp_path / "data")
    monkeypatch.setattr("data.corpora.DATA", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(make_text(), encoding="utf-8")
    return tmp_path
