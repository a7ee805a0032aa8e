"""Learning from a teacher: the formula, its gradient, what is logged, what is refused."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from config.cli import load_config
from config.errors import UserError
from config.schema import LossConfig
from engine.checkpoint import read_checkpoint
from engine.objective import TrainingObjective
from engine.scoring import average_logits
from loss import IGNORE_INDEX, Objective, cross_entropy
from model import GPT
from tests.conftest import TINY, call, make_model, read_metrics, without_clocks


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


def average(teachers: list[GPT], tokens: torch.Tensor) -> torch.Tensor:
    """Average the probabilities in float64; the mean over the teachers, (..., V)."""
    predictions = [teacher(tokens).detach().double().softmax(dim=-1) for teacher in teachers]
    return torch.stack(predictions).mean(dim=0)


@pytest.mark.parametrize(("alpha", "T"), ALPHAS_AND_TEMPERATURES)
def test_several_teachers_teach_the_mean_of_their_probabilities(alpha: float, T: float) -> None:
    """The KL is that from the averaged distribution, which the temperature softens."""
    teachers = [make_model(seed, std=0.5).eval() for seed in (1, 2, 3)]
    student = make_model(4)
    tokens = torch.randint(13, (2, 8))
    targets = torch.randint(13, (2, 8))
    objective = TrainingObjective(Objective(alpha=alpha, temperature=T), teachers)
    logits = objective.teacher_logits(tokens)
    p = average(teachers, tokens)
    assert logits is not None
    torch.testing.assert_close(logits.double(), p.log(), atol=1e-5, rtol=1e-5)
    sums = student(tokens, targets, objective.terms, logits)
    softened = p ** (1 / T)
    softened /= softened.sum(dim=-1, keepdim=True)
    log_q = student(tokens).double()
    log_q_T = (log_q / T).log_softmax(dim=-1)
    kl = (softened * (softened.log() - log_q_T)).sum().item()
    assert sums.teacher_kl.item() == pytest.approx(kl, rel=1e-5)
    nll = student(tokens, targets).nll.item()
    expected = (1 - alpha) * nll + alpha * T**2 * kl
    assert sums.objective.item() == pytest.approx(expected, rel=1e-5)


def test_one_teacher_stays_as_it_is_to_the_last_bit() -> None:
    teacher = make_model(1).eval()
    tokens = torch.randint(13, (2, 8))
    logits = TrainingObjective(Objective(), [teacher]).teacher_logits(tokens)
    assert logits is not None
    assert logits.equal(teacher(tokens))
    assert TrainingObjective(Objective(), []).teacher_logits(tokens) is None


def test_logits_far_apart_have_a_finite_mean() -> None:
    """Probabilities would be 0 in float32, and their logarithm infinite."""
    far = torch.tensor([[0.0, 2000.0]])
    mean = average_logits([far, far])
    torch.testing.assert_close(mean, torch.tensor([[-2000.0, 0.0]]))


def test_a_list_of_teachers_has_commas_and_so_have_their_names(tmp_path: Path) -> None:
    odd = tmp_path / "a, b"
    odd.mkdir()
    home = os.path.expanduser("~")
    for text, names in (
        ("", []),
        ("out/a", ["out/a"]),
        ("out/a,n_layer=2,seed=1", ["out/a,n_layer=2,seed=1"]),
        ("out/a,seed=1, ~/b,out/c,seed=2", ["out/a,seed=1", f"{home}/b", "out/c,seed=2"]),
        (str(odd), [str(odd)]),  # there is such a run
    ):
        assert LossConfig(teacher=text).teachers == names


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


def test_a_student_of_several_teachers_resumes_bit_for_bit(
    data_dir: Path, numbers_only: None
) -> None:
    for seed in ("1", "2"):
        train(f"--out_dir=out/plain,seed={seed}", f"--seed={seed}", "--max_iters=2")
    train("--out_dir=out/whole", "--teacher=out/plain,seed=1,out/plain,seed=2")
    train("--out_dir=out/one", "--teacher=out/plain,seed=1")
    shutil.copytree("out/whole", "out/parts")
    Path("out/parts/last.safetensors").unlink()  # as if it had stopped at step 4
    call("train.py", "out/parts", "--init_from=resume")
    assert without_clocks(Path("out/parts")) == without_clocks(Path("out/whole"))
    weights = [read_checkpoint(Path(f"out/{run}/last.safetensors")) for run in ("whole", "parts")]
    for name, tensor in weights[0].tensors.items():
        assert tensor.equal(weights[1].tensors[name])
    of_both = read_metrics(Path("out/whole"))[1]["teacher_kl"]
    assert of_both != read_metrics(Path("out/one"))[1]["teacher_kl"]


def test_teachers_that_are_refused(data_dir: Path) -> None:
    train("--out_dir=out/teacher", "--max_iters=2")
    train("--out_dir=out/short", "--max_iters=2", "--block_size=4")
    shutil.copytree("out/teacher", "out/empty")
    Path("out/empty/best.safetensors").unlink()
    (data_dir / "other.txt").write_text("Another alphabet. " * 100, encoding="utf-8")
    for argument, says in (
        ("--corpus=other.txt", "teacher=out/teacher: has other tokens than this corpus"),
        ("--block_size=9", "its block_size is 8, less than 9"),
        ("--documents=lines", "with the same tokenizer and documents"),
        ("--out_dir=out/../out/teacher", "a run cannot be its own teacher"),
        ("--teacher=nobody", "nobody: not a run"),
        ("--teacher=out/teacher,nobody", "error: nobody: not a run"),
        ("--teacher=out/teacher,out/short", "teacher=out/short: its block_size is 4, less than 8"),
        ("--teacher=out/teacher,out/student", "teacher=out/student is out_dir too"),
        ("--teacher=out/teacher,out/empty", "out/empty/best.safetensors: there is no such"),
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
