"""compress.py: every byte comes back, from as many bits as the loss says, or one line says why."""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from zlib import crc32

import numpy as np
import pytest
import torch
from constriction import stream

from compress import CATEGORICAL, HEADER, LearningPredictor, code, make_predictor
from config.errors import UserError
from config.schema import ModelConfig, TablesConfig
from engine.checkpoint import load_model, read_model, save_checkpoint
from engine.device import Device
from engine.dynamic import Rates
from engine.run import open_run
from model import GPT
from tests.conftest import TINY, Done, call, make_text, only_numbers, training_in

CPU = Device(torch.device("cpu"), torch.float32)
TEXT = make_text(60)  # 1,500 characters, of the vocabulary of both runs
# a byte-order mark, Windows' line ends, and more
ODD = "\ufeffnaïve\r\n\r\ncafé \t🎉\x00 \u2028日本\n" * 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with a run of each kind of tokenizer, and one with tables of n-grams."""
    folder = tmp_path_factory.mktemp("compress")
    with training_in(folder) as patch:
        only_numbers(patch)
        for name, *arguments in (
            ["char", "--tokenizer=char"],
            ["bpe", "--tokenizer=bpe", "--vocab_size=300"],
            ["tables", "--tokenizer=char", "--max_ngram=3", "--table_rows=50"],
        ):
            call("train.py", "--corpus=text.txt", f"--out_dir={name}", *TINY, *arguments)
    return folder


@pytest.fixture(autouse=True)
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copy the runs to the current directory; a stream has at least 40 tokens, not 1,024."""
    for name in ("char", "bpe", "tables"):
        shutil.copytree(runs / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress.MIN_STREAM", 40)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def encode(content: bytes, run: str = "char", *options: str) -> Done:
    Path("a.txt").write_bytes(content)
    return call("compress.py", run, "a.txt", "--overwrite", *options)


def decode(run: str = "char", *options: str) -> bytes:
    """Return what a.txt.srp gives, after a.txt is gone."""
    Path("a.txt").unlink(missing_ok=True)
    call("compress.py", run, "a.txt.srp", *options)
    return Path("a.txt").read_bytes()


def refused(*arguments: str) -> str:
    """Return the one line by which compress.py refuses; it writes nothing."""
    before = read_all()
    done = call("compress.py", *arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert read_all() == before
    return done.stderr


def read_all() -> dict[Path, bytes]:
    """Read the files of the current directory."""
    files = [path for path in Path().iterdir() if path.is_file()]
    return {path: path.read_bytes() for path in files}


def to_number(text: str) -> int:
    return int(text.replace(",", ""))


def numbers(done: Done) -> list[float]:
    """Return bits by the loss, bits in the file, and their difference, as printed."""
    found = re.search(
        r"^([\d,]+) bits by the loss, ([\d,]+) bits in the file: ([\d,]+) (more|fewer)$",
        done.stdout,
        re.MULTILINE,
    )
    assert found
    difference = to_number(found[3])
    if found[4] == "fewer":
        difference = -difference
    return [to_number(found[1]), to_number(found[2]), difference]


# 40 and more characters make a stream of their own; a window has 8
IN_ONE_STREAM = [0, 1, 3, 7, 79]
IN_MORE = [80, 121, len(TEXT), 9 * len(TEXT)]


@pytest.mark.parametrize("run", ["char", "bpe"])
@pytest.mark.parametrize("length", IN_ONE_STREAM + IN_MORE)
def test_every_text_comes_back_in_the_bits_of_its_loss(run: str, length: int) -> None:
    text = (9 * TEXT)[:length]
    done = encode(text.encode(), run)
    bits, in_file, difference = numbers(done)
    assert in_file == 8 * Path("a.txt.srp").stat().st_size
    assert abs(in_file - bits - difference) <= 1
    assert 0 <= difference <= 0.001 * bits + 288
    assert decode(run) == text.encode()


LINE_ENDS = os.linesep.encode() * 30
ASCII = bytes(range(128)) * 2


EXACT = {"odd": ODD.encode(), "line ends": LINE_ENDS, "ascii": ASCII}


@pytest.mark.parametrize("text", EXACT.values(), ids=EXACT.keys())
def test_exactly_the_bytes_come_back(text: bytes) -> None:
    encode(text, "bpe")
    assert decode("bpe") == text


def test_the_number_of_streams_grows_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "in 1 streams" in encode(b"the cat").stdout
    assert "in 2 streams" in encode(TEXT[:119].encode()).stdout
    assert f"in {len(TEXT) // 40} streams" in encode(TEXT.encode()).stdout
    assert "in 128 streams" in encode(TEXT.encode() * 4).stdout
    monkeypatch.setattr("compress.MAX_FLOPS", 1_000_000)  # for this model about 40,000 in each
    assert "in 24 streams" in encode(TEXT.encode()).stdout


def test_the_header_says_what_decoding_depends_on() -> None:
    encode(TEXT.encode())
    header = HEADER.unpack_from(Path("a.txt.srp").read_bytes())
    _, crc, tokens, listed, threads, streams, *version, interval, checkpoint, _ = header
    assert crc == crc32(TEXT.encode())
    assert (tokens, listed, interval) == (len(TEXT), 0, 0)
    assert threads == torch.get_num_threads()
    assert streams == len(TEXT) // 40
    assert checkpoint == crc32(Path("char/best.safetensors").read_bytes())
    assert torch.__version__.startswith(".".join(map(str, version)) + ".")


def test_a_text_starts_after_a_new_line() -> None:
    run = open_run(Path("bpe"))
    text = TEXT[:39]
    model, _ = load_model(run, "best", CPU)
    tokens = run.tokenizer.encode(text)
    after_new_line = np.array([run.tokenizer.token_bytes.index(b"\n")])
    encode(text.encode(), "bpe")
    predict = make_predictor(model, CPU)
    _, _, words, *_ = code(predict, after_new_line, len(tokens), tokens)
    assert Path("a.txt.srp").read_bytes()[HEADER.size :] == words


def random_model(vocab_size: int = 13, std: float = 0.3) -> GPT:
    torch.manual_seed(0)
    shape = ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16)
    model = GPT(shape, vocab_size, TablesConfig(max_ngram=2, table_rows=50))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def surprisal(model: GPT, tokens: np.ndarray, start: int) -> float:
    """Return the bits of tokens after `start`, each predicted from its window alone.

    A window has block_size tokens, and moves on by half.
    """
    context = [start]
    bits = 0.0
    for token in tokens.tolist():
        logits = model(torch.tensor([context]))
        assert isinstance(logits, torch.Tensor)
        log_probs = logits[0, -1].double().log_softmax(dim=0)
        bits -= float(log_probs[token]) / math.log(2)
        if len(context) == 8:
            context = context[-3:]
        context.append(token)
    return bits


def test_bits_by_the_loss_are_those_of_each_streams_own_window() -> None:
    model = random_model()
    tokens = np.random.default_rng(0).integers(13, size=38)
    starts = np.full(3, 5)
    bits, *_ = code(make_predictor(model, CPU), starts, 38, tokens)
    with torch.no_grad():
        streams = np.split(tokens, [13, 26])
        expected = sum(surprisal(model, stream, 5) for stream in streams)
        assert bits == pytest.approx(expected, rel=1e-6)


EXTREMES = [
    pytest.param(1, 7, 0.3, id="one token"),
    pytest.param(2, 100, 0.3, id="two"),
    pytest.param(50_257, 300, 0.02, id="as many as GPT-2 has"),
    pytest.param(13, 200, 9.0, id="so sure that many probabilities are 0"),
]


@pytest.mark.parametrize(("vocab_size", "num_tokens", "std"), EXTREMES)
def test_extreme_vocabularies_and_predictions(vocab_size: int, num_tokens: int, std: float) -> None:
    model = random_model(vocab_size, std)
    tokens = np.random.default_rng(1).integers(vocab_size, size=num_tokens)
    starts = np.zeros(4, int)
    bits, _, words, *_ = code(make_predictor(model, CPU), starts, num_tokens, tokens)
    decoded = code(make_predictor(model, CPU), starts, num_tokens, None, words)
    assert decoded[1].tolist() == tokens.tolist()
    assert decoded[0] == bits
    assert 8 * len(words) <= 1.001 * bits + 64


def test_what_the_coder_saves_on_unlikely_tokens_is_said(here: Path) -> None:
    """The model is sure of something else: its loss counts far more than the 24 bits of a token."""
    assert "The coder raises" not in encode(TEXT.encode()).stdout
    run = open_run(here / "char")
    model, state = read_model(run, "best")
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    save_checkpoint(here / "char/best.safetensors", model, state)
    done = encode(TEXT.encode())
    bits, in_file, difference = numbers(done)
    found = re.search(
        r"^The coder raises probabilities below 2\^-24, here of ([\d,]+) tokens, to it: "
        r"([\d,]+) bits fewer than by the loss\.$",
        done.stdout,
        re.MULTILINE,
    )
    assert found
    unlikely = to_number(found[1])
    saved = to_number(found[2])
    assert f"{-difference:,.0f} fewer" in done.stdout
    assert 0 < unlikely < len(TEXT)
    assert in_file == pytest.approx(bits - saved, rel=0.02)  # the rest: the header, and rounding
    assert decode() == TEXT.encode()


def test_frequencies_have_24_bits_and_none_is_zero() -> None:
    n = 1000
    tokens = np.ones(n, np.int32)
    never = np.tile([1.0, 0.0], (n, 1))
    coder = stream.queue.RangeEncoder()
    coder.encode(tokens, CATEGORICAL, never)
    assert 24 * n <= coder.num_bits() <= 24 * n + 64


def test_a_damaged_byte_anywhere_and_every_other_length_are_noticed() -> None:
    encode(TEXT[:50].encode())
    Path("a.txt").unlink()
    content = Path("a.txt.srp").read_bytes()
    flipped = []
    for at in range(len(content)):
        for bit in (1, 128):
            damaged = bytearray(content)
            damaged[at] ^= bit
            flipped.append(bytes(damaged))
    shortened = [content[:length] for length in range(len(content))]
    lengthened = [content + b"\0", content + b"\0" * 4]
    says = "error: a.txt.srp: damaged, or not a file of compress.py\n"
    for other in flipped + shortened + lengthened:
        Path("a.txt.srp").write_bytes(other)
        assert refused("char", "a.txt.srp") == says


def forge(**changes: int | bytes) -> None:
    """Change fields of a.txt.srp as somebody does who computes the checksum anew."""
    names = [
        "file_crc",
        "crc",
        "tokens",
        "listed",
        "threads",
        "streams",
        "major",
        "minor",
        "interval",
        "checkpoint",
        "arithmetic",
    ]
    content = Path("a.txt.srp").read_bytes()
    fields = dict(zip(names, HEADER.unpack_from(content), strict=True)) | changes
    words = fields.pop("words", content[HEADER.size :])
    assert isinstance(words, bytes)
    body = HEADER.pack(*fields.values())[4:] + words
    Path("a.txt.srp").write_bytes(crc32(body).to_bytes(4, "little") + body)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"major": 9, "minor": 8},
            "another device, dtype or version (torch 9.8) than there is here: "
            f"char/best.safetensors, torch {torch.__version__}, cpu with 1 thread",
        ),
        ({"arithmetic": 7}, "another device, dtype or version"),
        ({"checkpoint": 7}, "another checkpoint"),
        ({"streams": 3}, "another device"),
        ({"threads": 3}, "another device"),
        ({"interval": 255}, "another device"),
        ({"tokens": 0}, "another device"),
        ({"tokens": 2**32 - 1}, "another device"),
    ],
)
def test_a_file_made_elsewhere_is_refused(changes: dict[str, int], says: str) -> None:
    encode(TEXT.encode())
    forge(**changes)
    Path("a.txt").unlink()
    assert says in refused("char", "a.txt.srp")


OTHERS = [("--checkpoint=last", "checkpoint"), ("--dtype=bfloat16", "device")]


@pytest.mark.parametrize(("option", "other"), OTHERS)
def test_another_checkpoint_or_dtype_is_refused_and_the_same_decodes(
    option: str, other: str
) -> None:
    encode(TEXT[:200].encode(), "char", option)
    Path("a.txt").unlink()
    assert f"made with another {other}" in refused("char", "a.txt.srp")
    assert decode("char", option) == TEXT[:200].encode()


NO_TOKEN = b"\0\xff\xff\xff"  # the last symbol of the coder
SIZES = (1, 2, 3, 9, 20, 40, 60, 98)
STRANGE_WORDS = [b"", b"\xff" * 40, b"\0" * 40, NO_TOKEN]
STRANGE_WORDS += [np.random.default_rng(size).bytes(4 * size) for size in SIZES]


@pytest.mark.parametrize("words", STRANGE_WORDS, ids=range(12))
def test_a_strangers_words_give_one_line(words: bytes) -> None:
    """All checksums are right but that of the text."""
    encode(TEXT[:300].encode())
    Path("a.txt").unlink()
    forge(words=words)
    assert refused("char", "a.txt.srp") == (
        "error: a.txt.srp: the predictions of char/best.safetensors do not give its text back\n"
    )


def test_the_number_of_threads_is_that_of_the_file(run, here: Path) -> None:
    """The real command too takes it from there, in an environment that says otherwise."""
    torch.set_num_threads(2)
    encode(TEXT[:39].encode())
    Path("a.txt").unlink()
    torch.set_num_threads(1)
    run("compress.py", str(here / "char"), str(here / "a.txt.srp"))
    assert Path("a.txt").read_bytes() == decode() == TEXT[:39].encode()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "text",
    [
        "the cät",
        "the cat\r\n" * 9,
        "Ω",
        "Ω" * 200,
        ODD,
        "“the cat\u2019s” №1 [sat]\n" * 30,
        TEXT + "…\x00\x1b",
        "".join(map(chr, range(600))),
    ],
    ids=range(8),
)
def test_unknown_characters_are_listed_and_come_back(text: str) -> None:
    done = encode(text.encode())
    found = re.search(
        r" and ([\d,]+) by a list of unknown characters, ([\d,]+) bits in the file", done.stdout
    )
    assert found
    size = Path("a.txt.srp").stat().st_size
    listed = to_number(found[1])
    assert to_number(found[2]) == 8 * size
    content = Path("a.txt.srp").read_bytes()
    list_size = HEADER.unpack_from(content)[3]
    assert listed == 8 * list_size > 0
    assert f"this model {8 * size / len(text.encode()):.3f}" in done.stdout  # the list counts
    assert re.search(
        r"^[\d,]+ characters are not in the vocabulary of \d+: ", done.stdout, re.MULTILINE
    )
    assert "\x1b" not in done.stdout
    assert decode() == text.encode()


@pytest.mark.parametrize(
    "packed",
    [
        b"x",
        zlib.compress(b"[]"),
        zlib.compress(b'[{"a":"b"},"c",[1]]'),
        zlib.compress(b'[{"a":"b"},"a",[-1]]'),
        zlib.compress(b'[[],"",[]]'),
        zlib.compress(b'[{"a":"b"},"aa",["x",1]]'),
    ],
)
def test_a_forged_list_is_refused(packed: bytes) -> None:
    encode("the cät".encode())
    Path("a.txt").unlink()
    content = Path("a.txt.srp").read_bytes()
    header = list(HEADER.unpack_from(content))
    words = content[HEADER.size : len(content) - header[3]]
    header[3] = len(packed)
    body = HEADER.pack(*header)[4:] + words + packed
    Path("a.txt.srp").write_bytes(crc32(body).to_bytes(4, "little") + body)
    assert "its list of unknown characters cannot be read" in refused("char", "a.txt.srp")


def test_bytes_that_are_no_text_are_refused() -> None:
    for run in ("char", "bpe"):
        Path("a.txt").write_bytes(b"the \xff")
        assert (
            "a.txt: not UTF-8 text ('utf-8' codec can't decode byte 0xff in position 4"
            in refused(run, "a.txt")
        )


def replace_in(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


def test_runs_with_documents_or_a_mask_are_refused(here: Path) -> None:
    Path("a.txt").write_text("the", encoding="utf-8")
    replace_in(here / "char/config.toml", 'mask = ""', 'mask = "a"')
    replace_in(here / "bpe/tokenizer.json", '"eos_text":null', '"eos_text":"\\n"')
    for run in ("char", "bpe"):
        assert f"a.txt: 4 GiB or more, or {run} has documents or a mask" in refused(run, "a.txt")


def test_nothing_else_is_overwritten() -> None:
    encode(TEXT.encode())
    assert "a.txt.srp: exists, and may hold something else" in refused("char", "a.txt")
    call("compress.py", "char", "a.txt.srp")  # a.txt is there, and is the same
    Path("a.txt").write_text("mine", encoding="utf-8")
    assert "a.txt: exists, and may hold something else" in refused("char", "a.txt.srp")
    call("compress.py", "char", "a.txt.srp", "--overwrite")
    assert Path("a.txt").read_bytes() == TEXT.encode()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_private_text_stays_private() -> None:
    Path("a.txt").touch(0o400)
    assert "bits per byte" not in call("compress.py", "char", "a.txt").stdout  # of nothing
    assert Path("a.txt.srp").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    encode(TEXT.encode())
    Path("a.txt").write_text("the", encoding="utf-8")
    no_space = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(os, "fsync", no_space)
    assert "No space left" in refused("char", "a.txt", "--overwrite")


def test_it_says_what_it_costs_beside_compressors() -> None:
    done = encode(TEXT.encode())
    for name in ("this model", "gzip", "bzip2", "xz", "PPMd", "zstd"):
        assert re.search(rf"\b{name} \d\.\d{{3}}\b", done.stdout), name
    per_byte = 8 * Path("a.txt.srp").stat().st_size / len(TEXT.encode())
    assert f"this model {per_byte:.3f}, PPMd" in done.stdout
    assert re.search(
        r"^The model itself, [\d,]+ parameters, is not counted\.$", done.stdout, re.MULTILINE
    )


def test_a_diverged_model_is_told() -> None:
    model = random_model()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    start = np.array([0])
    tokens = np.array([1, 2, 3])
    with pytest.raises(UserError, match="not finite"):
        code(make_predictor(model, CPU), start, 3, tokens)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: RUN FILE"),
        (["char"], "required: RUN FILE"),
        (["char", "a.txt", "b.txt"], "b.txt: no such option"),
        (["char", "missing.txt"], "missing.txt: No such file"),
        (["nothing", "a.txt"], "not a run"),
        (["char", "a.txt", "--checkpoint=first"], "'best' or 'last'"),
        (["char", "."], "Is a directory"),
        (["char", "a.txt", "--device=tpu"], "should be auto"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], says: str) -> None:
    Path("a.txt").write_text("the", encoding="utf-8")
    assert says in refused(*arguments)


# Learning.


@pytest.mark.parametrize("run", ["char", "bpe", "tables"])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 161, 401])
def test_a_model_that_learns_gives_every_text_back(
    run: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding needs no option; checksums and header are what the file has beside the loss."""
    monkeypatch.setattr("compress.CHECK_STEPS", 40)
    text = TEXT[:length].encode()
    done = encode(text, run, "--learn")
    bits, in_file, difference = numbers(done)
    assert 0 <= difference <= 0.001 * bits + 32 * 12
    assert decode(run) == text
    assert in_file == 8 * Path("a.txt.srp").stat().st_size


def test_learning_takes_fewer_bits() -> None:
    bits, *_ = numbers(encode(TEXT.encode(), "tables"))
    done = encode(TEXT.encode(), "tables", "--learn")
    learning, *_ = numbers(done)
    assert learning < bits
    steps = math.ceil(len(TEXT) / 4) - 1
    assert f"The model learned in {steps} steps, each on 4 tokens." in done.stdout


@pytest.mark.parametrize("run", ["char", "bpe", "tables"])
def test_it_learns_as_evaluate_does(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one stream, which takes the same steps; evaluate.py predicts no first token."""
    monkeypatch.setattr("compress.MIN_STREAM", 10**6)
    text = TEXT[:600]
    bits, *_ = numbers(encode(text.encode(), run, "--learn"))
    Path("b.txt").write_text("\n" + text, encoding="utf-8")
    options = ["--text=b.txt", "--dynamic", "--dtype=float32", "--json"]
    found = json.loads(call("evaluate.py", run, *options).stdout)
    expected = found["loss"]["bits_per_token"]["value"] * found["targets"]
    if run == "bpe":  # whose first token may have the new line and more
        assert bits == pytest.approx(expected, rel=0.02)
    else:
        assert bits == pytest.approx(expected, abs=1)


def costs_of(tokens: np.ndarray, streams: int = 3) -> tuple[np.ndarray, LearningPredictor]:
    """Return what the tokens cost a model that learns, step by step, (length, streams)."""
    torch.set_num_threads(1)
    learning = LearningPredictor(random_model(), CPU, interval=2)
    length = math.ceil(len(tokens) / streams)
    costs = np.zeros((length, streams))
    steps = iter(range(length))

    def predict(new: np.ndarray, n: int) -> tuple[torch.Tensor, np.ndarray]:
        log_q, q = learning.predict(new, n)
        step = next(steps)
        came = tokens[step::length]
        costs[step, :n] = -log_q[np.arange(n), came]
        return log_q, q

    code(predict, np.full(streams, 5), len(tokens), tokens)
    return costs, learning


def test_a_changed_token_moves_no_earlier_cost() -> None:
    """Nor that of tokens at its place in other streams: it is learned after it was coded."""
    tokens = np.random.default_rng(0).integers(13, size=60)
    before, _ = costs_of(tokens)
    places = [0, 7, 18]
    for stream_number, place in enumerate(places):
        changed = tokens.copy()
        at = 20 * stream_number + place
        changed[at] = (changed[at] + 1) % 13
        after, _ = costs_of(changed)
        same = before == after
        assert same[:place].all()
        assert np.flatnonzero(~same[place]).tolist() == [stream_number]
        # of other streams, the cost moves when it has been learned
        learned = place // 2 * 2 + 2
        before_the_step = same[place + 1 : learned]
        assert before_the_step.sum(axis=1).tolist() in ([], [2])
        assert not same[learned:].any()


def test_the_context_of_a_step_is_what_was_read_before() -> None:
    """At most a quarter of a block, and all that there is at first."""
    lengths = []
    original = LearningPredictor.learn

    def note(self: LearningPredictor, new: np.ndarray) -> None:
        lengths.append(len(self.inputs))
        original(self, new)

    with mock.patch.object(LearningPredictor, "learn", note):
        costs_of(np.arange(39) % 13)
    assert lengths == [2, 4, 4, 4, 4, 4]


def test_each_step_is_on_what_was_read_last() -> None:
    """The last stream is shorter; what it lacks is no target."""
    steps = []
    original = LearningPredictor.learn

    def note(self: LearningPredictor, new: np.ndarray) -> None:
        inputs = np.stack(self.inputs, axis=1)
        steps.append((inputs.tolist(), new.tolist()))
        original(self, new)

    with mock.patch.object(LearningPredictor, "learn", note):
        tokens = np.arange(1, 12)
        _, learning = costs_of(tokens, streams=2)
    assert learning.steps == len(steps) == 2
    assert steps[0] == ([[5, 1], [5, 7]], [2, 8])
    # the context is what the first step learned
    second = [5, 1, 2, 3], [5, 7, 8, 9]
    assert steps[1] == (list(second), [4, 10])


@pytest.mark.parametrize("number", [0, 1, 4])
def test_other_weights_are_told_at_the_next_checksum(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a machine adds up in another order."""
    monkeypatch.setattr("compress.CHECK_STEPS", 10)
    encode(TEXT[:300].encode(), "tables", "--learn")
    Path("a.txt").unlink()
    words = bytearray(Path("a.txt.srp").read_bytes()[HEADER.size :])
    words[4 * number] ^= 1
    forge(words=bytes(words))
    step = max(1, 10 * number)
    assert refused("tables", "a.txt.srp") == (
        f"error: a.txt.srp: step {step} gives other weights here than where it was made; expand it "
        "on a machine of the same kind\n"
    )


def test_steps_at_other_rates_are_another_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    encode(TEXT[:300].encode(), "tables", "--learn")
    Path("a.txt").unlink()
    monkeypatch.setattr("engine.dynamic.Rates", lambda: Rates(0.5, 0.5))
    assert "made with another device, dtype or version" in refused("tables", "a.txt.srp")


@pytest.mark.parametrize("words", STRANGE_WORDS, ids=range(12))
def test_a_strangers_words_give_one_line_where_the_model_learns(words: bytes) -> None:
    encode(TEXT[:300].encode(), "tables", "--learn")
    Path("a.txt").unlink()
    content = Path("a.txt.srp").read_bytes()
    checks = content[HEADER.size : HEADER.size + 4]
    forge(words=checks + words)
    assert re.fullmatch(
        "error: a.txt.srp: (the predictions of .* do not give its text back|step .*)\n",
        refused("tables", "a.txt.srp"),
    )


def test_a_forged_number_of_tokens_or_steps_is_refused() -> None:
    encode(TEXT[:300].encode(), "tables", "--learn")
    Path("a.txt").unlink()
    content = Path("a.txt.srp").read_bytes()
    forged = [("tokens", 2**32 - 1), ("interval", 0), ("streams", 0), ("interval", 9)]
    for name, value in forged:
        Path("a.txt.srp").write_bytes(content)
        forge(**{name: value})
        assert re.search("damaged|another device", refused("tables", "a.txt.srp"))


def test_a_text_on_which_the_model_diverges_is_compressed_without_learning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line names what compress.py has: it has no option for the rates."""
    says = "error: learn: the model diverged while it learned this text; without --learn it stands"
    monkeypatch.setattr("engine.dynamic.Rates", lambda: Rates(1e30, 1e30))
    Path("a.txt").write_text(TEXT[:300], encoding="utf-8")
    assert refused("tables", "a.txt", "--learn").startswith(says)
    # the step itself may be what sees it first
    with mock.patch("compress.make_predictor"):
        learning = LearningPredictor(random_model(), CPU, interval=1)
    torch.nn.init.constant_(learning.learner.model.lm_head.weight, math.nan)
    learning.inputs = [np.array([1])]
    learning.going_on = [1]
    with pytest.raises(UserError, match="diverged while it learned this text"):
        learning.learn(np.array([2]))


def test_a_file_says_itself_whether_its_model_learned() -> None:
    encode(TEXT[:300].encode(), "char")
    Path("a.txt").unlink()
    says = "learn: a.txt.srp was made by a model that stands still; leave --learn out"
    assert says in refused("char", "a.txt.srp", "--learn")
    encode(TEXT[:300].encode(), "char", "--learn")
    assert decode("char", "--learn") == TEXT[:300].encode()


def test_nothing_is_left_of_an_interrupted_one() -> None:
    for name in ("a.txt", "a.txt.srp"):
        encode(TEXT[:300].encode(), "tables", "--learn")
        Path("a.txt.srp" if name == "a.txt" else "a.txt").unlink()
        before = read_all()
        stop = mock.Mock(side_effect=KeyboardInterrupt)
        with mock.patch.object(LearningPredictor, "check", stop):
            done = call("compress.py", "tables", name, "--learn", check=False)
        assert done.returncode != 0
        assert read_all() == before
