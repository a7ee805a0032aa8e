"""Learning from a teacher: the formula, its gradient, what is logged, what is refused."""

from pathlib import Path

import pytest
import torch

from config.cli import load_config
from config.errors import UserError
from loss import IGNORE_INDEX, Objective, cross_entropy
from tests.conftest import TINY, call, read_metrics


def softmax(z: torch.Tensor) -> torch.Tensor:
    z = z.detach().double()
    e = torch.exp(z - z.max())
    return e / e.sum()


ALPHAS_AND_TEMPERATURES = [(0.3, 1.0), (0.7, 2.5), (1.0, 4.0)]


@pytest.mark.parametrize(("alpha", "T"), ALPHAS_AND_TEMPERATURES)
def test_objective_and_gradient_follow_the_formula(alpha: float, T: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 6, requires_grad=True)
    teacher = torch.randn(4, 6)
    targets = torch.tensor([1, 5, IGNORE_INDEX, 0])
    terms = Objective(0.1, 1e-3, alpha=alpha, temperature=T)
    sums = cross_entropy(z, targets, terms, teacher)
    sums.objective.backward()
    objective = 0.0
    gradient = torch.zeros(4, 6, dtype=torch.float64)
    for i, y in enumerate(targets.tolist()):
        if y == IGNORE_INDEX:
            continue
        p = torch.full((6,), 0.1 / 6, dtype=torch.float64)
        p[y] += 0.9
        q = softmax(z[i])
        q_T = softmax(z[i] / T)
        t_T = softmax(teacher[i] / T)
        lse = torch.logsumexp(z[i].detach().double(), dim=0)

        smoothed = -(p * q.log()).sum()
        kl = (t_T * (t_T / q_T).log()).sum()
        objective += float((1 - alpha) * smoothed + alpha * T**2 * kl)
        objective += 1e-3 * float(lse) ** 2

        gradient[i] += (1 - alpha) * (q - p)
        gradient[i] += alpha * T * (q_T - t_T)
        gradient[i] += 2e-3 * lse * q
    plain = cross_entropy(z, targets)
    assert sums.objective.item() == pytest.approx(objective, rel=1e-5)
    assert sums.nll.item() == pytest.approx(plain.nll.item())
    assert z.grad is not None
    torch.testing.assert_close(z.grad.double(), gradient, atol=1e-6, rtol=1e-5)


def test_a_teacher_that_agrees_only_scales_the_loss() -> None:
    torch.manual_seed(0)
    z = torch.randn(5, 7)
    targets = torch.randint(7, (5,))
    sums = cross_entropy(z, targets, Objective(alpha=0.25, temperature=2.0), teacher_logits=z)
    scaled = 0.75 * sums.nll.item()
    assert sums.objective.item() == pytest.approx(scaled, rel=1e-5)


def train(*arguments: str) -> None:
    call("train.py", "--corpus=text.txt", *TINY, *arguments)


def test_the_parts_of_the_objective_are_logged(data_dir: Path) -> None:
    train("--out_dir=out/teacher", "--max_iters=30", "--eval_interval=30")
    train(
        "--out_dir=out/student",
        "--teacher=out/teacher",
        "--alpha=0.4",
        "--temperature=2",
        "--n_embd=8",
        "--label_smoothing=0.1",
        "--micro_batch_size=3",
    )
    records = [record for record in read_metrics(Path("out/student")) if "objective" in record]
    assert len(records) == 6
    for record in records:
        smoothed = record["train_nll"] + record["smoothing"]
        assert record["objective"] == pytest.approx(smoothed + record["distillation"], rel=1e-5)
        assert record["objective"] == pytest.approx(
            0.6 * smoothed + 0.4 * 4 * record["teacher_kl"], rel=1e-4
        )
        assert record["teacher_kl"] > 0


def test_teachers_that_are_refused(data_dir: Path) -> None:
    train("--out_dir=out/teacher", "--max_iters=2")
    (data_dir / "other.txt").write_text("Another alphabet. " * 100, encoding="utf-8")
    for argument, says in (
        ("--corpus=other.txt", "teacher=out/teacher: has other tokens than this corpus"),
        ("--block_size=9", "its block_size is 8, less than 9"),
        ("--documents=lines", "with the same tokenizer and documents"),
        ("--out_dir=out/../out/teacher", "a run cannot be its own teacher"),
        ("--teacher=nobody", "nobody: not a run"),
    ):
        done = call(
            "train.py",
            "--corpus=text.txt",
            *TINY,
            "--teacher=out/teacher",
            "--out_dir=out/student",
            argument,
            check=False,
        )
        assert done.returncode == 2
        assert says in done.stderr
        assert not Path("out/student").exists()
    with pytest.raises(UserError, match=r"^alpha=0.2 needs a --teacher$"):
        load_config(["--alpha=0.2"])
