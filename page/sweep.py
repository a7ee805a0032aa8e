"""Writes sweep.html: what a sweep found, live while it runs."""

import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from config.errors import UserError
from config.files import is_run
from engine.run import open_run
from page.content import Content, content_of_run
from page.page import build_page, build_script, links_to, write_script
from report.differences import VALUE_LENGTH
from report.intervals import FEW
from report.picture import shorten

SAID = ("name", "group", "status", "reason", "seconds")  # of a run in sweep.json
EMPTY: Content = {  # a run that has not begun
    "val": {},
    "best": None,
    "step": 0,
    "max_iters": 0,
    "baselines": [],
    "corpus": "",
    "tokenizer": "",
    "bytes_per_target": 1.0,
    "overfits": False,
    "hasReport": False,
}


def write_sweep_page(folder: Path, sweep: dict[str, Any]) -> None:
    """Write sweep.html into a sweep's folder, and sweep.js, which an open page reads again.

    `sweep` is what sweep.json has.
    """
    page = folder / "sweep.html"
    if not page.exists():  # somebody removed it
        write_frame.cache_clear()
    write_frame(page)
    write_script(folder / "sweep.js", build_script(content_of_sweep(folder, sweep)))


@lru_cache
def write_frame(page: Path) -> None:
    """Write sweep.html, once in a process: one of an earlier version does not know today's data."""
    write_script(page, build_page(""))


def content_of_sweep(folder: Path, sweep: dict[str, Any]) -> Content:
    """Collect what the page of a sweep shows: each run's losses, and what sweep.json has."""
    groups = []
    for group in sweep["groups"]:
        groups.append(group | {"name": title_of(group["options"])})
    shown = [content_of_member(folder, own) for own in sweep["runs"]]
    about = {name: value for name, value in sweep.items() if name != "runs"}
    about["others"] = count_others(folder, sweep)
    return {
        "title": f"Sweep: {sweep['name']}",
        "curves": True,
        "runs": shown,
        "val_kind": sweep["loss_on"].removesuffix(" text"),
        "options": {},
        "groups": [group["name"] for group in groups],
        "targets": [""],
        "pairs": [],
        "sweep": about | {"groups": groups},
        "along": None,
        "status": sweep["progress"],
        "live": sweep["is_live"],
        "few_targets": FEW,
        "written": round(time.time(), 3),
    }


@lru_cache(maxsize=10_000)
def read_curves(path: Path, written: tuple[int, int]) -> Content:
    """Collect a run's losses; again only if its metrics were written since."""
    return content_of_run(open_run(path))


def count_others(folder: Path, sweep: dict[str, Any]) -> int:
    """Count the runs in the folder that are not of the sweep, which had other values before."""
    own = {run["name"] for run in sweep["runs"]}
    return sum(path.name not in own and is_run(path) for path in folder.iterdir())


def title_of(options: dict[str, str]) -> str:
    """Name a group or a run by all of its options: at a curve, a value alone says little."""
    parts = [f"{name}={shorten(value, VALUE_LENGTH)}" for name, value in options.items()]
    return ",".join(parts) or "all runs"


def content_of_member(folder: Path, own: dict[str, Any]) -> Content:
    """Collect what the page shows of a run of the sweep, which may not have begun."""
    path = folder / own["name"]
    content = {**EMPTY}
    with suppress(OSError, UserError):  # it has not begun, or its files are damaged
        written = (path / "metrics.jsonl").stat()
        content |= read_curves(path, (written.st_mtime_ns, written.st_size))
        content |= links_to(path, folder)
    seed = own["options"].get("seed", "")
    inner = own["name"]
    if seed:
        inner = f"seed={seed}"
    content |= {name: own[name] for name in SAID}
    return content | {
        "short": title_of(own["options"]),
        "inner": inner,
        "target": 0,
        "train": {},  # each run's own page has it
        "best_nll": own["nats"],
    }
