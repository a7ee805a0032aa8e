"""The lines of a run's .jsonl files: read, find the best evaluation, append, and cut on resume."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from config.files import without_bom

Record = dict[str, float]  # a line of metrics.jsonl

LARGEST = 1e100  # number that is read from metrics.jsonl
# Counts, and the largest that is read.
COUNTED = {"step": 2**53, "best_step": 2**53, "tokens": 2**63, "seconds": 1e12}


def parse_record(line: bytes) -> Record | None:
    """Read the numbers of a line of metrics.jsonl or samples.jsonl; None if it is damaged.

    Numbers out of their range are left out. The step is a whole number, 0 to 2^53.
    """
    try:
        found = from_json(without_bom(line)).items()  # five times as fast as json.loads
    except (ValueError, AttributeError):
        return None
    numbers: Record = {}
    for key, value in found:
        if type(value) in (int, float) and abs(value) < LARGEST:
            numbers[key] = value
    for key, most in COUNTED.items():
        if not 0 <= numbers.get(key, 0) <= most:
            del numbers[key]
    step = numbers.get("step")
    if step is None or step != int(step):
        return None
    return numbers


def read_records(path: Path) -> Iterator[Record]:
    """Read the lines of a file, without damaged ones; none if there is no file."""
    if path.exists():
        with path.open("rb") as lines:
            yield from filter(None, map(parse_record, lines))


def is_outcome(record: Record) -> bool:
    """Return whether a line of metrics.jsonl or samples.jsonl was written after the last step."""
    return "best_step" in record or "finished" in record


def find_best(records: Iterable[Record]) -> Record:
    """Return the evaluation of the best model; {} without one.

    Its losses are the last that were measured of this model on a part of the validation split: a
    resumed run measures it again, where its own evaluations are on other targets.
    """
    evaluations: dict[float, Record] = {}
    best: Record = {}
    for record in records:
        if "val_nll" in record:
            evaluations[record["step"]] = record
            if not best or record["val_nll"] < best["val_nll"]:
                best = record
        elif "remeasured_val_nll" in record and record.get("remeasured_step") in evaluations:
            losses = {
                name.removeprefix("remeasured_"): value
                for name, value in record.items()
                if name.startswith(("remeasured_val_", "remeasured_kl_"))
            }
            best = evaluations[record["remeasured_step"]] | losses
        elif "best_step" in record and record["best_step"] != best.get("step"):
            best = evaluations.get(record["best_step"], best)
    return best


def append_line(path: Path, record: dict[str, Any] | BaseModel) -> None:
    """Append a line to a .jsonl file. OSError for a full disk: then the file is as it was."""
    if isinstance(record, dict):
        line = json.dumps(record, ensure_ascii=False)
    else:
        line = record.model_dump_json(exclude_none=True)
    size = 0
    if path.exists():
        size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(f"{line}\n".encode())
    except OSError as error:
        with suppress(OSError):  # the first error is the one to tell; perhaps there is no file
            os.truncate(path, size)
        if error.errno is not None and error.filename is None:  # a full disk has no name
            error.filename = str(path)
        raise


def cut_after(path: Path, step: int) -> None:
    """Cut a .jsonl file after its last line of `step` or before, and before the run's outcome.

    With step 0 nothing is left: it is measured anew. Damaged lines in between stay: nobody reads
    them.
    """
    if not path.exists():
        return
    size = 0  # of the part that stays
    end = 0
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:  # what follows the last line end is torn
        end += len(line) + 1
        record = parse_record(line)
        if record is not None and record["step"] <= step and not is_outcome(record):
            size = end
    if step == 0:
        size = 0
    os.truncate(path, size)
