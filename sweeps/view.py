"""Shows a sweep on the terminal: a table that grows as runs end, and a bar over all of them."""

import math
import shutil
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from config.terminal import one_line, print_styled
from report.picture import shorten
from report.status import HAS_NOT_ENDED
from sweeps.table import Content

WIDTH = 80
BAR_WIDTH = 40
BAR_WIDTH = 40
LONGEST_NAME = 26  # of a group in the table
UP = "\x1b[{}A\r\x1b[J"  # moves the cursor so many lines up, and clears what follows


class View:
    """What stands on the terminal; in a file or a pipe, a line for each run that ends."""

    def __init__(self) -> None:
        self.is_live = sys.stdout.isatty()
        self.started = time.monotonic()
        self.steps_before: int | None = None  # that were done when this sweep started
        self.lines = 0  # that are drawn anew
        self.told: set[str] = set()  # runs whose end was said

    def show(self, content: Content) -> None:
        """Show how far the sweep is."""
        if self.is_live:
            table = show_table(content, self.rows_of_table())
            self.draw([*table, "", self.show_progress(content)])
        else:
            self.tell_ends(content)

    def show_end(self, content: Content) -> None:
        """Show the whole table, and what the differences are worth."""
        table = show_table(content)
        if self.is_live:
            self.draw(table)
        else:
            print(*table, sep="\n")
        lines = [*content["sentences"], content["remark"]]
        print("", *filter(None, lines), sep="\n")

    def rows_of_table(self) -> int:
        return shutil.get_terminal_size().lines - 5

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines that were drawn last."""
        start = ""
        if self.lines:
            start = UP.format(self.lines)
        print_styled(start + "\n".join(lines))
        self.lines = len(lines)

    def show_progress(self, content: Content) -> str:
        """Draw a bar over all steps of all runs."""
        done, total = count_steps(content)
        bar = tqdm.format_meter(
            done, total, elapsed=0, ncols=BAR_WIDTH, bar_format="{percentage:3.0f}%|{bar}|"
        )
        return f"{bar} {self.describe_progress(content)}"

    def describe_progress(self, content: Content) -> str:
        """Say how many runs have ended, and how much time the others will take."""
        ended = [run for run in content["runs"] if run["status"] not in HAS_NOT_ENDED]
        said = f"{len(ended)} of {len(content['runs'])} runs"
        done, total = count_steps(content)
        if self.steps_before is None:
            self.steps_before = done
        own = done - self.steps_before  # steps of this sweep since it was started
        if own == 0 or done == total:
            return said
        seconds = (time.monotonic() - self.started) * (total - done) / own
        return f"{said}, about {describe_time(seconds)} left"

    def tell_ends(self, content: Content) -> None:
        """Say of each run how it ended, once."""
        for run in content["runs"]:
            if run["status"] not in HAS_NOT_ENDED and run["name"] not in self.told:
                self.told.add(run["name"])
                print(f"{run['name']}: {describe_end(run)}", flush=True)


def describe_time(seconds: float) -> str:
    """Round a time to what can be known of the future.

    >>> describe_time(8), describe_time(95), describe_time(9000)
    ('10 s', '2 min', '2.5 h')
    """
    if seconds < 55:
        return f"{math.ceil(seconds / 10) * 10} s"
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def count_steps(content: Content) -> tuple[int, int]:
    """Count the steps of all runs that are done, and all that there are; ended runs are done."""
    done = 0
    total = 0
    for run in content["runs"]:
        total += run["max_iters"]
        if run["status"] in HAS_NOT_ENDED:
            done += min(int(run["step"]), run["max_iters"])
        else:
            done += run["max_iters"]
    return done, total


def describe_end(run: Content) -> str:
    """Say how a run ended, with its loss."""
    parts = []
    if run["loss"] is not None:
        parts.append(f"{run['nats']:.4f} nats, {run['bits_per_byte']:.3f} bits per byte")
    if run["seconds"] is not None:
        parts.append(f"{run['seconds']:.0f} s")
    parts.append(run["status"])
    if run["reason"]:
        parts[-1] += f" ({one_line(run['reason'])})"
    return ", ".join(parts)


def show_table(content: Content, rows: int = 10**9) -> list[str]:
    """Show the groups, sorted by their loss; at most so many rows, and how many there are more."""
    groups = content["groups"]
    title = "group"
    if len(groups[0]["options"]) == 1:
        title = next(iter(groups[0]["options"]))
    unit = content["unit"] or "nats per token"
    lines = [f"loss in {unit} on {content['loss_on']}: mean ± deviation over seeds"]
    shown = groups
    if len(groups) > rows - 2:
        shown = groups[: max(1, rows - 3)]
    names = [title, *(group["name"] for group in shown)]
    names = [shorten(name, LONGEST_NAME) for name in names]
    width = max(map(len, names))
    header = f"{names[0]:<{width}} {'loss':>15} seeds  bits/byte  seconds  status"
    lines.append(header)
    room = WIDTH - header.index("status")
    for name, group in zip(names[1:], shown, strict=True):
        lines.append(f"{name:<{width}} {show_group(group)}  {shorten(group['status'], room)}")
    left_out = len(groups) - len(shown)
    if left_out:
        lines.append(f"... and {left_out} more")
    return lines


def show_group(group: Content) -> str:
    """Show what was measured of a group, in columns."""
    if group["mean"] is None:
        return f"{'-':>15} {group['seeds']:>5}  {'-':>9}  {'-':>7}"
    loss = f"{group['mean']:.4f}"
    if group["deviation"] is not None:
        loss += f" ± {group['deviation']:.4f}"
    bits = group["bits_per_byte"]
    return f"{loss:>15} {group['seeds']:>5}  {bits:>9.3f}  {group['seconds']:>7.0f}"
