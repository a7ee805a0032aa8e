"""The page of a model that learns while it reads, in a browser: the loss along the text, and parts.

Needs Chromium, as tests/test_browser.py does.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import NEEDS_BROWSER, Tab, drawn
from tests.conftest import TINY, call, make_text, only_numbers, training_in
from tests.test_dynamic import NAMES, make_play

pytestmark = NEEDS_BROWSER
DRAWN = "document.querySelector('#places canvas, #places .bk-Canvas') || plots.size"
PINS = "[...document.querySelectorAll('.pins button')].map(each => each.textContent)"
LABELS = "[...document.querySelectorAll('#places .labels span')].map(each => each.textContent)"
COLOURS = "[...heat.children].map(span => span.style.background)"
RATES = ["--learning_rate=0.003"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Write pages of a tiny run that learns: by their names, what evaluate.py says of each text.

    Half of the validation text, and of a text of one's own, has names that come first there. The
    parts are small, so that there are some.
    """
    folder = tmp_path_factory.mktemp("along")
    with training_in(folder) as patch:
        only_numbers(patch)
        patch.setattr("report.along_text.PART_BYTES", 50)
        Path("play.txt").write_text(make_play(), encoding="utf-8")
        Path("plays.txt").write_text(make_text(150) + make_play(), encoding="utf-8")
        options = ["--corpus=plays.txt", "--val_fraction=0.4", "--out_dir=out/run"]
        call("train.py", *options, *TINY, "--watchers=")
        found = {}
        for name, *arguments in (["val.html"], ["own.html", "--text=play.txt"]):
            options = ["--dynamic", "--json", *RATES, *arguments]
            said = call("evaluate.py", "out/run", *options, f"--html={name}").stdout
            found[name] = json.loads(said)
        yield found


@pytest.fixture
def along(browser: Any, pages: dict[str, Any]) -> Iterator[Tab]:
    tab = Tab(browser, Path("val.html").resolve(), drawn="plots.size && window.Bokeh")
    tab.page.wait_for_function(f"{LABELS}.length")
    yield tab
    tab.close()


def test_the_picture_has_a_line_of_each_and_a_mark_where_names_come_in(
    along: Tab, pages: dict[str, Any]
) -> None:
    found = pages["val.html"]["along_text"]
    names = list(found["bits_per_byte"])
    assert names == ["standing still", "learning", "trained PPMd"]
    for number, name in enumerate(names):  # the first mark is the area between two lines
        assert drawn(along, "places", 1 + number) == found["bits_per_byte"][name]
    labels = along(LABELS)
    losses = [pages["val.html"]["dynamic"]["standing_still"], pages["val.html"]["loss"]]
    for name, loss in zip(names, losses, strict=False):
        assert f"{name} {loss['bits_per_byte']['value']:.2f}" in labels
    (mark,) = found["marks"]
    assert along(PINS) == [f"1 {', '.join(mark['words'])}"]
    assert along.text("#marks").split("\n")[-1] == f"1 {', '.join(mark['words'])}"
    assert "At a dotted line many new words come in" in along.text("#reading-it")
    assert "parts of about 50" in along.text("#reading-it")
    # the thick line does not reach across the mark
    part = along(f"partAt({mark['start']})")
    thick = drawn(along, "places", 5)
    losses = found["bits_per_byte"]["learning"]
    assert thick[part] == pytest.approx(sum(losses[part : part + 5]) / 5)
    assert thick[part - 1] == pytest.approx(sum(losses[part - 5 : part]) / 5)


def test_a_part_is_read_as_it_was_learned(along: Tab, pages: dict[str, Any]) -> None:
    """The first one shown is where learning saved most; colours say what it changed."""
    found = pages["val.html"]["along_text"]["bits_per_byte"]
    still, learning = found["standing still"], found["learning"]
    gains = [one - other for one, other in zip(still, learning, strict=True)]
    part = gains.index(max(gains))
    assert along("part") == part
    said = along.text("#part-says")
    assert f"standing still {still[part]:.2f}, learning {learning[part]:.2f}" in said
    assert along.text("#turning output").startswith(f"part {part + 1} of {len(still)}")
    differences = along(COLOURS)
    assert "blue: learning saves" in along.text("#legend")
    texts = along("[readText().evaluations[0].nll, readText().others['standing still']]")
    for value, nll in (("", texts[0]), ("alone", texts[1])):
        along.page.select_option("[name=versus]", value)
        assert along(COLOURS) != differences
        expected = along(
            f"(() => {{ const span = document.createElement('span'); paint(span, bits({nll[3]}));"
            "return span.style.background; })()"
        )
        assert along(COLOURS)[3] == expected
    along.page.click("#token3")
    costs = dict(re.findall(r"(learning|standing still)\n([\d.]+)", along.text("#token")))
    assert float(costs["learning"]) == pytest.approx(texts[0][3] / 0.6931, abs=0.01)
    assert float(costs["standing still"]) == pytest.approx(texts[1][3] / 0.6931, abs=0.01)
    assert "Its prediction" not in along.text("#token")
    # the lines of the part, and no chart that needs more than costs
    assert "standing still" in along.text("#lines")
    assert along("[...document.querySelectorAll('.predicted')].every(each => each.hidden)")
    assert along("byId('ranks').hidden && !byId('surprisals').hidden")


def test_a_reader_goes_to_other_parts(along: Tab, pages: dict[str, Any]) -> None:
    (mark,) = pages["val.html"]["along_text"]["marks"]
    place = along(f"partAt({mark['start']})")
    along.page.click(".pins button")
    assert along("part") == place
    words = along("readText().tokens.join('')") + along("page.along.parts[part + 1].tokens")
    assert any(name in words for name in NAMES)
    assert f"New here, or soon: {', '.join(mark['words'])}." in along.text("#part-says")
    along.page.click("[name=later]")
    assert along("part") == place + 1
    along.page.click("[name=earlier]")
    along.page.click("[name=earlier]")
    along.page.click("#marks button")
    assert along("part") == place
    # a click in the picture, but not the end of a drag
    box = along.page.locator("#places").bounding_box()
    x, y = box["x"] + 0.7 * box["width"], box["y"] + 150
    along.page.mouse.click(x, y)
    clicked = along("part")
    assert clicked > place
    along.page.mouse.move(x - 200, y)
    along.page.mouse.down()
    along.page.mouse.move(x - 140, y + 60, steps=4)
    along.page.mouse.up()
    assert along("part") == clicked
    along("showPart(0)")
    assert along("turning.elements.earlier.disabled && !turning.elements.later.disabled")
    along("showPart(1e9)")
    assert along("part === page.along.parts.length - 1 && turning.elements.later.disabled")
    along.page.reload()  # the address has the part
    along.page.wait_for_function("part !== null")
    assert along("part === page.along.parts.length - 1")


def test_a_new_word_costs_less_each_time(along: Tab, pages: dict[str, Any]) -> None:
    new = pages["val.html"]["along_text"]["new_words"]
    assert new["words"] == len(NAMES)
    for number, name in enumerate(["standing still", "learning", "trained PPMd"]):
        assert drawn(along, "times", number) == new["bits"][name]
    said = along.text("#newcomers-say")
    first, last = (new["bits"]["learning"][place] for place in (0, -1))
    assert "5 words come 10 times or more that the text before did not have" in said
    assert f"costs the model that learns {first:.1f} bits; the 10th time" in said
    assert f"{last:.1f} learning, {new['bits']['trained PPMd'][-1]:.1f} by trained PPMd." in said


def test_a_text_of_ones_own_says_why_ppmd_is_not_there(browser: Any, pages: dict[str, Any]) -> None:
    assert list(pages["own.html"]["along_text"]["bits_per_byte"]) == ["standing still", "learning"]
    for width, scheme in ((1280, "light"), (400, "dark")):
        tab = Tab(
            browser,
            Path("own.html").resolve(),
            width=width,
            drawn="plots.size && window.Bokeh",
            color_scheme=scheme,
        )
        tab.page.wait_for_function(f"{LABELS}.length === 2")
        assert tab("document.documentElement.scrollWidth") <= width
        tab.page.click("#along summary")
        assert "PPMd has no line here: it has one only on text of the" in tab.text("#more-of-it")
        assert "trained PPMd" not in tab.text("body")
        assert len(tab(PINS)) == 1
        tab.close()
