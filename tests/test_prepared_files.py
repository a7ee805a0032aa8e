"""Prepared files: a full disk while a corpus is prepared, and damage of large files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from config.schema import DataConfig
from data import checksums
from data.arrays import check_whole, write_array
from data.checksums import hash_file, size_and_time
from data.prepare import prepare_corpus
from tests.conftest import TINY, Done, call, make_text
from tests.one_run import files_of_at_most

CORPORA = {
    "small": ["--corpus=text.txt"],
    "masked": ["--corpus=text.txt", "--mask=the"],
    "large": ["--corpus=texts"],
}


@pytest.fixture(params=CORPORA)
def options(request: pytest.FixtureRequest, data_dir: Path) -> list[str]:
    """A corpus in one file, one with a mask, and one in shards."""
    (data_dir / "texts").mkdir()
    for number in range(12):
        (data_dir / f"texts/{number}.txt").write_text(make_text(40), encoding="utf-8")
    return CORPORA[request.param]


def prepare(options: list[str], check: bool = True) -> Done:
    script = "large/prepare.py" if options == CORPORA["large"] else "data/prepare.py"
    return call(script, *options, check=check)


def prepared() -> Path:
    (folder,) = (path.parent for path in Path("data").glob("*/checksums.json"))
    return folder


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_a_full_disk_while_a_corpus_is_prepared(options: list[str], missing: int) -> None:
    """One clear line; when there is room again, it is prepared as if nothing had happened."""
    prepare(options)
    folder = prepared()
    whole = arrays(folder)
    for path in [*folder.iterdir()]:
        path.unlink()
    folder.rmdir()
    with files_of_at_most(max(map(len, whole.values())) - missing):
        done = prepare(options, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    assert ".npy: File too large\n" in done.stderr
    assert not (folder / "checksums.json").exists()
    assert prepare(options).returncode == 0
    assert arrays(prepared()) == whole
    assert not list(prepared().glob(".*"))


@pytest.mark.parametrize("n", [0, 1, 2047, 2048, 100_000])
def test_no_error_of_a_write_is_lost(n: int, tmp_path: Path) -> None:
    """np.save loses that of its last buffered write."""
    path = tmp_path / "a.npy"
    array = np.arange(n, dtype=np.uint16)
    write_array(path, array)
    assert np.array_equal(np.load(path), array)
    check_whole(path)
    size = path.stat().st_size
    for missing in (1, 64):
        with files_of_at_most(size - missing), pytest.raises(OSError, match="File too large"):
            write_array(tmp_path / "b.npy", array)
    assert [each.name for each in tmp_path.iterdir()] == ["a.npy"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="was not written whole"):
        check_whole(path)


def test_a_short_array_whose_checksum_is_right_is_prepared_again(options: list[str]) -> None:
    """Earlier editions left such an array when a disk was full."""
    prepare(options)
    folder = prepared()
    whole = arrays(folder)
    sums = json.loads((folder / "checksums.json").read_bytes())
    for name in whole:
        (folder / name).write_bytes(whole[name][:-10])
        sums[name] = [*size_and_time(folder / name), hash_file(folder / name)]
    (folder / "checksums.json").write_text(json.dumps(sums))
    assert "incomplete or damaged; preparing it again" in prepare(options).stderr
    assert arrays(prepared()) == whole


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_token_that_is_not_in_the_vocabulary(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file too large to be hashed at each start has the right size and time."""
    prepare(options)
    folder = prepared()
    monkeypatch.setattr(checksums, "LARGE", 1000)
    (path,) = folder.glob(f"{name}[.-]*npy")
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[200:] = b"\xff" * (len(content) - 200)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = call("train.py", *options, *TINY, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{path.name}: damaged: it has a token 65,535, and the vocabulary has " in done.stderr
    assert done.stderr.endswith(f"; remove {folder.absolute()}, and it is prepared again\n")


def test_tokens_are_taken_as_they_are(data_dir: Path) -> None:
    split = prepare_corpus(DataConfig(corpus="text.txt")).train
    tokens = split.take(slice(3, 9))
    assert np.array_equal(tokens, split.tokens[3:9])
    places = np.array([[1], [2]])
    assert split.take(places).dtype == np.int64
