"""Make docs/records.md: the fastest recipes to a loss, and the best in a given time, on 2 cores.

    python bench/records.py ["RECIPE.toml --name=value" ...] [--seeds=101,102,103,104,105]
    [--measure=false]

Each recipe of the table RECIPES is trained with each seed, by a whole command that is timed from
its start to its end. The row has two figures: the exact loss of the best model on all validation
targets, and the bits per byte of the file that compress.py makes of the validation text, after the
file gave the same bytes back. Then evaluate.py --dynamic lets a copy of the model learn while it
reads that text: its loss is a row of its own, in a ranking of its own.

Trainings take turns, so that what disturbs the machine disturbs all recipes. What is measured is
in docs/records.json, seed by seed, and what the commands printed in docs/records/. The same command
goes on where it stopped. Another commit or another CPU is another row.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from pydantic import Field

from bench import time_to_loss
from bench.board import (
    Board,
    Recipes,
    Row,
    Rows,
    Run,
    difference_of,
    find_faults,
    has_its_seeds,
    measured_runs,
    to_markdown,
)
from bench.results import cpu_name
from config.cli import load_config
from config.errors import UserError, run_command
from config.files import is_locked, is_run, lock_of, locked, write_atomically
from config.parser import load_options
from config.schema import DataConfig
from config.values import Section
from data.corpora import read_corpus_text
from data.documents import split_documents
from data.prepare import prepare_corpus
from engine.run import open_run
from surprisal import LN2

# What is measured. A recipe that is on two boards is measured once.
DEFAULT = "config/shakespeare_char.toml"
PLAIN_LONGER = f"{DEFAULT} --n_layer=4 --n_embd=128 --max_iters=2600 --eval_interval=200"
TABLES = "config/shakespeare_ngram.toml"
TABLES_DEEP = f"{TABLES} --n_layer=3"
TINY = f"{TABLES} --corpus=tinyshakespeare --n_layer=2 --batch_size=8 --muon_learning_rate=0.03"
TABLES_TINY = f"{TINY} --max_iters=490"  # one reading of the text
TABLES_TINY_SHORTER = f"{TINY} --max_iters=420"
TABLES_TINY_WIDE = (
    f"{TABLES} --corpus=tinyshakespeare --n_layer=2 --n_embd=128 --batch_size=8 --max_iters=800 "
    "--max_ngram=6 --table_dropout=0.3"
)
SPRINT = "config/tinyshakespeare_sprint.toml"
BEST_TINY = "config/tinyshakespeare_best.toml"
BEST_TINY_SHORTER = f"{BEST_TINY} --max_iters=2050"
RECIPES: Recipes = {
    Board("Time to 1.88", "tinyshakespeare", most_nats=1.88): [SPRINT],
    Board("Time to 1.4697", "tinyshakespeare", most_nats=1.4697): [
        TABLES_TINY_SHORTER,
        TABLES_TINY,
        BEST_TINY_SHORTER,
    ],
    Board("After one minute", "shakespeare", most_seconds=60): [TABLES, DEFAULT],
    Board("After one minute", "tinyshakespeare", most_seconds=60): [
        TABLES_TINY,
        TABLES_TINY_WIDE,
        SPRINT,
    ],
    Board("After ten minutes", "shakespeare", most_seconds=600): [
        TABLES_DEEP,
        TABLES,
        PLAIN_LONGER,
    ],
    Board("After ten minutes", "tinyshakespeare", most_seconds=600): [BEST_TINY, TABLES_TINY_WIDE],
    Board("Without limit", "shakespeare"): [TABLES_DEEP],
    Board("Without limit", "tinyshakespeare"): [BEST_TINY],
}
# Their options were compared on validation text, so their losses are optimistic.
CHOSEN_ON_VAL = (DEFAULT, TABLES_TINY_WIDE, SPRINT, BEST_TINY, BEST_TINY_SHORTER)

CORES = 2
STORE = Path("docs/records.json")
TABLE = Path("docs/records.md")
LOGS = Path("docs/records")
RUNS = Path("out/records")
# What changes no figure: so the commit stays the same when a table of records is committed.
WITHOUT_EFFECT = ("docs", "tests", "bench", "*.md")


class RecordsOptions(Section):
    """What to measure."""

    seeds: str = Field(
        "101,102,103,104,105",
        pattern=r"^\d+(,\d+)*$",
        description="that no recipe was chosen with; the first three where a run takes an hour",
    )
    measure: bool = Field(True, description="false = only write docs/records.md")


def main(argv: list[str]) -> None:
    asked, options = load_options(
        RecordsOptions,
        argv,
        "RECIPE",
        "*",
        "of RECIPES, each with its options in quotes; none = all",
    )
    commands = choose_commands(asked)
    with locked(lock_of(ROOT / RUNS), f"{RUNS}: another records.py measures"), on_two_cores():
        rows = read_rows(ROOT / STORE)
        if options.measure:
            measure_all(commands, options.seeds.split(","), rows)
        write_table(rows)
    for line in find_faults(RECIPES, rows):
        print(line)
    print(TABLE)


# What to measure, and where.


def choose_commands(asked: list[str]) -> list[str]:
    """Return the recipes that were asked for, or all; UserError for one that is on no board."""
    known = list(dict.fromkeys(command for own in RECIPES.values() for command in own))
    for command in asked:
        if command not in known:
            raise UserError(f"{command}: is on no board; write it into RECIPES of bench/records.py")
    return asked or known


def read_val(command: str) -> bytes:
    """Prepare the corpus of a recipe, and return its validation text.

    UserError for a recipe whose loss is not that of all of this text.
    """
    cfg, _ = load_config(shlex.split(command))
    data = cfg.data
    is_usual = data.split == "val" and data.val_fraction == DataConfig().val_fraction
    if not is_usual or data.eos_text is not None or data.mask:
        raise UserError(
            f"{command}: has another split, documents or a mask; records are losses on all of the "
            "usual validation text"
        )
    prepare_corpus(data)
    (document,) = split_documents(read_corpus_text(data).text, data)["val"]
    return "".join(text for text, _ in document).encode()


def find_commit() -> str:
    """Return the commit of what is measured; UserError if something in it is not committed."""
    paths = [".", *(f":!{path}" for path in WITHOUT_EFFECT)]
    changed = call_git("status", "--porcelain", "--", *paths).splitlines()
    if changed:
        raise UserError(f"{changed[0][3:]}: commit it or move it away: a row names its commit")
    return call_git("log", "-1", "--format=%H", "--", *paths).strip()


def call_git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
        )
    except OSError:
        raise UserError("git: is not installed, and a row names its commit") from None
    if done.returncode != 0:
        raise UserError(f"git {arguments[0]}: {time_to_loss.last_line(done.stderr)}")
    return done.stdout


@contextmanager
def on_two_cores() -> Iterator[None]:
    """Give this process and those that it starts two cores; where that is not possible, threads."""
    threads = torch.get_num_threads()
    before = os.environ.get("OMP_NUM_THREADS")
    cores: set[int] = set()
    if sys.platform == "linux":
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[:CORES])
    os.environ["OMP_NUM_THREADS"] = str(CORES)
    torch.set_num_threads(CORES)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        if sys.platform == "linux":
            os.sched_setaffinity(0, cores)


# Measuring.


def measure_all(commands: list[str], seeds: list[str], rows: Rows) -> None:
    """Measure what is not there yet. All recipes with the first seed come first."""
    commit = find_commit()
    cpu = f"{cpu_name()}, torch {torch.__version__}"
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1:
        print("other programs are at work here: the seconds will be too many", flush=True)
    texts = {command: read_val(command) for command in commands}
    for seed in seeds:
        for command in commands:
            row = find_row(rows, command, commit, cpu)
            if not has_its_seeds(row):
                measure(row, seed, texts[command], rows)
            learning = find_row(rows, command, commit, cpu, learns=True)
            if not has_its_seeds(learning):
                measure_learning(learning, row, seed, rows)


def find_row(rows: Rows, command: str, commit: str, cpu: str, learns: bool = False) -> Row:
    """Find the row of a recipe, a commit and a CPU; a new one is added."""
    about = {"recipe": command, "commit": commit, "cpu": cpu, "learns": learns}
    for row in rows:
        if about.items() <= row.items():
            return row
    digest = hashlib.sha256(f"{command} {cpu}".encode()).hexdigest()
    recipe = Path(shlex.split(command)[0])
    log = f"{recipe.stem}-{commit[:8]}-{digest[:6]}"
    row = about | {"chosen_on_val": command in CHOSEN_ON_VAL, "log": log, "runs": {}}
    rows.append(row)
    return row


def measure(row: Row, seed: str, text: bytes, rows: Rows) -> None:
    """Train with a seed, and compress the validation text; each is kept as soon as it is done."""
    out_dir = RUNS / row["log"] / seed
    runs = row["runs"]
    if "file_bits_per_byte" in runs.get(seed, {}):
        return
    print(f"{row['recipe']} --seed={seed} ...", flush=True)
    if seed not in runs or not is_run(ROOT / out_dir):
        runs.pop(seed, None)
        runs[seed] = train(row, seed, out_dir)
        write_rows(rows)
    run = runs[seed]
    size = compress(row, seed, out_dir, text)
    run["file_bits_per_byte"] = 8 * size / len(text)
    write_rows(rows)
    print(describe(run), flush=True)


def measure_learning(row: Row, still: Row, seed: str, rows: Rows) -> None:
    """Measure the loss of a copy of a trained model that learns while it reads."""
    out_dir = RUNS / still["log"] / seed
    if seed in row["runs"] or not is_run(ROOT / out_dir):
        return
    arguments = ["evaluate.py", out_dir.as_posix(), "--dynamic", "--json"]
    seconds, printed = time_to_loss.run(arguments, str(ROOT))
    add_to_log(still, seed, f"\n$ python {shlex.join(arguments)}\n{printed}{seconds:.2f} s\n")
    run = {
        "seconds": still["runs"][seed]["seconds"],  # of the training
        "bits_per_byte": json.loads(printed)["loss"]["bits_per_byte"]["value"],
        "file_bits_per_byte": None,
    }
    row["runs"][seed] = run
    write_rows(rows)
    print(f"  learning while it reads: {LN2 * run['bits_per_byte']:.4f} nats", flush=True)


def train(row: Row, seed: str, out_dir: Path) -> Run:
    """Train by a whole command, from the beginning: one that was cut off has no time."""
    path = ROOT / out_dir
    if is_locked(lock_of(path)):
        raise UserError(f"{out_dir}: another process trains there; end it first")
    if path.exists():
        shutil.rmtree(path)
    seconds, printed = time_to_loss.train_cold(row["recipe"], int(seed), str(out_dir))
    about = f"{row['cpu']}, commit {row['commit']}, {seconds:.2f} s\n"
    (ROOT / LOGS / row["log"] / f"{seed}.txt").unlink(missing_ok=True)
    add_to_log(row, seed, f"{about}$ python train.py {row['recipe']} --seed={seed}\n{printed}")
    final = open_run(path).read_metrics()[-1]
    today = datetime.now(UTC).date()
    return {
        "seconds": seconds,
        "bits_per_byte": final["best_val_bits_per_byte"],
        "date": today.isoformat(),
    }


def compress(row: Row, seed: str, out_dir: Path, text: bytes) -> int:
    """Compress a text, and expand the file; returns its bytes.

    UserError if it does not give the same text back.
    """
    path = out_dir.with_name(f"{seed}.txt")
    file = Path(f"{path}.srp")
    write_atomically(ROOT / path, text)
    call_compress(row, seed, out_dir, path)
    (ROOT / path).unlink()
    call_compress(row, seed, out_dir, file)
    if (ROOT / path).read_bytes() != text:
        raise UserError(f"{file}: does not give back the validation text of {row['recipe']}")
    (ROOT / path).unlink()
    return (ROOT / file).stat().st_size


def call_compress(row: Row, seed: str, out_dir: Path, path: Path) -> None:
    arguments = ["compress.py", out_dir.as_posix(), path.as_posix(), "--overwrite"]
    seconds, printed = time_to_loss.run(arguments, str(ROOT))
    add_to_log(row, seed, f"\n$ python {shlex.join(arguments)}\n{printed}{seconds:.2f} s\n")


def describe(run: Run) -> str:
    """Say what is measured of one seed.

    >>> describe({"seconds": 6.04, "bits_per_byte": 2.0, "file_bits_per_byte": 2.01})
    '6.0 s, 1.3863 nats, 2.0000 bits per byte, 2.0100 in the file: +0.50%'
    """
    bits = run["bits_per_byte"]
    return (
        f"{run['seconds']:.1f} s, {LN2 * bits:.4f} nats, {bits:.4f} bits per byte, "
        f"{run['file_bits_per_byte']:.4f} in the file: {difference_of(run):+.2%}"
    )


# Files.


def read_rows(store: Path) -> Rows:
    """Read what is measured already."""
    if not store.exists():
        return []
    try:
        rows: Rows = json.loads(store.read_bytes())
    except ValueError:
        raise UserError(f"{STORE}: is not JSON; get it back from git, or remove it") from None
    return rows


def write_rows(rows: Rows) -> None:
    """Replace docs/records.json and the table."""
    content = json.dumps(rows, indent=1, ensure_ascii=False)
    write_atomically(ROOT / STORE, f"{content}\n".encode())
    write_table(rows)


def write_table(rows: Rows) -> None:
    """Replace docs/records.md; without anything measured there is none."""
    if any(measured_runs(row) for row in rows):
        write_atomically(ROOT / TABLE, to_markdown(RECIPES, rows).encode())


def add_to_log(row: Row, seed: str, text: str) -> None:
    """Add what a command printed to the log of a seed."""
    log = ROOT / LOGS / row["log"] / f"{seed}.txt"
    before = b""
    if log.exists():
        before = log.read_bytes()
    write_atomically(log, before + text.encode())


if __name__ == "__main__":
    run_command(main)
