"""Files of runs and prepared corpora that somebody forged.

They end in one clear line, or are prepared again; never in a traceback.

The checksums of a forged prepared folder are computed anew, as a forger would.
"""

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from config.errors import UserError
from config.schema import DataConfig
from data.checksums import write_checksums
from data.prepare import prepare_corpus
from data.tokenizer import load_tokenizer
from engine.metrics import parse_record
from large.prepare import prepare_large
from tests.conftest import call, draw_nothing, make_text

Forge = Callable[[Path], object]
DEEP = 100_000
Commands = dict[str, list[str]]
COMMANDS = {
    "sample": ["sample.py", "out/run", "--max_new_tokens=2"],
    "evaluate": ["evaluate.py", "out/run", "--max_tokens=50"],
    "curves": ["curves.py", "out/run", "--terminal"],
    "page": ["curves.py", "out/run", "--html=page.html"],
    "export": ["convert.py", "out/run", "model"],
    "resume": ["train.py", "out/run", "--init_from=resume", "--max_iters=3"],
}


@pytest.fixture
def theirs(small_run: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the current directory."""
    draw_nothing(monkeypatch)
    shutil.copytree(small_run, data_dir, dirs_exist_ok=True)
    return data_dir / "out/run"


def run_all(commands: Commands = COMMANDS) -> dict[str, int]:
    """Run commands; returns the exit code of each. A mistake is one line, without a traceback."""
    codes = {}
    for name, command in commands.items():
        done = call(*command, check=False)
        assert done.returncode in (0, 2), (name, done.stderr)
        if done.returncode == 2:
            assert done.stderr.startswith("error: "), (name, done.stderr)
            assert done.stderr.count("\n") == 1, (name, done.stderr)
        codes[name] = done.returncode
        shutil.rmtree("model", ignore_errors=True)
    return codes


def test_what_is_not_forged_is_good(theirs: Path) -> None:
    assert set(run_all().values()) == {0}


# metrics.jsonl

STEPS = [
    "1e299",
    "1" + "0" * 20,
    "1" + "0" * 400,
    "-1",
    "-1e-9",
    "0.5",
    "1e400",
    "NaN",
    "-Infinity",
    "null",
    "true",
    '"1"',
    "[1]",
    f"{2**53 + 2}",
]


@pytest.mark.parametrize("step", STEPS)
def test_steps_that_are_none(step: str) -> None:
    assert parse_record(f'{{"step": {step}, "val_nll": 1.0}}'.encode()) is None


@pytest.mark.parametrize(
    "numbers",
    ['"tokens": -1', '"tokens": 1e40', '"seconds": 1e300', '"seconds": -1', '"best_step": 1e299'],
)
def test_counts_out_of_range(numbers: str) -> None:
    assert parse_record(f'{{"step": 1, {numbers}}}'.encode()) == {"step": 1}


@pytest.mark.parametrize(
    "value", ["1e101", "-1e101", "1e308", "1" + "0" * 400, "NaN", "Infinity", "1e999", "true"]
)
def test_numbers_that_cannot_be_drawn_are_left_out(value: str) -> None:
    assert parse_record(f'{{"step": 1, "val_nll": {value}}}'.encode()) == {"step": 1}


LINES = [
    *[
        f'{{"step": {step}, "val_nll": 3.0, "train_nll": 3.0, "tokens": 5, "seconds": 1}}'
        for step in ("1e299", "1" + "0" * 20, "0.5")
    ],
    '{"step": 2, "best_step": 2, "best_val_nll": 3.0}',
    '{"step": 2, "best_step": 2}',
    '{"step": 1, "objective": 3.0, "z_loss": 1}',
    '{"step": 1, "train_nll": 3, "smoothed_kl": 1}',
    '{"step": 1, "val_nll": -1e99, "tokens": 1e18, "seconds": 1e12, "train_nll": 1e99}',
    '{"step": 1, "val_nll": 1e99, "tokens": 0, "seconds": 0}',
    '{"step": 9007199254740992, "val_nll": 3}',
    "[" * DEEP,
    '{"a":' * DEEP,
    "\x00",
    "{}",
    "[]",
    "7",
    '{"step": 1, "step": -1}',
    '{"step": 1, "kl_gap": 1e99, "val_nll": 1}',
    '{"step": 1, "lr": -1e99, "train_nll": 1, "tokens": 1, "seconds": 1}',
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_forged_line_of_metrics(theirs: Path, number: int) -> None:
    """Alone, and after the others."""
    path = theirs / "metrics.jsonl"
    line = LINES[number].encode() + b"\n"
    for before in (b"", path.read_bytes()):
        path.write_bytes(before + line)
        run_all({name: COMMANDS[name] for name in ("curves", "page", "export")})


@pytest.mark.parametrize(
    "line", ['{"step": 1, "val_bits_per_byte": 3}', '{"step": 1, "kl_gap": 3}']
)
def test_a_line_with_another_unit_of_a_loss_but_no_loss(theirs: Path, line: str) -> None:
    (theirs / "metrics.jsonl").write_text(f"{line}\n")
    curves = [*COMMANDS["curves"], "--unit=bits_per_byte"]
    codes = run_all({"curves": curves, "page": COMMANDS["page"]})
    assert set(codes.values()) == {0}


def test_resuming_after_forged_metrics(theirs: Path) -> None:
    path = theirs / "metrics.jsonl"
    lines = "\n".join(LINES).encode() + b"\n"
    path.write_bytes(lines + path.read_bytes() + lines)
    assert run_all({"resume": COMMANDS["resume"]}) == {"resume": 0}


# Other lines and texts of a run

OTHERS = {
    "samples.jsonl": [
        "[" * DEEP,
        '{"step": 1e299, "text": 7}',
        '{"step": 1, "text": "\\ud800"}',
        '{"step": 1}',
        "\xff",
    ],
    "passage.jsonl": [
        "[" * DEEP,
        "{}",
        '{"step": 1e299, "tokens": [1]}',
        '{"step": -1, "tokens": [], "nll": [], "rank": [], "top": [], "log_q": [], "log_z": []}',
        '{"step": 1, "tokens": [1], "nll": [1e308], "rank": [-1], "top": [[1]], '
        '"log_q": [[1e308, 1]], "log_z": [[]]}',
    ],
    "history.jsonl": ["", "[" * DEEP, "\xff", '{"device": 7}'],
    "evaluation.json": ["", "[" * DEEP, "{}", "\xff"],
    "verdict.txt": ["\xff\x00", "", "</script>"],
}


NAMES_AND_CONTENTS = [(name, content) for name in OTHERS for content in OTHERS[name]]


@pytest.mark.parametrize(("name", "content"), NAMES_AND_CONTENTS)
def test_other_forged_files_of_a_run(theirs: Path, name: str, content: str) -> None:
    (theirs / name).write_bytes(content.encode("latin1") + b"\n")
    reader = "page"
    if name == "history.jsonl":
        reader = "export"
    run_all({each: COMMANDS[each] for each in (reader, "resume")})


def test_a_forged_evaluation(theirs: Path) -> None:
    """Sums that overflow, and parts without a target."""
    path = theirs / "evaluation.json"
    sound = json.loads(path.read_bytes())
    for changes in (
        {"part_nll": [1e308, 1e308], "part_targets": [1, 1]},
        {"part_nll": [1], "part_targets": [0]},
        {"part_nll": [-1e308, 1e308], "part_targets": [-1, 1]},
        {"targets": -1},
        {"targets": 10**400},
        {"part_nll": [1.0] * 10, "part_targets": [1e-308] * 10},
    ):
        path.write_text(json.dumps(sound | changes))
        codes = run_all({name: COMMANDS[name] for name in ("curves", "page")})
        assert set(codes.values()) == {0}


# corpus.json

UNIFORM = {
    "name": "uniform, log|V|",
    "nats_per_token": 3.0,
    "bits_per_byte": 4.0,
    "perplexity": 20.0,
}
NO_LOSSES = [float("nan"), float("inf"), -1, "x", None, 10**400]
NO_SIZES = [0, -1, 10**9, 10**400, 1.5, None]
CORPORA: list[dict[str, Any]] = [
    {"baselines": []},
    {"baselines": [UNIFORM | {"name": "bigram"}]},
    {"baselines": [UNIFORM] * 3000},
    *[
        {"baselines": [UNIFORM | {key: value}]}
        for key in ("nats_per_token", "bits_per_byte", "perplexity")
        for value in NO_LOSSES
    ],
    {"baselines": [UNIFORM | {"nats_per_token": 1e308}]},
    {"baselines": [UNIFORM | {"bits_per_byte": 1e308}]},
    {"baselines": [UNIFORM | {"passage_nll": [1e308]}]},
    {"baselines": [UNIFORM | {"passage_nll": [1.0] * 10**5}]},
    *[{"vocab_size": value} for value in NO_SIZES],
    {"train": {"tokens": -1, "documents": 1, "targets": -2}},
    {"train": {"tokens": 5, "documents": 1, "targets": 6}},
    {"train": {"tokens": 10**30, "documents": 1, "targets": 1}},
    {"train": {"tokens": 5, "documents": 1, "targets": -1}},
    {"entropy_rate": float("nan")},
    {"source_nll": 1e308},
    {"entropy_rate": -1},
    {"prompt": 7},
    {"val": None},
]


@pytest.mark.parametrize("forged", CORPORA, ids=range(len(CORPORA)))
def test_forged_corpus_json(theirs: Path, forged: dict[str, Any]) -> None:
    path = theirs / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | forged))
    assert set(run_all().values()) == {2}
    assert "corpus.json: damaged: " in call(*COMMANDS["sample"], check=False).stderr


# tokenizer.json


def tokens(*texts: bytes) -> list[str]:
    return [base64.b64encode(text).decode() for text in texts]


BYTES = [bytes([byte]) for byte in range(256)]
TOKENIZERS: list[dict[str, Any]] = [
    {"kind": "bpe", "token_bytes": tokens(*BYTES[1:])},
    {"kind": "gpt2", "token_bytes": tokens(*BYTES[:-1])},
    {"kind": "bpe", "token_bytes": tokens(*BYTES, b"a" * 100_000)},
    {"kind": "bpe", "token_bytes": tokens(*BYTES, b"a")},
    {"kind": "bpe", "token_bytes": tokens(*BYTES), "eos_text": "\n\n"},
    {"kind": "bpe", "token_bytes": []},
    {"kind": "bpe", "token_bytes": tokens(*BYTES), "eos_text": "\xff"},
    {"kind": "char", "token_bytes": []},
    {"kind": "char", "token_bytes": tokens(b"a", b"a")},
    {"kind": "char", "token_bytes": tokens(b"a", b"")},
    {"kind": "char", "token_bytes": tokens(b"a", b"bc")},
    {"kind": "char", "token_bytes": tokens(b"\xff")},
    {"kind": "char", "token_bytes": None},
    {"kind": "gpt2", "token_bytes": tokens(*BYTES, *BYTES)},
    {"kind": "bpe", "token_bytes": tokens(b"a")},
]


@pytest.mark.parametrize("forged", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_forged_tokenizers(tmp_path: Path, forged: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(forged))
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer of this program"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_byte_is_no_panic(theirs: Path) -> None:
    """A panic of tiktoken is no Exception, but a BaseException."""
    (theirs / "tokenizer.json").write_text(json.dumps(TOKENIZERS[0]))
    assert set(run_all().values()) <= {0, 2}
    assert "is missing" in call(*COMMANDS["sample"], "--prompt=\x00", check=False).stderr


# A model in Hugging Face's format


def test_its_tokens_are_those_that_a_run_may_have(theirs: Path) -> None:
    """Else it would be trained further, and the run could not be opened."""
    call(*COMMANDS["export"])
    path = Path("model/tokenizer.json")
    found = json.loads(path.read_bytes())
    others = [token for token in found["model"]["vocab"] if token != "a"]

    def replace_a_by(name: str) -> None:
        tokens = [name, *others]
        found["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
        path.write_text(json.dumps(found))

    for name in ("two", "x" * 2000):
        replace_a_by(name)
        done = call("convert.py", "model", "out/model", check=False)
        assert done.returncode == 2
        assert "model/tokenizer.json: cannot be used: a token " in done.stderr
    replace_a_by("[UNK]")
    call("convert.py", "model", "out/model")
    assert call("sample.py", "out/model", "--max_new_tokens=2").stdout


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_weights_that_are_no_real_numbers(theirs: Path, dtype: torch.dtype) -> None:
    call(*COMMANDS["export"])
    path = Path("model/model.safetensors")
    weights = load_file(path)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    save_file(weights, path, {"format": "pt"})
    done = call("convert.py", "model", "out/model", check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: model: its .safetensors do not hold the model of its config.json "
        f"(lm_head.weight is {dtype})\n"
    )


# A prepared folder


def write(name: str, content: bytes) -> Forge:
    return lambda folder: (folder / name).write_bytes(content)


def save(name: str, array: np.ndarray) -> Forge:
    return lambda folder: np.save(folder / name, array)


def change(name: str, **values: Any) -> Forge:
    def write_changed(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

    return write_changed


def remove(name: str) -> Forge:
    return lambda folder: (folder / name).unlink()


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64


N = 20_000
FOLDERS: dict[str, Forge] = {
    "floats": save("train.npy", np.zeros(N)),
    "signed": save("train.npy", np.zeros(N, np.int64)),
    "big-endian": save("train.npy", np.zeros(N, ">u2")),
    "bool": save("train.npy", np.zeros(N, bool)),
    "two-dimensional": save("train.npy", np.zeros((N, 2), np.uint16)),
    "a scalar": save("val.npy", np.array(3, np.uint16)),
    "empty": save("val.npy", np.zeros(0, np.uint16)),
    "one token": save("val.npy", np.zeros(1, np.uint16)),
    "other length": save("train.npy", np.zeros(N, np.uint16)),
    "text": save("train.npy", np.array(["a"] * 9)),
    "complex": save("train.npy", np.zeros(N, np.complex64)),
    "no bytes": write("train.npy", b""),
    "no npy": write("train.npy", b"x" * 500),
    "a zip": write("train.npy", b"PK\x03\x04" + b"\0" * 500),
    "a magic only": write("train.npy", b"\x93NUMPY"),
    "version 9": write("train.npy", b"\x93NUMPY\x09\x00" + b" " * 99),
    "a huge shape": write(
        "train.npy", npy("{'descr': '<u2', 'fortran_order': False, 'shape': (999999999999,)}")
    ),
    "a negative shape": write(
        "train.npy", npy("{'descr': '<u2', 'fortran_order': False, 'shape': (-5,)}")
    ),
    "a shape of nothing": write(
        "train.npy", npy("{'descr': '<u2', 'fortran_order': False, 'shape': ()}")
    ),
    "an object": write("train.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (5,)}")),
    "code": write("train.npy", npy("__import__('os').mkdir('executed')")),
    "deep": write("train.npy", npy("(" * 110)),
    "no dict": write("train.npy", npy("7")),
    "half a dict": write("train.npy", npy("{'descr': '<u2'")),
    "a structure": write(
        "train.npy", npy("{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (5,)}")
    ),
    "a type that is none": write(
        "train.npy", npy("{'descr': '<q9', 'fortran_order': False, 'shape': (5,)}")
    ),
    "an escape": write(
        "train.npy", npy(r"{'descr': '<\q2', 'fortran_order': False, 'shape': (5,)}")
    ),
    "python 2": write("train.npy", npy("{'descr': '<u2', 'fortran_order': False, 'shape': (5L,)}")),
    "a mask of another length": save("val_unmasked.npy", np.ones(5, bool)),
    "a mask of numbers": save("val_unmasked.npy", np.ones(N, np.uint8)),
    "a mask of a split that is no array": save("train_unmasked.npy", np.array(True)),
    "another array": save("train-00000-0.npy", np.zeros(N, np.uint16)),
    "no meta": write("meta.json", b"{}"),
    "deep meta": write("meta.json", b"[" * DEEP),
    "meta gone": remove("meta.json"),
    "tokenizer gone": remove("tokenizer.json"),
    "val gone": remove("val.npy"),
    "meta of another vocabulary": change("meta.json", vocab_size=999),
    "meta of another tokenizer": change("meta.json", tokenizer="bpe"),
    "meta of other sizes": change("meta.json", val={"tokens": 5, "documents": 1, "targets": 4}),
    "meta without baselines": change("meta.json", baselines=[]),
    "a tokenizer of one token": write(
        "tokenizer.json", b'{"kind": "char", "token_bytes": ["YQ=="]}'
    ),
    "a tokenizer without bytes": write("tokenizer.json", json.dumps(TOKENIZERS[0]).encode()),
    "deep tokenizer": write("tokenizer.json", b"[" * DEEP),
}


def seal(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Compute the checksums anew, also of arrays that the program itself would not seal."""
    with patch.context() as patched:
        patched.setattr("data.checksums.check_sizes", lambda folder: None)
        write_checksums(folder)


def prepared(folder: Path) -> Path:
    return next(folder.glob("data/text.txt-char-*"))


@pytest.mark.parametrize("kind", FOLDERS)
def test_forged_prepared_folders_are_prepared_again(
    theirs: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(theirs.parent.parent)
    expected = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "checksums.json"
    }
    FOLDERS[kind](folder)
    seal(folder, monkeypatch)
    corpus = prepare_corpus(DataConfig(corpus="text.txt"))
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "checksums.json"
    } == expected
    assert corpus.info.train.tokens == len(corpus.train.tokens)
    assert not Path("executed").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_tokens_above_the_vocabulary(
    theirs: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be read outside of the model's table."""
    folder = prepared(theirs.parent.parent)
    array = np.load(folder / f"{split}.npy")
    array[len(array) // 2] = 60_000
    np.save(folder / f"{split}.npy", array)
    seal(folder, monkeypatch)
    corpus = prepare_corpus(DataConfig(corpus="text.txt"))
    assert corpus.train.tokens.max() < corpus.info.vocab_size


SUMS = [
    "[" * DEEP,
    '{"a":' * DEEP,
    "7",
    "null",
    "[]",
    "{}",
    '{"train.npy": 7}',
    '{"train.npy": [1, 2, 3]}',
    '{"train.npy": ["x", 1, "y"]}',
    '{"train.npy": [1e400, 1, ""]}',
    '{"../../text.txt": [1, 2, ""]}',
    '{"/etc/passwd": [1, 2, ""]}',
    '{"\\u0000": [1, 2, ""]}',
    "\xff",
    '{"train.npy": [1, ' + "9" * 9999 + ', ""]}',
]


@pytest.mark.parametrize("content", SUMS, ids=range(len(SUMS)))
def test_forged_checksums(theirs: Path, content: str) -> None:
    path = prepared(theirs.parent.parent) / "checksums.json"
    sound = json.loads(path.read_bytes())
    path.write_bytes(content.encode("latin1"))
    prepare_corpus(DataConfig(corpus="text.txt"))
    again = json.loads(path.read_bytes())
    assert again.keys() == sound.keys()


LOGS = [
    "[" * DEEP,
    "7",
    "{}",
    '{"pieces": -1, "documents": {}, "tokens": {}}',
    '{"pieces": 1, "documents": {"train": 1}, "tokens": {"train": 1}}',
    '{"pieces": 1, "documents": {"train": 1, "val": 1, "x": 1}, "tokens": {"train": 1, "val": 1}}',
    '{"pieces": 1, "documents": {"train": "x", "val": 1}, "tokens": {"train": 1, "val": 1}}',
    "\xff",
]


@pytest.mark.parametrize("content", LOGS, ids=range(len(LOGS)))
def test_forged_logs_of_a_preparation(data_dir: Path, content: str) -> None:
    """One clear line: what is encoded may have taken hours, so nothing is removed."""
    (data_dir / "texts").mkdir()
    for number in range(3):
        (data_dir / f"texts/{number}.txt").write_text(make_text(20), encoding="utf-8")
    corpus = prepare_large(DataConfig(corpus="texts"))
    folder = next(data_dir.glob("data/texts-char-*"))
    (folder / "checksums.json").unlink()
    (folder / "shards.jsonl").write_bytes(content.encode("latin1") + b"\n")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=r"texts-char.*; remove "):
        prepare_large(DataConfig(corpus="texts"))
    assert sorted(path.name for path in folder.iterdir()) == before
    shutil.rmtree(folder)
    assert prepare_large(DataConfig(corpus="texts")).info == corpus.info


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("name", ["train.npy", "meta.json", "tokenizer.json", "checksums.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a_prepared_folder_with_more_than_files_is_prepared_again(
    theirs: Path, name: str, kind: str
) -> None:
    path = prepared(theirs.parent.parent) / name
    elsewhere = theirs / "elsewhere"
    path.rename(elsewhere)
    expected = elsewhere.read_bytes()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.symlink_to("/dev/zero")
    prepare_corpus(DataConfig(corpus="text.txt"))
    assert path.is_file()
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == expected
