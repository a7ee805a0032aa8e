"""What a loss has to beat: n-grams against their definition, and all of them against each other."""

import bz2
import gzip
import lzma
import sys
import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyppmd
import pytest

from config.schema import DataConfig
from data.baselines import measure_baselines
from data.documents import Split
from data.info import (
    COMPRESSORS,
    LEARNS,
    LEARNS_ON,
    STANDS_STILL,
    UNIFORM,
    Baseline,
    beside_baselines,
    choose_landmarks,
    group_baselines,
    read_info,
)
from data.ngrams import distinct, ngram_nll
from data.prepare import prepare_corpus
from data.tokenizer import char_tokenizer
from tests.conftest import ROOT, make_text

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
    ngrams = ["unigram", "bigram", "3-gram", "4-gram", "5-gram", "6-gram"]
    learning = {f"{begin}{name}" for begin in ("", "trained ") for name in COMPRESSORS}
    assert list(measured)[:7] == [UNIFORM, *ngrams]
    assert {*measured} == {UNIFORM, *ngrams, *learning}
    nats = [measured[name].nats_per_token for name in (UNIFORM, "unigram", "bigram", "6-gram")]
    uniform, unigram, bigram, sixgram = nats
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


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_trained_compressor_costs_what_the_validation_text_adds(name: str) -> None:
    """Lengths of files: of training and validation text together, less that of training alone."""
    compress = {
        "gzip": lambda data: gzip.compress(data, 9),
        "bzip2": lambda data: bz2.compress(data, 9),
        "xz": lambda data: lzma.compress(data, preset=6),
        "PPMd": lambda data: pyppmd.compress(data, max_order=6, mem_size=2**27, variant="H"),
    }[name]
    measured = measure_text()
    before = TEXT[:9001].encode()  # the first character of validation is no target
    targets = TEXT[9001:].encode()
    sizes = {name: compress(targets), f"trained {name}": compress(before + targets)}
    lengths = {key: len(data) for key, data in sizes.items()}
    lengths[f"trained {name}"] -= len(compress(before))
    for key, length in lengths.items():
        nats = 8 * np.log(2) * length / len(TEXT[9001:])
        assert measured[key].nats_per_token == pytest.approx(nats)
    assert lengths[f"trained {name}"] < lengths[name]


def test_no_trained_compressor_stands_still() -> None:
    """Neither as a property, nor in the table, nor beside a loss."""
    measured = list(measure_text().values())
    for each in measured:
        assert each.learns == (each.name.removeprefix("trained ") in COMPRESSORS)
        assert each.has_read == ("gram" in each.name or "trained" in each.name)
    groups = group_baselines(measured)
    assert list(groups) == [STANDS_STILL, LEARNS, LEARNS_ON]
    assert {each.name for each in groups[LEARNS_ON]} == {f"trained {name}" for name in COMPRESSORS}
    assert not any(each.learns for each in groups[STANDS_STILL])
    still, alone, trained = beside_baselines(1e-9, measured)
    assert "stand still" in still
    assert "learn" not in still
    assert "trained" not in still + alone
    assert "have read the training text, and learn on while they read" in trained


def test_the_table_says_what_each_has_read(data_dir: Path) -> None:
    described = prepare_corpus(DataConfig(corpus="text.txt")).info.describe()
    assert max(map(len, described.splitlines())) <= 80
    rows = {}
    for line in described.splitlines():
        name = line[:20].strip()
        rows[name] = line[56:].strip()
    assert rows[UNIFORM] == rows["gzip"] == rows["PPMd"] == "not read"
    assert rows["6-gram"] == rows["trained xz"] == rows["trained PPMd"] == "read"
    assert rows["trained gzip"] == "last 32,768 bytes"
    assert rows["trained bzip2"] == "last 900,000 bytes"


def test_without_pyppmd_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_ppmd = measure_text()
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    without = measure_text()
    assert capsys.readouterr().err == "PPMd is left out: it needs `pip install pyppmd`\n"
    assert with_ppmd == without | {key: with_ppmd[key] for key in ("PPMd", "trained PPMd")}


def test_ctrl_c_waits_for_no_compressor() -> None:
    """At its end Python waits for threads that are no daemons."""
    measured = measure_baselines(Split(np.tile(TOKENS, 20)), Split(TOKENS), TOKENIZER)
    next(measured)
    others = [each for each in threading.enumerate() if each is not threading.main_thread()]
    assert all(each.daemon for each in others)
    assert len(list(measured)) == 14


def test_compressors_see_only_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a token has many bytes."""
    seen: list[bytes] = []

    def compress(data: bytes) -> bytes:
        seen.append(data)
        return data

    monkeypatch.setattr("data.baselines.find_compressors", lambda: {"copy": compress})
    monkeypatch.setattr("data.baselines.MAX_TRAIN_TOKENS", 100)
    monkeypatch.setattr("data.baselines.MAX_VAL_TOKENS", 10)
    tokenizer = char_tokenizer("é")
    list(measure_baselines(Split(np.zeros(500, int)), Split(np.zeros(50, int)), tokenizer))
    assert sorted(map(len, seen)) == [20, 100, 120]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_tuning_shows_no_validation_text_to_a_compressor(kind: str, data_dir: Path) -> None:
    found = []
    for end in (TEXT[9000:], "ß\n" * (len(TEXT[9000:]) // 2)):
        Path("one.txt").write_text(TEXT[:9000] + end, encoding="utf-8")
        cfg = DataConfig(
            corpus="one.txt",
            tokenizer=kind,
            vocab_size=300,
            val_fraction=len(end) / (9000 + len(end)),
            split="tuning",
        )
        baselines = by_name(prepare_corpus(cfg).info.baselines)
        found.append({name: each.bits_per_byte for name, each in baselines.items() if each.learns})
    assert len(found[0]) == 8
    assert found[0] == found[1]


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/second_edition/*/corpus.json")))
def test_baselines_of_earlier_editions_say_what_they_have_read(path: Path) -> None:
    info = read_info(path)
    for each in info.baselines:
        assert each.learns == (each.name in ("gzip", "bzip2", "xz"))
        assert each.has_read == each.name.endswith("gram")
    assert "trained" not in info.describe()
    assert choose_landmarks(info.baselines)


def test_landmarks_are_few_and_the_best_are_among_them() -> None:
    measured = measure_text()
    names = [each.name for each in choose_landmarks([*measured.values()])]
    best = {}
    for each in sorted(measured.values(), key=lambda each: -each.nats_per_token):
        best[each.learns] = each.name
    assert {*names} == {UNIFORM, "unigram", "bigram", "gzip", *best.values()}
