"""Pictures of loss curves show the numbers of metrics.jsonl, and every name can be read."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from config.files import unique_names
from config.recipe import to_toml
from config.schema import Config
from data.info import Baseline, CorpusInfo, SplitInfo
from data.tokenizer import char_tokenizer
from engine.metrics import Record
from engine.run import Run, open_run
from engine.step import is_eval_step
from page.content import content_of_runs
from report import figures
from report.characters import draw_terminal
from report.many import find_baselines, limit, make_picture
from report.picture import show_number, spread
from tests.conftest import call, write_metrics

PLAYS = {
    "uniform, log|V|": 4.234,
    "unigram": 3.320,
    "bigram": 2.484,
    "gzip": 2.168,
    "xz": 1.884,
    "bzip2": 1.671,
    "6-gram": 1.508,
}
BPE = {
    "uniform, log|V|": 6.931,
    "unigram": 5.720,
    "bigram": 4.360,
    "4-gram": 3.710,
    "gzip": 5.138,
    "xz": 4.465,
    "bzip2": 3.959,
}  # with 2.37 bytes per token, the compressors have the same bits per byte
MARKOV = {
    "uniform, log|V|": 2.773,
    "unigram": 2.560,
    "bigram": 1.820,
    "gzip": 1.160,
    "xz": 1.020,
    "bzip2": 0.970,
    "6-gram": 0.784,
    "entropy rate": 0.765,
}
NAMES = [
    "🎉 party",
    "$x$",
    "_x",
    "日本語",
    "naïve 🎉",
    r"$\frac$",
    "a_b^c",
    "__",
    "%s",
    r"out\n",
    "long " * 20,
    "{}",
    "🦊",
    "z",
]


def evaluations(uniform: float, best: float, steps: int = 800) -> list[Record]:
    """Metrics that fall from log|V| to about `best`."""
    records: list[Record] = []
    for step in range(steps + 1):
        nll = best + (uniform - best) / (1 + step / 60) ** 1.5
        if is_eval_step(step, 40, steps):
            train = {"train_nll": nll - 0.05} if step else {}
            records.append(
                {
                    "step": step,
                    "tokens": 2048 * step,
                    "seconds": 0.5 + 0.04 * step,
                    "val_nll": nll,
                    **train,
                    "val_bits_per_byte": nll / math.log(2),
                }
            )
    return records


def make_run(
    path: Path,
    baselines: dict[str, float] = PLAYS,
    records: list[Record] | None = None,
    bytes_per_token: float = 1.0,
    corpus: str = "plays",
    tokenizer: str = "char",
    best: float = 1.6,
) -> Run:
    """A directory as training leaves it, but for the checkpoints."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(to_toml(Config()))
    (path / "tokenizer.json").write_text(char_tokenizer("ab").model_dump_json())
    split = SplitInfo(tokens=1000, documents=1, targets=999)
    info = CorpusInfo(
        format=0,
        name=corpus,
        sha256="",
        tokenizer=tokenizer,
        vocab_size=2,
        train=split,
        val=split,
        prompt="",
        baselines=[
            Baseline(
                name=name,
                nats_per_token=nats,
                perplexity=math.exp(nats),
                bits_per_byte=nats / math.log(2) / bytes_per_token,
            )
            for name, nats in baselines.items()
        ],
    )
    (path / "corpus.json").write_text(info.model_dump_json())
    if records is None:
        records = evaluations(baselines["uniform, log|V|"], best)
    records = [*map(dict, records)]  # copies
    for record in records:
        if "val_bits_per_byte" in record:
            record["val_bits_per_byte"] /= bytes_per_token
    write_metrics(path, records)
    return open_run(path)


def make_runs(path: Path, what: str) -> list[Run]:
    if what == "one evaluation":
        return [make_run(path / "one", records=evaluations(4.234, 1.6)[:1])]
    if what == "tokenizers":
        return [
            make_run(path / "char"),
            make_run(path / "bpe", BPE, bytes_per_token=2.37, tokenizer="bpe", best=3.6),
        ]
    if what == "corpora":
        return [
            make_run(path / "plays"),
            make_run(path / "markov", MARKOV, corpus="markov", best=0.8),
        ]
    if what == "14 runs":
        runs = []
        for i, name in enumerate(NAMES):
            runs.append(make_run(path / str(i) / name, best=1.5 + i / 20))
        return runs
    n = {"one run": 1, "three runs": 3}[what]
    return [make_run(path / f"run {i}", best=1.5 + i / 10) for i in range(n)]


HUGE = {"step": 9, "val_nll": 5e300, "train_nll": 1e300}
Points = list[tuple[float, float]]
PICTURES = ["one run", "one evaluation", "three runs", "tokenizers", "corpora", "14 runs"]
CASES: list[tuple[str, dict[str, str]]] = [
    *((what, {}) for what in PICTURES),
    ("one evaluation", {"x": "seconds"}),
    ("three runs", {"x": "seconds"}),
    ("one run", {"x": "tokens"}),
    ("three runs", {"scale": "linear"}),
    ("tokenizers", {"unit": "bits_per_byte"}),
]


def lines_of(axes: Axes) -> dict[float, list[Points]]:
    """The points of each line, by the width of the line."""
    found: dict[float, list[Points]] = {}
    for line in axes.lines:
        xy: Any = line.get_xydata()
        points = [(x, y) for x, y in xy.tolist()]
        found.setdefault(line.get_linewidth(), []).append(points)
    return found


@pytest.mark.parametrize(("what", "options"), CASES, ids=str)
def test_no_name_is_on_another_or_on_a_curve(
    what: str, options: dict[str, Any], tmp_path: Path
) -> None:
    runs = make_runs(tmp_path, what)
    figure = figures.make_figure(make_picture(runs, **options))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legend = figure.legends[0]
    names = [label.get_text() for label in axes.texts]
    baselines = find_baselines(runs, options.get("unit", "nats"))
    assert names == [f"{name}  {value:.3f}" for name, value in baselines]
    boxes = [Text.get_window_extent(label) for label in axes.texts]
    for first, second in itertools.combinations(boxes, 2):
        assert not first.overlaps(second)
    picture = make_picture(runs, options.get("x", "step"), "log", "nats")
    curves_end = axes.transData.transform((picture.right, 0))[0]
    for box in boxes:
        assert curves_end < box.x0 < box.x1 < axes.bbox.x1 + 1
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
    legend_box = legend.get_window_extent()
    assert figure.bbox.x0 <= legend_box.x0 < legend_box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(legend_box) for box in boxes)
    marks = [label.get_window_extent() for label in axes.get_xticklabels()]
    for left, right in itertools.pairwise(marks):
        assert left.x1 < right.x0
    assert axes.bbox.height > 0.5 * (figure.bbox.height - legend_box.height)


@pytest.mark.parametrize(("what", "options"), CASES, ids=str)
def test_no_name_overwrites_another_in_the_terminal(
    what: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    runs = make_runs(tmp_path, what)
    drawn = draw_terminal(make_picture(runs, **options))
    for name, value in find_baselines(runs, options.get("unit", "nats")):
        assert drawn.count(f"{name} {value:.3f}") == 1
    marks = drawn.split("└")[1].splitlines()[1].split()
    scale = options.get("scale", "log")
    picture = make_picture(runs, options.get("x", "step"), scale, "nats")
    assert marks == [show_number(tick) for tick in picture.ticks]
    legend = drawn.splitlines()[-len(runs) :]
    assert len({line.split()[0] for line in legend}) == len(runs)  # each run has a mark of its own
    for line, curve in zip(legend, picture.curves, strict=True):
        assert ("best " in line) == bool(curve.val[0])
    for run, line in zip(runs, legend, strict=True):
        assert run.name[:20] in line


def test_each_baseline_is_in_the_row_of_its_loss(tmp_path: Path) -> None:
    """A curve that ends between two baselines ends between their rows."""
    drawn = draw_terminal(make_picture([make_run(tmp_path / "run", best=2.0)])).splitlines()
    end = max(
        row
        for row, line in enumerate(drawn)
        if line.rstrip().endswith(("│", "┤")) and line[-2] not in " ─"
    )
    assert next(row for row, line in enumerate(drawn) if "gzip" in line) < end
    assert end < next(row for row, line in enumerate(drawn) if "bzip2" in line)
    # no line without its name
    for line in drawn:
        name, *baseline = line.split("├")
        assert name.strip() or not baseline


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_names_of_runs_are_drawn_as_they_are(kind: str, tmp_path: Path) -> None:
    """No formulas, no escapes, and no warning."""
    path = tmp_path / f"picture.{kind}"
    runs = make_runs(tmp_path, "14 runs")
    figures.draw_png(make_picture(runs), path)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[kind])
    if kind == "svg":
        ET.fromstring(path.read_bytes())
    legend = figures.make_figure(make_picture(runs)).legends[0]
    labels = [label.get_text().split("  ", 1) for label in legend.get_texts()]
    long = NAMES.index("long " * 20)
    shown = [*NAMES]
    name = NAMES[long]
    shown[long] = f"{name[:24]}…{name[-23:]}"
    curves = make_picture(runs, "step", "log", "nats").curves
    for (best, name), expected, curve in zip(labels, shown, curves, strict=True):
        assert best == f"best {curve.best[1][0]:.4f}"
        assert name == expected


def test_the_curves_are_the_metrics(tmp_path: Path) -> None:
    records = [
        {"step": 0, "val_nll": 4.2, "val_bits_per_byte": 6.0},
        {"step": 2, "train_nll": 4.0, "val_nll": 3.0, "val_bits_per_byte": 4.5},
        {"step": 10, "train_nll": 3.0, "val_nll": 3.5, "val_bits_per_byte": 5.0},
        {
            "step": 10,
            "best_step": 2,
            "best_val_nll": 3.1,
            "best_val_bits_per_byte": 4.6,
            "best_train_nll": 2.9,
        },
    ]
    run = make_run(tmp_path / "run", records=records, bytes_per_token=2.0)
    lines = lines_of(figures.make_figure(make_picture([run])).axes[0])
    val = [(0, 4.2), (2, 3.0), (10, 3.5)]
    assert val in lines[2.0]
    assert [(1, 4.0), (6, 3.0)] in lines[0.8]  # in the middle of the steps that it is a mean of
    # the star: on all validation text
    assert [(2, 3.1)] in [line for group in lines.values() for line in group]
    curve = make_picture([run], "step", "log", "bits_per_byte").curves[0]
    assert curve.val == ([0, 2, 10], [3.0, 2.25, 2.5])
    nats = [loss * 2 * math.log(2) for loss in curve.train[1]]
    assert nats == pytest.approx([4.0, 3.0])
    assert curve.best == ([2], [4.6])


def test_perplexity_is_on_the_right_of_nats_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")

    def perplexities(figure: Figure) -> list[tuple[float, str]]:
        return [
            (mark, label.get_text())
            for child in figure.axes[0].child_axes
            for mark, label in zip(child.get_yticks(), child.get_yticklabels(), strict=True)
        ]

    marks = perplexities(figures.make_figure(make_picture([run])))
    assert len(marks) > 5
    for nats, text in marks:
        assert math.exp(nats) == pytest.approx(float(text))
    assert not perplexities(figures.make_figure(make_picture([run], unit="bits_per_byte")))


def test_where_the_source_is_known_a_panel_has_the_gap(tmp_path: Path) -> None:
    records = evaluations(2.773, 0.8)
    for record in records:
        record["kl_gap"] = record["val_nll"] - 0.767
    final = {
        "step": 800,
        "best_step": 800,
        "best_val_nll": 0.81,
        "best_train_nll": 0.8,
        "best_kl_gap": 0.043,
    }
    run = make_run(tmp_path / "markov", MARKOV, [*records, final])
    figure = figures.make_figure(make_picture([run, make_run(tmp_path / "plays")]))
    figure.draw_without_rendering()
    axes, panel = figure.axes[:2]
    assert (panel.get_ylabel(), panel.get_yscale()) == ("KL(source || model)", "log")
    gaps = [(record["step"], record["kl_gap"]) for record in records]
    assert gaps in lines_of(panel)[2.0]
    assert all("$" not in label.get_text() for label in panel.get_yticklabels())
    assert panel.get_xlim() == axes.get_xlim()
    assert axes.bbox.height > 3 * figure.dpi
    assert panel.bbox.height > figure.dpi
    assert "best 0.8100, KL 0.0430  markov" in [
        label.get_text() for label in figure.legends[0].get_texts()
    ]
    assert "best 0.8100, KL 0.0430  markov" in draw_terminal(make_picture([run]))
    assert len(figures.make_figure(make_picture([make_run(tmp_path / "plain")])).axes) == 1


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """So are their baselines, and runs whose folders' names are long."""
    long = "the same long beginning of a name "
    for first, second in (("x", "y"), (f"{long}1{long}", f"{long}2{long}")):
        runs = [
            make_run(tmp_path / first / "run"),
            make_run(tmp_path / second / "run", PLAYS | {"bigram": 2.3}),
        ]
        names = [f"{first}/run", f"{second}/run"]
        assert unique_names([run.path for run in runs]) == names
        labels = [curve.label for curve in make_picture(runs, "step", "log", "nats").curves]
        assert len(set(labels)) == 2
        baselines = dict(find_baselines(runs, "nats"))
        assert [value for name, value in baselines.items() if "bigram" in name] == [2.3, 2.484]
        data = content_of_runs(runs)
        assert [run["name"] for run in data["runs"]] == names
        assert data["title"] == ", ".join(names)
    # too long to be shortened
    assert all(name in label for name, label in zip(names, labels, strict=True))


def test_a_baseline_that_differs_says_whose_it_is(tmp_path: Path) -> None:
    def names(*runs: Run, unit: str = "nats") -> list[str]:
        return [name for name, _ in find_baselines(runs, unit)]

    plays, bpe = make_runs(tmp_path, "tokenizers")
    drawn = ["6-gram", "bzip2 (learns)", "gzip (learns)", "bigram", "unigram", "uniform, log|V|"]
    assert names(plays, plays) == drawn
    assert {"bigram (char)", "bigram (bpe)"} < {*names(plays, bpe)}
    in_bits = names(plays, bpe, unit="bits_per_byte")
    assert {"gzip (learns)", "bzip2 (learns)", "unigram (char)"} < {*in_bits}
    other = make_run(tmp_path / "other", PLAYS | {"bigram": 2.4}, corpus="poems")
    assert {"unigram", "bigram (plays)", "bigram (poems)"} < {*names(plays, other)}
    masked = make_run(tmp_path / "masked", PLAYS | {"bigram": 2.3})  # the same text and tokens
    # by the names of the runs
    assert {"bigram (char)", "bigram (masked)"} < {*names(plays, masked)}
    high = make_run(tmp_path / "high", PLAYS | {"gzip": 300.0})
    # above log|V| it says nothing
    assert names(high) == [name for name in drawn if name != "gzip (learns)"]


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1, "train_nll": 3.0, "seconds": 1.0}],
        [{"step": 0, "val_nll": 9.0, "val_bits_per_byte": 9.0}],
        [{"step": 0, "val_nll": 4.2}, HUGE],
        [{"step": 5, "seconds": 0.3, "val_nll": 2.0}],
        [{"step": 1, "lr": 0.1}],
    ],
    ids=str,
)
def test_runs_that_went_badly_are_drawn_too(records: list[Record], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", records=records)
    for x, scale in (("step", "log"), ("seconds", "linear")):
        figure = figures.make_figure(make_picture([run], x, scale))
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_ylim()
        assert -1 < low < 1.5
        assert 4.3 < high < 10
        assert "uniform, log|V| 4.234" in draw_terminal(make_picture([run], x, scale))


def make_sweep(path: Path) -> list[Run]:
    """Two learning rates, three seeds each; the last run was cut off."""
    runs = []
    for rate, best in (("0.01", 1.6), ("0.03", 1.5)):
        for seed in range(3):
            folder = path / f"run {rate} {seed}"
            records = evaluations(4.234, best + 0.01 * seed)
            runs.append(make_run(folder, records=records))
            cfg = Config.model_validate({"optim": {"learning_rate": rate}, "run": {"seed": seed}})
            (folder / "config.toml").write_text(to_toml(cfg))
    write_metrics(runs[-1].path, evaluations(4.234, 1.52)[:9])
    return runs


def test_runs_are_named_by_what_differs_and_seeds_have_a_mean_and_a_band(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    each = make_picture(runs)
    assert [curve.name for curve in each.curves][:2] == [
        "learning_rate=0.01,seed=0",
        "learning_rate=0.01,seed=1",
    ]
    first, second, cut_off = make_picture(runs, mean=True).curves
    assert first.label.endswith("± 0.0098  learning_rate=0.01, 3 seeds")
    assert second.label.endswith("± 0.0069  learning_rate=0.03, 2 seeds")
    assert cut_off.label.endswith("learning_rate=0.03,seed=2")
    columns = [curve.val[1] for curve in each.curves[:3]]
    assert first.val[1] == pytest.approx(np.mean(columns, axis=0))
    assert first.band == pytest.approx(np.std(columns, axis=0, ddof=1))
    (axes,) = figures.make_figure(make_picture(runs, mean=True)).axes
    assert len(axes.collections) == 2  # the bands
    # runs of the same seed differ in something else
    assert len(make_picture([runs[0], *runs[:3]], mean=True).curves) == 4
    # seeds alone differ
    (seeds,) = make_picture(runs[:3], mean=True).curves
    assert seeds.label.endswith("mean, 3 seeds")


def test_ranges_baselines_and_smoothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("run"))
    picture = make_picture([run], smooth=0.5)
    train = make_picture([run]).curves[0].train[1]
    assert picture.curves[0].train[1][:2] == pytest.approx(
        [train[0], (0.5 * train[0] + train[1]) / 1.5]
    )
    limit(picture, (100.0, 400.0), (1.7, 2.3))
    axes = figures.make_figure(picture).axes[0]
    low, high = axes.get_ylim()
    assert (low, high) == pytest.approx((1.7 - 0.024, 2.3 + 0.024))
    assert axes.get_xlim()[0] == 100
    names = [label.get_text() for label in axes.texts]
    assert {"↑ bigram  2.484", "gzip (learns)  2.168", "↓ 6-gram  1.508"} < {*names}
    call("curves.py", "run", "--baselines=false", "--y_range=1.5,3", "--out=none.svg")
    call("curves.py", "run", "--baselines=false", "--terminal")
    assert Path("none.svg").exists()
    for text in ("3,1", "a", "1,2,3", "nan,1", "-1,2"):
        done = call("curves.py", "run", f"--x_range={text}", check=False)
        assert done.returncode == 2
        assert "two numbers, the lower first, as in 1.4,2.5" in done.stderr


def test_close_names_move_apart_and_others_stay() -> None:
    assert spread([1.0, 2.0, 5.0], 0.5) == [1.0, 2.0, 5.0]
    places = spread([1.0, 1.1, 1.2, 1.3, 3.0], 0.5)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert gaps == pytest.approx([0.5, 0.5, 0.5, 1.1])
    assert sum(places) == pytest.approx(1.0 + 1.1 + 1.2 + 1.3 + 3.0)


def test_the_command_draws_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"))
    make_run(Path("empty"), records=[])
    before = {path.name for path in tmp_path.iterdir()}
    for arguments, says in (
        (["empty"], "empty: no metrics yet"),
        (["run", "--out=x.docx"], "cannot draw a .docx"),
        (["run", "--out=empty"], "use .png, .svg or .pdf"),
        ([], "RUN"),
        (["run", "nobody"], "nobody: not a run"),
        (["run", "--x=hours"], "x=hours"),
    ):
        done = call("curves.py", *arguments, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert {path.name for path in tmp_path.iterdir()} == before
    # in a directory of runs, one that has not begun is left out of the picture, not of the page
    make_run(Path("out/begun"))
    make_run(Path("out/new"), records=[])
    said = call("curves.py", "out").stdout.splitlines()
    assert said[0] == f"not drawn, because there are no metrics yet: {Path('out/new')}"
    assert said[1].endswith("  begun")
    call("curves.py", "out", "--html=page.html")
    assert '"name":"new"' in Path("page.html").read_text(encoding="utf-8")
    assert re.fullmatch(r"best 1\.6\d\d\d  run\ncurves\.png\n", call("curves.py", "run").stdout)
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    drawn = call("curves.py", "run", "--terminal").stdout
    assert "best 1.6" in drawn
    assert "\x1b" not in drawn  # no colours into a file
