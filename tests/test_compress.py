"""compress.py: every byte comes back, from as many bits as the loss says; what cannot is refused in
one line.
"""

import math
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from constriction import stream

from compress import CATEGORICAL, HEADER, code, make_predictor
from config.errors import UserError
from config.schema import ModelConfig
from engine.checkpoint import load_model, read_model, save_checkpoint
from engine.device import Device
from engine.run import open_run
from model import GPT
from tests.conftest import TINY, Done, call, make_text, training_in

CPU = Device(torch.device("cpu"), torch.float32)
TEXT = make_text(60)  # 1,500 characters, of the vocabulary of both runs
# a byte-order mark, Windows' line ends, and more
ODD = "\ufeffnaïve\r\n\r\ncafé \t🎉\x00 \u2028日本\n" * 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of each kind of tokenizer: char and bpe."""
    folder = tmp_path_factory.mktemp("compress")
    with training_in(folder) as patch:
        patch.setattr("train.generate_texts", lambda *_, **__: [""])
        for kind, *arguments in (["char"], ["bpe", "--vocab_size=300"]):
            call(
                "train.py",
                "--corpus=text.txt",
                f"--tokenizer={kind}",
                f"--out_dir={kind}",
                *TINY,
                *arguments,
            )
    return folder


@pytest.fixture(autouse=True)
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runs in the current directory, and streams of at least 40 tokens instead of 1,024."""
    for kind in ("char", "bpe"):
        shutil.copytree(runs / kind, tmp_path / kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress.MIN_STREAM", 40)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def encode(content: bytes, run: str = "char", *options: str) -> Done:
    Path("a.txt").write_bytes(content)
    return call("compress.py", run, "a.txt", "--overwrite", *options)


def decode(run: str = "char", *options: str) -> bytes:
    """What a.txt.srp gives, where a.txt is not."""
    Path("a.txt").unlink(missing_ok=True)
    call("compress.py", run, "a.txt.srp", *options)
    return Path("a.txt").read_bytes()


def refused(*arguments: str) -> str:
    """The one line by which compress.py refuses; it writes nothing."""
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    done = call("compress.py", *arguments, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert before == {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    return done.stderr


def numbers(done: Done) -> list[float]:
    """Bits by the loss, bits in the file, and their difference, as printed."""
    found = re.search(
        r"^([\d,]+) bits by the loss, ([\d,]+) bits in the file: ([\d,]+) (more|fewer)$",
        done.stdout,
        re.MULTILINE,
    )
    assert found
    bits, in_file, difference = (float(number.replace(",", "")) for number in found.groups()[:3])
    return [bits, in_file, difference if found[4] == "more" else -difference]


@pytest.mark.parametrize("run", ["char", "bpe"])
@pytest.mark.parametrize(
    "text",
    ["", "t", "the", "the cat", TEXT[:79], TEXT[:80], TEXT[:121], TEXT, TEXT * 9],
    ids=lambda text: str(len(text)),
)
def test_every_text_comes_back_in_the_bits_of_its_loss(run: str, text: str) -> None:
    """Shorter than a stream, in streams of unequal length, and much longer than the 8 tokens of a
    window.
    """
    done = encode(text.encode(), run)
    bits, in_file, difference = numbers(done)
    assert in_file == 8 * Path("a.txt.srp").stat().st_size
    assert abs(in_file - bits - difference) <= 1
    assert 0 <= difference <= 0.001 * bits + 288
    assert decode(run) == text.encode()


@pytest.mark.parametrize(
    "text", [ODD.encode(), os.linesep.encode() * 30, bytes(range(128)) * 2], ids=range(3)
)
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
    _, crc, tokens, listed, threads, streams, *version, checkpoint, _ = header
    assert (crc, tokens, listed, threads) == (
        crc32(TEXT.encode()),
        len(TEXT),
        0,
        torch.get_num_threads(),
    )
    assert (streams, checkpoint) == (
        len(TEXT) // 40,
        crc32(Path("char/best.safetensors").read_bytes()),
    )
    assert torch.__version__.startswith(".".join(map(str, version)) + ".")


def test_a_text_starts_after_a_new_line() -> None:
    run, text = open_run(Path("bpe")), TEXT[:39]
    model, _ = load_model(run, "best", CPU)
    tokens = run.tokenizer.encode(text)
    encode(text.encode(), "bpe")
    assert (
        Path("a.txt.srp").read_bytes()[HEADER.size :]
        == code(
            make_predictor(model, CPU),
            np.array([run.tokenizer.token_bytes.index(b"\n")]),
            len(tokens),
            tokens,
        )[2]
    )


def random_model(vocab_size: int = 13, std: float = 0.3) -> GPT:
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, ngram_embedding=2, ngram_rows=50),
        vocab_size,
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def surprisal(model: GPT, tokens: list[int], start: int) -> float:
    """Bits of tokens after `start`, each predicted from its window alone: block_size tokens, which
    move on by half.
    """
    context, bits = [start], 0.0
    for token in tokens:
        logits = model(torch.tensor([context]))
        assert isinstance(logits, torch.Tensor)
        bits -= float(logits[0, -1].double().log_softmax(dim=0)[token]) / math.log(2)
        context = [*(context if len(context) < 8 else context[-3:]), token]
    return bits


def test_bits_by_the_loss_are_those_of_each_streams_own_window() -> None:
    model, tokens = random_model(), np.random.default_rng(0).integers(13, size=38)
    bits, *_ = code(make_predictor(model, CPU), np.full(3, 5), 38, tokens)
    with torch.no_grad():
        assert bits == pytest.approx(
            sum(
                surprisal(model, part, 5)
                for part in (tokens[:13].tolist(), tokens[13:26].tolist(), tokens[26:].tolist())
            ),
            rel=1e-6,
        )


@pytest.mark.parametrize(
    ("vocab_size", "num_tokens", "std"),
    [(1, 7, 0.3), (2, 100, 0.3), (50_257, 300, 0.02), (13, 200, 9.0)],
)
def test_extreme_vocabularies_and_predictions(vocab_size: int, num_tokens: int, std: float) -> None:
    """One token, as many as GPT-2 has, and predictions so sure that many probabilities are 0."""
    model, tokens = (
        random_model(vocab_size, std),
        np.random.default_rng(1).integers(vocab_size, size=num_tokens),
    )
    bits, _, words, *_ = code(make_predictor(model, CPU), np.zeros(4, int), num_tokens, tokens)
    assert (decoded := code(make_predictor(model, CPU), np.zeros(4, int), num_tokens, None, words))[
        1
    ].tolist() == tokens.tolist()
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
    unlikely, saved = (int(number.replace(",", "")) for number in found.groups())
    assert f"{-difference:,.0f} fewer" in done.stdout
    assert 0 < unlikely < len(TEXT)
    assert in_file == pytest.approx(bits - saved, rel=0.02)  # the rest: the header, and rounding
    assert decode() == TEXT.encode()


def test_frequencies_have_24_bits_and_none_is_zero() -> None:
    coder, n = stream.queue.RangeEncoder(), 1000
    coder.encode(np.ones(n, np.int32), CATEGORICAL, np.tile([1.0, 0.0], (n, 1)))
    assert 24 * n <= coder.num_bits() <= 24 * n + 64


def test_a_damaged_byte_anywhere_and_every_other_length_are_noticed() -> None:
    encode(TEXT[:50].encode())
    Path("a.txt").unlink()
    content = Path("a.txt.srp").read_bytes()
    flipped = [
        content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        for at in range(len(content))
        for bit in (1, 128)
    ]
    shortened = [content[:length] for length in range(len(content))]
    for damaged in [*flipped, *shortened, content + b"\0", content + b"\0" * 4]:
        Path("a.txt.srp").write_bytes(damaged)
        assert (
            refused("char", "a.txt.srp")
            == "error: a.txt.srp: damaged, or not a file of compress.py\n"
        )


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
        ({"tokens": 0}, "another device"),
        ({"tokens": 2**32 - 1}, "another device"),
    ],
)
def test_a_file_made_elsewhere_is_refused(changes: dict[str, int], says: str) -> None:
    encode(TEXT.encode())
    forge(**changes)
    Path("a.txt").unlink()
    assert says in refused("char", "a.txt.srp")


@pytest.mark.parametrize("option", ["--checkpoint=last", "--dtype=bfloat16"])
def test_another_checkpoint_or_dtype_is_refused_and_the_same_decodes(option: str) -> None:
    encode(TEXT[:200].encode(), "char", option)
    Path("a.txt").unlink()
    said = refused("char", "a.txt.srp")
    assert f"made with another {'checkpoint' if 'last' in option else 'device'}" in said
    assert decode("char", option) == TEXT[:200].encode()


@pytest.mark.parametrize("seed", range(12))
def test_a_strangers_words_give_one_line(seed: int) -> None:
    """Any words, with all checksums right but that of the text."""
    encode(TEXT[:300].encode())
    Path("a.txt").unlink()
    rng = np.random.default_rng(seed)
    no_token = b"\0\xff\xff\xff"  # the last symbol of the coder
    words = [b"", b"\xff" * 40, b"\0" * 40, no_token, rng.bytes(4 * int(rng.integers(1, 99)))][
        min(seed, 4)
    ]
    forge(words=words)
    assert refused("char", "a.txt.srp") == (
        "error: a.txt.srp: the predictions of char/best.safetensors do not give its text back\n"
    )


def test_the_number_of_threads_is_that_of_the_file(run, here: Path) -> None:
    """Also of the real command, in an environment that says otherwise."""
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
    listed, in_file = (int(number.replace(",", "")) for number in found.groups())
    assert in_file == 8 * size
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


def test_runs_with_documents_or_a_mask_are_refused(here: Path) -> None:
    Path("a.txt").write_text("the", encoding="utf-8")
    cfg, tokenizer = here / "char/config.toml", here / "bpe/tokenizer.json"
    cfg.write_text(
        cfg.read_text(encoding="utf-8").replace('mask = ""', 'mask = "a"'), encoding="utf-8"
    )
    tokenizer.write_text(tokenizer.read_text().replace('"eos_text":null', '"eos_text":"\\n"'))
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
    monkeypatch.setattr(
        os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert "No space left" in refused("char", "a.txt", "--overwrite")


def test_it_says_what_it_costs_beside_compressors() -> None:
    done = encode(TEXT.encode())
    for name in ("this model", "gzip", "bzip2", "xz", "zstd"):
        assert re.search(rf"\b{name} \d\.\d{{3}}\b", done.stdout), name
    per_byte = 8 * Path("a.txt.srp").stat().st_size / len(TEXT.encode())
    assert f"this model {per_byte:.3f}, gzip" in done.stdout
    assert re.search(
        r"^The model itself, [\d,]+ parameters, is not counted\.$", done.stdout, re.MULTILINE
    )


def test_a_diverged_model_is_told() -> None:
    model = random_model()
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(UserError, match="not finite"):
        code(make_predictor(model, CPU), np.zeros(1, int), 3, np.zeros(3, int))


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
