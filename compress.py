"""A text in the bits that its loss says: `python compress.py RUN text.txt` writes text.txt.srp,
which gives it back.

An entropy coder makes about sum -log2 q bits of tokens with probabilities q. Decoding needs the
same q to the last bit. So both directions take the same steps with the same shapes: S streams,
parts of the text, grow side by side. Characters that the run does not know are replaced before, and
listed in the file: data/unknown.py.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import struct
from pathlib import Path
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from pydantic import Field

from config.cli import load_options
from config.errors import DIVERGED, UserError, not_text, run_command
from config.files import check_place, check_regular, write_atomically
from config.schema import Section, Text
from config.terminal import progress_bar
from data.baselines import COMPRESSORS
from data.unknown import Replacer, known_to, unpack_list
from engine.run import Run, open_run
from surprisal import LN2

# CRC-32 of all that follows, and of the text; tokens; bytes of the list; threads, streams, torch's
# version; CRC-32 of the checkpoint, and of a trial of the arithmetic. After it come the coder's
# words, and the list of unknown characters. It is small, because its bits count too.
HEADER = struct.Struct("<4I4B2I")
# tokens in a stream; streams; FLOPs to train on a token of each
MIN_STREAM, MAX_STREAMS, MAX_FLOPS = 1024, 128, 2**32


class CompressOptions(Section):
    """How to compute, and what to replace."""

    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run")
    device: Text = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products")
    overwrite: bool = Field(False, description="replace an existing file that holds something else")


class Arguments(NamedTuple):
    """What a command line asks for."""

    run: Run
    options: CompressOptions
    path: Path  # the file
    out: Path  # the one to write
    content: bytes  # of the file
    tokens: np.ndarray | None  # (N,) of a text; None = the file is a .srp
    unknown: Replacer  # characters of the text that the run does not know


def read_arguments(argv: list[str]) -> Arguments:
    """UserError for a file that cannot be compressed or expanded here."""
    paths, options = load_options(
        CompressOptions, argv, "RUN FILE", 2, "a run's directory; a text, or a .srp file"
    )
    run, path = open_run(Path(paths[0])), Path(paths[1])
    check_regular(path)
    content, tokens, out = path.read_bytes(), None, path.with_suffix("")
    known = known_to([run.tokenizer])
    unknown = Replacer(known or frozenset())
    header = HEADER.unpack(content[: HEADER.size].ljust(HEADER.size))
    checksums = header[:2]
    if path.suffix != ".srp":
        if run.tokenizer.eos is not None or run.cfg.data.mask or len(content) >= 2**32:
            raise UserError(
                f"{path}: 4 GiB or more, or {run.path} has documents or a mask: not all of it is predicted"
            )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise not_text(path, error) from None
        if known is not None:  # else every character is known
            text = unknown.replace(text)
        tokens, out = run.tokenizer.encode(text), Path(f"{path}.srp")
    else:
        num_words = len(content) - HEADER.size - header[3]  # in bytes
        if num_words < 0 or num_words % 4 or crc32(content[4:]) != checksums[0]:
            raise UserError(f"{path}: damaged, or not a file of compress.py")
        try:
            unknown = unpack_list(content[HEADER.size + num_words :], unknown.known)
        except ValueError:
            raise UserError(
                f"{path}: damaged: its list of unknown characters cannot be read"
            ) from None
    if (
        out.exists()
        and not options.overwrite
        and (tokens is not None or crc32(out.read_bytes()) != checksums[1])
    ):
        raise UserError(
            f"{out}: exists, and may hold something else; rename it, or use --overwrite"
        )
    check_place(out)
    return Arguments(run, options, path, out, content, tokens, unknown)


if __name__ == "__main__":
    run_command(read_arguments)  # mistakes are answered here, because importing torch takes seconds

import torch
from constriction import stream

from data.sources import zstd
from engine.checkpoint import load_model
from engine.device import setup_device
from engine.generate import Window

CODER_BITS = 24  # of the coder's frequencies, none of which is 0: no token takes more bits
CATEGORICAL = stream.model.Categorical(perfect=False)


def main(argv: list[str]) -> None:
    run, options, path, out, content, tokens, unknown = read_arguments(argv)
    characters = unknown.pack()
    _, crc, num_tokens, list_size, threads, *theirs = (
        HEADER.unpack_from(content)
        if tokens is None
        else (0, crc32(content), len(tokens), len(characters), min(255, torch.get_num_threads()))
    )
    torch.set_num_threads(max(1, threads))  # the order of sums depends on it
    device = setup_device(options.device, options.dtype)
    model, _ = load_model(run, options.checkpoint, device)
    streams = max(
        1, min(num_tokens // MIN_STREAM, MAX_STREAMS, MAX_FLOPS // model.flops_per_token())
    )
    first, trial = (
        np.full(streams, run.tokenizer.encode_prompt("")[-1]),
        np.arange(3 * streams) % model.vocab_size,
    )
    checkpoint, here = (
        run.path / f"{options.checkpoint}.safetensors",
        f"torch {torch.__version__}, {device}",
    )
    tried = code(Window(model, streams, device), first, len(trial), trial)
    ours = [
        streams,
        *map(int, torch.__version__.split(".")[:2]),
        crc32(checkpoint.read_bytes()),
        crc32(f"{here} {tried[:3]}".encode()),
    ]
    if tokens is None and theirs != ours:
        other = (
            "checkpoint"
            if theirs[3] != ours[3]
            else f"device, dtype or version (torch {theirs[1]}.{theirs[2]})"
        )
        raise UserError(
            f"{path}: made with another {other} than there is here: {checkpoint}, {here}"
        )
    try:
        coded = code(
            Window(model, streams, device),
            first,
            num_tokens,
            tokens,
            content[HEADER.size : len(content) - list_size],
        )
        text = run.tokenizer.decode_bytes(coded.tokens)
        if unknown.characters:
            text = unknown.restore(text.decode()).encode()
        if crc32(text) != crc:
            raise ValueError
    except (AssertionError, IndexError, ValueError):  # the coder's, where the words are impossible
        raise UserError(
            f"{path}: the predictions of {checkpoint} do not give its text back"
        ) from None
    body = HEADER.pack(0, crc, num_tokens, list_size, threads, *ours)[4:] + coded.words + characters
    file = crc32(body).to_bytes(4, "little") + body
    # a private text stays private
    write_atomically(out, text if tokens is None else file, like=path)
    others = COMPRESSORS | {"zstd": lambda content: zstd.compress(content, 19)}
    sizes = {"this model": len(file)} | {
        name: len(compress(text)) for name, compress in others.items()
    }
    print(
        f"{path}: {len(text):,} bytes, {num_tokens:,} tokens in {streams} streams; written: {out}"
    )
    if unknown.characters:
        print(f"{unknown.summary()}; the list gives them back")
    print(describe_bits(coded, 8 * len(file), 8 * list_size))
    if text:
        print(
            "bits per byte:",
            ", ".join(f"{name} {8 * size / len(text):.3f}" for name, size in sizes.items()),
        )
    print(f"The model itself, {model.num_params():,} parameters, is not counted.")


class Coded(NamedTuple):
    """Tokens and the coder's words for them, and what they take."""

    bits: float  # by the loss, the sum of -log2 q
    tokens: np.ndarray  # (N,)
    words: bytes
    unlikely: int  # tokens with q below 2^-24, which the coder raises
    saved: float  # bits above 24 of these tokens


def describe_bits(coded: Coded, in_file: int, in_list: int = 0) -> str:
    """The bits by the loss, those of a list of unknown characters, and those in the file.

    Also what the coder saves on unlikely tokens.

    >>> print(describe_bits(Coded(1000.0, np.zeros(9), b"", 0, 0.0), in_file=1100))
    1,000 bits by the loss, 1,100 bits in the file: 100 more
    >>> print(describe_bits(Coded(1000.0, np.zeros(9), b"", 3, 550.0), in_file=500))
    1,000 bits by the loss, 500 bits in the file: 500 fewer
    The coder raises probabilities below 2^-24, here of 3 tokens, to it: 550 bits fewer than by the loss.
    """
    more = in_file - in_list - coded.bits
    word = "more" if more >= 0 else "fewer"
    listed = f" and {in_list:,} by a list of unknown characters" if in_list else ""
    lines = [
        f"{coded.bits:,.0f} bits by the loss{listed}, {in_file:,} bits in the file: "
        f"{abs(more):,.0f} {word}"
    ]
    if coded.unlikely:
        lines.append(
            f"The coder raises probabilities below 2^-{CODER_BITS}, here of {coded.unlikely:,} tokens, "
            f"to it: {coded.saved:,.0f} bits fewer than by the loss."
        )
    return "\n".join(lines)


@torch.inference_mode()
def code(
    window: Window, new: np.ndarray, num_tokens: int, tokens: np.ndarray | None, words: bytes = b""
) -> Coded:
    """Encode tokens (N,), or decode N from words; streams start after `new` (S,)."""
    # the last stream may be shorter
    queue, length, bits, columns = stream.queue, -(-num_tokens // len(new)), 0.0, []
    unlikely = 0
    saved = 0.0
    coder = (
        queue.RangeEncoder()
        if tokens is not None
        else queue.RangeDecoder(np.frombuffer(words, np.uint32))
    )
    for i in progress_bar(
        range(length), "coding", unit_scale=len(new), unit="token", mininterval=1
    ):
        new, n = new.copy(), -(-(num_tokens - i) // length)  # n streams have a token i
        logits = window.next_logits(torch.from_numpy(new)[:, None].to(window.device.torch_device))
        log_q = logits[:n].cpu().double().log_softmax(dim=1)
        if not log_q.isfinite().all():
            raise UserError(DIVERGED)
        # the coder wants two symbols or more
        q = torch.nn.functional.pad(log_q.exp(), (0, 1)).numpy()
        if tokens is None:
            new[:n] = coder.decode(CATEGORICAL, q)
        else:
            new[:n] = tokens[i::length]
            coder.encode(new[:n].astype(np.int32), CATEGORICAL, q)
        log_q_y = log_q[np.arange(n), new[:n]]
        bits -= float(log_q_y.sum()) / LN2
        excess = -log_q_y / LN2 - CODER_BITS
        unlikely += int((excess > 0).sum())
        saved += float(excess.clamp_min(0).sum())
        columns.append(new)
    if tokens is not None:
        words = coder.get_compressed().tobytes()
    return Coded(bits, np.ravel(columns, "F")[:num_tokens], words, unlikely, saved)


if __name__ == "__main__":
    run_command(main)
