"""Memory and files stay flat over long runs, whose metrics are appended."""

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.cli import load_config
from data.prepare import prepare_corpus
from data.shards import load_split
from data.tokenizer import load_tokenizer
from engine.checkpoint import save_checkpoint
from engine.device import setup_device
from engine.run import Run
from engine.run_files import RunFiles
from engine.start import create_run
from engine.state import TrainState
from model import GPT
from report.trainlog import TrainLog
from tests.conftest import TINY, read_metrics
from tests.one_run import steps

PAGE = resource.getpagesize()


def processor_seconds() -> float:
    """The time of all processes that this one has started and that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def start_log(run: Run, step: int = 0) -> TrainLog:
    """Start or resume a run, and its log."""
    files = RunFiles(run, setup_device("cpu", "float32"))
    state = TrainState(step=step)
    files.start(GPT(run.cfg.model, run.info.vocab_size), state)
    return TrainLog(files, run.info, state)


def test_metrics_are_appended_not_rewritten(data_dir) -> None:
    """Resuming truncates the file after the step of the checkpoint."""
    cfg, _ = load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY])
    corpus = prepare_corpus(cfg.data)
    run = create_run(cfg, corpus)
    metrics = run.path / "metrics.jsonl"
    log = start_log(run)
    log.write({"step": 0})
    file = metrics.stat().st_ino
    before = b""
    for step in range(1, 200):
        log.write({"step": step, "train_nll": 1 / step})
        content = metrics.read_bytes()
        assert content.startswith(before)
        assert content.count(b"\n") == step + 1
        before = content
    with metrics.open("ab") as torn:
        torn.write(b'{"step": 200, "trai')
    log = start_log(run, step=150)
    log.write({"step": 151})
    assert metrics.stat().st_ino == file
    assert steps(run.path) == [*range(152)]
    assert metrics.read_bytes().startswith(before[:1000])


def test_a_directory_that_was_moved_is_not_made_anew(data_dir, capsys) -> None:
    """Another run, which somebody put in its place, is not touched."""
    cfg, _ = load_config(["--corpus=text.txt", "--out_dir=out/run", *TINY])
    corpus = prepare_corpus(cfg.data)
    run = create_run(cfg, corpus)
    log = start_log(run)
    log.write({"step": 0})
    moved = run.path.rename(data_dir / "moved")
    log.write({"step": 1})
    assert not run.path.exists()
    other = create_run(cfg, corpus)
    start_log(other).write({"step": 0})
    for _ in range(2):
        log.write({"step": 2})
    assert len(read_metrics(other.path)) == 1
    shutil.rmtree(other.path)
    moved.rename(run.path)
    log.write({"step": 3})
    assert steps(run.path) == [0, 3]
    assert capsys.readouterr().out.count("somebody moved or replaced its directory") == 1


def test_checkpoints_leave_no_file_open(data_dir) -> None:
    model = GPT(load_config(TINY)[0].model, 13)
    save_checkpoint(data_dir / "last.safetensors", model, TrainState())
    before = len(os.listdir("/proc/self/fd"))
    for step in range(20):
        save_checkpoint(data_dir / "last.safetensors", model, TrainState(step=step))
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.slow
def test_memory_and_files_stay_flat(clone: Path, trained) -> None:
    """The real command takes 800 steps with evaluations and checkpoints all along."""
    out = clone / "out/long"
    process = subprocess.Popen(
        [
            sys.executable,
            "train.py",
            "--corpus=text.txt",
            *TINY,
            "--out_dir=out/long",
            "--max_iters=800",
            "--eval_interval=20",
            "--checkpoint_interval=20",
            "--dropout=0.1",
            "--patience=0",
        ],
        cwd=clone,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    proc = Path(f"/proc/{process.pid}")
    memory: dict[str, list[int]] = {"early": [], "late": []}
    files: dict[str, list[int]] = {"early": [], "late": []}
    while process.poll() is None:
        step = max([0, *steps(out)])
        try:
            _, resident, *_ = (proc / "statm").read_text().split()
            num_files = len(os.listdir(proc / "fd"))
        except (FileNotFoundError, ProcessLookupError):
            break
        when = ""
        if 150 <= step < 400:
            when = "early"
        elif 550 <= step < 780:
            when = "late"
        if when:
            memory[when].append(int(resident) * PAGE // 2**20)  # MB
            files[when].append(num_files)
        time.sleep(0.1)
    assert process.wait() == 0
    assert len(memory["early"]) >= 3
    assert len(memory["late"]) >= 3
    assert max(memory["late"]) - max(memory["early"]) <= 8
    assert min(files["late"]) <= min(files["early"])  # others are open for a moment
    assert steps(out) == [*range(801), 800]  # the last line is that of the best model
    shutil.rmtree(out)


@pytest.mark.slow
def test_the_curves_of_many_lines_are_drawn_in_seconds(clone: Path, trained) -> None:
    out = clone / "out/many"
    shutil.copytree(trained[0], out)
    with (out / "metrics.jsonl").open("w") as file:
        for step in range(250_000):
            record = {
                "step": step,
                "tokens": 64 * step,
                "seconds": step / 100,
                "train_nll": 1 + math.exp(-step / 3000),
            }
            if step % 100 == 0:
                record |= {"val_nll": 1.5 + math.exp(-step / 3000), "val_bits_per_byte": 2.0}
            file.write(json.dumps(record) + "\n")
    for where in (["--out=many.png"], ["--terminal"]):
        began = processor_seconds()
        done = subprocess.run(
            [sys.executable, "curves.py", "out/many", *where],
            cwd=clone,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            processor_seconds() - began < 12
        )  # it takes 4; a quadratic step would take many minutes
    assert re.search("best 1.5000.*many|many.*best 1.5000", done.stdout)
    assert (clone / "many.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(out)


@pytest.mark.slow
def test_a_line_of_eight_megabytes(clone: Path) -> None:
    """It becomes tokens that are counted right, and is trained on."""
    phrase = "the quick brown fox, naïve 🎉 and so on; "
    times = 8 * 10**6 // len(phrase.encode())
    (clone / "long.txt").write_text(phrase * times, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--corpus=long.txt",
            "--tokenizer=bpe",
            "--vocab_size=300",
            *TINY,
            "--out_dir=out/longline",
            "--max_iters=2",
        ],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"long\.txt: [\d,]+ training and [\d,]+ validation tokens \(bpe", done.stdout)
    (prepared,) = clone.glob("data/long.txt-*")
    tokenizer = load_tokenizer(prepared / "tokenizer.json")
    splits = [load_split(prepared, name, tokenizer.vocab_size) for name in ("train", "val")]
    found = sum(tokenizer.count_bytes(split.tokens) for split in splits)
    assert found == times * len(phrase.encode())
    (clone / "long.txt").unlink()
    shutil.rmtree(prepared)
