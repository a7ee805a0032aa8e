"""Step 0: each fault, provoked, is the one that is named; and what is sound is called so."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import report
from config.cli import load_config
from config.schema import Config
from data.batches import Batch, TrainBatches
from data.documents import Split
from engine.diagnosis import diagnose
from engine.distributed import World
from engine.optim import make_optimizers
from engine.step import train_step
from loss import IGNORE_INDEX
from model import GPT
from tests.conftest import TINY, make_text
from train import train

CPU = World(torch.device("cpu"), torch.float32)
SOUND = "as it should be, the model knows nothing yet"
TEXT = np.frombuffer(make_text().encode(), dtype=np.uint8)
VOCABULARY, TOKENS = np.unique(TEXT, return_inverse=True)
V = len(VOCABULARY)
UNTIED = ["--zero_init=false"]
GPT2 = [*UNTIED, "--tied", "--norm=layernorm", "--position=learned", "--activation=gelu", "--qk_norm=false", "--bias"]


def look(*argv: str, batches: Callable[[int], Batch] | None = None, rows: int = V, seed: int = 0,
         change: Callable[[GPT], object] = lambda model: None) -> str:
    """What is said of a new model, with the faults that are given."""
    config = load_config(list(argv))
    torch.manual_seed(seed)
    model = GPT(config.model, rows)
    change(model)
    said = report.step_zero(diagnose(model, batches or sound_batches(config), CPU), V)
    assert model.training
    return said


def sound_batches(config: Config) -> TrainBatches:
    return TrainBatches(Split(TOKENS), config.model.block_size, 16, seed=0)


def relabel(new_targets: Callable[[Batch], np.ndarray]) -> Callable[[int], Batch]:
    good = sound_batches(Config())
    return lambda step: good(step)._replace(targets=new_targets(good(step)))


@pytest.mark.parametrize("argv", [[], ["--tied"], UNTIED, [*UNTIED, "--tied"], [*UNTIED, "--softcap=2"], GPT2,
                                  ["--block_size=1"], ["--block_size=2"]], ids=" ".join)
def test_what_is_sound_is_called_so(argv) -> None:
    for seed in range(4):
        said = look(*argv, seed=seed)
        assert said.endswith(SOUND), said
    if not argv:
        assert f"loss {math.log(V):.4f} nats; log|V| + half the logits' variance = log {V} + 0.0000" in said


def test_half_the_variance_is_what_ignorance_costs() -> None:
    """Gaussian logits of two sizes cost what log E[exp z] = s^2 / 2 says."""
    for std in (0.03, 0.06):
        config = Config()
        torch.manual_seed(0)
        model = GPT(config.model, 5000)
        torch.nn.init.normal_(model.head, std=std)
        tokens = np.random.default_rng(0).integers(5000, size=50_000)
        first = diagnose(model, TrainBatches(Split(tokens), 64, 64, seed=0), CPU)
        assert first.logit_variance == pytest.approx(128 * std**2, rel=0.05)
        assert first.nll - math.log(5000) == pytest.approx(first.logit_variance / 2, rel=0.1)
        assert first.spread == pytest.approx(first.logit_variance / 2, rel=0.1)


def masked(batch: Batch) -> np.ndarray:
    return np.full_like(batch.targets, IGNORE_INDEX)


def two_ahead(batch: Batch) -> np.ndarray:
    return np.concatenate([batch.targets[:, 1:], batch.targets[:, :1]], axis=1)


def before(batch: Batch) -> np.ndarray:
    return np.concatenate([batch.inputs[:, -1:], batch.inputs[:, :-1]], axis=1)


@pytest.mark.parametrize(("targets", "said"), [
    (masked, "nothing to score: every target of the first batches is masked"),
    (lambda batch: batch.inputs, "the labels are off by one: each target is its own input"),
    (two_ahead, "the labels are off by one: each target is two tokens after its input"),
    (before, "the labels are off by one: each target is the token before its input"),
    (lambda batch: np.random.default_rng(0).permuted(batch.targets), "only "),
])
@pytest.mark.parametrize("argv", [[], GPT2], ids=["default", "gpt2"])
def test_labels_that_are_wrong(argv, targets, said) -> None:
    printed = look(*argv, batches=relabel(targets))
    assert printed.split("WRONG: ")[1].startswith(said)  # a tied model is also too good at such labels


def test_a_mask_is_no_fault() -> None:
    """Half of the targets, or all but one row's, or the whole first batch may be masked."""
    def half(batch: Batch) -> np.ndarray:
        return np.where(np.arange(64) % 2, batch.targets, IGNORE_INDEX)

    def last_row(batch: Batch) -> np.ndarray:
        return np.where(np.arange(16)[:, None] == 15, batch.targets, IGNORE_INDEX)

    for targets in (half, last_row):
        assert look(*GPT2, batches=relabel(targets)).endswith(SOUND)
    good, bad = sound_batches(Config()), relabel(masked)
    assert look(batches=lambda step: good(step) if step == 3 else bad(step)).endswith(SOUND)


@pytest.mark.parametrize("argv", [[], UNTIED], ids=["zero", "normal"])
def test_a_padded_vocabulary(argv) -> None:
    said = look(*argv, rows=64)
    assert f"WRONG: the vocabulary is padded: the head has 64 rows for {V} tokens" in said
    assert f"= {math.log(64 / V):.3f} nats" in said
    assert said.count("WRONG") == 1


@pytest.mark.parametrize(("argv", "change"), [
    (UNTIED, lambda model: torch.nn.init.normal_(model.head, std=0.5)),
    (UNTIED, lambda model: torch.nn.init.normal_(model.head, std=0.12)),
    (["--tied"], lambda model: torch.nn.init.normal_(model.embed.weight, std=1.0)),
    (["--tied", "--n_embd=512", "--n_layer=1"], lambda model: None),  # each token predicts itself
])
def test_weights_that_start_too_large(argv, change) -> None:
    said = look(*argv, change=change)
    assert "WRONG: the weights start too large: logits with a standard deviation of" in said
    assert said.count("WRONG") == 1


def test_weights_that_were_trained_before() -> None:
    def learn(model: GPT) -> None:
        config = load_config(["--max_iters=30"])
        optimizers, batches = make_optimizers(model, config.optim), TrainBatches(Split(TOKENS), 64, 16, seed=1)
        for step in range(30):
            train_step(model, optimizers, batches(step), config, CPU, step)

    said = look("--n_layer=1", change=learn)
    assert "below log|V|, too low for a model that knows nothing: its weights were trained before" in said
    assert said.count("WRONG") == 1


def test_logits_that_favour_what_does_not_come() -> None:
    """The commonest characters are, everywhere, a little less expected than the others."""
    common = np.argsort(-np.bincount(TOKENS))[:6]

    def misplace(model: GPT) -> None:
        model.norm = torch.nn.Sequential(model.norm, torch.nn.Hardtanh(1.0, 1.001))  # a constant direction
        assert model.untied is not None
        torch.nn.init.zeros_(model.untied)
        with torch.no_grad():
            model.untied[torch.from_numpy(common)] = -0.9 / 128

    assert "favour tokens that do not come" in look(change=misplace)


def test_not_a_number() -> None:
    assert "WRONG: the loss is not a number" in look(
        *UNTIED, change=lambda model: torch.nn.init.constant_(model.head, math.nan))


def test_padding_is_not_taken_for_labels() -> None:
    """Documents of one token: half of the targets are followed by padding."""
    tokens = np.tile([V - 1, 0, V - 1, 1, V - 1, 2], 400)
    for block_size in (2, 4):
        batches = TrainBatches(Split(tokens), block_size, 16, seed=0, end=V - 1)
        assert look(f"--block_size={block_size}", batches=batches).endswith(SOUND)


def test_training_says_it(data_dir, capsys, monkeypatch) -> None:
    """The real command, with a batch that gives the targets away."""
    recipe = ["--corpus=text.txt", "--out_dir=out/run", *TINY]
    train(load_config(recipe))
    assert SOUND in capsys.readouterr().out
    sound = TrainBatches.__call__
    monkeypatch.setattr(TrainBatches, "__call__", lambda self, step: sound(self, step)._replace(
        targets=sound(self, step).inputs))
    train(load_config(recipe))
    assert "WRONG: the labels are off by one: each target is its own input" in capsys.readouterr().out
