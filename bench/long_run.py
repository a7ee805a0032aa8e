"""Do memory and open files stay flat over a long run?

    python bench/long_run.py [--name=value ...]

A small model, by the real command, with evaluations and checkpoints all along. What the process
holds is read from /proc twice a second (Linux), and shown for each tenth of the steps.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.output import write_results
from config.cli import load_config
from config.errors import UserError, run_command
from engine.metrics import parse_record

OPTIONS = [
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=32",
    "--block_size=32",
    "--batch_size=8",
    "--eval_tokens=2000",
    "--patience=0",
    "--dropout=0.1",
    "--corpus=tinyshakespeare",
    "--max_iters=10000",
]


def last_step(metrics: Path) -> int:
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    record = parse_record(lines[-1]) if lines else None
    return int(record["step"]) if record else 0


def main(argv: list[str]) -> None:
    steps = load_config([*OPTIONS, *argv])[0].optim.max_iters
    rows: list[tuple[int, float, int]] = []  # step, MB in memory, open files
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *OPTIONS, *argv, f"--out_dir={folder}/run"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        here = Path(f"/proc/{process.pid}")
        while process.poll() is None:
            try:
                pages = int((here / "statm").read_text().split()[1])
                rows.append(
                    (
                        last_step(Path(folder, "run/metrics.jsonl")),
                        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                        len(list((here / "fd").iterdir())),
                    )
                )
            except (OSError, ValueError, IndexError):  # between two moments, or at the end
                pass
            time.sleep(0.5)
        if process.returncode:
            raise UserError(f"{' '.join(command)}: exit code {process.returncode}")
    print(f"{'steps':>16} {'MB, from':>9} {'to':>6} {'files, most':>12}")
    shown = []
    for tenth in range(10):
        low, high = (steps * n // 10 for n in (tenth, tenth + 1))
        inside = [row for row in rows if low < row[0] <= high]
        if inside:
            _, memory, files = zip(*inside, strict=True)
            shown.append(
                {"steps": [low, high], "mb": [min(memory), max(memory)], "files": max(files)}
            )
            print(f"{low:>7} ... {high:>5} {min(memory):9.1f} {max(memory):6.1f} {max(files):12}")
    write_results("long_run", shown)


if __name__ == "__main__":
    run_command(main)
