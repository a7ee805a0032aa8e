"""Loss curves of one run or many: `python curves.py out/a [out/b ...] [--terminal]`."""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from config.errors import UserError, run_command
from config.files import check_place, is_run, unique_names
from config.parser import load_options
from config.terminal import one_line, print_styled
from config.values import FileName, Fraction, Page, Section
from engine.logged_run import LoggedRun, open_logged_run
from engine.watchers import load_wing
from report.characters import draw_terminal
from report.figures import draw_png
from report.many import limit, make_picture
from report.picture import Picture


def parse_range(text: str) -> tuple[float, float] | None:
    """Read two numbers, the lower first; None for all of an axis."""
    if not text:
        return None
    low, high = map(float, text.split(","))
    if not 0 <= low < high < math.inf:
        raise ValueError
    return low, high


def _check_range(text: str) -> str:
    try:
        parse_range(text)
    except ValueError:
        raise PydanticCustomError(
            "range", "a range is two numbers, the lower first, as in 1.4,2.5"
        ) from None
    return text


Range = Annotated[str, AfterValidator(_check_range)]


class CurveOptions(Section):
    """What to draw, and where."""

    x: Literal["step", "tokens", "seconds"] = Field(
        "step", description="what the loss is drawn against"
    )
    scale: Literal["log", "linear"] = Field(
        "log", description="of the x axis; log shows the first steps"
    )
    unit: Literal["nats", "bits_per_byte"] = Field(
        "nats", description="of the loss; bits per byte compare tokenizers"
    )
    x_range: Range = Field("", description="part of the x axis to show, as in 100,2000")
    y_range: Range = Field(
        "",
        description="part of the y axis, as in 1.4,2.5; baselines beyond it are named at its ends",
    )
    baselines: bool = Field(True, description="draw the baselines")
    mean: bool = Field(
        True,
        description="draw runs that differ only in the seed as their mean, "
        "with a band of one standard deviation to each side",
    )
    smooth: Fraction = Field(
        0.0,
        description="weight of the past in the training loss that is "
        "drawn: 0.9 is about a mean of 10 points",
    )
    html: Page = Field(
        "", description="write a page for a browser instead: a file such as compare.html"
    )
    animation: FileName = Field(
        "",
        description="write an animated picture instead: the colours of a passage as the steps go "
        "by, a file such as learning.svg",
    )
    out: FileName = Field(
        "curves.png", min_length=1, description="the picture to write: .png, .svg or .pdf"
    )
    terminal: bool = Field(False, description="draw in the terminal instead")


def main(argv: list[str]) -> None:
    paths, options = load_options(
        CurveOptions, argv, "RUN", "+", "directories of runs, or a directory with runs in it"
    )
    runs = [run for path in paths for run in open_runs(Path(path))]
    empty = [run.path for run in runs if not any(run.records())]  # no further than a line
    without = ", ".join(map(str, empty))
    if len(empty) == len(runs) or any(Path(path) in empty for path in paths):
        raise UserError(f"{without}: no metrics yet; train first")
    if options.animation:
        refuse_others(options, "animation", "it always shows the same")
        if len(runs) > 1:
            raise UserError(f"animation: is of one run, and these are {len(runs)}; name one")
        write_animation = load_wing("animation")
        write_animation(Path(options.animation), runs[0].path)
        print(options.animation)
        return
    if options.html:
        refuse_others(options, "html", "who looks at the page chooses there")
        write_runs_page = load_wing("page of runs")
        write_runs_page(Path(options.html), [run.path for run in runs])
        print(options.html)
        return
    if empty:  # in a directory of runs
        print(f"not drawn, because there are no metrics yet: {one_line(without)}")
        runs = [run for run in runs if run.path not in empty]
    if options.terminal:
        print_styled(draw_terminal(collect(runs, options)))
    else:
        check_place(Path(options.out))
        path = Path(options.out)
        labels = draw_png(collect(runs, options), path)
        if len(labels) == len(runs):  # none is a mean
            folders = unique_names([run.path for run in runs])
            labels = [add_name(*pair) for pair in zip(labels, folders, strict=True)]
        print(*labels, path, sep="\n")


def refuse_others(options: CurveOptions, name: str, reason: str) -> None:
    """Raise a UserError if there are other options than `name`."""
    others = options.model_fields_set - {name}
    if others:
        raise UserError(f"{', '.join(sorted(others))}: no use with {name}; {reason}")


def add_name(label: str, name: str) -> str:
    """Add a run's directory to its label, which may have only what differs."""
    name = one_line(name)
    if label.endswith(f"  {name}"):
        return label
    return f"{label}  ({name})"


def collect(runs: list[LoggedRun], options: CurveOptions) -> Picture:
    """Collect what the options ask for."""
    picture = make_picture(
        runs, options.x, options.scale, options.unit, mean=options.mean, smooth=options.smooth
    )
    if not options.baselines:
        picture.baselines = []
        picture.set_axes()
    limit(picture, parse_range(options.x_range), parse_range(options.y_range))
    return picture


def open_runs(path: Path) -> list[LoggedRun]:
    """Open the run in a directory, or all runs in it."""
    if not is_run(path):
        folders = sorted(filter(is_run, path.glob("*")))
        if folders:
            return [open_logged_run(folder) for folder in folders]
    return [open_logged_run(path)]  # or it says what is missing


if __name__ == "__main__":
    run_command(main)
