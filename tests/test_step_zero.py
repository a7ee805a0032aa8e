"""Each fault that step 0 can see is named when it is provoked, and what is sound is called so."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
Relabel = Callable[[Batch], np.ndarray]  # makes other targets for a batch
Change = Callable[[GPT], object]  # changes a model's weights


def look(
    *argv: str,
    batches: Batches | None = None,
    seed: int = 0,
    vocab_size: int = V,
    change: Change = lambda model: None,
) -> str:
    """Return what is said of a new model that has the given faults."""
    cfg, _ = load_config(list(argv))
    torch.manual_seed(seed)
    model = GPT(cfg.model, vocab_size, cfg.tables)
    change(model)
    said = check_step_zero(model, batches or sound_batches(cfg), V, CPU)
    assert model.training
    return said


def first_batches(get_batch: TrainBatches) -> Batches:
    return [get_batch(number * get_batch.batch_size) for number in range(FIRST_BATCHES)]


def sound_batches(cfg: Config, batch_size: int = 16) -> Batches:
    return first_batches(TrainBatches(Split(TOKENS), cfg.model.block_size, batch_size, seed=0))


def relabel(new_targets: Relabel, batch_size: int = 16) -> Batches:
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
        ["--max_ngram=3"],
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


def test_the_expected_loss_of_the_default_is_log_v() -> None:
    loss = f"{math.log(V):.4f}"
    assert f"loss {loss} nats; expected log|V| = log {V} = {loss}: {SOUND}" in look()


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
        form = r"step 0: loss (.*) nats; expected log.* = (.*), plus (.*) for its .*"
        numbers = re.fullmatch(form, said)
        assert numbers
        nll, uniform, cost = map(float, numbers.groups())
        variance = cfg.model.n_embd * std**2
        assert uniform == pytest.approx(math.log(5000), abs=1e-4)
        standard_error = variance**0.5 / 64
        assert nll - uniform == pytest.approx(cost, abs=3 * standard_error)
        assert cost == pytest.approx(variance / 2, rel=0.1)
        assert said.endswith(SOUND)


def all_masked(batch: Batch) -> np.ndarray:
    return np.full_like(batch.targets, IGNORE_INDEX)


def two_after(batch: Batch) -> np.ndarray:
    return np.roll(batch.targets, -1, axis=1)


def before(batch: Batch) -> np.ndarray:
    return np.roll(batch.inputs, 1, axis=1)


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
def test_wrong_labels_are_named(argv: list[str], targets: Relabel, said: str) -> None:
    printed = look(*argv, batches=relabel(targets))
    # a tied model is also too good at such labels
    assert printed.split("WRONG: ")[1].startswith(said)


def random_targets(batch: Batch) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permutation(batch.targets.ravel()).reshape(batch.targets.shape)


def reversed_targets(batch: Batch) -> np.ndarray:
    return batch.targets[:, ::-1]


def rows_of_others(batch: Batch) -> np.ndarray:
    return np.roll(batch.targets, 1, axis=0)


@pytest.mark.parametrize("targets", [random_targets, reversed_targets, rows_of_others])
@pytest.mark.parametrize("argv", [[], GPT2], ids=["zero lm_head", "gpt2"])
def test_targets_that_do_not_belong_to_the_inputs(argv: list[str], targets: Relabel) -> None:
    """The loss of equal logits is log|V| for any targets; these are found without it."""
    said = look(*argv, batches=relabel(targets))
    assert "targets are not the next token of their input" in said
    assert said.count("WRONG") == 1


@pytest.mark.parametrize("where", ["last row", "last micro-batch", "last step", "under a mask"])
def test_one_wrong_target_is_found_wherever_it_is(where: str) -> None:
    batches = [batch * 2 for batch in sound_batches(Config(), batch_size=4)]
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
        is_odd = np.arange(batch.targets.shape[1]) % 2
        return np.where(is_odd, batch.targets, IGNORE_INDEX)

    def last_row(batch: Batch) -> np.ndarray:
        row = np.arange(len(batch.targets))[:, None]
        return np.where(row == row.max(), batch.targets, IGNORE_INDEX)

    for targets in (half, last_row):
        batches = relabel(targets, batch_size=80)
        assert look(*GPT2, batches=batches).endswith(SOUND)
    masked = relabel(all_masked)
    last = sound_batches(Config())[-1]
    assert look(batches=[*masked[:-1], last]).endswith(SOUND)


@pytest.mark.parametrize(
    ("argv", "weights", "std"),
    [
        (NORMAL_INIT, "lm_head.weight", 0.5),
        (NORMAL_INIT, "lm_head.weight", 0.14),
        (["--tied"], "wte.weight", 1.0),
    ],
)
def test_weights_that_start_too_large(argv: list[str], weights: str, std: float) -> None:
    def enlarge(model: GPT) -> None:
        torch.nn.init.normal_(model.get_parameter(weights), std=std)

    said = look(*argv, change=enlarge)
    assert "WRONG: the weights start too large: the logits are confident" in said
    assert said.count("WRONG") == 1


def test_a_wide_tied_model_predicts_its_own_inputs() -> None:
    said = look("--tied", "--n_embd=512", "--n_layer=1")
    assert "WRONG: the weights start too large: the logits are confident" in said
    assert said.count("WRONG") == 1


def test_weights_that_are_trained_already() -> None:
    def learn(model: GPT) -> None:
        cfg, _ = load_config(["--max_iters=15"])
        optimizers = make_optimizers(model, cfg.optim)
        batches = TrainBatches(Split(TOKENS), 64, 16, seed=1)
        for step in range(15):
            take_step(model, optimizers, batches(16 * step), cfg, CPU, step=step)

    said = look("--n_layer=1", change=learn)
    fault = "below log|V|, too low for a model that knows nothing: its weights are trained already"
    assert fault in said
    assert said.count("WRONG") == 1


def test_logits_that_favour_tokens_that_do_not_come() -> None:
    """The commonest characters are, everywhere, a little less expected than the others."""
    common = np.argsort(-np.bincount(TOKENS))[:6]

    def misplace(model: GPT) -> None:
        constant = torch.nn.Hardtanh(1.0, 1.001)  # hidden states have one direction
        model.norm = torch.nn.Sequential(model.norm, constant)
        with torch.no_grad():
            model.lm_head.weight[torch.from_numpy(common)] = -0.9 / model.cfg.n_embd

    assert "favour tokens that do not come" in look(change=misplace)


def test_a_loss_that_is_not_finite() -> None:
    def spoil(model: GPT) -> None:
        torch.nn.init.constant_(model.lm_head.weight, math.nan)

    assert "WRONG: the loss is not finite" in look(*NORMAL_INIT, change=spoil)


def test_padding_is_not_taken_for_labels() -> None:
    """Documents one token longer than a window: their second windows are mostly padding."""
    tokens = np.tile([V - 1, *range(8)], 400)
    get_batch = TrainBatches(Split(tokens), 8, 16, seed=0, eos=V - 1)
    assert look("--block_size=8", batches=first_batches(get_batch)).endswith(SOUND)


def test_training_says_it(data_dir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command says it, also of batches that give the targets away."""
    command = ["train.py", "--corpus=text.txt", "--out_dir=out/run", *TINY, "--max_iters=1"]
    assert SOUND in call(*command).stdout
    get_batch = TrainBatches.__call__

    def give_away(self: TrainBatches, first_window: int) -> list[Batch]:
        batches = get_batch(self, first_window)
        return [batch._replace(targets=batch.inputs) for batch in batches]

    monkeypatch.setattr(TrainBatches, "__call__", give_away)
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
    def baseline(name: str, nats: float) -> Baseline:
        return Baseline(name=name, nats_per_token=nats, bits_per_byte=1, perplexity=1)

    def baselines(bigram: float) -> list[Baseline]:
        return [baseline("unigram", 3.0), baseline("bigram", bigram)]

    record = {"step": 40, "val_nll": 3.01}
    kind = "tuning"
    assert check_first_losses(record, baselines(2.95), kind) == ""
    assert check_first_losses(record, [], kind) == ""
    warning = check_first_losses(record, baselines(2.5), kind)
    assert "the tuning loss, 3.010, is not below the unigram's, 3.000" in warning
    assert check_first_losses(record | {"val_nll": 2.99}, baselines(2.5), kind) == ""


def cut_wrongly(*arguments: Any) -> Batch:
    batch = cut(*arguments)
    return batch._replace(targets=random_targets(batch))


@pytest.mark.parametrize("fault", ["none", "no learning", "random targets"])
def test_a_loss_that_does_not_pass_the_unigram_is_told_once(
    fault: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told after the first evaluations, at step 40, also if step 0 could not see it."""
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
