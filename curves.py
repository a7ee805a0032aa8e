"""Loss curves of one run or many: `python curves.py out/a [out/b ...] [--terminal]`."""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

from pathlib import Path
from typing import Literal

from pydantic import Field

from config.errors import UserError, run_command
from config.files import check_place, is_run
from config.parser import load_options
from config.terminal import print_styled
from config.values import FileName, Page, Section
from engine.logged_run import LoggedRun, open_logged_run
from engine.watchers import load_wing
from report.characters import draw_terminal
from report.figures import draw_png


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
    html: Page = Field(
        "", description="write a page for a browser instead: a file such as compare.html"
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
    empty = [str(run.path) for run in runs if not run.has_metrics()]
    if empty:
        raise UserError(f"{', '.join(empty)}: no metrics yet; train first")
    if options.html:
        others = options.model_fields_set - {"html"}
        if others:
            names = ", ".join(sorted(others))
            raise UserError(f"{names}: no use with html; who looks at the page chooses there")
        write_runs_page = load_wing("page of runs")
        write_runs_page(Path(options.html), [run.path for run in runs])
        print(options.html)
    elif options.terminal:
        print_styled(draw_terminal(runs, options.x, options.scale, options.unit))
    else:
        check_place(Path(options.out))
        path = Path(options.out)
        labels = draw_png(runs, path, options.x, options.scale, options.unit)
        print(*labels, path, sep="\n")


def open_runs(path: Path) -> list[LoggedRun]:
    """Open the run in a directory, or all runs in it that have metrics."""
    if not is_run(path):
        folders = sorted(filter(is_run, path.glob("*")))
        inside = [open_logged_run(folder) for folder in folders]
        trained = [run for run in inside if run.has_metrics()]
        if trained:
            return trained
    return [open_logged_run(path)]  # or it says what is missing


if __name__ == "__main__":
    run_command(main)
