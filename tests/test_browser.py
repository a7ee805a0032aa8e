"""The page in a real browser.

Needs Chromium and `pip install -r requirements-ci.txt`; elsewhere these are skipped.
"""

import itertools
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from data.info import EQUAL, choose_landmarks, passed_and_ahead, read_info
from engine.run import open_run
from page.content import content_of_runs
from page.page import write_live_page, write_page, write_runs
from tests.chromium import DRAWN, LABELS, LOSS, NEEDS_BROWSER, Tab, drawn
from tests.conftest import TINY, call, read_metrics, write_metrics
from tests.one_run import write_data

pytestmark = NEEDS_BROWSER
# the table of lines, and a column of the table of runs
LINES = (
    "[...document.querySelectorAll('#lines tr')]"
    ".map(row => [...row.cells].map(each => each.textContent))"
)
RUN_CELLS = (
    "[...document.querySelectorAll('#runs tr')].slice(1).map(row => row.cells[{}].textContent)"
)
# draws the plots too that nobody sees, and waits for all
DRAW_UNSEEN = """(async () => {
    for (const place of plots.keys()) show(place);
    for (const each of plots.values()) await each.view;
})()"""
EVIL = "</script><script>document.title = 'stolen'</script><b>&amp;$$x$$"


Values = list[float]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def y_of(tab: Tab, number: int) -> Values:
    """Return the values of one of the curves: 0 is training, 1 validation."""
    return drawn(tab, "loss", number)


def test_the_controls_do_what_they_say(tab: Tab, own: Path) -> None:
    run = open_run(own)
    records = [record for record in read_metrics(own) if "val_nll" in record]
    train = [record["train_nll"] for record in read_metrics(own) if "train_nll" in record]
    val = [record["val_nll"] for record in records]
    assert y_of(tab, 1) == pytest.approx(val, rel=1e-5)
    tab.page.check("[name=y][value=bits_per_byte]")
    bits = [nll / math.log(2) / run.info.bytes_per_target for nll in val]
    assert y_of(tab, 1) == pytest.approx(bits, rel=1e-5)
    tab.page.check("[name=y][value=perplexity]")
    perplexities = [math.exp(nll) for nll in val]
    assert y_of(tab, 1) == pytest.approx(perplexities, rel=1e-4)
    # nats are smoothed, then converted; the first point has no extra weight
    tab.page.fill("[name=smooth]", "0.5")
    total = 0.0
    weights = 0.0
    smoothed = []
    for nll in train:
        total = 0.5 * total + nll
        weights = 0.5 * weights + 1
        smoothed.append(math.exp(total / weights))
    assert len(smoothed) == 6
    assert y_of(tab, 0) == pytest.approx(smoothed, rel=1e-4)
    tab.page.select_option("[name=x]", "tokens")
    tab.page.uncheck("[name=logx]")
    assert drawn(tab, "loss", 1, "x") == [record["tokens"] for record in records]
    tab.page.check("[name=logy]")
    tab.page.wait_for_function(f"{LOSS}.figure.yaxes[0].type === 'LogAxis'")
    labels = f"{LABELS}.map(each => each.textContent)"
    tab.page.wait_for_function(f"{labels}.length > 0")
    named = "findBaselines('perplexity').map(([name, value]) => `${name} ${value.toPrecision(4)}`)"
    assert tab(labels) == tab(f"{named}.reverse()")
    assert len(tab(labels)) > 3
    tab.page.uncheck("[name=baselines]")
    y_of(tab, 1)
    assert tab(labels) == []
    tab.page.reload()  # the address has the state
    tab.page.wait_for_function(DRAWN)
    assert tab("options()") == {
        "x": "tokens",
        "logx": False,
        "y": "perplexity",
        "logy": True,
        "fit": "all",
        "mean": True,
        "smooth": "0.5",
        "baselines": False,
    }


def test_hovering_shows_the_numbers(tab: Tab, own: Path) -> None:
    record = [record for record in read_metrics(own) if "val_nll" in record][2]
    x, y = (drawn(tab, "loss", 1, column)[2] for column in "xy")
    place = tab(f"""{LOSS}.view.then(({{frame, el}}) => {{ const box = el.getBoundingClientRect();
        return [box.x + frame.x_scale.compute({x}), box.y + frame.y_scale.compute({y})]; }})""")
    tab.page.mouse.move(place[0] - 5, place[1])
    tab.page.mouse.move(*place)
    tab.page.wait_for_selector(f"text=at {record['step']:.0f} steps", timeout=5_000)
    assert f"{record['val_nll']:.4f}validation" in tab("document.querySelector('.told').innerText")


def test_a_token_shows_its_cost(tab: Tab, own: Path) -> None:
    passages = read_lines(own / "passage.jsonl")
    evals = [record for record in read_metrics(own) if "val_nll" in record]
    best = min(evals, key=lambda record: record["val_nll"])["step"]
    assert tab.text("#timeline output").startswith(f"step {best:.0f} · ")
    assert tab.text("#timeline output").endswith(" text, the best")
    (passage,) = [each for each in passages if each["step"] == best]
    tab.page.hover("#token30")
    nats = passage["nll"]
    bits = nats[30] / math.log(2)
    text = tab.text("#token")
    assert f"{bits:.2f} bits = probability " in text
    assert f"rank {passage['rank'][30]} of {open_run(own).info.vocab_size}" in text
    (probability,) = re.findall(r"probability ([\d.]+)%", text)
    assert float(probability) == pytest.approx(100 * math.exp(-nats[30]), rel=0.06)
    up_to_here = sum(cost for cost in nats[:31] if cost is not None)
    assert f"up to here {up_to_here / math.log(2):.1f} bits" in text
    # the keyboard moves the choice, and the charts follow
    tab.page.click("#token30")
    tab.page.keyboard.press("ArrowRight")
    assert tab("document.querySelector('.chosen').id") == "token31"
    assert sum(drawn(tab, "softmax", 0)) == pytest.approx(1, abs=2e-3)
    assert sum(drawn(tab, "softmax", 1)) == pytest.approx(1, abs=2e-3)  # at a temperature
    assert sum(drawn(tab, "gradient", 0)) == pytest.approx(0, abs=2e-3)  # q - p
    assert drawn(tab, "learning", 0) == pytest.approx(
        [each["nll"][31] / math.log(2) for each in passages]
    )
    # an earlier evaluation, and the difference from a baseline
    tab.page.fill("[name=evaluation]", "0")
    assert tab.text("#timeline output").startswith(f"step {passages[0]['step']} · ")
    tab.page.hover("h1")
    tab.page.hover("#token30")
    assert f"{passages[0]['nll'][30] / math.log(2):.2f} bits" in tab.text("#token")
    unigram = next(
        each for each in open_run(own).info.baselines if each.name == "unigram"
    ).passage_nll
    assert f"unigram\n{unigram[30] / math.log(2):.2f}" in tab.text("#token")
    tab.page.select_option("[name=versus]", "unigram")
    blue = passages[0]["nll"][30] < unigram[30]
    assert ("0, 114, 178" in tab("byId('token30').style.background")) == blue


def test_the_result_comes_first(tab: Tab, own: Path) -> None:
    final = read_metrics(own)[-1]
    said = tab("byId('meaning').textContent")
    assert f"on all validation targets: {final['best_val_nll']:.4f} nats per token" in said
    assert f"= {final['best_val_bits_per_byte']:.3f} bits per byte" in said
    assert f"= perplexity {final['best_val_perplexity']:.4}" in said
    evals = [record for record in read_metrics(own) if "val_nll" in record]
    for each in choose_landmarks(open_run(own).info.baselines):
        if each.nats_per_token > final["best_val_nll"]:
            step = next(
                record["step"]
                for record in evals
                if record["val_nll"] < each.nats_per_token - EQUAL
            )
            assert f"{each.label} step {step:.0f}" in tab.text("#standing")


def test_each_part_says_what_it_is_of(tab: Tab) -> None:
    step = tab("whole.format(page.runs[0].best.step)")
    assert "on all of the validation text" in tab.text("#numbers")
    tab.page.check("[name=y][value=perplexity]")
    assert f"step {step} · perplexity " in tab.text("#timeline output")
    assert f"of the best model, that of step {step}" in tab.text("#evaluation h2")
    assert re.fullmatch(r"….+…", tab.text("#passages .text"), re.DOTALL)
    # of a long training text only the end is counted
    title = "plots.get(byId('of times in training')).look.x.title"
    assert tab(title) == "times in the training text"
    tab("page.runs[0].counted = 1000")
    tab("drawEvaluation()")
    assert tab(title) == "times in the last 1,000 training tokens"
    # what was passed, and has no line in the picture
    tab("page.runs[0].passed.push(['3-gram', 4])")
    tab("drawResult()")
    assert "and 1 more" in tab.text("#standing").split("still ahead")[0]
    assert "3-gram by step 4; still ahead of it: " in tab("byId('meaning').textContent")


def test_nothing_is_offered_to_be_sent_elsewhere(tab: Tab) -> None:
    y_of(tab, 1)
    tools, logo = tab(
        f"[{LOSS}.figure.toolbar.tools.map(each => each.type), {LOSS}.figure.toolbar.logo]"
    )
    assert tools == ["BoxZoomTool", "PanTool", "ResetTool", "SaveTool", "CrosshairTool"]
    assert logo is None  # it would be a link


def test_who_zooms_keeps_the_zoom(tab: Tab, own: Path) -> None:
    y_of(tab, 1)
    box = tab.page.locator("#loss").bounding_box()
    left = box["x"]
    top = box["y"]
    told = "document.querySelector('#loss .told').textContent"
    tab.page.mouse.move(left + 120, top + 100)
    tab.page.wait_for_function(f"{told} !== ''")
    tab.page.mouse.down()
    assert tab(told) == ""  # it would be of the whole, beside a part
    tab.page.mouse.move(left + 240, top + 250, steps=4)
    shown = (
        "(({start, end, reset_start, reset_end}) => [start, end, reset_start, reset_end])"
        f"({LOSS}.figure.x_range)"
    )
    tab.page.mouse.up()
    start, end, *whole = tab(shown)
    assert whole[0] < start < end < whole[1]
    tab.page.fill("[name=smooth]", "0.5")
    y_of(tab, 1)
    assert tab(shown) == [start, end, *whole]
    tab.page.select_option("[name=x]", "tokens")  # that is another axis
    y_of(tab, 1)
    start, end, *whole = tab(shown)
    assert [start, end] == whole
    tab("setLit([0])")
    levels = tab(f"{LOSS}.glyphs.map(each => each.level)")
    assert set(levels) <= {"underlay", "glyph"}  # which Bokeh clips at the axes


def test_the_lines_add_up(tab: Tab) -> None:
    rows = tab(LINES)
    assert rows[0][:2] == ["line", "run"]
    assert {"unigram", "bigram", "gzip"} <= set(rows[0])
    *lines, total, _ = rows[1:]
    for column in range(1, len(total)):
        added = sum(float(line[column]) for line in lines)
        assert added == pytest.approx(float(total[column]), abs=len(rows) / 2)


def test_a_run_may_have_the_name_of_a_baseline(own: Path, browser: Any) -> None:
    named = Path(shutil.copytree(own, own.with_name("unigram")))
    write_runs(own / "page.html", [named])
    title, *_, last = Tab(browser, own / "page.html")(LINES)
    assert title[1:3] == ["unigram (run)", "unigram"]
    assert last[1] != last[2]


def test_an_open_page_follows_the_training(browser: Any, own: Path) -> None:
    lines = (own / "metrics.jsonl").read_text().splitlines(keepends=True)
    (own / "metrics.jsonl").write_text("".join(lines[:4]))
    write_live_page(own / "report.html")
    write_data(own / "report.js", open_run(own), live=True)
    tab = Tab(browser, own / "report.html")
    before = len(y_of(tab, 1))
    assert re.search(r"3 of 6 steps · .* · written \d+ s ago", tab.text("#status"))
    tab.page.check("[name=y][value=perplexity]")
    tab.page.fill("[name=evaluation]", "1")
    tab.page.fill("#temperature", "2")
    (own / "metrics.jsonl").write_text("".join(lines))
    passages = (own / "passage.jsonl").read_text().splitlines(keepends=True)
    (own / "passage.jsonl").write_text("".join(passages[1:]))
    time.sleep(0.2)  # it is told by the time of writing, in tenths of a second
    write_data(own / "report.js", open_run(own), live=False)
    tab.page.wait_for_function(
        "byId('status').textContent.includes('6 of 6 steps')", timeout=10_000
    )
    assert len(y_of(tab, 1)) > before
    assert tab("options().y") == "perplexity"
    assert tab("[evaluationNow().step, byId('temperature').value]") == [1, "2"]
    (own / "report.js").unlink()  # nobody reads it any more
    time.sleep(2.5)
    tab.close()


def test_the_table_sorts_and_its_ticks_show_curves(browser: Any, own: Path) -> None:
    losses = {"b": 0.9, "a": 1.0, "c": 1.1}
    for name, scale in losses.items():
        other = Path(shutil.copytree(own, own.parent / "runs" / name))
        records = read_metrics(other)
        for record in records:
            for key in record:
                if "nll" in key:
                    record[key] *= scale
        write_metrics(other, records)
    call("curves.py", str(own.parent / "runs"), f"--html={own}/runs.html")
    tab = Tab(browser, own / "runs.html")

    def names() -> list[str]:
        return list(tab(RUN_CELLS.format(1)))

    assert names() == ["b", "a", "c"]
    assert "Another text or another seed may differ by more." in tab.text("#runs")
    tab.page.click("#runs button:has-text('run')")
    assert names() == ["a", "b", "c"]
    tab.page.click("#runs button:has-text('loss')")
    tab.page.click("#runs button:has-text('loss')")
    assert names() == ["c", "a", "b"]
    assert tab(f"{LOSS}.sources.length") == 13  # and a dot at the step that is shown
    tab.page.uncheck("#runs [aria-label='show a']")
    y_of(tab, 1)
    assert tab(f"{LOSS}.sources.length") == 9
    tab.page.reload()
    tab.page.wait_for_function(DRAWN)
    assert tab(f"{LOSS}.sources.length") == 9
    tab.close()


DOT = f"{LOSS}.marks.at(-1)"


def move_slider(tab: Tab, index: int) -> None:
    tab.page.fill("#timeline [name=evaluation]", str(index))


def test_one_slider_moves_the_colours_the_dot_and_the_sample(tab: Tab, own: Path) -> None:
    evals = [record for record in read_metrics(own) if "val_nll" in record]
    samples = read_lines(own / "samples.jsonl")
    first = evals[0]
    y_of(tab, 1)
    move_slider(tab, 0)
    assert tab(f"[{DOT}.y, {DOT}.kind]") == [[pytest.approx(first["val_nll"], rel=1e-5)], "points"]
    assert tab("evaluationNow().step") == first["step"] == 0
    assert f"step 0 · {first['val_nll']:.3f} nats" in tab.text("#timeline output")
    assert tab.text("#writing pre").strip() == samples[0]["text"].strip()
    colours = "[...document.querySelectorAll('#tokens span')].map(each => each.style.background)"
    before = tab(colours)
    move_slider(tab, 3)
    assert tab(colours) != before
    step = tab("evaluationNow().step")
    (there,) = [record for record in evals if record["step"] == step]
    assert tab(f"{DOT}.y[0]") == pytest.approx(there["val_nll"], rel=1e-5)
    latest = [sample for sample in samples if sample["step"] <= step][-1]
    assert tab.text("#writing pre").strip() == latest["text"].strip()


def test_a_play_button_moves_the_slider_to_the_end(tab: Tab, own: Path) -> None:
    tab.page.click("#play")  # from the end: it begins anew
    assert tab("evaluationNow().step") == 0
    assert tab("byId('play').ariaLabel") == "pause"
    last = read_lines(own / "passage.jsonl")[-1]["step"]
    tab.page.wait_for_function(f"evaluationNow().step === {last}", timeout=10_000)
    tab.page.wait_for_function("byId('play').ariaLabel === 'play the training'")


def test_a_chip_shows_when_its_baseline_was_passed(tab: Tab) -> None:
    chip = "#standing .passed >> nth=-1"
    step = re.search(r"step (\d+)", tab.text(chip))
    assert step
    tab.page.click(chip)
    assert tab("evaluationNow().step") == int(step[1])


def test_the_address_has_the_step_the_token_and_the_colouring(tab: Tab) -> None:
    move_slider(tab, 2)
    step = tab("evaluationNow().step")
    tab.page.click("#token30")
    tab.page.select_option("[name=versus]", "bigram")
    tab.page.click("#theme")
    assert tab("document.documentElement.style.colorScheme") == "dark"
    state = "[evaluationNow().step, chosen, reading.elements.versus.value, isDark()]"
    assert tab(state) == [step, 30, "bigram", True]
    tab.page.reload()
    tab.page.wait_for_function(DRAWN)
    assert tab(state) == [step, 30, "bigram", True]


def test_a_pointer_boxes_its_token_until_a_key_is_pressed(tab: Tab) -> None:
    tab.page.click("#token30")
    tab.page.hover("#token40")
    pointed = "[...document.querySelectorAll('.pointed')].map(each => each.id)"
    assert tab(pointed) == ["token40"]
    tab.page.keyboard.press("ArrowRight")
    assert tab(pointed) == []
    assert tab("document.querySelector('.chosen').id") == "token31"


def test_all_baselines_ahead_are_said(tab: Tab, own: Path) -> None:
    final = read_metrics(own)[-1]["best_val_nll"]
    _, ahead = passed_and_ahead(final, open_run(own).info.baselines)
    said = tab.text("#standing")
    for each in ahead[:3]:
        assert each.label.replace(" (learns)", "*") in said
    if len(ahead) > 3:
        assert f"and {len(ahead) - 3} more" in said


ADDRESSES = [
    "x=foo&fit=foo&y=foo&smooth=foo&length=5",
    "step=abc&token=&hidden=0&filter=zzz&reference=x&theme=purple",
    "step=1e99&token=99999&versus=nothing&passage=7&run=9",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_nonsense_in_the_address_changes_nothing(browser: Any, own: Path, address: str) -> None:
    write_runs(own / "whole.html", [own])
    tab = Tab(browser, own / "whole.html")
    state = "[options(), evaluationNow().step, reading.elements.versus.value, isDark()]"
    before = tab(state)
    tab.page.goto("about:blank")
    tab.page.goto((own / "whole.html").as_uri() + "#" + address)
    tab.page.wait_for_function(DRAWN)
    assert tab(state) == before
    assert not re.search(r"step=(abc|1e)", tab("location.hash"))
    assert tab.page.is_visible("#numbers")
    tab.close()


def test_an_address_that_somebody_pastes_is_followed(tab: Tab, own: Path) -> None:
    tab("location.hash = 'step=0&token=5&y=perplexity'")
    tab.page.wait_for_function("page && chosen === 5 && evaluationNow().step === 0")
    assert tab("options().y") == "perplexity"


def test_a_page_of_hidden_runs_has_nothing_to_play(browser: Any, own: Path) -> None:
    write_runs(own / "whole.html", [own, own])
    tab = Tab(browser, own / "whole.html")
    tab.page.click("#play")
    tab.page.click("#picker button:has-text('none')")
    time.sleep(0.5)
    assert not tab.page.is_visible("#timeline")
    tab.close()


def test_a_training_that_was_killed_does_not_train_for_ever(browser: Any, own: Path) -> None:
    content = content_of_runs([open_run(own)], live=True)
    content["runs"][0]["status"] = "training"
    content["written"] -= 100_000
    write_page(own / "whole.html", content)
    (own / "whole.js").touch()
    tab = Tab(browser, own / "whole.html")
    said = tab.text("#status")
    assert said.startswith("interrupted")
    assert "nothing was written for 28 hours: it seems to have been stopped" in said
    assert "still learning" not in tab.text("#saying")
    tab.close()


def test_who_plays_a_live_page_to_its_end_follows_it_again(browser: Any, own: Path) -> None:
    write_page(own / "whole.html", content_of_runs([open_run(own)], live=True))
    (own / "whole.js").touch()
    tab = Tab(browser, own / "whole.html")
    move_slider(tab, 1)
    assert tab("moment") is not None
    move_slider(tab, int(tab("timeline.elements.evaluation.max")))
    assert tab("moment") is None
    tab.close()


def test_a_loss_that_leaves_the_picture_is_said(browser: Any, own: Path) -> None:
    def change(records: list[Any]) -> list[Any]:
        records[-2]["val_nll"] = 1e6
        return records

    tab = Tab(browser, edited(own, change))
    assert tab.text("#nothing") == "The loss left this picture: it rose to 1.00e6."
    tab.close()


def test_a_printed_page_has_all_of_its_charts(tab: Tab) -> None:
    tab.page.wait_for_function(
        "[...plots.values()].every(each => !each.waits || each.place.hidden)"
    )
    tab("dispatchEvent(new Event('beforeprint'))")
    tab.page.emulate_media(media="print")
    shown = "[...document.querySelectorAll('.print')].filter(each => each.offsetWidth > 100)"
    charts = "[...plots.values()].filter(({place}) => place.offsetParent)"
    assert tab(f"{shown}.length") == tab(f"{charts}.length") > 5
    assert not tab.page.is_visible("#timeline")
    assert not tab.page.is_visible("#tools")
    assert tab("byId('caption').open")


def test_a_live_page_says_that_its_data_are_missing(browser: Any, own: Path) -> None:
    write_live_page(own / "report.html")
    (own / "report.js").unlink()
    page = browser.new_page()
    page.goto((own / "report.html").as_uri())
    page.wait_for_function("byId('status').textContent.startsWith('There is no report.js')")
    write_data(own / "report.js", open_run(own), live=False)
    page.wait_for_function("byId('status').textContent.includes('6 of 6 steps')", timeout=10_000)
    page.close()


def test_a_strangers_text_stays_text(browser: Any, own: Path) -> None:
    evil = own.with_name("<img src=x onerror=alert(1)>")
    own.rename(evil)
    sample = json.dumps({"step": 0, "text": EVIL})
    torn = '\n{"step": 1, "te'
    (evil / "samples.jsonl").write_text(sample + torn)
    (evil / "verdict.txt").write_text(EVIL)
    tokens = json.loads((evil / "tokenizer.json").read_text())
    assert tokens["kind"] == "char"
    run = open_run(evil)
    data = content_of_runs([run, run])
    for each in data["runs"]:
        text = each["texts"][0]
        text["tokens"][3] = EVIL
        text["names"][run.info.vocab_size - 1] = EVIL
        each["evaluation"]["passages"]["hardest"] = [
            {"nats_per_token": 1.0, "tokens": [EVIL], "nll": [1.0]}
        ]
    write_page(evil.parent / "whole.html", data)
    tab = Tab(browser, evil.parent / "whole.html")
    assert tab("document.title").startswith("<img src=x onerror=alert(1)>")
    tab.page.hover("#token3")
    tab.page.click("#token3")
    assert EVIL in tab.text("#tokens")
    assert EVIL in tab.text("#token")
    assert EVIL in tab.text("#words")
    assert EVIL in tab.text("#passages")
    assert tab("document.querySelectorAll('img, #words b').length") == 0
    tab.close()


PHONE = (380, "light")
DARK = (1200, "dark")


@pytest.mark.parametrize(("width", "scheme"), [PHONE, DARK])
def test_it_fits_a_phone_and_the_dark(browser: Any, own: Path, width: int, scheme: str) -> None:
    write_runs(own / "whole.html", [own, own])
    tab = Tab(browser, own / "whole.html", width, color_scheme=scheme)
    assert tab("document.documentElement.scrollWidth") <= width
    background = tab("getComputedStyle(byId('token')).backgroundColor")
    red, green, blue = re.findall(r"\d+", background)[:3]
    is_dark = int(red) + int(green) + int(blue) < 200
    assert is_dark == (scheme == "dark")
    tab.close()


def test_a_page_of_ones_own_text_compares_two_runs(browser: Any, own: Path, data_dir: Path) -> None:
    other = Path(shutil.copytree(own, own.with_name("other")))
    (data_dir / "mine.txt").write_text("the cat sat on a mat;\nthe cat\n", encoding="utf-8")
    call("evaluate.py", str(own), "--text=mine.txt", f"--against={other}", "--html=mine.html")
    tab = Tab(browser, data_dir / "mine.html")
    assert tab.text("h1") == "mine.txt, read by run, other"
    assert tab.text("#tokens").split("\n")[:2] == ["the cat sat on a mat;⏎", "the cat⏎"]
    assert tab("byId('curves').hidden")
    assert tab("reading.elements.versus.value") == "other"
    assert "+0.0000 ± 0.0000" in tab.text("#runs")
    assert "It is too short to tell whether the difference is noise" in tab.text("#runs")
    score = re.search(
        r"nats per token +([\d.]+)", call("evaluate.py", str(own), "--text=mine.txt").stdout
    )
    assert score
    losses = tab(RUN_CELLS.format(2))
    assert losses == [score[1], score[1]]  # of this text, not of the validation split
    tab.close()


def test_a_text_that_is_masked_at_its_beginning_has_a_page_too(
    browser: Any, data_dir: Path
) -> None:
    call(
        "train.py",
        "--corpus=text.txt",
        "--out_dir=masked",
        *TINY,
        "--max_iters=1",
        r"--mask=\A(?s:.{2100})",
    )
    (data_dir / "mine.txt").write_text("the cat sat on a mat;\n" * 100, encoding="utf-8")
    call("evaluate.py", "masked", "--text=mine.txt", "--html=mine.html")
    tab = Tab(browser, data_dir / "mine.html", drawn="document.querySelector('#numbers b')")
    assert tab("byId('text').hidden")
    assert "The loss on 100 targets: " in tab("byId('meaning').textContent")
    tab.close()


def edited(own: Path, change: Any) -> Path:
    """Write a page of the run, whose records of metrics.jsonl are changed first."""
    records = change(read_metrics(own))
    write_metrics(own, records)
    write_runs(own / "whole.html", [own])
    return own / "whole.html"


def test_baselines_come_back_and_their_labels_stay_inside(browser: Any, own: Path) -> None:
    def change(records: list[Any]) -> list[Any]:
        for record in records:
            if record["step"] == 2:
                record["train_nll"] = 4.6
        return records

    info = json.loads((own / "corpus.json").read_text())
    uniform = info["baselines"][0]["nats_per_token"]
    for number, baseline in enumerate(info["baselines"][1:], start=1):
        baseline["nats_per_token"] = uniform - 0.01 * number  # all at the top
    (own / "corpus.json").write_text(json.dumps(info))
    tab = Tab(browser, edited(own, change))
    for shown in (True, False, True):
        tab.page.set_checked("[name=baselines]", shown)
        y_of(tab, 1)
        labels = 0
        if shown:
            labels = len(choose_landmarks(read_info(own / "corpus.json").baselines))
        tab.page.wait_for_function(f"{LABELS}.length === {labels}")
    pixels = tab(f"{LABELS}.map(label => parseFloat(label.style.top))")
    assert min(pixels) >= 0
    assert max(pixels) <= tab(f"{LOSS}.figure.inner_height")
    assert min(b - a for a, b in itertools.pairwise(pixels)) > 14
    tab.close()


def test_the_lowest_loss_is_not_a_mean_of_neighbours(browser: Any, own: Path) -> None:
    def change(records: list[Any]) -> list[Any]:
        evaluation = next(record for record in records if "val_nll" in record)
        changed = [evaluation | {"step": step, "val_nll": 2.0} for step in range(1500)]
        changed[700]["val_nll"] = 1.2
        return changed

    tab = Tab(browser, edited(own, change))
    said = tab("byId('meaning').textContent")
    assert "The lowest loss so far, on a part of the validation targets: 1.2000 nats" in said
    assert drawn(tab, "loss", 2) == [1.2]  # the star
    tab.close()


def test_small_plots_have_ticks_of_their_axis_and_are_used_again(tab: Tab) -> None:
    tab.page.uncheck("[name=logx]")
    drawn(tab, "lr", 0)
    ticks = tab("[...plots.get(byId('lr')).figure.xaxes[0].ticker.ticks]")
    assert ticks == [1, 2, 3, 4, 5]  # of no logarithm
    tab(DRAW_UNSEEN)
    before = tab("[plots.size, document.querySelectorAll('*').length]")
    for _ in range(3):
        tab("drawAll()")
        tab(DRAW_UNSEEN)
    assert tab("[plots.size, document.querySelectorAll('*').length]") == before


def test_a_tap_tells_what_is_there(browser: Any, own: Path) -> None:
    write_runs(own / "whole.html", [own])
    tab = Tab(browser, own / "whole.html", 390, has_touch=True, is_mobile=True)
    y_of(tab, 1)
    box = tab.page.locator("#loss").bounding_box()
    tab.page.touchscreen.tap(box["x"] + 150, box["y"] + 200)
    tab.page.wait_for_function(
        "document.querySelector('#loss .told').textContent.includes('validation')"
    )
    told = tab.page.locator("#loss .told").bounding_box()
    tab.page.touchscreen.tap(told["x"] + 20, told["y"] + 5)
    tab.page.wait_for_function("document.querySelector('#loss .told').textContent === ''")
    tab.close()


def test_the_page_of_a_tuning_run_says_so_everywhere(browser: Any, own: Path) -> None:
    corpus = json.loads((own / "corpus.json").read_text(encoding="utf-8"))
    (own / "corpus.json").write_text(json.dumps(corpus | {"split": "tuning"}), encoding="utf-8")
    (own / "verdict.txt").unlink()  # which was written before
    write_runs(own / "tuning.html", [own, own])
    tab = Tab(browser, own / "tuning.html")
    tab("document.querySelectorAll('details').forEach(each => each.open = true)")
    page = tab.text("body")
    assert "★: the best model, at the end on all tuning targets" in page
    assert "Loss: of the best model, on the tuning text" in page
    assert "validation" not in page
    assert "validation" not in json.dumps(tab("page"))
    tab.close()
