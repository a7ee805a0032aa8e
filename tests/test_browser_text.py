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
BARS = """[...document.querySelectorAll('#token .bar')].map(row =>
    [row.querySelector('.name').textContent, parseFloat(row.querySelector('i').style.width)])"""
# of the controls, and of what is below them
PLACES = """[...document.querySelectorAll(
    '#options label, #loss, #reading label, #passage, #timeline > *, #below')]
    .map(each => each.getBoundingClientRect()).filter(each => each.width).map(({x, y, width}) =>
        [x, y + scrollY, width].map(Math.round))"""
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
        # the bars share a scale, also where something costs much
        tab(f"others.unigram[{i}] = 30")
        tab(f"describeToken({i})")
        bars = dict(tab(BARS)[after + 1 :])
        assert bars["unigram"] == 100
        share = 100 * nll / 30
        assert bars["this model"] == pytest.approx(share, abs=0.01)
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
        places = tab(PLACES)
        tab.page.fill("[name=smooth]", "0.5")
        tab.page.select_option("[name=versus]", "unigram")
        tab.page.fill("[name=evaluation]", "0")
        assert tab(PLACES) == places
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
    assert f"shown at step {steps[2]}: it was not measured at {steps[-1]}." in tab.text("#measured")
    assert tab("evaluationNow().step") == steps[2]
    moments = tab("[...document.querySelectorAll('.moment')].map(each => each.textContent)")
    assert moments == [f"at step {steps[2]}"] * 3  # in each part about the passage
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


def leave_out_tables(own: Path) -> dict[str, Any]:
    """Write what the best model would have paid with tables left out; returns its evaluation.

    Of the tokens that the n-grams of 2 and 3 save 2 bits and 1 bit, the third costs more with them.
    """
    records = read_evaluations(own)
    best = min(records, key=lambda record: sum(record["nll"]))
    best["by_longest"] = []
    for i, nll in enumerate(best["nll"]):
        saved = -1.0 if i == 3 else 1.0
        by_longest = [nll + 3 * math.log(2), nll + math.log(2) * saved, nll]
        best["by_longest"].append(by_longest)
    write_evaluations(own, records)
    return best


def put_best_first(own: Path, step: int) -> None:
    """Make a step the best that the metrics know."""
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "val_nll" in line:
            line["val_nll"] = 1.0 + (line["step"] != step)
        if "best_step" in line:
            line["best_step"] = step
    (own / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_token_says_what_it_costs_with_tables_left_out(browser: Any, own: Path) -> None:
    best = leave_out_tables(own)
    put_best_first(own, best["step"])
    tab = open_page(browser, own)
    shown = tab("[readText().tokens.slice(3, 6).map(visible).join(''), momentShown()]")
    assert shown[1] == best["step"]
    tab.page.hover("#token6")
    rows = tab(ROWS)
    names = [name for name, _, _ in rows]
    start = names.index("none") - 2
    bits = best["nll"][6] / math.log(2)
    assert rows[start : start + 3] == [
        [shown[0], f"{bits:.2f}", "own"],
        [shown[0][1:], f"{bits + 1:.2f}", "own most"],
        ["none", f"{bits + 3:.2f}", "own"],
    ]
    assert f"“{shown[0][1:]}” saves 2.00 bits" in tab.text("#token")
    assert "Bits with n-grams of at most\n" in tab.text("#token")
    # the sum of the costs and the baselines have no such row
    assert "without tables" not in names
    tab.page.hover("#token3")
    assert re.search(r"“\S+” saves 4.00 bits", tab.text("#token"))
    tab.page.hover("#token1")  # n-grams that begin before the passage
    assert [name for name, _, _ in tab(ROWS)][start:][:2] == [
        f"…{tab('visible(readText().tokens[0])')}"
    ] * 2
    # also where the text is coloured by another step
    before = tab("byId('token').getBoundingClientRect().height")
    other = 0 if tab("momentIndex(readingRun)") else 1
    tab.page.fill("[name=evaluation]", str(other))
    tab.page.hover("#token6")
    assert f"Step {best['step']}: n-grams of at most\n" in tab.text("#token")
    tab("tablesOf(readText()).step = 10_000_000")  # whose name is long, and stays in its line
    tab.page.hover("#token7")
    assert "Step 10,000,000: n-grams of at most\n" in tab.text("#token")
    assert tab("byId('token').getBoundingClientRect().height") == before
    tab.close()


def test_the_passage_says_which_ngrams_the_model_leans_on(browser: Any, own: Path) -> None:
    best = leave_out_tables(own)
    tab = open_page(browser, own)
    chart = "[...document.querySelectorAll('#ngrams .bar')].map(row => row.innerText.split('\\n'))"
    count = len(best["nll"])
    nats = sum(best["nll"]) / count
    with_2 = nats + math.log(2) * (count - 2) / count
    values = [nats, with_2, nats + 3 * math.log(2)]
    names = ["3 characters", "2 characters", "none"]
    units = {
        "nats": values,
        "perplexity": [math.exp(value) for value in values],
        "bits_per_byte": [
            value / math.log(2) / open_run(own).info.bytes_per_target for value in values
        ],
    }
    for unit, expected in units.items():
        tab.page.locator(f"[name=y][value={unit}]").check(force=True)
        rows = tab(chart)
        assert [name for name, _ in rows] == names
        numbers = [float(number) for _, number in rows]
        assert numbers == pytest.approx(expected, abs=1e-3)
        said = tab.text("#leans")
        assert f"{expected[2]:.3f} without tables" in said
        assert "The n-grams of 2 characters save most" in said
        assert (f"perplexity {expected[0]:.3f}" in said) == (unit == "perplexity")
    assert "not what a model trained without them would have" in tab.text("#tables")

    # the colours by what tables save, and the bits of each line without them
    tab.page.select_option("[name=versus]", "without tables")
    assert "than without tables" in tab.text("#legend")
    assert tab("byId('token6').style.background") == tab(
        "(() => { const span = "
        "document.createElement('span'); paint(span, -3, 5); return span.style.background; })()"
    )
    assert "without tables" in tab.text("#lines")
    tab.close()


def test_a_run_without_tables_shows_none(tab: Tab) -> None:
    assert tab("byId('tables').hidden")
    assert "n-grams of at most" not in tab.text("#token")
    options = tab("[...reading.elements.versus.options].map(option => option.textContent)")
    assert "what tables save" not in options


def test_tokens_are_masked_and_the_panel_keeps_its_height_with_tables(
    browser: Any, own: Path
) -> None:
    leave_out_tables(own)
    records = read_evaluations(own)
    for record in records:
        for name in ("nll", "rank", "top", "log_q", "log_z", "entropy", "by_longest"):
            if name in record:
                record[name][5] = None
    write_evaluations(own, records)
    for width, scheme in ((1400, "light"), (390, "dark")):
        tab = open_page(browser, own, width=width, color_scheme=scheme)
        heights = set()
        for i in (0, 5, 20, 60, 100):
            tab(f"describeToken({i})")
            heights.add(tab("byId('token').getBoundingClientRect().height"))
        assert len(heights) == 1
        assert not tab("byId('tables').hidden")
        # the plot fills its card, also where the panel beside it is taller
        bottom = "byId('{}').getBoundingClientRect().bottom"
        below_plot = f"{bottom.format('curves')} - {bottom.format('caption')}"
        assert tab(below_plot) < 25
        assert tab("document.documentElement.scrollWidth") <= width
        tab.close()
