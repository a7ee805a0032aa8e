"""Scores of targets and what is said of them hold on data made to deserve it."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from config.errors import UserError
from data.documents import Split
from data.eval_text import EvalText
from data.tokenizer import char_tokenizer
from engine import scoring
from engine.device import Device
from engine.scoring import Predictions, predict, score_targets
from report.analysis import (
    TEMPERATURES,
    Columns,
    calibrate,
    confidence_bins,
    group_targets,
    summarise,
)
from report.evaluation import claim
from report.intervals import Blocks, Estimate, intervals, measure_losses
from tests.conftest import make_model

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_each_token_is_scored_as_one_by_one_in_float64(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", chunk * 13)
    monkeypatch.setattr(scoring, "MIN_CHUNK", 1)
    model = make_model(std=0.3, softcap=3.0, dropout=0.5)
    tokens = np.random.default_rng(0).integers(13, size=100)
    batches = EvalText(Split(tokens), 8, stride=5).batches()
    scores = score_targets(predict(model, batches, CPU), TEMPERATURES)
    assert scores.targets.tolist() == tokens[1:].tolist()
    exact = model.double()
    tempered = np.zeros(len(TEMPERATURES))
    for i in range(1, 100):
        # the windows move on by 5 tokens, once the first is full
        start = 5 * math.ceil(max(0, i - 8) / 5)
        target = tokens[i]
        window = torch.from_numpy(tokens[None, start:i])
        logits = exact(window)[0, -1].detach()
        probs = logits.softmax(-1)
        order = probs.argsort(descending=True).tolist()
        assert scores.context_len[i - 1] == i - start
        nll = -math.log(probs[target])
        confidence = float(probs.max())
        assert scores.nll[i - 1] == pytest.approx(nll, abs=1e-5)
        assert scores.higher[i - 1] == order.index(target)
        assert scores.confidence[i - 1] == pytest.approx(confidence, abs=1e-5)
        for number, temperature in enumerate(TEMPERATURES):
            tempered[number] -= (logits / temperature).log_softmax(-1)[target]
    assert scores.tempered == pytest.approx(tempered, rel=1e-5)


def score(logits: torch.Tensor, targets: torch.Tensor) -> scoring.Scores:
    """Score predictions that are made up."""
    made_up = Predictions(logits, targets, torch.ones_like(targets))
    return score_targets([made_up], TEMPERATURES)


def columns(offset: np.ndarray, nll: np.ndarray, **more: np.ndarray) -> Columns:
    """Make columns of targets; by default each is a token of one byte that is not predicted."""
    ones = np.ones(len(nll))
    zeros = np.zeros(len(nll))
    return {
        "offset": offset,
        "document": np.zeros(len(nll), dtype=int),
        "tokens": ones,
        "bytes": ones,
        "nll": nll,
        "top1": zeros,
        "top5": zeros,
    } | more


def measure(*runs: Columns) -> list[dict[str, Estimate]]:
    losses, blocks = measure_losses(runs)
    return [intervals(own, blocks) for own in losses]


def nats_difference(ours: Columns, theirs: Columns) -> Estimate:
    (first, second), blocks = measure_losses([ours, theirs])
    difference = first["nats_per_token"] - second["nats_per_token"]
    return intervals({"nats": difference}, blocks)["nats"]


def test_the_units_are_those_of_the_same_sums() -> None:
    nll = np.array([1.0, 2.0, 6.0, 3.0])
    n_bytes = np.array([1, 2, 1, 4])
    text = columns(
        n_bytes.cumsum(),
        nll,
        bytes=n_bytes,
        top1=np.array([1.0, 0, 0, 0]),
        top5=np.array([1.0, 1, 0, 0]),
    )
    (loss,) = measure(text)
    assert loss["nats_per_token"]["value"] == 3
    assert (loss["top1"]["value"], loss["top5"]["value"]) == (0.25, 0.5)
    assert loss["bits_per_token"]["value"] == pytest.approx(3 / math.log(2))
    assert loss["bits_per_byte"]["value"] == pytest.approx(12 / 8 / math.log(2))
    assert loss["perplexity"]["value"] == pytest.approx(math.exp(3))
    high = math.exp(loss["nats_per_token"]["high"])
    assert loss["perplexity"]["high"] == pytest.approx(high, rel=1e-3)
    (huge,) = measure(text | {"nll": nll * 1e6})
    assert math.isfinite(huge["perplexity"]["value"])


def test_tied_tokens_share_the_places() -> None:
    row = torch.tensor([0.0, 1.0, 1.0, 1.0])
    logits = row.expand(4, 4)
    scores = score(logits, torch.arange(4))
    tied = np.array([0, 1, 1, 1])
    assert scores.top(1) == pytest.approx(tied / 3)
    assert scores.top(2) == pytest.approx(2 * tied / 3)
    assert scores.top(5).tolist() == [1, 1, 1, 1]


def test_a_model_that_diverged_is_told() -> None:
    model = make_model(std=0.3)
    torch.nn.init.constant_(model.wte.weight, math.nan)
    text = EvalText(Split(np.arange(9)), 8)
    with pytest.raises(UserError, match="diverged"):
        list(predict(model, text.batches(), CPU))


def width(estimate: Estimate) -> float:
    return estimate["high"] - estimate["low"]


def make_nll(rng: np.random.Generator, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Make surprisals of mean 2 that are alike within 1,000 bytes; and where their tokens begin."""
    n = 1000 * blocks
    hard = np.repeat(rng.normal(0, 0.2, size=n // 250), 250)
    noise = rng.normal(0, 0.5, size=n)
    return 2 + hard + noise, 4 * np.arange(n)


def test_intervals_cover_what_they_should_and_narrow_with_more_text() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    widths = []
    for _ in range(100):
        nll, offsets = make_nll(rng, 60)
        estimate = measure(columns(offsets, nll))[0]["nats_per_token"]
        assert estimate["value"] == pytest.approx(nll.mean())
        covered += estimate["low"] <= 2 <= estimate["high"]
        widths.append(width(estimate))
    assert 90 <= covered <= 99
    nll, offsets = make_nll(rng, 960)
    longer = measure(columns(offsets, nll))[0]["nats_per_token"]
    assert width(longer) == pytest.approx(np.mean(widths) / 4, rel=0.2)


def test_a_paired_difference_leaves_out_what_both_find_hard() -> None:
    nll, offsets = make_nll(np.random.default_rng(0), 60)
    noise = np.random.default_rng(1).normal(0, 0.1, size=len(nll))
    noise -= noise.mean()
    theirs = columns(offsets, nll)
    # alone, either could be the better one
    assert width(measure(theirs)[0]["nats_per_token"]) > 0.02
    better = nats_difference(columns(offsets, nll - 0.01 + noise), theirs)
    assert better["low"] < -0.01 < better["high"] < 0
    same = nats_difference(columns(offsets, nll + noise), theirs)
    assert same["low"] < 0 < same["high"]


def test_other_tokens_of_the_same_text_fall_into_the_same_blocks() -> None:
    """Tokens of 1 byte and of 1 to 50 with the same surprisal a byte differ in no resample."""
    lengths = np.random.default_rng(0).integers(1, 51, size=4000)
    offsets = lengths.cumsum() - lengths
    n_bytes = lengths.sum()
    per_byte = np.random.default_rng(1).normal(2, 1, size=n_bytes)
    runs = [
        columns(np.arange(len(per_byte)), per_byte),
        columns(offsets, np.add.reduceat(per_byte, offsets), bytes=lengths),
    ]
    losses, blocks = measure_losses(runs)
    ours, theirs = (own["bits_per_byte"] for own in losses)
    estimates = intervals({"gap": ours - theirs, "own": ours}, blocks)
    gap = estimates["gap"]
    assert gap["value"] == pytest.approx(0)
    assert width(gap) < 0.01  # the tokens that cross a border
    assert width(gap) < 0.2 * width(estimates["own"]) + 0.01


ROW = 100  # tokens in a row of the columns below, to be faster


def make_documents(rng: np.random.Generator, effects: np.ndarray, spread: float) -> Columns:
    """Make documents of mean 2 that differ as wholes, in rows of ROW tokens.

    `spread` is that of the logarithms of their lengths.
    """
    log_lengths = spread * rng.standard_normal(len(effects))
    rows = np.rint(20 * np.exp(log_lengths)).astype(int) + 1
    number = np.repeat(np.arange(len(effects)), rows)
    noise = rng.normal(0, 0.1, size=len(number))
    nll = ROW * (2 + effects[number] + noise)
    offset = ROW * np.arange(len(number))
    tokens = np.full(len(number), float(ROW))
    first_rows = np.cumsum(rows) - rows
    document = ROW * first_rows[number]
    return columns(offset, nll, document=document, tokens=tokens, bytes=tokens)


SAMPLES = [
    pytest.param(12, 0.0, id="few"),
    pytest.param(40, 0.5, id="some"),
    pytest.param(400, 1.0, id="many of unlike lengths"),
]


@pytest.mark.parametrize(("number", "spread"), SAMPLES)
def test_intervals_of_a_random_sample_of_documents_cover_others(number: int, spread: float) -> None:
    """The loss of one run, and the difference of two, whose documents differ as wholes."""
    rng = np.random.default_rng(0)
    covered = 0
    of_documents = 0
    texts = 60
    for _ in range(texts):
        effects = rng.normal(0, 0.3, size=number)
        ours = make_documents(rng, effects, spread)
        rows = np.unique(ours["document"], return_counts=True)[1]
        worse = 0.05 + np.repeat(rng.normal(0, 0.1, size=number), rows)
        theirs = ours | {"nll": ours["nll"] + ROW * worse}
        (first, second), blocks = measure_losses([ours, theirs])
        of_documents += blocks.of_documents
        nats = first["nats_per_token"]
        found = intervals({"loss": nats, "difference": second["nats_per_token"] - nats}, blocks)
        for name, truth in (("loss", 2), ("difference", 0.05)):
            if blocks.of_documents:
                covered += found[name]["low"] <= truth <= found[name]["high"]
    assert of_documents > 0.85 * texts  # of the others, neighbours are alike by chance
    assert 0.88 < covered / (2 * of_documents) < 0.99


@pytest.mark.parametrize("cut", ["not", "into lines", "into plays"])
def test_resamples_of_a_few_plays_promise_nothing_about_others(cut: str) -> None:
    """Plays differ as wholes: whatever the documents are, words are modest."""
    rng = np.random.default_rng(0)
    covered = 0
    of_documents = 0
    texts = 60
    for _ in range(texts):
        effects = np.repeat(rng.normal(0, 0.06, size=4), 300)
        effects += rng.normal(0, 0.1, size=len(effects))
        lines = make_documents(rng, effects, spread=0.0)
        if cut == "not":
            lines["document"] = np.zeros_like(lines["document"])
        elif cut == "into plays":
            starts, line = np.unique(lines["document"], return_inverse=True)
            first_of_play = line // 300 * 300
            lines["document"] = starts[first_of_play]
        (loss,), blocks = measure_losses([lines])
        of_documents += blocks.of_documents
        nats = intervals({"nats": loss["nats_per_token"]}, blocks)["nats"]
        covered += nats["low"] <= 2 <= nats["high"]
    assert covered / texts < 0.7  # an interval would have 0.95
    most = 0
    if cut == "into lines":
        most = 3  # where the four plays happen to be alike
    assert of_documents <= most
    assert "nothing about another text" in " ".join(claim(Blocks(False, 50)))
    assert "other documents of the same source" in " ".join(claim(Blocks(True, 50)))


def test_a_text_of_a_few_tokens_has_intervals_that_are_numbers() -> None:
    for offsets in (
        [np.array([1])],
        [np.array([2]), np.array([3])],
        [np.array([1, 2, 3]), np.array([2])],
        [np.arange(200), np.arange(0, 200, 70)],
    ):
        texts = [columns(offset, np.ones(len(offset))) for offset in offsets]
        for own in measure(*texts):
            assert own["nats_per_token"] == {"low": 1, "value": 1, "high": 1}


Group = dict[str, Any]


def calibration_of(scores: scoring.Scores) -> tuple[dict[str, float], list[Group]]:
    top1 = scores.top(1)
    confidence = scores.confidence
    of_each = columns(scores.targets, scores.nll, top1=top1, confidence=confidence)
    rows = group_targets(*confidence_bins(confidence), of_each)
    return calibrate(rows, scores.tempered / len(scores.nll)), rows


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 3.0])
def test_calibration_recovers_the_factor_by_which_logits_were_spoiled(factor: float) -> None:
    torch.manual_seed(0)
    honest = 1.5 * torch.randn(40_000, 10)
    targets = torch.multinomial(honest.softmax(-1), 1)[:, 0]
    scores = score(factor * honest, targets)
    right = scores.top(1)
    confidence = scores.confidence
    calibration, bins = calibration_of(scores)
    assert calibration["temperature"] == pytest.approx(factor, rel=0.03)
    best = torch.nn.functional.cross_entropy(factor * honest / calibration["temperature"], targets)
    gained = scores.nll.mean() - float(best)
    assert calibration["nats_gained"] == pytest.approx(gained, abs=1e-5)
    assert (calibration["ece"] < 0.01) == (factor == 1.0)
    lean = float(confidence.mean()) - right.mean()
    assert (lean > 0.05) == (factor > 1)
    assert (lean < -0.05) == (factor < 1)
    assert sum(each["tokens"] for each in bins) == 40_000
    ece = 0.0
    for i in range(15):
        inside = np.floor(15 * confidence) == i
        if inside.any():
            error = abs(confidence[inside].mean() - right[inside].mean())
            ece += inside.mean() * error
    assert calibration["ece"] == pytest.approx(ece, rel=1e-4)  # a token may be on the edge of a bin


def test_no_group_shows_a_fault_of_a_perfectly_calibrated_model() -> None:
    """Its targets are drawn from its own predictions: a confidence is the accuracy beside it."""
    tokenizer = char_tokenizer("the Cat sat on; a mat\n")
    V = tokenizer.vocab_size
    n = 40_000
    torch.manual_seed(0)
    logits = 1.5 * torch.randn(n, V) - 0.25 * torch.arange(V)  # some tokens are rarer than others
    targets = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    text = EvalText(Split(np.append(0, targets.numpy())), 8)
    scores = score(logits, targets)
    context_len = np.arange(n) % 8 + 1
    of_each = columns(
        np.arange(n),
        scores.nll,
        top1=scores.top(1),
        confidence=scores.confidence,
        target=scores.targets,
        context_len=context_len,
    )
    summary = summarise(of_each, scores.tempered / n, text, tokenizer, text.split)

    by_outcome = {"kind of character", "times in training"}
    assert set(summary.groups) == {"confidence", "context length", *by_outcome}
    for kind, groups in summary.groups.items():
        assert len(groups) > 1
        for each in groups:
            assert (each.confidence is None) == (kind in by_outcome)
            if each.confidence is not None:
                assert abs(each.confidence - each.top1) < 4 * math.sqrt(0.25 / each.tokens)
    rare = min(summary.groups["times in training"], key=lambda each: each.tokens)
    times = np.bincount(scores.targets)[scores.targets]
    confidence = scores.confidence[times < 1000].mean()
    assert confidence > rare.top1 + 0.1  # what the column would have shown


@pytest.mark.parametrize("best", [0.1, 0.3, 3.5, 9.0])
def test_a_temperature_at_the_end_of_what_was_tried_is_told(best: float) -> None:
    tempered = np.log(np.array(TEMPERATURES) / best) ** 2
    calibration = calibrate([], tempered)
    nearest = min(4, max(1 / 4, best))
    assert calibration["at_end"] == (nearest != best)
    assert calibration["temperature"] == pytest.approx(nearest, rel=0.01)


def test_a_certain_and_right_model_is_calibrated() -> None:
    logits = torch.tensor([[100.0, 0.0]])
    scores = score(logits, torch.tensor([0]))
    calibration, bins = calibration_of(scores)
    assert (calibration["ece"], bins[0]["name"]) == (0, "93% to 100%")
