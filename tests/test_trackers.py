"""A tracker has what the run's files have, and never stops a training.

The tests with the real packages (requirements-ci.txt) are offline, and skipped where a package is
missing.
"""

import html
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement

import trackers
from config.cli import load_config
from config.errors import UserError
from config.values import WATCHERS
from engine.run import Run, open_run
from engine.watchers import Watchers
from tests.conftest import ROOT, TINY, call, draw_nothing, read_metrics
from tests.one_run import STEPS, steps
from tests.processes import Process

# mlflow's calls of sqlalchemy
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TRACKERS = [name for name in WATCHERS if name != "page"]
TRAIN = ["--corpus=text.txt", *TINY, "--schedule=constant"]
VARIABLES = (
    "WANDB_PROJECT",
    "WANDB_NAME",
    "WANDB_RUN_ID",
    "WANDB_DIR",
    "WANDB_RESUME",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
)
SAMPLE = "  First <b>line</b>,\n\nthird & last: naïve 日本"


Number = tuple[int, str, float]  # step, name, value


class Tracked(NamedTuple):
    """What a tracker has of a run."""

    cfg: dict[str, str]
    numbers: list[Number]  # step, name, value
    texts: list[tuple[int, str]]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remove the variables of whoever runs the tests, and draw and write nothing."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # also after the test, if a tracker sets it
    if "TRACKIO_DIR" not in os.environ:  # the package reads it once
        os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trackers, "PATIENCE", 120.0)  # for a slow machine
    draw_nothing(monkeypatch)
    monkeypatch.setattr("train.generate_texts", lambda *_, **__: [SAMPLE])


@pytest.fixture(params=TRACKERS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each tracker whose package is installed."""
    package = pytest.importorskip(request.param)
    yield request.param
    if request.param == "wandb":
        package.teardown()  # it reads its variables once
    elif request.param == "mlflow":
        package.set_tracking_uri(None)


# Reading back, with the packages' own means where they have some.


def read_tracked(name: str, run: Path) -> list[Tracked]:
    """All tracked runs of the project, the oldest first; of TensorBoard only this run."""
    return list(globals()[f"read_{name}"](run))


def read_tensorboard(run: Path) -> Iterator[Tracked]:
    """Read what TensorBoard shows: without what a later event file takes back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    tags = events.Tags()
    texts = {
        tag: [
            (event.step, dedent(make_ndarray(event.tensor_proto).item().decode()))
            for event in events.Tensors(tag)
        ]
        for tag in tags["tensors"]
    }
    yield Tracked(
        flatten(texts.pop("config/text_summary")[-1][1]),
        [
            (event.step, tag, event.value)
            for tag in tags["scalars"]
            for event in events.Scalars(tag)
        ],
        texts.pop("text/text_summary", []),
    )
    assert not texts


def read_wandb(run: Path) -> Iterator[Tracked]:
    """The logs of all starts of a run, in the order in which `wandb sync` sends them."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # it writes the last records when its process ends
    time.sleep(1)  # the next start gets a folder of its own: its name has the second
    found: dict[str, Tracked] = {}
    for log in sorted(
        run.parent.glob("*/wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name
    ):
        for content in read_leveldb(log.read_bytes()[7:]):
            record = Record.FromString(content)
            if record.HasField("run"):
                assert record.run.project == "surprisal"
                tracked = found.setdefault(record.run.run_id, Tracked({}, [], []))
                for item in record.run.config.update:
                    tracked.cfg[item.key] = str(json.loads(item.value_json))
            elif record.HasField("history"):
                line = {
                    tuple(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                step = line["step",]
                for (key, *_), value in line.items():
                    if key not in ("step", "text") and not key.startswith("_"):
                        tracked.numbers.append((step, key, value))
                if page := line.get(("text", "path")):
                    page = (log.parent / "files" / page).read_text(encoding="utf-8")
                    text = page.split("<pre>")[1].split("</pre>")[0]
                    tracked.texts.append((step, html.unescape(text)))
    yield from found.values()


def read_leveldb(data: bytes) -> Iterator[bytes]:
    """Join the parts of each record of a log.

    A block of 32 KB holds parts, each after a header of checksum, length and kind.
    """
    at = 0
    record = b""
    while at < len(data):
        left = 32768 - (at + 7) % 32768  # of the block; the file's own header is in the first
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_trackio(run: Path) -> Iterator[Tracked]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for tracked in trackio.Api().runs("surprisal"):
        if tracked.name.split("-")[0] != run.name:  # another test's
            continue
        lines = SQLiteStorage.get_logs("surprisal", tracked.name, run_id=tracked.id)
        options = (tracked.config or {}).items()
        found = Tracked({}, [], [])
        for key, value in options:
            if not key.startswith("_"):
                found.cfg[key] = str(value)
        for line in lines:
            step = line["step"]
            for key, value in line.items():
                if key == "text":
                    found.texts.append((step, dedent(value["_value"])))
                elif key not in ("step", "timestamp"):
                    found.numbers.append((step, key, value))
        yield found


def read_mlflow(run: Path) -> Iterator[Tracked]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run.parent.resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("surprisal")
    for tracked in client.search_runs([experiment.experiment_id], order_by=["start_time"]):
        assert tracked.info.status == "FINISHED"
        (artifacts,) = (run.parent / "mlruns").glob(f"{tracked.info.run_id}/artifacts")
        cfg = flatten((artifacts / "config.toml").read_text(encoding="utf-8"))
        assert set(tracked.data.params) - set(cfg) == {"out_dir", "init_from"}
        yield Tracked(
            cfg,
            [
                (metric.step, key, metric.value)
                for key in tracked.data.metrics
                for metric in client.get_metric_history(tracked.info.run_id, key)
            ],
            [
                (int(path.stem), path.read_text(encoding="utf-8"))
                for path in artifacts.glob("text/*.txt")
            ],
        )


def flatten(toml: str) -> dict[str, str]:
    return {
        name: str(value)
        for section in tomllib.loads(toml).values()
        for name, value in section.items()
    }


def read_files(run: Path) -> Tracked:
    """Read what the run's own files have."""
    lines = [
        json.loads(line)
        for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return Tracked(
        flatten((run / "config.toml").read_text(encoding="utf-8")),
        [
            (int(record["step"]), name, value)
            for record in read_metrics(run)
            for name, value in record.items()
            if name != "step"
        ],
        [(line["step"], line["text"]) for line in lines],
    )


def rounded(numbers: list[Number]) -> Counter[Number]:
    """Count numbers in float32, as TensorBoard keeps them."""
    rounded: Counter[Number] = Counter()
    for step, name, value in numbers:
        rounded[step, name, float(np.float32(value))] += 1
    return rounded


def assert_same(tracked: Tracked, files: Tracked) -> None:
    assert rounded(tracked.numbers) == rounded(files.numbers)
    texts = sorted(files.texts)
    if files.cfg["watchers"] == "page,mlflow":
        texts = sorted(set(texts))  # MLflow keeps one of each step
    assert sorted(tracked.texts) == texts
    assert files.cfg.items() <= tracked.cfg.items()


# What is tracked.


def test_a_tracker_has_what_the_files_have_also_after_resuming(name: str, data_dir: Path) -> None:
    """Resuming from an earlier step continues the tracked run; a new run begins another.

    W&B, Trackio and MLflow keep the later steps, beside what is measured again.
    """
    run = data_dir / f"out/mine{name}"
    train = [*TRAIN, f"--watchers=page,{name}"]
    out = f"--out_dir={run}"
    assert "warning" not in call("train.py", *train, out, "--max_iters=4").stdout
    first = read_files(run)
    names = {name for _, name, _ in first.numbers}
    assert {"train_nll", "val_nll", "best_val_nll", "tokens", "lr"} <= names
    assert first.texts[0] == (0, SAMPLE)
    (tracked,) = read_tracked(name, run)
    assert_same(tracked, first)

    shutil.copy(run / "previous.safetensors", run / "last.safetensors")
    assert "at step 2\n" in call("train.py", str(run), "--init_from=resume", "--max_iters=6").stdout
    files = read_files(run)
    assert files.cfg["max_iters"] == "6"
    assert files.cfg["watchers"] == f"page,{name}"
    if name != "tensorboard":  # which drops the numbers of later steps, but not the texts
        files.numbers.extend(number for number in first.numbers if number[0] > 2)
    files.texts.extend(text for text in first.texts if text[0] > 2)
    (tracked,) = read_tracked(name, run)
    assert_same(tracked, files)

    call("train.py", *train, out, "--max_iters=1")
    all_tracked = read_tracked(name, run)
    if name == "tensorboard":
        assert len(all_tracked) == 1
    else:
        assert len(all_tracked) == 2
    assert_same(all_tracked[-1], read_files(run))


@pytest.fixture
def finished(data_dir: Path) -> Run:
    call("train.py", *TRAIN, "--out_dir=out/run", "--max_iters=1")
    return open_run(data_dir / "out/run")


def test_variables_of_wandb_are_respected(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    (tmp_path / "theirs").mkdir()
    theirs = {
        "PROJECT": "their-project",
        "NAME": "their name",
        "RUN_ID": "theirs0",
        "DIR": str(tmp_path / "theirs"),
        "INIT_TIMEOUT": "7",
    }
    for variable, value in theirs.items():
        monkeypatch.setenv(f"WANDB_{variable}", value)
    tracker = trackers.WandB(finished, 0)
    settings = tracker.tracked.settings
    # W&B's own are 90 s, and none
    assert (settings.init_timeout, settings.finish_timeout) == (7, trackers.PATIENCE)
    tracker.close()
    wandb.teardown()
    (log,) = tmp_path.glob("theirs/wandb/offline-run-*/run-theirs0.wandb")
    assert not (finished.path / "wandb").exists()
    assert all(value.encode() in log.read_bytes() for value in ("their-project", "their name"))


def test_variables_of_mlflow_are_respected(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    trackers.MLflow(finished, 0).close()
    experiment = mlflow.MlflowClient().get_experiment_by_name("theirs")
    (tracked,) = mlflow.search_runs([experiment.experiment_id], output_format="list")
    assert tracked.info.run_name == "run"
    assert not (tmp_path / "out/mlflow.db").exists()


# A tracker that is missing, or not asked for.


def test_a_missing_package_is_one_line_before_anything_is_prepared(data_dir: Path) -> None:
    """Not even torch is imported, which takes seconds."""
    code = (
        "import atexit, runpy, sys; sys.modules['wandb'] = None; sys.argv[0] = 'train.py';"
        "atexit.register(lambda: print('torch' in sys.modules));"
        f"sys.path.insert(0, {str(ROOT)!r});"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--corpus=text.txt", "--watchers=page,wandb"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == "error: watchers=wandb needs its package: pip install -e '.[wandb]'\n"
    assert done.stdout == "False\n"
    assert [path.name for path in data_dir.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("folder", [False, True])
def test_each_missing_package_is_told(
    name: str, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its name, such as ./wandb of W&B, is no package, although it can be imported."""
    monkeypatch.setitem(sys.modules, name, None)
    if folder:
        (tmp_path / name).mkdir()
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    told = re.escape(f"watchers={name} needs its package: pip install -e '.[{name}]'")
    for arguments in ([], ["--init_from=auto"]):
        with pytest.raises(UserError, match=told):
            load_config([f"--watchers=page,{name}", *arguments])


def test_the_extras_are_the_trackers() -> None:
    """Each installs a package of its name, and the exact versions are in the ranges."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    installed = (ROOT / "requirements-ci.txt").read_text(encoding="utf-8")
    exact = dict(re.findall(r"^(\w+)(?:-skinny)?==(\S+)$", installed, re.M))
    for name in TRACKERS:
        (requirement,) = map(Requirement, extras[name])
        assert requirement.name == name
        assert exact[name] in requirement.specifier


WATCH = f"""
import sys
class Watch:
    def find_spec(name, *_):
        if name.split(".")[0] in {TRACKERS} or name == "torch.utils.tensorboard":
            print("looks for", name)
sys.meta_path.insert(0, Watch)
"""


def test_without_a_tracker_none_is_imported(clone: Path) -> None:
    out = clone / "out/untracked"
    code, printed = Process(clone, *TRAIN, f"--out_dir={out}", prelude=WATCH).wait()
    assert code == 0
    assert "looks for" not in printed
    left = {*os.listdir(out), *os.listdir(out.parent)}
    assert not left & {"tensorboard", "wandb", "mlflow.db", "mlruns"}


# A tracker that fails.


class Fake:
    """Takes the place of trackio, fails or hangs in one function, and notes what it was told."""

    def __init__(self) -> None:
        self.fails_in = ""
        self.hangs = False
        self.released = threading.Event()
        self.told: list[Any] = []

    def __call__(self, function: str, *arguments: Any) -> "Fake":
        self.told.append((function, *arguments))
        if function == self.fails_in:
            if self.hangs:
                self.released.wait(60)
            raise ConnectionError(f"no {function}\nat all")
        return self

    def init(self, *arguments: Any, **options: Any) -> "Fake":
        return self("init", *arguments)

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self("log", step)

    def finish(self) -> None:
        self("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = Fake()
    module = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None, origin="here")
    vars(module).update(init=fake.init, Markdown=str)
    monkeypatch.setitem(sys.modules, "trackio", module)
    yield fake
    fake.released.set()


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("function", ["init", "log", "finish"])
def test_a_tracker_that_fails_or_hangs_warns_once_and_stops_nothing(
    function: str, hangs: bool, fake: Fake, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.fails_in = function
    fake.hangs = hangs
    error = f"ConnectionError('no {function}\\nat all')"
    says = f"trackio failed, and training continues without it: {error}"
    if hangs:
        monkeypatch.setattr(trackers, "PATIENCE", 0.2)
        says = "trackio is not done after 0 s, and may lack the last lines"
    done = call("train.py", *TRAIN, "--out_dir=out/run", "--watchers=page,trackio")
    assert re.findall("warning: .*", done.stdout) == [f"warning: {says}"]
    assert done.stderr == ""
    assert fake.told[-1][0] == function  # nothing after it
    assert steps(data_dir / "out/run") == STEPS
    assert (data_dir / "out/run/verdict.txt").exists()


def test_a_tracker_that_was_given_up_is_not_told_again(
    fake: Fake, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    fake.fails_in = "init"
    fake.hangs = True
    told: list[str] = []
    watchers = Watchers(["trackio"], finished, 0, told.append)
    watchers.close()
    fake.released.set()
    watchers.close()
    assert told == ["warning: trackio is not done after 0 s, and may lack the last lines"]


def test_a_stopped_run_lets_its_tracker_finish(
    fake: Fake, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes after the third step."""
    asked = 0

    def request(stop: Any) -> bool:
        nonlocal asked
        asked += 1
        if asked == 4:
            stop.received = signal.SIGTERM
        return stop.received > 0

    monkeypatch.setattr("engine.signals.StopSignal.requested", request)
    command = ["train.py", *TRAIN, "--out_dir=out/run", "--watchers=page,trackio"]
    assert call(*command, check=False).returncode == 143
    assert fake.told[-2:] == [("log", 3), ("finish",)]


def test_wandb_without_a_key_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never asks for a key: that would hold the terminal until Python aborts at the end."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(data_dir / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(data_dir))
    done = call("train.py", *TRAIN, "--out_dir=out/run", "--watchers=page,wandb")
    wandb.teardown()
    assert re.findall("warning: .*", done.stdout) == [
        "warning: wandb failed, and training continues without it: "
        "RuntimeError('no API key: run `wandb login`, or set WANDB_MODE=offline')"
    ]


def test_a_server_that_never_answers_stops_nothing(clone: Path) -> None:
    """At the end, too, no process may wait for the server."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts, and nobody answers
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        variables = {
            "wandb": {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40},
            "trackio": {"TRACKIO_SERVER_URL": address, "TRACKIO_WRITE_TOKEN": "none"},
            "mlflow": {"MLFLOW_TRACKING_URI": address},
        }
        # so short that mlflow's imports may take longer
        prelude = "import trackers; trackers.PATIENCE = 1"
        if find_spec("IPython"):
            prelude += "; import IPython"
        processes = {
            name: Process(
                clone,
                *TRAIN,
                f"--out_dir=out/waits-{name}",
                f"--watchers=page,{name}",
                prelude=prelude,
                **variables[name],
            )
            for name in variables
            if find_spec(name)
        }
        if not processes:
            pytest.skip("no tracker with a server is installed")
        for name, process in processes.items():
            code, printed = process.wait()
            assert code == 0, printed
            assert re.findall(r"warning: (\w+)", printed) == [name]  # once
            assert steps(clone / f"out/waits-{name}") == STEPS
