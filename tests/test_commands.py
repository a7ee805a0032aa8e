"""The real commands, run as a user runs them, in a copy of the repository."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs import read_metrics
from tests.conftest import ROOT, TINY

RECORD = {"step", "tokens", "seconds", "lr", "grad_norm", "tokens_per_second", "train_nll", "objective",
          "val_nll", "val_ppl", "val_bits_per_byte", "val_accuracy"}


def test_training_tells_the_whole_story(trained) -> None:
    path, printed = trained
    for said in ("text.txt:", "uniform, log|V|", "unigram", "bigram", "6-gram", "gzip", "bzip2", "xz",
                 "as it should be, the model knows nothing yet", "The best validation loss is", "It beats",
                 "A sample:", f"python sample.py {Path('out/tiny')}"):
        assert said in printed
    assert {entry.name for entry in path.iterdir()} == {
        "config.toml", "corpus.json", "tokenizer.json", "SHA256SUMS", "metrics.jsonl", "history.jsonl", "last",
        "previous", "best", "curves.png"}
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(7))
    assert set(records[0]) == RECORD - {"lr", "grad_norm", "tokens_per_second", "train_nll", "objective"}
    assert set(records[6]) == RECORD
    assert records[6]["tokens"] == 6 * 4 * 8
    assert records[6]["val_nll"] < records[0]["val_nll"]


def test_a_run_in_the_way_is_moved_not_lost(run, trained) -> None:
    path, _ = trained
    before = (path / "metrics.jsonl").read_bytes()
    arguments = ["--corpus=text.txt", "--out_dir=out/again", *TINY, "--max_iters=1"]
    run("train.py", *arguments)
    assert "is now in out/again.1/" in run("train.py", *arguments).stdout
    assert (path.parent / "again.1/last/model.safetensors").exists()
    assert (path / "metrics.jsonl").read_bytes() == before
    (path.parent / "precious").mkdir()
    (path.parent / "precious/thesis.doc").write_text("years of work")
    done = run("train.py", *arguments, "--out_dir=out/precious", check=False)
    assert done.returncode == 2
    assert "exists and is not a run" in done.stderr
    assert (path.parent / "precious/thesis.doc").exists()


def test_sampling(run, trained) -> None:
    path, _ = trained
    arguments = (str(path), "--prompt=the", "--num_samples=2", "--max_new_tokens=20", "--top_k=5", "--top_p=0.9")
    first = run("sample.py", *arguments).stdout
    assert first.startswith("the")
    assert first.count("the") >= 2
    assert len(first) >= 2 * 23
    assert run("sample.py", *arguments).stdout == first
    assert run("sample.py", *arguments, "--seed=2").stdout != first
    (path.parent / "prompt.txt").write_text("naïve 🎉", encoding="utf-8")
    assert run("sample.py", str(path), f"--prompt_file={path.parent / 'prompt.txt'}", "--checkpoint=last",
               ).stdout.startswith("naïve 🎉")


def test_a_run_is_self_contained(run, trained, tmp_path) -> None:
    path, _ = trained
    moved = tmp_path / "moved"
    path.rename(moved)
    try:
        assert run("sample.py", str(moved), "--max_new_tokens=5").stdout
        run("curves.py", str(moved), f"--out={tmp_path / 'c.png'}")
    finally:
        moved.rename(path)


def test_curves(run, trained, clone) -> None:
    path, _ = trained
    for x in ("step", "tokens", "seconds"):
        run("curves.py", str(path), str(path), f"--x={x}", "--unit=bits_per_byte", "--out=both.png")
        assert (clone / "both.png").read_bytes().startswith(b"\x89PNG")
    picture = run("curves.py", str(path), "--terminal").stdout
    assert "uniform, log|V|" in picture
    assert "validation, best" in picture
    assert "\x1b" not in picture  # no colours into a file


@pytest.mark.parametrize("text", ["a" * 3000, "ab\x00" * 900, "🎉é" * 900, "To be, or not to be: " * 200])
def test_odd_texts(run, clone, text) -> None:
    """No new line, one character, NULs, no ASCII: each trains, samples and draws."""
    (clone / "odd text.txt").write_text(text, encoding="utf-8")
    run("train.py", "--corpus=odd text.txt", "--out_dir=out/odd $text$", *TINY, "--max_iters=2")
    run("sample.py", "out/odd $text$", "--max_new_tokens=20")
    run("curves.py", "out/odd $text$", "--terminal")


@pytest.mark.parametrize("n", [4, 12, 30, 200])
def test_tiny_texts(run, clone, n) -> None:
    (clone / "tiny.txt").write_text(("To be, or not to be: that is the question. " * 9)[:n], encoding="utf-8")
    run("train.py", "--corpus=tiny.txt", "--out_dir=out/tiny-text", *TINY, "--block_size=1", "--val_fraction=0.5")


def test_a_run_that_diverges_stops_and_says_so(run, clone) -> None:
    done = run("train.py", "--corpus=text.txt", "--out_dir=out/nan", *TINY, "--norm=layernorm", "--qk_norm=false",
               "--optimizer=adamw", "--learning_rate=1e38", "--grad_clip=0", check=False)
    assert done.returncode == 1
    assert "It diverged" in done.stdout
    for line in (clone / "out/nan/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN is not JSON
    assert run("sample.py", "out/nan", "--max_new_tokens=5").stdout
    assert run("curves.py", "out/nan", "--terminal").stdout


@pytest.mark.parametrize("recipe", ["nanogpt_gpu", "gpt2_124m"])
def test_recipes_for_a_gpu_go_through_here(run, clone, recipe) -> None:
    """A dry run of compiled bfloat16, small, on the CPU; where there is no C++ compiler, a warning says so."""
    done = run("train.py", f"config/{recipe}.toml", "--corpus=text.txt", "--tokenizer=char", f"--out_dir=out/{recipe}",
               *TINY, "--n_layer=1", "--dtype=bfloat16", "--max_iters=2", "--warmup_iters=1", "--ngram=2")
    assert "bfloat16: 2 steps" in done.stdout
    assert "The best validation loss is" in done.stdout
    assert done.stdout.count("warning: torch.compile failed") == (not shutil.which("g++"))


def test_preparing(run) -> None:
    printed = run("data/prepare.py", "text.txt", "--tokenizer=bpe", "--vocab_size=280").stdout
    assert "|V| = 280" in printed
    assert "6-gram" in printed


def test_help_lists_every_knob_with_its_default(run) -> None:
    for script, known in (("train.py", "--label_smoothing 0.0"), ("sample.py", "--temperature 0.8"),
                          ("curves.py", "--x step"), ("data/prepare.py", "--corpus shakespeare")):
        printed = run(script, "--help").stdout
        assert known in printed


@pytest.mark.parametrize(("command", "message"), [
    (["train.py", "--max_itrs=5"], "did you mean max_iters"),
    (["train.py", "--n_embd=127"], "not a multiple"),
    (["train.py", "--corpus=nowhere.txt"], "no such file"),
    (["train.py", "--corpus=empty.txt"], "is empty"),
    (["train.py", "--corpus=latin.txt"], "not UTF-8"),
    (["train.py", "--corpus=short.txt"], "too few for block_size=64"),
    (["train.py", "--corpus=text.txt", "--init_from=resume", "--out_dir=out/none"], "not a run"),
    (["train.py", "--corpus=config"], "directory"),
    (["sample.py", "config"], "not a run"),
    (["sample.py"], "RUN"),
    (["sample.py", ""], "not a run"),
    (["sample.py", "out/tiny", "--prompt=Ω"], "'Ω' (U+03A9, at position 0) is not in this char vocabulary"),
    (["train.py", "--corpus=text.txt", "--out_dir=short.txt/x"], "short.txt"),
    (["train.py", "--corpus=text.txt", "--out_dir=website"], "not a run"),
    (["train.py", "--corpus=text.txt", "--device=tpu"], "device=tpu: should be auto"),
    (["train.py", "--n_embd=1000000"], "parameters"),
    (["train.py", "--batch_size=1000000", "--block_size=1000"], "tokens in a step"),
    (["curves.py", "out/tiny", "--out=nowhere/x.png"], "directory that exists"),
    (["curves.py", "out/tiny", "--out=x.docx"], "cannot draw a .docx"),
    (["curves.py", "website"], "not a run"),
    (["sample.py", "out/tiny", "--checkpoint=middle"], "'best' or 'last'"),
    (["sample.py", "out/tiny", "--prompt_file=missing"], "prompt_file=missing"),
    (["sample.py", "out/tiny", "--top_p=0"], "top_p=0"),
    (["curves.py", "out/tiny", "text.txt"], "not a run"),
    (["data/prepare.py", "nowhere.txt"], "no such file"),
])
def test_mistakes_are_one_clear_line(run, clone, trained, command, message) -> None:
    (clone / "empty.txt").write_bytes(b"")
    (clone / "website").mkdir(exist_ok=True)
    (clone / "website/config.toml").write_text("title = 'mine'")
    (clone / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (clone / "short.txt").write_bytes(b"To be, or not to be.")
    before = sorted(path for path in clone.glob("out/*"))
    done = run(*command, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path for path in clone.glob("out/*")) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_says_how_to_go_on_and_does(run, clone, number, code) -> None:
    out = f"out/stopped-{number}"
    arguments = [*TINY, "--corpus=text.txt", f"--out_dir={out}", "--max_iters=100000", "--log_interval=100",
                 "--eval_interval=100000", "--checkpoint_interval=100000"]
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=clone, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"},
                               preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # not as under nohup
    deadline = time.monotonic() + 60
    while len(read_metrics(clone / out / "metrics.jsonl")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"Stopped by {number.name} at step" in printed
    command = printed.splitlines()[-1].split()
    assert command[:2] == ["python", "train.py"]
    stopped = json.loads((clone / out / "last/progress.json").read_text())["step"]
    printed = run(*command[1:], f"--max_iters={stopped + 3}").stdout
    assert f"going on from step {stopped:,}" in printed
    steps = [json.loads(line)["step"] for line in (clone / out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == stopped + 3


@pytest.mark.parametrize("script", ["train.py --help", "train.py --max_itrs=1", "curves.py out/tiny --terminal",
                                    "data/prepare.py text.txt", "sample.py --help"])
def test_what_needs_no_torch_does_not_import_it(clone, trained, script) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *script.split()], cwd=clone, capture_output=True,
                          text=True, encoding="utf-8")
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported
    assert not imported & {"torch", "matplotlib"}


@pytest.mark.parametrize("path", [path for path in sorted(ROOT.rglob("*.py"))
                                  if not {".venv", "out", "tests"} & set(path.relative_to(ROOT).parts)],
                         ids=lambda path: path.relative_to(ROOT).as_posix())
def test_importing_does_nothing(path, clone) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    before = sorted(clone.rglob("*"))
    done = subprocess.run([sys.executable, "-Bc", f"import {module}"], cwd=clone, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(clone.rglob("*")) == before
