"""evaluate.py: the same loss as training's, each token once, and statements that hold on data made
to deserve them.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
from config.errors import UserError
from config.schema import ModelConfig
from data.batches import IGNORE_INDEX
from data.documents import Split
from data.eval_text import EvalText
from data.tokenizer import char_tokenizer
from engine import evaluation, scoring
from engine.checkpoint import load_model
from engine.device import Device
from engine.run import open_run
from engine.run_text import open_corpus
from engine.scoring import Predictions, predict, score_targets
from evaluate import EvaluateOptions
from model import GPT
from report import analysis
from report.analysis import (
    TEMPERATURES,
    Blocks,
    calibrate,
    confidence_bins,
    group_targets,
    intervals,
    measure_losses,
)
from report.evaluation import claim
from tests.conftest import TINY, call, make_text, other_dtype, trained_dtype, work_in

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs, in the current directory: whole, short, wide (another block), other (another
    text), ...
    """
    directory = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        work_in(directory, patch)
        patch.setattr("data.corpora.LENGTH", 3000)  # of the markov corpus
        patch.setattr("report.figures.draw_png", lambda runs, path: path.touch())
        patch.setattr("train.generate_texts", lambda *_, **__: [""])
        Path("text.txt").write_text(make_text(), encoding="utf-8")
        Path("paragraphs.txt").write_text(make_text().replace("\n", "\n\n"), encoding="utf-8")
        Path("records.jsonl").write_text(
            "\n".join(
                json.dumps({"prompt": f"{n} and 1 ", "completion": f"make {n + 1}"})
                for n in range(200)
            ),
            encoding="utf-8",
        )
        Path("other.txt").write_text(make_text(300) + "a", encoding="utf-8")
        for out, *arguments in (
            ["whole", "--eval_tokens=0"],
            ["short", "--max_iters=2"],
            ["wide", "--block_size=16"],
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
    """What `evaluate.py ... --json` prints."""
    return json.loads(call("evaluate.py", *argv, "--json").stdout, parse_constant=pytest.fail)


def said(*argv: str) -> str:
    return call("evaluate.py", *argv).stdout


def metrics(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


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
    before, after = len(STRANGE.encode()), len(PLAIN.encode())
    if run == "out/whole":
        total = plain["loss"]["bits_per_byte"]["value"] * (after - 1) + unknown["bits"]
        assert unknown["bits_per_byte"] == pytest.approx(total / (before - 1))
    assert f"takes {unknown['bits']:,} bits more" in said(
        run, "--text=strange.txt", "--unknown=replace"
    )
    assert "unknown" not in found(run)


def test_unknown_characters_of_prompts_are_told_and_cost_nothing(runs) -> None:
    """A prompt without them is another context, so the reader of a loss should know."""
    records = [{"prompt": f"Ω{n} and 1 ", "completion": f"make {n + 1}"} for n in range(20)]
    Path("strange.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
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
    """The same characters, less the masked ones; the same lines, with their ends, in either
    tokenizer's bytes.
    """
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
    """Whatever the stride, the model does not see tokens before the document, and each token is a
    target once.
    """
    split = open_corpus(open_run(Path("out/padded"))).val
    eos = int(split.tokens[0])
    for stride in (0, 1, 5):
        targets = []
        for batch in EvalText(split, 8, eos, stride).batches():
            assert not (batch.inputs[:, 1:] == eos)[batch.targets[:, 1:] != IGNORE_INDEX].any()
            targets += batch.targets[batch.targets != IGNORE_INDEX].tolist()
        assert targets == split.tokens[1:].tolist()


def test_where_the_entropy_is_known_so_is_the_gap(runs) -> None:
    gap = metrics("out/markov")[-1]["best_kl_gap"]
    assert found("out/markov")["kl_gap"] == pytest.approx(gap, abs=1e-6)
    assert f"KL(source || model) is {gap:.4f}" in said("out/markov")
    assert found("out/markov", "--split=train")["kl_gap"] is None
    assert found("out/whole")["kl_gap"] is None


def test_a_limit_evaluates_a_part_that_is_spread_evenly_and_says_so(runs) -> None:
    whole, part = found("out/whole"), found("out/whole", "--max_tokens=300")
    assert 280 <= part["targets"] <= 320 < whole["targets"]
    assert part["of_targets"] == whole["of_targets"] == whole["targets"]
    note = f"{part['targets']:,} targets of {whole['targets']:,}, spread evenly"
    assert note in said("out/whole", "--max_tokens=300")
    assert part["baselines"] == []
    best = min(
        (record for record in metrics("out/short") if "val_nll" in record),
        key=lambda record: record["val_nll"],
    )
    # the windows that training evaluates with eval_tokens=300
    part = found("out/short", "--max_tokens=300")
    assert part["loss"]["nats_per_token"]["value"] == pytest.approx(best["val_nll"], rel=1e-6)
    assert found("out/whole", "--max_tokens=0")["loss"] == whole["loss"]


def test_targets_are_counted_where_most_windows_have_none(runs) -> None:
    """Prompts of 30 blocks, with short completions: training and evaluate.py find what they were
    asked for.
    """
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


def test_progress_goes_to_stderr_also_into_a_pipe(runs) -> None:
    assert "evaluating" in call("evaluate.py", "out/whole").stderr


def test_a_sentence_shows_what_each_of_its_tokens_costs(runs) -> None:
    sentence = "the cat sat on a mat; " * 3  # longer than a block
    printed = said("out/whole", f"--explain={sentence}", "--dtype=float32")
    run = open_run(Path("out/whole"))
    tokens = run.tokenizer.encode_prompt("") + run.tokenizer.encode_prompt(sentence)
    model, _ = load_model(run, "best", CPU)
    costs = []
    for i in range(1, len(tokens)):
        start = (i - 1) // 8 * 8
        logits = model(torch.tensor([tokens[start:i]]))[0, -1].detach()
        costs.append(-float(logits.log_softmax(-1)[tokens[i]]))
    title, cells = printed.split("\n\n")[0].split("\n", 1)
    words = cells.split()
    assert title == "nats of each token:"
    assert "".join(words[::2]) == "⏎" + sentence.replace(" ", "␣")
    assert words[1] == "given"
    assert [float(cost) for cost in words[3::2]] == pytest.approx(costs, abs=6e-4)
    total, bits, mean = sum(costs), sum(costs) / math.log(2), np.mean(costs)
    assert (
        f"{total:.2f} nats, {bits:.2f} bits, for {len(costs)} tokens: {mean:.4f} nats per token"
        in printed
    )
    assert "\x1b" not in printed


@pytest.mark.parametrize("stride", [0, 1, 3, 7, 8])
@pytest.mark.parametrize("n", [2, 8, 9, 10, 17, 5000])
def test_every_token_but_the_first_is_a_target_once_whatever_the_stride(
    n: int, stride: int
) -> None:
    tokens = np.arange(n, dtype=np.uint16)
    targets = []
    for batch in EvalText(Split(tokens), 8, stride=stride).batches():
        unmasked = batch.targets != IGNORE_INDEX
        assert (batch.targets[unmasked] == batch.inputs[unmasked] + 1).all()
        context_len = np.nonzero(unmasked)[1] + 1
        least = 8 - (stride or 8) + 1  # tokens of context, where there are that many
        assert (context_len >= np.minimum(batch.targets[unmasked], least)).all()
        targets += batch.targets[unmasked].tolist()
    assert targets == list(range(1, n))


SMALL = ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16)


def make_model(cfg: ModelConfig = SMALL, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(cfg, 13)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_each_token_is_scored_as_one_by_one_in_float64(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", chunk * 13)
    monkeypatch.setattr(scoring, "MIN_CHUNK", 1)
    model = make_model(
        ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, softcap=3.0, dropout=0.5)
    )
    tokens = np.random.default_rng(0).integers(13, size=100)
    scores = score_targets(
        predict(model, EvalText(Split(tokens), 8, stride=5).batches(), CPU), TEMPERATURES
    )
    assert scores.targets.tolist() == tokens[1:].tolist()
    exact = model.double()
    tempered = np.zeros(len(TEMPERATURES))
    for i in range(1, 100):
        start = 0 if i <= 8 else 5 * -(-(i - 8) // 5)
        z = exact(torch.from_numpy(tokens[None, start:i]))[0, -1].detach().double()
        q = z.softmax(-1)
        assert scores.context_len[i - 1] == i - start
        assert scores.nll[i - 1] == pytest.approx(-math.log(q[tokens[i]]), abs=1e-5)
        assert scores.higher[i - 1] == sorted(range(13), key=lambda v: -float(q[v])).index(
            tokens[i]
        )
        assert scores.confidence[i - 1] == pytest.approx(float(q.max()), abs=1e-5)
        tempered += [-float((z / T).log_softmax(-1)[tokens[i]]) for T in TEMPERATURES]
    assert scores.tempered == pytest.approx(tempered, rel=1e-5)


def made(logits: torch.Tensor, targets: torch.Tensor) -> list[Predictions]:
    return [Predictions(logits, targets, torch.ones_like(targets))]


def columns(offset: np.ndarray, nll: np.ndarray, **more: np.ndarray) -> analysis.Columns:
    """Of each target; by default a token of one byte that is not predicted."""
    ones, zeros = np.ones(len(nll)), np.zeros(len(nll))
    return {
        "offset": offset,
        "document": np.zeros(len(nll), dtype=int),
        "tokens": ones,
        "bytes": ones,
        "nll": nll,
        "top1": zeros,
        "top5": zeros,
    } | more


def measure(*runs: analysis.Columns) -> list[dict[str, analysis.Estimate]]:
    losses, blocks = measure_losses(runs)
    return [intervals(own, blocks) for own in losses]


def nats_difference(ours: analysis.Columns, theirs: analysis.Columns) -> analysis.Estimate:
    (first, second), blocks = measure_losses([ours, theirs])
    return intervals({"nats": first["nats_per_token"] - second["nats_per_token"]}, blocks)["nats"]


def test_the_units_are_those_of_the_same_sums() -> None:
    nll, n_bytes = np.array([1.0, 2.0, 6.0, 3.0]), np.array([1, 2, 1, 4])
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
    assert loss["perplexity"]["high"] == pytest.approx(
        math.exp(loss["nats_per_token"]["high"]), rel=1e-3
    )
    (huge,) = measure(text | {"nll": nll * 1e6})
    assert math.isfinite(huge["perplexity"]["value"])


def test_tied_tokens_share_the_places() -> None:
    scores = score_targets(
        made(torch.tensor([[0.0, 1.0, 1.0, 1.0]]).expand(4, 4), torch.arange(4)), TEMPERATURES
    )
    assert scores.top(1).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert scores.top(2).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])
    assert scores.top(5).tolist() == [1, 1, 1, 1]


def test_a_model_that_diverged_is_told() -> None:
    model = make_model()
    torch.nn.init.constant_(model.wte.weight, math.nan)
    with pytest.raises(UserError, match="diverged"):
        list(predict(model, EvalText(Split(np.arange(9)), 8).batches(), CPU))


def width(estimate: analysis.Estimate) -> float:
    return estimate["high"] - estimate["low"]


def make_nll(
    rng: np.random.Generator, blocks: int, spread: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Surprisals of mean 2 that are alike within stretches of 1,000 bytes; and where their tokens
    begin.
    """
    hard = np.repeat(rng.normal(0, spread, size=4 * blocks), 250)
    return 2 + hard + rng.normal(0, 0.5, size=1000 * blocks), 4 * np.arange(1000 * blocks)


def test_intervals_cover_what_they_should_and_narrow_with_more_text() -> None:
    rng, covered, widths = np.random.default_rng(0), 0, []
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
    """The same surprisal a byte, in tokens of 1 byte and of 1 to 50: no difference, in any
    resample.
    """
    lengths = np.random.default_rng(0).integers(1, 51, size=4000)
    offsets = lengths.cumsum() - lengths
    per_byte = np.random.default_rng(1).normal(2, 1, size=lengths.sum())
    runs = [
        columns(np.arange(len(per_byte)), per_byte),
        columns(offsets, np.add.reduceat(per_byte, offsets), bytes=lengths),
    ]
    losses, blocks = measure_losses(runs)
    ours, theirs = (own["bits_per_byte"] for own in losses)
    gap = intervals({"gap": ours - theirs}, blocks)["gap"]
    assert gap["value"] == pytest.approx(0)
    assert width(gap) < 0.01  # the tokens that cross a border
    assert width(gap) < 0.2 * width(intervals({"own": ours}, blocks)["own"]) + 0.01


ROW = 100  # tokens in a row of the columns below, to be faster


def make_documents(
    rng: np.random.Generator, effects: np.ndarray, spread: float
) -> analysis.Columns:
    """Documents of mean 2 that differ as wholes, in rows of ROW tokens; `spread`: of log-lengths."""
    rows = np.rint(20 * np.exp(spread * rng.standard_normal(len(effects)))).astype(int) + 1
    number = np.repeat(np.arange(len(effects)), rows)
    nll = ROW * (2 + effects[number] + rng.normal(0, 0.1, size=len(number)))
    offset = ROW * np.arange(len(number))
    tokens = np.full(len(number), float(ROW))
    document = ROW * (np.cumsum(rows) - rows)[number]
    return columns(offset, nll, document=document, tokens=tokens, bytes=tokens)


@pytest.mark.parametrize(("number", "spread"), [(12, 0.0), (40, 0.5), (400, 1.0)])
def test_intervals_of_a_random_sample_of_documents_cover_others(number: int, spread: float) -> None:
    """The loss of one run, and the difference of two, whose documents differ as wholes."""
    rng = np.random.default_rng(0)
    covered = of_documents = 0
    texts = 60
    for _ in range(texts):
        ours = make_documents(rng, rng.normal(0, 0.3, size=number), spread)
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
    """Plays differ as wholes. Also if their lines or they themselves are documents, words are
    modest.
    """
    rng = np.random.default_rng(0)
    covered = of_documents = 0
    texts = 60
    for _ in range(texts):
        plays = np.repeat(rng.normal(0, 0.06, size=4), 300)
        lines = make_documents(rng, plays + rng.normal(0, 0.1, size=len(plays)), spread=0.0)
        starts = np.unique(lines["document"])
        document = {
            "not": 0 * lines["document"],
            "into lines": lines["document"],
            "into plays": starts[np.searchsorted(starts, lines["document"]) // 300 * 300],
        }[cut]
        (loss,), blocks = measure_losses([lines | {"document": document}])
        of_documents += blocks.of_documents
        nats = intervals({"nats": loss["nats_per_token"]}, blocks)["nats"]
        covered += nats["low"] <= 2 <= nats["high"]
    assert covered / texts < 0.7  # an interval would have 0.95
    # where the four plays happen to be alike
    assert of_documents <= (3 if cut == "into lines" else 0)
    assert "nothing about another text" in " ".join(claim(Blocks(False, 50)))
    assert "other documents of the same source" in " ".join(claim(Blocks(True, 50)))


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
    monkeypatch.setattr(evaluation, "CHUNK", chunk)
    run = open_run(Path(name))
    val, token_bytes = open_corpus(run).val.tokens, run.tokenizer.token_bytes
    of_each = evaluate.score_run(run, open_corpus(run).val, EvaluateOptions()).columns
    text = run.tokenizer.decode_bytes(val)
    rows = zip(val[1:], *(of_each[name] for name in ("offset", "bytes", "document")), strict=True)
    for token, offset, length, document in rows:
        assert text[offset : offset + length] == token_bytes[token]
        begins = text[:offset].rfind(b"\n") + 1 if name == "out/bpe_lines" else 0
        assert document == begins


def test_a_text_of_a_few_tokens_has_intervals_that_are_numbers() -> None:
    for offsets in (
        [np.array([1])],
        [np.array([2]), np.array([3])],
        [np.array([1, 2, 3]), np.array([2])],
        [np.arange(200), np.arange(0, 200, 70)],
    ):
        for own in measure(*(columns(offset, np.ones(len(offset))) for offset in offsets)):
            assert own["nats_per_token"] == {"low": 1, "value": 1, "high": 1}


def calibration_of(scores: scoring.Scores) -> tuple[dict[str, float], list[dict[str, Any]]]:
    of_each = columns(scores.targets, scores.nll, top1=scores.top(1), confidence=scores.confidence)
    rows = group_targets(*confidence_bins(scores.confidence), of_each)
    return calibrate(rows, scores.tempered / len(scores.nll)), rows


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7, 3.0])
def test_calibration_recovers_the_factor_by_which_logits_were_spoiled(factor: float) -> None:
    torch.manual_seed(0)
    honest = 1.5 * torch.randn(40_000, 10)
    targets = torch.multinomial(honest.softmax(-1), 1)[:, 0]
    scores = score_targets(made(factor * honest, targets), TEMPERATURES)
    right = scores.top(1)
    calibration, bins = calibration_of(scores)
    assert calibration["temperature"] == pytest.approx(factor, rel=0.03)
    best = (
        -(factor * honest / calibration["temperature"])
        .log_softmax(-1)[torch.arange(40_000), targets]
        .mean()
    )
    assert calibration["nats_gained"] == pytest.approx(scores.nll.mean() - float(best), abs=1e-5)
    assert (calibration["ece"] < 0.01) == (factor == 1.0)
    lean = float(np.mean(scores.confidence)) - right.mean()
    assert (lean > 0.05) == (factor > 1)
    assert (lean < -0.05) == (factor < 1)
    assert sum(each["tokens"] for each in bins) == 40_000
    ece = 0.0
    for i in range(15):
        inside = (scores.confidence >= i / 15) & (scores.confidence < (i + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(scores.confidence[inside].mean() - right[inside].mean())
    assert calibration["ece"] == pytest.approx(ece, rel=1e-4)  # a token may be on the edge of a bin


def test_no_group_shows_a_fault_of_a_perfectly_calibrated_model() -> None:
    """Its targets are drawn from its own predictions: a confidence is the accuracy beside it."""
    tokenizer = char_tokenizer("the Cat sat on; a mat\n")
    V, n = tokenizer.vocab_size, 40_000
    torch.manual_seed(0)
    logits = 1.5 * torch.randn(n, V) - 0.25 * torch.arange(V)  # some tokens are rarer than others
    targets = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    text = EvalText(Split(np.append(0, targets.numpy())), 8)
    scores = score_targets(made(logits, targets), TEMPERATURES)
    context_len = np.arange(n) % 8 + 1
    of_each = columns(
        np.arange(n),
        scores.nll,
        top1=scores.top(1),
        confidence=scores.confidence,
        target=scores.targets,
        context_len=context_len,
    )
    summary = analysis.summarise(of_each, scores.tempered / n, text, tokenizer, text.split)

    by_outcome = {"kind of character", "times in training"}
    assert set(summary.groups) == {"confidence", "context length", *by_outcome}
    for kind, groups in summary.groups.items():
        assert len(groups) > 1
        for each in groups:
            assert (each.confidence is None) == (kind in by_outcome)
            if each.confidence is not None:
                assert abs(each.confidence - each.top1) < 4 * math.sqrt(0.25 / each.tokens)
    rare = min(summary.groups["times in training"], key=lambda each: each.tokens)
    confidence = scores.confidence[np.bincount(scores.targets)[scores.targets] < 1000].mean()
    assert confidence > rare.top1 + 0.1  # what the column would have shown


@pytest.mark.parametrize("argv", [["out/whole"], ["out/bpe", "--stride=3"]])
def test_a_table_has_a_confidence_only_where_groups_do_not_depend_on_what_came(runs, argv) -> None:
    tables = {}
    for part in said(*argv).split("\n\n"):
        first = part.splitlines()[0]
        if "share of tokens" in first:
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


@pytest.mark.parametrize(("best", "at_end"), [(0.1, True), (0.3, False), (3.5, False), (9.0, True)])
def test_a_temperature_at_the_end_of_what_was_tried_is_told(best: float, at_end: bool) -> None:
    tempered = np.log(np.array(TEMPERATURES) / best) ** 2
    calibration = calibrate([], tempered)
    assert calibration["at_end"] == at_end
    assert calibration["temperature"] == pytest.approx(min(4, max(1 / 4, best)), rel=0.01)


def test_a_certain_and_right_model_is_calibrated() -> None:
    scores = score_targets(made(torch.tensor([[100.0, 0.0]]), torch.tensor([0])), TEMPERATURES)
    calibration, bins = calibration_of(scores)
    assert (calibration["ece"], bins[0]["name"]) == (0, "93% to 100%")


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
    near, far = found("out/wide", "--stride=16"), found("out/wide", "--stride=1")
    assert near["loss"] == found("out/wide")["loss"]
    assert far["targets"] == near["targets"]
    assert (
        far["groups"]["context length"][-1]["share"]
        > 0.95
        > near["groups"]["context length"][-1]["share"]
    )
    assert "in a window of 8 that moves on by 2 tokens" in said("out/whole", "--stride=2")


def test_a_copy_of_a_split_has_its_loss(runs) -> None:
    text = make_text()
    for split, part in (
        ("val", text[int(len(text) * 0.9) :]),
        ("train", text[: int(len(text) * 0.9)]),
    ):
        Path("copy.txt").write_text(part, encoding="utf-8")
        for run in ("out/whole", "out/bpe"):
            of_split, of_text = found(run, f"--split={split}"), found(run, "--text=copy.txt")
            assert of_text["loss"] == of_split["loss"]
            for kind, groups in of_text["groups"].items():
                assert groups == of_split["groups"][kind]
            assert of_text["baselines"] == []
    assert found("out/whole")["baselines"]


def test_against_another_run(runs) -> None:
    ours, theirs = found("out/whole", "--against=out/short"), found("out/short")
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
        (["out/whole", "--split=test"], "'val' or 'train'"),
        (["out/whole", "--strid=2"], "did you mean --stride"),
        (["out/whole", "--device=tpu"], "device=tpu"),
        (["out/whole", "--dtype=float64"], "dtype=float64: input should be"),
        (["out/broken"], "broken/best.safetensors: there is no such checkpoint"),
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


def process(runs: Path, clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python evaluate.py ...` as a process of its own, which lists on stderr what it imports."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", str(clone / "evaluate.py"), *arguments],
        cwd=runs,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_the_real_command(runs, clone) -> None:
    done = process(runs, clone, "out/whole")
    for part in (
        "nats per token",
        "95% of the resamples",
        "It beats",
        "Calibration:",
        "context length",
        "new line",
    ):
        assert part in done.stdout
    assert "evaluating" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["out/whole", "--stride=99"], ["out/whole", "--explain=Ω"]]
)
def test_mistakes_are_answered_without_torch(runs, clone, arguments) -> None:
    done = process(runs, clone, *arguments)
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "pydantic" in imported
    assert "torch" not in imported
    assert "--stride" in done.stdout or done.returncode == 2
