"""Files are replaced whole, damage is noticed by its hash, and a lock ends with its holder."""

import codecs
import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config.cli import load_config
from config.errors import UserError
from config.files import locked, replacing, write_atomically
from config.schema import ModelConfig, OptimConfig
from engine.checkpoint import Optimizers, save_checkpoint
from engine.optim import make_optimizers
from engine.run import open_run
from engine.state import TrainState
from model import GPT
from tests.conftest import ROOT, call, load_checkpoint, read_metrics

Processes = list[subprocess.Popen[str]]
HOLD = """
import sys
from pathlib import Path
from config.files import locked
with locked(Path(sys.argv[1]), "the bench is taken", timeout=float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep/file"
    write_atomically(path, b"before")
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(
                os,
                function,
                lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
            )
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, b"after")
        assert [entry.read_bytes() for entry in path.parent.iterdir()] == [b"before"]


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform == "win32", reason="Windows waits a day")
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """It leaves the files of other processes, and those that belong to another file."""
    path = tmp_path / "a[1]*.png"
    left = tmp_path / f".{path.name}.{ended_process()}.tmp"
    forgotten = tmp_path / f".{path.name}.1.tmp"  # its number was given to another process since
    written = tmp_path / f".{path.name}.{os.getppid()}.tmp"
    others = [tmp_path / f".a1x.png.{ended_process()}.tmp", tmp_path / f".{path.name}.mine.tmp"]
    for each in (left, forgotten, written, *others):
        each.touch()
    os.utime(forgotten, (0, 0))
    write_atomically(path, b"whole")
    assert set(tmp_path.iterdir()) == {path, written, *others}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_command_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from config.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    new.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    page = tmp_path / "page.html"
    command = [sys.executable, "-c", code, str(page)]
    subprocess.run(command, cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".page.html.")
    write_atomically(page, b"whole")
    assert [*tmp_path.iterdir()] == [page]


def test_one_of_two_versions_is_there_at_every_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each rename the files that are there are whole."""
    path = tmp_path / "last"
    previous = tmp_path / "previous"
    seen: list[str] = []
    rename = os.replace

    def there() -> str:
        files = [file for file in (path, previous) if file.exists()]
        return "".join(file.read_text() for file in files)

    def replace(old: Path, new: Path) -> None:
        seen.append(there())
        rename(old, new)

    monkeypatch.setattr(os, "replace", replace)

    for version in ("1", "2", "3"):
        with replacing(path, keep_as=previous) as new:
            new.write_text(version)
    assert seen == ["", "1", "1", "21", "2"]
    assert there() == "32"


def small_training() -> tuple[GPT, Optimizers]:
    torch.manual_seed(0)
    cfg = ModelConfig(block_size=2, n_layer=1, n_head=1, n_embd=2)
    model = GPT(cfg, 3)
    optimizers = make_optimizers(model, OptimConfig())
    for p in model.parameters():
        torch.nn.init.normal_(p)
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def test_every_damage_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """Two bits of many bytes, many lengths and a byte too many: nothing of them is loaded."""
    path = tmp_path / "last.safetensors"
    model, optimizers = small_training()
    save_checkpoint(path, model, TrainState(step=7, best_nll=1.5), optimizers)
    content = path.read_bytes()
    assert len(content) < 8000
    damaged = [content + b"\0"]
    for at in range(0, len(content), 13):
        for bit in (1, 32):
            flipped = bytearray(content)
            flipped[at] ^= bit
            damaged.append(bytes(flipped))
    near_the_end = range(len(content) - 300, len(content))
    for length in [*range(0, near_the_end.start, 13), *near_the_end]:
        damaged.append(content[:length])
    says = rf"^{re.escape(str(path))}: damaged \("
    for other in damaged:
        path.write_bytes(other)
        with pytest.raises(UserError, match=says):
            load_checkpoint(path, model, optimizers)

    expected_model, expected_optimizers = small_training()
    for p, q in zip(model.parameters(), expected_model.parameters(), strict=True):
        assert torch.equal(p, q)
    for optimizer, expected in zip(optimizers, expected_optimizers, strict=True):
        states = (optimizer.state_dict(), expected.state_dict())
        torch.testing.assert_close(*states, rtol=0, atol=0)
    path.write_bytes(content)
    assert load_checkpoint(path, model, optimizers) == TrainState(step=7, best_nll=1.5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_checkpoint_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_checkpoint(tmp_path / "best.safetensors", small_training()[0], TrainState())
    assert (tmp_path / "best.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_checkpoint_that_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    model = small_training()[0]
    with pytest.raises(UserError, match=r"best\.safetensors: there is no such checkpoint$"):
        load_checkpoint(path, model)
    path.mkdir()
    with pytest.raises(UserError, match=r"best\.safetensors: cannot be read \(Is a directory\)$"):
        load_checkpoint(path, model)
    path.rmdir()
    save_checkpoint(path, model, TrainState())

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything
    with pytest.raises(
        UserError, match=r"best\.safetensors: cannot be read \(Permission denied\)$"
    ):
        load_checkpoint(path, model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "PIPE"],
        ["compress.py", "out/tiny", "PIPE"],
        ["sample.py", "out/tiny", "--prompt_file=PIPE"],
    ],
    ids=lambda command: command[0],
)
def test_a_pipe_is_refused_before_it_is_read(
    trained, clone: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """A command reads its files twice; the second time a pipe is empty, and means the defaults."""
    monkeypatch.chdir(clone)
    if not Path("pipe").exists():
        os.mkfifo("pipe")
    done = call(*[word.replace("PIPE", "pipe") for word in command], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: pipe: is a pipe, which cannot be read twice; write its content into a file first\n"
    )


def test_files_from_windows_are_read(trained, clone: Path, tmp_path: Path) -> None:
    """Editors there begin a file with a byte order mark, and end lines with \\r\\n."""
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    expected = open_run(run)
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl", "corpus.json", "tokenizer.json"):
        content = (run / name).read_bytes().replace(b"\n", b"\r\n")
        (run / name).write_bytes(codecs.BOM_UTF8 + content)
    found = open_run(run)
    assert (found.cfg, found.info, found.tokenizer) == (
        expected.cfg,
        expected.info,
        expected.tokenizer,
    )
    assert found.read_metrics() == read_metrics(trained[0])
    assert load_config([str(run)])[0].model == expected.cfg.model


def test_no_directory_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows cannot: it has no fsync of a directory."""
    original = os.open

    def open_file(path, *arguments, **keywords) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", open_file)
    write_atomically(tmp_path / "deep/file", b"content")
    save_checkpoint(tmp_path / "deep/last.safetensors", small_training()[0], TrainState())
    with locked(tmp_path / "deep/.lock", ""):
        pass
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"file", "last.safetensors"}


def hold(path: Path, seconds: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), seconds],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_lock_is_held_once_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "made/for/it/.lock"
    holder = hold(path, "0")
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=r"^the bench is taken$"),
        locked(path, "the bench is taken"),
    ):
        pass
    waiter = hold(path, "60")
    assert waiter.stdout
    assert not holders([waiter], 1)
    holder.kill()
    assert waiter.stdout.readline() == "held\n"
    with pytest.raises(UserError), locked(path, "the bench is taken"):
        pass
    waiter.communicate("done\n")
    with locked(path, ""):
        assert path.exists()
    assert not path.exists()
    holder.communicate()


def holders(processes: Processes, seconds: float) -> Processes:
    """Return those that say, within so many seconds, that they hold the lock."""
    outputs = [process.stdout for process in processes if process.stdout]
    said = select.select(outputs, [], [], seconds)[0]
    return [process for process in processes if process.stdout in said]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows waits for sockets only")
def test_of_those_who_wait_one_at_a_time_gets_the_lock(tmp_path: Path) -> None:
    """It holds although the file of the lock is removed and made anew in between."""
    path = tmp_path / ".lock"
    with locked(path, ""):
        waiters = [hold(path, "60"), hold(path, "60")]
        assert not holders(waiters, 1)
    for seconds in (10, 0.2):  # the second does not get it while the first has it
        (first,) = holders(waiters, seconds)
    first.communicate("done\n")
    waiters.remove(first)
    assert holders(waiters, 10) == waiters
    waiters[0].communicate("done\n")
    assert not path.exists()
