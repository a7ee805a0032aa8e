"""The loss curves of runs as a page for any browser, which needs no network: plotly's JavaScript is in the page.

report/page.html draws; here is what it draws, as JSON. A live page has its data beside it, in report.js, and reads it
again and again, so that it follows the training.
"""

import json
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from config.files import write_atomically
from config.schema import OVERFITTING_RISE
from engine.run import Record, Run, parse_record
from report.figures import find_baselines, thin
from surprisal import perplexity

TEMPLATE = Path(__file__).with_name("page.html")
PLACES = ["step", "tokens", "seconds", "flops"]
VAL = ["val_nll", "kl_gap"]
TRAIN = ["train_nll", "lr", "grad_norm", "tokens_per_second"]
PARTS = ["objective", "smoothing", "z_loss", "distillation"]  # shown if the objective is more than the NLL


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Write one file with everything."""
    write_atomically(path, _page(_script(describe_runs(runs, "", live=False))).encode())


def write_live_page(path: Path) -> None:
    """Write report.html, which reads report.js beside it."""
    write_atomically(path, _page("").encode())


def write_data(path: Path, run: Run, status: str, live: bool) -> None:
    """Replace report.js, which an open page is reading every two seconds."""
    write_atomically(path, _script(describe_runs([run], status, live)).encode())


def describe_runs(runs: Sequence[Run], status: str, live: bool) -> dict[str, Any]:
    """What the page shows."""
    nats, bits = find_baselines(runs, "nats"), find_baselines(runs, "bits_per_byte")
    options = [run.config.options() for run in runs]
    differences = [[name, *(str(own[name]) for own in options)] for name in options[0]
                   if len({str(own[name]) for own in options}) > 1]
    return {"runs": [_describe(run) for run in runs], "differences": differences, "status": status, "live": live,
            "baselines": {"nats": nats, "bits_per_byte": bits,
                          "perplexity": [(name, perplexity(value)) for name, value in nats]},
            "overfitting_rise": OVERFITTING_RISE, "written": round(time.time(), 1)}


def _describe(run: Run) -> dict[str, Any]:
    lines, flops = run.read_metrics(), run.config.model.flops_per_token(run.info.vocab_size)
    final: Record = next((line for line in reversed(lines) if "best_val_nll" in line), {})
    records = [line | {"flops": flops * line["tokens"]} for line in lines if {"tokens", "seconds"} <= line.keys()]
    trained = [record for record in records if "train_nll" in record]
    # A training loss is the mean of the steps since the line before: it stands in their middle.
    middles = [record | {name: (before[name] + record[name]) / 2 for name in PLACES}
               for before, record in zip(records[:1] + trained, trained, strict=False)]
    parts = PARTS if any(part in record for record in trained for part in PARTS[1:]) else []
    val, train = _columns([record for record in records if "val_nll" in record], VAL), _columns(middles, TRAIN + parts)
    verdict = run.path / "verdict.txt"
    return {"name": run.name, "val": val, "train": train, "best_nll": final.get("best_val_nll"),
            "bytes_per_token": run.info.val.bytes_per_token,
            "samples": _read_samples(run.path / "samples.jsonl"),
            "verdict": verdict.read_text(encoding="utf-8") if verdict.exists() else ""}


def _columns(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[float]]:
    """The values of all records by name; a name that not every record has is left out."""
    return {name: [float(f"{value:.6g}") for value in thin([record[name] for record in records])]
            for name in [*PLACES, *names] if all(name in record for record in records)}


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """What the model wrote at which steps; damaged lines are left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [{"step": record["step"], "text": str(json.loads(line).get("text", ""))}
            for line in lines if (record := parse_record(line))]


def _script(data: dict[str, Any]) -> str:
    """A call of the page's `receive`; a text in the data cannot end the script."""
    return f"receive({json.dumps(data, ensure_ascii=False).replace('<', chr(92) + 'u003c')});"


def _page(script: str) -> str:
    plotly = (files("plotly") / "package_data/plotly.min.js").read_text(encoding="utf-8")
    before, between, after = TEMPLATE.read_text(encoding="utf-8").replace("/* data */", "/* plotly */").split(
        "/* plotly */")
    return "".join([before, plotly, between, script, after])
