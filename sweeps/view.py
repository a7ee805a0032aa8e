"""Shows a sweep on the terminal: a table that grows as runs end, and a bar over all of them."""

import math
import shutil
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from config.terminal import one_line, print_styled, printable, say, screen_width
from report.picture import shorten
from report.status import ENDED, TRAINING
from sweeps.table import Content

WIDTH = 80
BAR_WIDTH = 40
WIDEST_NAMES = 34  # characters of all options in the table
SHORTEST_NAME = 7  # that an option has there
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
            lines = [*table, "", self.show_progress(content)]
            room = max(1, shutil.get_terminal_size().lines - 1)  # the cursor has a row of its own
            # a line in two rows would be counted as one
            self.draw([line[: screen_width()] for line in lines[-room:]])
        else:
            self.tell_ends(content)

    def show_end(self, content: Content) -> None:
        """Show the whole table, and what the differences are worth."""
        table = show_table(content)
        if self.is_live:
            self.draw(table)
        else:
            print(*table, sep="\n")
        for run in content["runs"]:
            if run["reason"] and self.is_live:  # else it is told already
                print(f"{run['name']}: {describe_end(run)}")
        if content["sentences"]:
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
        said = content["progress"]
        width = min(BAR_WIDTH, screen_width() - len(said) - 1)
        bar = tqdm.format_meter(
            done, total, elapsed=0, ncols=width, bar_format="{percentage:3.0f}%|{bar}|"
        )
        return f"{bar} {said}"

    def describe_progress(self, content: Content) -> str:
        """Say how many runs have ended, and how much time the others will take."""
        ended = [run for run in content["runs"] if run["status"] in ENDED]
        said = f"{len(ended)} of {len(content['runs'])} runs"
        done, total = count_steps(content)
        if self.steps_before is None:
            self.steps_before = done
        is_training = any(run["status"] == TRAINING for run in content["runs"])
        if not is_training and len(ended) < len(content["runs"]):
            return f"stopped after {said}"
        own = done - self.steps_before  # steps of this sweep since it was started
        if own == 0 or done == total:
            return said
        seconds = (time.monotonic() - self.started) * (total - done) / own
        return f"{said}, about {describe_time(seconds)} left"

    def warn(self, text: str) -> None:
        """Print a warning that stays, above what is drawn next."""
        if self.is_live:
            self.draw([printable(text)])
            self.lines = 0
        else:
            say(text)

    def tell_ends(self, content: Content) -> None:
        """Say of each run how it ended, once."""
        for run in content["runs"]:
            if run["status"] in ENDED and run["name"] not in self.told:
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
        if run["status"] not in ENDED:
            done += min(int(run["step"]), run["max_iters"])
        else:
            done += run["max_iters"]
    return done, total


def describe_end(run: Content) -> str:
    """Say how a run ended, with its loss."""
    parts = []
    if run["nats"] is not None:
        parts.append(f"{run['nats']:.4f} nats")
    if run["bits_per_byte"] is not None:
        parts.append(f"{run['bits_per_byte']:.3f} bits per byte")
    if run["seconds"] is not None:
        parts.append(f"{run['seconds']:.0f} s")
    parts.append(run["status"])
    if run["reason"]:
        parts[-1] += f" ({one_line(run['reason'])})"
    return ", ".join(parts)


def show_table(content: Content, rows: int = 10**9) -> list[str]:
    """Show the groups, sorted by their loss; at most so many rows, and how many there are more."""
    groups = content["groups"]
    unit = content["unit"] or "nats per token"
    lines = [f"loss in {unit} on {content['loss_on']}: mean ± deviation over seeds"]
    shown = groups
    if len(groups) > rows - 2:
        shown = groups[: max(1, rows - 3)]
    title, *names = name_rows(shown)
    header = f"{title} {'loss':>15} seeds  bits/byte  seconds  status"
    lines.append(header)
    room = WIDTH - header.index("status")
    for name, group in zip(names, shown, strict=True):
        lines.append(f"{name} {show_group(group)}  {cut_end(group['status'], room)}")
    left_out = len(groups) - len(shown)
    if left_out:
        lines.append(f"... and {left_out} more")
    return lines


def cut_end(text: str, length: int) -> str:
    """Cut the end of a text that is longer than `length`.

    >>> cut_end("1 interrupted, 2 finished", 15)
    '1 interrupted,…'
    """
    if len(text) <= length:
        return text
    return text[: length - 1] + "…"


def name_rows(groups: Sequence[Content]) -> list[str]:
    """Name the first columns and the rows, all equally long: a column for each option that varies.

    Long names of options and long values are cut in their middle, so that the table stays narrow.
    """
    options = [group["options"] for group in groups]
    if not options[0]:
        return pad(["group", *(group["name"] for group in groups)])
    longest = max(SHORTEST_NAME, WIDEST_NAMES // len(options[0]) - 2)
    columns = []
    for name in options[0]:
        texts = [name, *(own[name] for own in options)]
        columns.append(pad([shorten(text, longest) for text in texts]))
    return ["  ".join(cells) for cells in zip(*columns, strict=True)]


def pad(texts: Sequence[str]) -> list[str]:
    """Make texts equally long, with spaces at their ends."""
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def show_group(group: Content) -> str:
    """Show what was measured of a group, in columns."""
    if group["mean"] is None:
        return f"{'-':>15} {group['seeds']:>5}  {'-':>9}  {'-':>7}"
    loss = f"{group['mean']:.4f}"
    if group["deviation"] is not None:
        loss += f" ± {group['deviation']:.4f}"
    bits = number_or_dash(group["bits_per_byte"], ".3f")
    seconds = number_or_dash(group["seconds"], ".0f")
    return f"{loss:>15} {group['seeds']:>5}  {bits:>9}  {seconds:>7}"


def number_or_dash(value: float | None, form: str) -> str:
    """Show a number; a dash where none is known, as of a run whose files are damaged."""
    if value is None:
        return "-"
    return format(value, form)
