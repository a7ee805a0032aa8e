"""The animated picture of `curves.py --animation`: an SVG of a passage's colours."""

import json
import re
import xml.etree.ElementTree as ET
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from config.terminal import count_columns
from data.info import UNIFORM
from data.show import show_token
from engine.run import open_run
from page.animation import COLUMNS, FRAMES, LINES, draw_run, lay_out, opacity_of
from surprisal import LN2
from tests.chromium import NEEDS_BROWSER
from tests.conftest import call, read_metrics, write_metrics

SVG = "{http://www.w3.org/2000/svg}"


def values_of(shape: ET.Element) -> list[str]:
    animation = shape.find(f"{SVG}animate")
    assert animation is not None
    assert animation.get("repeatCount") == "indefinite"
    return animation.get("values", "").split(";")


def tokens_of(svg: str) -> list[ET.Element]:
    """Find the rectangles of the tokens; those of the legend do not move."""
    shapes = ET.fromstring(svg).findall(f"{SVG}rect[@class='cost']")
    return [shape for shape in shapes if len(shape) > 0]


def first_passages(own: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (own / "passage.jsonl").read_text().splitlines())
    return [record for record in records if record["number"] == 0]


def test_its_colours_are_those_of_the_evaluations(own: Path) -> None:
    done = call("curves.py", str(own), f"--animation={own}/learning.svg")
    assert done.stdout == f"{own}/learning.svg\n"
    svg = (own / "learning.svg").read_text(encoding="utf-8")
    passages = first_passages(own)
    shapes = tokens_of(svg)
    assert len(shapes) > 200
    for number, shape in enumerate(shapes):
        values = values_of(shape)
        assert shape.get("fill-opacity") == values[-1]  # where nothing moves
        expected = [opacity_of(passage["nll"][number]) for passage in passages]
        assert values[: len(expected)] == expected
        assert set(values[len(expected) :]) == {expected[-1]}  # it rests there


def test_it_says_the_steps_and_the_losses(own: Path) -> None:
    svg = draw_run(open_run(own))
    said = "".join(ET.fromstring(svg).itertext())
    for record in read_metrics(own):
        if "val_nll" in record:
            assert f"step {record['step']:.0f}" in said
            assert f"loss {record['val_nll']:.2f} nats a character" in said
    baselines = {each.name: each.nats_per_token for each in open_run(own).info.baselines}
    assert f"log|V| = {baselines[UNIFORM]:.2f} nats" in said
    assert "passed: none; ahead: " in said
    assert "passed: log|V|" in said


def test_it_is_small_and_has_no_script(own: Path) -> None:
    passages = (own / "passage.jsonl").read_text().splitlines(keepends=True)
    lines = []
    records = []
    for step in range(500):
        lines.append(passages[0].replace('"step":0', f'"step":{step}', 1))
        records.append({"step": step, "tokens": step, "seconds": 1.0, "val_nll": 2.0})
    (own / "passage.jsonl").write_text("".join(lines))
    write_metrics(own, records)
    svg = draw_run(open_run(own))
    assert 24 <= len(re.findall("<g ", svg)) <= FRAMES + 1
    assert len(svg) < 200_000
    assert not re.search("script|http(?!://www.w3.org/2000/svg)|href|url|onload", svg)


def test_its_text_is_that_of_the_passage(own: Path) -> None:
    """Also that which has a meaning in XML."""
    path = own / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    for letter, sign in ("a<", "t&", "s>"):
        number = tokenizer["token_bytes"].index(b64encode(letter.encode()).decode())
        tokenizer["token_bytes"][number] = b64encode(sign.encode()).decode()
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    run = open_run(own)
    tokens = first_passages(own)[0]["tokens"]
    names = [show_token(run.tokenizer, token) for token in tokens]
    root = ET.fromstring(draw_run(run))
    text = "".join(line.text or "" for line in root.findall(f"{SVG}text[@class='text']"))
    assert "".join(names).startswith(text)
    assert {"<", "&", ">"} <= set(text)


def test_lines_fit() -> None:
    places = lay_out(["日本"] * 40 + ["a⏎", "<|eos|>"] + ["word "] * 1000)
    assert max(line for line, _, _ in places) == LINES - 1
    assert places[16] == (1, 0, "日本")
    assert places[41] == (3, 0, "<|eos|>")
    assert places[42] == (4, 0, "word ")
    assert all(column + count_columns(name) <= COLUMNS for _, column, name in places)
    assert lay_out(["x" * 200]) == [(0, 0, "x" * 200)]


@pytest.mark.parametrize("nats", [-1e-9, 1e300])
def test_an_opacity_is_one(nats: float) -> None:
    assert 0 <= float(opacity_of(nats)) <= 0.85
    assert opacity_of(5 * LN2) == "0.42"


def test_what_cannot_be_drawn_is_said(own: Path) -> None:
    for argument, says in (
        (f"--animation={own}/a.png", "it is an SVG"),
        ("--animation=a.svg --terminal", "terminal: no use with animation"),
    ):
        done = call("curves.py", str(own), *argument.split(), check=False)
        assert done.returncode == 2
        assert says in done.stderr
    done = call("curves.py", str(own), str(own), "--animation=a.svg", check=False)
    assert done.stderr == "error: animation: is of one run, and these are 2; name one\n"
    (own / "passage.jsonl").unlink()
    done = call("curves.py", str(own), "--animation=a.svg", check=False)
    assert done.returncode == 2
    assert "nothing to animate" in done.stderr
    assert not Path("a.svg").exists()


@NEEDS_BROWSER
def test_a_browser_plays_it(browser: Any, own: Path) -> None:
    (own / "learning.svg").write_text(draw_run(open_run(own)), encoding="utf-8")
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")):
        page = browser.new_page(color_scheme=scheme)
        page.goto((own / "learning.svg").as_uri())
        style = "getComputedStyle(document.querySelector('{}')).{}"
        assert page.evaluate(style.format(".card", "fill")) == paper
        shown = []
        page.evaluate("document.rootElement.pauseAnimations()")
        for seconds in (0.1, 1.1, 605.2):  # 5 evaluations, the last 8 times as long
            page.evaluate(f"document.rootElement.setCurrentTime({seconds})")
            groups = (
                "[...document.querySelectorAll('g')].map(each => getComputedStyle(each).opacity)"
            )
            shown.append(page.evaluate(groups).index("1"))
        assert shown == [0, 2, 4]
        page.close()
