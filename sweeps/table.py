"""Collects what a sweep has measured: its runs, the means of its groups, and their differences.

It is plain data, which becomes sweep.json, the table on the terminal, and sweep.html.
"""

import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.metrics import Record, read_records
from report.status import DIVERGED, ENDED, STATUSES
from sweeps.grid import PlannedRun, Sweep
from sweeps.jobs import Jobs
from sweeps.statistics import compare_all, describe_difference, mean_of_seeds, say_all

Content = dict[str, Any]
OPTIMISTIC = (
    "chosen on validation text: optimistic, as the best was partly lucky there; add "
    "--split=tuning to choose without it"
)
OTHER_TARGETS = "the runs predict different texts, or parts of one: their losses do not compare"
HONEST = (
    "chosen on tuning text; `python evaluate.py RUN --split=val` measures the one that you choose"
)
BITS = "bits per byte"
TOKENS = {"tokenizer", "vocab_size"}  # options that change the tokens, and not the text


class Table:
    """What a sweep has measured so far."""

    def __init__(self, sweep: Sweep, command: Sequence[str], jobs: Jobs) -> None:
        self.sweep = sweep
        self.jobs = jobs
        self.unit = choose_unit(sweep.runs)
        self.about: Content = {
            "name": sweep.folder.name,
            "command": shlex.join(command),
            "fixed": sweep.fixed,
            "varied": sweep.varied,
            "unit": self.unit,
            "loss_on": "validation text",
            "remark": OPTIMISTIC,
        }
        if sweep.runs[0].cfg.data.split == "tuning":
            self.about |= {"loss_on": "tuning text", "remark": HONEST}
        if self.unit is None:
            self.about["remark"] = OTHER_TARGETS
        elif len({run.group for run in sweep.runs}) == 1:  # there is nothing to choose
            self.about["remark"] = ""
        self.ended: dict[Path, Content] = {}  # what does not change any more
        self.seconds = read_seconds(sweep.folder / "sweep.json")
        self.losses: dict[str, dict[int, float]] = {}  # that are compared already
        self.compared: Content = {"differences": [], "sentences": []}

    def collect(self) -> Content:
        """Collect the runs, groups and differences of a sweep, as far as they are measured.

        Groups are sorted by their mean loss, those without one last.
        """
        runs = []
        by_group: dict[str, list[Content]] = {}
        for run in self.sweep.runs:
            content = self.content_of(run)
            runs.append(content)
            by_group.setdefault(run.group, []).append(content)
        groups = [collect_group(name, own) for name, own in by_group.items()]
        if self.unit is not None:
            groups.sort(key=place_in_table)
        losses = {}
        for number, group in enumerate(groups):
            own = by_group[group["name"]]
            for content in own:
                content["group"] = number
            losses[group["name"]] = losses_by_seed(own)
        if self.unit is not None and losses != self.losses:  # to compare may take seconds
            self.losses = losses
            self.compared = compare(losses)
        sentences = [*self.compared["sentences"]]
        if len(groups) == 1 and groups[0]["low"] is not None:
            sentences.append(describe_mean(groups[0]))
        for group in groups:
            sentences += describe_diverged(by_group[group["name"]], group)
        found = {"runs": runs, "groups": groups, "sentences": sentences}
        return self.about | self.compared | found

    def content_of(self, run: PlannedRun) -> Content:
        """Collect what is known of a run; of one that has ended, files are read once."""
        if run.path in self.ended:
            return self.ended[run.path]
        status = self.jobs.status_of(run)
        content = collect_run(run, status, self.jobs.reasons.get(run.path, ""))
        known = self.seconds.get(run.path.name)
        content["command_seconds"] = self.jobs.seconds.get(run.path, known)
        content["loss"] = content["nats"]
        if self.unit == BITS:
            content["loss"] = content["bits_per_byte"]
        if status in ENDED:
            self.ended[run.path] = content
        return content


def read_seconds(path: Path) -> dict[str, float]:
    """Read how long the command of each run took, from the sweep.json of an earlier start.

    None is known of a run that was stopped and resumed.
    """
    try:
        runs = json.loads(path.read_bytes())["runs"]
        return {run["name"]: run["command_seconds"] for run in runs}
    except (OSError, ValueError, LookupError, TypeError):  # none, or not ours
        return {}


def choose_unit(runs: Sequence[PlannedRun]) -> str | None:
    """Choose the unit of the losses; None if the runs predict different texts, or parts of one.

    Where only their tokens differ, bits per byte compare.
    """
    texts = [run.cfg.data.model_dump(exclude=TOKENS) for run in runs]
    if any(text != texts[0] for text in texts):
        return None
    tokens = [run.cfg.data.model_dump(include=TOKENS) for run in runs]
    if any(own != tokens[0] for own in tokens):
        return BITS
    return "nats per token"


def compare(losses: dict[str, dict[int, float]]) -> Content:
    """Compare all pairs of groups, in figures and in words."""
    pairs = compare_all(losses)
    differences = [pair._asdict() | {"sentence": describe_difference(pair)} for pair in pairs]
    return {"differences": differences, "sentences": say_all(pairs)}


def describe_mean(group: Content) -> str:
    """Say how sure the mean of the only group is."""
    return (
        f"the mean of {group['seeds']} seeds is {group['mean']:.4f}, its 95% interval "
        f"{group['low']:.4f} to {group['high']:.4f}"
    )


def describe_diverged(runs: Sequence[Content], group: Content) -> Iterator[str]:
    """Say that a group's losses are those of models from before its runs diverged."""
    diverged = [run for run in runs if run["status"] == DIVERGED]
    if diverged:
        yield (
            f"with {group['name']}, {len(diverged)} of {len(runs)} runs diverged: the loss counts "
            "of the best model before that"
        )


def place_in_table(group: Content) -> float:
    if group["mean"] is None:
        return math.inf
    return float(group["mean"])


def collect_run(run: PlannedRun, status: str, reason: str) -> Content:
    """Collect what is known of a run: its status, and the exact loss of its best model."""
    last: Record = {}
    for record in read_records(run.path / "metrics.jsonl"):
        last = last | record
    if status == DIVERGED:
        reason = read_reason(run.path / "verdict.txt")
    return {
        "name": run.path.name,
        "options": run.varied,
        "seed": run.seed,
        "status": status,
        "reason": reason,
        "step": last.get("step", 0),
        "max_iters": run.cfg.optim.max_iters,
        "nats": last.get("best_val_nll"),
        "bits_per_byte": last.get("best_val_bits_per_byte"),
        "seconds": last.get("seconds"),
    }


def read_reason(verdict: Path) -> str:
    """Return the sentence of a verdict that says why a run diverged."""
    if verdict.exists():
        for line in verdict.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("It diverged", "No loss")):
                return line.partition(". ")[0]
    return ""


def collect_group(name: str, runs: Sequence[Content]) -> Content:
    """Average the runs that differ in their seed only."""
    content: Content = {"name": name}
    options = dict(runs[0]["options"])
    options.pop("seed", None)
    content["options"] = options
    content |= mean_of_seeds(losses_by_seed(runs))._asdict()
    for key, average in (("bits_per_byte", statistics.fmean), ("seconds", statistics.median)):
        measured = [run for run in runs if run["loss"] is not None]
        values = [run[key] for run in measured if run[key] is not None]  # else it is damaged
        content[key] = None
        if values:
            content[key] = average(values)
    content["status"] = count_statuses([run["status"] for run in runs])
    return content


def losses_by_seed(runs: Sequence[Content]) -> dict[int, float]:
    return {run["seed"]: run["loss"] for run in runs if run["loss"] is not None}


def count_statuses(statuses: Sequence[str]) -> str:
    """Say how far the runs of a group are: `finished`, or `1 diverged, 2 finished`.

    What is not as it should be comes first: where there is little room, the end is cut.

    >>> count_statuses(["finished", "finished"]), count_statuses(["finished", "diverged"])
    ('finished', '1 diverged, 1 finished')
    """
    counts = Counter(statuses)
    if len(counts) == 1:
        return statuses[0]
    found = [status for status in reversed(STATUSES) if status in counts]
    return ", ".join(f"{counts[status]} {status}" for status in found)
