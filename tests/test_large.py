"""Corpora of many files: streamed, in shards, and the same tokens whatever way they came."""

import gzip
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from config.errors import UserError
from config.schema import DataConfig
from data import sources
from data.batches import TrainBatches
from data.documents import Split
from data.prepare import Corpus, prepare_corpus
from data.shards import Shards
from data.sources import zstd
from data.tokenizer import Tokenizer, char_tokenizer
from large import prepare as large
from large import shards
from large.prepare import choose_split, prepare_large
from large.shards import write_shards
from tests.conftest import ROOT, TINY, call, draw_nothing, make_text

DOCUMENTS = make_text(60).strip().split("\n")
STOP = 18
NUMBERED = [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)]
LINES = [json.dumps(record) for record in NUMBERED]
RECORDS = "".join(f"{line}\n" for line in LINES)


@pytest.fixture
def folder(data_dir: Path) -> Path:
    path = data_dir / "texts"
    path.mkdir()
    return path


def prepare(corpus: str = "texts", **options: Any) -> Corpus:
    cfg = DataConfig(corpus=corpus, **options)
    if cfg.is_large:
        return prepare_large(cfg)
    return prepare_corpus(cfg)


def documents_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The texts between eos tokens."""
    places = np.flatnonzero(np.asarray(tokens) == tokenizer.eos).tolist()
    assert (places[0], places[-1]) == (0, len(tokens) - 1)
    documents = []
    for start, end in pairwise(places):
        documents.append(tokenizer.decode(tokens[start + 1 : end]))
    return documents


def assert_same_tokens(one: Corpus, other: Corpus) -> None:
    assert np.array_equal(one.train.tokens[:], other.train.tokens[:])
    assert np.array_equal(one.val.tokens[:], other.val.tokens[:])


def unfinished() -> Path:
    """The folder of a preparation that was stopped."""
    folders = [log.parent for log in Path("data").glob("texts-*/shards.jsonl")]
    (unfinished,) = [folder for folder in folders if not (folder / "checksums.json").exists()]
    return unfinished


def write(path: Path, text: str) -> None:
    content = text.encode()
    if path.suffix in (".gz", ".zst"):
        content = gzip.compress(content) if path.suffix == ".gz" else zstd.compress(content)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_documents_of_records(name: str, tokenizer: str, folder: Path) -> None:
    write(folder / name, RECORDS)
    corpus = prepare(tokenizer=tokenizer, val_fraction=0.2, vocab_size=300)
    assert documents_of(corpus.val.tokens, corpus.tokenizer) == DOCUMENTS[4::5]
    assert documents_of(corpus.train.tokens, corpus.tokenizer) == [
        text for number, text in enumerate(DOCUMENTS) if number % 5 < 4
    ]
    info = corpus.info
    assert (info.train.documents, info.val.documents) == (48, 12)
    assert info.val.tokens == len(corpus.val.tokens) == info.val.targets + 1


def test_every_file_of_a_folder_or_pattern_is_read(folder: Path) -> None:
    for part, name in enumerate(["a.txt", "deep/b.txt.gz", "c.txt.zst", "d_val.txt"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, "\n".join(DOCUMENTS[part::4]))
    corpus = prepare()
    expected = ["\n".join(DOCUMENTS[part::4]) for part in range(4)]
    assert documents_of(corpus.val.tokens, corpus.tokenizer) == [expected[3]]  # by its name
    assert documents_of(corpus.train.tokens, corpus.tokenizer) == [
        expected[0],
        expected[2],
        expected[1],
    ]
    few = prepare("texts/*.txt")
    assert (few.info.train.documents, few.info.val.documents) == (1, 1)
    (folder / "validation").mkdir()
    (folder / "deep/b.txt.gz").rename(folder / "validation/b.txt.gz")
    info = prepare().info
    assert (info.train.documents, info.val.documents) == (2, 2)


def test_later_pythons_use_their_own_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have it from 3.14 on, where backports.zstd cannot be installed."""
    own = ModuleType("compression.zstd")
    package = ModuleType("compression")
    for name in ("open", "compress", "ZstdError"):
        setattr(own, name, getattr(zstd, name))
    package.zstd = own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compression", package)
    monkeypatch.setitem(sys.modules, "compression.zstd", own)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)  # importing it fails
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    spec = importlib.util.spec_from_file_location("sources_of_3_14", sources.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.zstd is own


def test_the_same_pythons_are_supported_everywhere() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    pythons = re.findall(r'"(3\.\d+)"', workflow)
    assert pythons[-1] == "3.14"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"python{python}" in makefile for python in pythons)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for lines in (pinned, project["dependencies"]):
        needs = [Requirement(line) for line in lines if not line.startswith("#")]
        (marker,) = (each.marker for each in needs if each.name == "backports.zstd")
        assert marker is not None
        for python in pythons:
            assert marker.evaluate({"python_version": python}) == (python != "3.14")


def fill_with_strays(folder: Path) -> None:
    """Two documents, and what editors, Python and macOS leave beside them."""
    for name in (
        "a.txt",
        "deep/b.TXT",
        ".ipynb_checkpoints/b-checkpoint.txt",
        "deep/.venv/lib/LICENSE.txt",
        ".git/val.txt",
        "notes.md",
        ".DS_Store",
        "a.txt~",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} is a text\n")
    (folder / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")  # macOS's: not UTF-8


@pytest.mark.parametrize("corpus", ["texts", "texts/**/*", "./texts/", "texts/../texts/**"])
def test_hidden_files_and_folders_are_left_out(
    corpus: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_with_strays(folder)
    names = [
        path.relative_to(sources.find_root(corpus)).as_posix()
        for path in sources.find_files(corpus)
    ]
    assert names == ["a.txt", "deep/b.TXT"]
    info = prepare(corpus).info
    assert (info.train.documents, info.val.documents) == (1, 1)
    said = capsys.readouterr().err
    assert "left out: 4 hidden, such as " in said
    assert "2 of another kind, such as " in said
    prepare(corpus)
    assert not capsys.readouterr().err  # it is said once


def test_what_is_hidden_can_be_named(folder: Path) -> None:
    """Only what lies below the named folder counts as hidden."""
    fill_with_strays(folder)
    (folder / ".single.txt.gz").write_bytes(gzip.compress(b"text"))
    (folder / "[1].txt.gz").write_bytes(gzip.compress(b"text"))
    for corpus in ("texts/.git", "texts/.git/*.txt", "texts/.single.txt.gz", "texts/[1].txt.gz"):
        assert len(sources.find_files(corpus)) == 1
    assert len(sources.find_files("texts/*.gz")) == 1
    with pytest.raises(
        UserError,
        match=r"no files whose names .*; left out: 1 of another kind, such as .*notes\.md",
    ):
        sources.find_files("texts/*.md")


def test_links_are_followed_once(folder: Path, data_dir: Path) -> None:
    """A link to a folder counts, and one that leads back to where it is does not."""
    write(folder / "a.txt", "text")
    (data_dir / "elsewhere").mkdir()
    write(data_dir / "elsewhere/b.txt", "text")
    (folder / "linked").symlink_to(data_dir / "elsewhere", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    for corpus in ("texts", "texts/**/*.txt"):
        assert [path.name for path in sources.find_files(corpus)] == ["a.txt", "b.txt"]


def test_a_single_file_of_records_is_as_in_a_folder(folder: Path) -> None:
    write(folder / "a.jsonl", "\n\ufeff" + RECORDS)
    write(folder / "b.jsonl.gz", RECORDS)
    tokens = [prepare(corpus).train.tokens for corpus in ("texts/a.jsonl", "texts/*.gz")]
    assert np.array_equal(tokens[0], tokens[1])


def test_a_file_of_records_can_be_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    write(folder / "a.jsonl", RECORDS)
    write(folder / "a.jsonl.gz", RECORDS)
    prepare("texts/a.jsonl")
    call("train.py", "--corpus=texts/a.jsonl", "--out_dir=out/run", *TINY)
    found = [
        json.loads(call("evaluate.py", "out/run", f"--text=texts/{name}", "--json").stdout)
        for name in ("a.jsonl", "a.jsonl.gz")
    ]
    size = sum(len(text.encode()) for text in DOCUMENTS) + len(DOCUMENTS)  # each with its eos
    assert [each["bytes"] for each in found] == [size, size]
    assert found[0]["loss"] == found[1]["loss"]


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (
            '{"text": "a"}',
            '{"prompt": "a", "completion": "b"}',
            r'line 5: should be {"text": "..."}.*prompts and',
        ),
        (
            '{"prompt": "a", "completion": "b"}',
            '{"text": "a"}',
            r'line 5: should be {"prompt".*\(or, from the first line',
        ),
        ('{"text": "a", "completion": "b"}', "", r'line 1: should be {"prompt"'),
        ("[1]", "", r'line 1: should be {"prompt"'),
    ],
)
def test_records_of_two_kinds(first: str, then: str, message: str, folder: Path) -> None:
    write(folder / "a.jsonl", f"{first}\n" * 4 + then)
    with pytest.raises(UserError, match=message):
        prepare("texts/a.jsonl")


@pytest.mark.parametrize("piece", [1, 100, 5000])
def test_pieces_and_shards_do_not_change_the_tokens(
    piece: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "a.jsonl", RECORDS)
    write(folder / "b.txt", make_text(300))
    whole = prepare()
    monkeypatch.setattr(shards, "CHUNK_CHARACTERS", piece)
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", piece)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    monkeypatch.setattr(large, "BPE_CHARACTERS", 1)
    write(folder / "b.txt", make_text(300))  # a new time: prepared anew
    cut = prepare()
    assert len(cut.train.tokens) == len(whole.train.tokens)
    assert isinstance(cut.train.tokens, Shards)
    assert len(cut.train.tokens.parts) > 5
    assert all(part.nbytes <= 3000 for part in cut.train.tokens.parts)
    assert_same_tokens(cut, whole)
    (batch,) = TrainBatches(cut.train, 16, 4, seed=1)(12)
    (expected,) = TrainBatches(whole.train, 16, 4, seed=1)(12)
    assert np.array_equal(batch.inputs, expected.inputs)
    assert np.array_equal(batch.targets, expected.targets)


def test_parts_of_shards(tmp_path: Path) -> None:
    numbers = np.arange(50, dtype=np.uint16)
    rng = np.random.default_rng(0)
    for number, part in enumerate(np.split(numbers, [7, 8, 30])):
        np.save(tmp_path / f"train-{number}.npy", part)
    sharded = Shards(sorted(tmp_path.glob("*.npy")))
    assert len(sharded) == 50
    assert sharded.dtype == numbers.dtype
    assert sharded.shape == (50,)
    for at in (
        slice(None),
        slice(5, 33),
        slice(-9, None),
        slice(40, 2, -3),
        rng.integers(-50, 50, (4, 9)),
        8,
        -1,
    ):
        assert np.array_equal(sharded[at], numbers[at])
    assert np.array_equal(np.asarray(sharded), numbers)
    with pytest.raises(IndexError):
        sharded[np.array([50])]


def test_a_stopped_preparation_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It encodes no document again whose shard is done."""
    monkeypatch.setattr(shards, "CHUNK_CHARACTERS", 50)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1500)
    write(folder / "a.jsonl", RECORDS)
    whole = prepare()
    encoded: list[list[sources.Piece]] = []
    encode = shards.encode_chunk
    write(folder / "a.jsonl", RECORDS)

    def stopping(chunk: list[sources.Piece], tokenizer: Tokenizer) -> object:
        encoded.append(chunk)
        if len(encoded) == STOP:
            raise KeyboardInterrupt
        return encode(chunk, tokenizer)

    monkeypatch.setattr(shards, "encode_chunk", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    before = len(encoded)
    half = unfinished()
    done = shards.read_log(half / "shards.jsonl")
    assert done
    (half / ".train-00009-0.npy.77.tmp").write_bytes(b"torn")
    corpus = prepare()
    chunks = len(list(shards.make_chunks(map(sources.Piece, DOCUMENTS))))
    assert len(encoded) - before == chunks - done[-1].chunks
    assert_same_tokens(corpus, whole)
    assert not list(half.glob(".*tmp*"))


@pytest.mark.slow
def test_a_killed_preparation_goes_on(clone: Path, tmp_path: Path) -> None:
    texts = clone / "many"
    texts.mkdir()
    write(texts / "a.jsonl", RECORDS * 500)
    command = [
        sys.executable,
        "-c",
        "import large.shards; large.shards.CHUNK_CHARACTERS = 2**13; "
        "large.shards.SHARD_BYTES = 2**17; "
        "from large.prepare import main; main(['--corpus=many'])",
    ]
    process = subprocess.Popen(command, cwd=clone)

    def log_lines() -> list[bytes]:
        logs = clone.glob("data/many-*/shards.jsonl")
        return b"".join(log.read_bytes() for log in logs).splitlines()

    while len(log_lines()) < 2:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = clone.glob("data/many-*")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    done = json.loads(log_lines()[-1])
    again = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    assert "training and" in again.stdout
    assert done["chunks"] > 1
    kept = 0
    for path, before in times.items():
        if path.stat().st_mtime_ns == before:
            kept += 1
    assert kept >= 2
    tokens = json.loads((folder / "meta.json").read_bytes())
    assert tokens["train"]["documents"] + tokens["val"]["documents"] == 500 * len(DOCUMENTS)


def test_damage_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a.jsonl", RECORDS)
    whole = prepare().train.tokens[:].copy()
    (file,) = Path("data").glob("texts-*/train-00000-0.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-2] + b"\x09\x00")
    assert np.array_equal(prepare().train.tokens, whole)
    assert "incomplete or damaged; preparing it again" in capsys.readouterr().err
    (file.parent / ".DS_Store").touch()  # what others put there is no damage
    prepare()
    assert not capsys.readouterr().err


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["gone", "short"])
def test_shards_that_are_gone_or_short_are_made_again(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shards.jsonl says is believed of files that are as long as it says."""
    write(folder / "a.jsonl", RECORDS)
    whole = prepare()
    write(folder / "a.jsonl", RECORDS)  # at another time: it is another corpus
    with monkeypatch.context() as patch:
        patch.setattr(large, "load_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    half = unfinished()
    for shard in half.glob("val-*.npy"):
        if what == "gone":
            shard.unlink()
        else:
            shard.write_bytes(shard.read_bytes()[:-2])
    corpus = prepare()
    assert_same_tokens(corpus, whole)


FRACTIONS = [0.02, 0.1, 0.3, 0.4, 0.5, 0.9, 1 / 49, 0.999]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_validation_split_is_as_large_as_asked(fraction: float) -> None:
    pieces = choose_split([sources.Piece("")] * 1000, fraction)
    is_val = [piece.is_val for piece in pieces]
    assert sum(is_val) == int(1000 * fraction + 1e-9)
    assert not is_val[0]
    expected = fraction * np.arange(1, 1001)
    assert (np.abs(np.cumsum(is_val) - expected) < 1).all()  # evenly


def test_the_end_of_a_name_says_what_a_file_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "speeches.txt.jsonl", RECORDS + '{"text": null}\n')
    monkeypatch.chdir(folder)
    monkeypatch.setattr("data.prepare.DATA", folder.parent)
    corpus = prepare(".", val_fraction=0.2)
    assert (corpus.info.name, corpus.info.train.documents) == ("texts", 1 + 48)


def test_batches_of_a_billion_tokens(tmp_path: Path) -> None:
    """Files with holes stand for them: what is not read takes no time and no memory."""
    for number in range(11):
        np.lib.format.open_memmap(
            tmp_path / f"train-{number:05}.npy", "w+", np.uint16, (95_000_000,)
        ).flush()
    tokens = Shards(sorted(tmp_path.glob("*.npy")))
    get_batch = TrainBatches(Split(tokens), 1024, 16, seed=1)  # type: ignore[arg-type]
    assert len(tokens) > 1e9
    (first,) = get_batch(80)
    get_batch(64)
    (again,) = get_batch(80)
    assert np.array_equal(first.inputs, again.inputs)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"text": "x"}\n{"txt": 1}\n', "a.jsonl, line 2: should be"),
        ("a.jsonl", "[1]\n", "line 1: should be"),
        ("a.jsonl.gz", None, "cannot be read"),
        ("a.jsonl.zst", None, "cannot be read"),
        ("a.parquet", None, "a.parquet"),
        ("a.jsonl.zst", "cut", "ended before the end-of-stream marker"),
        ("a.csv", "x", "no files whose names end in"),
        ("a.txt", "one document", "is one document; two are needed"),
        ("a.jsonl", '{"text": "a"}\n', "has no document for the val split"),
    ],
)
def test_mistakes(name: str, text: str | None, says: str, folder: Path) -> None:
    corpora = ["texts"]
    if text is None:
        content = b"\x1f\x8b no archive"
        corpora.append(f"texts/{name}")
    elif text == "cut":
        content = zstd.compress(RECORDS.encode() * 9)[:-9]
    else:
        content = text.encode()
    (folder / name).write_bytes(content)
    for corpus in corpora:
        done = call("large/prepare.py", f"--corpus={corpus}", check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert says in done.stderr


def test_options_for_one_file_are_refused(folder: Path) -> None:
    write(folder / "a.jsonl", RECORDS)
    for option in ("--mask=a", "--documents=lines", "--padded", "--predict_eos=false"):
        said = call("large/prepare.py", "--corpus=texts", option, check=False).stderr
        assert "needs one file of text, not compressed" in said


def test_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"text": DOCUMENTS, "id": range(len(DOCUMENTS))}), folder / "a.parquet"
    )
    corpus = prepare(val_fraction=0.2)
    assert documents_of(corpus.val.tokens, corpus.tokenizer) == DOCUMENTS[4::5]


def test_a_dataset_of_the_hub(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is made up stands for the hub and its package."""
    asked: list[object] = []

    def load_dataset(
        name: str, configuration: str | None, **options: Any
    ) -> Iterator[dict[str, str]]:
        asked.append((name, configuration, options))
        if name == "somebody/nothing":
            raise ConnectionError("the hub cannot be reached")
        return iter([{"id": "1", "text": text} for text in DOCUMENTS])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    corpus = prepare("hf:somebody/speeches:small", val_fraction=0.2)
    assert documents_of(corpus.val.tokens, corpus.tokenizer) == DOCUMENTS[4::5]
    once = ("somebody/speeches", "small", {"split": "train", "streaming": True, "revision": None})
    assert asked == [once, once]  # to find the characters, and to encode
    assert prepare("hf:somebody/speeches:small", val_fraction=0.2).info == corpus.info
    assert len(asked) == 2
    assert prepare("hf:somebody/speeches@refs/old", val_fraction=0.2).info.name == "speeches"
    assert asked[-1] == ("somebody/speeches", None, once[2] | {"revision": "refs/old"})
    with pytest.raises(
        UserError, match=r"^corpus hf:somebody/nothing: cannot be read .*ConnectionError: the hub"
    ):
        prepare("hf:somebody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"^corpus hf:somebody/else: needs a package: pip install"):
        prepare("hf:somebody/else")


def test_training_on_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several shards, training, resuming, evaluation and sampling work as on one file."""
    monkeypatch.setattr(shards, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    write(folder / "a.jsonl.zst", RECORDS)
    prepare()
    call("train.py", "--corpus=texts", "--out_dir=run", *TINY, "--document_attention")
    call("train.py", "run", "--init_from=resume", "--max_iters=8")
    assert "nats per token" in call("evaluate.py", "run").stdout
    assert call("sample.py", "run", "--max_new_tokens=5").stdout


@pytest.mark.parametrize("script", ["train.py", "data/prepare.py"])
def test_the_command_that_prepares_a_corpus_is_told(script: str, folder: Path) -> None:
    """The corpus is not prepared, is damaged, or its text has changed; then the command helps."""
    write(folder / "a.jsonl", RECORDS)
    arguments = ["--corpus=texts", "--val_fraction=0.2", *TINY, "--max_iters=1"]
    command = "python large/prepare.py --corpus=texts --val_fraction=0.2\n"

    def refuses() -> bool:
        done = call(script, *arguments, check=False)
        said = "error: corpus texts: is not prepared, or its files changed since; prepare it: "
        said += command
        if done.returncode == 0:
            assert done.stderr == ""
            return False
        assert done.returncode == 2
        assert done.stderr == said
        return True

    assert refuses()
    assert not list(Path(".").glob("out/*"))
    call(*command.split()[1:])
    assert not refuses()
    write(folder / "a.jsonl", RECORDS * 2)
    assert refuses()
    assert "its text has changed; preparing it again" in call(*command.split()[1:]).stderr
    assert not refuses()
    write(folder / "b.jsonl", RECORDS)  # what is new the command notices
    assert "its text has changed; preparing it again" in call(*command.split()[1:]).stderr
    (file,) = Path("data").glob("texts-*/val-00000-0.npy")
    file.write_bytes(file.read_bytes()[:-2])
    assert refuses()


def test_one_text_is_not_prepared_as_a_large_corpus(data_dir: Path) -> None:
    done = call("large/prepare.py", "--corpus=text.txt", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "corpus text.txt: is one text; train.py and data/prepare.py prepare it" in done.stderr


def test_write_shards_says_what_it_did(tmp_path: Path) -> None:
    tokenizer = char_tokenizer("ab", "\n")
    texts = [
        sources.Piece("ab"),
        sources.Piece("b"),
        sources.Piece("a", ends=False),
        sources.Piece("bb"),
    ]
    (shard,) = write_shards(choose_split(texts, 0.5), tokenizer, tmp_path)
    documents = {"train": 2, "val": 1}
    tokens = {"train": 8, "val": 3}
    assert shard == shards.Shard(1, documents, tokens)
    train = np.load(tmp_path / "train-00000-0.npy")
    val = np.load(tmp_path / "val-00000-0.npy")
    assert "".join(map(str, train)) == "20120112"
    assert "".join(map(str, val)) == "212"
