"""Describes a prepared corpus: its sizes, its tokens and its baselines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from config.errors import DamagedError
from config.files import without_bom
from config.terminal import fit_number, one_line
from config.values import Count
from surprisal import nats_to_bits

UNIFORM = "uniform, log|V|"  # where every untrained model is
ENTROPY_RATE = "entropy rate"  # of the text's source, where it is known: no model has a lower loss
# Groups of baselines.
STANDS_STILL = "stand still while they are measured, as a model does"
LEARNS = "learn while they read"
LEARNS_ON = "have read the training text, and learn on while they read"
COMPRESSORS = ("gzip", "bzip2", "xz", "PPMd")
TRAINED = "trained "  # begins the name of a compressor that has read the training text
WINDOWS = {  # that hold less than a training text
    "trained gzip": "last 32,768 bytes",
    "trained bzip2": "last 900,000 bytes",
}
MAX_NATS = 1e6  # that a file may say of a token; a compressor's header can cost hundreds
EQUAL = 1e-4  # nats that are rounding
MAX_TRAIN_TOKENS = 8_000_000  # counted, or bytes compressed; of a longer text, the last ones
MAX_VAL_TOKENS = 1_000_000  # measured on; of a longer text, the first ones
PASSAGES = 3  # of the validation split, which a run's page shows token by token
PASSAGE = 512  # tokens in each, at most
MAX_BASELINES = 100
MAX_VOCABULARY = 2_000_000  # there are 1,114,112 code points
PROMPT_SHOWN = 500  # characters
PLAYS = ("shakespeare", "tinyshakespeare")
ENGLISH = (  # beside the bits of a character of PLAYS
    "English has about 1.0 to 1.5 bits per character; this is {:.2f}. That estimate is for modern "
    "prose, and for readers who know the world. This model read nothing but old plays."
)


def end_of_prompt(prompt: str) -> str:
    """Shorten a corpus's prompt to its end, which is also what a model sees of a long one."""
    if len(prompt) <= PROMPT_SHOWN:
        return prompt
    return f"... {prompt[-PROMPT_SHOWN:]}"


Name = Annotated[str, AfterValidator(one_line)]  # from a file that somebody may have sent
Nats = Annotated[float, Field(gt=-1e-3, le=MAX_NATS)]  # a certain prediction may round to below 0


class Baseline(BaseModel):
    """A predictor's name, and its loss on the validation split."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Name
    nats_per_token: Nats
    bits_per_byte: Nats
    perplexity: float = Field(ge=0)
    # In nats, of each token of the passages, one after another, where it is known.
    passage_nll: list[Nats] = Field([], max_length=PASSAGES * PASSAGE)

    @property
    def group(self) -> str:
        """Whether it learns while it reads and, if so, whether it has read the training text."""
        if self.name.startswith(TRAINED):
            return LEARNS_ON
        if self.name in COMPRESSORS:
            return LEARNS
        return STANDS_STILL

    @property
    def has_read(self) -> bool:
        """Whether it has read the training text."""
        return self.group == LEARNS_ON or "gram" in self.name

    @property
    def learns(self) -> bool:
        """Whether it learns while it reads; else it stands still."""
        return self.group != STANDS_STILL

    @property
    def label(self) -> str:
        """Its name in a picture."""
        if self.learns:
            return f"{self.name} (learns)"
        return self.name


def group_baselines(baselines: Sequence[Baseline]) -> dict[str, list[Baseline]]:
    """Divide the baselines into groups, each from the worst to the best."""
    groups: dict[str, list[Baseline]] = {}
    for each in sorted(baselines, key=lambda each: (each.learns, -each.nats_per_token)):
        groups.setdefault(each.group, []).append(each)
    return groups


def passed_and_ahead(
    nll: float, baselines: Sequence[Baseline]
) -> tuple[list[Baseline], list[Baseline]]:
    """Divide the baselines into those that a loss has passed, and those ahead.

    Each from the worst to the best. The entropy rate is in neither.
    """
    ordered = [each for each in baselines if each.name != ENTROPY_RATE]
    ordered.sort(key=lambda each: -each.nats_per_token)
    passed = [each for each in ordered if nll < each.nats_per_token - EQUAL]
    return passed, ordered[len(passed) :]


def beside_baselines(nll: float, baselines: Sequence[Baseline]) -> Iterator[str]:
    """Say of each group of baselines which a loss beats, and which are ahead."""
    for group, members in group_baselines(baselines).items():
        passed, ahead = passed_and_ahead(nll, members)
        names = ", ".join(each.name for each in passed) or "none"
        losses = ", ".join(f"{each.name} ({each.nats_per_token:.3f})" for each in ahead) or "none"
        yield f"Of those that {group}, it beats {names}; ahead: {losses}."


def choose_landmarks(baselines: Sequence[Baseline]) -> list[Baseline]:
    """Choose what a picture has a line for: well-known baselines, and the best of both kinds."""
    _, ordered = passed_and_ahead(MAX_NATS, baselines)
    best = {each.learns: each.name for each in ordered}  # the last of a kind
    names = {UNIFORM, "unigram", "bigram", "gzip", ENTROPY_RATE, *best.values()}
    return [each for each in baselines if each.name in names]


class SplitInfo(BaseModel, frozen=True):
    tokens: Count
    documents: Count
    targets: Count

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if max(self.targets, self.documents) > self.tokens:
            raise ValueError("more targets or documents than tokens")
        return self


class CorpusInfo(BaseModel):
    """Describes a corpus, as meta.json and a run's corpus.json do."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Name
    sha256: str  # of the text; empty where the text is unknown
    split: Literal["val", "tuning"] = "val"  # which text `val` is
    tokenizer: Name
    vocab_size: int = Field(ge=1, le=MAX_VOCABULARY)
    train: SplitInfo
    val: SplitInfo
    prompt: str  # masked text that `val` starts with
    baselines: list[Baseline] = Field(max_length=MAX_BASELINES)
    entropy_rate: Nats | None = None  # of the text's source, in nats per token, where it is known
    source_nll: Nats | None = None  # the source's own loss on the validation split, likewise

    @property
    def has_text(self) -> bool:
        """Whether it is known what a run was trained on; that of a converted model is not."""
        return self.sha256 != ""

    @property
    def val_kind(self) -> str:
        """The word for the text that evaluations measure: validation or tuning."""
        if self.split == "val":
            return "validation"
        return self.split

    @property
    def bytes_per_target(self) -> float:
        """Bytes of a validation target, from a baseline in two units.

        Masked tokens may be shorter or longer.
        """
        worst = max(self.baselines, key=lambda each: each.nats_per_token, default=None)
        if worst is None or worst.bits_per_byte == 0:
            return 1.0
        return nats_to_bits(worst.nats_per_token) / worst.bits_per_byte

    def describe(self) -> str:
        """Describe the corpus in a line or two, and list its baselines, the best of a kind last."""
        train = self.train
        val = self.val
        lines = [
            f"{self.name}: {train.tokens:,} training and {val.tokens:,} {self.val_kind} "
            f"tokens ({self.tokenizer}, |V| = {self.vocab_size:,})"
        ]
        if train.documents > 1:
            lines.append(
                f"  in {train.documents:,} and {val.documents:,} documents, each followed by an "
                "eos token"
            )
        if val.targets < val.tokens - 1:
            lines.append(
                f"  of which {train.targets / train.tokens:.1%} and "
                f"{val.targets / val.tokens:.1%} are targets; the others are masked (compressors "
                "cannot be told, so there are none)"
            )
        train_bytes = train.tokens * self.bytes_per_target
        if train_bytes > MAX_TRAIN_TOKENS or val.tokens > MAX_VAL_TOKENS:
            lines.append(
                f"  baselines use at most the last {MAX_TRAIN_TOKENS:,} training tokens, and the "
                f"first {MAX_VAL_TOKENS:,} {self.val_kind} tokens;\n  compressors read at most the "
                f"last {MAX_TRAIN_TOKENS:,} bytes before these"
            )
        lines += ["", f"  {'baseline':<19} nats/token  bits/byte  perplexity  training text"]
        for group, members in group_baselines(self.baselines).items():
            lines.append(f"  These {group}:")
            for each in members:
                shown = fit_number(each.perplexity, 11, ".2f")  # that of a short file is large
                read = "read" if each.has_read else "not read"
                lines.append(
                    f"    {each.name:<16} {each.nats_per_token:11.4f} {each.bits_per_byte:10.3f} "
                    f"{shown:>11}  {WINDOWS.get(each.name, read)}"
                )
        if self.source_nll is not None:
            lines.append("")
            lines.append(
                f"  On this text the source itself has {self.source_nll:.4f}. No model has a lower "
                "expected loss than the entropy rate."
            )
        return "\n".join(lines)


def read_info(path: Path) -> CorpusInfo:
    """Read what a file says of a corpus; DamagedError if it is not what preparing one writes."""
    try:
        info = CorpusInfo.model_validate_json(without_bom(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path}: damaged: {where} {first['msg'].lower()}") from None
    if info.has_text and UNIFORM not in (each.name for each in info.baselines):
        raise DamagedError(f"{path}: damaged: the baseline {UNIFORM!r} is missing")
    return info
