"""checksums.json, the last prepared file: it says that the others are complete, and as written."""

import hashlib
import json
from pathlib import Path

from pydantic import TypeAdapter

from config.errors import UserError
from config.files import check_entries, write_atomically
from data.arrays import check_whole

LARGE = 50_000_000  # bytes
SUMS = TypeAdapter(dict[str, tuple[int, int, str]])  # size, time and SHA-256 of each file
TEXT_FILES = TypeAdapter(dict[str, list[int]])  # size and time of each file of a large corpus


def is_sound(folder: Path) -> bool:
    """Return whether a prepared folder is complete, and its files are as they were written.

    A large file that has the size and the time it had then is not read again: that would take
    minutes.
    """
    try:
        check_entries(folder)
        before = SUMS.validate_json((folder / "checksums.json").read_bytes())
        if not before.keys() >= {"meta.json", "tokenizer.json"}:
            return False
        if any(Path(name).name != name for name in before):  # a path that leads elsewhere
            return False
        arrays = {path.name for path in folder.glob("[!.]*.npy")}
        if arrays != {name for name in before if name.endswith(".npy")}:
            return False
        check_sizes(folder)  # earlier editions took the hash of what a full disk had left
        return all(_is_unchanged(folder / name, *sums) for name, sums in before.items())
    except (OSError, ValueError, UserError):
        return False


def _is_unchanged(path: Path, size: int, time: int, sha256: str) -> bool:
    if not is_hashed(size) and [size, time] == size_and_time(path):
        return True
    return sha256 == hash_file(path)


def has_same_files(folder: Path) -> bool:
    """Return whether the files of a large corpus have the sizes and times of its preparation."""
    before = read_text_files(folder)
    if before is None:
        return False
    try:
        return all(size_and_time(Path(path)) == sums for path, sums in before.items())
    except OSError:
        return False


def read_text_files(folder: Path) -> dict[str, list[int]] | None:
    """Read which sizes and times the files of a large corpus had; None if that is not known."""
    try:
        return TEXT_FILES.validate_json((folder / "files.json").read_bytes())
    except (OSError, ValueError):
        return None


def is_hashed(size: int) -> bool:
    """Return whether a file of so many bytes is read at each start."""
    return size <= LARGE


def check_sizes(folder: Path) -> None:
    """Raise OSError if an array is shorter or longer than its header says."""
    for path in folder.glob("[!.]*.npy"):
        check_whole(path)


def size_and_time(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write the last file; without it a folder counts as incomplete.

    `known` are hashes that need not be computed. OSError if an array has not the size that it
    should have: its hash would say that it is sound.
    """
    check_sizes(folder)
    known = known or {}
    sums = {}
    for path in folder.glob("[!.]*"):
        if path.suffix in (".npy", ".json") and path.name != "checksums.json":
            sha256 = known.get(path.name) or hash_file(path)
            sums[path.name] = [*size_and_time(path), sha256]
    write_atomically(folder / "checksums.json", json.dumps(sums, indent=1).encode())
