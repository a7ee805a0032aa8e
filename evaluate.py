"""The exact loss of a run, and what is behind it: `python evaluate.py out/shakespeare_char [--against=out/OTHER]`.

The story, in order: the text, the scores of its tokens, and what they add up to.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

import analysis
import report
import report_evaluation
from analysis import Blocks, Comparison, Evaluation, Group, Loss, interval
from config.cli import load_options
from config.schema import Count, Section
from data.documents import Split, encode_text, read_documents
from data.prepare import read_source, split_text
from data.tokenizer import CharTokenizer, Tokenizer
from errors import UserError, run_command
from runs import Run, open_run
from surprisal import LN2

if TYPE_CHECKING:
    from data.batches import Batch
    from engine.scoring import Scores


class EvaluateOptions(Section):
    """What to evaluate, and against what."""

    split: Literal["val", "train"] = Field("val", description="which part of the run's corpus")
    text: str = Field("", description="a UTF-8 file to evaluate, instead of a split")
    stride: Count = Field(0, description="tokens the window moves on by: fewer give more context; 0 = block_size")
    against: str = Field("", description="another run, to compare with on the same text")
    checkpoint: Literal["best", "last"] = Field("best", description="which of the runs' checkpoints")
    device: str = Field("", description="auto, cpu, mps, cuda or cuda:N; empty = as in training")
    as_json: bool = Field(False, alias="json", description="print JSON, and nothing else")


@dataclass(frozen=True)
class Reading:
    """A run, and a text in its tokens, of which N are scored."""

    run: Run
    tokenizer: Tokenizer
    split: Split

    @property
    def bytes(self) -> np.ndarray:
        """Of each scored token, `(N,)`."""
        return self.tokenizer.byte_lengths[self.split.targets()]

    @property
    def offsets(self) -> np.ndarray:
        """The byte of the text at which each scored token begins, `(N,)`."""
        begins = self.tokenizer.byte_lengths[self.split.tokens[:-1]].cumsum()
        return begins if self.split.scored is None else begins[self.split.scored[1:]]

    def batches(self, stride: int) -> Iterator["Batch"]:
        """The windows that the run's model reads it in."""
        from data.batches import eval_batches

        config = self.run.config
        return eval_batches(self.split, config.model.block_size, self.tokenizer.end if config.data.padded else None,
                            stride)


def main(argv: list[str]) -> None:
    paths, options = load_options(EvaluateOptions, argv, "RUN", None, "a directory that train.py made")
    runs = [open_run(Path(path)) for path in (paths[0], options.against) if path]
    for run in runs:
        if options.stride > run.config.model.block_size:
            raise UserError(f"stride={options.stride} is more than block_size={run.config.model.block_size} of "
                            f"{run.path}: the tokens between windows would not be scored")
        known = options.split == "train" and not options.text and run.meta["sha256"] == runs[0].meta["sha256"]
        if known and run.config.model.ngram:
            raise UserError(f"split=train: the n-grams of {run.path} were counted in this text, so its loss would be "
                            "too low; metrics.jsonl has train_nll, measured with counts that leave each part out")
    evaluation = evaluate(runs, options)
    print(json.dumps(asdict(evaluation), indent=1) if options.as_json else report_evaluation.words(evaluation))


def evaluate(runs: Sequence[Run], options: EvaluateOptions) -> Evaluation:
    """What there is to know of the first run's loss; and how the second's compares, if there is one."""
    run, whole_val = runs[0], options.split == "val" and not options.text
    name, readings, notes, floor = read_text(runs, options)
    scores, kl, steps, world = score(readings, options)
    blocks = Blocks(*(reading.offsets for reading in readings))
    losses = [analysis.measure_loss(blocks, own.nll, own.rank, reading.bytes, number)
              for number, (own, reading) in enumerate(zip(scores, readings, strict=True))]
    logged = [record["val_nll"] for record in run.metrics if record["step"] == steps[0] and "val_nll" in record]
    if whole_val and 0 < run.config.run.eval_tokens < len(readings[0].split.tokens) - 1:
        notes.append(f"Training evaluated the first {run.config.run.eval_tokens:,} tokens only; this is all of them.")
        logged = []
    groups = group(readings[0], scores[0], notes)
    beats, ahead = report.passed_and_ahead(losses[0].nats_per_token.value, run.baselines) if whole_val else ([], [])
    return Evaluation(
        run=str(run.path), checkpoint=options.checkpoint, step=steps[0], text=name, world=world,
        block_size=run.config.model.block_size, stride=options.stride or run.config.model.block_size, notes=notes,
        loss=losses[0], resamples=analysis.RESAMPLES, blocks=blocks.count, block_bytes=blocks.bytes,
        logged_nll=logged[-1] if logged and whole_val else None, beats=beats, ahead=ahead,
        kl_gap=None if floor is None else losses[0].nats_per_token.value - floor,
        calibration=analysis.calibrate(scores[0].confidence, scores[0].rank == 0, scores[0].tempered),
        groups=groups, against=compare(readings, scores, losses[1], blocks, kl, steps[1]) if len(runs) > 1 else None)


def read_text(runs: Sequence[Run], options: EvaluateOptions) -> tuple[str, list[Reading], list[str], float | None]:
    """The name of the text, the text in each run's tokens, what is to be said about that, and the loss of its source.

    What of it is scored is up to the first run: its documents and its mask.
    """
    run, tokenizers, notes, floor = runs[0], [run.load_tokenizer() for run in runs], [], None
    if options.text:
        name, config = options.text, run.config.data.model_copy(update={"corpus": options.text})
        documents = read_documents(read_source(config)[0], config)
        split = encode_text(documents, tokenizers[0], config, name, "it")
    else:
        name, config, corpus = f"the {options.split} split of {run.meta['corpus']}", run.config.data, run.corpus
        documents, split = [], corpus.val if options.split == "val" else corpus.train
        floor = corpus.floor(len(split.tokens) - 1) if options.split == "val" else None
    readings = [Reading(run, tokenizers[0], split)]
    for other, tokenizer in zip(runs[1:], tokenizers[1:], strict=True):
        if tokenizer.to_json() != tokenizers[0].to_json():
            if tokenizer.separator != tokenizers[0].separator:
                raise UserError(f"against={other.path}: its end token stands for {tokenizer.separator!r}, and that of "
                                f"{run.path} for {tokenizers[0].separator!r}: they do not predict the same bytes")
            documents = documents or split_text(read_source(config)[0], config)[options.split]
            split = encode_text(documents, tokenizer, config, name, "it")
        readings.append(Reading(other, tokenizer, split))
        splits = {(each.meta["sha256"], each.config.data.val_fraction, each.config.data.documents)
                  for each in (run, other)}
        if len(splits) > 1 and not options.text:
            notes.append(f"{other.path} was trained on another text or split: it may have seen this one.")
    return name, readings, notes, floor


def score(readings: Sequence[Reading], options: EvaluateOptions
          ) -> tuple[list["Scores"], np.ndarray | None, list[int], str]:
    """The scores of each reading, KL both ways at each token if they have the same, the steps, and where it was."""
    from tqdm import tqdm

    from engine import scoring
    from engine.checkpoint import load_model
    from engine.distributed import find_world
    from loss import IGNORE_INDEX

    def watch(batches: Iterable["Batch"]) -> Iterator["Batch"]:
        for batch in batches:
            yield batch
            bar.update(int((batch.targets != IGNORE_INDEX).sum()))

    predictions, steps, worlds = [], [], []
    with tqdm(total=sum(reading.split.count_scored() for reading in readings), unit="token", unit_scale=True,
              desc="evaluating", disable=None, leave=False, dynamic_ncols=True) as bar:
        for reading in readings:
            config = reading.run.config
            worlds.append(find_world(options.device or config.run.device, config.run.dtype))
            model, progress = load_model(reading.run, options.checkpoint, worlds[-1])
            steps.append(progress.step)
            predictions.append(scoring.predict(model, watch(reading.batches(options.stride)), worlds[-1]))
        betas = analysis.INVERSE_TEMPERATURES
        if len(readings) == 2 and readings[0].split is readings[1].split:
            ours, theirs, kl = scoring.score_both(predictions[0], predictions[1], betas)
            return [ours, theirs], kl, steps, str(worlds[0])
        return [scoring.score(own, betas) for own in predictions], None, steps, str(worlds[0])


def group(reading: Reading, scores: "Scores", notes: list[str]) -> dict[str, list[Group]]:
    """Where the loss comes from: by tokens of context, and by kind of character or else by frequency."""
    tokenizer, right = reading.tokenizer, scores.rank == 0
    names, number = analysis.context_kinds(scores.seen, reading.run.config.model.block_size)
    groups = {"context": analysis.group(names, number, scores.nll, right)}
    if isinstance(tokenizer, CharTokenizer):
        ends = [] if tokenizer.end is None else [analysis.CHARACTER_KINDS.index("end of document")]
        kind = np.array([*map(analysis.character_kind, tokenizer.characters), *ends])
        groups["character"] = analysis.group(analysis.CHARACTER_KINDS, kind[scores.targets], scores.nll, right)
        return groups
    try:
        counts = np.bincount(reading.run.corpus.train.tokens, minlength=tokenizer.vocab_size)
    except UserError as error:
        notes.append(f"How often the tokens occur in training is not known: {error}")
        return groups
    names, kind = analysis.frequency_kinds(counts)
    groups["frequency"] = analysis.group(names, kind[scores.targets], scores.nll, right)
    return groups


def compare(readings: Sequence[Reading], scores: Sequence["Scores"], other: Loss, blocks: Blocks,
            kl: np.ndarray | None, step: int) -> Comparison:
    """The first reading's loss less the second's, on the same resamples of the text."""

    def difference(denominators: Sequence[np.ndarray]) -> np.ndarray:
        ours, theirs = (blocks.ratio(own.nll, below, number)
                        for number, (own, below) in enumerate(zip(scores, denominators, strict=True)))
        return ours - theirs

    bits = interval(difference([reading.bytes for reading in readings]) / LN2)
    ones = np.ones(len(scores[0].nll))
    return Comparison(
        run=str(readings[1].run.path), step=step, loss=other, bits_per_byte=bits, noise=bits.low <= 0 <= bits.high,
        nats_per_token=interval(difference([ones, ones])) if kl is not None else None,
        kl=interval(blocks.ratio(kl[0], ones)) if kl is not None else None,
        kl_back=interval(blocks.ratio(kl[1], ones)) if kl is not None else None)


if __name__ == "__main__":
    run_command(main)
