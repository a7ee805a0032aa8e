"""Step 0: each fault, provoked, is the one that is named; and what is sound is called so."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from config.cli import load_config
from config.schema import Config
from data.batches import IGNORE_INDEX, Batch, TrainBatches, cut
from data.documents import Split
from data.info import Baseline
from engine.device import Device
from engine.optim import make_optimizers
from model import GPT
from report.step_zero import FIRST_BATCHES, check_first_losses, check_step_zero, is_early
from tests.conftest import TINY, call, make_text, take_step, train_in

CPU = Device(torch.device("cpu"), torch.float32)
SOUND = "as it should be, the model knows nothing yet"
VOCABULARY, TOKENS = np.unique(
    np.frombuffer(make_text().encode(), dtype=np.uint8), return_inverse=True
)
V = len(VOCABULARY)
NORMAL_INIT = ["--form=nanogpt", "--tied=false"]
GPT2 = ["--form=gpt2"]
Batches = Sequence[list[Batch]]


def look(
    *argv: str,
    batches: Batches | None = None,
    seed: int = 0,
    vocab_size: int = V,
    change: Callable[[GPT], object] = lambda model: None,
) -> str:
    """What is said of a new model that has the given faults."""
    cfg, _ = load_config(list(argv))
    torch.manual_seed(seed)
    model = GPT(cfg.model, vocab_size)
    change(model)
    said = check_step_zero(model, batches or sound_batches(cfg), V, CPU)
    assert model.training
    return said


def first_batches(get_batch: TrainBatches) -> Batches:
    return [get_batch(number * get_batch.batch_size) for number in range(FIRST_BATCHES)]


def sound_batches(cfg: Config, batch_size: int = 16) -> Batches:
    return first_batches(TrainBatches(Split(TOKENS), cfg.model.block_size, batch_size, seed=0))


def relabel(new_targets: Callable[[Batch], np.ndarray], batch_size: int = 16) -> Batches:
    return [
        [batch._replace(targets=new_targets(batch)) for batch in micro_batches]
        for micro_batches in sound_batches(Config(), batch_size)
    ]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        NORMAL_INIT,
        ["--form=nanogpt"],
        [*NORMAL_INIT, "--softcap=2"],
        GPT2,
        ["--ngram_embedding=3"],
        ["--tied", "--embedding_norm=false"],
        ["--block_size=1"],
        ["--block_size=2"],
    ],
    ids=" ".join,
)
def test_what_is_sound_is_called_so(argv: list[str]) -> None:
    for seed in range(4):
        said = look(*argv, seed=seed)
        assert said.endswith(SOUND), said
    if not argv:
        assert (
            f"loss {math.log(V):.4f} nats; expected log|V| = log {V} = {math.log(V):.4f}: {SOUND}"
            in said
        )


def test_random_logits_cost_half_their_variance() -> None:
    """log E[exp z] is s^2 / 2 for Gaussian logits of variance s^2; the expected loss counts it."""
    for std in (0.03, 0.06):
        cfg = Config()
        torch.manual_seed(0)
        model = GPT(cfg.model, 5000)
        torch.nn.init.normal_(model.lm_head.weight, std=std)
        tokens = np.random.default_rng(0).integers(5000, size=50_000)
        batches = first_batches(TrainBatches(Split(tokens), 64, 64, seed=0))
        said = check_step_zero(model, batches, 5000, CPU)
        numbers = re.fullmatch(
            r"step 0: loss (.*) nats; expected log.* = (.*), plus (.*) for its .*", said
        )
        assert numbers
        nll, uniform, cost = map(float, numbers.groups())
        variance = cfg.model.n_embd * std**2
        assert uniform == pytest.approx(math.log(5000), abs=1e-4)
        assert nll - uniform == pytest.approx(cost, abs=3 * (variance / 64**2) ** 0.5)
        assert cost == pytest.approx(variance / 2, rel=0.1)
        assert said.endswith(SOUND)


def all_masked(batch: Batch) -> np.ndarray:
    return np.full_like(batch.targets, IGNORE_INDEX)


def two_after(batch: Batch) -> np.ndarray:
    return np.concatenate([batch.targets[:, 1:], batch.targets[:, :1]], axis=1)


def before(batch: Batch) -> np.ndarray:
    return np.concatenate([batch.inputs[:, -1:], batch.inputs[:, :-1]], axis=1)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (all_masked, "no targets: every target of the first batches is masked"),
        (lambda batch: batch.inputs, "the labels are off by one: each target is its own input"),
        (two_after, "the labels are off by one: each target is two tokens after its input"),
        (before, "the labels are off by one: each target is the token before its input"),
    ],
)
@pytest.mark.parametrize("argv", [[], GPT2], ids=["default", "gpt2"])
def test_wrong_labels(argv: list[str], targets: Callable[[Batch], np.ndarray], said: str) -> None:
    printed = look(*argv, batches=relabel(targets))
    # a tied model is also too good at such labels
    assert printed.split("WRONG: ")[1].startswith(said)


def random_targets(batch: Batch) -> np.ndarray:
    return np.random.default_rng(0).permutation(batch.targets.ravel()).reshape(batch.targets.shape)


def reversed_targets(batch: Batch) -> np.ndarray:
    return batch.targets[:, ::-1]


def rows_of_others(batch: Batch) -> np.ndarray:
    return np.roll(batch.targets, 1, axis=0)


@pytest.mark.parametrize("targets", [random_targets, reversed_targets, rows_of_others])
@pytest.mark.parametrize("argv", [[], GPT2], ids=["zero lm_head", "gpt2"])
def test_targets_that_do_not_belong_to_the_inputs(
    argv: list[str], targets: Callable[[Batch], np.ndarray]
) -> None:
    """The loss of equal logits is log|V| for any targets; these are found without it."""
    said = look(*argv, batches=relabel(targets))
    assert "targets are not the next token of their input" in said
    assert said.count("WRONG") == 1


@pytest.mark.parametrize("where", ["last row", "last micro-batch", "last step", "under a mask"])
def test_one_wrong_target_is_found_wherever_it_is(where: str) -> None:
    batches = [[batch, batch] for (batch,) in sound_batches(Config(), batch_size=4)]
    places = {"last row": (0, 0, -1), "last micro-batch": (0, 1, 0)}
    step, micro_batch, row = places.get(where, (-1, -1, -1))
    targets = batches[step][micro_batch].targets.copy()
    targets[row, 5] = (targets[row, 5] + 1) % V
    if where == "under a mask":
        targets[:, :5] = IGNORE_INDEX
        targets[:, 6:] = IGNORE_INDEX
    batches[step][micro_batch] = batches[step][micro_batch]._replace(targets=targets)
    said = look(batches=batches)
    assert "WRONG: 1 of " in said
    assert said.count("WRONG") == 1


def test_another_vocabulary_than_the_tokenizer_s() -> None:
    padded = look(vocab_size=V + 44)
    counts = f"WRONG: the model has {V + 44} tokens and the tokenizer {V}; it has 44 more"
    assert f"{counts}, which never come: a padded vocabulary" in padded
    assert padded.count("WRONG") == 1
    small = look(vocab_size=V - 1)
    assert f"WRONG: the model has {V - 1} tokens and the tokenizer {V}; it has 1 fewer" in small
    assert f"WRONG: token {V - 1} is in a batch, and the model knows tokens below {V - 1}" in small


def test_a_mask_is_no_fault() -> None:
    """Half of the targets, all but one row's, or all of the first batches' may be masked."""

    def half(batch: Batch) -> np.ndarray:
        return np.where(np.arange(batch.targets.shape[1]) % 2, batch.targets, IGNORE_INDEX)

    def last_row(batch: Batch) -> np.ndarray:
        row = np.arange(len(batch.targets))[:, None]
        return np.where(row == row.max(), batch.targets, IGNORE_INDEX)

    for targets in (half, last_row):
        assert look(*GPT2, batches=relabel(targets, batch_size=80)).endswith(SOUND)
    good, bad = sound_batches(Config()), relabel(all_masked)
    assert look(batches=[*bad[:-1], good[-1]]).endswith(SOUND)


@pytest.mark.parametrize(
    ("argv", "change"),
    [
        (NORMAL_INIT, lambda model: torch.nn.init.normal_(model.lm_head.weight, std=0.5)),
        (NORMAL_INIT, lambda model: torch.nn.init.normal_(model.lm_head.weight, std=0.14)),
        (["--tied"], lambda model: torch.nn.init.normal_(model.wte.weight, std=1.0)),
        (
            ["--tied", "--n_embd=512", "--n_layer=1"],
            lambda model: None,
        ),  # each token predicts itself
    ],
)
def test_weights_that_start_too_large(argv: list[str], change: Callable[[GPT], object]) -> None:
    said = look(*argv, change=change)
    assert "WRONG: the weights start too large: the logits are confident" in said
    assert said.count("WRONG") == 1


def test_weights_that_are_trained_already() -> None:
    def learn(model: GPT) -> None:
        cfg, _ = load_config(["--max_iters=15"])
        optimizers, batches = (
            make_optimizers(model, cfg.optim),
            TrainBatches(Split(TOKENS), 64, 16, seed=1),
        )
        for step in range(15):
            take_step(model, optimizers, batches(16 * step), cfg, CPU, step=step)

    said = look("--n_layer=1", change=learn)
    assert (
        "below log|V|, too low for a model that knows nothing: its weights are trained already"
        in said
    )
    assert said.count("WRONG") == 1


def test_logits_that_favour_tokens_that_do_not_come() -> None:
    """The commonest characters are, everywhere, a little less expected than the others."""
    common = np.argsort(-np.bincount(TOKENS))[:6]

    def misplace(model: GPT) -> None:
        # a constant direction
        model.norm = torch.nn.Sequential(model.norm, torch.nn.Hardtanh(1.0, 1.001))
        with torch.no_grad():
            model.lm_head.weight[torch.from_numpy(common)] = -0.9 / model.cfg.n_embd

    assert "favour tokens that do not come" in look(change=misplace)


def test_a_loss_that_is_not_finite() -> None:
    assert "WRONG: the loss is not finite" in look(
        *NORMAL_INIT, change=lambda model: torch.nn.init.constant_(model.lm_head.weight, math.nan)
    )


def test_padding_is_not_taken_for_labels() -> None:
    """Of documents that are one token longer than the window, whose second windows are mostly
    padding.
    """
    tokens = np.tile([V - 1, *range(8)], 400)
    batches = first_batches(TrainBatches(Split(tokens), 8, 16, seed=0, eos=V - 1))
    assert look("--block_size=8", batches=batches).endswith(SOUND)


def test_training_says_it(data_dir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command, also with batches that give the targets away."""
    command = ["train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, "--max_iters=1"]
    assert SOUND in call(*command).stdout
    sound = TrainBatches.__call__
    monkeypatch.setattr(
        TrainBatches,
        "__call__",
        lambda self, first_window: [
            batch._replace(targets=batch.inputs) for batch in sound(self, first_window)
        ],
    )
    assert "WRONG: the labels are off by one: each target is its own input" in call(*command).stdout


# The first losses.


@pytest.mark.parametrize(
    ("options", "step", "tokens", "early"),
    [
        ([], 39, 10**6, True),
        ([], 40, 10**6, False),
        ([], 40, 1299, True),
        ([], 40, 1300, False),
        (["--eval_interval=250"], 128, 10**6, True),
        (["--eval_interval=250"], 250, 10**6, False),
        (["--warmup_iters=100"], 160, 10**6, True),
        (["--warmup_iters=100"], 200, 10**6, False),
    ],
)
def test_a_model_has_time_to_pass_the_unigram(
    options: list[str], step: int, tokens: int, early: bool
) -> None:
    cfg, _ = load_config(options)
    record: dict[str, float] = {"step": step, "tokens": tokens}
    assert is_early(record, 65, cfg.run.eval_interval, cfg.optim.warmup_iters) == early


def test_no_model_has_to_pass_the_unigram_of_a_text_without_order() -> None:
    def baselines(bigram: float) -> list[Baseline]:
        return [
            Baseline(name=name, nats_per_token=nats, bits_per_byte=1, perplexity=1)
            for name, nats in (("unigram", 3.0), ("bigram", bigram))
        ]

    record = {"step": 40, "val_nll": 3.01}
    assert check_first_losses(record, baselines(2.95)) == check_first_losses(record, []) == ""
    warning = check_first_losses(record, baselines(2.5))
    assert "the validation loss, 3.010, is not below the unigram's, 3.000" in warning
    assert check_first_losses(record | {"val_nll": 2.99}, baselines(2.5)) == ""


def cut_wrongly(split: Split, windows: np.ndarray, block_size: int, number: int = 0) -> Batch:
    batch = cut(split, windows, block_size, number)
    return batch._replace(targets=random_targets(batch))


@pytest.mark.parametrize("fault", ["none", "no learning", "random targets"])
def test_a_loss_that_does_not_pass_the_unigram_is_told_once(
    fault: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first evaluations, at step 40; also if step 0 could not see it."""
    train_in(data_dir, monkeypatch)
    command = [
        "train.py",
        "--corpus=text.txt",
        "--out_dir=out/run",
        *TINY,
        "--max_iters=80",
        "--eval_interval=20",
    ]
    if fault == "no learning":
        command += ["--learning_rate=0", "--muon_learning_rate=0"]
    if fault == "random targets":
        monkeypatch.setattr("data.batches.cut", cut_wrongly)
    printed = call(*command).stdout
    assert (SOUND in printed) == (fault != "random targets")
    warning = "warning: after 40 steps the validation loss, "
    assert printed.count("warning: ") == printed.count(warning) == (fault != "none")
