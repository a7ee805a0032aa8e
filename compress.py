"""A text in the bits that its loss says: `python compress.py RUN text.txt` writes text.txt.srp.

An entropy coder makes about sum -log2 q bits of tokens with probabilities q. Decoding needs the
same q to the last bit. So both directions take the same steps with the same shapes: S streams,
parts of the text, grow side by side. Characters that the run does not know are replaced before, and
listed in the file: data/unknown.py.

With `--learn` a copy of the model learns from what it has read, as `evaluate.py RUN --dynamic`
does. Both directions take the same steps on the same tokens, and the file has a checksum of the
weights now and then: a machine where the steps differ gives one line instead of another text.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from zlib import crc32

import numpy as np
from constriction import stream
from pydantic import Field

from config.errors import DIVERGED, UserError, not_text, run_command, slow_imports
from config.files import check_place, check_regular, write_atomically
from config.parser import load_options
from config.size import count_flops
from config.terminal import progress_bar
from config.values import Section, Text
from data.baselines import find_compressors
from data.sources import zstd
from data.unknown import Replacer, known_to, unpack_list
from engine.run import Run, open_run
from surprisal import LN2

if TYPE_CHECKING:  # importing torch takes seconds
    from torch import Tensor

    from engine.device import Device
    from model import GPT

SUFFIX = ".srp"
MAX_BYTES = 2**32  # of a text
# A stream has at least MIN_STREAM tokens. There are at most MAX_STREAMS, and fewer with a large
# model, of which each takes much memory.
MIN_STREAM = 1024
MAX_STREAMS = 128
MAX_FLOPS = 2**32  # to train on a token of each stream
LEARNING_STREAMS = 4  # at most: the fewer, the sooner each learns from the text before it
CHECK_STEPS = 256  # a file has a checksum of the weights after the first step, and after so many
LEARNING_DIVERGED = (
    "learn: the model diverged while it learned this text; without --learn it stands still, and "
    "can compress it"
)
CODER_BITS = 24  # of the coder's frequencies, none of which is 0: no token takes more bits
CATEGORICAL = stream.model.Categorical(perfect=False)

# A file is a header, the coder's words, and the list of unknown characters. The header is small,
# because its bits count too.
HEADER = struct.Struct("<4I5B2I")


class Header(NamedTuple):
    """Says what a compressed file holds, before the coder's words."""

    file_crc: int  # CRC-32 of all that follows
    text_crc: int  # CRC-32 of the text
    num_tokens: int
    list_bytes: int  # of unknown characters
    # what has to be the same here and there:
    threads: int
    streams: int
    torch_major: int
    torch_minor: int
    interval: int  # tokens of a stream between two steps; 0 = the model stands still
    checkpoint_crc: int  # CRC-32 of the checkpoint
    trial_crc: int  # CRC-32 of a trial of the arithmetic


class CompressOptions(Section):
    """How to compute, and what to replace."""

    learn: bool = Field(
        False,
        description="a copy of the model learns while it reads: a text takes fewer bits, and more "
        "time; a .srp file says itself whether its model learned",
    )
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the run")
    device: Text = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products")
    overwrite: bool = Field(False, description="replace an existing file that holds something else")


class Job(NamedTuple):
    """A text to compress, or a file to expand."""

    run: Run
    options: CompressOptions
    path: Path  # the text or the file
    content: bytes  # of it
    replacer: Replacer  # has the list of unknown characters
    text_crc: int
    num_tokens: int
    tokens: np.ndarray | None = None  # (N,) of a text
    header: Header | None = None  # of a file

    @property
    def learns(self) -> bool:
        """Whether the model learns while it reads."""
        return self.options.learn or (self.header is not None and self.header.interval > 0)

    @property
    def out(self) -> Path:
        """The file that is written."""
        return Path(f"{self.path}{SUFFIX}") if self.header is None else self.path.with_suffix("")


class Coded(NamedTuple):
    """Tokens and the coder's words for them, and what they take."""

    bits: float  # by the loss, the sum of -log2 q
    tokens: np.ndarray  # (N,)
    words: bytes
    unlikely: int  # tokens with q below 2^-24, which the coder raises
    saved: float  # bits above 24 of these tokens


# From the last token of each stream (S,), and the number n of streams that go on, to log q (n, V)
# and the coder's q of their next tokens.
Predictor = Callable[[np.ndarray, int], "tuple[Tensor, np.ndarray]"]


def main(argv: list[str]) -> None:
    job = read_arguments(argv)
    run = job.run
    options = job.options
    with slow_imports():
        import torch

        from engine.checkpoint import for_prediction, read_model
        from engine.device import setup_device
        from engine.dynamic import Rates, default_stride

    threads = min(255, torch.get_num_threads())
    if job.header is not None:
        threads = job.header.threads
    torch.set_num_threads(max(1, threads))  # the order of sums depends on it
    device = setup_device(options.device, options.dtype)
    model, _ = read_model(run, options.checkpoint)
    model.eval().to(device.torch_device)
    flops_per_token = count_flops(model.cfg, model.vocab_size)
    streams = count_streams(job.num_tokens, flops_per_token)
    interval = 0
    if job.learns:
        streams = min(streams, LEARNING_STREAMS)
        interval = max(1, default_stride(model.cfg.block_size) // streams)
    else:
        model = for_prediction(model, device)
    first = np.full(streams, run.tokenizer.encode_prompt("")[-1])

    # what has to be the same here and there
    trial = np.arange(3 * streams) % model.vocab_size
    tried = code(make_predictor(model, device), first, len(trial), trial)
    checkpoint = run.path / f"{options.checkpoint}.safetensors"
    here = f"torch {torch.__version__}, {device}"
    arithmetic = f"{here} {tried[:3]}"
    if job.learns:
        arithmetic += f" {Rates()}"
    trial_crc = crc32(arithmetic.encode())
    checkpoint_crc = crc32(checkpoint.read_bytes())
    major, minor = map(int, torch.__version__.split(".")[:2])
    unknown = job.replacer.pack()
    header = Header(
        file_crc=0,  # it is computed last
        text_crc=job.text_crc,
        num_tokens=job.num_tokens,
        list_bytes=len(unknown),
        threads=threads,
        streams=streams,
        torch_major=major,
        torch_minor=minor,
        interval=interval,
        checkpoint_crc=checkpoint_crc,
        trial_crc=trial_crc,
    )
    checks = None
    words = b""
    if job.header is not None:
        check_same(job.path, job.header, header, f"{checkpoint}, {here}")
        header = job.header
        words = job.content[HEADER.size : len(job.content) - header.list_bytes]
        checks, words = split_checks(words, header)

    # the text, from tokens or from words
    predict = make_predictor(model, device)
    if job.learns:
        learning = LearningPredictor(model, device, interval, checks)
        predict = learning.predict
    try:
        coded = code(predict, first, job.num_tokens, job.tokens, words)
        text = restore(job, coded.tokens)
    except OtherWeightsError as error:
        raise UserError(f"{job.path}: {error}") from None
    except (AssertionError, IndexError, ValueError):  # the coder's, where the words are impossible
        raise UserError(
            f"{job.path}: the predictions of {checkpoint} do not give its text back"
        ) from None

    # what is written; a private text stays private
    if job.header is None:
        body = HEADER.pack(*header)[4:]
        if job.learns:
            body += np.array(learning.checks, "<u4").tobytes()
        body += coded.words + unknown
        file = crc32(body).to_bytes(4, "little") + body
        write_atomically(job.out, file, like=job.path)
    else:
        file = job.content
        write_atomically(job.out, text, like=job.path)

    print(
        f"{job.path}: {len(text):,} bytes, {job.num_tokens:,} tokens in {streams} streams; "
        f"written: {job.out}"
    )
    if job.learns:
        print(
            f"The model learned in {learning.steps:,} steps, each on {interval * streams} tokens."
        )
    if job.replacer.characters:
        print(f"{job.replacer.summary()}; the list gives them back")
    print(describe_bits(coded, 8 * len(file), 8 * header.list_bytes))
    if text:
        print(compare_sizes(text, len(file)))
    print(f"The model itself, {model.num_params():,} parameters, is not counted.")


def read_arguments(argv: list[str]) -> Job:
    """Read what to do. UserError for a file that cannot be compressed or expanded here."""
    paths, options = load_options(
        CompressOptions, argv, "RUN FILE", 2, "a run's directory; a text, or a .srp file"
    )
    run = open_run(Path(paths[0]))
    path = Path(paths[1])
    check_regular(path)
    content = path.read_bytes()
    if path.suffix == SUFFIX:
        job = read_compressed(run, options, path, content)
    else:
        job = read_plain(run, options, path, content)
    if job.out.exists() and not options.overwrite and not holds_the_same(job):
        raise UserError(
            f"{job.out}: exists, and may hold something else; rename it, or use --overwrite"
        )
    check_place(job.out)
    return job


def holds_the_same(job: Job) -> bool:
    """Return whether the text that a file would be expanded to is there already."""
    return job.header is not None and crc32(job.out.read_bytes()) == job.text_crc


def read_plain(run: Run, options: CompressOptions, path: Path, content: bytes) -> Job:
    """Read a text to compress, in tokens of the run."""
    is_all_predicted = run.tokenizer.eos is None and not run.cfg.data.mask
    if not is_all_predicted or len(content) >= MAX_BYTES:
        raise UserError(
            f"{path}: 4 GiB or more, or {run.path} has documents or a mask: not all of it is "
            "predicted"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise not_text(path, error) from None
    known = known_to([run.tokenizer])
    replacer = Replacer(known or frozenset())
    if known is not None:  # else every character is known
        text = replacer.replace(text)
    tokens = run.tokenizer.encode(text)
    return Job(run, options, path, content, replacer, crc32(content), len(tokens), tokens)


def read_compressed(run: Run, options: CompressOptions, path: Path, content: bytes) -> Job:
    """Read a file to expand."""
    start = content[: HEADER.size].ljust(HEADER.size)
    header = Header._make(HEADER.unpack(start))
    list_start = len(content) - header.list_bytes
    word_bytes = list_start - HEADER.size - 4 * count_checks(header)
    if word_bytes < 0 or word_bytes % 4 != 0 or crc32(content[4:]) != header.file_crc:
        raise UserError(f"{path}: damaged, or not a file of compress.py")
    if options.learn and header.interval == 0:
        raise UserError(f"learn: {path} was made by a model that stands still; leave --learn out")
    try:
        known = known_to([run.tokenizer]) or frozenset()
        replacer = unpack_list(content[list_start:], known)
    except ValueError:
        raise UserError(f"{path}: damaged: its list of unknown characters cannot be read") from None
    return Job(
        run, options, path, content, replacer, header.text_crc, header.num_tokens, header=header
    )


def check_same(path: Path, there: Header, here: Header, description: str) -> None:
    """Raise a UserError if a file was made with another checkpoint, or sums are other sums here."""
    if there[4:] == here[4:]:
        return
    other = f"device, dtype or version (torch {there.torch_major}.{there.torch_minor})"
    if there.checkpoint_crc != here.checkpoint_crc:
        other = "checkpoint"
    raise UserError(f"{path}: made with another {other} than there is here: {description}")


def count_streams(num_tokens: int, flops_per_token: int) -> int:
    """Count the streams into which a text is cut."""
    streams = min(num_tokens // MIN_STREAM, MAX_STREAMS, MAX_FLOPS // flops_per_token)
    return max(1, streams)


def count_checks(header: Header) -> int:
    """Count the checksums of weights in a file."""
    if header.interval == 0 or header.num_tokens == 0:
        return 0
    length = math.ceil(header.num_tokens / max(1, header.streams))
    steps = (length - 1) // header.interval  # after the last tokens there is none
    return min(1, steps) + steps // CHECK_STEPS


def split_checks(content: bytes, header: Header) -> tuple[list[int], bytes]:
    """Split what follows the header into checksums of weights and the coder's words."""
    end = 4 * count_checks(header)
    return np.frombuffer(content[:end], "<u4").tolist(), content[end:]


def restore(job: Job, tokens: np.ndarray) -> bytes:
    """Give back the text of tokens; ValueError if it is not the one that was compressed."""
    text = job.run.tokenizer.decode_bytes(tokens)
    if job.replacer.characters:
        text = job.replacer.restore(text.decode()).encode()
    if crc32(text) != job.text_crc:
        raise ValueError("it is another text")
    return text


def make_predictor(model: "GPT", device: "Device", diverged: str = DIVERGED) -> Predictor:
    """Make a function that predicts the next tokens of streams, and remembers those before.

    At first it may be given several tokens of each stream, (S, T). UserError, which says
    `diverged`, if a prediction is not finite.
    """
    import torch

    from engine.generate import Window

    window = Window(model, device)

    @torch.inference_mode()
    def predict(new: np.ndarray, n: int) -> "tuple[Tensor, np.ndarray]":
        tokens = torch.from_numpy(new.reshape(len(new), -1)).to(device.torch_device)
        logits = window.prefill(tokens) if window.cache is None else window.decode(tokens)
        log_q = logits[:n].cpu().double().log_softmax(dim=1)
        if not log_q.isfinite().all():
            raise UserError(diverged)
        # the coder wants two symbols or more
        q = torch.nn.functional.pad(log_q.exp(), (0, 1))
        return log_q, q.numpy()

    return predict


class OtherWeightsError(ValueError):
    """Says that steps give other weights here than where a file was made."""


class LearningPredictor:
    """Predicts the next tokens of streams, and learns from those before, as engine/dynamic.py does.

    There is a step after each `interval` tokens of the streams, and a checksum of the weights now
    and then. It is one of `expected`, or OtherWeightsError is raised; None = nothing is expected.
    """

    def __init__(
        self, model: "GPT", device: "Device", interval: int, expected: list[int] | None = None
    ) -> None:
        from engine.dynamic import Learner, Rates, default_context, default_stride

        self.learner = Learner(model, Rates(), device)
        self.device = device
        self.interval = interval
        block_size = model.cfg.block_size
        # tokens before those to learn, as many as in one stream
        self.context = default_context(block_size, default_stride(block_size))
        self.expected = expected
        self.checks: list[int] = []
        self.steps = 0
        self.inputs: list[np.ndarray] = []  # (S,) each: the context, and what was read after it
        self.going_on: list[int] = []  # streams with a target after each input that is no context
        self.predict_in_window = make_predictor(model, device)

    def predict(self, new: np.ndarray, n: int) -> "tuple[Tensor, np.ndarray]":
        """Predict the next tokens of the first n streams, after the last ones (S,) of all."""
        if len(self.going_on) == self.interval:
            self.learn(new)
            # with these weights the context is read anew
            start = max(0, len(self.inputs) - self.context)
            self.inputs = self.inputs[start:]
            self.going_on = []
            model = self.learner.model
            self.predict_in_window = make_predictor(model, self.device, LEARNING_DIVERGED)
            window = np.stack([*self.inputs, new], axis=1)
        else:
            window = new
        self.inputs.append(new)
        self.going_on.append(n)
        return self.predict_in_window(window, n)

    def learn(self, new: np.ndarray) -> None:
        """Take a step on the last `interval` tokens of each stream, of which the last are `new`."""
        from data.batches import IGNORE_INDEX
        from engine.dynamic import LearningDivergedError

        inputs = np.stack(self.inputs, axis=1)  # (S, T)
        targets = np.stack([*self.inputs[1:], new], axis=1)
        start = len(self.inputs) - self.interval
        targets[:, :start] = IGNORE_INDEX
        for place, n in enumerate(self.going_on, start):
            targets[n:, place] = IGNORE_INDEX
        on_device = self.device.to_device(inputs, targets)
        try:
            self.learner.learn(self.learner.predict(*on_device))
        except LearningDivergedError:
            raise UserError(LEARNING_DIVERGED) from None
        self.steps += 1
        if self.steps == 1 or self.steps % CHECK_STEPS == 0:
            self.check()

    def check(self) -> None:
        """Compute a checksum of the weights, and compare it with the expected one."""
        crc = 0
        for p in self.learner.model.parameters():
            crc = crc32(p.detach().cpu().numpy().data, crc)
        place = len(self.checks)
        self.checks.append(crc)
        if self.expected is not None and self.expected[place] != crc:
            raise OtherWeightsError(
                f"step {self.steps} gives other weights here than where it was made; expand it on "
                "a machine of the same kind"
            )


def code(
    predict: Predictor,
    first: np.ndarray,
    num_tokens: int,
    tokens: np.ndarray | None,
    words: bytes = b"",
) -> Coded:
    """Encode tokens (N,), or decode N of them from words; streams start after `first` (S,)."""
    coder = stream.queue.RangeEncoder()
    if tokens is None:
        coder = stream.queue.RangeDecoder(np.frombuffer(words, np.uint32))
    length = math.ceil(num_tokens / len(first))  # of a stream; the last may be shorter
    steps = progress_bar(
        range(length), "coding", unit_scale=len(first), unit="token", mininterval=1
    )
    new = first
    columns = []
    bits = 0.0
    unlikely = 0
    saved = 0.0
    for i in steps:
        n = math.ceil((num_tokens - i) / length)  # streams that have a token i
        log_q, q = predict(new, n)
        new = new.copy()
        if tokens is None:
            new[:n] = coder.decode(CATEGORICAL, q)
        else:
            new[:n] = tokens[i::length]
            coder.encode(new[:n].astype(np.int32), CATEGORICAL, q)
        columns.append(new)

        # what these tokens take
        log_q_y = log_q[np.arange(n), new[:n]]
        bits -= float(log_q_y.sum()) / LN2
        excess = -log_q_y / LN2 - CODER_BITS
        unlikely += int((excess > 0).sum())
        saved += float(excess.clamp_min(0).sum())
    if tokens is not None:
        words = coder.get_compressed().tobytes()
    return Coded(bits, np.ravel(columns, "F")[:num_tokens], words, unlikely, saved)


def describe_bits(coded: Coded, in_file: int, in_list: int = 0) -> str:
    """Compare the bits by the loss, and those of a list of unknown characters, with the file's.

    Also says what the coder saves on unlikely tokens.

    >>> print(describe_bits(Coded(1000.0, np.zeros(9), b"", 0, 0.0), in_file=1100))
    1,000 bits by the loss, 1,100 bits in the file: 100 more
    >>> lines = describe_bits(Coded(1000.0, np.zeros(9), b"", 3, 550.0), in_file=500)
    >>> print(lines.replace(", to it:", ",\\nto it:"))
    1,000 bits by the loss, 500 bits in the file: 500 fewer
    The coder raises probabilities below 2^-24, here of 3 tokens,
    to it: 550 bits fewer than by the loss.
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
            f"The coder raises probabilities below 2^-{CODER_BITS}, here of {coded.unlikely:,} "
            f"tokens, to it: {coded.saved:,.0f} bits fewer than by the loss."
        )
    return "\n".join(lines)


def compare_sizes(text: bytes, file_bytes: int) -> str:
    """Say what a file takes beside those of compressors."""
    sizes = {"this model": file_bytes}
    for name, compress in find_compressors().items():
        sizes[name] = len(compress(text))
    sizes["zstd"] = len(zstd.compress(text, 19))
    shown = [f"{name} {8 * size / len(text):.3f}" for name, size in sizes.items()]
    return f"bits per byte: {', '.join(shown)}"


if __name__ == "__main__":
    run_command(main)
