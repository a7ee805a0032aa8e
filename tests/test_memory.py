"""The size of a model is known before it is built, and one that cannot fit is refused then."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from config.errors import UserError
from config.schema import Config, ModelConfig, OptimConfig, TablesConfig
from config.size import count_params, count_table_params
from engine import memory
from engine.checkpoint import read_model, save_checkpoint
from engine.memory import check_memory, total_memory
from engine.run import open_run
from engine.state import TrainState
from model import GPT
from tests.conftest import call

CPU = torch.device("cpu")


FORMS = [{"form": "nanochat"}, {"form": "gpt2"}, {"form": "nanogpt"}]
UNUSUAL = [{"tied": True}, {"form": "nanogpt", "tied": False}]


@pytest.mark.parametrize("options", FORMS + UNUSUAL, ids=str)
def test_the_number_of_parameters_is_known_before(options: dict[str, object]) -> None:
    cfg = ModelConfig.model_validate(
        {"n_layer": 3, "n_head": 2, "n_embd": 8, "block_size": 5} | options
    )
    assert count_params(cfg, 11) == GPT(cfg, 11).num_params()
    for max_ngram in (0, 1, 2, 4):
        tables = TablesConfig(max_ngram=max_ngram, table_rows=7)
        added = GPT(cfg, 11, tables).num_params() - count_params(cfg, 11)
        assert count_table_params(tables, 8) == added


def test_a_model_that_cannot_fit_is_refused_before_anything_is_prepared_or_built(
    data_dir: Path,
) -> None:
    """The largest that the options allow: no machine has so much."""
    done = call(
        "train.py",
        "--corpus=text.txt",
        "--n_layer=1000000",
        "--n_embd=100000",
        "--device=cpu",
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: a model of 120,000,000,000,300,000 parameters "
        "needs at least 1,440,000,000.0 GB to be trained, and cpu has "
    )
    assert done.stderr.endswith(" GB: use a smaller --n_layer, --n_embd or --table_rows\n")
    assert not (data_dir / "data").exists()
    assert not [*(data_dir / "out").iterdir()]


@pytest.mark.parametrize("command", ["sample.py", "evaluate.py", "compress.py"])
def test_a_config_that_asks_for_a_huge_model_is_compared_before_it_is_built(
    trained, clone: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The run is of an earlier edition: its checkpoints do not say what their options were."""
    run = clone / "out/huge"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(trained[0], run)
    save_checkpoint(run / "best.safetensors", read_model(open_run(run), "best")[0], TrainState())
    cfg = (run / "config.toml").read_text().replace("n_layer = 2", "n_layer = 1000000")
    (run / "config.toml").write_text(cfg)
    monkeypatch.chdir(clone)
    extra = ["text.txt"] if command == "compress.py" else []
    done = call(command, "out/huge", *extra, "--device=cpu", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "error: out/huge/best.safetensors: holds another model than the options describe"
        in done.stderr
    )


def test_what_may_fit_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW has one state more than Muon."""
    shape = ModelConfig(n_layer=1, n_head=1, n_embd=100)
    assert count_params(shape, 1) == 120_300
    sizes: list[int | None] = []
    monkeypatch.setattr(memory, "total_memory", lambda device: sizes.pop())
    for optimizer, needed in (("muon", 12 * 120_300), ("adamw", 16 * 120_300)):
        cfg = Config(model=shape, optim=OptimConfig(optimizer=optimizer))
        assert_needs(cfg, needed, 120_300, sizes)
        tables = TablesConfig(max_ngram=3, table_rows=1000)  # rows have no such states
        with_tables = cfg.model_copy(update={"tables": tables})
        assert_needs(with_tables, needed + 4 * 200_000, 320_300, sizes)
    sizes.append(None)
    huge = ModelConfig(n_layer=1_000_000, n_embd=1_000_000, n_head=1)
    check_memory(Config(model=huge), CPU)


def assert_needs(cfg: Config, needed: int, num_params: int, sizes: list[int | None]) -> None:
    sizes.append(needed)
    check_memory(cfg, CPU)
    sizes.append(needed - 1)
    told = rf"^a model of {num_params:,} parameters needs at least 0\.0 GB"
    with pytest.raises(UserError, match=told):
        check_memory(cfg, CPU)


def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LIMITS", ())
    machine = total_memory(CPU)
    if machine is None:
        pytest.skip("unknown on this system")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "nowhere"), str(limit)))
    limits = {"max\n": machine, "1000000\n": 1_000_000, f"{2**63}\n": machine}
    for text, expected in limits.items():
        limit.write_text(text)
        assert total_memory(CPU) == expected
    monkeypatch.delattr(os, "sysconf")
    assert total_memory(CPU) is None


def test_a_gpu_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=7)
    )
    assert total_memory(torch.device("cuda:0")) == 7
