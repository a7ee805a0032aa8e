"""Measure speed against nanoGPT's own code and Hugging Face's transformers.

    python bench/peers.py path/to/nanoGPT [--rounds=3] [--dtype=float32]

All have the same GPT-2 shapes and batches. nanoGPT's data/shakespeare_char has to be prepared
there; `pip install transformers accelerate` brings the other. Programs take turns; figures are
medians over rounds, ratios are those of one round.

Training: whole commands with their defaults; the time of a step is the median over a command's
steps, and the time to the first step is from the start of the process. With --dtype=auto our
training takes bfloat16 where the CPU has it; on CPUs the others compute in float32. Sampling:
random weights, one sequence of 500 tokens after one token, at temperature 0.8; then 64 sequences.
Evaluation: the default recipe's validation loss against its training.
"""

import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from pydantic import Field

from bench.output import write_results
from bench.results import cpu_name
from config.cli import load_config
from config.errors import UserError, run_command
from config.parser import load_options
from config.schema import ModelConfig
from config.values import Positive, Section
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.prepare import prepare_corpus
from engine.checkpoint import for_prediction
from engine.device import micro_batch_size, setup_device
from engine.evaluation import measure_loss
from engine.generate import generate
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.run import open_run
from engine.state import TrainState
from model import GPT
from train import train_step

# recipes, and how many steps are timed
SHAPES = {"config/nanogpt_cpu.toml": 200, "config/nanogpt_gpu.toml": 3}
NANOGPT = {  # options of the same training there; its README's for a CPU
    "config/nanogpt_cpu.toml": [
        "--eval_iters=20",
        "--block_size=64",
        "--batch_size=12",
        "--n_layer=4",
        "--n_head=4",
        "--n_embd=128",
        "--lr_decay_iters=2000",
        "--dropout=0.0",
    ],
    "config/nanogpt_gpu.toml": ["--eval_iters=1"],
}
STEP = re.compile(r"^iter (\d+):.*time ([\d.]+)ms")
VOCABULARY = 65  # characters
NEW_TOKENS = 500  # of each sample
MANY = 64  # samples at once
STEPS_BESIDE = 15  # of training, for each evaluation
PROGRAMS = ("Surprisal", "nanoGPT", "transformers")
Times = dict[str, list[float]]  # of each program, a figure for each round
Sampler = Callable[[], int]


class Options(Section):
    """How often."""

    rounds: Positive = Field(3, description="of each measurement")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of our trainings")


def nanogpt_command(recipe: str, steps: int, folder: str) -> list[str]:
    """Return the command of a training of so many steps, in a checkout of nanoGPT."""
    return [
        "train.py",
        "config/train_shakespeare_char.py",
        "--device=cpu",
        "--compile=False",
        "--log_interval=1",
        *NANOGPT[recipe],
        f"--max_iters={steps}",
        f"--out_dir={folder}",
    ]


def our_command(recipe: str, steps: int, dtype: str, folder: str) -> list[str]:
    """Return the command of a training of so many steps here."""
    # A line a step costs the shorter steps a fifth of their time; the default is one in ten.
    log_interval = max(1, min(10, steps // 10))
    return [
        "train.py",
        recipe,
        f"--max_iters={steps}",
        f"--log_interval={log_interval}",
        "--compile=false",
        f"--dtype={dtype}",
        f"--out_dir={folder}/run",
    ]


def run_training(
    program: str, recipe: str, steps: int, nanogpt: str, dtype: str = "auto"
) -> tuple[float, float]:
    """Time a training's first step from the start of the process, and the others by themselves.

    Returns the seconds of the first, and the median of the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = str(ROOT)
        if program == "nanoGPT":
            where = nanogpt
            arguments = nanogpt_command(recipe, steps, folder)
        elif program == "transformers":
            arguments = ["bench/hf_trainer.py", recipe, str(steps)]
        else:
            arguments = our_command(recipe, steps, dtype, folder)
        first = 0.0
        times = []
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            cwd=where,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in process.stdout or []:
            if not first and re.match(r"iter \d+:| +1 ", line):  # ours are the lines of a table
                first = time.perf_counter() - began
            found = STEP.match(line)
            if found:
                times.append(float(found[2]) / 1000)
        if process.wait() != 0:
            raise UserError(
                f"{' '.join(arguments)}, in {where}: exit code {process.returncode}; "
                "it should run there by itself"
            )
        times = times[1:]  # the first has more in it
        if program == "Surprisal":
            times = read_step_times(recipe, Path(folder, "run"))
    return first, statistics.median(times)


def read_step_times(recipe: str, folder: Path) -> list[float]:
    """Return the seconds of the steps that a run of ours has logged, without the first."""
    cfg, _ = load_config([recipe])
    tokens = cfg.optim.batch_size * cfg.model.block_size
    return [
        tokens / record["tokens_per_second"]
        for record in open_run(folder).read_metrics()
        if "tokens_per_second" in record and record["step"] > 1
    ]


def nanogpt_model(path: str, cfg: ModelConfig) -> Any:
    """Make nanoGPT's own GPT of the same shape."""
    file = Path(path, "model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    if spec is None or spec.loader is None or not file.exists():
        raise UserError(f"{path}: has no model.py; it should be a checkout of nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    shape = module.GPTConfig(
        block_size=cfg.block_size,
        vocab_size=VOCABULARY,
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        n_embd=cfg.n_embd,
        dropout=0.0,
        bias=cfg.has_bias,
    )
    return module.GPT(shape).eval()


def samplers(nanogpt: str) -> dict[str, Sampler]:
    """Return for each program a function that samples and returns how many tokens."""
    from bench.hf_trainer import make_model

    cfg = load_config(["config/nanogpt_gpu.toml"])[0].model
    device = setup_device("cpu", "float32")
    ours = for_prediction(GPT(cfg, VOCABULARY), device)
    theirs = nanogpt_model(nanogpt, cfg)
    # GPT-2's positions are absolute: transformers' cache cannot move on, so there the context has
    # room for all tokens.
    peer = make_model(cfg, VOCABULARY, 1 + NEW_TOKENS).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def sample_ours(num_samples: int) -> int:
        steps = generate(ours, [0], device, num_samples=num_samples, max_new_tokens=NEW_TOKENS)
        return sum(len(tokens) for tokens in steps)

    def sample_nanogpt() -> int:
        tokens = theirs.generate(prompt, NEW_TOKENS, temperature=0.8, top_k=200)
        return int(tokens.shape[1]) - 1

    def sample_transformers() -> int:
        tokens = peer.generate(
            prompt,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            pad_token_id=0,
            max_new_tokens=NEW_TOKENS,
        )
        return int(tokens.shape[1]) - 1

    return {
        "Surprisal": lambda: sample_ours(1),
        "Surprisal, 64 sequences": lambda: sample_ours(MANY),
        "nanoGPT": sample_nanogpt,
        "transformers": sample_transformers,
    }


def evaluation_rates(recipe: str) -> dict[str, float]:
    """Return the tokens a second of training and of the validation loss, for a second each."""
    cfg, _ = load_config([recipe])
    block_size = cfg.model.block_size
    batch_size = cfg.optim.batch_size
    device = setup_device("cpu", "float32")
    corpus = prepare_corpus(cfg.data)
    text = EvalText(corpus.val, block_size, max_tokens=65_536)
    get_batch = TrainBatches(
        corpus.train, block_size, batch_size, cfg.run.seed, micro_batch_size=micro_batch_size(cfg)
    )
    torch.manual_seed(0)
    model = GPT(cfg.model, corpus.info.vocab_size, cfg.tables)
    optimizers = make_optimizers(model, cfg.optim, device)
    objective = load_objective(cfg.loss, corpus.tokenizer, block_size, device)
    for step in range(STEPS_BESIDE + 1):
        if step == 1:
            began = time.perf_counter()  # the first one warms up
        batch = get_batch(step * batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)
    trained = time.perf_counter()
    evaluated = measure_loss(model, text, device).num_targets
    ended = time.perf_counter()
    tokens = batch_size * block_size * STEPS_BESIDE
    return {"training": tokens / (trained - began), "evaluation": evaluated / (ended - trained)}


def show(title: str, values: Times, base: str, faster_is_less: bool = False) -> None:
    """Print a row for each program: median, range, and its ratio to `base`, round by round.

    The ratio says how many times as fast `base` is.
    """
    print(f"\n{title}\n{'':<28}{'median':>10}{'from':>10}{'to':>10}{'ratio':>8}")
    for name, own in values.items():
        ratios = []
        for of_base, other in zip(values[base], own, strict=True):
            ratio = of_base / other
            if faster_is_less:
                ratio = other / of_base
            ratios.append(ratio)
        print(
            f"{name:<28}{statistics.median(own):10.4g}{min(own):10.4g}{max(own):10.4g}"
            f"{statistics.median(ratios):8.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def main(argv: list[str]) -> None:
    (nanogpt,), options = load_options(Options, argv, "NANOGPT", 1, "a checkout of nanoGPT")
    print(cpu_name())
    results: dict[str, Times] = {}
    for recipe, steps in SHAPES.items():
        cfg, _ = load_config([recipe])
        prepare_corpus(cfg.data)  # before any is timed
        first: Times = {program: [] for program in PROGRAMS}
        others: Times = {program: [] for program in PROGRAMS}
        for _ in range(options.rounds):
            for program in PROGRAMS:
                seconds, step = run_training(program, recipe, steps, nanogpt, options.dtype)
                first[program].append(seconds)
                others[program].append(step)
        results[f"{recipe}: seconds to the first step"] = first
        results[f"{recipe}: seconds a step"] = others
        title = f"{recipe}: seconds from the command to the end of the first step"
        show(title, first, "Surprisal", faster_is_less=True)
        show(f"{recipe}: seconds a step", others, "Surprisal", faster_is_less=True)
    sampled: Times = {}
    for number in range(options.rounds + 1):
        for name, sample in samplers(nanogpt).items():
            began = time.perf_counter()
            made = sample()
            rate = made / (time.perf_counter() - began)
            if number > 0:  # the first round warms up
                sampled.setdefault(name, []).append(rate)
    show("Sampling, tokens/s, 10.7 million parameters", sampled, "Surprisal")
    beside: Times = {"training": [], "evaluation": []}
    for _ in range(options.rounds):
        for name, rate in evaluation_rates("config/shakespeare_char.toml").items():
            beside[name].append(rate)
    show("config/shakespeare_char.toml, tokens/s", beside, "training")
    results["sampling, tokens/s"] = sampled
    results["evaluation, tokens/s"] = beside
    write_results("peers", results | {"cpu": cpu_name()})


if __name__ == "__main__":
    run_command(main)
