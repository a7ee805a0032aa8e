"""Speed against nanoGPT's own code and Hugging Face's transformers: the same GPT-2 shapes and
batches.

    python bench/peers.py path/to/nanoGPT [--rounds=3] [--dtype=float32]

nanoGPT's data/shakespeare_char has to be prepared there; `pip install transformers accelerate`
brings the other. Programs take turns; figures are medians over rounds, ratios are those of one
round.

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
VOCABULARY, NEW_TOKENS, MANY, STEPS_BESIDE = 65, 500, 64, 15
Times = dict[str, list[float]]  # of each program, a figure for each round


class Options(Section):
    """How often."""

    rounds: Positive = Field(3, description="of each measurement")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of our trainings")


def command(
    program: str, recipe: str, steps: int, nanogpt: str, folder: str, dtype: str = "auto"
) -> tuple[list[str], str]:
    """A training of so many steps, and where it runs."""
    if program == "nanoGPT":
        return [
            "train.py",
            "config/train_shakespeare_char.py",
            "--device=cpu",
            "--compile=False",
            "--log_interval=1",
            *NANOGPT[recipe],
            f"--max_iters={steps}",
            f"--out_dir={folder}",
        ], nanogpt
    if program == "transformers":
        return ["bench/hf_trainer.py", recipe, str(steps)], str(ROOT)
    # A line a step costs the shorter steps a fifth of their time; the default is one in ten.
    return [
        "train.py",
        recipe,
        f"--max_iters={steps}",
        f"--log_interval={max(1, min(10, steps // 10))}",
        "--compile=false",
        f"--dtype={dtype}",
        f"--out_dir={folder}/run",
    ], str(ROOT)


def run_training(
    program: str, recipe: str, steps: int, nanogpt: str, dtype: str = "auto"
) -> tuple[float, float]:
    """Seconds from the process's start to the end of its first step, and the median seconds of the
    others.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments, where = command(program, recipe, steps, nanogpt, folder, dtype)
        began, first, times = time.perf_counter(), 0.0, []
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
            times += [float(found[2]) / 1000 for found in [STEP.match(line)] if found]
        if process.wait():
            raise UserError(
                f"{' '.join(arguments)}, in {where}: exit code {process.returncode}; it should run there "
                "by itself"
            )
        times = times[1:]  # the first has more in it
        if program == "Surprisal":
            cfg = load_config([recipe])[0]
            tokens = cfg.optim.batch_size * cfg.model.block_size
            times = [
                tokens / record["tokens_per_second"]
                for record in open_run(Path(folder, "run")).read_metrics()
                if "tokens_per_second" in record and record["step"] > 1
            ]
    return first, statistics.median(times)


def nanogpt_model(path: str, cfg: ModelConfig) -> Any:
    """nanoGPT's own GPT of the same shape."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path, "model.py"))
    if spec is None or spec.loader is None or not Path(path, "model.py").exists():
        raise UserError(f"{path}: has no model.py; it should be a checkout of nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.GPT(
        module.GPTConfig(
            block_size=cfg.block_size,
            vocab_size=VOCABULARY,
            n_layer=cfg.n_layer,
            n_head=cfg.n_head,
            n_embd=cfg.n_embd,
            dropout=0.0,
            bias=cfg.has_bias,
        )
    ).eval()


def samplers(nanogpt: str) -> dict[str, Callable[[], int]]:
    """For each program, a function that samples and returns how many tokens."""
    from bench.hf_trainer import make_model

    cfg, device = (
        load_config(["config/nanogpt_gpu.toml"])[0].model,
        setup_device("cpu", "float32"),
    )
    ours, theirs = for_prediction(GPT(cfg, VOCABULARY), device), nanogpt_model(nanogpt, cfg)
    # GPT-2's positions are absolute: transformers' cache cannot move on, so there the context has
    # room for all tokens.
    peer = make_model(cfg, VOCABULARY, 1 + NEW_TOKENS).eval()
    prompt = torch.zeros(1, 1, dtype=torch.int64)

    def sample(num_samples: int) -> int:
        return sum(
            map(
                len, generate(ours, [0], device, num_samples=num_samples, max_new_tokens=NEW_TOKENS)
            )
        )

    return {
        "Surprisal": lambda: sample(1),
        "Surprisal, 64 sequences": lambda: sample(MANY),
        "nanoGPT": lambda: (
            theirs.generate(prompt, NEW_TOKENS, temperature=0.8, top_k=200).shape[1] - 1
        ),
        "transformers": lambda: (
            peer.generate(
                prompt,
                do_sample=True,
                temperature=0.8,
                top_k=0,
                pad_token_id=0,
                max_new_tokens=NEW_TOKENS,
            ).shape[1]
            - 1
        ),
    }


def evaluation_rates(recipe: str) -> dict[str, float]:
    """Tokens a second of the validation loss and of training, in turns of about a second each."""
    cfg = load_config([recipe])[0]
    device, corpus = setup_device("cpu", "float32"), prepare_corpus(cfg.data)
    text = EvalText(corpus.val, cfg.model.block_size, max_tokens=65_536)
    get_batch = TrainBatches(
        corpus.train,
        cfg.model.block_size,
        cfg.optim.batch_size,
        cfg.run.seed,
        micro_batch_size=micro_batch_size(cfg),
    )
    torch.manual_seed(0)
    model = GPT(cfg.model, corpus.info.vocab_size)
    optimizers = make_optimizers(model, cfg.optim, device)
    objective = load_objective(cfg.loss, corpus.tokenizer, cfg.model.block_size, device)
    for step in range(STEPS_BESIDE + 1):
        if step == 1:
            began = time.perf_counter()  # the first one warms up
        batch = get_batch(step * cfg.optim.batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)
    trained = time.perf_counter()
    evaluated = measure_loss(model, text, device).num_targets
    tokens = cfg.optim.batch_size * cfg.model.block_size * STEPS_BESIDE
    return {
        "training": tokens / (trained - began),
        "evaluation": evaluated / (time.perf_counter() - trained),
    }


def show(title: str, values: Times, base: str, faster_is_less: bool) -> None:
    """A row for each program: median, range, and how many times as fast ours is, round by round."""
    print(f"\n{title}\n{'':<28}{'median':>10}{'from':>10}{'to':>10}{'ratio':>8}")
    for name, own in values.items():
        ratios = [
            b / a if faster_is_less else a / b for a, b in zip(values[base], own, strict=True)
        ]
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
        prepare_corpus(load_config([recipe])[0].data)  # before any is timed
        first: Times = {}
        rates: Times = {}
        for _ in range(options.rounds):
            for program in ("Surprisal", "nanoGPT", "transformers"):
                seconds, step = run_training(program, recipe, steps, nanogpt, options.dtype)
                first.setdefault(program, []).append(seconds)
                rates.setdefault(program, []).append(step)
        results |= {
            f"{recipe}: seconds to the first step": first,
            f"{recipe}: seconds a step": rates,
        }
        show(
            f"{recipe}: seconds from the command to the end of the first step",
            first,
            "Surprisal",
            True,
        )
        show(f"{recipe}: seconds a step", rates, "Surprisal", True)
    sampled: Times = {}
    for number in range(options.rounds + 1):
        for name, sample in samplers(nanogpt).items():
            began = time.perf_counter()
            made = sample()
            if number:  # the first round warms up
                sampled.setdefault(name, []).append(made / (time.perf_counter() - began))
    show("Sampling, tokens/s, 10.7 million parameters", sampled, "Surprisal", False)
    beside: Times = {}
    for _ in range(options.rounds):
        for name, rate in evaluation_rates("config/shakespeare_char.toml").items():
            beside.setdefault(name, []).append(rate)
    show("config/shakespeare_char.toml, tokens/s", beside, "training", False)
    write_results(
        "peers",
        results
        | {"sampling, tokens/s": sampled, "evaluation, tokens/s": beside, "cpu": cpu_name()},
    )


if __name__ == "__main__":
    run_command(main)
