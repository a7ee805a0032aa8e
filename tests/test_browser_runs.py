"""The page of many runs, and that of a sweep, in a real browser."""

import itertools
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from page.page import build_script, write_runs
from page.sweep import write_sweep_page
from tests.chromium import LABELS, LOSS, NEEDS_BROWSER, Tab, drawn
from tests.many_runs import make_ended_run, make_sweep

pytestmark = NEEDS_BROWSER
ROWS = "[...document.querySelectorAll('#runs tbody tr:not(.section)')]"
CELLS = f"{ROWS}.map(row => [...row.cells].map(each => each.textContent))"
TITLES = "[...document.querySelectorAll('#runs thead th')].map(each => each.textContent)"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make thirty runs: three rates, three widths, three seeds each, and three others."""
    folder = tmp_path_factory.mktemp("many") / "out"
    rates = (0.01, 0.03, 0.1)
    widths = (16, 32, 64)
    for number, (rate, width, seed) in enumerate(itertools.product(rates, widths, (1, 2, 3))):
        best = 1.5 + 0.1 * (number // 3) + 0.01 * seed
        options: dict[str, Any] = {
            "optim": {"learning_rate": rate},
            "model": {"n_embd": width},
            "run": {"seed": seed},
        }
        make_ended_run(folder / f"run{number:02}", best, {}, **options)
    make_ended_run(folder / "cut_off", 1.4, None)
    make_ended_run(folder / "broke", 1.9, {"diverged": 1.0}, optim={"learning_rate": 50.0})
    make_ended_run(folder / "masked", 1.0, {}, data={"mask": "^[A-Z]+:"})
    return folder


def test_thirty_runs_are_told_apart(browser: Any, many: Path) -> None:
    write_runs(many / "runs.html", sorted(path for path in many.iterdir() if path.is_dir()))
    tab = Tab(browser, many / "runs.html", 1400)
    drawn(tab, "loss", 0)
    tab.page.set_viewport_size({"width": 1400, "height": 900})

    # nothing is left out, and what went wrong comes first
    assert "30 of 30 runs shown" in tab.text("#picker")
    assert tab.text("#overview").split("\n") == [
        "28 finished",
        "1 diverged: broke",
        "1 interrupted: cut_off",
    ]
    titles = tab(TITLES)
    assert titles[1:6] == ["run", "loss, nats ▴", "difference", "status", "n_embd"]
    assert {"learning_rate", "n_embd", "seed"} < {*titles}
    assert "n_layer" not in titles

    # runs on other targets come last, though their loss is the lowest
    *_, cut_off, masked = tab(CELLS)
    assert masked[1] == "masked"
    # nor are those ranked that were not measured at their end
    assert cut_off[1] == "cut_off"
    assert cut_off[2].endswith(" so far")
    assert tab("document.querySelector('#runs tr.section').textContent") == (
        "Other targets, not ranked with the runs above: mask=^[A-Z]+:"
    )

    # the header and the footnotes are seen, wherever the table is scrolled
    place = "document.querySelector('#runs .wide')"
    tab(f"{place}.scrollTop = 300")
    top = f"document.querySelector('#runs thead th').getBoundingClientRect().top - {place}"
    assert abs(tab(f"{top}.getBoundingClientRect().top")) <= 1
    notes = tab("byId('notes').getBoundingClientRect().bottom")
    assert 0 < notes <= tab(f"{place}.getBoundingClientRect().top")
    tab(f"{place}.scrollTop = 0")

    # a name at the end of each curve, none on another; two in one colour have other dashes
    labels = tab(f"{LABELS}.filter(each => each.runs).map(each => each.title)")
    assert len(labels) == 12
    assert sum(label.startswith("≠ ") for label in labels) == 1
    assert sum("n_embd=32,learning_rate=0.03" in label for label in labels) == 1
    *tops, above = tab(f"{LABELS}.map(label => parseFloat(label.style.top))")
    assert above < 0  # the names of the options, of which the labels have the values
    assert min(b - a for a, b in itertools.pairwise(tops)) >= 9.9
    looks = tab("page.groups.map((_, i) => Object.values(groupPen(i)).join())")
    assert len({*looks}) == len(looks)
    tab.page.uncheck("[name=mean]")
    drawn(tab, "loss", 0)
    assert tab(f"{LABELS}.filter(each => each.runs).length") == 30
    looks = tab("page.runs.map((_, i) => Object.values(pen(i)).join())")
    assert len({*looks}) == 30

    # the axis fits the curves; baselines beyond it are named at its edge
    tab.page.select_option("[name=fit]", "end")
    drawn(tab, "loss", 0)
    assert tab(f"{LOSS}.figure.y_range.end") < 2.5  # of the training, also where x is logarithmic
    edge = tab("document.querySelector('.edge.above').textContent")
    assert edge == "↑ bigram 2.484 · unigram 3.320 · uniform, log|V| 4.234"

    # a row that is pointed at lights its curve up, and the reverse
    number = tab("page.runs.findIndex(run => run.name === 'run04')")
    tab.page.hover("#runs td:has-text('run04')")
    assert tab("lit") == [number]
    alphas = f"{LOSS}.glyphs.map(each => each.glyph.line_alpha?.value ?? each.glyph.line_alpha)"
    lines = tab(f"{LOSS}.marks.map((mark, i) => [mark.kind, mark.runs[0], {alphas}[i]])")
    bright = {run for kind, run, alpha in lines if kind == "line" and alpha == 1}
    assert bright == {number}
    x = drawn(tab, "loss", 0, "x")[-3]
    tab(f"window.mark = {LOSS}.marks.find(({{kind, runs}}) => kind === 'line' && runs[0] === 3)")
    at = tab(
        f"""{LOSS}.view.then(({{frame, el}}) => {{ const box = el.getBoundingClientRect();
        const i = nearestIndex(mark, {x});
        return [box.x + frame.x_scale.compute(mark.x[i]),
                box.y + frame.y_scale.compute(mark.y[i])]; }})"""
    )
    tab.page.mouse.move(at[0] - 5, at[1])
    tab.page.mouse.move(*at)
    tab.page.wait_for_function("lit?.[0] === 3")
    assert tab("document.querySelector('#runs tr.lit').runs") == [3]

    # it is told six values, sorted, with their colours
    told = tab("[...document.querySelectorAll('#loss .told > div')].map(each => each.innerText)")
    title, *values, more = told
    assert re.fullmatch(r"at [\d,.]+ steps", title)
    losses = [float(loss) for value in values for loss in re.findall(r"^[\d.]+", value)]
    assert len(losses) == 6
    assert losses == sorted(losses)
    assert more == "and 23 more"  # of the 29 that came as far
    assert tab("document.querySelectorAll('#loss .told .swatch').length") == 6
    tab.page.mouse.move(5, 5)

    # a click on a row chooses the reference, on a title the order
    differences = {row[1]: row[3] for row in tab(CELLS)}
    assert differences["run00"] == "reference"
    assert re.fullmatch(r"\+0\.10\d\d ± 0\.\d{4}", differences["run03"])
    assert differences["masked"] == ""
    tab.page.click("#runs td:has-text('run03')")
    assert tab.text("#notes").count("above the loss of run03") == 1
    (first,) = [row for row in tab(CELLS) if row[1] == "run00"]
    assert re.fullmatch(r"\u22120\.10\d\d ± 0\.\d{4}", first[3])
    tab.page.click("#runs th button:has-text('seed')")
    column = titles.index("seed")
    assert [row[column] for row in tab(CELLS)[:9]] == ["1"] * 9

    # filter, none and all
    tab.page.fill("[name=filter]", "n_embd=16 seed=2")
    assert "3 of 30 runs shown" in tab.text("#picker")
    assert len(tab(CELLS)) == 3
    tab.page.click("#picker button:has-text('none')")
    tab.page.fill("[name=filter]", "")
    assert "27 of 30 runs shown" in tab.text("#picker")
    tab.page.reload()
    tab.page.wait_for_function("page")
    assert "27 of 30 runs shown" in tab.text("#picker")
    assert "above the loss of run03" in tab.text("#notes")
    tab.page.click("#picker button:has-text('all')")
    assert "30 of 30 runs shown" in tab.text("#picker")

    # no run has measured a gap to the source, so there is no chart of it
    assert tab("[...byId('small').children].filter(each => !each.hidden).length") == 0

    # a saved picture has the labels, and a phone has the width
    ink = tab(
        f"""{LOSS}.view.then(view => {{ const {{canvas, ctx}} = view.export('png');
        const left = view.frame.bbox.right + 17, {{data}} =
            ctx.getImageData(left, 0, canvas.width - left, canvas.height);
        return new Set(data).size; }})"""
    )
    assert ink > 20  # values of the colours
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.wait_for_function("byId('loss').clientWidth < 390")
    tab.page.wait_for_function("document.documentElement.scrollWidth <= 390")  # all are drawn anew
    tab.close()


def test_a_page_of_runs_follows_those_that_train(browser: Any, many: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "out" / "run00", tmp_path / "out" / "100% #1?"]
    shutil.copytree(many / "run00", folders[0])
    shutil.copytree(many / "cut_off", folders[1])
    (folders[1] / "report.js").touch()
    write_runs(tmp_path / "runs.html", folders)
    page = (tmp_path / "runs.html").read_text(encoding="utf-8")
    page = page.replace('"status":"interrupted"', '"status":"training"')
    (tmp_path / "runs.html").write_text(page, encoding="utf-8")
    tab = Tab(browser, tmp_path / "runs.html")
    assert tab.text("#status") == "1 of 2 runs train; this page follows them"
    assert tab.text("#overview").split("\n") == ["1 finished", "1 training"]
    data = tab("({...page, runs: [{...page.runs[1], status: 'finished', best_nll: 1.25}]})")
    script = build_script(data | {"written": time.time()})
    (folders[1] / "report.js").write_text(script, encoding="utf-8")
    tab.page.wait_for_function("page.runs[1].status === 'finished'", timeout=10_000)
    assert tab.text("#overview") == "2 finished"
    assert tab(CELLS)[0][1:3] == ["100% #1?", "1.2500"]
    tab.close()


def test_a_page_of_a_sweep_says_what_is_better_and_lives(browser: Any, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    write_sweep_page(tmp_path, sweep)
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    drawn(tab, "loss", 0)
    assert tab.text("h1") == "Sweep: rates"
    assert tab.text("#status").startswith("7 of 9 runs, about 1 min left; written")
    assert tab("document.querySelector('#progress progress').value") == 7
    # first: which is better, by how much, and whether that is noise; and which was cut off
    assert tab("document.querySelector('#sentences .lead').textContent") == sweep["sentences"][0]
    assert "Losses on validation text; chosen on validation text: optimistic." in tab.text("#sweep")
    assert "1 interrupted: learning_rate=0.01,seed=3" in tab.text("#overview")
    # groups open to their runs; the one with trouble is open
    rows = [row[1:4] for row in tab(CELLS)]
    assert rows == [
        ["▸\xa0learning_rate=0.03", "1.5000 ± 0.0100", "finished"],
        ["▾\xa0learning_rate=0.01", "1.5950 ± 0.0071", "2 finished 1 interrupted "],
        ["seed=1", "1.5900", "finished"],
        ["seed=2", "1.6000", "finished"],
        ["seed=3", rows[4][1], "interruptedat step 200 of 800"],
        ["▸\xa0learning_rate=0.1", "1.8950 ± 0.0071", "2 finished 1 waiting "],
    ]
    assert rows[4][1].endswith(" so far")  # on a part of the text
    tab.page.click("text=▸ learning_rate=0.03")
    link = tab("document.querySelector('#runs a').getAttribute('href')")
    assert link == "learning_rate%3D0.03%2Cseed%3D1/report.html"
    # the loss against the option, on a logarithmic axis; curves as means with bands
    effect = "plots.get(byId('effect of learning_rate'))"
    drawn(tab, "effect of learning_rate", 0)
    assert tab(f"{effect}.look.x.title") == "learning_rate (log)"
    kinds = tab(f"{effect}.marks.map(({{kind, x}}) => [kind, x.length])")
    assert kinds == [["line", 3], ["whiskers", 3], ["points", 3], ["points", 7]]
    assert tab(f"{effect}.marks[0].y") == pytest.approx([1.595, 1.5, 1.895])
    assert tab(f"{LOSS}.marks.filter(({{kind}}) => kind === 'band').length") == 3
    labels = tab(f"{LABELS}.filter(each => each.runs).map(each => each.textContent)")
    assert labels == ["learning_rate=0.1", "learning_rate=0.01", "learning_rate=0.03"]
    assert tab("byId('grid').hidden")
    # two options: a grid, whose cells point at the runs
    for each in (*sweep["runs"], *sweep["groups"]):
        each["options"] = each["options"] | {"n_layer": "2"}
    sweep["varied"]["n_layer"] = ["2", "4"]
    sweep |= {"is_live": False, "progress": "9 of 9 runs"}
    write_sweep_page(tmp_path, sweep)
    tab.page.wait_for_function("!page.live", timeout=10_000)
    assert tab.text("#status") == "9 of 9 runs"
    grid = tab("[...document.querySelectorAll('#grid tr')].map(row => row.innerText)")
    assert [row.split("\t")[0] for row in grid] == [
        "learning_rate ↓ n_layer →",
        "0.01",
        "0.03",
        "0.1",
    ]
    assert grid[2].split("\t")[1] == "1.5000 ± 0.0100"
    tab.page.hover("#grid td:has-text('1.5000')")
    assert tab("lit") == [0, 1, 2]
    tab.close()
    # different tokens: bits per byte
    write_sweep_page(tmp_path, sweep | {"unit": "bits per byte"})
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    assert tab(TITLES)[1:3] == ["run", "loss, bits/byte ± SD ▴"]
    assert tab("options().y") == "bits_per_byte"
    assert float(tab(CELLS)[2][2]) == pytest.approx(1.59 / math.log(2), abs=1e-4)
    tab.close()
    # different texts: nothing is compared
    write_sweep_page(tmp_path, sweep | {"unit": None, "sentences": []})
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    assert tab("byId('effects').hidden")
    assert tab("document.querySelectorAll('#runs .best').length") == 0
    tab.close()
    tab = Tab(browser, tmp_path / "sweep.html", 390, drawn="page", color_scheme="dark")
    assert tab("document.documentElement.scrollWidth") <= 390
    tab.close()
    data = json.loads((tmp_path / "sweep.js").read_text(encoding="utf-8")[8:-2])
    assert data["runs"][8]["status"] == "waiting"


def test_a_table_of_groups_sorts_by_what_it_shows(browser: Any, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    seconds = (9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 5.0, 5.0, None)
    for run, own in zip(sweep["runs"], seconds, strict=True):
        run["seconds"] = own
    make_ended_run(tmp_path / "learning_rate=0.2,seed=1", 1.8, {})  # of an earlier command
    write_sweep_page(tmp_path, sweep | {"is_live": False, "progress": "stopped after 7 of 9 runs"})
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    groups = f"{CELLS}.filter(row => row[1].includes('learning_rate')).map(row => row[1].slice(16))"
    inner = f"{CELLS}.filter(row => row[1].startsWith('seed')).map(row => row[1].slice(5))"
    orders = {}
    for title in ("loss", "seconds", "seeds", "bits/byte", "run", "status"):
        button = f"#runs th button:has-text('{title}')"
        if title != "loss":
            tab.page.click(button)
        up = tab(groups)
        runs = tab(inner)
        tab.page.click(button)
        orders[title] = (up, tab(groups), runs, tab(inner))
    assert orders["loss"][:2] == (["0.03", "0.01", "0.1"], ["0.1", "0.01", "0.03"])
    assert orders["bits/byte"][:2] == orders["loss"][:2]
    assert orders["seconds"][:2] == (["0.01", "0.1", "0.03"], ["0.03", "0.1", "0.01"])
    assert orders["seeds"][0][-1] == orders["seeds"][1][0] == "0.03"
    assert orders["run"][0] == ["0.01", "0.03", "0.1"]
    # a run that was not measured at its end comes after those that were, in both directions
    assert orders["loss"][2:] == (["1", "2", "3"], ["2", "1", "3"])
    assert orders["seconds"][2:] == (["1", "2", "3"], ["3", "2", "1"])
    # of each group as many seeds as are measured; its figures are those of sweep.json
    assert [row[4] for row in tab(CELLS) if "learning" in row[1]].count("2 of 3") == 2
    all_of = "shownRuns().filter(([run]) => run.group === i)"
    figures = tab(f"page.sweep.groups.map((_, i) => figuresOf(i, {all_of}))")
    for own, group in zip(figures, sweep["groups"], strict=True):
        for name in ("mean", "deviation", "low", "high", "seeds"):
            assert own[name] == pytest.approx(group[name], abs=1e-4), name
    # nothing reads as if it ran, and one sees how to go on
    assert tab.text("#status") == "stopped after 7 of 9 runs"
    assert tab("document.querySelector('#progress progress').hidden")
    told = tab.text("#progress")
    assert told.startswith("The same command goes on, and keeps what is done: python sweep.py")
    assert "The folder has 1 more run that is not of this sweep." in told
    tab.page.click("#progress button")
    assert tab.text("#progress button") == "copied"
    tab.close()


def test_what_is_shown_of_a_sweep_is_what_the_filter_leaves(browser: Any, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    write_sweep_page(tmp_path, sweep)
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    drawn(tab, "loss", 0)
    assert "9 of 9 runs shown, 1 without a curve yet" in tab.text("#picker")
    # a run has a line of its own, over the mean, while it is pointed at
    seen = f"""{LOSS}.marks.flatMap((mark, i) => mark.kind === 'line' && {LOSS}.glyphs[i].visible
        && {LOSS}.glyphs[i].glyph.line_alpha.value === 1 ? [mark.runs.join()] : [])"""
    assert "4" not in tab(seen)
    assert "Thin: a run that did not come as far" in tab.text("#caption")
    chart = tab.page.locator("#loss canvas").first
    before = chart.screenshot()
    tab.page.hover("#runs tr.inner td:has-text('seed=2')")
    assert tab(seen) == ["4"]
    assert chart.screenshot() != before
    tab.page.mouse.move(5, 5)
    tab.page.wait_for_function("lit === null")
    tab.page.wait_for_timeout(200)  # Bokeh draws in the next frame
    assert chart.screenshot() == before
    tab.page.click("#runs tr.inner input >> nth=1")  # the row is drawn again
    tab.page.mouse.move(5, 5)
    tab.page.wait_for_function("lit === null")
    tab.page.click("#picker button:has-text('all')")
    # a group of which one run is found has that run's figures, and is grey
    tab.page.fill("[name=filter]", "learning_rate=0.03 seed=1")
    group = tab(CELLS)[0]
    assert group[2:5] == ["1.4900", "finished", "1 of 3"]
    assert tab("document.querySelectorAll('#runs tr.part').length") == 1
    effect = "plots.get(byId('effect of learning_rate'))"
    assert tab(f"{effect}.marks.map(({{kind}}) => kind)") == ["points", "points"]
    tab.page.fill("[name=filter]", "interrupted")  # which run that is, one sees at once
    assert [row[1] for row in tab(CELLS)] == ["▾\xa0learning_rate=0.01", "seed=3"]
    tab.page.fill("[name=filter]", "learning_rate=0.03 seed=1")
    # the unit of the curves is that of the table and of the lower chart
    tab.page.check("[name=y][value=perplexity]")
    assert tab(TITLES)[2] == "perplexity ± SD ▴"
    assert float(tab(CELLS)[0][2]) == pytest.approx(math.exp(1.49), abs=1e-4)
    assert tab(f"{effect}.look.y.title") == "perplexity"
    # nothing is shown
    tab.page.fill("[name=filter]", "nothing like it")
    assert tab.text("#nothing") == "no runs shown"
    assert tab("byId('loss').hidden && byId('effects').hidden")
    tab.page.fill("[name=filter]", "")
    assert not tab("byId('loss').hidden || byId('effects').hidden")
    # a sweep that was killed could not say so
    told, is_hidden = tab(  # at once: the page reads sweep.js again
        """(page.written -= 7200, showStatus(), [byId('status').textContent,
        document.querySelector('#progress progress').hidden])"""
    )
    assert told.startswith("7 of 9 runs have ended; nothing was written for 2 hours: the sweep")
    assert is_hidden
    # names break after commas, and no number is cut in two
    assert tab("byId('overview').querySelectorAll('wbr').length") == 1
    tab.close()


def test_ticks_are_round(browser: Any, tmp_path: Path) -> None:
    write_sweep_page(tmp_path, make_sweep(tmp_path))
    tab = Tab(browser, tmp_path / "sweep.html", 1400, drawn="page")
    scaled = "page.runs.forEach(run => run.val.flops &&= run.val.step.map(step => step * 6.33e8))"
    ticks = "axis('flops', true).ticks(0, 99).map(([, text]) => text)"
    assert tab(f"{scaled}, {ticks}")[-2:] == ["1e11", "5e11"]
    even = "evenTicks(-1e10, 5.06e11).map(([, text]) => text)"
    assert tab(even) == ["0", "1e11", "2e11", "3e11", "4e11", "5e11"]
    tab.close()
