"""Runs and sweeps as training leaves them, but for the checkpoints."""

import math
from pathlib import Path
from typing import Any

from config.recipe import to_toml
from config.schema import Config
from report.analysis import Calibration, Summary, write_evaluation
from sweeps.statistics import mean_of_seeds
from tests.test_figures import evaluations, make_run


def make_ended_run(path: Path, best: float, end: dict[str, float] | None, **options: Any) -> None:
    """Write a run with some options, which ended with a line of metrics or was cut off."""
    records = evaluations(4.234, best)
    if end is None:
        records = records[:12]
    else:
        records.append({"step": 800, "best_step": 800, "best_val_nll": best, **end})
    make_run(path, records=records)
    cfg = Config.model_validate(options)
    (path / "config.toml").write_text(to_toml(cfg), encoding="utf-8")
    if end is None:
        return
    calibration = Calibration(confidence=0.5, ece=0.1, temperature=1.0, nats_gained=0.0)
    summary = Summary(targets=5000, calibration=calibration, groups={}, passages={})
    parts = []
    for part in range(50):
        parts.append((100 * (best + 0.01 * math.sin(part * best)), 100.0))
    write_evaluation(path / "evaluation.json", summary, parts)


def make_sweep(folder: Path) -> dict[str, Any]:
    """Write the runs of a sweep, of which one was cut off and one waits; return sweep.json."""
    runs: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    for place, (rate, mean) in enumerate((("0.03", 1.5), ("0.01", 1.6), ("0.1", 1.9))):
        group = f"learning_rate={rate}"
        groups.append(
            {
                "name": group,
                "options": {"learning_rate": rate},
                "bits_per_byte": 2.2,
                "seconds": 21.4,
                "status": "finished",
            }
        )
        for seed in (1, 2, 3):
            path = folder / f"{group},seed={seed}"
            best = mean + 0.01 * (seed - 2)
            end: dict[str, float] | None = {}
            if (place, seed) == (1, 3):
                end = None
            status = "finished"
            if (place, seed) == (2, 3):
                status = "waiting"
            else:
                make_ended_run(path, best, end)
            runs.append(
                {
                    "name": path.name,
                    "options": {"learning_rate": rate, "seed": str(seed)},
                    "group": place,
                    "status": status,
                    "reason": "",
                    "loss": best,
                    "nats": best,
                    "bits_per_byte": 2.2,
                    "seconds": 21.4,
                }
            )
    runs[5] |= {"status": "interrupted", "loss": None, "nats": None}
    runs[8] |= {"loss": None, "nats": None, "seconds": None}
    for place, content in enumerate(groups):
        losses = {}
        for run in runs[3 * place : 3 * place + 3]:
            if run["loss"] is not None:
                losses[int(run["options"]["seed"])] = run["loss"]
        content |= mean_of_seeds(losses)._asdict()
    (folder / "learning_rate=0.03,seed=1/report.html").touch()
    lower = "with 0.03 the loss is lower than with 0.01 by 0.100"
    sentence = f"{lower} (0.080 to 0.120), 3 seeds: more than noise"
    return {
        "name": "rates",
        "command": "python sweep.py config/a.toml --learning_rate=0.01,0.03,0.1 --seed=1,2,3",
        "recipe": "config/a.toml",
        "fixed": {},
        "unit": "nats per token",
        "varied": {"learning_rate": ["0.01", "0.03", "0.1"], "seed": ["1", "2", "3"]},
        "is_live": True,
        "progress": "7 of 9 runs, about 1 min left",
        "loss_on": "validation text",
        "remark": "chosen on validation text: optimistic",
        "runs": runs,
        "groups": groups,
        "differences": [],
        "sentences": [sentence, "another"],
    }
