"""A small corpus, a tiny run, a copy of the repository to run commands in, and ranks as threads."""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import ReduceOp

from config.errors import run_command
from config.schema import Config, ModelConfig, TablesConfig
from data.batches import Batch, TrainBatches
from data.documents import Split
from engine.checkpoint import Optimizers, _hash, read_checkpoint
from engine.device import Device
from engine.evaluation import validate
from engine.metrics import Record, parse_record
from engine.objective import TrainingObjective
from engine.start import copy_all
from engine.state import StepResult, TrainState
from loss import Objective
from model import GPT
from train import train_step

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--block_size=8",
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=16",
    "--batch_size=4",
    "--max_iters=6",
    "--eval_interval=2",
    "--log_interval=1",
    "--checkpoint_interval=2",
    "--eval_tokens=300",
    "--dtype=float32",
]

# of a finished run
RUN_FILES = {
    "config.toml",
    "corpus.json",
    "tokenizer.json",
    "metrics.jsonl",
    "samples.jsonl",
    "history.jsonl",
    "curves.png",
    "last.safetensors",
    "previous.safetensors",
    "best.safetensors",
    "report.html",
    "report.js",
    "verdict.txt",
    "passage.jsonl",
    "evaluation.json",
}
SMALL = ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16)
CPU = Device(torch.device("cpu"), torch.float32)
T = TypeVar("T")

torch.set_num_threads(1)  # models this small are slower with more


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the trainings in tests; bfloat16 is slow on a CPU that emulates it",
    )


def pytest_configure(config: pytest.Config) -> None:
    TINY[-1] = f"--dtype={config.getoption('--dtype')}"  # before the test modules are imported


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


def call(script: str, *arguments: str, check: bool = True) -> Done:
    """Run a command in this process, in the current directory: `call("train.py", "--max_iters=5")`.

    It takes the same path as `python train.py`, but for the import of torch, which takes seconds.
    """
    main = import_module(script.removesuffix(".py").replace("/", ".")).main
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    argv = sys.argv
    sys.argv = [script, *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run_command(main)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        sys.argv = argv
    assert not check or code == 0, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())


def make_model(
    seed: int = 0, std: float = 0.2, tables: TablesConfig | None = None, **options: Any
) -> GPT:
    """Make a GPT for 13 tokens, SMALL but for the options, with weights that are nowhere zero."""
    torch.manual_seed(seed)
    model = GPT(SMALL.model_copy(update=options), 13, tables or TablesConfig())
    fill_weights(model, std)
    return model


def fill_weights(model: GPT, std: float) -> None:
    """Draw all weights from a normal distribution; of tables, they have 16 bits, as in training."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    for table in model.tables.parameters():
        table.data = table.data.half().float()
        table.data[0] = 0.0


def load_checkpoint(path: Path, model: GPT, optimizers: Optimizers = ()) -> TrainState:
    """Load weights and, if given, optimizers; returns the state."""
    saved = read_checkpoint(path)
    copy_all(saved, model, optimizers)
    return saved.state


def write_checkpoint(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write a file with the right hash, whatever it holds."""
    save_file(tensors, path, metadata | {"sha256": _hash(tensors, metadata)})


def read_metrics(run: Path) -> list[Record]:
    """Read the records of a run's metrics.jsonl; a torn line is none."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    records = [parse_record(line) for line in path.read_bytes().split(b"\n")]
    return [record for record in records if record]


def write_metrics(run: Path, records: list[Record]) -> None:
    """Replace a run's metrics.jsonl."""
    lines = [json.dumps(record) + "\n" for record in records]
    (run / "metrics.jsonl").write_text("".join(lines))


def without_clocks(run: Path) -> list[Record]:
    """Read a run's metrics without what depends on time: equal for equal runs."""
    of_time = re.compile("second|mfu|gigabytes")
    return [
        {key: value for key, value in record.items() if not of_time.search(key)}
        for record in read_metrics(run)
    ]


def make_text(n_lines: int = 400) -> str:
    """Write words in an order that has something to learn, and a little of all of Unicode."""
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat;", "naïve", "doré", "日本", "🎉"]
    weights = range(10, 0, -1)
    text = ""
    for _ in range(n_lines):
        line = rng.choices(words, weights, k=6)
        text += " ".join(line) + "\n"
    return text


def trained_dtype() -> str:
    """Return what the trainings of the tests compute in: --dtype of pytest."""
    return TINY[-1].removeprefix("--dtype=")


def other_dtype() -> str:
    return {"float32": "bfloat16", "bfloat16": "float32"}[trained_dtype()]


@pytest.fixture(autouse=True)
def _keep_denormals() -> Iterator[None]:
    """Training flushes them, in the whole process; hypothesis does not like that."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def _wait_for_no_disk() -> Iterator[None]:
    """A killed process loses nothing that it wrote; only a killed machine does, which none is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the repository as a newcomer has it, with nothing prepared, trained or installed."""
    path = tmp_path_factory.mktemp("clone")
    for source in [*ROOT.glob("*.py"), ROOT / "README.md", ROOT / "Makefile"]:
        shutil.copy(source, path)
    folders = [
        "config",
        "engine",
        "data",
        "report",
        "page",
        "large",
        "huggingface",
        "sweeps",
        "bench",
        "docs",
    ]
    suffixes = (".py", ".toml", ".html", ".js", ".css", ".ipynb")
    for folder in folders:
        for source in (ROOT / folder).rglob("*"):
            if source.suffix in suffixes or source.name == "results.json":
                target = path / source.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    (path / "text.txt").write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(clone: Path):
    """`run("train.py", "--max_iters=5")` runs that in the clone, as a process of its own: slow."""

    def run_process(
        script: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            cwd=clone,
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run_process


@pytest.fixture(scope="session")
def trained(run, clone: Path) -> tuple[Path, str]:
    """Make a tiny run by the real command; returns it and what it printed."""
    done = run("train.py", "--corpus=text.txt", "--out_dir=out/tiny", *TINY)
    return clone / "out/tiny", done.stdout


@contextmanager
def training_in(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Make `folder` the current directory, with text.txt in it, for a module; draw no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        train_in(folder, patch)
        (folder / "text.txt").write_text(make_text(), encoding="utf-8")
        yield patch


@pytest.fixture
def own(trained, tmp_path: Path) -> Path:
    """Copy the trained run, for a test that changes its files."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium; without playwright, the tests that ask for it are skipped."""
    from tests.chromium import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Any, own: Path) -> Iterator[Any]:
    """Open a page of one run."""
    from tests.chromium import open_page

    tab = open_page(browser, own)
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a run of two steps in out/run/, and what it was prepared from.

    Its model can be exported.
    """
    folder = tmp_path_factory.mktemp("example")
    options = [*TINY, "--max_iters=2", "--smear=false"]
    with training_in(folder):
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", *options)
        yield folder


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run in out/run/, and what it was prepared from."""
    folder = tmp_path_factory.mktemp("finished")
    with training_in(folder) as patch:
        only_numbers(patch)
        call("train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY)
    return folder


@pytest.fixture
def finished(example: Path, data_dir: Path) -> Path:
    """A finished run of one's own, in the current directory."""
    shutil.copytree(example, data_dir, dirs_exist_ok=True)
    return data_dir / "out/run"


@pytest.fixture
def numbers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    only_numbers(monkeypatch)


@pytest.fixture
def overfits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings overfit: the validation loss rises after the second evaluation."""
    losses = iter([3.0, 2.0, *[2.5] * 100])

    def rise(*arguments: Any) -> Record:
        return validate(*arguments) | {"val_nll": next(losses)}

    monkeypatch.setattr("train.validate", rise)
    # what else shows overfitting needs more steps
    monkeypatch.setattr("engine.state.SMOOTHED_STEPS", 1)
    monkeypatch.setattr(TrainBatches, "epochs", lambda self, step: 2.0)
    monkeypatch.setattr(TrainState, "train_rise", -1.0)


def train_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Do as work_in, but draw no pictures."""
    work_in(folder, patch)
    draw_nothing(patch)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let trainings leave an empty curves.png: a picture takes longer than a small training."""
    patch.setattr("train.draw_run", lambda run, path: path.touch())


def only_numbers(patch: pytest.MonkeyPatch) -> None:
    """Let trainings draw nothing and write no samples: that would take most of their time."""
    draw_nothing(patch)
    patch.setattr("train.generate_texts", lambda *_, **__: ["a sample"])


def take_step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: list[Batch],
    cfg: Config,
    device: Device,
    *,
    step: int = 0,
    loss_scale: float = 2.0**15,
    teacher: GPT | None = None,
) -> StepResult:
    """Call train.train_step as a training does before the step of that number."""
    terms = Objective(cfg.loss.label_smoothing, cfg.loss.z_loss)
    if teacher is not None:
        terms = terms._replace(alpha=cfg.loss.alpha, temperature=cfg.loss.temperature)
    state = TrainState(step=step)
    state.loss_scale = loss_scale
    teachers = [teacher] if teacher is not None else []
    objective = TrainingObjective(terms, teachers)
    return train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)


def make_batch(seed: int = 0) -> list[Batch]:
    """Make a batch of 6 sequences of 8 tokens for `make_model`."""
    tokens = np.random.default_rng(seed).integers(13, size=500)
    get_batch = TrainBatches(Split(tokens), 8, 6, seed)
    return get_batch(0)


class Meeting:
    """Where ranks that are threads exchange numbers.

    Between two exchanges one thread runs at a time.
    """

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: dict[int, torch.Tensor] = {}

    def gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the tensors of all ranks."""
        self.brought[rank] = tensor.clone()
        self._wait()
        gathered = torch.stack([self.brought[rank] for rank in sorted(self.brought)])
        self._wait()
        return gathered

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@dataclass(frozen=True)
class Thread(Device):
    """A rank that is a thread of this process: no processes are needed."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def all_reduce(
        self, tensor: torch.Tensor, op: ReduceOp.RedOpType = ReduceOp.SUM
    ) -> torch.Tensor:
        gathered = self.meeting.gather(self.rank, tensor)
        if op == ReduceOp.SUM:
            return tensor.copy_(gathered.sum(dim=0))
        return tensor.copy_(gathered.amax(dim=0))


def in_ranks(size: int, function: Callable[[Device], T]) -> list[T]:
    """Return what a function returns on each of so many ranks."""
    meeting = Meeting(size)

    def work(rank: int) -> T:
        device = Thread(CPU.torch_device, CPU.dtype, rank, size, meeting=meeting)
        with meeting.turn:
            return function(device)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, range(size)))


def work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Prepared corpora go to `folder`, which becomes the current directory."""
    for module in ("data.prepare", "data.corpora"):
        patch.setattr(f"{module}.DATA", folder / "data")
    patch.chdir(folder)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared corpora go to a temporary directory, which is also the current one."""
    work_in(tmp_path, monkeypatch)
    (tmp_path / "text.txt").write_text(make_text(), encoding="utf-8")
    return tmp_path
