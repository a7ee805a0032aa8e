"""Measure how fast a large corpus becomes tokens, against tiktoken's encode_ordinary_batch.

    python bench/corpora.py [--megabytes=1000] [--rounds=3] [--tokenizer=bpe] [--vocab_size=1024]

Both have the same text and cores. The text is the speeches of the plays in random order, as records
of a .jsonl file. Ours reads it, encodes it and writes shards; tiktoken encodes the same documents,
which it has in memory, and keeps nothing. Then the whole command, with baselines: its seconds and
its memory at the peak.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import Field
from tqdm import tqdm

from bench.output import write_results
from bench.results import cpu_name
from config.errors import run_command
from config.parser import load_options
from config.schema import DataConfig
from config.values import Positive, Section
from data.corpora import read_corpus
from data.sources import read_pieces
from data.tokenizer import Tokenizer, make_tokenizer
from large.prepare import choose_texts
from large.shards import write_shards

BATCH = 10_000  # documents that tiktoken gets at once


class Options(Section):
    """How much, and how often."""

    megabytes: Positive = Field(1000, description="of text")
    rounds: Positive = Field(3, description="of each measurement")
    tokenizer: str = Field("bpe", description="bpe or gpt2")
    vocab_size: int = Field(
        1024, description="of bpe; 50257 is as many tokens as gpt2 has, without a network"
    )


def write_text(path: Path, megabytes: int) -> None:
    speeches = read_corpus("shakespeare").split("\n\n")
    rng = random.Random(0)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1_000_000:
            text = "\n\n".join(rng.choices(speeches, k=20))
            size += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")


def time_ours(corpus: Path, tokenizer: Tokenizer) -> float:
    """Return the seconds to read, encode and write."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        began = time.perf_counter()
        pieces = read_pieces(str(corpus), tqdm(disable=True))
        list(write_shards(pieces, tokenizer, Path(folder)))
        return time.perf_counter() - began


def time_theirs(corpus: Path, tokenizer: Tokenizer) -> float:
    """Return the seconds to encode only."""
    seconds = 0.0
    batch: list[str] = []

    def encode() -> float:
        began = time.perf_counter()
        tokenizer.encoding.encode_ordinary_batch(batch, num_threads=os.cpu_count())
        return time.perf_counter() - began

    for piece in read_pieces(str(corpus), tqdm(disable=True)):
        batch.append(piece.text)
        if len(batch) == BATCH:
            seconds += encode()
            batch = []
    return seconds + encode()


def main(argv: list[str]) -> None:
    _, options = load_options(Options, argv, "NOTHING", "*", "no arguments")
    print(cpu_name())
    times: dict[str, list[float]] = {"Surprisal": [], "tiktoken": []}
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "bench_speeches/speeches.jsonl")
        corpus.parent.mkdir()
        write_text(corpus, options.megabytes)
        cfg = DataConfig(
            corpus=str(corpus.parent), tokenizer=options.tokenizer, vocab_size=options.vocab_size
        )
        texts = choose_texts(read_pieces(str(corpus), tqdm(disable=True)), cfg.tokenizer)
        tokenizer = make_tokenizer(cfg.tokenizer, texts, cfg.vocab_size, cfg.eos_text)
        for _ in range(options.rounds):
            times["Surprisal"].append(time_ours(corpus, tokenizer))
            times["tiktoken"].append(time_theirs(corpus, tokenizer))
        for program, seconds in times.items():
            median = statistics.median(seconds)
            print(f"{program:<12}{median:8.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")
        both = zip(*times.values(), strict=True)
        ratios = [ours / theirs for ours, theirs in both]
        median = statistics.median(ratios)
        print(f"{'ratio':<12}{median:8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
        began = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "large/prepare.py",
                f"--corpus={corpus.parent}",
                "--val_fraction=0.01",
                f"--tokenizer={options.tokenizer}",
                f"--vocab_size={options.vocab_size}",
            ],
            cwd=ROOT,
            check=True,
        )
        whole = time.perf_counter() - began
    for prepared in (ROOT / "data").glob(f"{corpus.parent.name}-*"):
        shutil.rmtree(prepared)
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the whole command: {whole:.1f} s, {megabytes:.0f} MB of memory at the peak")
    results: dict[str, Any] = {
        "cpu": cpu_name(),
        "megabytes": options.megabytes,
        "seconds": times,
        "whole": whole,
        "peak_megabytes": megabytes,
    }
    write_results("corpora", results)


if __name__ == "__main__":
    run_command(main)
