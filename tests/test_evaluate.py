"""evaluate.py finds the loss that training logged, on any text, and compares runs."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
from config.errors import UserError
from data.batches import IGNORE_INDEX
from data.eval_text import EvalText
from data.ngrams import ngram_nll
from engine.checkpoint import load_model
from engine.device import Device
from engine.mixture import mix_causally
from engine.run import open_run
from engine.run_text import open_corpus
from evaluate import EvaluateOptions
from tests.conftest import (
    TINY,
    call,
    make_text,
    only_numbers,
    other_dtype,
    read_metrics,
    trained_dtype,
    training_in,
)

CPU = Device(torch.device("cpu"), torch.float32)


def write_records(path: Path, number: int, mark: str = "") -> None:
    """Write prompts, each after the mark, and completions."""
    lines = []
    for n in range(number):
        record = {"prompt": f"{mark}{n} and 1 ", "completion": f"make {n + 1}"}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make tiny runs in the current directory, each named after what is special in it."""
    directory = tmp_path_factory.mktemp("evaluate")
    with training_in(directory) as patch:
        only_numbers(patch)
        patch.setattr("data.corpora.LENGTH", 3000)  # of the markov corpus
        Path("paragraphs.txt").write_text(make_text().replace("\n", "\n\n"), encoding="utf-8")
        write_records(Path("records.jsonl"), 200)
        Path("other.txt").write_text(make_text(300) + "a", encoding="utf-8")
        for out, *arguments in (
            ["whole", "--eval_tokens=0"],
            ["short", "--max_iters=2"],
            ["wide", "--block_size=16"],
            ["tables", "--seed=2", "--max_ngram=3", "--table_rows=50"],
            ["gpt2", "--seed=3", "--form=gpt2", "--dtype=float32"],
            ["bpe", "--tokenizer=bpe", "--vocab_size=300", "--eval_tokens=0"],
            ["other", "--corpus=other.txt"],
            ["masked", "--mask=[aeiou]", "--eval_tokens=0"],
            ["padded", "--documents=lines", "--padded", "--eval_tokens=0"],
            ["speeches", "--corpus=paragraphs.txt", "--documents=paragraphs", "--max_iters=1"],
            [
                "bpe_lines",
                "--documents=lines",
                "--tokenizer=bpe",
                "--vocab_size=300",
                "--eval_tokens=0",
            ],
            ["records", "--corpus=records.jsonl", "--predict_eos=false", "--eval_tokens=0"],
            ["markov", "--corpus=markov-2-3-0.5", "--eval_tokens=0"],
        ):
            call("train.py", "--corpus=text.txt", f"--out_dir=out/{out}", *TINY, *arguments)
        yield directory


def found(*argv: str) -> dict[str, Any]:
    """Read what `evaluate.py ... --json` prints."""
    return json.loads(call("evaluate.py", *argv, "--json").stdout, parse_constant=pytest.fail)


def said(*argv: str) -> str:
    return call("evaluate.py", *argv).stdout


def metrics(run: str) -> list[dict[str, Any]]:
    return read_metrics(Path(run))


STRANGE = "“the cat\u2019s” sät 1 Ω on\u00a0a mat;\n" * 20
PLAIN = "the cats sat   on a mat;\n" * 20


@pytest.mark.parametrize("run", ["out/whole", "out/padded"])
def test_unknown_characters_are_replaced_and_their_cost_is_said(runs, run: str) -> None:
    Path("strange.txt").write_text(STRANGE, encoding="utf-8")
    Path("plain.txt").write_text(PLAIN, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"strange.txt: the character '“'.*others after it; .*--unknown=replace"
    ):
        evaluate.main([run, "--text=strange.txt"])
    strange = found(run, "--text=strange.txt", "--unknown=replace")
    plain = found(run, "--text=plain.txt", "--unknown=replace")
    assert strange["loss"] == plain["loss"]
    assert plain["unknown"] is None
    unknown = strange["unknown"]
    assert unknown["says"].startswith("140 characters are not in the vocabulary of ")
    before = len(STRANGE.encode())
    after = len(PLAIN.encode())
    if run == "out/whole":
        total = plain["loss"]["bits_per_byte"]["value"] * (after - 1) + unknown["bits"]
        assert unknown["bits_per_byte"] == pytest.approx(total / (before - 1))
    assert f"takes {unknown['bits']:,} bits more" in said(
        run, "--text=strange.txt", "--unknown=replace"
    )
    assert "unknown" not in found(run)


def test_unknown_characters_of_prompts_are_told_and_cost_nothing(runs) -> None:
    """A prompt without them is another context, so the reader of a loss should know."""
    write_records(Path("strange.jsonl"), 20, mark="Ω")
    command = ["out/records", "--text=strange.jsonl", "--unknown=replace"]
    assert found(*command)["unknown"] is None
    printed = said(*command)
    assert (
        "In masked text, whose characters cost nothing: 20 characters are not in the vocabulary of "
        in printed
    )
    assert "Ω was left out (20)." in printed


def test_unknown_characters_beside_another_run(runs) -> None:
    """Both runs read the same text, also one whose tokens could spell all of it."""
    Path("strange.txt").write_text(STRANGE, encoding="utf-8")
    result = found("out/bpe", "--text=strange.txt", "--unknown=replace", "--against=out/whole")
    # the first tokens differ
    assert result["bytes"] == pytest.approx(result["against"]["bytes"], abs=4)
    assert found("out/bpe", "--text=strange.txt", "--unknown=replace")["bytes"] > result["bytes"]


def test_a_sentence_and_a_prompt_with_unknown_characters(runs) -> None:
    shown = said("out/whole", "--explain=“the cät” 1", "--unknown=replace")
    assert "for 8 tokens" in shown
    assert "4 characters are not in the vocabulary" in shown
    with pytest.raises(UserError, match="nothing is left of the sentence"):
        evaluate.main(["out/whole", "--explain=1", "--unknown=replace"])
    plain = call("sample.py", "out/whole", "--prompt=the cat", "--max_new_tokens=9").stdout
    prompt = "--prompt=thè “cät”"
    assert (
        call("sample.py", "out/whole", prompt, "--max_new_tokens=9", "--unknown=replace").stdout
        == plain
    )


@pytest.mark.parametrize(
    "run", ["out/whole", "out/bpe", "out/masked", "out/padded", "out/bpe_lines", "out/records"]
)
def test_the_loss_is_the_one_that_training_logged(runs, run) -> None:
    best = metrics(run)[-1]
    result = found(run)
    assert result["loss"]["nats_per_token"]["value"] == pytest.approx(
        best["best_val_nll"], rel=1e-6
    )
    assert result["loss"]["bits_per_byte"]["value"] == pytest.approx(
        best["best_val_bits_per_byte"], rel=1e-6
    )
    assert result["loss"]["perplexity"]["value"] == pytest.approx(
        best["best_val_perplexity"], rel=1e-6
    )
    assert result["loss"]["top1"]["value"] == pytest.approx(best["best_val_accuracy"])


def test_masked_tokens_are_left_out(runs) -> None:
    """Masked characters are no targets; lines have the same bytes with either tokenizer."""
    val = make_text()[int(len(make_text()) * 0.9) :]
    masked = found("out/masked")
    assert masked["targets"] == sum(character not in "aeiou" for character in val[1:])
    assert "lower-case letter" in [each["name"] for each in masked["groups"]["kind of character"]]
    ends = [
        each for each in found("out/padded")["groups"]["kind of character"] if each["name"] == "eos"
    ]
    assert ends[0]["tokens"] == open_run(Path("out/padded")).info.val.documents
    assert found("out/padded")["bytes"] == found("out/bpe_lines")["bytes"]
    completions = "".join(f"make {n + 1}" for n in range(180, 200))
    assert found("out/records")["bytes"] == len(completions)


def test_both_runs_read_the_same_documents(runs) -> None:
    against = found("out/padded", "--against=out/bpe_lines")["against"]
    assert against["loss"] == found("out/bpe_lines")["loss"]
    assert list(against["difference"]) == ["bits_per_byte"]
    ours = found("out/masked", "--against=out/whole")
    assert ours["against"]["targets"] == ours["targets"]


def test_a_padded_run_gains_nothing_beyond_its_documents(runs) -> None:
    """With any stride, no document sees the one before it, and each token is a target once."""
    split = open_corpus(open_run(Path("out/padded"))).val
    eos = int(split.tokens[0])
    for stride in (0, 1, 5):
        targets = []
        for batch in EvalText(split, 8, eos, stride).batches():
            is_target = batch.targets != IGNORE_INDEX
            begins_inside = batch.inputs == eos
            begins_inside[:, 0] = False
            assert not (begins_inside & is_target).any()
            targets += batch.targets[is_target].tolist()
        assert targets == split.tokens[1:].tolist()


def test_where_the_entropy_is_known_so_is_the_gap(runs) -> None:
    gap = metrics("out/markov")[-1]["best_kl_gap"]
    assert found("out/markov")["kl_gap"] == pytest.approx(gap, abs=1e-6)
    assert f"KL(source || model) is {gap:.4f}" in said("out/markov")
    assert found("out/markov", "--split=train")["kl_gap"] is None
    assert found("out/whole")["kl_gap"] is None


def test_a_limit_evaluates_a_part_that_is_spread_evenly_and_says_so(runs) -> None:
    whole = found("out/whole")
    part = found("out/whole", "--max_tokens=300")
    assert 280 <= part["targets"] <= 320 < whole["targets"]
    assert part["of_targets"] == whole["of_targets"] == whole["targets"]
    note = f"{part['targets']:,} targets of {whole['targets']:,}, spread evenly"
    assert note in said("out/whole", "--max_tokens=300")
    assert part["baselines"] == []
    best = min(record["val_nll"] for record in metrics("out/short") if "val_nll" in record)
    # the windows that training evaluates with eval_tokens=300
    nats = found("out/short", "--max_tokens=300")["loss"]["nats_per_token"]["value"]
    assert nats == pytest.approx(best, rel=1e-6)
    assert found("out/whole", "--max_tokens=0")["loss"] == whole["loss"]


def test_targets_are_counted_where_most_windows_have_none(runs) -> None:
    """Training and evaluate.py find their targets behind prompts of 30 blocks."""
    with Path("prompts.jsonl").open("w", encoding="utf-8") as file:
        for n in range(100):
            prompt = f"{n:03} times 10 " * 20
            file.write(json.dumps({"prompt": prompt, "completion": f"{n:03}0"}) + "\n")
    train = ["train.py", "--corpus=prompts.jsonl", "--padded", "--out_dir=out/prompts", *TINY]
    printed = call(*train, "--eval_tokens=20").stdout
    assert "validation: 20 of the 50 targets, spread evenly" in printed
    assert "No loss was finite" not in printed
    evaluated = [record["step"] for record in metrics("out/prompts") if "val_nll" in record]
    assert evaluated == [0, 1, 2, 4, 6]  # what is not finite is left out there
    # a completion, or its end too
    assert found("out/prompts", "--max_tokens=1")["targets"] in (4, 5)
    assert found("out/prompts", "--max_tokens=32")["targets"] == pytest.approx(32, abs=2)
    assert found("out/prompts")["targets"] == 50


def test_a_sentence_shows_what_each_of_its_tokens_costs(runs) -> None:
    sentence = "the cat sat on a mat; " * 3  # longer than a block
    printed = said("out/whole", f"--explain={sentence}", "--dtype=float32")
    run = open_run(Path("out/whole"))
    tokens = run.tokenizer.encode_prompt("") + run.tokenizer.encode_prompt(sentence)
    model, _ = load_model(run, "best", CPU)
    costs = []
    for i in range(1, len(tokens)):
        start = (i - 1) // 8 * 8
        window = torch.tensor([tokens[start:i]])
        logits = model(window)[0, -1].detach()
        costs.append(-float(logits.log_softmax(-1)[tokens[i]]))
    title, cells = printed.split("\n\n")[1].split("\n", 1)
    words = cells.split()
    assert title == "nats of each token:"
    assert "".join(words[::2]) == "⏎" + sentence.replace(" ", "␣")
    assert words[1] == "given"
    shown = [float(cost) for cost in words[3::2]]
    assert shown == pytest.approx(costs, abs=6e-4)
    nats = sum(costs)
    bits = nats / math.log(2)
    mean = f"{len(costs)} tokens: {np.mean(costs):.4f} nats per token"
    assert f"{nats:.2f} nats, {bits:.2f} bits, for {mean}" in printed
    assert "\x1b" not in printed


def test_what_resamples_say_depends_on_the_documents(runs) -> None:
    """The lines of out/padded are a random sample; the text of out/whole is one document."""
    documents = said("out/padded", "--against=out/bpe_lines")
    assert "95% interval\n" in documents
    assert "The intervals are for other documents of the same source" in documents
    assert "This is about such documents, not about other seeds." in documents
    assert found("out/padded")["blocks"] == {"of_documents": True, "number": 40}
    parts = said("out/whole", "--against=out/short")
    assert "interval" not in parts
    assert "range of 95% of the resamples\n" in parts
    assert "They say nothing about another text, which can differ as a whole." in parts
    assert "Another text or another seed may differ." in parts
    assert not found("out/whole")["blocks"]["of_documents"]


@pytest.mark.parametrize("chunk", [1, 50, 2**24])
@pytest.mark.parametrize("name", ["out/bpe", "out/bpe_lines"])
def test_columns_know_where_tokens_and_documents_are(runs, name, chunk, monkeypatch) -> None:
    monkeypatch.setattr("report.intervals.CHUNK", chunk)
    run = open_run(Path(name))
    val = open_corpus(run).val
    of_each = evaluate.score_run(run, val, EvaluateOptions()).columns
    text = run.tokenizer.decode_bytes(val.tokens)
    for number, token in enumerate(val.tokens[1:]):
        offset = of_each["offset"][number]
        token_bytes = run.tokenizer.token_bytes[token]
        assert of_each["bytes"][number] == len(token_bytes)
        assert text[offset : offset + len(token_bytes)] == token_bytes
        begins = 0
        if name == "out/bpe_lines":
            begins = text[:offset].rfind(b"\n") + 1
        assert of_each["document"][number] == begins


@pytest.mark.parametrize("argv", [["out/whole"], ["out/bpe", "--stride=3"]])
def test_a_table_has_a_confidence_only_where_groups_do_not_depend_on_what_came(runs, argv) -> None:
    tables = {}
    for part in said(*argv).split("\n\n"):
        first = part.splitlines()[0]
        if "of tokens" in first:
            kind = re.split(r"\s{2,}", first.strip())[0]
            tables[kind] = "confidence" in first.split("top-1")[1]
            assert len({len(line) for line in part.splitlines()}) == 1
    for kind, has_confidence in tables.items():
        assert has_confidence == (kind not in ("kind of character", "times in training"))
    assert len(tables) >= 3


def test_the_dtype_is_that_of_training_or_of_the_option(runs) -> None:
    assert found("out/whole")["device"].endswith(trained_dtype())  # as in training
    losses = [
        found("out/whole", f"--dtype={trained_dtype()}")["loss"]["nats_per_token"]["value"],
        found("out/whole", f"--dtype={other_dtype()}")["loss"]["nats_per_token"]["value"],
    ]
    assert losses[0] == found("out/whole")["loss"]["nats_per_token"]["value"]
    assert 0 < abs(losses[0] - losses[1]) < 0.01
    both = found("out/whole", "--against=out/short", "--dtype=bfloat16")
    assert both["device"].endswith("bfloat16")
    assert both["against"]["device"].endswith("bfloat16")


@pytest.mark.parametrize(
    ("run", "kinds"),
    [
        ("out/whole", ["confidence", "context length", "kind of character", "times in training"]),
        ("out/bpe", ["confidence", "context length", "times in training"]),
    ],
)
def test_the_groups_add_up_to_the_whole(runs, run, kinds) -> None:
    result = found(run, "--stride=3")
    assert list(result["groups"]) == kinds
    for groups in result["groups"].values():
        assert len(groups) > 1 or groups == result["groups"]["confidence"]
        assert sum(each["tokens"] for each in groups) == result["targets"]
        for share in ("share", "share_of_nats"):
            assert sum(each[share] for each in groups) == pytest.approx(1)
        for key, whole in (("nats_per_token", "nats_per_token"), ("top1", "top1")):
            mean = sum(each["share"] * each[key] for each in groups)
            assert mean == pytest.approx(result["loss"][whole]["value"])
    text = make_text()
    val = text[int(len(text) * 0.9) :][1:]
    if run == "out/whole":
        lines = next(
            each for each in result["groups"]["kind of character"] if each["name"] == "new line"
        )
        assert lines["tokens"] == val.count("\n")


def test_a_stride_gives_context_and_is_worth_something_said(runs) -> None:
    near = found("out/wide", "--stride=16")
    far = found("out/wide", "--stride=1")
    assert near["loss"] == found("out/wide")["loss"]
    assert far["targets"] == near["targets"]
    assert near["groups"]["context length"][-1]["share"] < 0.95
    assert far["groups"]["context length"][-1]["share"] > 0.95
    assert "in a window of 8 that moves on by 2 tokens" in said("out/whole", "--stride=2")


def test_a_copy_of_a_split_has_its_loss(runs) -> None:
    text = make_text()
    for split, part in (
        ("val", text[int(len(text) * 0.9) :]),
        ("train", text[: int(len(text) * 0.9)]),
    ):
        Path("copy.txt").write_text(part, encoding="utf-8")
        for run in ("out/whole", "out/bpe"):
            of_split = found(run, f"--split={split}")
            of_text = found(run, "--text=copy.txt")
            assert of_text["loss"] == of_split["loss"]
            for kind, groups in of_text["groups"].items():
                assert groups == of_split["groups"][kind]
            assert of_text["baselines"] == []
    baselines = {each["name"]: each for each in found("out/whole")["baselines"]}
    for name, facts in {"6-gram": (True, False), "gzip": (False, True)}.items():
        assert (baselines[name]["has_read"], baselines[name]["learns"]) == facts
    assert baselines["trained PPMd"]["has_read"]
    assert baselines["trained PPMd"]["learns"]


def test_against_another_run(runs) -> None:
    ours = found("out/whole", "--against=out/short")
    theirs = found("out/short")
    against = ours["against"]
    assert against["loss"] == theirs["loss"]
    assert against["difference"]["nats_per_token"]["value"] == pytest.approx(
        ours["loss"]["nats_per_token"]["value"] - theirs["loss"]["nats_per_token"]["value"]
    )
    bits = against["difference"]["bits_per_byte"]
    back = found("out/short", "--against=out/whole")["against"]["difference"]["bits_per_byte"]
    assert (back["value"], back["low"], back["high"]) == pytest.approx(
        (-bits["value"], -bits["high"], -bits["low"])
    )
    words = said("out/whole", "--against=out/short")
    assert f"difference {bits['value']:+.4f} ({bits['low']:+.4f} to {bits['high']:+.4f})\n" in words
    assert "The difference is more than noise" in words
    itself = found("out/whole", "--against=out/whole")["against"]["difference"]
    assert itself["nats_per_token"] == itself["bits_per_byte"] == {"value": 0, "low": 0, "high": 0}
    assert "The difference may be noise" in said("out/whole", "--against=out/whole")
    # another context length
    assert found("out/whole", "--against=out/wide")["against"]["block_size"] == 16


def probability_of_targets(name: str, tokens: np.ndarray) -> np.ndarray:
    """Predict each token but the first, as a run does: in windows of its own that lie side by side.

    Returns the distributions (N, V) in float64.
    """
    run = open_run(Path(name))
    model, _ = load_model(run, "best", CPU)
    size = run.cfg.model.block_size
    predicted = []
    with torch.inference_mode():
        for start in range(0, len(tokens) - 1, size):
            window = torch.from_numpy(tokens[start : start + size].astype(np.int64))
            predicted.append(model(window[None])[0].double().softmax(dim=-1))
    return torch.cat(predicted).numpy()[: len(tokens) - 1]


ENSEMBLE = ["out/whole", "out/wide", "out/tables", "out/gpt2"]


def test_an_ensemble_averages_the_probabilities_of_its_runs(runs) -> None:
    """Of other seeds, block sizes and forms, with tables or without: the targets are the same."""
    result = found(*ENSEMBLE, "--ensemble", "--dtype=float32")
    tokens = open_corpus(open_run(Path("out/whole"))).val.tokens
    each = [probability_of_targets(name, tokens) for name in ENSEMBLE]
    q = np.mean(each, axis=0)
    targets = np.arange(len(q)), tokens[1:]
    nll = -np.log(q[targets])
    nats = result["loss"]["nats_per_token"]["value"]
    assert nats == pytest.approx(nll.mean(), rel=1e-6)
    assert result["targets"] == len(q)
    top1 = (q.argmax(axis=1) == tokens[1:]).mean()
    assert result["loss"]["top1"]["value"] == pytest.approx(top1, abs=1e-3)
    confidence = q.max(axis=1).mean()
    assert result["calibration"]["confidence"] == pytest.approx(confidence, rel=1e-5)
    for name, own, member in zip(ENSEMBLE, each, result["members"], strict=True):
        loss = -np.log(own[targets]).mean()
        assert member["run"] == name
        assert member["loss"]["nats_per_token"]["value"] == pytest.approx(loss, rel=1e-6)
        assert member["gain"]["nats_per_token"]["value"] == pytest.approx(loss - nats, abs=1e-6)
        alone = found(name, "--dtype=float32")
        for unit, interval in alone["loss"].items():
            assert member["loss"][unit] == pytest.approx(interval, rel=1e-6)
    assert "baselines" in result
    assert result["block_size"] == 16
    assert result["groups"]["context length"][-1]["name"] == "9-16"


def test_an_ensemble_says_what_each_run_has(runs) -> None:
    words = said(*ENSEMBLE, "--ensemble")
    result = found(*ENSEMBLE, "--ensemble")
    mean = result["loss"]["nats_per_token"]["value"]
    start = f"The mean of the probabilities of 4 runs has a loss of {mean:.4f} nats per token on"
    assert words.startswith(start)
    assert "it beats" in words
    assert "in a window of 8 or 16;" in words
    for member in result["members"]:
        value, low, high = member["loss"]["nats_per_token"].values()
        bits = member["loss"]["bits_per_byte"]["value"]
        assert f"  {member['run']}, best checkpoint of step {member['step']}, has\n" in words
        assert f"  {value:.4f} nats per token ({low:.4f} to {high:.4f}), {bits:.4f} bits" in words
        gain = member["gain"]["nats_per_token"]["value"]
        assert f"the mean gains {gain:+.4f} nats per token" in words


def test_an_ensemble_against_another_run(runs) -> None:
    """Of a member, the difference is what the mean gains; also in other tokens."""
    result = found("out/whole", "out/wide", "--ensemble", "--against=out/wide")
    gain = result["members"][1]["gain"]["nats_per_token"]
    difference = result["against"]["difference"]["nats_per_token"]
    assert difference["value"] == pytest.approx(-gain["value"])
    assert (difference["low"], difference["high"]) == pytest.approx((-gain["high"], -gain["low"]))
    other = found("out/whole", "out/wide", "--ensemble", "--against=out/bpe")["against"]
    assert list(other["difference"]) == ["bits_per_byte"]
    assert other["loss"] == found("out/bpe")["loss"]


def test_an_ensemble_of_equal_runs_is_that_run(runs) -> None:
    alone = found("out/padded", "--stride=3")
    result = found("out/padded", "out/padded", "--ensemble", "--stride=3")
    for unit, interval in alone["loss"].items():
        assert result["loss"][unit] == pytest.approx(interval, rel=1e-6)
    assert result["blocks"] == alone["blocks"]


def test_an_ensemble_on_a_text_and_on_a_sentence(runs) -> None:
    """Runs that were trained on other texts may be averaged there, if their tokens are the same."""
    Path("mine.txt").write_text("the cat sat on a mat;\n" * 20, encoding="utf-8")
    pair = ["out/whole", "out/short", "--ensemble"]
    losses = []
    for name in pair[:2]:
        alone = found(name, "--text=mine.txt")
        losses.append(alone["loss"]["nats_per_token"]["value"])
    result = found(*pair, "--text=mine.txt")
    # by Jensen's inequality
    assert result["loss"]["nats_per_token"]["value"] < np.mean(losses)
    printed = said(*pair, "--explain=the cat")
    lines = printed.splitlines()
    assert lines[0].endswith("(the ensemble of 2 runs)")
    assert lines[1].endswith("(out/whole, step 6)")
    assert lines[2].startswith(said("out/short", "--explain=the cat").splitlines()[0])
    costs = [float(cost) for cost in re.findall(r" (\d\.\d{3})\b", printed.split("\n\n")[1])]
    assert lines[0].startswith(f"{sum(costs):.2f} nats")


def nll_of_each(name: str, tokens: np.ndarray) -> np.ndarray:
    """Measure tokens[1:] by a run, in nats."""
    q = probability_of_targets(name, tokens)
    return -np.log(q[np.arange(len(q)), tokens[1:]])


@pytest.mark.parametrize("ngram", ["unigram", "bigram", "6-gram"])
def test_a_mixture_with_an_ngram(runs, ngram) -> None:
    """The n-gram is the baseline, and the loss is that of weights that see no target before it."""
    result = found("out/whole", f"--mix={ngram}", "--dtype=float32")
    alone = found("out/whole", "--dtype=float32")
    mix = result.pop("mix")
    assert result == alone
    losses = {each["name"]: each["nats_per_token"] for each in alone["baselines"]}
    assert mix["ngram_nats_per_token"] == pytest.approx(losses[ngram])
    corpus = open_corpus(open_run(Path("out/whole")))
    nll_q = nll_of_each("out/whole", corpus.val.tokens)
    order = list(losses).index(ngram)  # the uniform distribution is before the unigram
    *_, nll_p = ngram_nll(corpus.train, corpus.val.tokens, corpus.tokenizer.vocab_size, order)
    nll, weights = mix_causally(nll_q, nll_p)
    assert mix["loss"]["nats_per_token"]["value"] == pytest.approx(nll.mean(), rel=1e-5)
    assert mix["gain"]["nats_per_token"]["value"] == pytest.approx(nll_q.mean() - nll.mean())
    assert mix["weight"] == pytest.approx(weights.mean(), abs=0.01)
    assert mix["targets"] == len(nll)
    low, high = mix["gain"]["bits_per_byte"]["low"], mix["gain"]["bits_per_byte"]["high"]
    assert low <= mix["gain"]["bits_per_byte"]["value"] <= high


def test_a_mixture_says_what_it_gains(runs) -> None:
    words = said("out/whole", "--mix=6-gram")
    mix = found("out/whole", "--mix=6-gram")["mix"]
    value, low, high = mix["gain"]["nats_per_token"].values()
    assert "Mixed with the 6-gram, each target with the weights that were best before it:" in words
    assert f"the mixture gains {value:+.4f} nats per token ({low:+.4f} to {high:+.4f})" in words
    assert f"  mean weight of the model {mix['weight']:.3f}; the 6-gram alone has" in words


@pytest.mark.parametrize("run", ["out/masked", "out/padded", "out/bpe_lines", "out/records"])
def test_a_mixture_predicts_the_targets_of_its_run(runs, run) -> None:
    """Under a mask, in documents, and in other tokens."""
    result = found(run, "--mix=4-gram")
    assert result["mix"]["targets"] == result["targets"]
    losses = {each["name"]: each["nats_per_token"] for each in result["baselines"]}
    assert result["mix"]["ngram_nats_per_token"] == pytest.approx(losses["4-gram"])


def test_a_mixture_on_a_text_beside_another_run_and_of_an_ensemble(runs) -> None:
    Path("mine.txt").write_text("the cat sat on a mat;\n" * 20, encoding="utf-8")
    result = found("out/whole", "--text=mine.txt", "--mix=3-gram", "--against=out/short")
    assert result["mix"]["targets"] == result["targets"]
    # the text has few endings of words, all of them in the training text
    assert result["mix"]["gain"]["nats_per_token"]["low"] > 0
    mean = found("out/whole", "out/wide", "--ensemble", "--mix=3-gram")
    alone = found("out/whole", "out/wide", "--ensemble")
    assert mean["loss"] == alone["loss"]
    gain = mean["mix"]["gain"]["nats_per_token"]["value"]
    loss = mean["mix"]["loss"]["nats_per_token"]["value"]
    assert loss + gain == pytest.approx(alone["loss"]["nats_per_token"]["value"])


def test_a_mixture_on_the_first_part_of_a_long_text(runs, monkeypatch) -> None:
    monkeypatch.setattr("data.baselines.MAX_VAL_TOKENS", 500)
    result = found("out/whole", "--mix=bigram")
    assert result["mix"]["targets"] == 500 < result["targets"]
    words = said("out/whole", "--mix=bigram")
    assert " nats per token of the first 500 targets (" in words


def test_a_short_text_does_not_tell_noise_from_more(runs) -> None:
    Path("short.txt").write_text("the cat sat")
    assert "too short to tell" in said("out/whole", "--text=short.txt", "--against=out/short")
    words = said("out/whole", "--text=short.txt", "--against=out/bpe")
    assert re.search(r"on \d+ bytes, as their first tokens differ", words)


def test_a_page_replaces_no_text(runs) -> None:
    Path("mine.txt").write_text("the cat sat")
    for command, *argv in (
        ("evaluate.py", "out/whole", "--text=mine.txt"),
        ("curves.py", "out/whole"),
    ):
        for name in ("mine.txt", "out/whole/config.toml", "out"):
            done = call(command, *argv, f"--html={name}", check=False)
            assert done.returncode == 2
            assert (
                done.stderr
                == f"error: html={name}: the name of a page ends in .html, as in page.html\n"
            )
    assert Path("mine.txt").read_text() == "the cat sat"


def test_against_a_run_with_other_tokens(runs) -> None:
    result = found("out/whole", "--against=out/bpe")
    assert result["against"]["loss"] == found("out/bpe")["loss"]
    assert list(result["against"]["difference"]) == ["bits_per_byte"]
    assert result["against"]["difference"]["bits_per_byte"]["value"] == pytest.approx(
        result["loss"]["bits_per_byte"]["value"]
        - result["against"]["loss"]["bits_per_byte"]["value"]
    )
    assert "only bits per byte can be compared" in said("out/whole", "--against=out/bpe")


def test_a_run_that_may_have_seen_the_text_is_named(runs) -> None:
    assert "It was trained on another text or split, and may have seen this one." in said(
        "out/whole", "--against=out/other"
    )
    assert not found("out/whole", "--against=out/bpe")["against"]["may_have_seen_it"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["out/whole", "--stride=9"], "stride=9 is more than block_size=8 of out/whole"),
        (["out/wide", "--against=out/whole", "--stride=9"], "block_size=8 of out/whole"),
        (["out/whole", "--stride=-1"], "stride=-1"),
        (["out/whole", "--text=nowhere.txt"], "no such file"),
        (["out/whole", "--text=latin.txt"], "latin.txt: not UTF-8"),
        (
            ["out/whole", "--text=omega.txt"],
            r"omega.txt: the character 'Ω' \(U\+03A9, at position 2\)",
        ),
        (["out/whole", "--text=one.txt"], r"one.txt: too short: a prediction needs two tokens"),
        (["out/whole", "--against=out/nowhere"], "out/nowhere: not a run"),
        (
            ["out/whole", "--against=out/padded"],
            r"against=out/padded: its eos token stands for '\\n', and that of",
        ),
        (
            ["out/padded", "--against=out/speeches"],
            r"stands for '\\n\\n', and that of out/padded for '\\n'",
        ),
        (
            ["out/padded", "--text=newlines.txt"],
            r"newlines.txt: too short: a prediction needs two tokens",
        ),
        (
            ["out/masked", "--text=vowels.txt"],
            r"vowels.txt: no targets: mask=\[aeiou\] matches all of it",
        ),
        (["out/records", "--text=bad.jsonl"], "corpus bad.jsonl, line 2: should be"),
        (["out"], "not a run"),
        (["out/whole", "--text=one.txt", "--split=train"], "split and text: use one of them"),
        (["out/whole", "--explain=a", "--json"], "explain and json: use one of them"),
        (["out/whole", "--explain=a", "--text=one.txt"], "explain and text: use one of them"),
        (["out/whole", "--explain=a", "--split=train"], "explain and split: use one of them"),
        (["out/whole", "--explain="], "explain=: string should have at least 1 character"),
        (
            ["out/whole", "--html=one.txt/page.html"],
            "nothing can be written into .*one.txt; choose another name",
        ),
        (
            ["out/whole", "--against=out/wide", "--max_tokens=9"],
            "against and max_tokens: use one of them",
        ),
        (["out/whole", "--explain=Ω"], r"'Ω' \(U\+03A9, at position 0\)"),
        (["out/whole", "--split=test"], "'tuning' or 'train'"),
        (["out/whole", "--strid=2"], "did you mean --stride"),
        (["out/whole", "--device=tpu"], "device=tpu"),
        (["out/whole", "--dtype=float64"], "dtype=float64: input should be"),
        (["out/broken"], "broken/best.safetensors: there is no such checkpoint"),
        (["out/whole", "out/wide"], "out/wide: is a second RUN; --ensemble averages"),
        (["out/whole", "--ensemble"], "ensemble: name several runs: evaluate.py RUN RUN"),
        (["out/whole", "out/bpe", "--ensemble"], "out/bpe: has other tokens than out/whole"),
        (
            ["out/whole", "out/other", "--ensemble"],
            "out/other: was trained on another text or split than out/whole",
        ),
        (["out/whole", "out/nowhere", "--ensemble"], "out/nowhere: not a run"),
        (
            ["out/whole", "out/broken", "--ensemble"],
            "broken/best.safetensors: there is no such checkpoint",
        ),
        (["out/whole", "out/wide", "--ensemble", "--stride=9"], "block_size=8 of out/whole"),
        (["out/whole", "out/wide", "--ensemble", "--tables"], "ensemble and tables: use one"),
        (["out/whole", "--mix=6-grams"], "mix=6-grams: out/whole can be mixed with unigram, bi"),
        (["out/whole", "--mix=xz"], "can be mixed with unigram, bigram, .*, 5-gram, 6-gram$"),
        (["out/fewer", "--mix=6-gram"], "out/fewer can be mixed with unigram, bigram$"),
        (
            ["out/whole", "--mix=6-gram", "--split=train"],
            "mix: the 6-gram was counted in the training text",
        ),
        (["out/whole", "--mix=6-gram", "--explain=a"], "explain and mix: use one of them"),
        (["out/textless", "--mix=6-gram"], "mix=6-gram: out/textless has no n-gram"),
        (["out/whole", "out/wide", "--ensemble", "--html=a.html"], "ensemble and html: use one"),
        (
            ["out/whole", "out/wide", "--ensemble", "--max_tokens=9"],
            "ensemble and max_tokens: use one of them; several runs are measured on all",
        ),
    ],
)
def test_mistakes_are_one_clear_line(runs, argv, message) -> None:
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("omega.txt").write_text("a Ω", encoding="utf-8")
    Path("one.txt").write_text("a", encoding="utf-8")
    Path("newlines.txt").write_text("\n\n", encoding="utf-8")
    Path("vowels.txt").write_text("aaeoa", encoding="utf-8")
    Path("bad.jsonl").write_text(
        '{"prompt": "1", "completion": "2"}\n{"prompt": "1"}', encoding="utf-8"
    )
    facts = json.loads(Path("out/whole/corpus.json").read_text(encoding="utf-8"))
    fewer = facts | {"baselines": facts["baselines"][:3]}  # uniform, unigram, bigram
    textless = facts | {"sha256": "", "baselines": []}  # as of a converted model
    for name, changed in {"fewer": fewer, "textless": textless}.items():
        shutil.copytree("out/whole", f"out/{name}", dirs_exist_ok=True)
        Path(f"out/{name}/corpus.json").write_text(json.dumps(changed), encoding="utf-8")
    Path("out/broken").mkdir(exist_ok=True)
    for name in ("config.toml", "corpus.json", "tokenizer.json"):
        Path("out/broken", name).write_bytes(Path("out/whole", name).read_bytes())
    done = call("evaluate.py", *argv, check=False)
    lines = [line for line in done.stderr.splitlines() if "evaluating" not in line]
    assert (done.returncode, len(lines)) == (2, 1)
    assert re.search(message, lines[0])


def test_a_text_that_has_changed_is_refused_unless_another_is_named(runs) -> None:
    before = Path("text.txt").read_bytes()
    try:
        Path("text.txt").write_text(make_text(401), encoding="utf-8")
        done = call("evaluate.py", "out/bpe", check=False)
        assert "out/bpe: its corpus, text.txt, has changed since (sha256 was" in done.stderr
        result = found("out/bpe", "--text=other.txt")
        assert list(result["groups"]) == ["confidence", "context length"]
    finally:
        Path("text.txt").write_bytes(before)


def test_the_real_command(runs, clone) -> None:
    """Its progress goes to stderr, also into a pipe."""
    done = subprocess.run(
        [sys.executable, str(clone / "evaluate.py"), "out/whole"],
        cwd=runs,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    for part in (
        "nats per token",
        "95% of the resamples",
        "it beats",
        "Calibration:",
        "context length",
        "new line",
    ):
        assert part in done.stdout
    assert "evaluating" in done.stderr


def test_help_names_the_options() -> None:
    assert "--stride" in call("evaluate.py", "--help").stdout
