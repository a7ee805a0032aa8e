"""Seals notice every damage, replacing is safe at any instant, and a lock ends with its holder."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from errors import UserError
from files import SEAL, find_damage, only_one, put, read_sealed, replace_sealed, seal, write_atomically
from tests.conftest import ROOT

HOLD = """
import sys
from pathlib import Path
from files import only_one
with only_one(Path(sys.argv[1]), "the bench is taken", wait=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.readline()
"""


class Killed(BaseException):
    """What stands for a kill -9 inside one process."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "a.txt").write_text("one")
    (made / "b.bin").write_bytes(bytes(range(256)))
    seal(made)
    return made


def test_a_seal_is_what_sha256sum_checks(folder: Path) -> None:
    assert find_damage(folder) == ""
    assert read_sealed(folder / "a.txt", "") == b"one"
    tool = ["sha256sum"] if shutil.which("sha256sum") else ["shasum", "-a", "256"]
    done = subprocess.run([*tool, "-c", SEAL], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a.txt: OK\nb.bin: OK\n")


@pytest.mark.parametrize("name", ["a.txt", "b.bin"])
def test_every_bit_and_every_length_is_under_the_seal(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    damaged = [content[:at] + bytes([content[at] ^ bit]) + content[at + 1:] for at in range(len(content))
               for bit in (1, 128)] + [content[:length] for length in range(len(content))] + [content + b"\0"]
    for wrong in damaged:
        (folder / name).write_bytes(wrong)
        assert find_damage(folder) == f"{folder / name}: damaged (its sha256 is not in {SEAL})"
        with pytest.raises(UserError, match=rf"{name}: damaged \(not what was written: .*\); pray"):
            read_sealed(folder / name, "pray")
    (folder / name).unlink()
    assert "damaged" in find_damage(folder)
    with pytest.raises(UserError, match=rf"{name} is missing"):
        read_sealed(folder / name, "pray")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"0" * 64 + b"  ../../etc/passwd\n", b"no seal at all"])
def test_a_damaged_seal_lets_nothing_through(folder: Path, content: bytes) -> None:
    (folder / SEAL).write_bytes(content)
    assert "damaged" in find_damage(folder)
    with pytest.raises(UserError, match="damaged"):
        read_sealed(folder / "a.txt", "pray")


def test_what_is_not_under_the_seal_is_damage(folder: Path) -> None:
    (folder / "c.txt").write_text("who put this here?")
    assert find_damage(folder) == f"{folder}/c.txt: damaged (it is not in {SEAL})"


def at_each_rename(monkeypatch: pytest.MonkeyPatch, act, check) -> None:
    """Kill `act` before its first, second, ... change of a name, and `check` what is there."""
    for deadline in range(100):
        left = iter(range(deadline, -1, -1))

        def dying(original, left=left):
            def change(*args, **kwargs):
                if next(left) == 0:
                    raise Killed
                return original(*args, **kwargs)
            return change

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "rmdir", "write_bytes", "write_text"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            try:
                act()
            except Killed:
                check()
                continue
        check()
        assert deadline > 2
        return
    raise AssertionError("it never ends")


def test_replacing_a_sealed_file_holds_at_any_instant(folder: Path, monkeypatch) -> None:
    def check() -> None:
        assert read_sealed(folder / "a.txt", "") in (b"one", b"two")
        assert read_sealed(folder / "b.bin", "") == bytes(range(256))
        for left in folder.glob("*.tmp"):
            left.unlink()
        assert find_damage(folder) == ""

    at_each_rename(monkeypatch, lambda: replace_sealed(folder / "a.txt", b"two"), check)
    assert read_sealed(folder / "a.txt", "") == b"two"
    assert len((folder / SEAL).read_text().splitlines()) == 2


def test_putting_a_folder_in_its_place_holds_at_any_instant(folder: Path, tmp_path: Path, monkeypatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"

    def act() -> None:
        new.mkdir(exist_ok=True)
        (new / "a.txt").write_text("next")
        seal(new)
        put(new, folder, old)

    def check() -> None:
        there = folder if folder.exists() else old
        assert read_sealed(there / "a.txt", "") in (b"one", b"next")

    at_each_rename(monkeypatch, act, check)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "deep/file"
    write_atomically(path, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"after")
    assert [entry.read_bytes() for entry in path.parent.iterdir()] == [b"before"]


def hold(path: Path, *wait: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path), *wait], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_lock_is_held_once_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "made/for/it/.lock"
    holder = hold(path)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"the bench is taken by process {holder.pid} on "), \
            only_one(path, "the bench is taken"):
        pass
    waiter = hold(path, "wait")
    assert waiter.stderr
    assert waiter.stderr.readline().startswith(f"waiting: the bench is taken by process {holder.pid}")
    holder.send_signal(signal.SIGKILL)
    assert waiter.stdout
    assert waiter.stdout.readline() == "held\n"  # without a word of who held it before
    waiter.send_signal(signal.SIGKILL)
    waiter.wait()
    with only_one(path, "") as before:
        assert before == f"process {waiter.pid} on {os.uname().nodename}"
    assert not path.exists()
    with only_one(path, "") as before:
        assert before == ""
    for process in (holder, waiter):
        process.communicate()


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with only_one(tmp_path / "a/b/.lock", ""):
        assert (tmp_path / "a/b/.lock").exists()
    assert not list(tmp_path.iterdir())
