"""The exact loss of a run, and what is behind it: `python evaluate.py RUN [--against=OTHER]`.

With `--ensemble` it is that of several runs, whose probabilities are averaged; with `--dynamic`
that of a copy of the run's model, which learns while it reads.

The story, in order: the text, the scores of its tokens, and what they add up to.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from config.errors import UserError, run_command, slow_imports
from config.files import check_place
from config.parser import load_options
from config.schema import DataConfig
from config.terminal import print_styled, printable, progress_bar
from config.values import Count, FileName, Page, Rate, Section, Text, UnknownCharacters
from data.baselines import measured_part
from data.corpora import read_corpus_text
from data.documents import Document, Split, encode_documents, split_documents
from data.eval_text import EvalText
from data.info import ENGLISH, PLAYS
from data.prepare import prepare_corpus
from data.sources import read_all_documents
from data.unknown import Replacer, make_replacer
from engine.mixture import count_ngrams, find_order, mix_causally
from engine.run import Run, open_run
from engine.run_text import make_eval_text, open_corpus
from engine.watchers import load_wing
from report import analysis
from report.along_text import LearnedText, losses_along_text
from report.costs import show_costs, show_costs_without_tables
from report.evaluation import in_words, unknown_lines
from report.intervals import Blocks, byte_offsets, intervals, measure_losses
from surprisal import nats_to_bits

if TYPE_CHECKING:  # importing torch takes seconds
    from data.batches import Batch
    from engine.device import Device
    from engine.scoring import Predictions, Scores
    from model import GPT


class EvaluateOptions(Section):
    """What to evaluate, and against what."""

    split: Literal["", "val", "tuning", "train"] = Field(
        "",
        description="which split of the run's corpus; empty = the one that its training evaluated, "
        "val or tuning",
    )
    text: FileName = Field(
        "",
        min_length=1,
        description="a text to evaluate instead; as for --corpus of train.py, a "
        "file, a folder or a pattern",
    )
    explain: str = Field(
        "", min_length=1, description="a sentence: show what each of its tokens costs"
    )
    unknown: UnknownCharacters = Field(
        "refuse",
        description="characters of the text that a run does not know: replace "
        "= by similar ones, or leave them out; how many, and what they cost, is said",
    )
    max_tokens: Count = Field(
        1_000_000, description="evaluate about so many targets, spread evenly; 0 = all"
    )
    stride: Count = Field(
        0,
        description="tokens by which the window moves on: fewer give more context; 0 = block_size",
    )
    against: FileName = Field(
        "", min_length=1, description="another run to compare with on the same text"
    )
    ensemble: bool = Field(
        False,
        description="average the probabilities of several runs: evaluate.py RUN RUN ... "
        "--ensemble; each reads the whole text in windows of its own block_size",
    )
    dynamic: bool = Field(
        False,
        description="a copy of the model learns while it reads: it predicts --stride tokens (if "
        "that is 0, 128 or half of block_size), and only then takes a step on them",
    )
    context: Count = Field(
        0,
        description="with --dynamic: tokens before these that a window has; 0 = a quarter of "
        "block_size",
    )
    learning_rate: Rate = Field(
        0.0002, description="with --dynamic: AdamW's, of all weights but the tables of n-grams"
    )
    table_learning_rate: Rate = Field(
        0.02, description="with --dynamic: that of the tables of n-grams"
    )
    mix: Text = Field(
        "",
        min_length=1,
        description="also mix the run's probabilities with those of a baseline that counts, "
        "such as 6-gram: each target with the weights that were best on the targets before it",
    )
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the runs")
    device: Text = Field("", description="auto, cpu, mps, cuda or cuda:N; empty = as in training")
    dtype: Literal["", "auto", "float32", "bfloat16", "float16"] = Field(
        "", description="of matrix products; empty = as in training"
    )
    html: Page = Field(
        "",
        description="also write a page for a browser, with the text token by token, and with "
        "--dynamic the loss along it: a file such as page.html",
    )
    tables: bool = Field(
        False,
        description="also measure it with the run's tables of n-grams left out, one after the "
        "other, the longest first",
    )
    json_: bool = Field(False, alias="json", description="print JSON, and nothing else")


# pairs of options that contradict each other
EXCLUSIVE = [
    {"split", "text"},
    {"against", "max_tokens"},
    {"ensemble", "max_tokens"},
    {"ensemble", "html"},
    {"ensemble", "tables"},
    {"dynamic", "ensemble"},
    {"dynamic", "explain"},
    {"dynamic", "tables"},
    {"mix", "explain"},
    {"explain", "text"},
    {"explain", "json_"},
    {"explain", "split"},
    {"explain", "max_tokens"},
    {"explain", "stride"},
]
PAGE_TOKENS = 2000  # of a text, that a page shows one by one


class Chosen(NamedTuple):
    """The text to evaluate."""

    name: str
    splits: list[Split]  # in each run's tokens
    train: Split | None = None  # the first run's training text, if the text is of its corpus
    source_nll: np.ndarray | None = None  # of the targets, where the text's source is known
    has_baselines: bool = False  # those of the first run are of this text
    replaced: Replacer | None = None  # unknown characters in targets,
    replaced_masked: Replacer | None = None  # and in masked text


class OpenRun(NamedTuple):
    """A run's model, and the text in the windows that it reads."""

    run: Run
    model: "GPT"
    step: int
    device: "Device"
    text: EvalText


class Member(NamedTuple):
    """Holds what a run of an ensemble makes of a text by itself."""

    about: dict[str, Any]
    columns: analysis.Columns


class RunScores(NamedTuple):
    """Holds what a run's model makes of a text, or an ensemble of which the run is the first."""

    run: Run
    text: EvalText
    about: dict[str, Any]  # which model, which text
    columns: analysis.Columns  # what is known of each target
    tempered: np.ndarray  # the mean NLL at each of TEMPERATURES
    # the first PAGE_TOKENS tokens, for a page; None if all of them are masked
    passage: analysis.Passage | None = None
    # (N, max_ngram) the NLL of each target with some tables left out; None unless asked for
    by_longest: np.ndarray | None = None
    members: Sequence[Member] = ()  # of an ensemble
    # of a model that learned: the same targets, predicted in the same windows before it learned
    standing_still: analysis.Columns | None = None


def main(argv: list[str]) -> None:
    runs, others, options = read_arguments(argv)

    # the text
    chosen = choose_text([runs[0], *others], options)

    # the scores of its tokens
    first, *rest = chosen.splits
    score = score_run
    if options.dynamic:
        score = score_learner
    if options.ensemble:
        scores = [score_ensemble(runs, first, options)]
    else:
        scores = [score(runs[0], first, options)]
    for run, split in zip(others, rest, strict=True):
        scores.append(score(run, split, options))

    # what they add up to
    evaluation = None
    if options.explain:
        print_styled(explain_sentence(scores, chosen.replaced))
    else:
        evaluation = add_up(scores, chosen, options)
        if options.json_:
            print(json.dumps(evaluation, indent=1))
        else:
            print(in_words(evaluation))
    if options.html:
        write_page = load_wing("page of a text")
        shown = [(each.columns, each.passage) for each in scores]
        learned = None
        if options.dynamic:
            learned = learned_text(scores[0])
        runs += others
        write_page(Path(options.html), runs, shown, chosen.name, evaluation, learned=learned)
        stream = sys.stderr if options.json_ else sys.stdout
        print(options.html, file=stream)


def read_arguments(argv: list[str]) -> tuple[list[Run], list[Run], EvaluateOptions]:
    """Read which run, or the runs of an ensemble; that of --against, if any; and the options.

    UserError for what cannot be done.
    """
    meaning = "the directory of a run; with --ensemble, of several"
    paths, options = load_options(EvaluateOptions, argv, "RUN", "+", meaning)
    if options.ensemble and len(paths) == 1:
        raise UserError("ensemble: name several runs: evaluate.py RUN RUN ... --ensemble")
    if not options.ensemble and len(paths) > 1:
        raise UserError(
            f"{paths[1]}: is a second RUN; --ensemble averages the probabilities of several, and "
            "--against=OTHER compares two"
        )
    runs = [open_run(Path(path)) for path in paths]
    others = []
    if options.against:
        others.append(open_run(Path(options.against)))
    for run in [*runs, *others]:
        block_size = run.cfg.model.block_size
        if options.stride > block_size:
            raise UserError(
                f"stride={options.stride} is more than block_size={block_size} of {run.path}: the "
                "tokens between windows would be left out"
            )
    for pair in EXCLUSIVE:
        if pair <= options.model_fields_set:
            names = " and ".join(sorted(pair)).rstrip("_")
            why = ""
            if "max_tokens" in pair and "explain" not in pair:
                why = "; several runs are measured on all of the text"
            raise UserError(f"{names}: use one of them{why}")
    if options.tables and not runs[0].cfg.tables.are_used:
        raise UserError(f"tables: {runs[0].path} has no tables of n-grams")
    of_learning = {"context", "learning_rate", "table_learning_rate"} & options.model_fields_set
    if of_learning and not options.dynamic:
        raise UserError(f"{min(of_learning)}: only --dynamic has it")
    if "table_learning_rate" in of_learning and not runs[0].cfg.tables.are_used:
        raise UserError(f"table_learning_rate: {runs[0].path} has no tables of n-grams")
    check_ensemble(runs, options)
    if options.mix:
        check_mix(runs[0], options)
    if options.unknown == "refuse":
        for run in [*runs, *others]:
            run.tokenizer.encode_prompt(options.explain)  # tells unknown characters
    if options.html:
        check_place(Path(options.html))
    return runs, others, options


def check_ensemble(runs: list[Run], options: EvaluateOptions) -> None:
    """Raise a UserError for a run whose probabilities cannot be averaged with those of the first.

    One that was trained on another text, or another split, may have seen the text.
    """
    first, *others = runs
    for run in others:
        if run.tokenizer != first.tokenizer:
            raise UserError(
                f"{run.path}: has other tokens than {first.path}; an ensemble needs runs with the "
                "same tokens"
            )
        is_own_text = options.text or options.explain
        if not is_own_text and have_other_splits([first, run], options):
            raise UserError(
                f"{run.path}: was trained on another text or split than {first.path}, and may "
                "have seen this one; use --text=FILE"
            )


def check_mix(run: Run, options: EvaluateOptions) -> None:
    """Raise a UserError if there is no such n-gram, or if it was counted in the text."""
    find_order(run, options.mix)
    if options.split == "train":
        raise UserError(
            f"mix: the {options.mix} was counted in the training text; use another split"
        )


# The text.


def choose_text(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """Read the text to evaluate: a sentence, a text of one's own, or a split of the corpus."""
    if options.explain:
        return read_sentence(runs, options)
    if options.text:
        return read_own_text(runs, options)
    return read_split(runs, options)


def read_sentence(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """Read the sentence to explain."""
    tokenizers = [run.tokenizer for run in runs]
    replacer = make_replacer(tokenizers, options.unknown)
    sentence = options.explain
    if replacer is not None:
        sentence = replacer.replace(sentence)
        if not sentence:
            raise UserError(
                "explain: nothing is left of the sentence: the run knows none of its characters"
            )
    tokens = [tokenizer.encode_after_context(sentence) for tokenizer in tokenizers]
    splits = [Split(np.array(own)) for own in tokens]
    return Chosen("a sentence", splits, replaced=replacer)


def read_own_text(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """Read a text of one's own. The options of the first run say what its documents are."""
    cfg = runs[0].cfg.data.model_copy(update={"corpus": options.text})
    return encode_for_each(runs, read_all_documents(cfg), cfg, options.text, options)


def encode_for_each(
    runs: list[Run], documents: list[Document], cfg: DataConfig, name: str, options: EvaluateOptions
) -> Chosen:
    """Encode documents in the tokens of each run; unknown characters are replaced if asked to."""
    tokenizers = [run.tokenizer for run in runs]
    in_targets = make_replacer(tokenizers, options.unknown)
    in_masked = make_replacer(tokenizers, options.unknown)
    if in_targets is not None and in_masked is not None:
        documents = replace_in_documents(documents, in_targets, in_masked)

    def encode(run: Run) -> Split:
        return encode_documents(documents, run.tokenizer, cfg, name)

    splits = in_tokens_of_each(runs, encode(runs[0]), encode)
    return Chosen(name, splits, replaced=in_targets, replaced_masked=in_masked)


def replace_in_documents(
    documents: Iterable[Document], in_targets: Replacer, in_masked: Replacer
) -> list[Document]:
    """Write documents in known characters. Masked text has a list of its own: it costs nothing."""
    replaced = []
    for document in documents:
        segments = []
        for text, is_target in document:
            replacer = in_targets if is_target else in_masked
            segments.append((replacer.replace(text), is_target))
        replaced.append(segments)
    return replaced


def read_split(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """Read a split of the first run's corpus. UserError for tuning text that the run learned from.

    The prepared corpus of a run has its training text, and the text that its training evaluated.
    """
    run = runs[0]
    cfg = run.cfg.data
    name = options.split or cfg.split
    title = f"the {name} split of {run.info.name}"
    corpus = open_corpus(run)
    if name == "tuning" and cfg.split == "val":
        raise UserError(
            f"split=tuning: {run.path} was trained with split=val, so it learned from that text; "
            "--split=train measures all that it learned from"
        )
    if name == "val" and cfg.split == "tuning":
        chosen = read_validation(runs, title, options)
        return chosen._replace(train=corpus.train)
    part = "train" if name == "train" else "val"

    def encode(other: Run) -> Split:
        documents = split_documents(read_corpus_text(cfg).text, cfg)[part]
        return encode_documents(documents, other.tokenizer, cfg, title)

    if name == "train":
        splits = in_tokens_of_each(runs, corpus.train, encode)
        return Chosen(title, splits, corpus.train)
    splits = in_tokens_of_each(runs, corpus.val, encode)
    return Chosen(title, splits, corpus.train, corpus.source_nll, has_baselines=True)


def read_validation(runs: list[Run], title: str, options: EvaluateOptions) -> Chosen:
    """Read the validation text of a corpus, where the first run was trained on a tuning split.

    That run's vocabulary may lack some of its characters. Of a large corpus it has to be prepared
    in the run's tokens.
    """
    run = runs[0]
    cfg = run.cfg.data.model_copy(update={"split": "val"})
    if not cfg.is_large:
        text = read_corpus_text(cfg)
        documents = split_documents(text.text, cfg)["val"]
        chosen = encode_for_each(runs, documents, cfg, title, options)
        return chosen._replace(source_nll=text.nll_of_val(cfg))
    tokens = {"tokenizer": str(run.path), "vocab_size": DataConfig().vocab_size}
    prepared = prepare_corpus(cfg.model_copy(update=tokens), run.tokenizer)

    def refuse(other: Run) -> Split:
        raise UserError(f"against={other.path}: has other tokens than {run.path}; use --text=FILE")

    return Chosen(title, in_tokens_of_each(runs, prepared.val, refuse))


def in_tokens_of_each(runs: list[Run], first: Split, encode: Callable[[Run], Split]) -> list[Split]:
    """Give each run the text in its tokens. Runs with the same tokens share one split.

    `first` is the text in the tokens of the first run, which decides what the targets are.
    """
    run, *others = runs
    splits = [first]
    for other in others:
        if other.tokenizer.eos_text != run.tokenizer.eos_text:
            raise UserError(
                f"against={other.path}: its eos token stands for {other.tokenizer.eos_text!r}, and "
                f"that of {run.path} for {run.tokenizer.eos_text!r}: they do not predict the same "
                "bytes"
            )
        if other.tokenizer == run.tokenizer:
            splits.append(first)
        else:
            splits.append(encode(other))
    return splits


# The scores of its tokens.


def score_run(run: Run, split: Split, options: EvaluateOptions) -> RunScores:
    """Score each target of a text with a run's model."""
    with slow_imports():
        from engine.evaluation import measure_passage, nll_without_tables, score_text

    opened = open_model(run, split, options)
    text = opened.text
    predictions = predict_text(opened)
    columns, tempered = score_text(predictions, run.tokenizer, analysis.TEMPERATURES)
    columns |= byte_offsets(text, run.tokenizer)
    with_tables = options.tables and run.cfg.tables.are_used
    passage = None
    start = split.first(PAGE_TOKENS - 1)
    if options.html and start.num_targets() > 0:
        start_text = make_eval_text(run, start, stride=options.stride)
        costs = measure_passage(opened.model, start_text, 0, opened.device, with_tables)
        passage = analysis.Passage(step=opened.step, **costs)
    by_longest = None
    if with_tables:
        by_longest = nll_without_tables(opened.model, text, opened.device, columns["nll"])
    about = describe_run(opened, columns, options)
    return RunScores(run, text, about, columns, tempered, passage, by_longest)


def score_ensemble(runs: list[Run], split: Split, options: EvaluateOptions) -> RunScores:
    """Score each target of a text with the mean of the probabilities of several runs' models.

    All models are in memory at once, and one chunk of each one's predictions.
    """
    with slow_imports():
        from engine.ensemble import average_predictions, columns_of_model
        from engine.evaluation import score_text

    opened = [open_model(run, split, options) for run in runs]
    first = opened[0]
    tokenizer = first.run.tokenizer
    predictions = [predict_text(each, has_bar=each is first) for each in opened]
    chunks: list[list[Scores]] = []  # of each chunk of the text, the scores of each run
    averaged = average_predictions(predictions, chunks)
    columns, tempered = score_text(averaged, tokenizer, analysis.TEMPERATURES)
    columns |= byte_offsets(first.text, tokenizer)
    members = []
    for each, own_chunks in zip(opened, zip(*chunks, strict=True), strict=True):
        own = columns | columns_of_model(own_chunks)
        members.append(Member(describe_run(each, own, options), own))
    abouts = [member.about for member in members]
    about = max(abouts, key=lambda about: int(about["block_size"]))
    about = about | {"run": f"the ensemble of {len(runs)} runs"}
    about["device"] = " and ".join(dict.fromkeys(each["device"] for each in abouts))
    del about["step"]
    return RunScores(first.run, first.text, about, columns, tempered, members=members)


def score_learner(run: Run, split: Split, options: EvaluateOptions) -> RunScores:
    """Score each target with a copy of a run's model that learns while it reads.

    The text is read from its start, up to --max_tokens. Before, the model scores the same windows
    without learning: what differs is what it learned.
    """
    with slow_imports():
        from engine import dynamic
        from engine.checkpoint import read_model
        from engine.evaluation import score_text

    device = choose_device(run, options)
    model, state = read_model(run, options.checkpoint)
    model.to(device.torch_device)
    num_targets = split.num_targets()
    if options.max_tokens > 0 and not options.against:
        split = split.first(max(options.max_tokens, split.first_target()))
    block_size = run.cfg.model.block_size
    stride = options.stride or dynamic.default_stride(block_size)
    context = options.context or dynamic.default_context(block_size, stride)
    if stride + context > block_size:
        raise UserError(
            f"context={context}: with stride={stride} it is more than block_size={block_size} of "
            f"{run.path}"
        )
    text = dynamic.cut_for_learning(make_eval_text(run, split, stride=stride), context)
    groups = dynamic.group_windows(text)

    def batches(title: str) -> "Iterable[Batch]":
        batches = dynamic.make_batches(text, groups)
        return show_progress(batches, title, total=len(groups))

    rates = dynamic.Rates(options.learning_rate, options.table_learning_rate)
    learner = dynamic.Learner(model, rates, device)
    parts = dynamic.predict_only(learner, batches("standing still"))
    predictions = dynamic.join(parts, model.vocab_size)
    still, _ = score_text(predictions, run.tokenizer, [1.0])
    parts = dynamic.predict_and_learn(learner, batches("learning"))
    predictions = dynamic.join(parts, model.vocab_size)
    columns, tempered = score_text(predictions, run.tokenizer, analysis.TEMPERATURES)
    offsets = byte_offsets(text, run.tokenizer)
    columns |= offsets
    still |= offsets  # the columns of the same targets
    opened = OpenRun(run, model, state.step, device, text)
    about = describe_run(opened, columns, options)
    about |= {"of_targets": num_targets, "steps": len(groups), "context": context}
    return RunScores(run, text, about, columns, tempered, standing_still=still)


def choose_device(run: Run, options: EvaluateOptions) -> "Device":
    """Set up the device and dtype that the options name, or those of the training."""
    with slow_imports():
        from engine.device import setup_device

    where = options.device or run.cfg.run.device
    return setup_device(where, options.dtype or run.cfg.run.dtype)


def open_model(run: Run, split: Split, options: EvaluateOptions) -> OpenRun:
    """Load a run's model, and cut the text into its windows."""
    with slow_imports():
        from engine.checkpoint import load_model

    device = choose_device(run, options)
    model, state = load_model(run, options.checkpoint, device)
    max_tokens = options.max_tokens
    if options.against or options.ensemble or options.explain:  # several runs read all of the text
        max_tokens = 0
    text = make_eval_text(run, split, max_tokens, options.stride)
    return OpenRun(run, model, state.step, device, text)


def predict_text(opened: OpenRun, *, has_bar: bool = True) -> "Iterator[Predictions]":
    """Predict the targets of a text, and show how far that is."""
    from engine.scoring import predict

    batches: Iterable[Batch] = opened.text.batches()
    if has_bar:
        batches = show_progress(batches, "evaluating", opened.text.num_batches)
    return predict(opened.model, batches, opened.device)


def show_progress(batches: "Iterable[Batch]", title: str, total: int) -> "Iterable[Batch]":
    """Show a bar for batches that are read one after another."""
    return progress_bar(batches, title, total=total, unit="batch", mininterval=1, disable=False)


def describe_run(
    opened: OpenRun, columns: analysis.Columns, options: EvaluateOptions
) -> dict[str, Any]:
    """Say which model was measured, and on which targets."""
    text = opened.text
    return {
        "run": str(opened.run.path),
        "checkpoint": options.checkpoint,
        "step": opened.step,
        "device": str(opened.device),
        "block_size": text.block_size,
        "stride": text.stride or text.block_size,
        "targets": len(columns["nll"]),
        "of_targets": text.split.num_targets(),
        "bytes": int(columns["bytes"].sum()),
    }


# What they add up to.


def explain_sentence(scores: list[RunScores], replaced: Replacer | None) -> str:
    """Say what a sentence costs each run, and what each of its tokens costs the first."""
    first = scores[0]
    tokens = first.text.split.tokens.tolist()
    lines = []
    bits_per_byte = []
    measured: list[RunScores | Member] = [first, *first.members, *scores[1:]]
    for each in measured:
        nats = each.columns["nll"].sum()
        (losses,), _ = measure_losses([each.columns])
        loss = {unit: values[0] for unit, values in losses.items()}
        bits_per_byte.append(loss["bits_per_byte"])
        title = printable(each.about["run"])
        if "step" in each.about:  # not of an ensemble
            title += f", step {each.about['step']:,}"
        lines.append(
            f"{nats:.2f} nats, {nats_to_bits(nats):.2f} bits, for {each.about['targets']} tokens: "
            f"{loss['nats_per_token']:.4f} nats per token, perplexity {loss['perplexity']:.2f}, "
            f"{loss['bits_per_byte']:.3f} bits per byte ({title})"
        )
    if replaced is not None:
        lines += unknown_lines(cost_of_replaced(replaced, first, bits_per_byte[0]))
    costs = show_costs(tokens, first.columns["nll"], first.run.tokenizer)
    if first.by_longest is not None:
        without = show_costs_without_tables(tokens, first.by_longest, first.run.tokenizer)
        costs = f"{costs}\n\n{without}"
    return "\n".join([*lines, "", costs])


def cost_of_replaced(
    replaced: Replacer, scores: RunScores, bits_per_byte: float
) -> dict[str, Any] | None:
    """Compute what it costs to give replaced characters back; None if every character is known."""
    if not replaced.characters:
        return None
    list_bits = 8 * len(replaced.pack())
    bytes_read = scores.run.tokenizer.count_bytes(scores.text.split.targets())
    bits = bits_per_byte * bytes_read + list_bits
    return {
        "says": replaced.summary(),
        "bits": list_bits,
        "bits_per_byte": bits / (bytes_read + replaced.added_bytes),
    }


def add_up(scores: list[RunScores], chosen: Chosen, options: EvaluateOptions) -> dict[str, Any]:
    """Say all about the first run's loss, and how the second's compares: what `--json` prints.

    The first may be an ensemble: then also the losses of its members.
    """
    first = scores[0]
    run = first.run
    columns = [each.columns for each in scores]
    columns += [member.columns for member in first.members]
    columns += [each.standing_still for each in scores if each.standing_still is not None]
    losses, blocks = measure_losses(columns)
    of_others = losses[len(scores) :]  # members, or the models before they learned
    baselines = []
    if chosen.has_baselines:
        baselines = list_baselines(first)
    summary = analysis.summarise(
        first.columns, first.tempered, first.text, run.tokenizer, chosen.train
    ).model_dump(exclude={"targets"})
    evaluation = {
        "text": chosen.name,
        **first.about,
        "loss": intervals(losses[0], blocks),
        "blocks": blocks._asdict(),
        "kl_gap": measure_kl_gap(first, chosen.source_nll),
        "baselines": baselines,
        **summary,
        "against": None,
    }
    if first.members:
        pairs = zip(first.members, of_others, strict=True)
        evaluation["members"] = [
            member.about | compare_with(losses[0], own, blocks) for member, own in pairs
        ]
    if options.dynamic:
        compared = compare_with(losses[0], of_others[0], blocks)
        evaluation["dynamic"] = describe_learning(first, compared, options)
        evaluation["english"] = beside_english(run, losses[0], options)
        if options.json_ or options.html:  # what is printed does not have it
            evaluation["along_text"] = measure_along_text(first, chosen, options)
    if options.mix:
        evaluation["mix"] = measure_mixture(first, options.mix)
    if first.by_longest is not None:
        means = first.by_longest.mean(axis=0).tolist()
        by_n = list(enumerate(means, start=1))
        evaluation["tables"] = dict(reversed(by_n))  # by the longest n-gram; 1: no table
    if chosen.replaced is not None:
        bits_per_byte = losses[0]["bits_per_byte"][0]
        evaluation["unknown"] = cost_of_replaced(chosen.replaced, first, bits_per_byte)
    if chosen.replaced_masked is not None and chosen.replaced_masked.characters:
        evaluation["unknown_masked"] = chosen.replaced_masked.summary()
    if len(scores) == 2:
        evaluation["against"] = compare_runs(scores, losses[:2], blocks) | {
            "may_have_seen_it": not options.text
            and have_other_splits([each.run for each in scores], options)
        }
        if options.dynamic:
            compared = compare_with(losses[1], of_others[1], blocks)
            evaluation["against"]["dynamic"] = describe_learning(scores[1], compared, options)
    return evaluation


def describe_learning(
    scores: RunScores, compared: dict[str, dict[str, Any]], options: EvaluateOptions
) -> dict[str, Any]:
    """Say what the loss was before a model learned, what learning gains, and at which rates.

    The gain grows along the text, so it is also said of its first and its last tenth.
    """
    assert scores.standing_still is not None
    gains = scores.standing_still["nll"] - scores.columns["nll"]
    tenth = math.ceil(len(gains) / 10)
    table_rate = None
    if scores.run.cfg.tables.are_used:
        table_rate = options.table_learning_rate
    return {
        "learning_rate": options.learning_rate,
        "table_learning_rate": table_rate,
        "standing_still": compared["loss"],
        "gain": compared["gain"],
        "gain_of_first_tenth": float(gains[:tenth].mean()),
        "gain_of_last_tenth": float(gains[-tenth:].mean()),
    }


def beside_english(run: Run, loss: analysis.Columns, options: EvaluateOptions) -> str:
    """Say what is estimated of English, beside a loss on the plays; empty for another text."""
    is_of_plays = run.info.name in PLAYS and not options.text
    if run.tokenizer.kind != "char" or not is_of_plays:
        return ""
    return ENGLISH.format(loss["bits_per_token"][0])


def measure_along_text(
    scores: RunScores, chosen: Chosen, options: EvaluateOptions
) -> dict[str, Any]:
    """Measure the loss along a text of a model that stands still, that learns, and of PPMd."""
    train = chosen.train
    if options.split == "train":  # nothing was read before
        train = None
    return losses_along_text(learned_text(scores), scores.run.tokenizer, train)


def learned_text(scores: RunScores) -> LearnedText:
    """Return a text with its costs for a model that stood still, and the same that learned."""
    assert scores.standing_still is not None
    return LearnedText(scores.text, scores.standing_still, scores.columns)


def compare_with(
    better: analysis.Columns, own: analysis.Columns, blocks: Blocks
) -> dict[str, dict[str, Any]]:
    """Say what a loss is, and how much lower that of an ensemble is, or of a model that learns."""
    gain = {name: own[name] - better[name] for name in ("nats_per_token", "bits_per_byte")}
    return {"loss": intervals(own, blocks), "gain": intervals(gain, blocks)}


def measure_mixture(scores: RunScores, name: str) -> dict[str, Any]:
    """Mix the predictions of a run, or of an ensemble, with an n-gram counted in its training text.

    Of a long text only the targets in its first part count, as for the baselines.
    """
    run = scores.run
    part = measured_part(scores.text.split)
    is_here = scores.text.positions < len(part.tokens)
    positions = scores.text.positions[is_here]
    own = {quantity: values[is_here] for quantity, values in scores.columns.items()}
    nll = count_ngrams(open_corpus(run).train, part.tokens, run, find_order(run, name))
    counted = own | {"nll": nll[positions - 1]}
    mixture = mix_causally(own["nll"], counted["nll"])
    mixed = own | {"nll": mixture.nll}
    (alone, of_ngram, loss), blocks = measure_losses([own, counted, mixed])
    gain = compare_with(loss, alone, blocks)["gain"]
    for unit in ("top1", "top5"):  # of the n-gram only the probability of each target is known
        del loss[unit]
    return {
        "with": name,
        "targets": len(positions),
        "loss": intervals(loss, blocks),
        "gain": gain,
        "weight": float(mixture.weights.mean()),
        "ngram_nats_per_token": float(of_ngram["nats_per_token"][0]),
    }


def measure_kl_gap(scores: RunScores, source_nll: np.ndarray | None) -> float | None:
    """Measure the loss above that of the text's source; None where the source is not known."""
    if source_nll is None:
        return None
    source_nll = source_nll[scores.text.positions - 1]  # of the same targets
    return float(np.mean(scores.columns["nll"] - source_nll))


def list_baselines(scores: RunScores) -> list[dict[str, Any]]:
    """List the baselines, which compare with a loss on all of their text only."""
    if scores.about["targets"] < scores.about["of_targets"]:
        return []
    listed = []
    for each in scores.run.info.baselines:
        facts = {"has_read": each.has_read, "learns": each.learns}
        listed.append(each.model_dump(exclude={"passage_nll"}) | facts)
    return listed


def compare_runs(
    scores: list[RunScores], losses: list[analysis.Columns], blocks: Blocks
) -> dict[str, Any]:
    """Compare two runs: the second's loss, and how much higher the first's is, in shared units."""
    first, second = scores
    units = ["bits_per_byte"]
    if first.text.split is second.text.split:
        units = ["nats_per_token", "bits_per_byte"]
    own, other = losses
    difference = {unit: own[unit] - other[unit] for unit in units}
    return {
        **second.about,
        "loss": intervals(other, blocks),
        "difference": intervals(difference, blocks),
        "other_targets": first.run.cfg.data.mask != second.run.cfg.data.mask,
    }


def have_other_splits(runs: list[Run], options: EvaluateOptions) -> bool:
    """Return whether two runs were trained on other texts, or other splits of one text.

    A run with a tuning split did not read validation text either.
    """
    splits = set()
    for run in runs:
        cfg = run.cfg.data
        split = cfg.split
        if (options.split or runs[0].cfg.data.split) == "val":
            split = "val"
        splits.add((run.info.sha256, cfg.val_fraction, cfg.documents, split))
    return len(splits) > 1


if __name__ == "__main__":
    run_command(main)
