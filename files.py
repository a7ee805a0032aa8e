"""Files that a crash cannot harm, and damage that is noticed before it is used. Needs no torch.

What belongs together lies in a folder under a seal: SHA256SUMS, which `sha256sum -c SHA256SUMS` checks. It is
made beside its place, flushed to the disk, and renamed: at every instant a whole one is there.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import UserError

SEAL = "SHA256SUMS"
HOLDER = "process"  # what the name of a lock's holder begins with


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a half-written file never has the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(content)
        _flush(new)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def seal(folder: Path) -> None:
    """Have a folder's files on disk, and their hashes beside them."""
    files = sorted(path for path in folder.iterdir() if path.name != SEAL)
    (folder / SEAL).write_bytes(_lines({path.name: [_sha256(path)] for path in files}))
    for path in [*files, folder / SEAL, folder]:
        _flush(path)


@contextmanager
def made_anew(folder: Path, old: Path) -> Iterator[Path]:
    """A folder to write in, which is then sealed and put in `folder`'s place; on a full disk, all is as before."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        seal(new)
        put(new, folder, old)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise


def put(new: Path, folder: Path, old: Path) -> None:
    """Give a new folder its place; the one that had it becomes `old`. In between, `old` is whole."""
    if folder.exists():
        if old.is_symlink():
            old.unlink()
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)


def read_sealed(path: Path, remedy: str) -> bytes:
    """A file's content, which is what it was when its folder was sealed; UserError, with a remedy, if not."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() in _sums(path.parent).get(path.name, []):
            return content
        fault = f"not what was written: its sha256 is not in {SEAL}"
    except FileNotFoundError as error:
        fault = f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        fault = str(error)
    raise UserError(f"{path}: damaged ({fault}); {remedy}")


def find_damage(folder: Path) -> str:
    """Which file of a sealed folder is not what it was, or ""; each is read once."""
    try:
        sums_of = _sums(folder)
        for path in folder.iterdir():
            if path.name not in [SEAL, *sums_of]:
                return f"{path}: damaged (it is not in {SEAL})"
        for name, sums in sums_of.items():
            if _sha256(folder / name) not in sums:
                return f"{folder / name}: damaged (its sha256 is not in {SEAL})"
    except (OSError, ValueError) as error:
        return f"{folder}: damaged ({error})"
    return ""


def replace_sealed(path: Path, content: bytes) -> None:
    """Replace a file in a sealed folder, unless it is the same. In between, the seal allows both contents."""
    sums, now = _sums(path.parent), [hashlib.sha256(content).hexdigest()]
    before = sums.get(path.name, [])
    if before == now and path.exists() and [_sha256(path)] == now:
        return
    write_atomically(path.with_name(SEAL), _lines(sums | {path.name: before + now}))
    write_atomically(path, content)
    write_atomically(path.with_name(SEAL), _lines(sums | {path.name: now}))


@contextmanager
def only_one(path: Path, taken: str, wait: bool = False) -> Iterator[str]:
    """Hold the lock file `path`; gives who held it, and died, before, or "".

    While another process has it, say that it is `taken`: in a UserError, or on stderr, to `wait` for it. The
    operating system frees the lock of a process that dies, so none is ever stale.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not path.exists():
            raise UserError(f"{path.parent}: no file can be made there") from None
        holder = f"{taken} by {_read(path) or 'another process'}"
        if not wait:
            raise UserError(holder) from None
        print(f"waiting: {holder}", file=sys.stderr)
        lock.acquire()
    before = _read(path)
    if before and not before.startswith(HOLDER):
        lock.release()
        raise UserError(f"{path}: is in the way: a file that is not the lock which should be there")
    try:
        with suppress(OSError):  # a full disk
            path.write_text(f"{HOLDER} {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield before
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever has it open will see that it is gone
        lock.release()
        for folder in made:  # those that nothing came into
            with suppress(OSError):
                folder.rmdir()


def _sums(folder: Path) -> dict[str, list[str]]:
    """The hashes that a folder's seal allows each of its files."""
    sums: dict[str, list[str]] = {}
    for line in (folder / SEAL).read_bytes().decode("utf-8").removesuffix("\n").split("\n"):
        sha256, _, name = line.partition("  ")
        if Path(name).name == name:  # files beside it only
            sums.setdefault(name, []).append(sha256)
    return sums


def _lines(sums: dict[str, list[str]]) -> bytes:
    return "".join(f"{sha256}  {name}\n" for name, hashes in sums.items() for sha256 in hashes).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")[:200]
    return ""


def _flush(path: Path) -> None:
    """Have the operating system put a file or folder on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
