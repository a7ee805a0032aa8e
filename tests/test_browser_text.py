"""The text in a browser: the panel of a token, the choice of a passage, and how bits are spread.

Needs Chromium, as tests/test_browser.py does.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from data.info import choose_landmarks
from engine.run import open_run
from tests.chromium import NEEDS_BROWSER, Tab, open_page

pytestmark = NEEDS_BROWSER
# rows of a small chart in the panel: name, number and kind
ROWS = """[...document.querySelectorAll('#token .bar')].map(row =>
    [row.querySelector('.name').textContent, row.querySelector('.number').textContent,
     row.className.replace('bar', '').trim()])"""
SPREAD = """[...document.querySelectorAll('#{} .bar')].map(row =>
    parseFloat(row.querySelector('i').style.width))"""


def read_evaluations(own: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (own / "passage.jsonl").read_text().splitlines()]


def write_evaluations(own: Path, records: list[dict[str, Any]]) -> None:
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    (own / "passage.jsonl").write_text("".join(lines))


def best_of(own: Path, tab: Tab) -> dict[str, Any]:
    """Return the evaluation that the page shows at first."""
    step = tab("momentShown()")
    return next(each for each in read_evaluations(own) if each["step"] == step)


def in_bits(nats: float) -> str:
    return f"{nats / math.log(2):.2f}"


def test_the_panel_says_what_was_expected_and_what_was_paid(tab: Tab, own: Path) -> None:
    best = best_of(own, tab)
    run = open_run(own)
    ranked_first = best["rank"].index(1)
    surprising = best["rank"].index(max(best["rank"]))
    for i in (ranked_first, surprising):
        tab.page.hover(f"#token{i}")
        nll = best["nll"][i]
        rows = tab(ROWS)
        names = [name for name, _, _ in rows]
        after = names.index("others")
        likely = rows[:5]
        came = tab(f"visible(readText().tokens[{i}])")
        numbers = [float(number.rstrip("%")) for _, number, _ in likely]
        expected = [100 * math.exp(log_q) for log_q in best["log_q"][i]]
        assert numbers == pytest.approx(expected, rel=0.06)
        if i == ranked_first:
            assert likely[0][0::2] == [came, "came"]
            assert after == 5
        else:
            assert rows[5][0::2] == [came, "came"]
            assert after == 6
        costs = {name: number for name, number, _ in rows[after + 1 :]}
        assert costs.pop("this model") == in_bits(nll)
        assert costs.pop("its entropy") == in_bits(best["entropy"][i])
        for baseline in choose_landmarks(run.info.baselines):
            if baseline.passage_nll:
                assert costs.pop(baseline.name) == in_bits(baseline.passage_nll[i])
        assert not costs
        text = tab.text("#token")
        said = [best["entropy"][i] / math.log(2), nll / math.log(2)]
        found = re.findall(r"expected ([\d.]+) bits \(its entropy\), paid ([\d.]+)", text)[0]
        assert [float(each) for each in found] == pytest.approx(said, abs=0.06)


def test_nothing_jumps_as_the_pointer_moves(browser: Any, own: Path) -> None:
    """Also on a phone, where the panel stands under the text, and where a token is masked."""
    records = read_evaluations(own)
    for record in records:
        for name in ("nll", "rank", "top", "log_q", "log_z", "entropy"):
            record[name][5] = None
    write_evaluations(own, records)
    for width in (1400, 390):
        tab = open_page(browser, own, width=width)
        heights = set()
        for i in (0, 5, 20, 60, 100):
            tab(f"describeToken({i})")
            heights.add(tab("byId('token').getBoundingClientRect().height"))
        assert len(heights) == 1
        text, panel = tab("['tokens', 'token'].map(id => byId(id).getBoundingClientRect())")
        assert (panel["x"] > text["right"]) == (width == 1400)
        assert (panel["y"] >= text["bottom"]) == (width == 390)
        assert tab("document.documentElement.scrollWidth") <= width
        tab.close()


def test_a_reader_chooses_a_passage(browser: Any, own: Path) -> None:
    records = read_evaluations(own)
    steps = [record["step"] for record in records]
    for record in list(records):
        if record["step"] in (steps[0], steps[2]):
            turned = record | {"number": 1}
            for name, column in record.items():
                if isinstance(column, list) and name != "temperatures":
                    turned[name] = column[::-1]
            records.append(turned)
    write_evaluations(own, records)
    tab = open_page(browser, own)
    tokens = tab("readText().tokens")
    names = tab("[...reading.elements.passage.options].map(option => option.textContent)")
    assert [name[:6] for name in names] == ["1 of 2", "2 of 2"]
    tab.page.select_option("[name=passage]", "1")
    assert tab("[...heat.children].map(span => span.textContent)") == tokens[::-1]
    # it has fewer evaluations than the slider has steps
    tab.page.fill("[name=evaluation]", str(len(steps) - 1))
    assert tab.text("#measured") == f"measured at step {steps[2]}"
    assert tab("evaluationNow().step") == steps[2]
    tab.page.fill("[name=evaluation]", "0")
    assert tab.text("#measured") == ""
    tab.page.click("#token7")
    tab.page.reload()  # the address has the choice
    tab.page.wait_for_function("document.querySelector('#tokens span')")
    assert tab("[passage, chosen]") == [1, 7]
    tab.close()


def test_arrow_keys_move_in_the_text(tab: Tab) -> None:
    place = "(({offsetLeft, offsetTop}) => [offsetLeft, offsetTop])(byId(`token${chosen}`))"
    tab.page.click("#token40")
    left, top = tab(place)
    tab.page.keyboard.press("ArrowDown")
    below, line = tab(place)
    assert line > top
    assert abs(below - left) < 20
    tab.page.keyboard.press("ArrowUp")
    assert tab(place) == [pytest.approx(left, abs=20), top]
    tab.page.click("#token40")
    tab.page.keyboard.press("ArrowLeft")
    assert tab("chosen") == 39
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("ArrowDown")
    assert tab("chosen === readText().tokens.length - 1")


def test_few_dear_tokens_make_the_mean(tab: Tab, own: Path) -> None:
    for place, record in enumerate(read_evaluations(own)):
        tab.page.fill("[name=evaluation]", str(place))
        costs = sorted((nll / math.log(2) for nll in record["nll"]), reverse=True)
        count = round(0.1 * len(costs))
        share = round(100 * sum(costs[:count]) / sum(costs))
        said = tab.text("#costly")
        assert f"A tenth of the tokens pays {share}% of the bits" in said
        assert f"the {count} costliest of {len(costs)} cost" in said
        assert f"The mean is {sum(costs) / len(costs):.2f} bits" in said
        for chart, bins in (("surprisals", 7), ("ranks", 4)):
            widths = tab(SPREAD.format(chart))
            assert len(widths) == 2 * bins
            assert sum(widths[0::2]) == pytest.approx(100, abs=0.1)  # of the tokens
            assert sum(widths[1::2]) == pytest.approx(100, abs=0.1)  # of the bits
        best = sum(rank == 1 for rank in record["rank"]) / len(costs)
        assert tab(SPREAD.format("ranks"))[0] == pytest.approx(100 * best, abs=0.01)
        dearest = sum(cost >= 8 for cost in costs) / len(costs)
        assert tab(SPREAD.format("surprisals"))[12] == pytest.approx(100 * dearest, abs=0.01)


def test_files_of_earlier_editions_say_no_entropy(browser: Any, own: Path) -> None:
    records = read_evaluations(own)
    for record in records:
        for name in ("number", "entropy", "temperatures"):
            del record[name]
        record["log_z"] = [[0.5] * 6 for _ in record["log_z"]]
    write_evaluations(own, records)
    tab = open_page(browser, own)
    tab.page.hover("#token3")
    assert "entropy" not in tab.text("#token")
    assert "this model" in tab.text("#token")
    assert tab("temperatures().length") == 7
    tab.close()
