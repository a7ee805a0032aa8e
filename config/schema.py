"""Every option on one page: its name, type, range, default and meaning.

`python train.py` without a recipe trains with these defaults. Names are unique across the sections,
so the command line needs only the name: --label_smoothing=0.1. Where a 0 disables an option, its
description says so.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError, from_json

from config.errors import WORLD_SIZE, did_you_mean
from config.files import is_run, nearest_run, without_bom

# by their names
CORPORA = ("shakespeare", "tinyshakespeare", "words", "dialogue", "two_gentlemen", "markov")
WATCHERS = ("page", "tensorboard", "wandb", "trackio", "mlflow")
TOKENIZERS = ("char", "bpe", "gpt2")
UnknownCharacters = Literal["refuse", "replace"]
OVERFITTING_RISE = 0.01  # nats: a smaller change of a loss may be noise

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1e38)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no file name and no TOML file may have a NUL
# ~ is the user's home, as in a shell
FileName = Annotated[Text, AfterValidator(os.path.expanduser)]


def _holds_texts(path: Path) -> bool:
    """Whether the first record of a .jsonl file has a `text`, and neither a prompt nor a
    completion.
    """
    try:
        with path.open("rb") as lines:
            record = from_json(without_bom(next(filter(bytes.strip, lines))))
    except (OSError, StopIteration, ValueError):
        return False
    return (
        isinstance(record, dict)
        and "text" in record
        and not record.keys() & {"prompt", "completion"}
    )


def parse_markov(corpus: str) -> tuple[int, int, float] | None:
    """The order, the alphabet and the temperature that a corpus's name has; None for other corpora.

    >>> parse_markov("markov"), parse_markov("markov-1-5-2")
    ((2, 27, 0.5), (1, 5, 2.0))
    """
    if corpus == "markov":
        return 2, 27, 0.5
    found = re.fullmatch(r"markov-(\d{1,9})-(\d{1,9})-(\d{1,9}\.?\d{0,9})", corpus)
    if found is None:
        return None
    return int(found[1]), int(found[2]), float(found[3])


def _check_markov(corpus: str) -> str:
    order, alphabet, temperature = parse_markov(corpus) or (2, 27, 0.5)
    if not 1 <= order <= 3 or not 2 <= alphabet <= 63 or not 0.01 <= temperature <= 100:
        raise PydanticCustomError(
            "markov",
            "a corpus markov-ORDER-ALPHABET-TEMPERATURE has an order of 1 to 3, an alphabet of 2 "
            "to 63 and a temperature of 0.01 to 100",
        )
    return corpus


def _check_page(name: str) -> str:
    if name and (Path(name).suffix != ".html" or Path(name).is_dir()):
        raise PydanticCustomError("page", "the name of a page ends in .html, as in page.html")
    return name


def _check_watchers(names: str) -> str:
    for name in names.split(","):
        if name not in ("", *WATCHERS):
            raise PydanticCustomError("watchers", f"should be one of {', '.join(WATCHERS)}")
    return names


# so that no page replaces a text or a checkpoint
Page = Annotated[FileName, AfterValidator(_check_page)]


class Section(BaseModel):
    """A group of options: typed, frozen, and closed to unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """[data] Which text, and what its tokens are."""

    corpus: Annotated[FileName, AfterValidator(_check_markov)] = Field(
        "shakespeare",
        description=f"{', '.join(CORPORA)}; a folder or a pattern of "
        "files; or a UTF-8 file: .jsonl with texts, or with prompts and completions; else text",
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
        description="the last part of the text is the "
        "validation split; in many files, every tenth document for 0.1",
    )
    documents: Literal["none", "lines", "paragraphs"] = Field(
        "none", description="what makes a document; eos tokens separate documents"
    )
    padded: bool = Field(
        False, description="each document is a sequence of its own, padded to block_size"
    )
    predict_eos: bool = Field(True, description="the eos token is a target too; else it is masked")
    mask: Text = Field(
        "", description="regular expression; what it matches is masked (^ and $ match at line ends)"
    )

    @property
    def markov(self) -> tuple[int, int, float] | None:
        """The order, the alphabet and the temperature of a markov corpus."""
        return parse_markov(self.corpus)

    @property
    def is_large(self) -> bool:
        """A corpus of many or compressed files, or of records with a `text`, read as a stream:
        data/sources.py.
        """
        path, name = Path(self.corpus), self.corpus.lower()
        if self.corpus in ("", *CORPORA) or self.markov:
            return False
        if name.startswith("hf:") or name.endswith((".gz", ".zst", ".parquet")) or path.is_dir():
            return True
        if path.is_file():
            return name.endswith(".jsonl") and _holds_texts(path)
        return any(sign in self.corpus for sign in "*?[")

    @property
    def corpus_name(self) -> str:
        """Its last part, also where the corpus is a dot."""
        hub = self.corpus.startswith("hf:")
        return Path(self.corpus.partition("@")[0] if hub else os.path.abspath(self.corpus)).name

    @property
    def is_jsonl(self) -> bool:
        """A corpus of records {"prompt": ..., "completion": ...}; only completions are targets."""
        return self.corpus == "dialogue" or (
            self.corpus.lower().endswith(".jsonl") and not self.is_large
        )

    @property
    def eos_text(self) -> str | None:
        """What is between documents, for which the eos token stands; None without documents."""
        between = "\n" if self.is_jsonl or self.is_large else None
        return {"lines": "\n", "paragraphs": "\n\n"}.get(self.documents, between)


def _is_nanochat(options: dict[str, Any]) -> bool:
    return bool(options["form"] == "nanochat")


def _is_gpt2(options: dict[str, Any]) -> bool:
    return not _is_nanochat(options)


class ModelConfig(Section):
    """[model] A GPT. The form decides on the defaults of qk_norm, embedding_norm and tied."""

    form: Literal["nanochat", "gpt2", "nanogpt"] = Field(
        "nanochat",
        description="nanochat has rotary positions, RMSNorm and ReLU^2, and starts at zero; gpt2 "
        "has learned positions, LayerNorm, GELU and biases; nanogpt is gpt2 without biases",
    )
    block_size: Size = Field(256, description="context length in tokens")
    n_layer: Size = Field(3, description="transformer blocks")
    n_head: Size = Field(2, description="attention heads per block")
    n_embd: Size = Field(96, description="width of the residual stream")
    dropout: Fraction = Field(0.0, description="probability of dropping an activation in training")
    qk_norm: bool = Field(default_factory=_is_nanochat, description="RMSNorm of queries and keys")
    embedding_norm: bool = Field(
        default_factory=_is_nanochat, description="RMSNorm after the token embedding"
    )
    tied: bool = Field(
        default_factory=_is_gpt2, description="lm_head shares the weights of the token embedding"
    )
    softcap: Rate = Field(
        0.0, description="logits z become softcap tanh(z / softcap); 0 = unchanged"
    )
    document_attention: bool = Field(False, description="tokens attend to their own document only")
    ngram_embedding: int = Field(
        0, ge=0, le=16, description="add embeddings of the last 2, ... n tokens; below 2 none"
    )
    ngram_rows: Size = Field(
        8192, description="rows in the table of each n; n-grams are hashed to them"
    )

    @property
    def is_gpt2(self) -> bool:
        """GPT-2's form, with biases or without."""
        return self.form != "nanochat"

    @property
    def has_bias(self) -> bool:
        """Biases in linear layers and LayerNorms."""
        return self.form == "gpt2"

    def num_params(self, vocab_size: int) -> int:
        """The parameters of the GPT with these options, which need not be built for that."""
        width = self.n_embd
        layer_norm = 0  # RMSNorm has no weights
        if self.is_gpt2:
            layer_norm = 2 * width if self.has_bias else width
        block = 12 * width**2 + 2 * layer_norm
        if self.has_bias:
            block += 9 * width
        tables = vocab_size
        if not self.tied:
            tables += vocab_size  # lm_head
        if self.is_gpt2:
            tables += self.block_size
        if self.ngram_embedding > 1:
            tables += (self.ngram_embedding - 1) * self.ngram_rows
        return self.n_layer * block + tables * width + layer_norm

    def flops_per_token(self, vocab_size: int) -> int:
        """FLOPs of training per position: 6 for each weight of a matrix, and 6 T C per layer for
        attention.

        Of T tokens in a window a position attends to T / 2 on average, so attention is half of the
        12 T C (12 L H Q T) of Chowdhery et al. 2022 and of nanoGPT, which count masked pairs too.
        It is as much as in Kaplan et al. 2020, whose table has 2 T C for the forward pass.
        """
        weights = 12 * self.n_layer * self.n_embd**2 + self.n_embd * vocab_size
        return 6 * weights + 6 * self.n_layer * self.block_size * self.n_embd


class LossConfig(Section):
    """[loss] What is optimised. Perplexity always comes from the plain cross-entropy."""

    label_smoothing: Fraction = Field(
        0.0, description="share of the target spread evenly over the vocabulary"
    )
    z_loss: Rate = Field(
        0.0, description="weight of (log sum exp of the logits) squared, which keeps them small"
    )
    teacher: FileName = Field(
        "", description="a run whose predictions are learned too (distillation); empty = none"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="the teacher's share of the objective")
    temperature: float = Field(
        1.0, gt=0, le=100, description="softens the teacher's and the model's predictions"
    )


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
        description="scratch, or resume the run in out_dir; auto = resume "
        "if there is one, else start as the recipe says; or the directory of a run, to start "
        "with its model",
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
        description="sequences in one forward pass; 0 = on a CPU 2 parts of the "
        "batch, or 4, 8, ... of at least 1,024 tokens, on a GPU a rank's share",
    )
    eval_interval: Positive = Field(
        40, description="steps between evaluations; the first are at 0, 1, 2, 4, 8, ..."
    )
    eval_tokens: Count = Field(
        8192, description="validation targets per evaluation, evenly spread; 0 = all"
    )
    log_interval: Positive = Field(10, description="steps between lines of metrics.jsonl")
    checkpoint_interval: Positive = Field(100, description="steps between checkpoints")
    watchers: Annotated[Text, AfterValidator(_check_watchers)] = Field(
        "page",
        description=f"show the run as it trains: {', '.join(WATCHERS)}, or several with commas "
        "between; empty = none",
    )
    max_nonfinite_steps: Positive = Field(
        10, description="stop after so many nonfinite losses or gradients in a row"
    )
    patience: Count = Field(
        5,
        description="stop after so many evaluations in a row, at least 20 steps apart, that "
        "show overfitting; 0 = never",
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
        """The model to start from; empty = none."""
        return "" if self.resumes or self.init_from == "scratch" else self.init_from


class Config(Section):
    """All options of a run, by section."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def options(self) -> dict[str, Any]:
        """The value of every option by its name."""
        return {
            name: value for section in self.model_dump().values() for name, value in section.items()
        }

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, but for those that are said beside a run."""
        defaults = Config(model=ModelConfig(form=self.model.form)).options()
        defaults["form"] = "nanochat"
        return {
            name: value
            for name, value in self.options().items()
            if value != defaults[name] and name not in ("out_dir", "init_from", "dtype")
        }

    def with_run(self, **changes: Any) -> Self:
        """The same configuration with other values in [run]."""
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    def conflicts(self) -> list[str]:
        """Combinations of options that make no sense on any machine, a line each."""
        data, model, loss, optim = self.data, self.model, self.loss, self.optim
        unit = 2 * model.n_head  # rotary positions need an even width of each head
        found = self._unmet(
            [
                ("vocab_size", data.tokenizer == "bpe", "--tokenizer=bpe"),
                (
                    "tokenizer documents mask",
                    not data.markov,
                    "another corpus: the entropy of markov is known per "
                    "character of the whole text only",
                ),
                (
                    "document_attention",
                    model.ngram_embedding < 2,
                    "--ngram_embedding=0: n-grams look across documents",
                ),
                ("ngram_rows", model.ngram_embedding > 1, "--ngram_embedding=2 or more"),
                ("alpha temperature", loss.teacher, "a --teacher"),
                ("muon_learning_rate momentum", optim.optimizer == "muon", "--optimizer=muon"),
                (
                    "decay_fraction min_lr_ratio",
                    optim.schedule != "constant",
                    "--schedule=cosine or linear",
                ),
            ]
        )
        if model.n_embd % unit:
            found.append(
                f"n_embd={model.n_embd} is not a multiple of 2 n_head = {unit}; try n_embd="
                f"{max(1, round(model.n_embd / unit)) * unit}"
            )
        return found

    def problems(self) -> list[str]:
        """The conflicts, and what this machine lacks for such a training, a line each."""
        data, loss, optim, run = self.data, self.loss, self.optim, self.run
        found = self.conflicts() + self._unmet(
            [
                (
                    "documents",
                    not data.is_jsonl,
                    "another corpus: the documents of this one are its records already",
                ),
                (
                    "documents mask padded predict_eos",
                    not data.is_large,
                    "one file of text, not compressed",
                ),
                (
                    "padded predict_eos document_attention",
                    data.eos_text,
                    "documents: use --documents=lines or paragraphs, or a .jsonl corpus",
                ),
            ]
        )
        for name in run.watcher_names:
            # A folder of that name, such as the one that wandb writes, has no origin: it is not
            # the package.
            if name != "page" and not getattr(find_spec(name), "origin", None):
                found.append(f"watchers={name} needs its package: pip install -e '.[{name}]'")
        if (
            data.tokenizer not in TOKENIZERS
            and not is_run(Path(data.tokenizer))
            and not run.resumes
        ):
            meant = did_you_mean(data.tokenizer, TOKENIZERS) or nearest_run(Path(data.tokenizer))
            found.append(
                f"tokenizer={data.tokenizer}: should be char, bpe, gpt2, or the directory of a run{meant}"
            )
        if not data.corpus:  # as in the config.toml of a converted model
            found.append("corpus is empty: name a text, --corpus=FILE")
        if optim.batch_size < WORLD_SIZE:
            found.append(
                f"batch_size={optim.batch_size} with {WORLD_SIZE} ranks: each needs a sequence of its own"
            )
        if loss.teacher and os.path.abspath(loss.teacher) == os.path.abspath(run.out_dir):
            found.append(f"teacher={loss.teacher} is out_dir too: a run cannot be its own teacher")
        if run.source and os.path.abspath(run.source) == os.path.abspath(run.out_dir):
            found.append(
                f"init_from={run.source} is out_dir too: name another --out_dir, or resume with "
                "--init_from=resume"
            )
        return found

    def _unmet(self, needs: list[tuple[str, object, str]]) -> list[str]:
        """The changed options without what they need: names, whether it is there, what it is."""
        changed = self.changed()
        return [
            f"{name}={changed[name]} needs {what}"
            for names, is_there, what in needs
            if not is_there
            for name in names.split()
            if name in changed
        ]
