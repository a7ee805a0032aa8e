"""The machinery: steps, optimizers, schedules, checkpoints, generation."""

import copy
import io
import json
import math
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

import report
from config.cli import load_config
from config.schema import Config, ModelConfig, OptimConfig
from data.batches import Batch, TrainBatches, eval_batches
from data.documents import Split
from data.ngrams import count_ngrams
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.distributed import World, find_world
from engine.generate import choose, generate
from engine.optim import make_optimizers, set_rates
from engine.progress import Progress
from engine.schedule import rate_scale
from engine.step import evaluate, train_step, try_compile
from errors import UserError
from files import replace_sealed
from loss import IGNORE_INDEX
from model import GPT
from runs import read_metrics
from tests.conftest import TINY, without_clocks
from train import train

CPU = World(torch.device("cpu"), torch.float32)
SMALL = ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16)


def make_model(config: ModelConfig = SMALL) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, 13)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def make_batch(seed: int = 0) -> Batch:
    return TrainBatches(Split(np.random.default_rng(seed).integers(13, size=500)), 8, 6, seed)(0)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_step_is_that_of_the_whole_batch_however_it_is_cut(size: int) -> None:
    """Also where the cuts score different numbers of tokens, or none."""
    batch = make_batch()
    batch.targets[0] = IGNORE_INDEX
    batch.targets[1, 3:] = IGNORE_INDEX
    gradients, norms = [], []
    for micro_batch_size in (0, size):
        config = load_config([f"--micro_batch_size={micro_batch_size}", "--label_smoothing=0.1", "--batch_size=6"])
        model = make_model()
        result = train_step(model, [], batch, config, CPU, step=0)  # no optimizer: the gradients stay
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        norms.append(result.grad_norm)
        assert result.tokens == 6 * 8 - 8 - 5
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_batch_with_nothing_to_score_moves_nothing() -> None:
    """Neither weights, nor momentum, nor weight decay: it is as if the step had not been."""
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig(weight_decay=0.1))
    assert not train_step(model, optimizers, make_batch(), Config(), CPU, step=0).skipped
    before = copy.deepcopy([model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    empty = make_batch()
    empty.targets[:] = IGNORE_INDEX
    result = train_step(model, optimizers, empty, Config(), CPU, step=1)
    assert (result.skipped, result.taken, result.bad, result.tokens) == (True, False, False, 0)
    assert result.learning_rate > 0
    after = [model.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("empty", [{1, 2, 5}, set(range(6))], ids=["some", "all"])
def test_skipped_steps_are_counted_and_said_also_after_a_resume(data_dir, monkeypatch, capsys, empty) -> None:
    batch_of = TrainBatches.__call__

    def batches(self, step: int) -> Batch:
        batch = batch_of(self, step)
        return batch._replace(targets=np.full_like(batch.targets, IGNORE_INDEX)) if step in empty else batch

    monkeypatch.setattr(TrainBatches, "__call__", batches)
    train(load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY, "--max_iters=4"]))
    assert capsys.readouterr().out.count(report.SKIPPED) == 1
    train(load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY, "--init_from=resume"]))
    printed = capsys.readouterr().out
    assert f"{len(empty)} of the steps had nothing to score, and were skipped" in printed
    assert "diverged" not in printed
    records = read_metrics(data_dir / "out/run/metrics.jsonl")
    assert [record.get("skipped_steps", 0) for record in records] == [
        len([step for step in empty if step < taken]) for taken in range(7)]
    for record in records[1:]:
        assert ("train_nll" in record) == (record["step"] - 1 not in empty)
    assert all(math.isfinite(record["val_nll"]) for record in records if "val_nll" in record)


def test_progress_of_before_steps_were_skipped_still_loads(tmp_path) -> None:
    model = make_model()
    save_checkpoint(tmp_path / "last", model, Progress(step=7, best_nll=1.5))
    path = tmp_path / "last/progress.json"
    saved = json.loads(path.read_text())
    del saved["skipped_steps"]
    replace_sealed(path, json.dumps(saved).encode())
    assert load_checkpoint(tmp_path / "last", model) == Progress(step=7, best_nll=1.5)


def test_evaluation_is_exact_and_unsmoothed() -> None:
    """Equal to the loss of each token computed on its own window, one at a time."""
    model, tokens = make_model(ModelConfig(**SMALL.model_dump() | {"dropout": 0.5})), make_batch().inputs.reshape(-1)
    got = evaluate(model, eval_batches(Split(tokens), 8), CPU)
    model.eval()
    nll = correct = 0.0
    for i in range(1, len(tokens)):
        start = (i - 1) // 8 * 8
        logits = model.logits(model(torch.from_numpy(tokens[None, start:i])))[0, -1].double().detach()
        nll -= float(logits.log_softmax(-1)[tokens[i]])
        correct += float(logits.argmax() == tokens[i])
    assert got.tokens == len(tokens) - 1
    assert got.nll == pytest.approx(nll / got.tokens, rel=1e-5)
    assert got.accuracy == pytest.approx(correct / got.tokens)


@pytest.mark.parametrize("ngrams", [None, count_ngrams(np.arange(300) % 13, 3, 13)])
def test_a_blank_model_is_evaluated_as_any_other(ngrams, monkeypatch) -> None:
    """Without a forward pass, and to the same numbers."""
    model = GPT(SMALL.model_copy(update={"ngram": 3}), 13, ngrams)
    batches = [*eval_batches(Split(np.random.default_rng(0).integers(13, size=100)), 8)]
    assert model.is_blank
    with monkeypatch.context() as context:
        context.setattr(model, "forward", None)
        short = evaluate(model, batches, CPU)
    monkeypatch.setattr(GPT, "is_blank", False)
    assert evaluate(model, batches, CPU) == short
    assert short.nll == pytest.approx(math.log(13), rel=1e-6)
    monkeypatch.undo()
    for name, p in model.named_parameters():
        if name == ("untied" if ngrams is None else "trust"):
            torch.nn.init.normal_(p)
    assert not model.is_blank
    assert evaluate(model, batches, CPU) != short
    assert not GPT(SMALL.model_copy(update={"tied": True, "zero_init": False}), 13).is_blank


def test_every_parameter_has_one_optimizer() -> None:
    model = make_model(ModelConfig(**SMALL.model_dump() | {"bias": True, "norm": "layernorm", "position": "learned"}))
    for kind in ("muon", "adamw"):
        optimizers = make_optimizers(model, OptimConfig(optimizer=kind, weight_decay=0.1))
        assert sorted(id(p) for each in optimizers for p in each.params) == sorted(map(id, model.parameters()))
        assert all(each.weight_decay == (0.1 if p.ndim == 2 else 0) for each in optimizers for p in each.params)
    assert len(make_optimizers(model, OptimConfig())[-1].params) == 2 * 4
    assert set_rates(make_optimizers(model, OptimConfig()), OptimConfig(warmup_iters=3, learning_rate=0.4), 0) == 0.1


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_start_at_the_peak_and_end_at_the_floor(schedule) -> None:
    config = OptimConfig(max_iters=100, warmup_iters=10, schedule=schedule, min_lr_ratio=0.2)
    scales = [rate_scale(config, step) for step in range(100)]
    assert scales[10] == max(scales) == 1.0
    assert scales[:10] == sorted(scales[:10])
    assert scales[10:] == sorted(scales[10:], reverse=True)
    assert rate_scale(config, 100) == pytest.approx(1.0 if schedule == "constant" else 0.2)
    if schedule == "cosine":
        assert rate_scale(config, 55) == pytest.approx(0.6)


def test_checkpoints_restore_and_survive_a_stop_between_renames(tmp_path) -> None:
    model = make_model()
    optimizers = make_optimizers(model, OptimConfig())
    train_step(model, optimizers, make_batch(), Config(), CPU, step=0)
    save_checkpoint(tmp_path / "last", model, Progress(step=7, best_nll=math.inf), optimizers)
    save_checkpoint(tmp_path / "last", model, Progress(step=8, best_nll=1.5), optimizers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "previous"]
    other = make_model()
    restored = make_optimizers(other, OptimConfig())
    shutil.rmtree(tmp_path / "previous")
    (tmp_path / "last").rename(tmp_path / "previous")
    assert load_checkpoint(tmp_path / "last", other, restored) == Progress(step=8, best_nll=1.5)
    for m, o in ((model, optimizers), (other, restored)):
        train_step(m, o, make_batch(1), Config(), CPU, step=1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_damaged_checkpoints_are_told(file, tmp_path) -> None:
    model = make_model()
    save_checkpoint(tmp_path / "last", model, Progress(), make_optimizers(model, OptimConfig()))
    content = (tmp_path / "last" / file).read_bytes()
    (tmp_path / "last" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"last/{file}: damaged \(not what was written: its sha256"):
        load_checkpoint(tmp_path / "last", model, make_optimizers(model, OptimConfig()))
    (tmp_path / "last" / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        load_checkpoint(tmp_path / "last", model, make_optimizers(model, OptimConfig()))


def run_training(*argv: str) -> list[dict[str, float]]:
    with redirect_stdout(io.StringIO()):
        assert train(load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY, *argv])) == 0
    return without_clocks(Path("out/run"))


@pytest.mark.parametrize(("optimizer", "ngram"), [("muon", 0), ("adamw", 0), ("muon", 3)])
def test_resuming_continues_bit_for_bit(data_dir, optimizer, ngram) -> None:
    """6 steps at once equal 6 steps with a stop after 4: weights and metrics; with dropout, across epochs."""
    argv = [f"--optimizer={optimizer}", f"--ngram={ngram}", "--dropout=0.2", "--batch_size=8",
            "--decay_fraction=0", "--val_fraction=0.99"]
    whole = run_training(*argv)
    expected = (data_dir / "out/run/last/model.safetensors").read_bytes()
    run_training(*argv, "--max_iters=4")
    assert (data_dir / "out/run/last/model.safetensors").read_bytes() != expected
    assert run_training(*argv, "--init_from=resume") == whole
    assert (data_dir / "out/run/last/model.safetensors").read_bytes() == expected


def test_a_run_stopped_at_any_moment_can_be_resumed(data_dir, monkeypatch) -> None:
    """Before the first step, right after a line of metrics, between two lines, and by patience."""
    import train as script

    for stop_at, extra in ((0, []), (2, []), (3, ["--log_interval=2"]), (4, ["--patience=1", "--learning_rate=0",
                                                                           "--muon_learning_rate=0"])):
        checks = iter(range(100))
        signal = type("Stop", (), {"name": "SIGTERM", "exit_code": 0, "saving": False,
                                   "__init__": lambda self, world: None,
                                   "__bool__": lambda self, at=stop_at, checks=checks: next(checks) >= at})
        with monkeypatch.context() as patch:
            if stop_at < 4:
                patch.setattr("engine.signals.StopSignal", signal)
            with redirect_stdout(io.StringIO()):
                script.train(load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY, *extra]))
        saved = json.loads((data_dir / "out/run/last/progress.json").read_text())["step"]
        assert saved == (stop_at if stop_at < 4 else 2)
        records = run_training("--init_from=resume", *extra[:1], "--patience=0")
        assert records[-1]["step"] == 6
        assert len({record["step"] for record in records}) == len(records)


def test_resuming_another_model_or_text_is_refused(data_dir) -> None:
    run_training("--max_iters=2")
    before = (data_dir / "out/run/config.toml").read_bytes()
    for change, said in (("--n_layer=3", "n_layer was 2 and is now 3"), ("--optimizer=adamw", "optimizer was muon"),
                         ("--val_fraction=0.5", "val_fraction was 0.1"), ("--eval_tokens=9", "eval_tokens was 300")):
        with pytest.raises(UserError, match=said):
            run_training("--init_from=resume", change)
    assert (data_dir / "out/run/config.toml").read_bytes() == before
    (data_dir / "text.txt").write_text("Something else entirely.\n" * 50, encoding="utf-8")
    with pytest.raises(UserError, match=r"text \(sha256\) was"):
        run_training("--init_from=resume")


def test_a_failing_compiler_is_a_warning(monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler\nand a long story")

    model = make_model()
    monkeypatch.setattr(GPT, "compile", lambda self: setattr(self, "_compiled_call_impl", fail))
    assert try_compile(model, make_batch(), Config(), CPU) == "no C++ compiler"
    train_step(model, make_optimizers(model, OptimConfig()), make_batch(), Config(), CPU, step=0)


def test_worlds() -> None:
    assert find_world("cpu", "float32") == CPU
    assert find_world("cpu", "bfloat16").dtype == torch.bfloat16
    assert find_world("auto", "auto").device.type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no cuda"):
            find_world("cuda:1", "auto")


@pytest.mark.parametrize("position", ["rotary", "learned"])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.3}, {"top_k": 3, "top_p": 0.8}])
def test_cached_sampling_equals_uncached_also_beyond_the_block(position, options) -> None:
    model = make_model(ModelConfig(**SMALL.model_dump() | {"position": position}))
    made = [list(generate(model, [1, 2, 3], CPU, num_samples=2, max_new_tokens=40, use_cache=cached, **options))
            for cached in (True, False)]
    assert made[0] == made[1]
    assert len(made[0]) == 40


def test_a_sample_depends_on_its_number_not_on_how_many_there_are() -> None:
    three = [list(tokens) for tokens in zip(*generate(make_model(), [1], CPU, num_samples=3), strict=True)]
    one = [tokens[0] for tokens in generate(make_model(), [1], CPU, num_samples=1)]
    assert three[0] == one
    assert three[0] != three[1]


def test_a_long_prompt_is_cut_to_the_block() -> None:
    model = make_model()
    long = [token % 13 for token in range(50)]
    assert next(generate(model, long, CPU, temperature=0)) == next(generate(model, long[-8:], CPU, temperature=0))


def test_choosing_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    chance = torch.arange(20_000) / 20_000

    def shares(**options: float) -> list[float]:
        settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
        chosen = choose(logits, chance, **settings)  # type: ignore[arg-type]
        return (torch.bincount(chosen, minlength=4) / 20_000).tolist()

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)
    assert shares(temperature=0.5) == pytest.approx([s * s / 0.365 for s in (0.5, 0.3, 0.15, 0.05)], abs=1e-3)
    assert shares(temperature=0) == [1, 0, 0, 0]
    extreme = torch.tensor([[0.0, 1000.0, -1000.0]])
    assert choose(extreme, torch.tensor([0.999999]), 1e-40, 0, 1.0).tolist() == [1]
    with pytest.raises(UserError, match="diverged"):
        choose(extreme / 0, torch.tensor([0.5]), 1.0, 0, 1.0)
