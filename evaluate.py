"""The exact loss of a run, and what is behind it: `python evaluate.py out/shakespeare_char [--against=out/OTHER]`.

The story, in order: the text, the scores of its tokens, and what they add up to.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from config.cli import load_options
from config.errors import UserError, run_command
from config.schema import Count, Section, Text
from data.batches import Batch, EvalText
from data.corpora import read_corpus
from data.documents import encode_documents, read_documents, split_documents
from data.prepare import read_source
from engine.run import Run, open_run


class EvaluateOptions(Section):
    """What to evaluate, and against what."""

    split: Literal["val", "train"] = Field("val", description="which split of the run's corpus")
    text: Text = Field("", description="a UTF-8 file to evaluate instead")
    explain: str = Field("", description="a sentence: show what each of its tokens costs")
    max_tokens: Count = Field(1_000_000, description="evaluate about so many tokens, spread evenly; 0 = all")
    stride: Count = Field(0, description="tokens by which the window moves on: fewer give more context; 0 = block_size")
    against: Text = Field("", description="another run to compare with on the same text")
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of the runs")
    device: Text = Field("", description="auto, cpu, mps, cuda or cuda:N; empty = as in training")
    as_json: bool = Field(False, alias="json", description="print JSON, and nothing else")


def read_arguments(argv: list[str]) -> tuple[list[Run], EvaluateOptions]:
    """The run, or two, and the options."""
    paths, options = load_options(EvaluateOptions, argv, "RUN", None, "the directory of a run")
    runs = [open_run(Path(path)) for path in (paths[0], options.against) if path]
    for run in runs:
        if options.stride > run.config.model.block_size:
            raise UserError(f"stride={options.stride} is more than block_size={run.config.model.block_size} of "
                            f"{run.path}: the tokens between windows would be left out")
    if options.text and options.split != "val":
        raise UserError("text and split: use one of them")
    if options.explain and (options.text or options.against or options.as_json):
        raise UserError("explain shows one sentence; it does not go with text, against or json")
    if options.explain:
        runs[0].tokenizer.encode_prompt(options.explain)  # tells unknown characters
    if options.against and "max_tokens" in options.model_fields_set:
        raise UserError("max_tokens and against: use one of them; two runs are compared on all of the text")
    if options.text:
        read_corpus(options.text)  # tells what cannot be read
    return runs, options


if __name__ == "__main__":
    run_command(read_arguments)  # mistakes are answered here, because importing torch takes seconds

from tqdm import tqdm

from engine import scoring
from engine.checkpoint import load_model
from engine.distributed import setup_distributed
from report import analysis, evaluation
from report.explain import show_costs
from report.words import passed_and_ahead
from surprisal import LN2


@dataclass(frozen=True)
class Reading:
    """A run, and the text in its tokens."""

    run: Run
    text: EvalText

    @cached_property
    def bytes(self) -> np.ndarray:
        """Of each target, (N,)."""
        return self.run.tokenizer.byte_lengths[self.text.split.tokens[self.text.positions]]

    @property
    def offsets(self) -> np.ndarray:
        """The byte of the text where each target begins, (N,)."""
        lengths = self.run.tokenizer.byte_lengths.astype(np.uint16)[self.text.split.tokens[:-1]]
        return np.cumsum(lengths, dtype=np.int64)[self.text.positions - 1]


def main(argv: list[str]) -> None:
    runs, options = read_arguments(argv)
    if options.explain:
        print(explain(runs[0], options))
        return
    found = evaluate(runs, options)
    print(json.dumps(found, indent=1) if options.as_json else evaluation.describe(found))


def explain(run: Run, options: EvaluateOptions) -> str:
    """What each token of a sentence costs."""
    dist = setup_distributed(options.device or run.config.run.device, run.config.run.dtype)
    model, state = load_model(run, options.checkpoint, dist)
    tokens = run.tokenizer.encode_prompt(options.explain)
    if run.tokenizer.eos is None:  # the first token has a line end as its context
        tokens = [*run.tokenizer.encode_prompt(""), *tokens]
    nll = scoring.nll_of_tokens(model, tokens, dist)
    costs = [float("nan"), *nll]
    n_bytes = run.tokenizer.count_bytes(np.array(tokens[1:]))
    return (f"{show_costs(tokens, costs, run.tokenizer)}\n\n{nll.sum():.2f} nats for {len(nll)} tokens: "
            f"{nll.mean():.4f} per token, perplexity {np.exp(nll.mean()):.2f}, {nll.sum() / LN2 / n_bytes:.3f} bits "
            f"per byte ({run.path}, step {state.step:,})")


def evaluate(runs: Sequence[Run], options: EvaluateOptions) -> dict[str, Any]:
    """What there is to know about the first run's loss, and how the second's compares; the JSON has the same names."""
    run, whole_val = runs[0], options.split == "val" and not options.text
    name, readings, notes = read_text(runs, options)
    scores, kl, steps, device = score(readings, options)
    blocks = analysis.Blocks(*(reading.offsets for reading in readings))
    losses = [analysis.measure_loss(blocks, own.nll, own.top(1), own.top(5), reading.bytes, number)
              for number, (own, reading) in enumerate(zip(scores, readings, strict=True))]
    text, nll = readings[0].text, losses[0]["nats_per_token"]["value"]
    if len(text.positions) < text.split.num_targets():
        notes.append(f"Evaluated {len(text.positions):,} of {text.split.num_targets():,} targets, spread evenly; "
                     "--max_tokens=0 evaluates all.")
        whole_val = False
    logged = [record["best_val_nll"] for record in run.read_metrics() if record.get("best_step") == steps[0]]
    beats, ahead = passed_and_ahead(nll, run.info.baselines) if whole_val else ([], [])
    source_nll = run.corpus.source_nll if not options.text and options.split == "val" else None
    return {
        "run": str(run.path), "checkpoint": options.checkpoint, "step": steps[0], "text": name, "device": device,
        "block_size": text.block_size, "stride": text.stride or text.block_size, "notes": notes, "loss": losses[0],
        "resamples": analysis.RESAMPLES, "blocks": blocks.count, "block_bytes": blocks.bytes,
        "logged_nll": logged[-1] if logged and whole_val else None,
        "beats": [each.model_dump() for each in beats], "ahead": [each.model_dump() for each in ahead],
        "kl_gap": None if source_nll is None else nll - float(source_nll[text.positions - 1].mean()),
        "calibration": analysis.calibrate(scores[0].confidence, scores[0].top(1), scores[0].tempered),
        "groups": group(readings[0], scores[0], notes),
        "against": compare(readings, scores, losses[1], blocks, kl, steps[1]) if len(runs) > 1 else None}


def read_text(runs: Sequence[Run], options: EvaluateOptions) -> tuple[str, list[Reading], list[str]]:
    """The name of the text, the text in each run's tokens, and remarks. The first run decides which are targets."""
    run, notes, documents = runs[0], [], None
    if options.text:
        name, config = options.text, run.config.data.model_copy(update={"corpus": options.text})
        documents = read_documents(read_source(config).text, config)
        split = encode_documents(documents, run.tokenizer, config, name)
    else:
        name, config = f"the {options.split} split of {run.info.name}", run.config.data
        split = getattr(run.corpus, options.split)
    readings = []
    for own in runs:
        own_split = split
        if own.tokenizer != run.tokenizer:
            if own.tokenizer.eos_text != run.tokenizer.eos_text:
                raise UserError(f"against={own.path}: its eos token stands for {own.tokenizer.eos_text!r}, and that of "
                                f"{run.path} for {run.tokenizer.eos_text!r}: they do not predict the same bytes")
            documents = documents or split_documents(read_source(config).text, config)[options.split]
            own_split = encode_documents(documents, own.tokenizer, config, name)
        eos = own.tokenizer.eos if own.config.data.padded else None
        limit = options.max_tokens if len(runs) == 1 else 0  # two runs must read the same text
        readings.append(Reading(own, EvalText(own_split, own.config.model.block_size, eos, options.stride, limit)))
        trained_on = {(each.info.sha256, each.config.data.val_fraction, each.config.data.documents)
                      for each in (run, own)}
        if len(trained_on) > 1 and not options.text:
            notes.append(f"{own.path} was trained on another text or split: it may have seen this one.")
    return name, readings, notes


def score(readings: Sequence[Reading], options: EvaluateOptions
          ) -> tuple[list[scoring.Scores], np.ndarray | None, list[int], str]:
    """The scores of each reading; KL both ways for each target, if both have the same; the steps; and the device."""
    models, steps = [], []
    for reading in readings:
        config = reading.run.config.run
        dist = setup_distributed(options.device or config.device, config.dtype)
        model, state = load_model(reading.run, options.checkpoint, dist)
        models.append((model, dist))
        steps.append(state.step)
    device = str(models[0][1])
    with tqdm(total=sum(len(reading.text.positions) for reading in readings), unit="token", unit_scale=True,
              desc="evaluating", leave=False, mininterval=0.2 if sys.stderr.isatty() else 10, file=sys.stderr) as bar:

        def watch(text: EvalText) -> Iterator[Batch]:
            for batch in text.batches():
                yield batch
                bar.update(batch.num_targets)

        predictions = [scoring.predict(model, watch(reading.text), dist)
                       for reading, (model, dist) in zip(readings, models, strict=True)]
        if len(readings) == 2 and readings[0].text.split is readings[1].text.split:
            ours, theirs, kl = scoring.score_both(predictions[0], predictions[1], analysis.TEMPERATURES)
            return [ours, theirs], kl, steps, device
        return [scoring.score(own, analysis.TEMPERATURES) for own in predictions], None, steps, device


def group(reading: Reading, scores: scoring.Scores, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Where the loss comes from: by context length, and by kind of character or by frequency in training."""
    run, tokenizer, correct = reading.run, reading.run.tokenizer, scores.top(1)
    names, number = analysis.group_by_context(scores.context_len, reading.text.block_size)
    groups = {"context": analysis.group(names, number, scores.nll, correct)}
    if tokenizer.kind == "char":
        eos = [] if tokenizer.eos is None else [analysis.CHARACTER_KINDS.index("eos")]
        kind = np.array([*map(analysis.character_kind, tokenizer.ids), *eos])
        groups["character"] = analysis.group(analysis.CHARACTER_KINDS, kind[scores.targets], scores.nll, correct)
        return groups
    try:
        counts = np.bincount(run.corpus.train.tokens, minlength=tokenizer.vocab_size)
    except UserError as error:
        notes.append(f"The frequency of the tokens in training is not known: {error}")
        return groups
    names, kind = analysis.group_by_frequency(counts)
    return groups | {"frequency": analysis.group(names, kind[scores.targets], scores.nll, correct)}


def compare(readings: Sequence[Reading], scores: Sequence[scoring.Scores], other: dict[str, Any],
            blocks: analysis.Blocks, kl: np.ndarray | None, step: int) -> dict[str, Any]:
    """The first reading's loss less the second's, on the same resamples; what needs equal tokens may be None."""

    def difference(denominators: Sequence[np.ndarray]) -> np.ndarray:
        ours, theirs = (blocks.ratio(own.nll, below, number)
                        for number, (own, below) in enumerate(zip(scores, denominators, strict=True)))
        return ours - theirs

    ones = np.ones(len(scores[0].nll))
    bits = analysis.interval(difference([reading.bytes for reading in readings]) / LN2)
    return {"run": str(readings[1].run.path), "step": step, "loss": other, "bits_per_byte": bits,
            "noise": bits["low"] <= 0 <= bits["high"],
            "nats_per_token": None if kl is None else analysis.interval(difference([ones, ones])),
            "kl": None if kl is None else analysis.interval(blocks.ratio(kl[0], ones)),
            "kl_back": None if kl is None else analysis.interval(blocks.ratio(kl[1], ones))}


if __name__ == "__main__":
    run_command(main)
