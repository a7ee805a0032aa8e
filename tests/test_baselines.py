"""What a loss has to beat: n-grams against their definition, and all of them against each other."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from config.schema import DataConfig
from data.baselines import measure_baselines
from data.documents import Split
from data.info import UNIFORM, Baseline
from data.ngrams import distinct, ngram_nll
from data.prepare import prepare_corpus
from data.tokenizer import char_tokenizer
from tests.conftest import make_text

TEXT = make_text()
TOKENIZER = char_tokenizer(TEXT)
TOKENS = TOKENIZER.encode(TEXT)


def by_name(measured: Iterable[Baseline]) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in measured}


def measure_text() -> dict[str, Baseline]:
    """Measure the baselines of the text, most of which is for training."""
    train = Split(TOKENS[:9000])
    val = Split(TOKENS[9000:])
    return by_name(measure_baselines(train, val, TOKENIZER))


def halves(tokens: np.ndarray, unmasked: np.ndarray) -> tuple[Split, Split]:
    """Split a text whose second half is for validation."""
    half = len(tokens) // 2
    train = Split(tokens[:half], unmasked[:half])
    val = Split(tokens[half:], unmasked[half:])
    return train, val


Counts = list[int]


def discounts_of(counts: Counts) -> list[float]:
    """Return what modified Kneser-Ney takes from a count of 0, 1, 2, and 3 or more."""
    n = [max(1, counts.count(k)) for k in range(5)]  # how many counts are k
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [0.0]
    for k in (1, 2, 3):
        raw = k - (k + 1) * y * n[k + 1] / n[k]
        discounts.append(min(max(raw, 0.01), k))
    return discounts


def smooth(counts: Counts, all_counts: Counts, lower: np.ndarray) -> np.ndarray:
    """Return the probabilities of tokens with these counts in a context.

    `lower` has those of the context that is shorter by one.

    The discounts come from the counts of all contexts.
    """
    discounts = discounts_of(all_counts)
    taken = np.array([discounts[min(count, 3)] for count in counts])
    return (np.array(counts) - taken + taken.sum() * lower) / sum(counts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_are_distributions(order: int, masked: bool) -> None:
    """In each context, the probabilities of all tokens sum to one: also in contexts never seen."""
    rng = np.random.default_rng(0)
    frequencies = [0.5, 0.3, 0.1, 0.1, 0.0]
    tokens = rng.choice(5, size=300, p=frequencies).astype(np.uint16)
    unmasked = None
    if masked:
        unmasked = rng.random(300) < 0.5
    train = Split(tokens, unmasked)
    usual = [0, 0, 1, 0]
    rare = [3] * 4
    never_seen = [4] * 4
    for context in (usual, rare, never_seen):
        total = 0.0
        for token in range(5):
            val = np.array([*context, token], dtype=np.uint16)
            *_, nll = ngram_nll(train, val, 5, order)
            total += np.exp(-nll[-1])
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize("mask", ["111111111111", "010110110111", "110101000001"])
def test_bigram_by_hand(mask: str) -> None:
    """Kneser-Ney computed from its definition, on a text small enough.

    Of the pairs, those count whose second token is a target, 1 in the mask.
    """
    train = [int(token) for token in "010120100210"]
    val = [0, 1, 2, 2]
    pairs = []
    for pair, is_target in zip(pairwise(train), mask[1:], strict=True):
        if is_target == "1":
            pairs.append(pair)
    all_counts = [pairs.count(pair) for pair in set(pairs)]
    # how many different tokens come before each token
    seconds = [second for _, second in set(pairs)]
    continuations = [seconds.count(token) for token in range(3)]
    unigram = smooth(continuations, continuations, np.full(3, 1 / 3))

    expected = []
    for context, token in pairwise(val):
        counts = [pairs.count((context, other)) for other in range(3)]
        bigram = unigram
        if sum(counts) > 0:
            bigram = smooth(counts, all_counts, unigram)
        expected.append(-np.log(bigram[token]))
    # Counts of counts are over the n-grams that occur in train or in val, so [2, 2] adds only a
    # zero.
    unmasked = np.array([each == "1" for each in mask])
    split = Split(np.array(train), unmasked)
    if unmasked.all():
        split = Split(np.array(train))
    _, nll = ngram_nll(split, np.array(val), 3, 2)
    assert nll.tolist() == pytest.approx(expected)


def test_under_a_mask_the_unigram_is_that_of_the_targets() -> None:
    """Its loss is the cross-entropy of the targets with the smoothed frequencies of training's."""
    rng = np.random.default_rng(0)
    V = 30
    tokens = rng.zipf(1.5, 10_000).clip(max=V) - 1
    unmasked = (tokens < 12) & (rng.random(10_000) < 0.7)  # the rare ones are never targets
    train, val = halves(tokens, unmasked)
    counts = np.bincount(train.targets(), minlength=V).tolist()
    smoothed = smooth(counts, counts, np.full(V, 1 / V))
    assert smoothed.sum() == pytest.approx(1)
    expected = -np.log(smoothed[val.targets()]).mean()
    tokenizer = char_tokenizer("".join(map(chr, range(97, 97 + V))))
    measured = by_name(measure_baselines(train, val, tokenizer))
    unigram = measured["unigram"].nats_per_token
    assert unigram == pytest.approx(expected, rel=1e-12)
    assert unigram < measured[UNIFORM].nats_per_token - 1


@pytest.mark.parametrize("prompt_tokens", [20, 200])
def test_no_baseline_of_targets_counts_what_is_masked(prompt_tokens: int) -> None:
    """Prompts of letters, answers of digits: letters take no probability from the digits."""
    rng = np.random.default_rng(0)
    is_target = np.tile(np.arange(prompt_tokens + 5) >= prompt_tokens, 300)
    letters = rng.integers(26, size=len(is_target))
    digits = rng.integers(26, 36, size=len(is_target))
    train, val = halves(np.where(is_target, digits, letters), is_target)
    tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789")
    measured = by_name(measure_baselines(train, val, tokenizer))
    uniform = measured[UNIFORM].nats_per_token
    assert measured["unigram"].nats_per_token == pytest.approx(np.log(10), rel=0.02)
    assert uniform == pytest.approx(np.log(36))
    assert all(baseline.nats_per_token <= uniform for baseline in measured.values())


def test_baselines_where_all_that_is_counted_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first tokens of validation and the last of training are counted."""
    monkeypatch.setattr("data.baselines.MAX_VAL_TOKENS", 100)
    monkeypatch.setattr("data.baselines.MAX_TRAIN_TOKENS", 100)
    train = Split(TOKENS[:9000], np.arange(9000) < 100)
    val = Split(TOKENS[9000:], np.arange(len(TOKENS) - 9000) > 200)
    uniform, *ngrams = measure_baselines(train, val, TOKENIZER)
    for each in ngrams:
        assert each.nats_per_token == pytest.approx(uniform.nats_per_token)


@pytest.mark.parametrize("largest", [1000, 2**30, 2**62])
def test_distinct_keys_are_found_also_if_they_are_large(largest: int) -> None:
    keys = np.random.default_rng(0).integers(largest // 300, size=5000)
    keys = keys * 300 + largest % 300
    unique, index = distinct(keys)
    expected, expected_index = np.unique(keys, return_inverse=True)
    assert unique.tolist() == expected.tolist()
    assert index.tolist() == expected_index.tolist()


def test_baselines() -> None:
    measured = measure_text()
    assert list(measured) == [UNIFORM, "unigram", "bigram", "6-gram", "gzip", "bzip2", "xz"]
    nats = [baseline.nats_per_token for baseline in measured.values()]
    uniform, unigram, bigram, sixgram, *_ = nats
    assert uniform == pytest.approx(np.log(TOKENIZER.vocab_size))
    assert uniform > unigram > bigram > sixgram
    before = [2.484481205343546, 0.9800944524365784, 0.6645950270780122]  # in earlier editions
    assert [unigram, bigram, sixgram] == pytest.approx(before, rel=1e-12)

    targets = TOKENS[9001:]
    frequencies = np.bincount(TOKENS[:9000], minlength=TOKENIZER.vocab_size) / 9000
    cross_entropy = -np.log(frequencies[targets]).mean()
    assert unigram == pytest.approx(cross_entropy, rel=0.01)
    tokens_per_byte = len(targets) / TOKENIZER.count_bytes(targets)
    for each in measured.values():
        bits_per_token = each.nats_per_token / np.log(2)
        assert each.bits_per_byte == pytest.approx(bits_per_token * tokens_per_byte)
        assert each.perplexity == pytest.approx(np.exp(each.nats_per_token))


def test_baselines_of_a_large_corpus_are_those_of_a_part(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corpus says so."""
    assert "baselines use" not in prepare_corpus(DataConfig(corpus="text.txt")).info.describe()
    for module in ("data.baselines", "data.info"):
        monkeypatch.setattr(f"{module}.MAX_TRAIN_TOKENS", 3000)
        monkeypatch.setattr(f"{module}.MAX_VAL_TOKENS", 200)
    train = Split(TOKENS[6000:9000])
    val = Split(TOKENS[9000:9201])
    assert measure_text() == by_name(measure_baselines(train, val, TOKENIZER))
    (data_dir / "text.txt").write_text(TEXT + "the end", encoding="utf-8")
    described = prepare_corpus(DataConfig(corpus="text.txt")).info.describe()
    assert "the last 3,000 training tokens, and the first 200 validation tokens" in described
