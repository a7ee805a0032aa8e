"""Learning from a teacher: the formula, its gradient, what is logged, and teachers that will not do."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from config.cli import load_config
from errors import UserError
from loss import IGNORE_INDEX, Objective, cross_entropy
from runs import read_metrics
from tests.conftest import TINY
from train import train


def softmax(z: torch.Tensor) -> torch.Tensor:
    e = torch.exp(z.double() - z.double().max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(("alpha", "T"), [(0.3, 1.0), (0.7, 2.5), (1.0, 4.0)])
def test_objective_and_gradient_are_the_formula(alpha, T) -> None:
    torch.manual_seed(0)
    z, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    targets = torch.tensor([1, 5, IGNORE_INDEX, 0])
    sums = cross_entropy(z, targets, Objective(0.1, 1e-3, alpha=alpha, temperature=T), teacher)
    sums.objective.backward()
    q, q_T, t_T = softmax(z.detach()), softmax(z.detach() / T), softmax(teacher / T)
    objective, gradient = 0.0, torch.zeros(4, 6, dtype=torch.float64)
    for i, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            continue
        p = torch.full((6,), 0.1 / 6, dtype=torch.float64)
        p[y] += 0.9
        lse = torch.logsumexp(z[i].detach().double(), dim=0)
        kl = (t_T[i] * (t_T[i] / q_T[i]).log()).sum()
        objective += float((1 - alpha) * -(p * q[i].log()).sum() + alpha * T**2 * kl + 1e-3 * lse**2)
        gradient[i] = (1 - alpha) * (q[i] - p) + alpha * T * (q_T[i] - t_T[i]) + 2e-3 * lse * q[i]
    assert sums.objective.item() == pytest.approx(objective, rel=1e-5)
    assert sums.nll.item() == pytest.approx(cross_entropy(z, targets).nll.item())
    assert z.grad is not None
    torch.testing.assert_close(z.grad.double(), gradient, atol=1e-6, rtol=1e-5)


def test_a_teacher_that_agrees_adds_nothing_but_the_weights() -> None:
    z, targets = torch.randn(5, 7), torch.randint(7, (5,))
    sums = cross_entropy(z, targets, Objective(alpha=0.25, temperature=2.0), teacher=z)
    assert sums.objective.item() == pytest.approx(0.75 * sums.nll.item(), rel=1e-5)


def run(*argv: str) -> None:
    with redirect_stdout(io.StringIO()):
        train(load_config(["--corpus=text.txt", *TINY, *argv]))


def test_training_with_a_teacher(data_dir) -> None:
    run("--out_dir=out/teacher", "--max_iters=30", "--eval_interval=30")
    run("--out_dir=out/student", "--teacher=out/teacher", "--alpha=0.4", "--temperature=2", "--n_embd=8",
        "--label_smoothing=0.1", "--micro_batch_size=3")
    records = read_metrics(Path("out/student/metrics.jsonl"))[1:]
    for record in records:
        ce = record["train_nll"] + record["smoothing"]
        assert record["objective"] == pytest.approx(ce + record["distillation"], rel=1e-5)
        assert record["objective"] == pytest.approx(0.6 * ce + 0.4 * 4 * record["teacher_kl"], rel=1e-4)
        assert record["teacher_kl"] > 0


def test_teachers_that_will_not_do(data_dir) -> None:
    run("--out_dir=out/teacher", "--max_iters=2")
    run("--out_dir=out/counter", "--max_iters=2", "--ngram=2")
    (data_dir / "other.txt").write_text("Another alphabet. " * 100, encoding="utf-8")
    for argv, message in ((["--corpus=other.txt"], r"teacher=out/teacher: has another vocabulary \(\|V\| = "),
                          (["--block_size=9"], "its block_size is 8, less than 9"),
                          (["--documents=lines"], r"end token for None\) than .* end token for '\\n'\)"),
                          (["--out_dir=out/../out/teacher"], "a run cannot be its own teacher"),
                          (["--teacher=out/counter"], "its n-grams were counted in the text that it should teach"),
                          (["--teacher=nobody"], "nobody: not a run")):
        with pytest.raises(UserError, match=message):
            run("--teacher=out/teacher", "--out_dir=out/student", *argv)
        assert not Path("out/student").exists()
    with pytest.raises(UserError, match=r"alpha=0.2 needs a --teacher"):
        load_config(["--alpha=0.2"])
