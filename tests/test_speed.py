"""The log says how fast a training is, and what each GPU does of its best."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.batches import TrainBatches
from engine.device import Device
from engine.metrics import Record
from engine.state import StepResult
from report.gpu import find_peak, measure_gpus
from tests.conftest import CPU, read_metrics
from tests.one_run import train

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_tokens_per_second_are_those_of_the_steps(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations, samples and checkpoints take an hour each here, and do not count."""
    now = 0.0

    def takes(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **keywords: Any) -> Any:
            nonlocal now
            now += seconds
            return function(*arguments, **keywords)

        return slow

    import engine.run_files
    import train as script

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for module, name, seconds in (
        (script, "validate", 3600),
        (script, "generate_texts", 3600),
        (engine.run_files, "save_checkpoint", 3600),
        (script, "seed_dropout", 0.5),
        # the last two are called in each step
        (TrainBatches, "__call__", 0.25),
    ):
        monkeypatch.setattr(module, name, takes(seconds, getattr(module, name)))
    intervals = ["--log_interval=2", "--checkpoint_interval=1", "--eval_interval=3"]
    train(*intervals, "--micro_batch_size=4")
    records = read_metrics(data_dir / "out/run")
    rates = [record["tokens_per_second"] for record in records if "train_nll" in record]
    assert rates == [4 * 8 / 0.75] * 6
    assert records[-2]["seconds"] > 3600


def test_what_each_gpu_does_is_logged(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of two GPUs is made up here."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", {torch.device("cuda:1"): 33_100_000_000}.__getitem__
    )
    monkeypatch.setattr(Device, "max", lambda self, number: number)
    two = Device(torch.device("cuda:1"), torch.bfloat16, 0, 2)
    steps = [StepResult(None, 1.0, 0.1, 0.001)] * 3  # type: ignore[arg-type]
    numbers = {"step_positions": 2048, "flops_per_position": 1000, "steps_left": 100}
    assert measure_gpus(two, steps, **numbers) == pytest.approx(
        {
            "gpu_tokens_per_second": 1_024_000,
            "gpu_gigabytes": 33.1,
            "seconds_left": 0.1,
            "mfu": 1_024_000 * 1000 / 989e12,
        }
    )
    assert measure_gpus(two, [], **numbers) == measure_gpus(CPU, steps, **numbers) == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
    ],
)
def test_the_best_of_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert find_peak(name) == peak


def test_what_each_gpu_does_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"gpu_tokens_per_second": 1e6, "gpu_gigabytes": 33.1, "mfu": 0.41, "seconds_left": 3.0}

    def measure(device: Device, results: list[StepResult], **_: int) -> Record:
        return found if results else {}

    monkeypatch.setattr("report.trainlog.measure_gpus", measure)
    says = "each GPU: 1,000,000 tokens/s, MFU 41%, 33.1 GB at peak; 0:00:03 left"
    assert train("--max_iters=8").stdout.count(says) == 5  # after steps 1, 2, 4, 6 and 8
    assert {record.get("mfu") for record in read_metrics(data_dir / "out/run")} == {None, 0.41}
