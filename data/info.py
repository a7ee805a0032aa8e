"""What is known of a prepared corpus: its sizes, its tokens and its baselines."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from config.errors import DamagedError
from config.files import without_bom
from config.schema import Count
from data.baselines import MAX_TRAIN_TOKENS, MAX_VAL_TOKENS, UNIFORM, Baseline, Name, Nats
from surprisal import nats_to_bits

MAX_BASELINES = 100
MAX_VOCABULARY = 2_000_000  # there are 1,114,112 code points


PROMPT_SHOWN = 500  # characters


def end_of_prompt(prompt: str) -> str:
    """Shortens a corpus's prompt to its end, which is also what a model sees of a long one."""
    if len(prompt) <= PROMPT_SHOWN:
        return prompt
    return f"... {prompt[-PROMPT_SHOWN:]}"


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
    """What meta.json and a run's corpus.json say of a corpus."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Name
    sha256: str  # of the text; empty where the text is unknown
    tokenizer: Name
    vocab_size: int = Field(ge=1, le=MAX_VOCABULARY)
    train: SplitInfo
    val: SplitInfo
    prompt: str  # masked text that the validation split starts with
    baselines: list[Baseline] = Field(max_length=MAX_BASELINES)
    entropy_rate: Nats | None = None  # of the text's source, in nats per token, where it is known
    source_nll: Nats | None = None  # the source's own loss on the validation split, likewise

    @property
    def has_text(self) -> bool:
        """Whether it is known what a run was trained on; that of a converted model is not."""
        return self.sha256 != ""

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
        """Describes the corpus in a line or two, and lists its baselines, the best one last."""
        train = self.train
        val = self.val
        lines = [
            f"{self.name}: {train.tokens:,} training and {val.tokens:,} validation tokens "
            f"({self.tokenizer}, |V| = {self.vocab_size:,})"
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
        if train.tokens > MAX_TRAIN_TOKENS or val.tokens > MAX_VAL_TOKENS + 1:
            lines.append(
                f"  baselines use at most the last {MAX_TRAIN_TOKENS:,} training tokens, and the "
                f"first {MAX_VAL_TOKENS:,} validation tokens"
            )
        lines += ["", "  baseline            nats/token  bits/byte  perplexity"]
        for each in sorted(self.baselines, key=lambda each: -each.nats_per_token):
            lines.append(
                f"  {each.name:<18} {each.nats_per_token:11.4f} {each.bits_per_byte:10.3f} "
                f"{each.perplexity:11.2f}"
            )
        if self.source_nll is not None:
            lines.append("")
            lines.append(
                f"  On this text the source itself has {self.source_nll:.4f}. No model has a lower "
                "expected loss than the entropy rate."
            )
        return "\n".join(lines)


def read_info(path: Path) -> CorpusInfo:
    """Reads what a file says of a corpus; DamagedError if it is not what preparing one writes."""
    try:
        info = CorpusInfo.model_validate_json(without_bom(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path}: damaged: {where} {first['msg'].lower()}") from None
    if info.has_text and UNIFORM not in (each.name for each in info.baselines):
        raise DamagedError(f"{path}: damaged: the baseline {UNIFORM!r} is missing")
    return info
