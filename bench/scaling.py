"""How the loss falls with parameters N and text D, and what entropy E is left: a scaling law of
Shakespeare's plays.

    python bench/scaling.py [RUNS.jsonl] [--minutes=15]

A run reads D new characters once; its learning rates fall to zero at the end of them. N counts all
parameters: without the embeddings, the law of small models bends (Pearce & Song 2024). L(N, D) = E
+ A N^-a + B D^-b is fitted to all runs in the file by Approach 3 of Hoffmann et al. 2022. Runs that
the file has are not made again. The picture is beside it.
"""

import itertools
import sys
import time
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from pydantic import Field

from config.errors import UserError, run_command
from config.parser import load_options
from config.schema import Config, ModelConfig, OptimConfig, RunConfig
from config.values import Section
from data.batches import TrainBatches
from data.eval_text import EvalText
from data.prepare import prepare_corpus
from engine.device import micro_batch_size, setup_device
from engine.evaluation import measure_loss
from engine.metrics import Record, append_line, parse_record
from engine.objective import load_objective
from engine.optim import make_optimizers
from engine.state import TrainState
from model import GPT
from surprisal import LN2
from train import train_step

# blocks, width; N to 345,024
SHAPES = ((2, 12), (2, 16), (2, 24), (2, 32), (3, 40), (3, 56), (3, 72), (3, 96))
# sequences in a step, steps: both grow with the square root of D
AMOUNTS = ((2, 256), (3, 427), (5, 640), (8, 1000))
N0, D0 = 30_000, 500_000  # near the middle of the runs
# errors of log L above it count linearly, as in Hoffmann et al.; bootstrap samples
DELTA, SAMPLES = 1e-3, 1000
# of Okabe & Ito, for the colour-blind
COLORS = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "black")


class ScalingOptions(Section):
    """How much to train."""

    minutes: float = Field(
        15, ge=0, le=30, description="on 2 cores; D grows with it; 0 = only fit the file's runs"
    )


def train(n_layer: int, width: int, batch_size: int, steps: int, seed: int) -> Record:
    """A run, tuned in bench/NOTES.md; its loss is that of 32,768 targets, spread evenly over the
    validation split.
    """
    cfg = Config(
        model=ModelConfig(n_layer=n_layer, n_head=1, n_embd=width),
        run=RunConfig(seed=seed),
        optim=OptimConfig(
            batch_size=batch_size,
            max_iters=steps,
            warmup_iters=steps // 10,
            learning_rate=0.01 * (96 / width) ** 0.5,
            muon_learning_rate=0.05,
        ),
    )
    device, corpus, block = (
        setup_device("auto", "auto"),
        prepare_corpus(cfg.data),
        cfg.model.block_size,
    )
    torch.manual_seed(seed)
    model = GPT(cfg.model, corpus.info.vocab_size).to(device.torch_device)
    optimizers = make_optimizers(model, cfg.optim, device)
    objective = load_objective(cfg.loss, corpus.tokenizer, cfg.model.block_size, device)
    get_batch = TrainBatches(
        corpus.train, block, batch_size, seed, micro_batch_size=micro_batch_size(cfg)
    )
    began = time.perf_counter()
    for step in range(steps):
        batch = get_batch(step * batch_size)
        state = TrainState(step=step)
        train_step(model, optimizers, batch, objective, device, cfg=cfg, state=state)
    seconds = time.perf_counter() - began
    return {
        "step": steps,
        "n_layer": n_layer,
        "width": width,
        "N": model.num_params(),
        "D": steps * batch_size * block,
        "val_nll": measure_loss(model, EvalText(corpus.val, block, max_tokens=32_768), device).nll,
        "seconds": seconds,
    }


def collect_runs(path: Path, minutes: float) -> np.ndarray:
    """N, D and losses of the runs in the file, (3, R), after making those that it lacks, the
    shortest first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_bytes().splitlines() if path.exists() else []
    runs = [run for line in lines if {"n_layer", "val_nll"} <= {*(run := parse_record(line) or {})}]
    done = {(run["n_layer"], run["width"], run["step"]) for run in runs}
    for seed, ((batch_size, most), shape) in enumerate(itertools.product(AMOUNTS, SHAPES)):
        if minutes and (*shape, steps := max(1, round(most * minutes / 15))) not in done:
            append_line(path, run := train(*shape, batch_size, steps, seed))
            runs.append(run)
            print(
                "N {N:>7,}   D {D:>9,}   loss {val_nll:.4f}   {seconds:5.1f} s".format(**run),
                flush=True,
            )
    return (
        np.array([(run["N"], run["D"], run["val_nll"]) for run in runs if run["val_nll"] < np.inf])
        .reshape(-1, 3)
        .T
    )


def predict(law: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The loss by a law, which is E, A, B, a, b, and r = b / (a + b)."""
    return law[0] + law[1] * n ** -law[3] + law[2] * d ** -law[4]


def fit(runs: np.ndarray, starts: list[np.ndarray]) -> np.ndarray:
    """The law with the lowest Huber loss that L-BFGS reaches from some laws; `runs` are N, D and
    losses, (3, R).
    """
    from scipy.optimize import minimize

    x, y, log_nll = np.log(runs / [[N0], [D0], [1]])

    def huber(p: np.ndarray) -> tuple[float, np.ndarray]:
        """In units of DELTA^2, and its gradient; p is the logs of E, A N0^-a and B D0^-b; a; b."""
        log_sum = np.logaddexp.reduce(
            terms := np.stack([p[0] + 0 * x, p[1] - p[3] * x, p[2] - p[4] * y])
        )
        error, shares = (log_sum - log_nll) / DELTA, np.exp(terms - log_sum)
        slope = error.clip(-1, 1)
        gradient = slope * [*shares, -x * shares[1], -y * shares[2]] / DELTA
        return float(np.sum(slope * (error - slope / 2))), gradient.sum(axis=1)

    # With the usual tolerance L-BFGS stops too early, and intervals get too narrow (Besiroglu et
    # al. 2024).
    options = {
        "jac": True,
        "method": "L-BFGS-B",
        "bounds": 3 * [(-9, 3)] + 2 * [(0.01, 3)],
        "options": {"ftol": 1e-12},
    }
    ends = [
        minimize(huber, [*np.log([E, A * N0**-a, B * D0**-b]), a, b], **options)
        for E, A, B, a, b, _ in starts
    ]
    *logs, a, b = min(ends, key=lambda end: end.fun).x
    return np.array([*np.exp(logs) * [1, N0**a, D0**b], a, b, b / (a + b)])


def describe(runs: np.ndarray, law: np.ndarray, ends: np.ndarray) -> str:
    """The runs, the law with the ends of its 90% intervals, (2, 6), and what E is worth."""
    error = np.abs(runs[2] - (fitted := predict(law, *runs[:2]))).mean()
    bits = (
        np.array(
            [
                law[0],
                *ends[:, 0],
                *(fit(runs[:, x > x.min()], [law])[0] for x in runs[:2]),
                min(runs[2]),
            ]
        )
        / LN2
    )
    return "\n".join(
        [
            "        N           D     loss  fitted",
            *(
                "{:9,.0f} {:11,.0f} {:8.4f} {:7.4f}".format(*run)
                for run in zip(*runs, fitted, strict=True)
            ),
            f"\nThe law misses a run by {error:.3f} nats on average. With C FLOPs, the best N grows as C^r. 90% intervals:",
            *(
                "  {} = {:.3g}  ({:.3g} to {:.3g})".format(*row)
                for row in zip("EABabr", law, *ends, strict=True)
            ),
            "\nE, what no size and no amount of such text would remove, is {:.2f} bits per character ({:.2f} to {:.2f});\n"
            "{:.2f} without the smallest models, {:.2f} without the shortest text. The best run has {:.2f}: the rest is\n"
            "extrapolated".format(*bits)
            + (", and these runs hardly determine E" if bits[2] - bits[1] > 0.5 else "")
            + ".\nFor English, Shannon (1951) found 0.6 to 1.3 bits; 1.0 to 1.5 are often quoted.",
        ]
    )


def draw(path: Path, runs: np.ndarray, law: np.ndarray, low: float, high: float) -> None:
    """The loss against N for each D, and the law: dotted where nothing was measured; E and its
    interval.
    """
    from matplotlib.figure import Figure

    figure, x = (
        Figure((7.2, 4.6), 160, layout="constrained"),
        np.geomspace(runs[0].min(), 30 * runs[0].max(), 200),
    )
    axes, (n, d, nll) = (
        figure.subplots(subplot_kw={"xscale": "log", "xlabel": "parameters (dotted: no runs)"}),
        runs,
    )
    for amount, color in zip([*np.unique(d), np.inf], itertools.cycle(COLORS)):
        y, at, inside = predict(law, x, amount), d == amount, (x <= n.max()) & (amount < np.inf)
        axes.plot(x, y, ":", x[inside], y[inside], "-", n[at], nll[at], "o", color=color)
        axes.text(
            1.2 * x[-1],
            y[-1],
            f"{amount:,.0f} characters".replace("inf", "∞"),
            va="center",
            color=color,
        )
    axes.axhspan(low, high, color="0.9")
    axes.axhline(law[0], color="0.3", linewidth=1)
    axes.text(
        x[0], law[0], f"E = {law[0] / LN2:.2f} bits per character; grey: its 90% interval", va="top"
    )
    axes.set(xlim=(x[0] / 1.4, 25 * x[-1]), ylabel="loss, nats per character")
    axes.twinx().set(ylim=np.divide(axes.get_ylim(), LN2), ylabel="bits per character")
    figure.savefig(path)


def main(argv: list[str]) -> None:
    paths, options = load_options(
        ScalingOptions, argv, "RUNS.jsonl", "?", "file of the runs; none = out/scaling.jsonl"
    )
    path = Path(paths[0] if paths else "out/scaling.jsonl")
    if not find_spec("scipy"):
        raise UserError(
            "bench/scaling.py needs scipy: python -m pip install -r requirements-dev.txt"
        )
    runs = collect_runs(path, options.minutes)
    if min(len(set(runs[0])), len(set(runs[1]))) < 2:
        raise UserError(f"{path}: the fit needs at least two sizes and two amounts of text")
    law = fit(
        runs,
        [
            np.array([e, s * N0**a, t * D0**b, a, b, 0])
            for e, s, t, a, b in itertools.product(
                (0.4, 1, 1.4), (0.1, 0.4), (0.1, 0.4), (0.2, 0.5, 1), (0.2, 0.5, 1)
            )
        ],
    )
    laws = [
        fit(np.random.default_rng(i).choice(runs, runs.shape[1], axis=1), [law])
        for i in range(SAMPLES)
    ]
    print(describe(runs, law, ends := np.percentile(laws, [5, 95], axis=0)))
    draw(path.with_suffix(".png"), runs, law, *ends[:, 0])


if __name__ == "__main__":
    run_command(main)
