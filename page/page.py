"""The losses of runs as a page for any browser, which needs no network: its data and Bokeh's
JavaScript are in it.

The files in page/web/ draw; here is what they draw, as JSON. A live page has its data beside it,
in report.js, and reads it again and again, so that it follows the training.
"""

import json
import math
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from config.files import write_atomically
from data.baselines import passed_and_ahead
from engine.run import Record, Run, find_best, parse_record, unique_names
from report import analysis
from report.figures import middles, thin
from report.records import Evaluation, Passage, describe_text, read_evaluation, read_passages
from surprisal import perplexity

WEB = Path(__file__).with_name("web")
PLACES = ["step", "tokens", "seconds", "flops"]
VAL = ["val_nll", "kl_gap"]
TRAIN = ["train_nll", "lr", "grad_norm", "tokens_per_second"]
# shown if the objective is more than the NLL
PARTS = ["objective", "smoothing", "z_loss", "distillation"]
BOKEH = ["bokeh.min.js", "bokeh-api.min.js"]
MAX_PASSAGES = 72  # in a page, of all its runs, but at least the last of each
MAX_PASSAGES_PER_RUN, WHILE_LIVE = 40, 8


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write one file with everything."""
    # a run's name may be bytes that are no text
    write_atomically(path, _page(_script(data)).encode(errors="replace"))


def write_live_page(path: Path) -> None:
    """Write report.html, which reads report.js beside it."""
    write_atomically(path, _page("").encode())


def write_data(path: Path, run: Run, status: str, live: bool) -> None:
    """Replace report.js, which an open page is reading every two seconds."""
    write_atomically(path, _script(describe_runs([run], status, live)).encode(errors="replace"))


def describe_runs(runs: Sequence[Run], status: str = "", live: bool = False) -> dict[str, Any]:
    """What the page shows."""
    evaluations = [read_evaluation(run.path / "evaluation.json") for run in runs]
    options = [run.cfg.options() for run in runs]
    differences = {
        name: [str(own[name]) for own in options]
        for name in options[0]
        if len({str(own[name]) for own in options}) > 1
    }
    at_most = min(WHILE_LIVE if live else MAX_PASSAGES_PER_RUN, max(1, MAX_PASSAGES // len(runs)))
    described = [
        _describe(run, evaluation, at_most)
        for run, evaluation in zip(runs, evaluations, strict=True)
    ]
    names = unique_names([run.path for run in runs])
    described = [shown | {"name": name} for shown, name in zip(described, names, strict=True)]
    for run, evaluation, shown in zip(runs[1:], evaluations[1:], described[1:], strict=True):
        shown["difference"] = _difference(run, evaluation, runs[0], evaluations[0])
    title = ", ".join(names) if len(runs) <= 3 else f"{len(runs)} runs"
    return {
        "title": title,
        "curves": True,
        "runs": described,
        "differences": differences,
        "status": status,
        "live": live,
        "few_targets": analysis.FEW,
        "written": round(time.time(), 3),
    }


def describe_evaluation(
    runs: Sequence[Run],
    targets: Sequence[analysis.Columns],
    passages: Sequence[Passage | None],
    text: str,
    found: dict[str, Any] | None,
) -> dict[str, Any]:
    """The page of a text that evaluate.py has read: its targets and a passage by each run, and what
    it found.
    """
    data = describe_runs(runs)
    for run, own, passage, shown in zip(runs, targets, passages, data["runs"], strict=True):
        shown |= {
            "best_nll": own["nll"].mean(),
            "bytes_per_target": own["bytes"].mean(),
            "targets": len(own["nll"]),
            "text": passage and describe_text(run.tokenizer, [passage], {}),
            "evaluation": None,
            "difference": None,
        }
    if found:
        data["runs"][0]["evaluation"] = found
        if against := found["against"]:
            unit = (
                "nats_per_token" if "nats_per_token" in against["difference"] else "bits_per_byte"
            )
            higher = against["difference"][unit]  # of the first run
            data["runs"][1]["difference"] = {
                "unit": unit,
                "value": -higher["value"],
                "low": -higher["high"],
                "high": -higher["low"],
                "of_documents": found["blocks"]["of_documents"],
            }
    return data | {
        "title": f"{text}, read by {data['title']}",
        "curves": False,
        "versus": data["runs"][-1]["name"] if len(runs) > 1 else "",
    }


def _describe(run: Run, evaluation: Evaluation | None, at_most: int) -> dict[str, Any]:
    """A run: its curves, its best evaluation, the baselines, its texts, and what is behind its
    loss.
    """
    lines, flops = run.read_metrics(), run.cfg.model.flops_per_token(run.info.vocab_size)
    final: Record = next((line for line in reversed(lines) if "best_val_nll" in line), {})
    records = [line for line in lines if "tokens" in line and "seconds" in line]
    step_positions = run.cfg.optim.batch_size * run.cfg.model.block_size
    for record in records:
        # in files of earlier editions
        positions = record.get("positions", record["step"] * step_positions)
        record["flops"] = float(flops * positions)
    trained = [record for record in records if "train_nll" in record]
    evaluations = [record for record in records if "val_nll" in record]
    parts = PARTS if any(part in record for record in trained for part in PARTS[1:]) else []
    val, train = _columns(evaluations, VAL), _columns(trained, TRAIN + parts)
    train |= {name: middles(records[0][name], train[name]) for name in PLACES if trained}
    info, verdict = run.info, run.path / "verdict.txt"
    best = find_best(line for line in lines if "flops" in line or "val_nll" not in line)
    passed, ahead = passed_and_ahead(
        final.get("best_val_nll", best.get("val_nll", math.inf)), info.baselines
    )
    steps = [
        next(
            (
                record["step"]
                for record in evaluations
                if each in passed_and_ahead(record["val_nll"], [each])[0]
            ),
            best.get("step"),
        )
        for each in passed
    ]
    passages = [
        *read_passages(run.path / "passage.jsonl", run.tokenizer, at_most, best.get("step", 0))
    ][::-1]
    return {
        "val": _thin(val),
        "train": _thin(train),
        "best_nll": final.get("best_val_nll"),
        "best": {name: best[name] for name in [*PLACES, "val_nll"]} if best else None,
        "overfits": bool(evaluations and evaluations[-1].get("overfitting")),
        "seconds": records[-1]["seconds"] if records else 0,
        "options": ", ".join(f"{name}={value}" for name, value in run.cfg.changed().items()),
        "corpus": info.name,
        "tokenizer": info.tokenizer,
        "bytes_per_target": info.bytes_per_target,
        "baselines": [
            {
                "name": each.name,
                "nats": each.nats_per_token,
                "bits_per_byte": each.bits_per_byte,
                "perplexity": perplexity(each.nats_per_token),
            }
            for each in info.baselines
        ],
        "passed": [[each.name, step] for each, step in zip(passed, steps, strict=True)],
        "ahead": [each.name for each in ahead],
        "samples": _read_samples(run.path / "samples.jsonl"),
        "verdict": verdict.read_text(encoding="utf-8", errors="replace")
        if verdict.exists()
        else "",
        "text": describe_text(
            run.tokenizer, passages, {each.name: each.passage_nll for each in info.baselines}
        ),
        "evaluation": evaluation and evaluation.model_dump(exclude={"part_nll", "part_targets"}),
    }


def _difference(
    run: Run, evaluation: Evaluation | None, first: Run, of_first: Evaluation | None
) -> dict[str, Any] | None:
    """How much higher a run's loss is than the first run's, with its interval; None if their
    targets differ.
    """
    targets, of_first_run = (
        (
            each.info.sha256,
            each.cfg.data.val_fraction,
            each.cfg.data.documents,
            each.cfg.data.mask,
            each.cfg.data.predict_eos,
        )
        for each in (run, first)
    )
    if evaluation is None or of_first is None or targets != of_first_run:
        return None
    parts = [_parts(run, evaluation), _parts(first, of_first)]
    (one, other), blocks = analysis.measure_losses(parts)
    unit = "nats_per_token" if run.tokenizer == first.tokenizer else "bits_per_byte"
    estimates = analysis.intervals({unit: one[unit] - other[unit]}, blocks)
    return {"unit": unit, **estimates[unit], "of_documents": blocks.of_documents}


def _parts(run: Run, evaluation: Evaluation) -> analysis.Columns:
    """The parts of the validation text, in the form of tokens."""
    tokens, none = np.array(evaluation.part_targets), np.zeros(len(evaluation.part_targets))
    n_bytes = tokens * run.info.bytes_per_target
    # Parts end where batches do, within documents: they are parts of one text.
    return {
        "tokens": tokens,
        "bytes": n_bytes,
        "offset": (np.cumsum(n_bytes) - n_bytes).astype(int),
        "document": np.zeros(len(tokens), dtype=int),
        "nll": np.array(evaluation.part_nll),
        "top1": none,
        "top5": none,
    }


def _columns(records: Sequence[Record], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of all records by name; a name that not every record has is left out."""
    return {
        name: np.array([record[name] for record in records])
        for name in [*PLACES, *names]
        if all(name in record for record in records)
    }


def _thin(columns: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Few enough values for a page, with six digits."""
    return {
        name: [float(f"{value:.6g}") for value in thin(values)] for name, values in columns.items()
    }


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """What the model wrote at which steps; damaged lines are left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [
        {"step": record["step"], "text": str(json.loads(line).get("text", ""))}
        for line in lines
        if (record := parse_record(line))
    ]


def _script(data: dict[str, Any]) -> str:
    """A call of the page's `receive`; a text in the data cannot end the script."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"receive({text.replace('<', chr(92) + 'u003c')});"


def _page(data: str) -> str:
    """page.html, where each comment {name} is replaced by that file, Bokeh's JavaScript, or the
    data.
    """

    def insert(found: re.Match[str]) -> str:
        if found[1] == "data":
            return data
        if found[1] == "bokeh":
            scripts = files("bokeh") / "server/static/js"
            return ";\n".join((scripts / name).read_text(encoding="utf-8") for name in BOKEH)
        return (WEB / found[1]).read_text(encoding="utf-8")

    return re.sub(r"/\* \{([\w.]+)\} \*/", insert, (WEB / "page.html").read_text(encoding="utf-8"))
