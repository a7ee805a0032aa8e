"""Collects what a page shows, as JSON. The scripts in page/web/ draw it."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config.files import unique_names
from config.size import count_flops
from data.info import MAX_TRAIN_TOKENS, Baseline, CorpusInfo, choose_landmarks, passed_and_ahead
from data.show import show_token
from data.tokenizer import Tokenizer
from engine.metrics import Record, find_best, parse_record
from engine.run import Run
from page.along import content_of_along
from page.pairs import compare_pairs, number_targets
from page.records import read_evaluation, read_passages
from report.along_text import LearnedText
from report.analysis import Columns, Passage
from report.differences import differing_options, group_runs, name_groups, short_names
from report.intervals import FEW
from report.picture import middles, thin
from report.status import find_status
from surprisal import perplexity

PLACES = ["step", "tokens", "seconds", "flops"]  # that a loss can be drawn against
VAL = ["val_nll", "kl_gap"]
TRAIN = ["train_nll", "lr", "grad_norm", "tokens_per_second"]
PARTS = ["smoothing", "z_loss", "distillation"]  # of the objective, besides the NLL
MAX_PASSAGES = 64  # in a page, of all its runs, but at least the last of each
MAX_PASSAGES_PER_RUN = 32
MAX_PASSAGES_WHILE_LIVE = 8

Content = dict[str, Any]


def content_of_runs(runs: Sequence[Run], live: bool = False) -> Content:
    """Collect what a page of some runs shows, and what differs between them."""
    max_passages = MAX_PASSAGES_PER_RUN
    if live:
        max_passages = MAX_PASSAGES_WHILE_LIVE
    max_passages = min(max_passages, max(1, MAX_PASSAGES // len(runs)))
    names = unique_names([run.path for run in runs])
    evaluations = [read_evaluation(run.path / "evaluation.json") for run in runs]
    shown = []
    for name, run, evaluation in zip(names, runs, evaluations, strict=True):
        content = content_of_run(run)
        content |= content_of_texts(run, max_passages, (content["best"] or {}).get("step", 0))
        content["name"] = name
        content["evaluation"] = None
        if evaluation is not None:
            content["evaluation"] = evaluation.model_dump(exclude={"part_nll", "part_targets"})
        shown.append(content)
    kinds = {run.info.val_kind: None for run in runs}  # in this order
    title = f"{len(runs)} runs"
    if len(runs) <= 3:
        title = ", ".join(names)
    targets, target_names = number_targets(runs)
    options = [run.cfg.options() for run in runs]
    groups = group_runs(options)
    short = short_names(options, names)
    for number, content in enumerate(shown):
        content["short"] = short[number]
        content["group"] = groups[number]
        content["target"] = targets[number]
    return {
        "title": title,
        "curves": True,
        "runs": shown,
        "val_kind": " or ".join(kinds),  # validation, tuning, or both
        "options": differing_options(options),
        "groups": name_groups(options, groups),
        "targets": target_names,
        "pairs": compare_pairs(runs, evaluations),
        "sweep": None,
        "along": None,
        "model": None,
        "status": "",
        "live": live,
        "few_targets": FEW,
        "written": round(time.time(), 3),
    }


def content_of_text(
    runs: Sequence[Run],
    scored: Sequence[tuple[Columns, Passage | None]],
    name: str,
    found: dict[str, Any] | None,
    *,
    learned: LearnedText | None = None,
) -> Content:
    """Collect what a page of a text shows that one or two runs have read.

    `scored` has the targets of the text by each run, and a passage; `found` is what evaluate.py
    says of the text. With `learned`, the page also has the loss along the text, which the first run
    learned.
    """
    content = content_of_runs(runs)
    does = "read"
    if learned is not None and found is not None:
        does = "read and learned"
        content["along"] = content_of_along(found["along_text"], learned, runs[0].tokenizer)
    content["title"] = f"{name}, {does} by {content['title']}"
    content["curves"] = False
    content["versus"] = ""
    for run, own, shown in zip(runs, scored, content["runs"], strict=True):
        columns, passage = own
        shown["best_nll"] = columns["nll"].mean()
        shown["bytes_per_target"] = columns["bytes"].mean()
        shown["targets"] = len(columns["nll"])
        shown["texts"] = []
        if passage is not None:
            shown["texts"] = [content_of_passage(run.tokenizer, [passage], {})]
        shown["evaluation"] = None
    content["pairs"] = []
    if found is not None:
        content["runs"][0]["evaluation"] = found
    if len(runs) > 1:
        content["versus"] = content["runs"][-1]["name"]
    if found is not None and found["against"] is not None:
        content["pairs"] = [difference_in_text(found)]
    return content


def difference_in_text(found: dict[str, Any]) -> Content:
    """Return how much higher the second run's loss of a text is than the first's."""
    differences = found["against"]["difference"]  # of the first run from the second
    unit = "bits_per_byte"
    if "nats_per_token" in differences:
        unit = "nats_per_token"
    return {
        "runs": [0, 1],
        "unit": unit,
        "value": -differences[unit]["value"],
        "low": -differences[unit]["high"],
        "high": -differences[unit]["low"],
        "of_documents": found["blocks"]["of_documents"],
    }


def content_of_run(run: Run) -> Content:
    """Collect a run's curves, its status, its best evaluation, and the baselines."""
    lines = run.read_metrics()
    records = [line for line in lines if "tokens" in line and "seconds" in line]
    add_flops(records, run)
    evaluations = [record for record in records if "val_nll" in record]
    # a line that lacks its place on an axis tells no best model
    best = find_best(line for line in lines if "val_nll" not in line or "flops" in line)
    best_nll = None
    for line in lines:
        best_nll = line.get("best_val_nll", best_nll)  # on all validation text
    content: Content = {
        "val": content_of_val(evaluations),
        "train": content_of_train(records),
        "bytes_per_target": run.info.bytes_per_target,
        "train_tokens": run.info.train.tokens,
        "counted": min(run.info.train.tokens, MAX_TRAIN_TOKENS),
        "val_kind": run.info.val_kind,
        "status": find_status(run.path, lines),
        "best_nll": best_nll,
        "best": None,
        "overfits": False,
        "seconds": 0.0,
        "step": 0,
        "max_iters": run.cfg.optim.max_iters,
    }
    if best:
        content["best"] = {name: best[name] for name in [*PLACES, "val_nll"]}
    if evaluations:
        content["overfits"] = bool(evaluations[-1].get("overfitting"))
    if records:
        content["seconds"] = records[-1]["seconds"]
        content["step"] = records[-1]["step"]
    content |= content_of_options(run.cfg.changed(), run.info)
    return content | content_of_baselines(run.info.baselines, evaluations, best, best_nll)


def content_of_options(changed: dict[str, Any], info: CorpusInfo) -> Content:
    options = [f"{name}={value}" for name, value in changed.items()]
    corpus = info.name
    if info.split == "tuning":
        corpus += ", tuning text"
    return {"options": ", ".join(options), "corpus": corpus, "tokenizer": info.tokenizer}


def content_of_texts(run: Run, max_passages: int, best_step: float) -> Content:
    """Collect what the model wrote, what training said at its end, and what passages cost."""
    path = run.path / "passage.jsonl"
    landmarks = choose_landmarks(run.info.baselines)
    texts = []
    start = 0  # of a passage, in what baselines paid for all of them
    for evaluations in read_passages(path, run.tokenizer, max_passages, best_step):
        stop = start + len(evaluations[0].tokens)
        others = {each.name: each.passage_nll[start:stop] for each in landmarks}
        texts.append(content_of_passage(run.tokenizer, evaluations, others))
        start = stop
    return {
        "samples": read_samples(run.path / "samples.jsonl"),
        "verdict": read_verdict(run.path / "verdict.txt"),
        "texts": texts,
    }


def add_flops(records: Sequence[Record], run: Run) -> None:
    """Add the number of operations up to each record."""
    per_position = count_flops(run.cfg.model, run.info.vocab_size)
    step_positions = run.cfg.optim.batch_size * run.cfg.model.block_size
    for record in records:
        # files of earlier editions have no positions
        positions = record.get("positions", record["step"] * step_positions)
        record["flops"] = float(per_position * positions)


def content_of_val(evaluations: Sequence[Record]) -> dict[str, list[float]]:
    return round_all(to_columns(evaluations, VAL))


def content_of_train(records: Sequence[Record]) -> dict[str, list[float]]:
    """Return the columns of the training losses.

    The objective and its parts are shown if it is more than the NLL.
    """
    trained = [record for record in records if "train_nll" in record]
    names = TRAIN
    if any(part in record for record in trained for part in PARTS):
        names = [*TRAIN, "objective", *PARTS]
    columns = to_columns(trained, names)
    if trained:
        for place in PLACES:
            columns[place] = middles(records[0][place], columns[place])
    return round_all(columns)


def to_columns(records: Sequence[Record], names: Sequence[str]) -> Columns:
    """Return the values by name; a name that a record lacks is left out."""
    columns = {}
    for name in [*PLACES, *names]:
        if all(name in record for record in records):
            columns[name] = np.array([record[name] for record in records])
    return columns


def round_all(columns: Columns) -> dict[str, list[float]]:
    """Leave few enough values for a page, with six digits."""
    rounded = {}
    for name, values in columns.items():
        rounded[name] = [float(f"{value:.6g}") for value in thin(values)]
    return rounded


def content_of_baselines(
    baselines: Sequence[Baseline],
    evaluations: Sequence[Record],
    best: Record,
    best_nll: float | None,
) -> Content:
    """Collect some baselines, all that the best model passed and when, and all ahead of it."""
    landmarks = choose_landmarks(baselines)
    if best_nll is None:
        best_nll = best.get("val_nll", math.inf)
    passed, ahead = passed_and_ahead(best_nll, baselines)
    steps = []
    for baseline in passed:
        step = best.get("step")  # if only the exact loss at the end passes it
        for record in evaluations:
            if passed_and_ahead(record["val_nll"], [baseline])[0]:
                step = record["step"]
                break
        steps.append([baseline.name, step])
    return {
        "baselines": [content_of_baseline(baseline) for baseline in landmarks],
        "passed": steps,
        "ahead": [content_of_baseline(baseline) for baseline in ahead],
    }


def content_of_baseline(baseline: Baseline) -> Content:
    nats = baseline.nats_per_token
    return {
        "name": baseline.name,
        "has_read": baseline.has_read,
        "learns": baseline.learns,
        "nats": nats,
        "bits_per_byte": baseline.bits_per_byte,
        "perplexity": perplexity(nats),
    }


def content_of_passage(
    tokenizer: Tokenizer, evaluations: Sequence[Passage], others: dict[str, list[float]]
) -> Content:
    """Collect a text token by token, and what each token costs at some evaluations.

    `others` has the NLL of each token by other models.
    """
    tokens = evaluations[0].tokens
    likely = set()  # tokens that an evaluation says were likely
    for evaluation in evaluations:
        for row in evaluation.top:
            likely.update(row or [])
    names = {token: show_token(tokenizer, token) for token in sorted(likely)}
    excluded = {"tokens", "temperatures", "number"}
    others = {name: nll for name, nll in others.items() if len(nll) == len(tokens)}
    shown = [show_token(tokenizer, token) for token in tokens]
    num_bytes = tokenizer.byte_lengths[tokens]
    return {
        "ids": tokens,
        "tokens": shown,
        "names": names,
        "bytes": num_bytes.tolist(),
        "vocab_size": tokenizer.vocab_size,
        "temperatures": evaluations[-1].temperatures,
        "evaluations": [
            each.model_dump(exclude=excluded, exclude_none=True) for each in evaluations
        ],
        "others": others,
    }


def read_samples(path: Path) -> list[Content]:
    """Return what the model wrote at which steps; damaged lines are left out."""
    samples: list[Content] = []
    if not path.exists():
        return samples
    for line in path.read_bytes().split(b"\n"):
        record = parse_record(line)
        if record:
            text = json.loads(line).get("text", "")
            samples.append({"step": record["step"], "text": str(text)})
    return samples


def read_verdict(path: Path) -> str:
    if not path.exists():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
