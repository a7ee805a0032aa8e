"""Links, pipes and devices: in a run and a prepared folder only files inside it count.

What a stranger sends may lead anywhere, or have no end. If something waits for a pipe that nobody
writes to, these tests hang.
"""

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import config.files
from config.errors import UserError
from config.files import RUN_FILES, check_entries, locked, read_text, write_atomically
from tests.conftest import TINY, call, make_text
from tests.one_run import files

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")

NAMES = [
    "metrics.jsonl",
    "samples.jsonl",
    "history.jsonl",
    "passage.jsonl",
    "verdict.txt",
    "evaluation.json",
    "best.safetensors",
    "last.safetensors",
    "previous.safetensors",
    "report.html",
    "report.js",
    "curves.png",
    "config.toml",
    "corpus.json",
    "tokenizer.json",
    "tensorboard",
    "another",
]
SECRET = '{"step": 1, "text": "a secret"}\n' * 3
COMMANDS = [
    ["sample.py", "out/run"],
    ["evaluate.py", "out/run"],
    ["convert.py", "out/run", "model"],
    ["compress.py", "out/run", "text.txt"],
    ["curves.py", "out/run", "--html=page.html"],
    ["train.py", "out/run", "--init_from=resume", "--max_iters=9"],
    ["train.py", "--corpus=text.txt", "--init_from=auto", "--out_dir=out/run", *TINY],
    ["train.py", "--corpus=text.txt", "--init_from=out/run", "--out_dir=out/finer"],
    ["train.py", "--corpus=text.txt", "--tokenizer=out/run", "--out_dir=out/same_tokens", *TINY],
    ["train.py", "--corpus=text.txt", "--teacher=out/run", "--out_dir=out/student", *TINY],
]


@pytest.fixture
def theirs(small_run: Path, data_dir: Path) -> Path:
    """A copy of the run, in the current directory."""
    shutil.copytree(small_run, data_dir, dirs_exist_ok=True)
    return data_dir / "out/run"


def link_to_file(path: Path) -> None:
    target = path.parent.parent.parent / "mine.txt"
    if path.exists():
        shutil.copy(path, target)
    else:
        target.write_text(SECRET)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def link_to_nothing(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent.parent.parent / "not_there_yet")


def link_to_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [link_to_file, link_to_nothing, link_to_device, pipe])
def test_a_run_with_more_than_files_is_refused(
    theirs: Path, name: str, make: Callable[[Path], None]
) -> None:
    """One line says so before anything is read or written through it."""
    make(theirs / name)
    folder = theirs.parent.parent
    before = files(folder / "out")
    outside = {path: path.read_bytes() for path in folder.glob("*.txt")}
    for command in COMMANDS:
        done = call(*command, check=False)
        assert done.returncode == 2, command
        assert done.stderr.count("\n") == 1, done.stderr
        if name not in RUN_FILES:  # without one of these it is no run
            assert f"out/run/{name}: is " in done.stderr, command
        assert "a secret" not in done.stdout
    assert files(folder / "out") == before
    assert {path: path.read_bytes() for path in folder.glob("*.txt")} == outside
    assert not (folder / "not_there_yet").exists()


def test_a_file_that_is_replaced_meanwhile_is_no_reason_to_refuse_a_run(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training writes while somebody looks at its curves."""
    entries = [*theirs.iterdir(), theirs / ".report.js.1.tmp"]
    monkeypatch.setattr(Path, "iterdir", lambda folder: entries)
    check_entries(theirs)


def test_the_line_says_what_to_do(theirs: Path) -> None:
    link_to_file(theirs / "metrics.jsonl")
    said = call("sample.py", "out/run", check=False).stderr
    assert said == (
        "error: out/run/metrics.jsonl: is a link; only what is in out/run itself is used: put a "
        "copy in its place, or remove it\n"
    )


def test_the_run_itself_may_be_a_link(theirs: Path) -> None:
    Path("link").symlink_to(theirs)
    assert call("sample.py", "link", "--max_new_tokens=2").stdout
    os.link(theirs / "metrics.jsonl", "another_name")  # there is no harm in a hard link
    assert call("curves.py", "link", "--terminal").stdout


@pytest.mark.parametrize("option", ["--corpus", "--text", "--prompt_file"])
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "zero.txt"])
def test_texts_without_end(theirs: Path, option: str, path: str) -> None:
    Path("zero.txt").symlink_to("/dev/zero")
    command = {
        "--corpus": ["train.py", "--out_dir=out/new"],
        "--text": ["evaluate.py", "out/run"],
        "--prompt_file": ["sample.py", "out/run"],
    }[option]
    done = call(*command, f"{option}={path}", check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {path}: is a device; name a file of text\n"


def test_a_recipe_without_end(data_dir: Path) -> None:
    done = call("train.py", "/dev/zero", check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: /dev/zero: is a device; name a file of text\n",
    )


def write_to_pipe(path: Path, content: bytes) -> threading.Thread:
    """A pipe at `path`, into which a thread writes; a reader that has enough may close it."""
    os.mkfifo(path)

    def write() -> None:
        with suppress(BrokenPipeError):
            path.write_bytes(content)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_text_from_a_pipe(theirs: Path) -> None:
    """Shells make one of --text=<(zcat text.gz)."""
    thread = write_to_pipe(Path("pipe"), make_text(20).encode())
    assert "pipe" in call("evaluate.py", "out/run", "--text=pipe").stdout
    thread.join()


def test_a_pipe_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.files, "PIPE_BYTES", 1000)
    thread = write_to_pipe(tmp_path / "pipe", b"x" * 10**6)
    with pytest.raises(
        UserError, match=r"pipe: is a pipe that gives more than 1,000 bytes; write them into a file"
    ):
        read_text(tmp_path / "pipe")
    thread.join()


def test_what_is_no_file_is_not_compressed(theirs: Path) -> None:
    """Before the work: beside a pipe is no place for the compressed file."""
    os.mkfifo("pipe")
    for path, says in (
        ("pipe", "is a pipe, which cannot be read twice; write"),
        ("/dev/zero", "is a device; name"),
    ):
        done = call("compress.py", "out/run", path, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: {path}: {says}")


def test_a_corpus_of_ours_that_is_a_device(data_dir: Path) -> None:
    (data_dir / "data/shakespeare").mkdir(parents=True)
    (data_dir / "data/shakespeare/input.txt").symlink_to("/dev/zero")
    said = call("data/prepare.py", "--corpus=two_gentlemen", check=False).stderr
    assert "input.txt: is no file; remove it to have the shakespeare corpus fetched again" in said


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_models_in_hugging_face_format_may_have_links_but_no_pipes(theirs: Path, name: str) -> None:
    """Its own cache is full of links."""
    call("convert.py", "out/run", "model")
    path = Path("model") / name
    path.rename("blob")
    path.symlink_to(Path("blob").absolute())
    call("convert.py", "model", "out/model")
    path.unlink()
    os.mkfifo(path)
    os.mkfifo("model/model.safetensors.index.json")
    done = call("convert.py", "model", "out/again", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_texts_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\r\n\xc3\xa9\r\r\n")
    assert read_text(path) == path.read_text(encoding="utf-8-sig") == "a\nb\nc\n\né\n\n"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Neither a file, nor what is written beside it first, nor a lock."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in ("file", f".file.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(mine)
        write_atomically(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert not (tmp_path / "file").is_symlink()
    (tmp_path / ".lock").symlink_to(mine)
    with pytest.raises((UserError, OSError)), locked(tmp_path / ".lock", "taken"):
        pass
    assert mine.read_text() == "mine"
