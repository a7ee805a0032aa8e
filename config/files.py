"""Files that a crash cannot leave half-written, and a lock that no crash leaves behind."""

import glob
import hashlib
import os
import shlex
import stat
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from config.errors import UserError, did_you_mean

PIPE_BYTES = 2**28  # that are read from a pipe, which may have no end
LONGEST_NAME = 240  # bytes: .NAME.lock and NAME.1 then fit into the 255 of most file systems
LONGEST_WRITE = 24 * 60 * 60  # seconds; a file that nobody wrote to for longer is not being written
# files that are being written, or whose writer died, also those of safetensors
TEMPORARY = ".*tmp*"

# That make a directory a run; the first is written last.
RUN_FILES = ("config.toml", "corpus.json", "tokenizer.json")
# The models that convert.py makes runs of by name.
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def is_run(path: Path) -> bool:
    """Return whether a directory is that of a run, which can be opened and resumed."""
    return all((path / name).is_file() for name in RUN_FILES)


def is_hugging_face(path: Path) -> bool:
    """Return whether a directory is in Hugging Face's format, of which convert.py makes a run."""
    return (path / "config.json").is_file() and not (path / "config.toml").is_file()


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name, if it has at most so many bytes, or its beginning and a hash of all of it.

    >>> short_name("n_layer=3,n_head=2", 16), short_name("n_layer=3", 16)
    ('n_layer,b2b70746', 'n_layer=3')
    """
    content = os.fsencode(name)
    if len(content) <= longest:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    # no character is cut in two
    start = content[: longest - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start},{digest}"


def lock_of(path: Path) -> Path:
    """Return the lock file of a directory, which is beside it."""
    return path.with_name(f".{short_name(path.name)}.lock")


def check_place(path: Path) -> None:
    """Raise a UserError if no file of this name can be written: before long work, not after it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # OSError if the name is too long
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{path}: nothing can be written into {above}; choose another name")


def check_regular(path: Path) -> None:
    """Raise a UserError for a pipe or a device: commands read a file more than once."""
    if path.is_fifo() or path.is_socket():
        raise UserError(
            f"{path}: is a pipe, which cannot be read twice; write its content into a file first"
        )
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is a device; name a file of text")


def nearest_run(path: Path) -> str:
    """Say which run may be meant by a path that is none; "" if no run is near.

    For a Hugging Face model, say how to make a run of it.
    """
    if str(path) in GPT2_NAMES or is_hugging_face(path):
        run = Path("out") / path.name
        if is_run(run):
            return f"; did you mean {run}?"
        command = shlex.join(["python", "convert.py", str(path), str(run)])
        return f"; `{command}` makes a run of it: then name {run}"
    if path.exists():
        return ""
    known = dict(zip(GPT2_NAMES, GPT2_NAMES, strict=True))
    for place in {path.parent, Path("out")}:
        for cfg in sorted(place.glob("*/config.toml")):
            known[cfg.parent.name] = str(cfg.parent)
    return did_you_mean(path.name, known)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the name of each path, or as much of its end as tells it from the other paths.

    >>> unique_names([Path("/out/x/run"), Path("/out/y/run"), Path("/out/y/other")])
    ['x/run', 'y/run', 'other']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names = []
    for path in absolute:
        length = 1
        while length < len(path.parts):
            others = [_end(other, length) for other in absolute if other != path]
            if _end(path, length) not in others:
                break
            length += 1
        names.append(_end(path, length))
    return names


def _end(path: Path, length: int) -> str:
    """Return the last parts of a path, `length` of them."""
    return str(Path(*path.parts[-length:]))


def check_entries(folder: Path) -> None:
    """Raise a UserError if a run's or a prepared folder holds more than files and folders.

    It may be a stranger's: through a link, files elsewhere would be read, cut or extended; a pipe
    or a device may have no end. The folder itself may be a link.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            raise UserError(
                f"{path}: is a link; only what is in {folder} itself is used: put a "
                "copy in its place, or remove it"
            )
        is_special = not path.is_file() and not path.is_dir()
        if is_special and path.exists():  # else a training has replaced it meanwhile
            raise UserError(f"{path}: is neither a file nor a directory; remove it")


def without_bom(content: bytes) -> bytes:
    """UTF-8 without the byte order mark that editors on Windows write."""
    return content.removeprefix(BOM_UTF8)


def read_text(path: Path) -> str:
    """Read a UTF-8 file that a user names, without a byte order mark; lines end in \\n.

    OSError, UnicodeDecodeError; UserError for a device, and for a pipe that gives more than
    PIPE_BYTES.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            content = file.read()
        elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            content = file.read(PIPE_BYTES + 1)
        else:
            raise UserError(f"{path}: is a device; name a file of text")
    if len(content) > PIPE_BYTES and not stat.S_ISREG(mode):
        raise UserError(
            f"{path}: is a pipe that gives more than {PIPE_BYTES:,} bytes; write them "
            "into a file first"
        )
    text = content.decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def replacing(path: Path, keep_as: Path | None = None, like: Path | None = None) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file then gets the name `path`, whole and on disk.

    If writing fails, `path` stays as it was. The file that had the name before is lost, or becomes
    `keep_as`. The new one has the permissions of `like`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = short_name(path.name, LONGEST_NAME - 20)
    _remove_leftovers(path.parent, name)
    new = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        new.unlink(missing_ok=True)
        new.touch(exist_ok=False)  # never through a link of that name
        # safetensors makes a file that nobody else may read
        mode = 0o200 | (like or new).stat().st_mode
        new.chmod(mode)
        yield new
        new.chmod(mode)
        with new.open("r+b") as file:
            os.fsync(file.fileno())
        if keep_as and path.exists():
            os.replace(path, keep_as)
        os.replace(new, path)
    except OSError as error:
        # A full disk has no name, and a hidden name says little. With a name but without a number,
        # an error would be shown as "[Errno None]".
        if error.errno is not None and error.filename in (None, str(new)):
            error.filename = str(path)
        raise
    finally:
        new.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what processes that were killed left of earlier writes of a file."""
    for old in folder.glob(f".{glob.escape(name)}.*.tmp"):
        number = old.name.removesuffix(".tmp").rpartition(".")[2]
        with suppress(OSError):  # another process may remove it too
            is_old = time.time() - old.stat().st_mtime > LONGEST_WRITE
            if number.isdecimal() and (is_old or _has_ended(int(number))):
                old.unlink()


def _has_ended(process: int) -> bool:
    """Return whether there is no such process on this machine.

    On Windows that is unknown, because asking would end the process.
    """
    if sys.platform == "win32":
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it is another user's
        return False
    return False


def write_atomically(path: Path, content: bytes, like: Path | None = None) -> None:
    """Write a whole file; its permissions become those of `like`."""
    with replacing(path, like=like) as new:
        new.write_bytes(content)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file `path`."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(0)
    except Timeout:
        return True
    except OSError:  # it is another user's
        return False
    lock.release()
    return False


@contextmanager
def locked(path: Path, taken: str, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `path`; UserError `taken` if another process holds it.

    It waits `timeout` seconds for the other process. The operating system frees the lock of a
    process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout)
    except Timeout:
        raise UserError(taken) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()  # while it is held: a waiting process then notices that its file is gone
        lock.release()
