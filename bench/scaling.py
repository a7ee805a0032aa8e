"""Fit a scaling law of Shakespeare's plays: the loss by parameters N and text D, and what is left.

    python bench/scaling.py [RUNS.jsonl] [--minutes=15]

A run reads D new characters once; its learning rates fall to zero at the end of them. N counts all
parameters: without the embeddings, the law of small models bends (Pearce & Song 2024). L(N, D) = E
+ A N^-a + B D^-b is fitted to all runs in the file by Approach 3 of Hoffmann et al. 2022. Runs that
the file has are not made again. The picture is beside it.
"""

import itertools
import sys
import time
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
LAYERS = (2, 2, 2, 2, 3, 3, 3, 3)
WIDTHS = (12, 16, 24, 32, 40, 56, 72, 96)
SHAPES = tuple(zip(LAYERS, WIDTHS, strict=True))
# sequences in a step, steps: both grow with the square root of D
BATCH_SIZES = (2, 3, 5, 8)
STEPS = (256, 427, 640, 1000)
AMOUNTS = tuple(zip(BATCH_SIZES, STEPS, strict=True))
# near the middle of the runs
N0 = 30_000
D0 = 500_000
# the fit starts from each combination of these: E; A N0^-a; B D0^-b; a; b
STARTS = {
    "E": (0.4, 1, 1.4),
    "of_n": (0.1, 0.4),
    "of_d": (0.1, 0.4),
    "a": (0.2, 0.5, 1),
    "b": (0.2, 0.5, 1),
}
DELTA = 1e-3  # errors of log L above it count linearly, as in Hoffmann et al.
SAMPLES = 1000  # of the bootstrap
RUN = "N {N:>7,}   D {D:>9,}   loss {val_nll:.4f}   {seconds:5.1f} s"
# of Okabe & Ito, for the colour-blind
COLORS = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "black")


class ScalingOptions(Section):
    """How much to train."""

    minutes: float = Field(
        15, ge=0, le=30, description="on 2 cores; D grows with it; 0 = only fit the file's runs"
    )


def train(shape: tuple[int, int], batch_size: int, steps: int, seed: int) -> Record:
    """Train a model as tuned in bench/NOTES.md.

    The loss is that of 32,768 targets, spread evenly over the validation split.
    """
    n_layer, width = shape
    cfg = Config(
        # without smear, as the runs in docs/scaling.jsonl
        model=ModelConfig(n_layer=n_layer, n_head=1, n_embd=width, smear=False),
        run=RunConfig(seed=seed),
        optim=OptimConfig(
            batch_size=batch_size,
            max_iters=steps,
            warmup_iters=steps // 10,
            learning_rate=0.01 * (96 / width) ** 0.5,
            muon_learning_rate=0.05,
        ),
    )
    device = setup_device("auto", "auto")
    corpus = prepare_corpus(cfg.data)
    block = cfg.model.block_size
    torch.manual_seed(seed)
    model = GPT(cfg.model, corpus.info.vocab_size, cfg.tables).to(device.torch_device)
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
    val_text = EvalText(corpus.val, block, max_tokens=32_768)
    return {
        "step": steps,
        "n_layer": n_layer,
        "width": width,
        "N": model.num_params(),
        "D": steps * batch_size * block,
        "val_nll": measure_loss(model, val_text, device).nll,
        "seconds": seconds,
    }


def read_runs(path: Path) -> list[Record]:
    """Read the runs of a file, without damaged lines."""
    runs: list[Record] = []
    if not path.exists():
        return runs
    for line in path.read_bytes().splitlines():
        run = parse_record(line)
        if run and "n_layer" in run and "val_nll" in run:
            runs.append(run)
    return runs


def collect_runs(path: Path, minutes: float) -> np.ndarray:
    """Return N, D and losses of the runs in the file, (3, R).

    Those that it lacks are made first, the shortest ones before the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = read_runs(path)
    done = {(run["n_layer"], run["width"], run["step"]) for run in runs}
    wanted = []
    if minutes > 0:
        wanted = list(itertools.product(AMOUNTS, SHAPES))
    for seed, ((batch_size, most), shape) in enumerate(wanted):
        steps = max(1, round(most * minutes / 15))
        if (*shape, steps) in done:
            continue
        run = train(shape, batch_size, steps, seed)
        append_line(path, run)
        runs.append(run)
        print(RUN.format(**run), flush=True)
    finite = [run for run in runs if run["val_nll"] < np.inf]
    rows = [[run[name] for name in ("N", "D", "val_nll")] for run in finite]
    return np.array(rows).reshape(-1, 3).T


def predict(law: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the loss by a law, which is E, A, B, a, b, and r = b / (a + b)."""
    E, A, B, a, b, _ = law
    loss: np.ndarray = E + A * n**-a + B * d**-b
    return loss


def first_laws() -> list[np.ndarray]:
    """Make the laws from which the fit starts."""
    laws = []
    for E, of_n, of_d, a, b in itertools.product(*STARTS.values()):
        A = of_n * N0**a
        B = of_d * D0**b
        laws.append(np.array([E, A, B, a, b, 0]))
    return laws


def fit(runs: np.ndarray, starts: list[np.ndarray]) -> np.ndarray:
    """Return the law with the lowest Huber loss that L-BFGS reaches from some laws.

    `runs` are N, D and losses, (3, R).
    """
    from scipy.optimize import minimize

    n, d, nll = runs
    x = np.log(n / N0)
    y = np.log(d / D0)
    log_nll = np.log(nll)

    def huber(p: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss in units of DELTA^2, and its gradient.

        p is the logs of E, A N0^-a and B D0^-b; then a; b.
        """
        log_E, log_A, log_B, a, b = p
        of_E = np.full_like(x, log_E)
        of_A = log_A - a * x
        of_B = log_B - b * y
        terms = np.stack([of_E, of_A, of_B])
        log_sum = np.logaddexp.reduce(terms)
        share_E, share_A, share_B = np.exp(terms - log_sum)
        error = (log_sum - log_nll) / DELTA
        slope = error.clip(-1, 1)
        loss = np.sum(slope * (error - slope / 2))
        of_error = [share_E, share_A, share_B, -x * share_A, -y * share_B]
        gradient = slope * of_error / DELTA
        return float(loss), gradient.sum(axis=1)

    # With the usual tolerance L-BFGS stops too early, and intervals get too narrow (Besiroglu et
    # al. 2024).
    options = {
        "jac": True,
        "method": "L-BFGS-B",
        "bounds": 3 * [(-9, 3)] + 2 * [(0.01, 3)],
        "options": {"ftol": 1e-12},
    }
    ends = []
    for E, A, B, a, b, _ in starts:
        logs = np.log([E, A * N0**-a, B * D0**-b])
        ends.append(minimize(huber, [*logs, a, b], **options))
    best = min(ends, key=lambda end: end.fun)
    log_E, log_A, log_B, a, b = best.x
    E = np.exp(log_E)
    A = np.exp(log_A) * N0**a
    B = np.exp(log_B) * D0**b
    r = b / (a + b)
    return np.array([E, A, B, a, b, r])


def describe(runs: np.ndarray, law: np.ndarray, ends: np.ndarray) -> str:
    """Show the runs, the law with the ends of its 90% intervals, (2, 6), and what E is worth."""
    n, d, nll = runs
    fitted = predict(law, n, d)
    error = np.abs(nll - fitted).mean()
    lines = ["        N           D     loss  fitted"]
    rows = zip(n, d, nll, fitted, strict=True)
    lines += ["{:9,.0f} {:11,.0f} {:8.4f} {:7.4f}".format(*row) for row in rows]
    lines.append(
        f"\nThe law misses a run by {error:.3f} nats on average. "
        "With C FLOPs, the best N grows as C^r. 90% intervals:"
    )
    constants = zip("EABabr", law, *ends, strict=True)
    lines += ["  {} = {:.3g}  ({:.3g} to {:.3g})".format(*row) for row in constants]

    low, high = ends[:, 0] / LN2
    without_small = fit(runs[:, n > n.min()], [law])
    without_short = fit(runs[:, d > d.min()], [law])
    doubt = ""
    if high - low > 0.5:
        doubt = ", and these runs hardly determine E"
    lines.append(
        f"\nE, what no size and no amount of such text would remove, "
        f"is {law[0] / LN2:.2f} bits per character ({low:.2f} to {high:.2f});\n"
        f"{without_small[0] / LN2:.2f} without the smallest models, "
        f"{without_short[0] / LN2:.2f} without the shortest text. "
        f"The best run has {min(nll) / LN2:.2f}: the rest is\nextrapolated{doubt}.\n"
        "For English, Shannon (1951) found 0.6 to 1.3 bits; 1.0 to 1.5 are often quoted."
    )
    return "\n".join(lines)


def draw(path: Path, runs: np.ndarray, law: np.ndarray, interval: np.ndarray) -> None:
    """Draw the loss against N for each D, the law, and E with its interval.

    The law is dotted where nothing was measured.
    """
    from matplotlib.figure import Figure

    n, d, nll = runs
    figure = Figure((7.2, 4.6), 160, layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", xlabel="parameters (dotted: no runs)")
    most = n.max()
    x = np.geomspace(n.min(), 30 * most, 200)
    right_of_all = 1.2 * x[-1]
    amounts = [*np.unique(d), np.inf]
    for amount, color in zip(amounts, itertools.cycle(COLORS)):
        y = predict(law, x, amount)
        axes.plot(x, y, ":", color=color)
        if amount < np.inf:
            inside = x <= most
            axes.plot(x[inside], y[inside], "-", color=color)
            runs_here = d == amount
            axes.plot(n[runs_here], nll[runs_here], "o", color=color)
        label = f"{amount:,.0f} characters".replace("inf", "∞")
        axes.text(right_of_all, y[-1], label, va="center", color=color)
    E = law[0]
    axes.axhspan(*interval, color="0.9")
    axes.axhline(E, color="0.3", linewidth=1)
    label = f"E = {E / LN2:.2f} bits per character; grey: its 90% interval"
    axes.text(x[0], E, label, va="top")
    left = x[0] / 1.4
    right = 25 * x[-1]
    axes.set(xlim=(left, right), ylabel="loss, nats per character")
    bits = axes.twinx()
    low, high = axes.get_ylim()
    bits.set(ylim=(low / LN2, high / LN2), ylabel="bits per character")
    figure.savefig(path)


def main(argv: list[str]) -> None:
    paths, options = load_options(
        ScalingOptions, argv, "RUNS.jsonl", "?", "file of the runs; none = out/scaling.jsonl"
    )
    path = Path("out/scaling.jsonl")
    if paths:
        path = Path(paths[0])
    runs = collect_runs(path, options.minutes)
    num_sizes = len(set(runs[0]))
    num_amounts = len(set(runs[1]))
    if num_sizes < 2 or num_amounts < 2:
        raise UserError(f"{path}: the fit needs at least two sizes and two amounts of text")
    law = fit(runs, first_laws())
    laws = []
    for number in range(SAMPLES):
        rng = np.random.default_rng(number)
        resampled = rng.choice(runs, runs.shape[1], axis=1)
        laws.append(fit(resampled, [law]))
    ends = np.percentile(laws, [5, 95], axis=0)
    print(describe(runs, law, ends))
    draw(path.with_suffix(".png"), runs, law, ends[:, 0])


if __name__ == "__main__":
    run_command(main)
