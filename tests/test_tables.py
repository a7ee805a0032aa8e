"""Tables of n-grams: which rows they read, how these learn, and what a checkpoint keeps of them."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from config.cli import load_config
from config.schema import ModelConfig, TablesConfig
from config.size import count_table_params
from data.batches import TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from engine.checkpoint import read_checkpoint, save_checkpoint
from engine.device import Device
from engine.evaluation import nll_without_tables
from engine.optim import make_optimizers
from engine.run import open_run
from engine.scoring import Predictions, predict, score_targets
from engine.state import TrainState
from engine.workers import Workers
from model import GPT
from page.records import read_passages
from tables import BETA, LEAST_LR, NgramTables, RowwiseRMSProp, hash_ngrams, leave_out
from tests.conftest import (
    CPU,
    TINY,
    call,
    fill_weights,
    make_batch,
    make_model,
    make_text,
    only_numbers,
    read_metrics,
    take_step,
)
from tests.test_checkpoints import proc

CFG = TablesConfig(max_ngram=4, table_rows=512)


def make_tokens(B: int = 3, T: int = 16, V: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (B, T), generator=generator)


# Which rows.


def test_the_same_ngram_has_the_same_row_and_others_mostly_another() -> None:
    tokens = make_tokens(4, 500)
    for n, rows in enumerate(hash_ngrams(tokens, 500, 4, 8192), start=2):
        assert rows.shape == tokens.shape
        assert 0 <= rows.min() <= rows.max() < 8192
        row_of: dict[tuple[int, ...], int] = {}
        for text, text_rows in zip(tokens.tolist(), rows.tolist(), strict=True):
            assert text_rows[: n - 1] == [0] * (n - 1)  # n-grams that begin before the text
            for end in range(n, len(text) + 1):
                ngram = tuple(text[end - n : end])
                row = text_rows[end - 1]
                assert row > 0
                assert row_of.setdefault(ngram, row) == row
        distinct = len(set(row_of.values()))
        # so many rows are hit by chance
        expected = 8191 * (1 - (1 - 1 / 8191) ** len(row_of))
        assert distinct > 0.8 * expected
    large = torch.full((1, 20), 999_999)  # a large vocabulary does not overflow
    for rows in hash_ngrams(large, 20, 16, 7):
        assert rows.min() >= 0


def test_the_last_tokens_have_the_rows_that_they_have_in_all_of_the_text() -> None:
    tokens = make_tokens()
    for all_rows, last in zip(
        hash_ngrams(tokens, 16, 4, 512), hash_ngrams(tokens, 3, 4, 512), strict=True
    ):
        assert torch.equal(all_rows[:, -3:], last)


def test_an_ngram_reaches_as_far_back_as_it_says_and_never_ahead() -> None:
    torch.manual_seed(0)
    tables = NgramTables(CFG, 8).eval()
    for p in tables.parameters():
        torch.nn.init.normal_(p)
    tokens = make_tokens(1)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    differs = (tables(tokens, 16) != tables(changed, 16)).any(dim=-1)
    assert differs[0].nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_tables_start_at_zero_so_the_model_is_the_one_without_them() -> None:
    without = make_model()
    model = GPT(without.cfg, 13, CFG)
    model.load_state_dict(without.state_dict(), strict=False)
    tokens = make_tokens(T=8)
    assert torch.equal(model(tokens), without(tokens))


def test_rows_are_left_out_in_training_only() -> None:
    torch.manual_seed(0)
    rows = torch.arange(1, 100_001).view(10, 10_000)
    left = leave_out(rows, 0.3)
    is_out = left == 0
    assert is_out.float().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(left[~is_out], rows[~is_out])
    model = make_model(tables=CFG.model_copy(update={"table_dropout": 0.5}))
    tokens = make_tokens(T=8)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


# How they learn.


def dense_steps(gradients: list[Tensor], lr: float) -> Tensor:
    """Take the steps of one table, row by row, from dense gradients; zero = did not occur."""
    table = torch.zeros_like(gradients[0])
    for row in range(1, len(table)):  # row 0 stays zero
        v = 0.0
        n = 0
        for gradient in gradients:
            g = gradient[row]
            if not g.any():
                continue
            n += 1
            v = BETA * v + (1 - BETA) * float(g.square().mean())
            step = lr * g / (math.sqrt(v / (1 - BETA**n)) * n**0.25)
            table[row] = (table[row] - step).half().float()
    return table


def random_gradient(rows: int = 9, width: int = 4) -> tuple[Tensor, Tensor]:
    """Make a gradient in which some rows occur, some of them several times: sparse, and dense."""
    occurring = torch.randint(rows, (6,))
    values = torch.randn(6, width)
    dense = torch.zeros(rows, width).index_add_(0, occurring, values)
    return sparse_gradient(occurring, values, rows), dense


def sparse_gradient(occurring: Tensor, values: Tensor, rows: int) -> Tensor:
    size = (rows, values.shape[1])
    return torch.sparse_coo_tensor(occurring[None], values, size, check_invariants=True)


def test_the_update_is_that_of_each_row_alone() -> None:
    torch.manual_seed(0)
    tables = [torch.nn.Parameter(torch.zeros(9, 4)) for _ in range(3)]
    optimizer = RowwiseRMSProp(tables, lr=0.1, map=Device(CPU.torch_device, CPU.dtype).map)
    seen: list[list[Tensor]] = [[], [], []]
    for _ in range(8):
        for table, gradients in zip(tables, seen, strict=True):
            table.grad, dense = random_gradient()
            gradients.append(dense)
        optimizer.step()
    for table, gradients in zip(tables, seen, strict=True):
        assert table.any()
        torch.testing.assert_close(table.detach(), dense_steps(gradients, 0.1), rtol=1e-3, atol=0)
        count = torch.stack(gradients).any(dim=2).sum(dim=0).float()
        assert torch.equal(optimizer.state[table]["count"], count)


def test_rows_that_do_not_occur_do_not_move() -> None:
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(9, 4).half().float())
    optimizer = RowwiseRMSProp([table], lr=0.1)
    before = table.detach().clone()
    for rows in ([1, 3, 3], [3, 7]):
        table.grad = sparse_gradient(torch.tensor(rows), torch.randn(len(rows), 4), 9)
        optimizer.step()
    moved = (table != before).all(dim=1)
    stayed = (table == before).all(dim=1)
    assert moved.nonzero().flatten().tolist() == [0, 1, 3, 7]
    assert (moved | stayed).all()
    assert not table[0].any()  # it stands for no n-gram


def test_rows_learn_until_the_end() -> None:
    """The learning rate falls to LEAST_LR of the peak, not to zero."""
    moved = {}
    for lr in (0.1, 0.0):
        table = torch.nn.Parameter(torch.zeros(3, 2))
        optimizer = RowwiseRMSProp([table], lr=0.1)
        optimizer.param_groups[0]["lr"] = lr
        table.grad = sparse_gradient(torch.tensor([1]), torch.ones(1, 2), 3)
        optimizer.step()
        moved[lr] = -float(table[1, 0].detach())
    assert moved[0.0] == pytest.approx(LEAST_LR * moved[0.1], rel=1e-3)


def test_a_row_without_a_gradient_stays_finite() -> None:
    """As where all targets that it leads to are masked."""
    table = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = RowwiseRMSProp([table], lr=0.1)
    values = torch.tensor([[0.0, 0.0], [1e-9, 0.0]])
    table.grad = sparse_gradient(torch.tensor([1, 2]), values, 3)
    optimizer.step()
    assert table[1].tolist() == [0, 0]
    assert table[2, 0].item() == pytest.approx(-0.1 * 2**0.5, rel=1e-3)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_training_the_tables_lowers_the_loss_however_many_workers_there_are(workers: int) -> None:
    """The results are the same to the last bit, and no gradient is as large as a table."""
    device = Device(CPU.torch_device, CPU.dtype, workers=Workers(workers))
    model, losses = train_some_steps(device)
    assert losses[-1] < losses[0] - 0.2
    alone, expected = train_some_steps(Device(CPU.torch_device, CPU.dtype, workers=Workers(2)))
    assert losses == (expected if workers > 1 else pytest.approx(expected))
    if workers > 1:
        for name, p in alone.named_parameters():
            assert torch.equal(p, dict(model.named_parameters())[name]), name


def train_some_steps(device: Device) -> tuple[GPT, list[float]]:
    cfg, _ = load_config(["--grad_clip=0.1"])
    tokens = np.random.default_rng(0).integers(13, size=400) // 2
    get_batch = TrainBatches(Split(tokens), 8, 6, 0, micro_batch_size=2)
    torch.manual_seed(0)
    model = GPT(ModelConfig(block_size=8, n_layer=1, n_head=2, n_embd=16), 13, CFG)
    optimizers = make_optimizers(model, cfg.optim, device)
    losses = []
    for step in range(12):
        result = take_step(model, optimizers, get_batch(6 * step), cfg, device, step=step)
        losses.append(result.nll)
    return model, losses


def test_the_gradient_has_the_rows_of_the_batch_only() -> None:
    model = make_model(tables=CFG)
    cfg, _ = load_config([])
    tokens = np.arange(200) % 5
    batch = TrainBatches(Split(tokens), 8, 6, 0)(0)
    take_step(model, [], batch, cfg, CPU)
    for n, table in enumerate(model.tables.parameters(), start=2):
        assert table.grad is not None
        assert table.grad.is_sparse
        rows = set(table.grad.coalesce().indices()[0].tolist())
        assert rows - {0} == set(rows_of_text(n)) - {0}


def rows_of_text(n: int) -> list[int]:
    """The rows of the n-grams of 0, 1, 2, 3, 4, 0, 1, ..."""
    text = torch.arange(20)[None] % 5
    *_, rows = hash_ngrams(text, 20, n, CFG.table_rows)
    return rows.unique().tolist()


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists() or not os.access("/proc/self/clear_refs", os.W_OK),
    reason="needs Linux's /proc",
)
def test_a_step_needs_memory_for_what_it_reads_only(tmp_path: Path) -> None:
    """Not a gradient, nor two moments, as large as the tables; nor does saving copy them."""
    big = TablesConfig(max_ngram=4, table_rows=400_000)
    model = make_model(tables=big)
    cfg, _ = load_config([])
    optimizers = make_optimizers(model, cfg.optim)
    for table in model.tables.parameters():
        table.data[100:] = 0.0
    Path("/proc/self/clear_refs").write_text("5")  # peak = now
    before = proc("status", "VmRSS") * 1024
    take_step(model, optimizers, make_batch(), cfg, CPU)
    save_checkpoint(tmp_path / "last.safetensors", model, TrainState(), optimizers)
    added = proc("status", "VmHWM") * 1024 - before
    assert added < 4 * count_table_params(big, 16) / 2


def test_a_run_starts_from_one_with_tables_and_learns_from_it(data_dir: Path, monkeypatch) -> None:
    only_numbers(monkeypatch)
    text = ["--corpus=text.txt", *TINY]
    call("train.py", *text, "--out_dir=out/run", "--max_ngram=3", "--table_rows=100")
    rates = ["--learning_rate=0", "--muon_learning_rate=0", "--table_learning_rate=0"]
    call("train.py", *text, "--out_dir=out/finer", "--init_from=out/run", *rates)
    call("train.py", *text, "--out_dir=out/student", "--teacher=out/run")
    first, last = (read_metrics(data_dir / f"out/{name}")[-1] for name in ("run", "finer"))
    assert last["best_val_nll"] == pytest.approx(first["best_val_nll"], rel=1e-6)
    other = ["--init_from=out/run", "--max_ngram=4"]
    done = call("train.py", *text, "--out_dir=out/other", *other, check=False)
    assert done.stderr == "error: max_ngram=4: out/run has max_ngram=3\n"


# What a checkpoint keeps.


def test_a_checkpoint_has_the_rows_that_learned_in_16_bits_and_exactly(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model, _ = train_some_steps(CPU)
    save_checkpoint(path, model, TrainState())
    loaded = GPT(model.cfg, 13, CFG)
    fill_weights(loaded, 0.3)
    saved = read_checkpoint(path)
    saved.copy_to(loaded)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(loaded.named_parameters())[name]), name
    dense = sum(p.numel() for p in loaded.parameters()) - 3 * 512 * 16
    learned = sum(int(table.any(dim=1).sum()) for table in model.tables.parameters())
    assert 3 * 50 < learned < 3 * 200  # of 512 rows each
    size = 4 * dense + 3 * 512 + learned * 2 * 16
    assert size < path.stat().st_size < size + 5000


# What they know.


def test_tables_are_left_out_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all of them together cost is known, and not measured again."""
    model = make_model(tables=CFG).eval()
    text = EvalText(Split(np.random.default_rng(0).integers(13, size=40)), 8)
    known = score_targets(predict(model, text.batches(), CPU), [1.0]).nll
    measured = []

    def watch(*arguments: Any) -> Iterator[Predictions]:
        measured.append(model.tables.longest)
        return predict(*arguments)

    monkeypatch.setattr("engine.evaluation.predict", watch)
    nll = nll_without_tables(model, text, CPU, known)
    assert measured == [1, 2, 3]
    assert nll.shape == (39, 4)
    whole = model.state_dict()
    for longest in (4, 3, 2, 1):
        left = GPT(model.cfg, 13, CFG.model_copy(update={"max_ngram": longest})).eval()
        names = left.state_dict().keys()
        left.load_state_dict({name: whole[name] for name in names})
        expected = score_targets(predict(left, text.batches(), CPU), [1.0]).nll
        np.testing.assert_allclose(nll[:, longest - 1], expected, atol=1e-6)
    assert model.tables.longest == 4


def test_evaluate_says_what_the_tables_know(data_dir: Path, monkeypatch) -> None:
    only_numbers(monkeypatch)
    options = ["--corpus=text.txt", *TINY, "--out_dir=out/run"]
    call("train.py", *options, "--max_ngram=3", "--table_rows=100")
    printed = call("evaluate.py", "out/run", "--tables", "--explain=the cat").stdout
    *_, header, first, _, _, _, _, _, _, mean = printed.splitlines()
    assert header.split() == ["3", "2", "none"]
    assert first.split()[0] == "t"
    assert mean.split()[0] == "mean"
    printed = call("evaluate.py", "out/run", "--tables").stdout
    loss = re.search(r"has a loss of (\S+) nats", printed)
    with_all = re.search(r"so many tokens only.*\n +3 +(\S+)\n +2 +\S+\n +none +\S+\n", printed)
    assert loss is not None
    assert with_all is not None
    assert loss[1] == with_all[1]
    for option in ([], ["--tables"]):
        call("evaluate.py", "out/run", "--html=page.html", *option)
        assert ('"by_longest":[' in Path("page.html").read_text()) == bool(option)

    call("train.py", "--corpus=text.txt", *TINY, "--out_dir=out/plain")
    done = call("evaluate.py", "out/plain", "--tables", check=False)
    assert done.stderr == "error: tables: out/plain has no tables of n-grams\n"


TABLES = ["--max_ngram=3", "--table_rows=100"]


def read_passage_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "passage.jsonl").read_text().splitlines()]


def test_the_best_model_is_measured_with_tables_left_out_at_the_end(
    data_dir: Path, monkeypatch
) -> None:
    """Once, on all passages, some of whose tokens may be masked; a resumed run measures it anew."""
    only_numbers(monkeypatch)
    (data_dir / "long.txt").write_text(3 * make_text(), encoding="utf-8")
    options = ["--corpus=long.txt", *TINY, "--out_dir=out/run", *TABLES, "--eval_interval=1"]
    call("train.py", *options, "--mask=^the")
    path = data_dir / "out/run"
    lines = read_passage_lines(path)
    assert [line.get("best_step") for line in lines[:-3]] == [None] * (len(lines) - 3)
    assert all("by_longest" not in line for line in lines[:-3])
    best = read_metrics(path)[-1]["best_step"]
    run = open_run(path)
    for number, line in enumerate(lines[-3:]):
        assert [line["step"], line["number"], line["best_step"]] == [best, number, best]
        assert line["nll"][1] is not None
        for nll, row in zip(line["nll"], line["by_longest"], strict=True):
            assert (row is None) == (nll is None)
            assert row is None or len(row) == 3
            assert row is None or row[-1] == pytest.approx(nll, abs=2e-3)
    passages = read_passages(path / "passage.jsonl", run.tokenizer, at_most=100, best_step=best)
    for evaluations in passages:
        assert [each.step for each in evaluations if each.by_longest is not None] == [best]

    call("train.py", *options, "--init_from=resume", "--max_iters=7")
    lines = read_passage_lines(path)
    assert [line["number"] for line in lines if "best_step" in line] == [0, 1, 2]
    assert [line["step"] for line in lines[-3:]] == [read_metrics(path)[-1]["best_step"]] * 3


def test_runs_that_nobody_watches_or_without_tables_measure_no_tables(
    data_dir: Path, monkeypatch
) -> None:
    only_numbers(monkeypatch)
    options = ["--corpus=text.txt", *TINY]
    call("train.py", *options, *TABLES, "--out_dir=out/unwatched", "--watchers=")
    assert not (data_dir / "out/unwatched/passage.jsonl").exists()
    call("train.py", *options, "--out_dir=out/plain")
    for line in read_passage_lines(data_dir / "out/plain"):
        assert not {"best_step", "by_longest"} & line.keys()
