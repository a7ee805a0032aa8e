"""Documents and masks: which tokens are targets, and that no token is lost or leaks."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.schema import DataConfig, ModelConfig
from data import corpora
from data.batches import IGNORE_INDEX, TrainBatches
from data.documents import Split
from data.eval_text import EvalText
from data.prepare import Corpus, prepare_corpus
from kv_cache import KVCache
from model import GPT
from tests.conftest import TINY, call

PLAY = "\n\n".join(
    f"{name}:\nMy lord, {n} times {n} is {n * n}."
    for n, name in enumerate(["CAT", "DOG", "OWL"] * 20)
)


def prepare(text: str, name: str = "play.txt", **settings: object) -> Corpus:
    Path(name).write_text(text, encoding="utf-8")
    return prepare_corpus(DataConfig(corpus=name, **settings))


def write_records(path: str, records: list[dict[str, str]]) -> None:
    lines = [json.dumps(record) for record in records]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def target_text(corpus: Corpus, split: Split) -> str:
    return corpus.tokenizer.decode(split.targets())


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_regular_expression_says_what_is_masked(data_dir, tokenizer) -> None:
    whole = prepare(PLAY, tokenizer=tokenizer, vocab_size=300)
    masked = prepare(PLAY, tokenizer=tokenizer, vocab_size=300, mask="^[A-Z]+:$")
    for split in (masked.train, masked.val):
        assert ":" not in target_text(masked, split)
        assert "My lord" in target_text(masked, split)
    assert masked.tokenizer.decode(masked.train.tokens) == whole.tokenizer.decode(
        whole.train.tokens
    )
    assert [each.name for each in masked.info.baselines] == [
        "uniform, log|V|",
        "unigram",
        "bigram",
        "3-gram",
        "4-gram",
        "5-gram",
        "6-gram",
    ]
    bigram = [
        next(each.nats_per_token for each in c.info.baselines if each.name == "bigram")
        for c in (whole, masked)
    ]
    assert bigram[0] != bigram[1]  # measured on the targets


@pytest.mark.parametrize("padded", [True, False])
def test_windows_that_prompts_fill_are_told_at_the_start(data_dir, padded: bool) -> None:
    """The prompt is not shown whole, neither at the end nor by sample.py."""
    records = [{"prompt": "abcdefg " * 200, "completion": "h!"} for _ in range(20)]
    write_records("long.jsonl", records)
    options = ["--corpus=long.jsonl", *TINY, "--max_iters=1", f"--padded={str(padded).lower()}"]
    windows = r"3,\d+ of the 3,6\d\d training windows of 8 tokens have no target: prompts, or"
    for command in (["data/prepare.py"], ["train.py", "--out_dir=out/run"]):
        said = call(*command, *options).stdout
        assert re.search(windows, said)
    assert "Prompt:\n\n... " in said
    sampled = call("sample.py", "out/run", "--max_new_tokens=3", "--num_samples=2").stdout
    for line in said.splitlines() + sampled.splitlines():
        assert len(line) < 600
    short = [{"prompt": "ab ", "completion": "cde!"} for _ in range(90)]
    write_records("long.jsonl", short)
    assert "training windows" not in call("data/prepare.py", *options).stdout


def test_only_completions_are_targets(data_dir) -> None:
    records = [{"prompt": f"{n} plus {n} is ", "completion": f"{2 * n}!"} for n in range(50)]
    write_records("sums.jsonl", records)
    corpus = prepare_corpus(DataConfig(corpus="sums.jsonl"))
    completions = [f"{2 * n}!\n" for n in range(50)]
    assert target_text(corpus, corpus.train) == "".join(completions[:45])
    assert target_text(corpus, corpus.val) == "".join(completions[45:])
    assert corpus.tokenizer.decode(corpus.val.tokens).startswith("\n45 plus 45 is 90!\n46 plus")


@pytest.mark.parametrize(
    ("settings", "eos_text"),
    [
        ({"documents": "lines"}, "\n"),
        ({"documents": "paragraphs"}, "\n\n"),
        ({"documents": "paragraphs", "tokenizer": "bpe", "vocab_size": 300}, "\n\n"),
    ],
)
def test_an_eos_token_stands_for_what_was_between_documents(data_dir, settings, eos_text) -> None:
    corpus = prepare(PLAY + eos_text, **settings)
    tokens = corpus.train.tokens
    eos = corpus.tokenizer.eos
    assert eos == corpus.tokenizer.vocab_size - 1
    assert tokens[0] == tokens[-1] == eos
    both = np.concatenate([tokens[1:], corpus.val.tokens[1:]])
    assert corpus.tokenizer.decode(both) == (PLAY + eos_text).replace("\n\n", eos_text)
    assert (tokens == eos).sum() == corpus.info.train.documents + 1
    masked = prepare(PLAY + eos_text, **settings, predict_eos=False)
    assert eos in corpus.train.targets()
    assert eos not in masked.train.targets()


@pytest.mark.parametrize("block_size", [4, 30, 200])
def test_padded_documents_have_rows_of_their_own(data_dir, block_size) -> None:
    corpus = prepare(PLAY, documents="paragraphs")
    eos = corpus.tokenizer.eos
    batches = TrainBatches(corpus.train, block_size, 7, seed=0, eos=eos)
    windows = batches.windows_per_epoch
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, windows, 7):
        (batch,) = batches(first)
        rows += zip(batch.inputs, batch.targets, strict=True)
    seen = []
    for inputs, targets in rows[:windows]:
        unmasked = targets != IGNORE_INDEX
        n = unmasked.sum()
        assert unmasked[:n].all()  # padding comes after
        assert eos not in inputs[1:n]
        seen.append(corpus.tokenizer.decode(targets[:n]))
    text = corpus.tokenizer.decode(corpus.train.tokens[1:])
    assert sorted("".join(seen)) == sorted(text)
    if block_size == 200:
        assert sorted(seen) == sorted(f"{speech}\n\n" for speech in PLAY.split("\n\n")[:54])
    evaluated: list[int] = []
    for batch in EvalText(corpus.val, block_size, eos).batches():
        evaluated += batch.targets[batch.targets != IGNORE_INDEX].tolist()
    assert evaluated == corpus.val.tokens[1:].tolist()


def test_padding_is_as_if_it_were_not_there(data_dir) -> None:
    corpus = prepare(PLAY, documents="paragraphs")
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(block_size=64, n_layer=2, n_head=2, n_embd=16, form="nanogpt"),
        corpus.tokenizer.vocab_size,
    )
    batch = next(EvalText(corpus.val, 64, corpus.tokenizer.eos).batches())
    inputs, targets = map(torch.from_numpy, batch[:2])
    padded = model(inputs, targets)
    alone = 0.0
    for x, y in zip(inputs, targets, strict=True):
        n = int((y != IGNORE_INDEX).sum())
        row = model(x[None, :n], y[None, :n])
        alone += row.nll.item()
    assert padded.nll.item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("form", ["nanochat", "gpt2"])
def test_with_document_attention_nothing_leaks(form) -> None:
    """Tokens of an earlier document change nothing in a later one, with a cache or without."""
    torch.manual_seed(0)
    shape = ModelConfig(block_size=16, n_layer=2, n_head=2, n_embd=32, form=form)
    model = GPT(shape.model_copy(update={"document_attention": True}), 11).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tokens = torch.randint(10, (2, 16))
    eos = 10  # opens the next document
    tokens[0, 5] = eos
    tokens[1, 0] = eos
    tokens[1, 9] = eos
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 10
    before = model.hidden_states(tokens)
    after = model.hidden_states(changed)
    changes = (after - before)[0].abs()
    assert changes[2:5].max() > 1e-3
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert torch.equal(before[1], after[1])
    cache = KVCache(model.cfg, 2, torch.device("cpu"), torch.float32)
    parts = tokens.split([4, 1, 2, 9], dim=1)
    pieces = [model.hidden_states(part, cache) for part in parts]
    cached = torch.cat(pieces, dim=1)
    torch.testing.assert_close(cached, before, atol=1e-5, rtol=1e-5)
    if form == "nanochat":  # only distances count, so the document could as well stand alone
        second = tokens[:1, 5:]
        alone = model.hidden_states(second)[0]
        torch.testing.assert_close(alone, before[0, 5:], atol=1e-5, rtol=1e-5)


def test_samples_continue_the_masked_text_at_the_start(data_dir) -> None:
    """A model that was never asked to predict a prompt has to be given one."""
    assert prepare(corpora.list_dialogue(PLAY), "play.jsonl").info.prompt.endswith(
        "2809.\n\nCAT:\n"
    )
    assert prepare(PLAY, documents="paragraphs", mask="^[A-Z]+:").info.prompt == "CAT:"
    assert (
        prepare(PLAY, documents="paragraphs").info.prompt
        == prepare(PLAY, mask="^[A-Z]+:").info.prompt
        == ""
    )


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ('{"prompt": "a"}', {}, r'line 1: should be \{"prompt": "...", "completion": "..."\}'),
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": 1, "completion": "b"}',
            {},
            "line 2: should be",
        ),
        ('{"prompt": "a", "completion": ""}', {}, "the second not empty"),
        ('{"prompt": "a \\ud800", "completion": "b"}', {}, "line 1: should be"),
        ('["a"]', {}, "line 1: should be"),
        ("oops", {}, "line 1: should be .*JSON"),
        ("[" * 99999, {}, "line 1: should be"),
        ('{"prompt": "a", "completion": "b"}', {}, "has 1 document"),
        ("\n\n", {}, "has 0 document"),
    ],
)
def test_records_of_another_form_are_named(data_dir, text, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(text, "bad.jsonl", **settings)
    assert not list((data_dir / "data").glob("**/*.npy"))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("(?s).*", "train split: no targets"),
        ("zebra", "mask=zebra: matches nothing in the training split"),
        ("a{9999999999}", "not a regular expression"),
        ("(" * 9999 + ")" * 9999, "not a regular expression"),
    ],
)
def test_masks_of_no_use_are_refused(data_dir, mask, message) -> None:
    with pytest.raises(UserError, match=message):
        prepare(PLAY, mask=mask)


@pytest.mark.parametrize(
    "name",
    ["train.npy", "val.npy", "val_unmasked.npy", "tokenizer.json", "meta.json", "checksums.json"],
)
@pytest.mark.parametrize("damage", [None, 0, 20, -1])
def test_what_is_not_what_was_prepared_is_told_and_prepared_again(
    data_dir, capsys, name, damage
) -> None:
    """A file is missing, empty, cut off, or has a wrong bit; nothing is learned from it."""
    prepare(PLAY, mask="CAT:")
    path = next((data_dir / "data").glob(f"**/{name}"))
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    if damage is None:
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        if damage >= 0:
            del content[damage:]
        else:
            content[damage] ^= 1
        path.write_bytes(content)
    assert not capsys.readouterr().err
    prepare(PLAY, mask="CAT:")
    told = capsys.readouterr().err
    assert "damaged" in told
    assert told.endswith("; preparing it again\n")
    assert told.count("\n") == 1
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert after.keys() == before.keys()
    # which has their times
    assert all(after[name] == before[name] for name in before if name != "checksums.json")
    (folder,) = path.parent.parent.iterdir()
    assert folder == path.parent


def test_a_mask_that_takes_forever_is_stopped(data_dir, monkeypatch) -> None:
    monkeypatch.setattr("data.documents.MASK_TIMEOUT", 0.2)
    began = time.process_time()
    with pytest.raises(
        UserError, match=r"took longer than 0.2 s; nested repeats such as \(a\+\)\+ take forever"
    ):
        prepare("a" * 5000 + "b", mask="(a+)+c")
    assert time.process_time() - began < 5


def test_a_match_of_nothing_cuts_nothing(data_dir) -> None:
    whole = prepare(PLAY, tokenizer="bpe", vocab_size=300)
    masked = prepare(PLAY, mask="(DOG:)*", tokenizer="bpe", vocab_size=300)
    tokens = len(whole.train.tokens)
    assert len(masked.train.tokens) == pytest.approx(tokens, rel=0.1)


def test_line_ends_of_another_system_separate_documents_too(data_dir) -> None:
    crlf = PLAY.replace("\n", "\r\n")
    for documents in ("lines", "paragraphs"):
        count = prepare(PLAY, documents=documents).info.train.documents
        Path("crlf.txt").write_bytes(crlf.encode())
        assert (
            prepare_corpus(DataConfig(corpus="crlf.txt", documents=documents)).info.train.documents
            == count
        )
    crlf_masked = prepare_corpus(DataConfig(corpus="crlf.txt", mask="^CAT:$"))
    masked = prepare(PLAY, mask="^CAT:$")
    assert target_text(crlf_masked, crlf_masked.train) == target_text(masked, masked.train)


def test_the_corpora_made_from_the_plays() -> None:
    words = corpora.list_words(PLAY).split("\n")
    assert sorted(words) == ["cat", "dog", "is", "lord", "my", "owl", "times"] != words
    first = json.loads(corpora.list_dialogue(PLAY).split("\n")[0])
    assert first == {
        "prompt": "CAT:\nMy lord, 0 times 0 is 0.\n\nDOG:\n",
        "completion": "My lord, 1 times 1 is 1.",
    }
