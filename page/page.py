"""Writes the losses of runs as a page for any browser.

The page needs no network: its data and Bokeh's JavaScript are in it. While a run trains, its page
reads its data from report.js beside it, again and again; after the end, they are in it too.
"""

import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from config.files import write_atomically
from engine.run import Run, open_run
from page.content import Content, content_of_runs, content_of_text
from page.weights import content_of_model
from report.along_text import LearnedText
from report.analysis import Columns, Passage
from report.status import INTERRUPTED, TRAINING

WEB = Path(__file__).with_name("web")
BOKEH = ["bokeh.min.js", "bokeh-api.min.js"]


def write_runs(path: Path, folders: Sequence[Path]) -> None:
    """Write a page of the runs in some directories, for `curves.py --html`.

    The page follows those that train, by the report.js in their directories.
    """
    runs = [open_run(folder) for folder in folders]
    content = content_of_runs(runs)
    for run, shown in zip(runs, content["runs"], strict=True):
        shown |= links_to(run.path, path.parent)
    if len(runs) == 1 and content["runs"][0]["status"] != TRAINING:
        content["model"] = content_of_model(runs[0])
    write_page(path, content)


def links_to(folder: Path, place: Path) -> dict[str, Any]:
    """Return how a page in a directory names a run's, and whether that has its own page."""
    try:
        name = Path(os.path.relpath(folder.resolve(), place.resolve())).as_posix()
    except ValueError:  # on another drive
        return {"folder": "", "hasReport": False, "hasData": False}
    has_report = (folder / "report.html").is_file()
    return {"folder": name, "hasReport": has_report, "hasData": (folder / "report.js").is_file()}


def write_text(
    path: Path,
    runs: Sequence[Run],
    scored: Sequence[tuple[Columns, Passage | None]],
    name: str,
    found: dict[str, Any] | None,
    *,
    learned: LearnedText | None = None,
) -> None:
    """Write a page of a text, for `evaluate.py --html`; content_of_text says what it is made of."""
    write_page(path, content_of_text(runs, scored, name, found, learned=learned))


def write_page(path: Path, content: Content) -> None:
    """Write one file with everything."""
    write_script(path, build_page(build_script(content)))


def write_live_page(path: Path) -> None:
    """Write report.html of a training that goes on: it reads report.js beside it."""
    write_script(path, build_page(""))


def script_of_run(run: Run, live: bool) -> str:
    """Return report.js of a run, which an open page reads every two seconds while it is live."""
    content = content_of_runs([run], live=live)
    (shown,) = content["runs"]
    if shown["status"] == TRAINING and not live:  # its lock is held until the program ends
        shown["status"] = INTERRUPTED
    if not live:  # a page that is read again and again stays small
        content["model"] = content_of_model(run)
    return build_script(content)


def write_script(path: Path, text: str) -> None:
    # a run's name may be bytes that are no text
    write_atomically(path, text.encode(errors="replace"))


def build_script(content: Content) -> str:
    """Return a call of the page's `receive`; a text in the content cannot end the script."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f"receive({text});"


def build_page(data: str) -> str:
    """Return page.html, where {name} in a comment is replaced by a file, Bokeh, or the data."""

    def insert(found: re.Match[str]) -> str:
        name = found[1]
        if name == "data":
            return data
        if name == "bokeh":
            return read_bokeh()
        return read_web(name)

    return re.sub(r"/\* \{([\w.]+)\} \*/", insert, read_web("page.html"))


def read_web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def read_bokeh() -> str:
    folder = files("bokeh") / "server/static/js"
    scripts = [(folder / name).read_text(encoding="utf-8") for name in BOKEH]
    return ";\n".join(scripts)
