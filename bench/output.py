"""Where a bench leaves its figures."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def write_results(name: str, results: Any) -> None:
    """As JSON in out/bench_<name>.json, and say so."""
    out = ROOT / f"out/bench_{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"written to {out.relative_to(ROOT)}")
