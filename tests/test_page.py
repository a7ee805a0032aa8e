"""A run's page gets the numbers of the metrics.

tests/test_browser.py looks at the page itself.
"""

import json
import math
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.size import count_flops
from data.baselines import choose_passages
from data.documents import Split
from data.info import PASSAGE, PASSAGES
from data.tokenizer import char_tokenizer
from engine.checkpoint import load_model
from engine.device import setup_device
from engine.evaluation import PASSAGE_TEMPERATURES, cut_passage
from engine.metrics import Record
from engine.run import Run, open_run
from engine.run_text import make_eval_text, open_corpus
from page.content import content_of_baselines, content_of_runs
from page.page import WEB
from page.records import read_passages
from page.sweep import content_of_sweep, write_sweep_page
from tests.conftest import TINY, call, make_text, read_metrics, write_metrics
from tests.many_runs import make_ended_run, make_sweep
from tests.one_run import write_data


def data_of(run: Path) -> dict[str, Any]:
    """The data in a run's report.js."""
    script = (run / "report.js").read_text()
    return json.loads(script.removeprefix("receive(").removesuffix(");"))


def shown_of(run: Run) -> dict[str, Any]:
    """Return what the page of one run shows of it."""
    (shown,) = content_of_runs([run])["runs"]
    return shown


def evaluations_of(run: Path) -> list[Record]:
    return [record for record in read_metrics(run) if "val_nll" in record]


def test_training_writes_a_page_whose_numbers_are_the_metrics(own: Path) -> None:
    page = (own / "report.html").read_text(encoding="utf-8")
    data = data_of(own)
    assert "report.js" in page
    assert "Bokeh" in page
    # nothing from a network
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.split("<script>")[0])
    assert not data["live"]
    (shown,) = data["runs"]
    assert [shown[name] for name in ("status", "step", "max_iters")] == ["finished", 6, 6]
    evaluations = evaluations_of(own)
    losses = [record["val_nll"] for record in evaluations]
    assert shown["val"]["step"] == [record["step"] for record in evaluations]
    assert shown["val"]["val_nll"] == pytest.approx(losses, rel=1e-5)
    assert shown["best_nll"] == read_metrics(own)[-1]["best_val_nll"]
    # in the middle of what each is the mean of
    assert shown["train"]["step"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    run = open_run(own)
    per_position = count_flops(run.cfg.model, run.info.vocab_size)
    positions = [record["positions"] for record in evaluations]
    assert positions == [record["step"] * 4 * 8 for record in evaluations]
    flops = [per_position * count for count in positions]
    assert shown["val"]["flops"] == pytest.approx(flops, rel=1e-5)
    assert shown["verdict"].startswith("The best model, of step")
    assert shown["samples"][0]["step"] == 0


def test_the_page_says_overfitting_where_the_training_did(own: Path) -> None:
    """A validation loss that rises for another reason, as in a run that diverges, is not shaded."""
    rising = evaluations_of(own)
    for number, record in enumerate(rising):
        record["val_nll"] = 1.0 + number

    def overfits() -> bool:
        write_metrics(own, rising)
        overfits: bool = shown_of(open_run(own))["overfits"]
        return overfits

    assert not overfits()
    rising[-1]["overfitting"] = 2
    assert overfits()
    # the page's script shows it where it is so
    assert 'id="shaded" hidden' in (own / "report.html").read_text()


def test_flops_count_what_was_computed_masked_or_not(data_dir: Path) -> None:
    """All positions of all batches count, also where a run was resumed with larger batches."""
    arguments = ["--corpus=text.txt", "--out_dir=out/run", *TINY, "--mask=the"]
    call("train.py", *arguments)
    call("train.py", *arguments, "--init_from=resume", "--batch_size=6", "--max_iters=8")
    run = open_run(data_dir / "out/run")
    per_position = count_flops(run.cfg.model, run.info.vocab_size)
    records = read_metrics(run.path)
    assert all(record["tokens"] < record["positions"] for record in records if record.get("tokens"))
    per_window = per_position * 8
    flops = shown_of(run)["val"]["flops"]
    first = per_window * 6 * 4
    resumed = per_window * 2 * 6
    assert flops[-2] == pytest.approx(first, rel=1e-5)
    assert flops[-1] == pytest.approx(first + resumed, rel=1e-5)
    for record in records:
        record.pop("positions", None)  # as an earlier edition wrote them
    write_metrics(run.path, records)
    flops = shown_of(run)["val"]["flops"]
    assert flops[-1] == pytest.approx(per_window * 8 * 6, rel=1e-5)


def test_a_page_of_several_runs_says_what_differs(own: Path, data_dir: Path) -> None:
    other = Path(shutil.copytree(own, own.with_name("other")))
    cfg = (other / "config.toml").read_text()
    (other / "config.toml").write_text(cfg.replace("seed = 1337", "seed = 7"))
    call("curves.py", str(own), str(other), f"--html={own}/both.html")
    data = content_of_runs([open_run(own), open_run(other)])
    assert data["options"] == {"seed": ["1337", "7"]}
    mistake = call("curves.py", str(own), "--html=a.html", "--unit=bits_per_byte", check=False)
    assert mistake.stderr == "error: unit: no use with html; who looks at the page chooses there\n"
    assert (own / "both.html").stat().st_size < 2.5e6


def test_bits_per_byte_are_those_of_the_targets(data_dir: Path) -> None:
    """Under a mask these are digits; the masked names are longer tokens."""
    lines = [f"abcdefghij: {number % 10} {number % 7} {number % 3}\n" for number in range(400)]
    Path("masked.txt").write_text("".join(lines))
    call(
        "train.py",
        "--corpus=masked.txt",
        "--mask=^[a-z]+: ",
        "--tokenizer=bpe",
        "--vocab_size=270",
        "--out_dir=out/m",
        *TINY,
    )
    run = open_run(Path("out/m"))
    final = read_metrics(run.path)[-1]
    bytes_per_target = shown_of(run)["bytes_per_target"]
    bits = final["best_val_nll"] / math.log(2) / bytes_per_target
    assert bits == pytest.approx(final["best_val_bits_per_byte"])
    val = open_corpus(run).val
    bytes_per_token = run.tokenizer.byte_lengths[val.tokens].mean()
    assert bytes_per_token != pytest.approx(bytes_per_target, rel=0.1)


def test_a_million_lines_are_thinned(own: Path) -> None:
    records: list[Record] = []
    for step in range(20_000):
        record: Record = {
            "step": step,
            "tokens": 64 * step,
            "seconds": step / 100,
            "lr": 0.1,
            "train_nll": 1 + 1 / (1 + step),
            "grad_norm": 1.0,
            "tokens_per_second": 5.0,
        }
        records.append(record)
    records.append({"step": 20000, "train_nll": 1.0})  # a line that somebody edited
    write_metrics(own, records)
    write_data(own / "report.js", open_run(own), live=True)
    assert (own / "report.js").stat().st_size < 320_000
    (shown,) = data_of(own)["runs"]
    steps = shown["train"]["step"]
    assert 500 < len(steps) <= 1000
    assert steps[:2] == [9.025, 29.0]  # means of 20 middles: 0, 0.5, ... 18.5 and 19.5, ... 38.5


def test_no_two_scripts_of_a_page_have_the_same_name() -> None:
    """All scripts of a page share their names: the last function of a name is the one."""
    names = []
    for path in sorted(WEB.glob("*.js")):
        script = path.read_text(encoding="utf-8")
        names += re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script, re.MULTILINE)
    assert len(names) > 100
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_a_run_that_is_stopped_is_no_longer_live(data_dir: Path) -> None:
    call("train.py", "--corpus=text.txt", *TINY, "--max_iters=1", "--out_dir=out/short")
    assert '"live":false' in (data_dir / "out/short/report.js").read_text()
    call("train.py", "out/short", "--init_from=resume", "--max_iters=2")
    assert '"step":2,"max_iters":2' in (data_dir / "out/short/report.js").read_text()
    shutil.rmtree(data_dir / "out/short")


FORGED = {"top": None, "log_q": [-1.0], "log_z": [0.5], "nll": None, "by_longest": [0.5]}


@pytest.mark.parametrize("name", FORGED)
def test_an_evaluation_whose_rows_do_not_fit_is_left_out(own: Path, name: str) -> None:
    run = open_run(own)
    path = own / "passage.jsonl"
    (first, *_) = read_passages(path, run.tokenizer, at_most=100, best_step=0)
    line = json.loads(first[0].model_dump_json())
    line["by_longest"] = [[0.5, 0.4] for _ in line["tokens"]]
    path.write_text(json.dumps(line, separators=(",", ":")) + "\n")
    assert len(read_passages(path, run.tokenizer, at_most=100, best_step=0)) == 1
    line[name][3] = FORGED[name]
    path.write_text(json.dumps(line, separators=(",", ":")) + "\n")
    assert read_passages(path, run.tokenizer, at_most=100, best_step=0) == []


def test_each_evaluation_keeps_what_a_passage_costs(own: Path, data_dir: Path) -> None:
    run = open_run(own)
    read = read_passages(own / "passage.jsonl", run.tokenizer, at_most=100, best_step=0)
    evaluated = [record["step"] for record in evaluations_of(own)]
    for evaluations in read:
        assert [passage.step for passage in evaluations] == evaluated
    printed = call("evaluate.py", str(own), "--checkpoint=last", "--json", "--stride=4").stdout
    last = read[0][-1]
    val = open_corpus(run).val
    passages = choose_passages(val, run.tokenizer)
    for evaluations, passage in zip(read, passages, strict=True):
        assert evaluations[-1].tokens == val.tokens[passage].tolist()
    assert PASSAGE / 2 < len(last.tokens) <= PASSAGE
    sizes = [passage.stop - passage.start for passage in passages]
    assert len(run.info.baselines[1].passage_nll) == sum(sizes)
    text, skip = cut_passage(make_eval_text(run, val), passages[0])
    assert text.split.tokens[skip:].tolist() == last.tokens
    device = setup_device("cpu", "float32")
    model, _ = load_model(run, "last", device)
    window = text.split.tokens[skip - 4 : skip + 3]
    logits = model(torch.tensor([window.tolist()]))
    # the first window whose targets are in the passage begins 4 tokens before
    log_q = logits[0].log_softmax(dim=-1)
    entropy = -(log_q.exp() * log_q).sum(dim=-1)
    hot = torch.softmax(logits[0] / 1.5, dim=-1)
    hot_column = PASSAGE_TEMPERATURES.index(1.5)
    assert last.temperatures == [*PASSAGE_TEMPERATURES]
    for place in range(4):
        token = last.tokens[place]
        row = log_q[3 + place]
        target = row[token]
        top = last.top[place]
        assert last.nll[place] == pytest.approx(-target.item(), abs=2e-3)
        assert last.entropy[place] == pytest.approx(entropy[3 + place].item(), abs=2e-3)
        assert last.rank[place] == 1 + (row > target).sum().item()
        assert top == row.topk(5).indices.tolist()
        log_q_top = last.log_q[place]
        log_z = last.log_z[place]
        assert log_q_top
        assert log_z
        tempered = np.exp(np.array(log_q_top) / 1.5 - log_z[hot_column])
        expected = hot[3 + place, top].tolist()
        assert tempered.tolist() == pytest.approx(expected, rel=5e-3)
    assert json.loads(printed)["targets"] > PASSAGE


def test_gzip_pays_for_a_passage_what_it_adds_to_the_text_before(own: Path, data_dir: Path) -> None:
    run = open_run(own)
    val = open_corpus(run).val
    gzip = next(each for each in run.info.baselines if each.name == "gzip")
    assert min(gzip.passage_nll) >= 0
    start = 0
    for passage in choose_passages(val, run.tokenizer):
        stop = start + passage.stop - passage.start
        text = run.tokenizer.decode_bytes(val.tokens[: passage.start].tolist())
        before = text[-(2**15) :]  # as far as gzip looks back
        shown = run.tokenizer.decode_bytes(val.tokens[passage].tolist())
        size = len(zlib.compress(before, 9))
        added = len(zlib.compress(before + shown, 9)) - size
        bits = sum(gzip.passage_nll[start:stop]) / math.log(2)
        assert bits == pytest.approx(8 * added, abs=17)
        start = stop
    assert start == len(gzip.passage_nll)


def slices_of(tokens: np.ndarray, unmasked: np.ndarray | None = None) -> list[slice]:
    """Choose the passages of a text of the tokens 0, the line end, 1 and 2."""
    tokenizer = char_tokenizer("ab\n")
    assert tokenizer.ids["\n"] == 0
    return choose_passages(Split(tokens, unmasked), tokenizer)


def test_passages_are_whole_lines_spread_over_the_text() -> None:
    lines = np.tile([1] * 29 + [0], 10_000)
    first, second, third = slices_of(lines)
    for passage in (first, second, third):
        assert lines[passage.start - 1] == lines[passage.stop - 1] == 0
        assert PASSAGE - 30 < passage.stop - passage.start <= PASSAGE
    assert first.start <= 2**15 < first.stop  # where gzip's window is full
    assert first.start < second.start < third.start
    assert second.start - first.start == pytest.approx(third.start - second.start, abs=60)
    assert 300_000 - third.stop < second.start - first.start


def test_a_text_without_line_ends_has_passages_too() -> None:
    first, *others = slices_of(np.ones(100_000, dtype=np.int64))
    assert first == slice(2**15, 2**15 + PASSAGE)
    assert len(others) == PASSAGES - 1


def test_a_short_text_has_fewer_passages() -> None:
    assert slices_of(np.array([0, 1])) == [slice(1, 2)]
    assert slices_of(np.ones(PASSAGE, dtype=np.int64)) == [slice(1, PASSAGE)]
    for size in range(2, 3 * PASSAGE, 37):
        end = 0
        for passage in slices_of(np.tile([1, 1, 0], size)[:size]):
            assert max(1, end) <= passage.start < passage.stop <= size
            end = passage.stop


def test_a_passage_under_a_mask_has_a_target() -> None:
    unmasked = np.zeros(100_000, dtype=bool)
    unmasked[90_000] = True
    (passage,) = slices_of(np.ones(100_000, dtype=np.int64), unmasked)
    assert passage.start <= 90_000 < passage.stop == passage.start + PASSAGE
    unmasked[[20_000, 50_000, 50_010]] = True
    passages = slices_of(np.tile([1, 1, 1, 0], 25_000), unmasked)
    assert len(passages) == 2
    for passage in passages:
        assert unmasked[passage].any()


def test_further_passages_are_measured_at_fewer_evaluations(data_dir: Path) -> None:
    (data_dir / "long.txt").write_text(3 * make_text(), encoding="utf-8")
    options = [*TINY, "--eval_interval=1", "--max_iters=7", "--out_dir=out/seven"]
    call("train.py", "--corpus=long.txt", *options)
    run = open_run(data_dir / "out/seven")
    texts = shown_of(run)["texts"]
    first, second, _ = texts
    assert [each["step"] for each in first["evaluations"]] == [*range(8)]
    assert [each["step"] for each in second["evaluations"]] == [0, 1, 2, 4, 7]
    paid: dict[str, float] = {}  # by the unigram, whose costs depend on the token only
    for text in texts:
        costs = text["others"]["unigram"]
        for token, nats in zip(text["tokens"], costs, strict=True):
            assert paid.setdefault(token, nats) == nats
    shutil.rmtree(run.path)


def test_lines_of_earlier_editions_open(own: Path) -> None:
    """They are of one passage, with six temperatures and without the entropy."""
    run = open_run(own)
    lines = []
    for line in (own / "passage.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["number"] == 0:
            for name in ("number", "entropy", "temperatures"):
                del record[name]
            record["log_z"] = [[0.1] * 6 for _ in record["log_z"]]
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
    (own / "passage.jsonl").write_text("".join(lines))
    (text,) = shown_of(run)["texts"]
    assert [each["step"] for each in text["evaluations"]] == [0, 1, 2, 4, 6]
    assert text["temperatures"] == [0.5, 0.7, 0.85, 1.2, 1.5, 2.0]
    assert text["evaluations"][0]["entropy"] == []
    assert set(text["others"]) >= {"unigram", "bigram", "gzip"}


def test_the_difference_of_two_runs_is_that_of_evaluate(data_dir: Path) -> None:
    for seed in ("1", "2"):
        call(
            "train.py",
            "--corpus=text.txt",
            *TINY,
            "--max_iters=20",
            f"--seed={seed}",
            f"--out_dir=out/{seed}",
        )
    runs = [open_run(data_dir / "out" / seed) for seed in ("1", "2")]
    (shown,) = content_of_runs(runs)["pairs"]
    assert shown["runs"] == [0, 1]
    assert not shown["of_documents"]  # parts of one text: the page claims nothing about others
    printed = call("evaluate.py", "out/2", "--against=out/1", "--json").stdout
    found = json.loads(printed)["against"]["difference"]["nats_per_token"]
    assert shown["unit"] == "nats_per_token"
    assert shown["value"] == pytest.approx(found["value"], abs=1e-5)
    width = shown["high"] - shown["low"]
    exact = found["high"] - found["low"]
    assert 0.5 * exact < width < 2 * exact  # the same blocks of the text, but for their borders


def test_runs_of_other_targets_are_compared_with_none(tmp_path: Path) -> None:
    make_ended_run(tmp_path / "a", 1.5, {})
    make_ended_run(tmp_path / "b", 1.6, {}, run={"seed": 7})
    make_ended_run(tmp_path / "c", 1.7, {"stopped_early": 1.0}, run={"seed": 8})
    make_ended_run(tmp_path / "d", 1.0, None, data={"mask": "[A-Z]+:"})
    make_ended_run(tmp_path / "e", 1.1, {"diverged": 1.0}, data={"mask": "[A-Z]+:"})
    content = content_of_runs([open_run(tmp_path / name) for name in "abcde"])
    pairs = [pair["runs"] for pair in content["pairs"]]
    assert pairs == [[0, 1], [0, 2], [1, 2]]
    differences = [pair["value"] for pair in content["pairs"]]
    assert differences == pytest.approx([0.1, 0.2, 0.1], abs=2e-3)
    assert all(pair["low"] < pair["value"] < pair["high"] for pair in content["pairs"])
    runs = content["runs"]
    assert [run["target"] for run in runs] == [0, 0, 0, 1, 1]
    assert content["targets"][1] == "mask=[A-Z]+:"
    # d and e share all options and the seed: they are no repetition
    assert [run["group"] for run in runs] == [0, 0, 0, 1, 2]
    assert [run["status"] for run in runs] == [
        "finished",
        "finished",
        "stopped early",
        "interrupted",
        "diverged",
    ]
    assert runs[1]["short"] == "seed=7"
    assert runs[3]["short"] == "d"


def test_a_page_of_a_sweep_reads_what_is_new_and_leaves_out_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(tmp_path)
    (tmp_path / "sweep.html").write_text("of an earlier version")
    write_sweep_page(tmp_path, sweep)
    assert "Bokeh" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    content = content_of_sweep(tmp_path, sweep)
    counts = [len(run["val"].get("val_nll", [])) for run in content["runs"]]
    assert counts == [27, 27, 27, 27, 27, 12, 27, 27, 0]
    assert content["runs"][8]["status"] == "waiting"
    opened: list[Path] = []

    def opening(path: Path) -> Run:
        opened.append(path)
        return open_run(path)

    monkeypatch.setattr("page.sweep.open_run", opening)
    with (tmp_path / sweep["runs"][5]["name"] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 480, "tokens": 9, "seconds": 9.0, "val_nll": 1.9}\n')
    first = tmp_path / sweep["runs"][0]["name"]
    (first / "corpus.json").write_text("{}")
    (first / "metrics.jsonl").touch()
    content = content_of_sweep(tmp_path, sweep)
    assert opened == [first, tmp_path / sweep["runs"][5]["name"]]
    assert content["runs"][0]["val"] == {}
    assert len(content["runs"][5]["val"]["val_nll"]) == 13


def test_damaged_files_of_a_run_are_left_out(own: Path) -> None:
    lines = (own / "passage.jsonl").read_bytes().splitlines(keepends=True)
    for damaged in (
        b"",
        b"{}\n",
        b'{"step": 1}\n',
        lines[0].replace(b'"nll":[', b'"nll":[1,'),
        b"\xff\n",
        lines[0].replace(b'"tokens":[', b'"tokens":[99999,'),
        lines[0][:-40] + b"\n",
        b"null\n",
    ):
        (own / "passage.jsonl").write_bytes(damaged)
        (own / "evaluation.json").write_bytes(damaged)
        (own / "verdict.txt").write_bytes(damaged)
        shown = shown_of(open_run(own))
        assert shown["texts"] == []
        assert shown["evaluation"] is None
    (own / "passage.jsonl").write_bytes(lines[0] + b"torn" + lines[1])
    shown = shown_of(open_run(own))
    assert [each["step"] for each in shown["texts"][0]["evaluations"]] == [0]


def test_a_page_of_many_evaluations_stays_small(own: Path) -> None:
    lines = (own / "passage.jsonl").read_text().splitlines(keepends=True)
    many = [lines[0].replace('"step":0', f'"step":{step}') for step in range(200)]
    (own / "passage.jsonl").write_text("".join(many))
    shown = shown_of(open_run(own))
    steps = [each["step"] for each in shown["texts"][0]["evaluations"]]
    assert len(steps) <= 41
    assert steps[-1] == 199
    assert steps == sorted(steps)
    best = min(evaluations_of(own), key=lambda record: record["val_nll"])
    assert best["step"] in steps


def test_all_baselines_are_said_that_the_model_has_passed(trained) -> None:
    baselines = open_run(trained[0]).info.baselines
    content = content_of_baselines(baselines, [], {"step": 3, "val_nll": 0.1}, None)
    assert len(content["passed"]) > len(content["baselines"])  # which have a line in the picture
    assert {name for name, _ in content["passed"]} == {each.name for each in baselines}
    assert not content["ahead"]
