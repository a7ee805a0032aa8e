"""A tuning split: the end of the training text takes the place of validation text, unread."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.schema import DataConfig
from data.corpora import NAMED
from data.documents import read_documents, split_documents
from data.info import read_info
from data.markov import MarkovSource
from data.prepare import Corpus, choose_folder, join_segments, prepare_corpus
from engine.run import open_run
from large.prepare import prepare_large
from page.content import content_of_runs
from report.many import find_baselines, make_picture
from tests.conftest import TINY, call, make_text, read_metrics, training_in, without_clocks

TEXT = make_text()
VAL = int(len(TEXT) * 0.9)  # where validation text begins, and tuning text
TUNING = int(VAL * 0.9)
ONLY_IN_VAL = "ß"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train on a text with either split, and with another validation text that is longer."""
    folder = tmp_path_factory.mktemp("tuning")
    with training_in(folder):
        other = TEXT[:VAL] + TEXT[VAL:][::-1].replace("a", ONLY_IN_VAL)
        Path("other.txt").write_text(other, encoding="utf-8")
        train("text.txt", "val", "--split=val")
        train("text.txt", "tuning", "--split=tuning")
        train("other.txt", "other", "--split=tuning")
        yield folder


def train(corpus: str, name: str, *options: str) -> str:
    out_dir = f"--out_dir=out/{name}"
    return call("train.py", f"--corpus={corpus}", out_dir, *TINY, *options).stdout


def evaluate(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("evaluate.py", *arguments, "--json").stdout)
    return found


def refusal(script: str, *arguments: str) -> str:
    done = call(script, *arguments, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_the_tuning_text_is_the_last_tenth_of_the_training_text(data_dir: Path) -> None:
    whole = prepare_corpus(DataConfig(corpus="text.txt"))
    corpus = prepare_corpus(DataConfig(corpus="text.txt", split="tuning"))
    assert corpus.tokenizer.decode(corpus.train.tokens) == TEXT[:TUNING]
    assert corpus.tokenizer.decode(corpus.val.tokens) == TEXT[TUNING:VAL]
    assert (whole.info.split, corpus.info.split) == ("val", "tuning")
    assert corpus.info.sha256 == whole.info.sha256
    assert len(list(Path("data").glob("text.txt-char-*"))) == 2


@pytest.mark.parametrize("kind", ["lines", "paragraphs", "records"])
@pytest.mark.parametrize("mask", ["", "^the"])
def test_documents_stay_whole(kind: str, mask: str) -> None:
    lines = TEXT.splitlines()[:100]
    cfg = DataConfig(corpus="text.txt", documents="none", mask=mask, split="tuning")
    if kind == "records":
        cfg = cfg.model_copy(update={"corpus": "text.jsonl"})
        lines = [json.dumps({"prompt": "> ", "completion": line}) for line in lines]
    else:
        cfg = cfg.model_copy(update={"documents": kind})
    between = "\n\n" if kind == "paragraphs" else "\n"
    text = between.join(lines)
    documents = read_documents(text, cfg)
    assert len(documents) == 100
    assert split_documents(text, cfg) == {"train": documents[:81], "val": documents[81:90]}


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_documents_are_refused(number: int, data_dir: Path) -> None:
    """Each of the three texts needs one."""
    Path("few.txt").write_text("a line\n" * number, encoding="utf-8")
    line = refusal("data/prepare.py", "--corpus=few.txt", "--documents=lines", "--split=tuning")
    assert line.endswith("document(s); one is needed for each split")
    Path("few.txt").write_text("a line\n" * 3, encoding="utf-8")
    corpus = prepare_corpus(DataConfig(corpus="few.txt", documents="lines", split="tuning"))
    assert (corpus.info.train.documents, corpus.info.val.documents) == (1, 1)


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("documents", ["none", "lines"])
def test_the_corpus_is_as_if_the_text_ended_where_validation_begins(
    tokenizer: str, documents: str, data_dir: Path
) -> None:
    """Tokens, merges and baselines do not depend on validation text; --mask is no exception."""
    lines = TEXT.splitlines(keepends=True)
    beginning = "".join(lines[:360])
    found: list[Corpus] = []
    for end in ("".join(lines[360:]), "ß\n" * 40):
        Path("one.txt").write_text(beginning + end, encoding="utf-8")
        cfg = DataConfig(
            corpus="one.txt",
            tokenizer=tokenizer,
            vocab_size=300 if tokenizer == "bpe" else 1024,
            documents=documents,
            mask="^the",
            val_fraction=len(end) / len(beginning + end) if documents == "none" else 0.1,
            split="tuning",
        )
        found.append(prepare_corpus(cfg))
    one, other = found
    assert one.tokenizer == other.tokenizer
    assert one.info.baselines == other.info.baselines
    for own, its in ((one.train, other.train), (one.val, other.val)):
        assert own.tokens.tolist() == its.tokens.tolist()
        assert own.unmasked is not None
        assert np.array_equal(own.unmasked, np.asarray(its.unmasked))


def test_another_validation_text_changes_nothing_in_a_training(runs: Path) -> None:
    """The same metrics, bit for bit; a character of validation text is in no vocabulary."""
    assert without_clocks(Path("out/tuning")) == without_clocks(Path("out/other"))
    assert without_clocks(Path("out/tuning")) != without_clocks(Path("out/val"))
    assert ONLY_IN_VAL not in open_run(Path("out/other")).tokenizer.characters
    for name in ("samples.jsonl", "passage.jsonl", "verdict.txt", "evaluation.json"):
        files = [Path("out", run, name).read_bytes() for run in ("tuning", "other")]
        assert files[0] == files[1], name


def test_the_losses_of_evaluate_are_those_of_each_split(runs: Path) -> None:
    (final,) = [line for line in read_metrics(Path("out/tuning")) if "best_val_nll" in line]
    own = evaluate("out/tuning")
    assert own["text"] == "the tuning split of text.txt"
    assert own["loss"]["nats_per_token"]["value"] == pytest.approx(final["best_val_nll"])
    assert own == evaluate("out/tuning", "--split=tuning")
    assert own["baselines"]
    parts = {"tuning": TEXT[TUNING:VAL], "val": TEXT[VAL:], "train": TEXT[:TUNING]}
    for split, part in parts.items():
        Path("part.txt").write_text(part, encoding="utf-8")
        found = evaluate("out/tuning", f"--split={split}")
        assert found["loss"] == evaluate("out/tuning", "--text=part.txt")["loss"]
        assert found["text"] == f"the {split} split of text.txt"
        assert bool(found["baselines"]) == (split == "tuning")  # which were measured on it
    assert evaluate("out/val")["text"] == "the val split of text.txt"


def test_a_run_has_learned_from_the_tuning_text_of_others(runs: Path) -> None:
    says = refusal("evaluate.py", "out/val", "--split=tuning")
    assert "\n" not in says
    assert "was trained with split=val, so it learned from that text" in says
    assert "--split=train" in says

    def may_have_seen(first: str, second: str, *options: str) -> bool:
        against = evaluate(f"out/{first}", f"--against=out/{second}", *options)["against"]
        return bool(against["may_have_seen_it"])

    assert may_have_seen("tuning", "val")
    assert not may_have_seen("tuning", "val", "--split=val")
    assert not may_have_seen("val", "tuning")


def test_unknown_characters_of_validation_text_are_told_or_replaced(runs: Path) -> None:
    says = refusal("evaluate.py", "out/other", "--split=val")
    assert f"'{ONLY_IN_VAL}'" in says
    assert "unknown=replace" in says
    found = evaluate("out/other", "--split=val", "--unknown=replace")
    assert f"{ONLY_IN_VAL} became ss" in found["unknown"]["says"]


def test_a_run_is_not_resumed_with_another_split(runs: Path) -> None:
    for name, now in (("val", "tuning"), ("tuning", "val")):
        command = [f"--out_dir=out/{name}", "--init_from=resume", f"--split={now}"]
        says = refusal("train.py", "--corpus=text.txt", *command, "--max_iters=8")
        assert "\n" not in says
        assert f"split was {name} and is now {now}: that would be another model or text" in says


def test_a_run_says_on_which_text_its_losses_are(runs: Path) -> None:
    printed = train("text.txt", "said", "--split=tuning")
    assert "validation" not in printed
    assert "tuning tokens (char" in printed
    assert "tuning: " in printed
    assert " tuning perplexity" in printed
    assert " val nll" not in printed
    assert "tuning targets:" in Path("out/said/verdict.txt").read_text(encoding="utf-8")
    printed = train("text.txt", "said", "--split=val")
    assert "tuning" not in printed.replace(runs.as_posix(), "")  # in the page's address
    said = call("evaluate.py", "out/tuning").stdout
    assert "on the tuning split of text.txt" in said
    assert "validation" not in said


def test_a_model_that_learned_from_the_tuning_text_gets_a_warning(runs: Path) -> None:
    """One that starts a run, or its teacher; one from the same split gets none."""
    for option in ("--init_from", "--teacher"):
        for name, expected in (("val", 1), ("tuning", 0)):
            command = ["--corpus=text.txt", f"{option}=out/{name}", "--out_dir=out/warned"]
            tiny = [*TINY, "--max_iters=1", "--split=tuning"]
            printed = call("train.py", *command, *tiny).stdout
            warning = f"warning: out/{name} was trained with split=val, so it learned from"
            assert printed.count(warning) == expected
    assert "warning: out" not in train("text.txt", "warned", "--teacher=out/tuning")


def test_curves_tell_the_two_texts_apart(runs: Path) -> None:
    both = [open_run(Path("out/val")), open_run(Path("out/tuning"))]
    labels = [curve.label for curve in make_picture(both).curves]
    assert ["tuning text" in label for label in labels] == [False, True]
    names = [name for name, _ in find_baselines(both, "nats")]
    assert {"unigram (validation)", "unigram (tuning)"} <= {*names}


def test_a_page_tells_the_two_texts_apart(runs: Path) -> None:
    val = open_run(Path("out/val"))
    tuning = open_run(Path("out/tuning"))
    assert content_of_runs([val])["val_kind"] == "validation"
    assert content_of_runs([tuning])["val_kind"] == "tuning"
    content = content_of_runs([val, tuning])
    assert content["val_kind"] == "validation or tuning"
    assert [run["val_kind"] for run in content["runs"]] == ["validation", "tuning"]
    assert [run["corpus"] for run in content["runs"]] == ["text.txt", "text.txt, tuning text"]
    assert content["pairs"] == []  # their targets are others


def test_runs_and_prepared_corpora_of_before_are_what_they_were(runs: Path, monkeypatch) -> None:
    """Their files do not have the option: their folders keep their names, and they open."""
    monkeypatch.setattr("data.prepare.FORMAT", 11)
    _, sha256 = NAMED["tinyshakespeare"]
    folder = choose_folder(DataConfig(corpus="tinyshakespeare"), sha256, None)
    assert folder.name == "tinyshakespeare-char-7de3d558"
    shutil.copytree("out/val", "old", dirs_exist_ok=True)
    corpus = json.loads(Path("old/corpus.json").read_text(encoding="utf-8"))
    del corpus["split"]
    Path("old/corpus.json").write_text(json.dumps(corpus), encoding="utf-8")
    config = Path("old/config.toml").read_text(encoding="utf-8")
    assert 'split = "val"\n' in config
    Path("old/config.toml").write_text(config.replace('split = "val"\n', ""), encoding="utf-8")
    assert read_info(Path("old/corpus.json")).val_kind == "validation"
    assert evaluate("old")["loss"] == evaluate("out/val")["loss"]
    call("train.py", "old", "--init_from=resume", "--max_iters=8")


def test_the_gap_to_a_known_source_is_of_the_tuning_text(data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.corpora.LENGTH", 6000)
    _, nll = MarkovSource(1, 5, 0.5).sample(6000)
    corpus = prepare_corpus(DataConfig(corpus="markov-1-5-0.5", split="tuning"))
    assert corpus.source_nll is not None
    assert corpus.source_nll.tolist() == nll[4861:5400].tolist()
    assert corpus.info.source_nll == pytest.approx(nll[4861:5400].mean())
    monkeypatch.setattr("train.draw_run", lambda run, path: path.touch())
    train("markov-1-5-0.5", "markov", "--split=tuning", "--eval_tokens=0")
    on_tuning = evaluate("out/markov")
    on_val = evaluate("out/markov", "--split=val")
    for found, source in ((on_tuning, nll[4861:5400]), (on_val, nll[5401:])):
        loss = found["loss"]["nats_per_token"]["value"]
        assert found["kl_gap"] == pytest.approx(loss - source.mean(), abs=1e-4)
    assert evaluate("out/markov", "--split=train")["kl_gap"] is None


DOCUMENTS = [f"{line} {number}" for number, line in enumerate(TEXT.splitlines()[:100])]


def texts_of(corpus: Corpus, split: str) -> list[str]:
    tokens = getattr(corpus, split).tokens[:]
    text = corpus.tokenizer.decode(tokens.tolist())
    assert corpus.tokenizer.eos_text == "\n"
    return text.strip("\n").split("\n")


def test_a_large_corpus_has_a_tuning_split(data_dir: Path, monkeypatch) -> None:
    """Each tenth document is validation, as ever, and each tenth of the others is for tuning."""
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    Path("large.jsonl").write_text("\n".join(lines), encoding="utf-8")
    cfg = DataConfig(corpus="large.jsonl", split="tuning")
    message = refusal("train.py", "--corpus=large.jsonl", "--split=tuning")
    assert "python large/prepare.py --corpus=large.jsonl --split=tuning" in message
    corpus = prepare_large(cfg)
    assert corpus.info.split == "tuning"
    others = [text for number, text in enumerate(DOCUMENTS) if number % 10 < 9]
    assert texts_of(corpus, "val") == others[9::10]
    assert texts_of(corpus, "train") == [
        text for number, text in enumerate(others) if number % 10 < 9
    ]
    monkeypatch.setattr("train.draw_run", lambda run, path: path.touch())
    train("large.jsonl", "large", "--split=tuning")
    message = refusal("evaluate.py", "out/large", "--split=val")
    command = message.partition("prepare it: python ")[2].split()
    call(*command)
    found = evaluate("out/large", "--split=val")
    assert found["bytes"] == sum(len(text.encode()) + 1 for text in DOCUMENTS[9::10])


def test_files_that_are_documents_have_one_for_tuning(data_dir: Path) -> None:
    for number in range(4):
        Path("texts").mkdir(exist_ok=True)
        Path(f"texts/{number}.txt").write_text(DOCUMENTS[number], encoding="utf-8")
    corpus = prepare_large(DataConfig(corpus="texts", split="tuning"))
    assert texts_of(corpus, "train") == DOCUMENTS[:2]
    assert texts_of(corpus, "val") == DOCUMENTS[2:3]
    Path("texts/3.txt").rename("texts/val.txt")
    corpus = prepare_large(DataConfig(corpus="texts", split="tuning"))
    assert texts_of(corpus, "val") == DOCUMENTS[2:3]


def test_dialogue_has_a_tuning_split(data_dir: Path, monkeypatch) -> None:
    """Its prompts are masked, and the one that samples continue is of the tuning text."""
    plays = "\n\n".join(f"CAT {number}:\n{text}" for number, text in enumerate(DOCUMENTS))
    monkeypatch.setattr("data.corpora.read_corpus", read_dialogue(plays))
    corpus = prepare_corpus(DataConfig(corpus="dialogue", split="tuning"))
    assert (corpus.info.train.documents, corpus.info.val.documents) == (80, 9)
    assert corpus.val.unmasked is not None
    assert corpus.info.prompt.endswith("CAT 81:\n")
    documents = split_documents(read_dialogue(plays)("dialogue"), DataConfig(corpus="dialogue"))
    assert join_segments(documents["val"][0]).startswith("CAT 89:")


def read_dialogue(plays: str) -> Any:
    from data.corpora import list_dialogue

    return lambda corpus: list_dialogue(plays)
