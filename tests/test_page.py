"""What a run's page is told: its numbers are those of the metrics. tests/test_browser.py looks at the page itself."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.run import open_run
from report.page import describe_runs, write_data
from tests.conftest import TINY, call, read_metrics


@pytest.fixture
def own(trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def data_of(script: str) -> dict[str, Any]:
    return json.loads(script.removeprefix("receive(").removesuffix(");"))


def test_training_writes_a_page_whose_numbers_are_the_metrics(own: Path) -> None:
    page, data = (own / "report.html").read_text(encoding="utf-8"), data_of((own / "report.js").read_text())
    assert "report.js" in page
    assert "Plotly" in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.split("<script>")[0])  # nothing from a network
    assert not data["live"]
    assert data["status"] == "step 6 of 6"
    (shown,), records = data["runs"], read_metrics(own)
    evaluations = [record for record in records if "val_nll" in record]
    assert shown["val"]["step"] == [record["step"] for record in evaluations]
    assert shown["val"]["val_nll"] == pytest.approx([record["val_nll"] for record in evaluations], rel=1e-5)
    assert shown["best_nll"] == records[-1]["best_val_nll"]
    assert shown["train"]["step"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]  # in the middle of what each is the mean of
    tokens, flops = shown["val"]["tokens"], shown["val"]["flops"]
    per_token = open_run(own).config.model.flops_per_token(open_run(own).info.vocab_size)
    assert flops == pytest.approx([per_token * count for count in tokens], rel=1e-5)
    assert shown["verdict"].startswith("The best model, of step")
    assert shown["samples"][0]["step"] == 0


def test_a_page_of_several_runs_says_what_differs(own: Path, data_dir: Path) -> None:
    other = Path(shutil.copytree(own, own.with_name("other")))
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("seed = 1337", "seed = 7"))
    call("curves.py", str(own), str(other), f"--html={own}/both.html")
    data = describe_runs([open_run(own), open_run(other)])
    assert data["differences"] == {"seed": ["1337", "7"]}
    mistake = call("curves.py", str(own), "--html=a.html", "--unit=bits_per_byte", check=False)
    assert mistake.stderr == "error: unit: no use with html; who looks at the page chooses there\n"
    assert (own / "both.html").stat().st_size < 6e6


def test_a_million_lines_are_thinned(own: Path) -> None:
    with (own / "metrics.jsonl").open("w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "tokens": 64 * step, "seconds": step / 100, "lr": 0.1,
                                   "train_nll": 1 + 1 / (1 + step), "grad_norm": 1.0, "tokens_per_second": 5.0}) + "\n")
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
