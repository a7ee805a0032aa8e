"""What a run's page is told: its numbers are those of the metrics. tests/test_browser.py looks at
the page itself.
"""

import json
import math
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.size import count_flops
from data.baselines import find_passage
from data.documents import Split
from data.info import PASSAGE
from data.tokenizer import char_tokenizer
from engine.checkpoint import load_model
from engine.device import setup_device
from engine.evaluation import cut_passage
from engine.run import open_run
from engine.run_text import make_eval_text, open_corpus
from page.content import content_of_runs
from page.page import write_data
from page.records import read_passages
from report.analysis import PASSAGE_TEMPERATURES
from tests.conftest import TINY, call, read_metrics, write_metrics


@pytest.fixture
def own(trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def data_of(script: str) -> dict[str, Any]:
    return json.loads(script.removeprefix("receive(").removesuffix(");"))


def test_training_writes_a_page_whose_numbers_are_the_metrics(own: Path) -> None:
    page, data = (
        (own / "report.html").read_text(encoding="utf-8"),
        data_of((own / "report.js").read_text()),
    )
    assert "report.js" in page
    assert "Bokeh" in page
    # nothing from a network
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.split("<script>")[0])
    assert not data["live"]
    assert data["status"] == "step 6 of 6"
    (shown,), records = data["runs"], read_metrics(own)
    evaluations = [record for record in records if "val_nll" in record]
    assert shown["val"]["step"] == [record["step"] for record in evaluations]
    assert shown["val"]["val_nll"] == pytest.approx(
        [record["val_nll"] for record in evaluations], rel=1e-5
    )
    assert shown["best_nll"] == records[-1]["best_val_nll"]
    # in the middle of what each is the mean of
    assert shown["train"]["step"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    per_position = count_flops(open_run(own).cfg.model, open_run(own).info.vocab_size)
    positions = [record["positions"] for record in evaluations]
    assert positions == [record["step"] * 4 * 8 for record in evaluations]
    assert shown["val"]["flops"] == pytest.approx(
        [per_position * count for count in positions], rel=1e-5
    )
    assert shown["verdict"].startswith("The best model, of step")
    assert shown["samples"][0]["step"] == 0


def test_the_page_says_overfitting_where_the_training_did(own: Path) -> None:
    """A validation loss that rises for another reason, as in a run that diverges, is not shaded."""
    records = [record for record in read_metrics(own) if "val_nll" in record]
    rising = [record | {"val_nll": 1.0 + number} for number, record in enumerate(records)]

    def overfits() -> bool:
        write_metrics(own, rising)
        shown: bool = content_of_runs([open_run(own)])["runs"][0]["overfits"]
        return shown

    assert not overfits()
    rising[-1]["overfitting"] = 2
    assert overfits()
    # the page's script shows it where it is so
    assert 'id="shaded" hidden' in (own / "report.html").read_text()


def test_flops_count_what_was_computed_masked_or_not(data_dir: Path) -> None:
    """Of all batches, also where a run was resumed with larger ones; the number of targets says
    nothing of it.
    """
    arguments = ["--corpus=text.txt", "--out_dir=out/run", *TINY, "--mask=the"]
    call("train.py", *arguments)
    call("train.py", *arguments, "--init_from=resume", "--batch_size=6", "--max_iters=8")
    run = open_run(data_dir / "out/run")
    per_position = count_flops(run.cfg.model, run.info.vocab_size)
    records = read_metrics(run.path)
    assert all(record["tokens"] < record["positions"] for record in records if record.get("tokens"))
    expected = [per_position * 8 * (6 * 4 + 2 * 6), per_position * 8 * 6 * 4]
    assert content_of_runs([run])["runs"][0]["val"]["flops"][:-3:-1] == pytest.approx(
        expected, rel=1e-5
    )
    old = [
        {name: value for name, value in record.items() if name != "positions"} for record in records
    ]
    write_metrics(run.path, old)
    assert content_of_runs([run])["runs"][0]["val"]["flops"][-1] == pytest.approx(
        per_position * 8 * 8 * 6, rel=1e-5
    )


def test_a_page_of_several_runs_says_what_differs(own: Path, data_dir: Path) -> None:
    other = Path(shutil.copytree(own, own.with_name("other")))
    cfg = (other / "config.toml").read_text()
    (other / "config.toml").write_text(cfg.replace("seed = 1337", "seed = 7"))
    call("curves.py", str(own), str(other), f"--html={own}/both.html")
    data = content_of_runs([open_run(own), open_run(other)])
    assert data["differences"] == {"seed": ["1337", "7"]}
    mistake = call("curves.py", str(own), "--html=a.html", "--unit=bits_per_byte", check=False)
    assert mistake.stderr == "error: unit: no use with html; who looks at the page chooses there\n"
    assert (own / "both.html").stat().st_size < 2.5e6


def test_bits_per_byte_are_those_of_the_targets(data_dir: Path) -> None:
    """Under a mask: here, targets are digits and names, which are not masked, are long tokens."""
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
    run, final = open_run(Path("out/m")), read_metrics(Path("out/m"))[-1]
    (shown,) = content_of_runs([run])["runs"]
    bits = final["best_val_nll"] / math.log(2) / shown["bytes_per_target"]
    assert bits == pytest.approx(final["best_val_bits_per_byte"])
    assert run.tokenizer.byte_lengths[open_corpus(run).val.tokens].mean() != pytest.approx(
        shown["bytes_per_target"], rel=0.1
    )


def test_a_million_lines_are_thinned(own: Path) -> None:
    with (own / "metrics.jsonl").open("w") as file:
        for step in range(20_000):
            file.write(
                json.dumps(
                    {
                        "step": step,
                        "tokens": 64 * step,
                        "seconds": step / 100,
                        "lr": 0.1,
                        "train_nll": 1 + 1 / (1 + step),
                        "grad_norm": 1.0,
                        "tokens_per_second": 5.0,
                    }
                )
                + "\n"
            )
        file.write('{"step": 20000, "train_nll": 1.0}\n')  # a line that somebody edited
    write_data(own / "report.js", open_run(own), "", live=True)
    assert (own / "report.js").stat().st_size < 250_000
    steps = data_of((own / "report.js").read_text())["runs"][0]["train"]["step"]
    assert 500 < len(steps) <= 1000
    assert steps[:2] == [9.025, 29.0]  # means of 20 middles: 0, 0.5, ... 18.5 and 19.5, ... 38.5


def test_a_run_that_is_stopped_is_no_longer_live(data_dir: Path) -> None:
    call("train.py", "--corpus=text.txt", *TINY, "--max_iters=1", "--out_dir=out/short")
    assert '"live":false' in (data_dir / "out/short/report.js").read_text()
    call("train.py", "out/short", "--init_from=resume", "--max_iters=2")
    assert '"status":"step 2 of 2"' in (data_dir / "out/short/report.js").read_text()
    shutil.rmtree(data_dir / "out/short")


def test_each_evaluation_keeps_what_a_passage_costs(own: Path, data_dir: Path) -> None:
    run, records = open_run(own), read_metrics(own)
    passages = read_passages(own / "passage.jsonl", run.tokenizer, at_most=100, best_step=0)
    assert [each.step for each in passages] == [
        record["step"] for record in records if "val_nll" in record
    ]
    found = json.loads(
        call("evaluate.py", str(own), "--checkpoint=last", "--json", "--stride=4").stdout
    )
    last, where = passages[-1], find_passage(open_corpus(run).val, run.tokenizer)
    assert last.tokens == open_corpus(run).val.tokens[where].tolist()
    assert len(last.tokens) == PASSAGE == len(run.info.baselines[1].passage_nll)
    text, skip = cut_passage(make_eval_text(run, open_corpus(run).val), run.tokenizer)
    assert text.split.tokens[skip:].tolist() == last.tokens
    device = setup_device("cpu", "float32")
    model, _ = load_model(run, "last", device)
    window = text.split.tokens[skip - 4 : skip + 3]
    logits = model(torch.tensor([window.tolist()]))
    # the first window whose targets are in the passage begins 4 tokens before
    log_q = logits[0].log_softmax(dim=-1)
    for place in range(4):
        token = last.tokens[place]
        row = log_q[3 + place]
        assert last.nll[place] == pytest.approx(-row[token].item(), rel=2e-3)
        assert last.rank[place] == 1 + int((row > row[token]).sum())
        assert last.top[place] == row.topk(5).indices.tolist()
        hot = torch.softmax(logits[0, 3 + place] / 2.0, dim=-1)[last.top[place]]
        log_q_top, log_z = last.log_q[place] or [], last.log_z[place] or []
        at_two = [
            math.exp(each / 2.0 - log_z[PASSAGE_TEMPERATURES.index(2.0)]) for each in log_q_top
        ]
        assert at_two == pytest.approx(hot.tolist(), rel=5e-3)
    assert found["targets"] > PASSAGE


def test_gzip_pays_for_a_passage_what_it_adds_to_the_text_before(own: Path, data_dir: Path) -> None:
    run = open_run(own)
    val, where = open_corpus(run).val, find_passage(open_corpus(run).val, run.tokenizer)
    before, passage = (
        run.tokenizer.decode_bytes(val.tokens[part].tolist())
        for part in (slice(where.start), where)
    )
    added = len(zlib.compress(before[-(2**15) :] + passage, 9)) - len(
        zlib.compress(before[-(2**15) :], 9)
    )
    gzip = next(each for each in run.info.baselines if each.name == "gzip")
    assert sum(gzip.passage_nll) / math.log(2) == pytest.approx(8 * added, abs=17)
    assert min(gzip.passage_nll) >= 0


def test_a_passage_under_a_mask_has_a_target() -> None:
    tokenizer = char_tokenizer("ab\n")
    unmasked = np.zeros(100_000, dtype=bool)
    unmasked[90_000] = True
    where = find_passage(Split(np.zeros(100_000, dtype=np.int64), unmasked), tokenizer)
    assert where.start < 90_000 < where.stop == where.start + PASSAGE
    assert find_passage(Split(np.array([0, 1])), tokenizer) == slice(1, 2)
    lines = np.array([1] * 40_000 + [0] + [1] * 40_000)
    assert find_passage(Split(lines), tokenizer).start == 2**15  # no line end is near
    lines[2**15 + 7] = 0
    assert find_passage(Split(lines), tokenizer).start == 2**15 + 8


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
    shown = content_of_runs(runs)["runs"][1]["difference"]
    assert not shown["of_documents"]  # parts of one text: the page claims nothing about others
    found = json.loads(call("evaluate.py", "out/2", "--against=out/1", "--json").stdout)["against"][
        "difference"
    ]
    assert shown["unit"] == "nats_per_token"
    assert shown["value"] == pytest.approx(found["nats_per_token"]["value"], abs=1e-5)
    width, exact = (
        shown["high"] - shown["low"],
        found["nats_per_token"]["high"] - found["nats_per_token"]["low"],
    )
    assert 0.5 * exact < width < 2 * exact  # the same blocks of the text, but for their borders


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
        (shown,) = content_of_runs([open_run(own)])["runs"]
        assert shown["text"] is None
        assert shown["evaluation"] is None
    (own / "passage.jsonl").write_bytes(lines[0] + b"torn" + lines[1])
    (shown,) = content_of_runs([open_run(own)])["runs"]
    assert [each["step"] for each in shown["text"]["evaluations"]] == [0]


def test_a_page_of_many_evaluations_stays_small(own: Path) -> None:
    lines = (own / "passage.jsonl").read_text().splitlines(keepends=True)
    (own / "passage.jsonl").write_text(
        "".join(lines[0].replace('"step":0', f'"step":{step}') for step in range(200))
    )
    (shown,) = content_of_runs([open_run(own)])["runs"]
    steps = [each["step"] for each in shown["text"]["evaluations"]]
    assert len(steps) <= 41
    assert steps[-1] == 199
    assert steps == sorted(steps)
    best = min(
        (record for record in read_metrics(own) if "val_nll" in record),
        key=lambda each: each["val_nll"],
    )
    assert best["step"] in steps
