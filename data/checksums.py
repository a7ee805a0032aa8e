"""Whether a folder of prepared files is complete, and as it was written: its checksums.json, the last file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from config.files import write_atomically

LARGE = 50_000_000  # bytes


def is_sound(folder: Path) -> bool:
    """Whether a prepared folder is complete, and its files are as they were written.

    A large file that has the size and the time it had then is not read again: that would take minutes.
    """
    try:
        before = json.loads((folder / "checksums.json").read_bytes())
        if before.keys() != {path.name for path in folder.iterdir()} - {"checksums.json"}:
            return False
        return all((size > LARGE and [size, time] == size_and_time(folder / name)) or sha256 == hash_file(folder / name)
                   for name, (size, time, sha256) in before.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def size_and_time(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, hashes: Mapping[str, str] = MappingProxyType({})) -> None:
    """The last file: without it a folder counts as incomplete. `hashes` are those that are known already."""
    sums = {path.name: [*size_and_time(path), hashes.get(path.name) or hash_file(path)] for path in folder.iterdir()}
    write_atomically(folder / "checksums.json", json.dumps(sums, indent=1).encode())
