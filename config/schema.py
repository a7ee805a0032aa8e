"""Every option on one page: its name, type, range, default and meaning.

`python train.py` without a recipe trains with these defaults. Names are unique across the sections,
so the command line needs only the name: --label_smoothing=0.1. config/values.py has the kinds of
values with their ranges, config/checks.py what does not go together.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field
from pydantic_core import from_json

from config.files import without_bom
from config.values import (
    CORPORA,
    WATCHERS,
    Corpus,
    Count,
    FileName,
    Fraction,
    Positive,
    Rate,
    Section,
    Size,
    Text,
    Watchers,
    parse_markov,
)


class DataConfig(Section):
    """[data] Which text, and what its tokens are."""

    corpus: Corpus = Field(
        "shakespeare",
        description=f"{', '.join(CORPORA)}, or markov-ORDER-ALPHABET-TEMPERATURE; a folder or a "
        "pattern of files; hf:DATASET; or a UTF-8 file: plain text, or if its name ends in .jsonl, "
        "records with texts, or with prompts and completions",
    )
    tokenizer: FileName = Field(
        "char",
        min_length=1,
        description="what a token is: char, bpe, gpt2, or the directory of a run whose tokens are "
        "used",
    )
    vocab_size: int = Field(
        1024, ge=257, le=1_000_000, description="tokens that bpe learns from the training split"
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the text that is the validation split: its end; in many files, one "
        "document in every 1 / val_fraction",
    )
    split: Literal["val", "tuning"] = Field(
        "val",
        description="the text that evaluations measure: val; or tuning, the last tenth of the "
        "training text, to choose options on, without reading validation text",
    )
    documents: Literal["none", "lines", "paragraphs"] = Field(
        "none", description="each line, or each paragraph, is a document; eos tokens separate them"
    )
    padded: bool = Field(
        False, description="each document is a sequence of its own, padded to block_size"
    )
    predict_eos: bool = Field(True, description="eos tokens are targets; false = they are masked")
    mask: Text = Field(
        "", description="regular expression; what it matches is masked (^ and $ match at each line)"
    )

    @property
    def markov(self) -> tuple[int, int, float] | None:
        """The order, the alphabet and the temperature of a markov corpus."""
        return parse_markov(self.corpus)

    @property
    def is_large(self) -> bool:
        """Whether large/prepare.py prepares it: many or compressed files, or records of texts."""
        path = Path(self.corpus)
        name = self.corpus.lower()
        if self.corpus in ("", *CORPORA) or self.markov:
            return False
        if name.startswith("hf:") or name.endswith((".gz", ".zst", ".parquet")):
            return True
        if path.is_dir():
            return True
        if path.is_file():
            return name.endswith(".jsonl") and _holds_texts(path)
        return any(sign in self.corpus for sign in "*?[")

    @property
    def corpus_name(self) -> str:
        """The last part of its path. For the corpus `.` it is the current folder's name."""
        if self.corpus.startswith("hf:"):
            return Path(self.corpus.partition("@")[0]).name
        return Path(os.path.abspath(self.corpus)).name

    @property
    def is_jsonl(self) -> bool:
        """Whether it is records {"prompt": ..., "completion": ...}; completions are targets."""
        if self.corpus == "dialogue":
            return True
        return self.corpus.lower().endswith(".jsonl") and not self.is_large

    @property
    def eos_text(self) -> str | None:
        """The text between documents, which the eos token replaces; None without documents."""
        if self.documents == "paragraphs":
            return "\n\n"
        if self.documents == "lines" or self.is_jsonl or self.is_large:
            return "\n"
        return None


# Defaults that depend on the form. Pydantic passes the options that are declared above them.


def _is_nanochat(options: dict[str, Any]) -> bool:
    return bool(options["form"] == "nanochat")


def _is_gpt2(options: dict[str, Any]) -> bool:
    return not _is_nanochat(options)


class ModelConfig(Section):
    """[model] A GPT. The form decides the defaults of the norms, smear and tied."""

    form: Literal["nanochat", "gpt2", "nanogpt"] = Field(
        "nanochat",
        description="nanochat has rotary positions, RMSNorm and ReLU^2, and begins with equal "
        "logits; gpt2 has learned positions, LayerNorm, GELU and biases; nanogpt is gpt2 without "
        "biases",
    )
    block_size: Size = Field(256, description="context length in tokens")
    n_layer: Size = Field(3, description="transformer blocks")
    n_head: Size = Field(2, description="attention heads per block")
    n_embd: Size = Field(96, description="width of the residual stream")
    dropout: Fraction = Field(0.0, description="probability of dropping an activation in training")
    qk_norm: bool = Field(default_factory=_is_nanochat, description="RMSNorm of queries and keys")
    embedding_norm: bool = Field(
        default_factory=_is_nanochat, description="RMSNorm after the embeddings"
    )
    smear: bool = Field(
        default_factory=_is_nanochat,
        description="add to each embedding a share of the one before it, learned for each feature",
    )
    tied: bool = Field(
        default_factory=_is_gpt2, description="lm_head shares the weights of the token embedding"
    )
    softcap: Rate = Field(
        0.0, description="logits z become softcap tanh(z / softcap); 0 = unchanged"
    )
    document_attention: bool = Field(False, description="tokens attend to their own document only")

    @property
    def is_gpt2(self) -> bool:
        """GPT-2's form, with biases or without."""
        return self.form != "nanochat"

    @property
    def has_bias(self) -> bool:
        """Biases in linear layers and LayerNorms."""
        return self.form == "gpt2"


class TablesConfig(Section):
    """[tables] Embeddings of the last 2, 3, ... tokens, added to those of the tokens."""

    max_ngram: int = Field(
        0, ge=0, le=16, description="the longest n-gram: a table for each n from 2 on; 0 = none"
    )
    table_rows: int = Field(
        131_072, ge=2, le=1_000_000, description="rows of each table; n-grams are hashed to them"
    )
    table_dropout: Fraction = Field(
        0.0, description="probability of leaving out a table's embedding in training"
    )
    table_learning_rate: Rate = Field(0.03, description="peak learning rate of the rows")

    @property
    def are_used(self) -> bool:
        return self.max_ngram > 1


class LossConfig(Section):
    """[loss] What is optimised. Perplexity always comes from the plain cross-entropy."""

    label_smoothing: Fraction = Field(
        0.0, description="share of the target spread evenly over the vocabulary"
    )
    z_loss: Rate = Field(
        0.0, description="weight of (log sum exp of the logits) squared, which keeps them small"
    )
    teacher: FileName = Field(
        "",
        description="a run whose predictions are learned too (distillation), or several with "
        "commas between: then the mean of their probabilities is learned; empty = none",
    )
    alpha: float = Field(0.5, ge=0, le=1, description="the teacher's share of the objective")
    temperature: float = Field(
        1.0, gt=0, le=100, description="softens the teacher's and the model's predictions"
    )

    @property
    def teachers(self) -> list[str]:
        """The runs that `teacher` names; a comma in front of an option is part of a run's name.

        >>> LossConfig(teacher="out/plain,n_layer=2,seed=1,out/other").teachers
        ['out/plain,n_layer=2,seed=1', 'out/other']
        """
        if os.path.isdir(self.teacher):
            return [self.teacher]
        names = re.findall(r"[^, ][^,]*(?:,\w+=[^,]*)*", self.teacher)
        return list(map(os.path.expanduser, names))


class OptimConfig(Section):
    """[optim] How the objective is minimised."""

    batch_size: Size = Field(8, description="sequences in one step")
    max_iters: Positive = Field(800, description="steps")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="for the blocks' matrices; AdamW takes the rest"
    )
    learning_rate: Rate = Field(0.01, description="AdamW's peak learning rate")
    muon_learning_rate: Rate = Field(0.03, description="Muon's peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "linear", description="decay of the learning rates"
    )
    warmup_iters: Count = Field(0, description="steps of linear warmup")
    decay_fraction: float = Field(
        1.0, ge=0, le=1, description="the last part of the steps, in which the rates decay"
    )
    min_lr_ratio: float = Field(
        0.0, ge=0, le=1, description="the rates at the end, as a share of the peak"
    )
    weight_decay: Rate = Field(0.0, description="decoupled weight decay of matrices and embeddings")
    beta1: Fraction = Field(0.8, description="AdamW's first-moment decay")
    beta2: Fraction = Field(0.95, description="AdamW's second-moment decay")
    momentum: Fraction = Field(0.9, description="Muon's momentum")
    grad_clip: Rate = Field(1.0, description="largest norm of the gradient; 0 = unlimited")


class RunConfig(Section):
    """[run] Where, on what, and how often."""

    out_dir: FileName = Field(
        "", description="the run's directory; empty = out/RECIPE, with the options that differ"
    )
    init_from: FileName = Field(
        "scratch",
        min_length=1,
        description="scratch; resume = continue the run in out_dir; auto = resume if it has a "
        "run, else what the recipe's init_from says; or the directory of a run, to start with its "
        "model",
    )
    seed: int = Field(1337, ge=0, lt=2**32, description="of weights, batches and dropout")
    device: Text = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of matrix products; auto = the fastest"
    )
    compile: bool = Field(
        False, description="torch.compile the model: starts slowly, then runs faster"
    )
    micro_batch_size: Count = Field(
        0,
        description="sequences in one forward pass; 0 = on a GPU, all of a rank's share; on a CPU, "
        "the batch is halved once, and again as long as each part has 1,024 tokens or more",
    )
    eval_interval: Positive = Field(
        40, description="steps between evaluations; the first are at 0, 1, 2, 4, 8, ..."
    )
    eval_tokens: Count = Field(
        8192, description="validation targets per evaluation, evenly spread; 0 = all"
    )
    log_interval: Positive = Field(10, description="steps between lines of metrics.jsonl")
    checkpoint_interval: Positive = Field(100, description="steps between checkpoints")
    watchers: Watchers = Field(
        "page",
        description=f"show the run as it trains: {', '.join(WATCHERS)}, or several with commas "
        "between; empty = none",
    )
    max_nonfinite_steps: Positive = Field(
        10, description="stop after so many nonfinite losses or gradients in a row"
    )
    patience: Count = Field(
        5,
        description="stop when so many evaluations in a row, at least 20 steps apart, show "
        "overfitting: the validation loss rose while the training loss fell; 0 = never",
    )

    @property
    def watcher_names(self) -> list[str]:
        return [name for name in self.watchers.split(",") if name]

    @property
    def resumes(self) -> bool:
        """Whether it continues the run in out_dir, if there is one."""
        return self.init_from in ("resume", "auto")

    @property
    def source(self) -> str:
        """The run to start from; empty = none.

        For a new run, config/cli.py has replaced `auto` by what the recipe says.
        """
        if self.resumes or self.init_from == "scratch":
            return ""
        return self.init_from


class Config(Section):
    """All options of a run, by section."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tables: TablesConfig = TablesConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def options(self) -> dict[str, Any]:
        """Return the value of every option by its name."""
        values: dict[str, Any] = {}
        for section in self.model_dump().values():
            values |= section
        return values

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, which depend on the form.

        Not out_dir, which changes nothing that is learned, nor init_from and dtype, which training
        prints on their own lines.
        """
        defaults = Config(model=ModelConfig(form=self.model.form)).options()
        defaults["form"] = "nanochat"  # another form is a change itself
        values = self.options()
        for name in ("out_dir", "init_from", "dtype"):
            del values[name]
        return {name: value for name, value in values.items() if value != defaults[name]}

    def with_run(self, **changes: Any) -> Self:
        """Return a copy with other values in [run]."""
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})


def _holds_texts(path: Path) -> bool:
    """Return whether a .jsonl file's first record has a `text`, and no prompt or completion."""
    try:
        with path.open("rb") as lines:
            first = next(filter(bytes.strip, lines))
            record = from_json(without_bom(first))
    except (OSError, StopIteration, ValueError):
        return False
    if not isinstance(record, dict):
        return False
    return "text" in record and not record.keys() & {"prompt", "completion"}
