"""What a corpus of a billion tokens costs once it is prepared: to open it, to make a batch, and in
memory.

    python bench/billion.py [RECIPE.toml] [--name=value ...]

Its shards are made up: random tokens, as many as are needed for 10 million, 100 million and a
billion of them. Each size is opened by a process of its own, as train.py opens it, which then makes
batches and takes steps of the recipe.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.output import write_results
from bench.results import cpu_name
from config.cli import load_config
from config.errors import run_command
from config.schema import Config
from data import prepare
from data.batches import TrainBatches
from data.checksums import write_checksums
from large.prepare import prepare_large

SIZES = [10_000_000, 100_000_000, 1_000_000_000]
SHARD = 95_000_000  # tokens: 190 MB
BATCHES, STEPS = 300, 10
RECORDS = 1000


def make_up(folder: Path, cfg: Config, tokens: int) -> None:
    """Prepare a small corpus, and put large shards in the place of its own."""
    Path(cfg.data.corpus).mkdir()
    (Path(cfg.data.corpus) / "records.jsonl").write_text(
        "".join(
            json.dumps({"text": f"Record {number} of {tokens} tokens."}) + "\n"
            for number in range(RECORDS)
        )
    )
    corpus = prepare_large(cfg.data)
    (prepared,) = folder.glob("texts-*")
    (prepared / "checksums.json").unlink()
    rng = np.random.default_rng(0)
    for number, first in enumerate(range(0, tokens, SHARD)):
        shard = rng.integers(
            corpus.info.vocab_size, size=min(SHARD, tokens - first), dtype=corpus.tokenizer.dtype
        )
        np.save(prepared / f"train-{number:05}-0.npy", shard)
    size = corpus.info.train.model_copy(update={"tokens": tokens, "targets": tokens - 1})
    info = corpus.info.model_copy(update={"train": size})
    (prepared / "meta.json").write_text(info.model_dump_json())
    write_checksums(prepared)


def open_and_use(cfg: Config) -> dict[str, Any]:
    """Seconds to open the corpus, of each batch and of each step, and the memory that is not the
    file's pages.
    """
    import torch

    from engine.device import micro_batch_size, setup_device
    from engine.objective import load_objective
    from engine.optim import make_optimizers
    from engine.state import TrainState
    from model import GPT
    from train import train_step

    began = time.perf_counter()
    corpus = prepare.prepare_corpus(cfg.data)
    get_batch = TrainBatches(
        corpus.train,
        cfg.model.block_size,
        cfg.optim.batch_size,
        cfg.run.seed,
        micro_batch_size=micro_batch_size(cfg),
    )
    batches, steps, memory, opened = [], [], [own_memory()], time.perf_counter() - began
    get_batch(0)  # shuffles the epoch
    for step in range(BATCHES):
        began = time.perf_counter()
        get_batch(step * cfg.optim.batch_size)
        batches.append(time.perf_counter() - began)
    memory.append(own_memory())
    device = setup_device(cfg.run.device, cfg.run.dtype)
    torch.manual_seed(0)
    model = GPT(cfg.model, corpus.info.vocab_size).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim, device)
    objective = load_objective(cfg.loss, corpus.tokenizer, cfg.model.block_size, device)
    for step in range(STEPS):
        began = time.perf_counter()
        batch = get_batch(step * cfg.optim.batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)
        steps.append(time.perf_counter() - began)
    return {
        "tokens": len(corpus.train.tokens),
        "open": opened,
        "batches": batches,
        "steps": steps,
        "memory": memory,
    }


def own_memory() -> float:
    """Megabytes."""
    status = Path("/proc/self/status")  # of Linux
    return next(
        int(line.split()[1]) / 1000
        for line in status.read_text().splitlines()
        if line.startswith("RssAnon")
    )


def main(argv: list[str]) -> None:
    if argv[:1] == ["here"]:  # a process of one size
        prepare.__dict__["DATA"] = Path(argv[1])
        print(json.dumps(open_and_use(load_config(argv[2:])[0])))
        return
    print(cpu_name())
    print(
        f"{'tokens':>14}{'open, s':>10}{'batch, ms':>11}{'of a step':>11}{'MB, open':>10}{'and used':>10}"
    )
    found = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            own = [*argv, f"--corpus={folder}/texts"]
            prepare.__dict__["DATA"] = Path(folder)
            make_up(Path(folder), load_config(own)[0], size)
            done = subprocess.run(
                [sys.executable, __file__, "here", folder, *own],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        one = json.loads(done.stdout.splitlines()[-1])
        assert one["tokens"] == size
        batch, step = statistics.median(one["batches"]), statistics.median(one["steps"])
        print(
            f"{one['tokens']:14,}{one['open']:10.2f}{1000 * batch:11.2f}{batch / step:11.1%}{one['memory'][0]:10.0f}"
            f"{one['memory'][1]:10.0f}"
        )
        found.append(one)
    write_results("billion", {"cpu": cpu_name(), "sizes": found})


if __name__ == "__main__":
    run_command(main)
