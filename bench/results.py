"""Measure recipes over several seeds, by sweep.py, and print a row of docs/results.md for each.

    python bench/results.py config/shakespeare_char.toml "config/student.toml --max_iters=1600"
    [--seeds=1,2,3] [--docs]

The runs train one after another, in out/results/; it continues where it stopped. A row has the
best model's loss on all validation targets, mean and standard deviation over the seeds, median
seconds of the whole command, and the CPU. With --docs, rows go to docs/results.json, and from there
to the table in docs/results.md.
"""

import json
import math
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, dict[str, Any]]]  # of each recipe and kind of CPU
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from pydantic import Field

from config.cli import load_config
from config.errors import UserError, run_command
from config.parser import load_options
from config.values import Section
from data.prepare import prepare_corpus

TABLE = ROOT / "docs/results.md"
STORE = ROOT / "docs/results.json"  # the rows of all machines


class ResultsOptions(Section):
    """What to run."""

    seeds: str = Field("1,2,3", pattern=r"^\d+(,\d+)*$", description="a run for each")
    dtype: str = Field("auto", description="as in train.py")
    docs: bool = Field(False, description="also put the rows into docs/")


def cpu_name() -> str:
    """Return the CPU's name, its cores, and what PyTorch uses of it."""
    name = "CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*: (.*)", info.read_text())
        if found:
            name = found[1]
    kind = torch.backends.cpu.get_cpu_capability()
    if torch.cpu._is_avx512_bf16_supported():
        kind = "AVX512-BF16"
    return f"{name}, {torch.get_num_threads()} threads, {kind}"


def measure(command: str, options: ResultsOptions) -> dict[str, Any]:
    """Train a recipe with each seed; returns its row."""
    words = shlex.split(command)
    cfg, _ = load_config(words)
    prepare_corpus(cfg.data)  # is not timed
    name = re.sub(r"[^\w.=-]+", "_", command.removeprefix("config/"))
    folder = ROOT / f"out/results/{name}_{options.dtype}"
    own = [f"--seed={options.seeds}", f"--dtype={options.dtype}", "--jobs=1", f"--out_dir={folder}"]
    process = subprocess.run([sys.executable, "sweep.py", *words, *own], cwd=ROOT)
    if process.returncode != 0:
        raise UserError(f"{command}: sweep.py ended with exit code {process.returncode}")
    content = json.loads((folder / "sweep.json").read_bytes())
    runs = content["runs"]
    failed = [run for run in runs if run["nats"] is None]
    if failed:
        raise UserError(f"{command}: {failed[0]['name']}: {failed[0]['status']}")
    losses = [run["nats"] for run in runs]
    seconds = [run["command_seconds"] for run in runs if run["command_seconds"] is not None]
    return {
        "nll": statistics.fmean(losses),
        "std": content["groups"][0]["deviation"] or 0.0,
        "bits_per_byte": statistics.fmean(run["bits_per_byte"] for run in runs),
        "perplexity": statistics.fmean(map(math.exp, losses)),
        "seconds": statistics.median(seconds or [math.nan]),  # none if each was interrupted
        "seeds": options.seeds,
        "cpu": cpu_name(),
    }


def main(argv: list[str]) -> None:
    commands, options = load_options(
        ResultsOptions, argv, "RECIPE", "+", "recipes, each with its options in quotes"
    )
    for command in commands:
        row = measure(command, options)
        print(
            f"{command}: {row['nll']:.4f} ± {row['std']:.4f} nats, "
            f"{row['bits_per_byte']:.3f} bits per byte, "
            f"{row['seconds']:.0f} s, seeds {options.seeds}, {row['cpu']}",
            flush=True,
        )
        if options.docs:
            add_to_docs(command, row, options.dtype)


def add_to_docs(command: str, row: dict[str, Any], dtype: str) -> None:
    """Put a row into docs/results.json, and write the table anew."""
    kind = "AVX2"
    if row["cpu"].endswith("BF16") and dtype != "float32":
        kind = "AVX512-BF16"
    rows = json.loads(STORE.read_text()) if STORE.exists() else {}
    rows.setdefault(command, {})[kind] = row
    STORE.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_table(rows)


def write_table(rows: Rows) -> None:
    """Replace the table in docs/results.md."""
    lines = [
        "| command | nats per token, AVX2 | bits per byte | perplexity | seconds "
        "| nats, AVX512-BF16 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for command, kinds in rows.items():
        first = next(iter(kinds.values()))
        nats = {"AVX2": "", "AVX512-BF16": ""}
        seconds = dict(nats)
        for kind, row in kinds.items():
            nats[kind] = f"{row['nll']:.3f} ± {row['std']:.3f}"
            seconds[kind] = f"{row['seconds']:.0f}"
        cells = [
            f"`python train.py {command}`",
            nats["AVX2"],
            f"{first['bits_per_byte']:.3f}",
            f"{first['perplexity']:.2f}",
            seconds["AVX2"],
            nats["AVX512-BF16"],
            seconds["AVX512-BF16"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    text = TABLE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- table -->\n")
    after = rest.partition("<!-- end of table -->\n")[2]
    table = "\n".join(["<!-- table -->", *lines, "<!-- end of table -->", after])
    TABLE.write_text(before + table, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
