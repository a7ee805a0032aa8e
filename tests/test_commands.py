"""The real commands, run as a user runs them, in a copy of the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, RUN_FILES, TINY, call, read_metrics, work_in
from tests.processes import Process

RECORD = {
    "step",
    "tokens",
    "positions",
    "seconds",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "train_nll",
    "objective",
    "val_nll",
    "val_perplexity",
    "val_bits_per_byte",
    "val_accuracy",
}


@pytest.fixture
def in_clone(clone, monkeypatch) -> None:
    """Commands called in this process work in the clone."""
    work_in(clone, monkeypatch)


def test_training_tells_the_whole_story(trained) -> None:
    path, printed = trained
    for said in (
        "options that differ from the defaults: corpus=text.txt, block_size=8, ",
        "text.txt:",
        "unigram",
        "uniform, log|V|",
        "bigram",
        "6-gram",
        "gzip",
        "bzip2",
        "xz",
        "spread evenly; at the end ",
        "as it should be, the model knows nothing yet",
        "The best model, of step ",
        "it beats",
        "A sample:",
        f"python sample.py {Path('out/tiny')}",
    ):
        assert said in printed
    assert {entry.name for entry in path.iterdir()} == RUN_FILES
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = read_metrics(path)
    assert [record["step"] for record in records] == [*range(7), 6]
    assert set(records[0]) == RECORD - {
        "lr",
        "grad_norm",
        "tokens_per_second",
        "train_nll",
        "objective",
    }
    assert set(records[7]) == {
        "step",
        "finished",
        "best_step",
        "best_epochs",
        "best_val_nll",
        "best_val_perplexity",
        "best_val_bits_per_byte",
        "best_val_accuracy",
        "best_train_unread_nll",
        "best_train_unread_error",
    }  # it read too little for a loss on that
    assert set(records[6]) == RECORD
    assert records[6]["tokens"] == 6 * 4 * 8
    assert records[6]["val_nll"] < records[0]["val_nll"]


def test_what_the_model_writes_is_shown_when_it_passes_a_baseline(trained) -> None:
    path, printed = trained
    lines = (path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    *samples, last = [json.loads(line) for line in lines]
    assert samples[0]["step"] == 0
    assert all(set(sample) == {"step", "text"} for sample in samples)
    assert set(last) == {"step", "best_step", "text"}
    at_the_end = "".join(last["text"].split())
    assert at_the_end in "".join(printed.split())
    shown = re.findall(r"^ +writes: (.*)$", printed, flags=re.MULTILINE)
    assert len(shown) == len(samples) >= 2
    for line, sample in zip(shown, samples, strict=True):
        assert sample["text"].replace("\n", "⏎").startswith(line.rstrip())
    standing = re.findall(r"^ +(beats .*?)(?:;|: the last|$)", printed, flags=re.MULTILINE)
    # once at the start, and at each baseline
    assert len(samples) == len(standing) == len(set(standing))


def test_a_run_in_the_way_is_renamed_not_lost(in_clone, trained) -> None:
    path, _ = trained
    before = (path / "metrics.jsonl").read_bytes()
    arguments = ["--corpus=text.txt", "--out_dir=out/again", *TINY, "--max_iters=1"]
    call("train.py", *arguments)
    assert (
        "the run that was in out/again is now in out/again.1" in call("train.py", *arguments).stdout
    )
    assert (path.parent / "again.1/last.safetensors").exists()
    assert (path / "metrics.jsonl").read_bytes() == before
    (path.parent / "precious").mkdir()
    (path.parent / "precious/thesis.doc").write_text("years of work")
    done = call("train.py", *arguments, "--out_dir=out/precious", check=False)
    assert done.returncode == 2
    assert "exists and is not a run" in done.stderr
    assert (path.parent / "precious/thesis.doc").exists()


def test_sampling(in_clone, trained) -> None:
    path, _ = trained
    arguments = (
        str(path),
        "--prompt=the",
        "--num_samples=2",
        "--max_new_tokens=20",
        "--top_k=5",
        "--top_p=0.9",
    )
    first = call("sample.py", *arguments).stdout
    assert first.startswith("the")
    assert first.count("the") >= 2
    assert len(first) >= 2 * 23
    assert call("sample.py", *arguments).stdout == first
    assert call("sample.py", *arguments, "--seed=2").stdout != first
    (path.parent / "prompt.txt").write_text("naïve 🎉", encoding="utf-8")
    assert call(
        "sample.py", str(path), f"--prompt_file={path.parent / 'prompt.txt'}", "--checkpoint=last"
    ).stdout.startswith("naïve 🎉")


def test_a_run_is_self_contained(in_clone, trained, tmp_path) -> None:
    path, _ = trained
    moved = tmp_path / "moved"
    path.rename(moved)
    try:
        assert call("sample.py", str(moved), "--max_new_tokens=5").stdout
        call("curves.py", str(moved), f"--out={tmp_path / 'c.png'}")
    finally:
        moved.rename(path)


def test_curves(in_clone, trained, clone) -> None:
    path, _ = trained
    for x in ("step", "tokens", "seconds"):
        call(
            "curves.py", str(path), str(path), f"--x={x}", "--unit=bits_per_byte", "--out=both.png"
        )
        assert (clone / "both.png").read_bytes().startswith(b"\x89PNG")
    picture = call("curves.py", str(path), "--terminal").stdout
    assert "uniform, log|V|" in picture
    assert re.search(r"best \d\.\d{4}  tiny", picture)
    assert "\x1b" not in picture  # no colours into a file


@pytest.mark.parametrize(
    "text", ["a" * 3000, "ab\x00" * 900, "🎉é" * 900, "To be, or not to be: " * 200]
)
def test_odd_texts(in_clone, clone, text) -> None:
    """No new line, one character, NULs, no ASCII: each trains, samples and draws."""
    (clone / "odd text.txt").write_text(text, encoding="utf-8")
    call("train.py", "--corpus=odd text.txt", "--out_dir=out/odd $text$", *TINY, "--max_iters=2")
    call("sample.py", "out/odd $text$", "--max_new_tokens=20")
    call("curves.py", "out/odd $text$", "--terminal")


@pytest.mark.parametrize("n", [4, 12, 30, 200])
def test_tiny_texts(in_clone, clone, n) -> None:
    (clone / "tiny.txt").write_text(
        ("To be, or not to be: that is the question. " * 9)[:n], encoding="utf-8"
    )
    call(
        "train.py",
        "--corpus=tiny.txt",
        "--out_dir=out/tiny-text",
        *TINY,
        "--block_size=1",
        "--val_fraction=0.5",
    )


def test_a_run_that_diverges_stops_and_says_so(in_clone, clone) -> None:
    done = call(
        "train.py",
        "--corpus=text.txt",
        "--out_dir=out/nan",
        *TINY,
        "--form=nanogpt",
        "--optimizer=adamw",
        "--learning_rate=1e38",
        "--grad_clip=0",
        check=False,
    )
    assert done.returncode == 1
    assert "It diverged" in done.stdout
    for line in (clone / "out/nan/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is not JSON
    assert call("sample.py", "out/nan", "--max_new_tokens=5").stdout
    assert call("curves.py", "out/nan", "--terminal").stdout


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "is_compiled"), [("nanogpt_gpu", False), ("gpt2_124m", True)])
def test_recipes_for_a_gpu_go_through_here(clone, recipe: str, is_compiled: bool) -> None:
    """A small model is compiled on the CPU; where there is no C++ compiler, a warning says so."""
    code, printed = Process(
        clone,
        f"config/{recipe}.toml",
        "--corpus=text.txt",
        "--tokenizer=char",
        "--val_fraction=0.1",
        f"--out_dir=out/{recipe}",
        *TINY,
        "--n_layer=1",
        "--dtype=bfloat16",
        "--max_iters=2",
        "--warmup_iters=1",
        "--max_ngram=2",
        f"--compile={is_compiled}",
        TORCHINDUCTOR_COMPILE_THREADS="1",  # else it starts processes that import torch
    ).wait()
    assert code == 0, printed
    assert "bfloat16: 2 steps" in printed
    assert "The best model, of step " in printed
    fails = is_compiled and not shutil.which("g++")
    assert printed.count("warning: torch.compile failed") == fails


def test_preparing(in_clone) -> None:
    printed = call(
        "data/prepare.py", "--corpus=text.txt", "--tokenizer=bpe", "--vocab_size=280"
    ).stdout
    assert "|V| = 280" in printed
    assert "6-gram" in printed


def test_help_lists_every_option_with_its_default(capsys) -> None:
    for script, known in (
        ("train.py", "--label_smoothing 0.0"),
        ("sample.py", "--temperature 0.8"),
        ("curves.py", "--x step"),
        ("data/prepare.py", "--corpus shakespeare"),
    ):
        printed = call(script, "--help").stdout
        assert known in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train.py", "--max_itrs=5"], "did you mean --max_iters"),
        (["train.py", "--n_embd=127"], "not a multiple"),
        (["train.py", "--corpus=nowhere.txt"], "no such file"),
        (["train.py", "--corpus=empty.txt"], "too short"),
        (["train.py", "--corpus=latin.txt"], "not UTF-8"),
        (["train.py", "--corpus=short.txt", "--block_size=64"], "too few for block_size=64"),
        (
            ["train.py", "--corpus=text.txt", "--init_from=resume", "--out_dir=out/none"],
            "no run to resume",
        ),
        (["train.py", "--corpus=config"], "prepare it: python large/prepare.py --corpus=config"),
        (["large/prepare.py", "--corpus=config"], "no files whose names end in .txt"),
        (["sample.py", "config"], "not a run"),
        (["sample.py", "--prompt", "- the", "config"], "config: not a run"),
        (["sample.py"], "RUN"),
        (["sample.py", ""], "not a run"),
        (
            ["sample.py", "out/tiny", "--prompt=a", "--prompt_file=text.txt"],
            "prompt and prompt_file: use one of them",
        ),
        (["train.py", "--vocab_size=300"], "vocab_size=300 needs --tokenizer=bpe"),
        (["train.py", "out/nowhere"], "no such recipe and no run"),
        (
            ["sample.py", "out/tiny", "--prompt=Ω"],
            "'Ω' (U+03A9, at position 0) is not in this char vocabulary",
        ),
        (["train.py", "--corpus=text.txt", "--out_dir=short.txt/x"], "short.txt"),
        (["train.py", "--corpus=text.txt", "--out_dir=website"], "not a run"),
        (["train.py", "--corpus=text.txt", "--device=tpu"], "device=tpu: should be auto"),
        (["curves.py", "out/tiny", "--out=x.docx"], "cannot draw a .docx"),
        (
            ["curves.py", "out/tiny", "--out=short.txt/x.png"],
            "short.txt/x.png: nothing can be written into",
        ),
        (["curves.py", "website"], "not a run"),
        (["sample.py", "out/tiny", "--checkpoint=middle"], "'best' or 'last'"),
        (["sample.py", "out/tiny", "--prompt_file=missing"], "prompt_file=missing"),
        (["sample.py", "out/tiny", "--top_p=0"], "top_p=0"),
        (["curves.py", "out/tiny", "text.txt"], "not a run"),
        (["data/prepare.py", "--corpus=nowhere.txt"], "no such file"),
    ],
)
def test_mistakes_are_one_clear_line(in_clone, clone, trained, command, message) -> None:
    (clone / "empty.txt").write_bytes(b"")
    (clone / "website").mkdir(exist_ok=True)
    (clone / "website/config.toml").write_text("title = 'mine'")
    (clone / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (clone / "short.txt").write_bytes(b"To be, or not to be.")
    before = sorted(path for path in clone.glob("out/*"))
    done = call(*command, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path for path in clone.glob("out/*")) == before


def test_an_interrupted_run_says_how_to_resume_and_does(in_clone, clone) -> None:
    out = "out/stopped-by-ctrl-c"
    arguments = [
        *TINY,
        "--corpus=text.txt",
        f"--out_dir={out}",
        "--max_iters=100000",
        "--log_interval=100",
        "--eval_interval=100000",
        "--checkpoint_interval=100000",
    ]
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=clone,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # not as under nohup
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(read_metrics(clone / out)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped by SIGINT at step" in printed
    command = printed.splitlines()[-1].split()
    assert command[:2] == ["python", "train.py"]
    stopped = int(read_metrics(clone / out)[-1]["step"])
    *_, step = re.findall(r"at step ([\d,]+)", printed)
    assert step == f"{stopped:,}"
    printed = call(*command[1:], f"--max_iters={stopped + 3}").stdout
    assert f"resuming {out} at step {stopped:,}" in printed
    *steps, last = [record["step"] for record in read_metrics(clone / out)]
    assert steps == sorted(set(steps))
    assert steps[-1] == last == stopped + 3


WITHOUT_TORCH = {
    "curves.py out/tiny --terminal": 0,
    "data/prepare.py --corpus=text.txt": 0,
    "sample.py out/tiny --prompt=Ω": 2,
    "evaluate.py out/tiny --stride=99": 2,
    "evaluate.py out/tiny --explain=Ω": 2,
    "sweep.py --corpus=text.txt --seed=1,2 --list": 0,
    "sweep.py --corpus=no.txt --seed=1,2": 2,
}
ONE_AFTER_THE_OTHER = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = command.split()
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        code = exit.code
    heavy = {"torch", "matplotlib"} & set(sys.modules)
    print("DONE", code, *heavy)
"""


def test_what_needs_no_torch_does_not_import_it(clone, trained) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, *WITHOUT_TORCH],
        cwd=clone,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    found = re.findall(r"^DONE (.*)$", done.stdout, flags=re.MULTILINE)
    assert found == [str(code) for code in WITHOUT_TORCH.values()], done.stderr


def test_importing_does_nothing(clone) -> None:
    """All modules in one process, as importing torch takes seconds."""
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in paths
        if not {".venv", "out", "tests"} & set(path.parts)
    ]
    assert "train" in modules
    before = sorted(clone.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-Bc", f"import {', '.join(modules)}"],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(clone.rglob("*")) == before
