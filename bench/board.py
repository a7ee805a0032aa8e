"""What docs/records.md says: rankings of what bench/records.py has measured.

A row is a recipe, a commit and a CPU, with a run for each seed. It counts when it has its seeds,
and keeps to the limit of the board.
"""

import math
import statistics
from typing import Any, NamedTuple

from surprisal import LN2

Run = dict[str, Any]  # what is measured of one seed
Row = dict[str, Any]  # a recipe, a commit, a CPU, and {seed: run}
Rows = list[Row]

SEEDS = 5  # of a row
SEEDS_IF_LONG = 3
LONG = 3000  # seconds of a command, about an hour
MAX_DIFFERENCE = 0.01  # between the exact loss and the file
NO_FILE = "by evaluate.py only"  # of an ensemble, and of a model that learns
TITLES = {"shakespeare": "the 38 plays", "tinyshakespeare": "tinyshakespeare"}

HEAD = """# Records on two cores of a CPU

How soon a GPT of this repository reaches a loss, and which loss it has after a time. It learns from
the training text alone. Recipes are chosen on tuning text, with other seeds. Where a row says that
its recipe was chosen on validation text, its loss is optimistic.

Seconds are those of the whole command `python train.py RECIPE`, from its start to its end, with the
corpus prepared: the median over the seeds, and in brackets the range. The loss is that of the best
model on all validation targets, in nats per byte, which here is a character: the mean over the
seeds, and the standard deviation.

The file is what `compress.py` makes of all of the validation text. Each file gave the same bytes
back. The model, which that needs, is not counted. The file differs from the loss because its
predictions are in float32, have other contexts, and include the first character. A row has the
difference of the seed where it is largest; above 1% something is wrong.

Every model here stands still while it is measured, unless a title says that it learns while it
reads: the two never share a ranking. The seconds are then those of the training too, without what
the text takes to be read (`evaluate.py --dynamic`).

To add a row, choose a recipe, a file in `config/` and options, on tuning text (`--split=tuning`).
Write it into the table RECIPES of `bench/records.py`, and commit it. Then, on 2 cores with nothing
else to do, `python bench/records.py "config/RECIPE --name=value"` trains it with five seeds, or
three where a run takes an hour. Stopped, the same command goes on. Commit the logs in
`docs/records/`, and this file and `docs/records.json`, which the command writes.
"""
COLUMNS = (
    "",
    "seconds",
    "nats",
    "bits per byte",
    "bits per byte of the file",
    "the file's difference",
    "recipe",
    "seeds",
    "commit",
    "CPU",
    "log",
)


class Board(NamedTuple):
    """A ranking: by seconds where there is a loss to reach, else by loss."""

    title: str
    corpus: str
    most_nats: float = math.inf  # that a row's mean may have
    most_seconds: float = math.inf  # that a row's median may have


Recipes = dict[Board, list[str]]


class Figures(NamedTuple):
    """What the seeds of a row add up to."""

    seconds: float  # the median
    fastest: float
    slowest: float
    nats: float  # per byte, the mean
    deviation: float
    bits: float  # per byte, the mean
    file_bits: float | None  # None where there are no files
    difference: float  # of the file, as a share of the loss, for the seed where it is largest


# Rows.


def measured_runs(row: Row) -> list[Run]:
    """List the runs of a row of which everything is measured, in the order of measuring."""
    return [run for run in row["runs"].values() if "file_bits_per_byte" in run]


def count_wanted(row: Row) -> int:
    """Count the seeds that a row needs."""
    runs = measured_runs(row)
    if runs and runs[0]["seconds"] >= LONG:
        return SEEDS_IF_LONG
    return SEEDS


def has_its_seeds(row: Row) -> bool:
    return len(measured_runs(row)) >= count_wanted(row)


def summarise(row: Row) -> Figures:
    """Add up the seeds of a row."""
    runs = measured_runs(row)
    seconds = [run["seconds"] for run in runs]
    bits = [run["bits_per_byte"] for run in runs]
    nats = [LN2 * value for value in bits]
    deviation = 0.0
    if len(nats) > 1:
        deviation = statistics.stdev(nats)
    differences = [difference_of(run) for run in runs]
    files = [run["file_bits_per_byte"] for run in runs]
    file_bits = None
    if None not in files:
        file_bits = statistics.fmean(files)
    return Figures(
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        nats=statistics.fmean(nats),
        deviation=deviation,
        bits=statistics.fmean(bits),
        file_bits=file_bits,
        difference=max(differences, key=abs),
    )


def difference_of(run: Run) -> float:
    """Return how much more a file takes than the loss says, as a share; 0 without a file."""
    if run["file_bits_per_byte"] is None:
        return 0.0
    ratio: float = run["file_bits_per_byte"] / run["bits_per_byte"]
    return ratio - 1


def show_difference(difference: float) -> str:
    """Say how much a file differs; loudly if it is too much.

    >>> show_difference(-0.0034), show_difference(0.0123)
    ('-0.34%', '**+1.23%: more than 1%**')
    """
    shown = f"{difference:+.2%}"
    if abs(difference) <= MAX_DIFFERENCE:
        return shown
    return f"**{shown}: more than {MAX_DIFFERENCE:.0%}**"


def name_row(row: Row) -> str:
    return f"`{row['recipe']}` (commit {row['commit'][:8]}, {row['cpu']})"


# Boards.


def to_markdown(recipes: Recipes, rows: Rows) -> str:
    """Write all boards that have rows."""
    lines = [HEAD]
    for board, commands in recipes.items():
        for learns in (False, True):  # are never in one ranking
            own = []
            for row in rows:
                if row["recipe"] in commands and row["learns"] == learns and measured_runs(row):
                    own.append(row)
            if own:
                title = f"## {title_of(board)}"
                if learns:
                    title += ", learning while it reads"
                lines += [title, "", *show_board(board, own), ""]
    return "\n".join(lines)


def title_of(board: Board) -> str:
    return f"{board.title}: {TITLES.get(board.corpus, board.corpus)}"


def show_board(board: Board, rows: Rows) -> list[str]:
    """Rank the rows that count, and say why others do not."""
    ranked = []
    remarks = []
    for row in rows:
        why_not = find_fault(board, row)
        if why_not:
            remarks.append(f"- {name_row(row)} has no rank: {why_not}")
        else:
            ranked.append(row)
    ranked.sort(key=lambda row: place_of(board, summarise(row)))
    lines = []
    if ranked:
        lines += [to_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    for number, row in enumerate(ranked, start=1):
        lines.append(to_line(cells_of(row, number)))
    if ranked and remarks:
        lines.append("")
    return lines + remarks


def place_of(board: Board, figures: Figures) -> float:
    if math.isfinite(board.most_nats):
        return figures.seconds
    return figures.nats


def find_fault(board: Board, row: Row) -> str:
    """Say why a row does not count; "" if it does."""
    wanted = count_wanted(row)
    count = len(measured_runs(row))
    if count < wanted:
        return f"{count} of {wanted} seeds are measured"
    figures = summarise(row)
    if figures.nats > board.most_nats:
        return f"**its {figures.nats:.4f} nats are above {board.most_nats:g}**"
    if figures.seconds > board.most_seconds:
        return f"**its {figures.seconds:.1f} s are above {board.most_seconds:g}**"
    return ""


def cells_of(row: Row, number: int) -> list[str]:
    figures = summarise(row)
    in_file = NO_FILE
    difference = ""
    if figures.file_bits is not None:
        in_file = f"{figures.file_bits:.4f}"
        difference = show_difference(figures.difference)
    recipe = f"`{row['recipe']}`"
    if row["chosen_on_val"]:
        recipe += ", chosen on validation text"
    return [
        str(number),
        f"{figures.seconds:.1f} ({figures.fastest:.1f} to {figures.slowest:.1f})",
        f"{figures.nats:.4f} ± {figures.deviation:.4f}",
        f"{figures.bits:.4f}",
        in_file,
        difference,
        recipe,
        ", ".join(row["runs"]),
        row["commit"][:8],
        row["cpu"],
        f"[log](records/{row['log']})",
    ]


def to_line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def find_faults(recipes: Recipes, rows: Rows) -> list[str]:
    """List what a reader of the figures has to hear: rows that do not count, files that differ."""
    lines = []
    for row in rows:
        for run_seed, run in row["runs"].items():
            if "file_bits_per_byte" in run and abs(difference_of(run)) > MAX_DIFFERENCE:
                shown = show_difference(difference_of(run)).strip("*")
                lines.append(f"{row['recipe']}, seed {run_seed}: the file differs by {shown}")
    for board, commands in recipes.items():
        for row in rows:
            if row["recipe"] in commands and measured_runs(row):
                fault = find_fault(board, row)
                if fault:
                    shown = fault.replace("**", "")
                    lines.append(f"{title_of(board)}: {row['recipe']} has no rank: {shown}")
    return lines
