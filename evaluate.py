"""The exact loss of a run, and what is behind it: `python evaluate.py out/shakespeare_char
[--against=out/OTHER]`.

The story, in order: the text, the scores of its tokens, and what they add up to.
"""

from config.startup import end_on_interrupt

end_on_interrupt(__name__)

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from config.cli import load_options
from config.errors import UserError, run_command
from config.files import check_place
from config.schema import Count, FileName, Page, Section, Text, UnknownCharacters
from config.terminal import print_styled, printable, progress_bar
from data.corpora import read_corpus_text
from data.documents import Split, encode_documents, split_documents
from data.eval_text import EvalText
from data.sources import read_all_documents
from data.unknown import Unknown, known_to, replace_in_documents
from engine.run import Run, open_run


class EvaluateOptions(Section):
    """What to evaluate, and against what."""

    split: Literal["val", "train"] = Field("val", description="which split of the run's corpus")
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
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the runs")
    device: Text = Field("", description="auto, cpu, mps, cuda or cuda:N; empty = as in training")
    dtype: Literal["", "auto", "float32", "bfloat16", "float16"] = Field(
        "", description="of matrix products; empty = as in training"
    )
    html: Page = Field(
        "",
        description="also write a page for a browser, with the text token by token: a file such as "
        "page.html",
    )
    json_: bool = Field(False, alias="json", description="print JSON, and nothing else")


EXCLUSIVE = [
    {"split", "text"},
    {"against", "max_tokens"},
    *({"explain", other} for other in ("text", "json_", "split", "max_tokens", "stride")),
]
PAGE_TOKENS = 2000  # of a text, that a page shows one by one


def read_arguments(argv: list[str]) -> tuple[list[Run], EvaluateOptions]:
    """The run, or two, and the options."""
    paths, options = load_options(EvaluateOptions, argv, "RUN", None, "the directory of a run")
    runs = [
        open_run(Path(path))
        for path in (paths if not options.against else [*paths, options.against])
    ]
    for run in runs:
        if options.stride > run.cfg.model.block_size:
            raise UserError(
                f"stride={options.stride} is more than block_size={run.cfg.model.block_size} of "
                f"{run.path}: the tokens between windows would be left out"
            )
    for pair in EXCLUSIVE:
        if pair <= options.model_fields_set:
            raise UserError(
                f"{' and '.join(sorted(pair)).rstrip('_')}: use one of them"
                + (
                    "; two runs are compared on all of the text"
                    if pair == {"against", "max_tokens"}
                    else ""
                )
            )
    if options.unknown == "refuse":
        for run in runs:
            run.tokenizer.encode_prompt(options.explain)  # tells unknown characters
    if options.html:
        check_place(Path(options.html))
    return runs, options


if __name__ == "__main__":
    run_command(read_arguments)  # mistakes are answered here, because importing torch takes seconds

from engine.checkpoint import load_model
from engine.device import setup_device
from engine.evaluation import measure_passage, score_text
from engine.watchers import load_wing
from report import analysis
from report.evaluation import describe, unknown_lines
from report.tokens import show_costs
from surprisal import nats_to_bits


class Chosen(NamedTuple):
    """The text to evaluate, for each run."""

    name: str
    texts: list[EvalText]
    unknown: Unknown | None = None  # characters that were replaced in targets,
    masked: Unknown | None = None  # and in masked text


class Scored(NamedTuple):
    """What a run's model makes of a text."""

    about: dict[str, Any]  # which model, which text
    columns: analysis.Columns  # what is known of each target
    tempered: np.ndarray  # the mean NLL at each of TEMPERATURES
    # the first PAGE_TOKENS tokens, for a page; None if all of them are masked
    passage: analysis.Passage | None


def main(argv: list[str]) -> None:
    runs, options = read_arguments(argv)
    chosen = sentences(runs, options) if options.explain else read_texts(runs, options)
    name, texts, unknown, _ = chosen
    scored = [score(run, text, options) for run, text in zip(runs, texts, strict=True)]
    found = None
    if options.explain:
        print_styled(explain(runs, texts, scored))
        if unknown is not None:
            losses, _ = analysis.measure_losses([scored[0].columns])
            cost = describe_unknown(unknown, texts[0], losses[0]["bits_per_byte"][0], runs[0])
            print("\n".join(unknown_lines(cost)))
    else:
        found = evaluate(runs, chosen, scored, options)
        print(json.dumps(found, indent=1) if options.json_ else describe(found))
    if options.html:
        scored_texts = [(each.columns, each.passage) for each in scored]
        write_text_page = load_wing("page of a text")
        write_text_page(Path(options.html), runs, scored_texts, name, found)
        print(options.html, file=sys.stderr if options.json_ else sys.stdout)


def sentences(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """The sentence to explain, in each run's tokens."""
    sentence, unknown = options.explain, None
    known = known_to(run.tokenizer for run in runs)
    if options.unknown == "replace" and known is not None:
        unknown = Unknown(known)
        sentence = unknown.replace(sentence)
        if not sentence:
            raise UserError(
                "explain: nothing is left of the sentence: the run knows none of its characters"
            )
    tokens = [np.array(run.tokenizer.encode_after_context(sentence)) for run in runs]
    texts = [run.eval_text(Split(own)) for run, own in zip(runs, tokens, strict=True)]
    return Chosen("a sentence", texts, unknown)


def describe_unknown(
    unknown: Unknown, text: EvalText, bits_per_byte: float, run: Run
) -> dict[str, Any] | None:
    """What was replaced in a text, and what it costs to give it back; None if every character is
    known.
    """
    if not unknown.characters:
        return None
    bits = 8 * len(unknown.pack())
    read = run.tokenizer.count_bytes(text.split.targets())  # bytes that the run read
    whole = (bits_per_byte * read + bits) / (read + unknown.added_bytes)
    return {"says": unknown.describe(), "bits": bits, "bits_per_byte": whole}


def explain(runs: list[Run], texts: list[EvalText], scored: list[Scored]) -> str:
    """What each token of a sentence costs, and what all of them cost each run."""
    parts = [
        show_costs(texts[0].split.tokens.tolist(), scored[0].columns["nll"], runs[0].tokenizer),
        "",
    ]
    for run, (about, columns, *_) in zip(runs, scored, strict=True):
        name = printable(str(run.path))
        nll = columns["nll"]
        (loss,), _ = analysis.measure_losses([columns])
        parts.append(
            f"{nll.sum():.2f} nats, {nats_to_bits(nll.sum()):.2f} bits, for {len(nll)} tokens: "
            f"{loss['nats_per_token'][0]:.4f} nats per token, perplexity {loss['perplexity'][0]:.2f}, "
            f"{loss['bits_per_byte'][0]:.3f} bits per byte ({name}, step {about['step']:,})"
        )
    return "\n".join(parts)


def evaluate(
    runs: list[Run], chosen: Chosen, scored: list[Scored], options: EvaluateOptions
) -> dict[str, Any]:
    """What there is to know about the first run's loss, and how the second's compares: what
    `--json` prints.
    """
    name, texts, unknown, masked = chosen
    losses, blocks = analysis.measure_losses([each.columns for each in scored])
    run, (about, columns, tempered, _) = runs[0], scored[0]
    # With a text of one's own, the corpus may be elsewhere.
    train = None if options.text else run.corpus.train
    details = analysis.summarise(columns, tempered, texts[0], run.tokenizer, train)

    of_val = options.split == "val" and not options.text
    of_whole_val = of_val and about["targets"] == about["of_targets"]
    source_nll = run.corpus.source_nll if of_val else None  # where the source of the text is known
    found = {
        "text": name,
        **about,
        "loss": analysis.intervals(losses[0], blocks),
        "blocks": blocks._asdict(),
        "kl_gap": None
        if source_nll is None
        else np.mean(columns["nll"] - source_nll[texts[0].positions - 1]),
        "baselines": [each.model_dump(exclude={"passage_nll"}) for each in run.info.baselines]
        if of_whole_val
        else [],
        **details.model_dump(exclude={"targets"}),
        "against": None,
    }
    if unknown is not None:
        found["unknown"] = describe_unknown(unknown, texts[0], losses[0]["bits_per_byte"][0], run)
    if masked is not None and masked.characters:
        found["unknown_masked"] = masked.describe()
    if len(runs) == 2:
        units = ["nats_per_token"] * (texts[0].split is texts[1].split) + ["bits_per_byte"]
        difference = {unit: losses[0][unit] - losses[1][unit] for unit in units}
        splits = {
            (each.info.sha256, each.cfg.data.val_fraction, each.cfg.data.documents) for each in runs
        }
        found["against"] = {
            **scored[1].about,
            "loss": analysis.intervals(losses[1], blocks),
            "difference": analysis.intervals(difference, blocks),
            "other_targets": len({each.cfg.data.mask for each in runs}) > 1,
            "may_have_seen_it": len(splits) > 1 and not options.text,
        }
    return found


def read_texts(runs: list[Run], options: EvaluateOptions) -> Chosen:
    """The name of the text, and the text in each run's tokens. The first run decides which are
    targets.
    """
    run, cfg = runs[0], runs[0].cfg.data
    name = options.text or f"the {options.split} split of {run.info.name}"
    if options.text:
        cfg = cfg.model_copy(update={"corpus": options.text})

    documents, unknown, masked = None, None, None
    if options.text:
        documents = read_all_documents(cfg)
        known = known_to(own.tokenizer for own in runs)
        if options.unknown == "replace" and known is not None:
            documents, unknown, masked = replace_in_documents(documents, known)

    def encode(own: Run) -> Split:
        if documents is None:
            of_split = split_documents(read_corpus_text(cfg).text, cfg)[options.split]
            return encode_documents(of_split, own.tokenizer, cfg, name)
        return encode_documents(documents, own.tokenizer, cfg, name)

    splits = [encode(run) if options.text else getattr(run.corpus, options.split)]
    for other in runs[1:]:
        if other.tokenizer.eos_text != run.tokenizer.eos_text:
            raise UserError(
                f"against={other.path}: its eos token stands for {other.tokenizer.eos_text!r}, and that of "
                f"{run.path} for {run.tokenizer.eos_text!r}: they do not predict the same bytes"
            )
        splits.append(splits[0] if other.tokenizer == run.tokenizer else encode(other))
    # two runs are compared on all of the text
    max_tokens = options.max_tokens if len(runs) == 1 else 0
    texts = [
        own.eval_text(split, max_tokens, options.stride)
        for own, split in zip(runs, splits, strict=True)
    ]
    return Chosen(name, texts, unknown, masked)


def score(run: Run, text: EvalText, options: EvaluateOptions) -> Scored:
    where = options.device or run.cfg.run.device
    device = setup_device(where, options.dtype or run.cfg.run.dtype)
    model, state = load_model(run, options.checkpoint, device)

    def show_progress(batches: Iterable[Any]) -> Any:
        return progress_bar(
            batches,
            "evaluating",
            total=text.num_batches,
            unit="batch",
            mininterval=1,
            disable=False,
        )

    columns, tempered = score_text(
        model, text, run.tokenizer, analysis.TEMPERATURES, device, progress=show_progress
    )
    about = {
        "run": str(run.path),
        "checkpoint": options.checkpoint,
        "step": state.step,
        "device": str(device),
        "block_size": text.block_size,
        "stride": text.stride or text.block_size,
        "targets": len(columns["nll"]),
        "of_targets": text.split.num_targets(),
        "bytes": int(columns["bytes"].sum()),
    }
    passage = None
    start = text.split.first(PAGE_TOKENS - 1)
    if options.html and start.num_targets():
        whole = replace(text, split=start, max_tokens=0)
        costs = measure_passage(model, whole, 0, analysis.PASSAGE_TEMPERATURES, device)
        passage = analysis.Passage(step=state.step, **costs)
    return Scored(about, columns, tempered, passage)


if __name__ == "__main__":
    run_command(main)
