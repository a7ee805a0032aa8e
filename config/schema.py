"""Every knob, on one page: its name, type, range, default and meaning.

The defaults are the plain GPT; `make train` runs config/shakespeare_char.toml. Sections are for reading; a
name is unique across all of them, so the command line needs only the name: `--label_smoothing=0.1`. A zero
switches off what has no other way of being off.
"""

import os
import re
import warnings
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_STEP_TOKENS = 2**26  # a batch is held in memory whole
MAX_PARAMETERS = 2**33  # and so is a model
MAX_CONTEXTS = 100_000  # and so are the probabilities of a Markov source

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]  # of something that is held in memory
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A group of knobs: typed, frozen, and closed to names it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def changed(self, *names: str) -> list[str]:
        """Those of some knobs that are not at their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


class DataConfig(Section):
    """[data] What text, cut into what tokens."""

    corpus: str = Field("shakespeare", min_length=1, description="shakespeare, tinyshakespeare, words, dialogue, "
                        "markov, or a UTF-8 file: .jsonl of prompts and completions, else text")
    tokenizer: Literal["char", "bpe", "gpt2"] = Field("char", description="what a token is")
    vocab_size: int = Field(1024, ge=257, le=1_000_000, description="tokens that bpe learns from the training split")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the text, at its end, kept for validation")
    documents: Literal["none", "lines", "paragraphs"] = Field("none", description="what of a text is a document of its "
                                                              "own, with an end token around it")
    padded: bool = Field(False, description="each document is a sequence, padded to block_size; else they follow on")
    score_end: bool = Field(True, description="the end token is predicted too; else it is given")
    mask: str = Field("", description="a regular expression; what it matches is given, not scored (^ and $: line ends)")
    markov_order: int = Field(2, ge=1, le=16, description="of the markov corpus: characters that the next depends on")
    markov_alphabet: int = Field(27, ge=2, le=63, description="its different characters, the space first")
    markov_temperature: float = Field(0.5, ge=0.01, le=100, description="low = predictable")

    @property
    def is_jsonl(self) -> bool:
        """A corpus of records, {"prompt": ..., "completion": ...}, of which the completions are scored."""
        return self.corpus == "dialogue" or self.corpus.lower().endswith(".jsonl")

    @property
    def has_documents(self) -> bool:
        return self.is_jsonl or self.documents != "none"

    def problems(self) -> list[str]:
        """Combinations that make no sense, one line each."""
        found = [f"{name} needs documents; use --documents=lines or paragraphs, or a .jsonl corpus"
                 for name, on in (("padded", self.padded), ("score_end=false", not self.score_end))
                 if on and not self.has_documents]
        if self.is_jsonl and self.documents != "none":
            found.append(f"documents={self.documents}: the documents of {self.corpus} are its records already")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                re.compile(self.mask)
        except (re.error, FutureWarning, OverflowError, RecursionError) as error:
            found.append(f"mask={self.mask!a:.80}: not a regular expression: {error}")
        if self.corpus != "markov":
            return found + [f"{name}={getattr(self, name)} needs --corpus=markov"
                            for name in self.changed("markov_order", "markov_alphabet", "markov_temperature")]
        found += [f"the entropy of markov is known per character of the whole text: leave {name} as it is"
                  for name in self.changed("tokenizer", "documents", "mask")]
        if self.markov_alphabet**self.markov_order > MAX_CONTEXTS:
            found.append(f"markov_alphabet={self.markov_alphabet} to the power of markov_order={self.markov_order} is "
                         f"more than {MAX_CONTEXTS:,} contexts")
        return found


class ModelConfig(Section):
    """[model] One GPT: the defaults are a modern small one; GPT-2 is another setting of the same knobs."""

    block_size: Size = Field(64, description="context length in tokens")
    n_layer: Size = Field(4, description="transformer blocks")
    n_head: Size = Field(4, description="attention heads per block")
    n_embd: Size = Field(128, description="width of the residual stream")
    dropout: Fraction = Field(0.0, description="probability of dropping an activation in training")
    bias: bool = Field(False, description="biases in linear layers and LayerNorms")
    ngram: int = Field(0, ge=0, le=16, description="starts from what n-grams of up to so many tokens, counted in the "
                       "training text, predict; 0 = from nothing")
    position: Literal["rotary", "learned"] = Field("rotary", description="how positions are told apart")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="normalisation; rmsnorm has no weights")
    activation: Literal["relu2", "gelu"] = Field("relu2", description="nonlinearity of the MLP; relu2 is ReLU squared")
    qk_norm: bool = Field(True, description="RMS-normalise queries and keys")
    document_attention: bool = Field(False, description="tokens attend to their own document only")
    tied: bool = Field(False, description="the output head shares the token embedding's weights")
    softcap: Rate = Field(0.0, description="logits z become softcap tanh(z / softcap); 0 = as they are")
    zero_init: bool = Field(True, description="output projections, and an untied head, start at zero")


class LossConfig(Section):
    """[loss] What is optimised. Perplexity always comes from the plain cross-entropy."""

    label_smoothing: Fraction = Field(0.0, description="share of the target spread evenly over the vocabulary")
    z_loss: Rate = Field(0.0, description="weight of (log sum exp of the logits) squared, which keeps them small")
    teacher: str = Field("", description="a run whose predictions are learned too (distillation); empty = none")
    alpha: float = Field(0.5, ge=0, le=1, description="the teacher's share of the objective; the text has the rest")
    temperature: float = Field(1.0, gt=0, le=100, description="softens the teacher's and the model's predictions")


class OptimConfig(Section):
    """[optim] How the objective goes down."""

    batch_size: Size = Field(64, description="sequences in one optimizer step")
    max_iters: Positive = Field(400, description="optimizer steps")
    optimizer: Literal["muon", "adamw"] = Field("muon", description="for the blocks' matrices; AdamW takes the rest")
    learning_rate: Rate = Field(0.01, description="AdamW's peak learning rate")
    muon_learning_rate: Rate = Field(0.04, description="Muon's peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field("linear", description="how the rates decay after warm-up")
    warmup_iters: Count = Field(0, description="steps of linear warm-up")
    decay_fraction: float = Field(1.0, ge=0, le=1, description="the last share of the steps in which the rates decay")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="where the decay ends, as a share of the peak")
    weight_decay: Rate = Field(0.0, description="decoupled weight decay on matrices")
    beta1: Fraction = Field(0.9, description="AdamW's memory of the gradient")
    beta2: Fraction = Field(0.95, description="AdamW's memory of its square")
    momentum: Fraction = Field(0.95, description="Muon's memory of the gradient")
    grad_clip: Rate = Field(1.0, description="largest norm of the gradient; 0 = unlimited")


class RunConfig(Section):
    """[run] Where, on what, and how often."""

    out_dir: str = Field("", description="the run's directory; empty = out/<recipe>")
    init_from: Literal["scratch", "resume", "auto"] = Field("scratch", description="start anew, or go on from out_dir; "
                                                            "auto = go on if a run is there")
    seed: int = Field(1337, ge=0, lt=2**32, description="of weights, batches and dropout")
    device: str = Field("auto", min_length=1, description="auto, cpu, mps, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the arithmetic; auto = the fastest")
    compile: bool = Field(False, description="torch.compile the model: slow to start, then faster")
    micro_batch_size: Count = Field(0, description="sequences in one forward pass; 0 = a rank's share of the batch")
    eval_interval: Positive = Field(100, description="steps between evaluations")
    eval_tokens: Count = Field(0, description="validation tokens to evaluate; 0 = all")
    log_interval: Positive = Field(10, description="steps between lines of metrics")
    checkpoint_interval: Positive = Field(100, description="steps between checkpoints in last/")
    explain_batch: bool = Field(False, description="show the first batch, what of it is scored and its NLL, and stop")
    max_bad_steps: Positive = Field(10, description="steps in a row whose loss or gradient is not a number, before "
                                    "stopping; none of them is taken")
    patience: Count = Field(5, description="evaluations without a better loss before stopping; 0 = never stop")


class Config(Section):
    """A whole run, by section. `problems()` checks what no single field can."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    _named: frozenset[str] = frozenset()  # knobs that were given by name, on the command line

    def leaves(self) -> dict[str, Any]:
        """Every knob's value by its name."""
        return {name: value for section in self.model_dump().values() for name, value in section.items()}

    def with_named(self, names: Iterable[str]) -> "Config":
        """The same configuration, knowing which knobs were given by name."""
        config = self.model_copy()
        config._named = frozenset(names)
        return config

    def is_named(self, name: str) -> bool:
        return name in self._named

    def with_run(self, **changes: str) -> "Config":
        """The same configuration with other values in [run]."""
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    def problems(self) -> list[str]:
        """Combinations that make no sense, one line each."""
        data, model, optim, run = self.data, self.model, self.optim, self.run
        found = data.problems()
        if model.document_attention and not data.has_documents:
            found.append("document_attention needs documents; use --documents=lines or paragraphs, or a .jsonl corpus")
        if model.document_attention and model.ngram:
            found.append(f"ngram={model.ngram} looks across documents, document_attention does not: use one of them")
        if not self.loss.teacher:
            found += [f"{name}={getattr(self.loss, name)} needs a --teacher"
                      for name in self.loss.changed("alpha", "temperature")]
        elif os.path.abspath(self.loss.teacher) == os.path.abspath(run.out_dir):
            found.append(f"teacher={self.loss.teacher} is out_dir too: a run cannot be its own teacher")
        if model.n_embd % model.n_head:
            unit = 2 * model.n_head  # heads of even width suit every kind of position
            found.append(f"n_embd={model.n_embd} is not a multiple of n_head={model.n_head}; try n_embd="
                         f"{max(1, round(model.n_embd / unit)) * unit}")
        elif model.position == "rotary" and (model.n_embd // model.n_head) % 2:
            found.append(f"rotary positions need an even head width; n_embd/n_head is {model.n_embd // model.n_head}")
        if 12 * model.n_layer * model.n_embd**2 > MAX_PARAMETERS:
            found.append(f"n_layer={model.n_layer} with n_embd={model.n_embd} makes more than {MAX_PARAMETERS:,} "
                         "parameters")
        if optim.batch_size * model.block_size > MAX_STEP_TOKENS:
            found.append(f"batch_size={optim.batch_size} times block_size={model.block_size} is more than "
                         f"{MAX_STEP_TOKENS:,} tokens in a step")
        if optim.warmup_iters > optim.max_iters:
            found.append(f"warmup_iters={optim.warmup_iters} is more than max_iters={optim.max_iters}")
        if run.micro_batch_size > optim.batch_size:
            found.append(f"micro_batch_size={run.micro_batch_size} is more than batch_size={optim.batch_size}")
        return found
