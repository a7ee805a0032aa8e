"""Fill the table of results: recipes over several seeds, by the real command.

    python bench/results.py config/shakespeare_char.toml "config/student.toml --max_iters=1600"
    [--seeds=1,2,3]

Runs are made one after another in out/results/. Finished ones are not made again, so it continues
where it stopped. A row has the best model's loss on all validation targets, mean and standard
deviation over the seeds, median seconds of the whole command, and the CPU. Rows go to
docs/results.json, and from there to the table in docs/results.md.
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
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
from engine.run import open_run

TABLE = ROOT / "docs/results.md"
STORE = ROOT / "docs/results.json"  # the rows of all machines


class ResultsOptions(Section):
    """What to run."""

    seeds: str = Field("1,2,3", pattern=r"^\d+(,\d+)*$", description="a run for each")
    dtype: str = Field("auto", description="as in train.py")


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


def last_line(stderr: str) -> str:
    """Return what a failed command said last."""
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "failed"


def train(command: str, seed: int, dtype: str) -> dict[str, float]:
    """Return the losses of a finished run of a recipe, and the seconds of the whole command."""
    recipe = re.sub(r"[^\w.=-]+", "_", command.removeprefix("config/"))
    folder = ROOT / f"out/results/{recipe}_{seed}_{dtype}"
    done = folder / "seconds.json"
    if not done.exists():
        cfg, _ = load_config(shlex.split(command))
        prepare_corpus(cfg.data)  # is not timed
        started = time.perf_counter()
        process = subprocess.run(
            [
                sys.executable,
                "train.py",
                *shlex.split(command),
                f"--seed={seed}",
                f"--dtype={dtype}",
                f"--out_dir={folder}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            raise UserError(f"{command}: {last_line(process.stderr)}")
        done.write_text(json.dumps({"seconds": time.perf_counter() - started}))
    final = open_run(folder).read_metrics()[-1]
    return final | json.loads(done.read_text())


def main(argv: list[str]) -> None:
    commands, options = load_options(
        ResultsOptions, argv, "RECIPE", "+", "recipes, each with its options in quotes"
    )
    rows = json.loads(STORE.read_text()) if STORE.exists() else {}
    cpu = cpu_name()
    kind = "AVX2"
    if cpu.endswith("BF16") and options.dtype != "float32":
        kind = "AVX512-BF16"
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for command in commands:
        runs = [train(command, seed, options.dtype) for seed in seeds]
        losses = [run["best_val_nll"] for run in runs]
        deviation = 0.0
        if len(losses) > 1:
            deviation = statistics.stdev(losses)
        row = {
            "nll": statistics.mean(losses),
            "std": deviation,
            "bits_per_byte": statistics.mean(run["best_val_bits_per_byte"] for run in runs),
            "perplexity": statistics.mean(run["best_val_perplexity"] for run in runs),
            "seconds": statistics.median(run["seconds"] for run in runs),
            "seeds": options.seeds,
            "cpu": cpu,
        }
        rows.setdefault(command, {})[kind] = row
        print(
            f"{command}: {row['nll']:.4f} ± {row['std']:.4f} nats, "
            f"{row['bits_per_byte']:.3f} bits per byte, "
            f"{row['seconds']:.0f} s, seeds {options.seeds}, {cpu}",
            flush=True,
        )
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
