"""Where a bench leaves its figures."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def write_results(name: str, results: Any) -> None:
    """Write them as JSON to out/bench_<name>.json, and say so."""
    out = ROOT / f"out/bench_{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"written to {out.relative_to(ROOT)}")


def high_water_mark() -> float:
    """Return this process's memory at the peak so far, in MB; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status: has no VmHWM")
