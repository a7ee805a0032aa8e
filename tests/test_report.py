"""The words are true: each verdict is checked against metrics made to deserve it."""

import json
import math

import pytest

import report
from config.schema import Config
from data.baselines import Baseline
from runs import open_run, read_metrics

LADDER = [Baseline(name, nats, nats / math.log(2), math.exp(nats)) for name, nats in
          [("uniform, log|V|", math.log(65)), ("bigram", 2.48), ("6-gram", 1.52), ("gzip", 2.21)]]


def records(*val: float, train: float = 1.6, steps: int = 400) -> list[dict[str, float]]:
    n = max(1, len(val) - 1)
    return [{"step": i * steps // n, "seconds": 10.0 * i, "val_nll": nll, "val_ppl": math.exp(nll), "val_accuracy": 0.5,
             "val_bits_per_byte": nll / math.log(2)} | ({"train_nll": train} if i else {}) for i, nll in enumerate(val)]


def test_the_ladder_goes_down() -> None:
    meta = {"corpus": "x", "tokenizer": "char", "vocab_size": 65,
            "train": {"tokens": 9000, "scored": 8999, "documents": 1},
            "val": {"tokens": 1000, "scored": 999, "documents": 1}}
    printed = report.corpus(meta, LADDER)
    assert [line.split()[0] for line in printed.splitlines()[3:]] == ["uniform,", "bigram", "gzip", "6-gram"]
    assert "9,000 training and 1,000 validation tokens" in printed


@pytest.mark.parametrize(("nll", "said"), [
    (4.2, "beats nothing yet; next uniform, log|V|, 4.174"), (3.0, "beats uniform, log|V|; next bigram, 2.480"),
    (2.0, "beats gzip; next 6-gram, 1.520"), (1.5, "beats 6-gram, the last rung")])
def test_standing(nll: float, said: str) -> None:
    assert report.standing(nll, LADDER) == said
    assert report.progress(records(nll)[0], LADDER).endswith(said)


def test_a_run_that_still_improves() -> None:
    said = report.verdict(records(4.17, 2.0, 1.7), LADDER, Config())
    assert "best validation loss is 1.7000 nats per token, at step 400 of 400" in said
    assert "beats uniform, log|V|, bigram, gzip." in said
    assert "Ahead: 6-gram (1.520)" in said
    assert "did not overfit" in said
    assert "0.100 below it" in said
    assert "--max_iters=800" in said


def test_samples_are_told_from_what_was_given() -> None:
    assert report.samples("", ["\nab\n"]) == "A sample:\n\nab"
    assert report.samples("", ["ab", "cd"]) == "2 samples:\n\nab\ncd"
    assert report.samples("CAT:\n", ["a\nb\n", "c"]) == "Given:\n\nCAT:\n\n2 samples:\n\na\nb\n\nc"


def test_the_objective_comes_apart() -> None:
    run = records(4.17, 2.0, 1.7)
    run[-1] |= {"objective": 1.9, "smoothing": 0.35, "z_loss": 0.05, "distillation": -0.1, "smoothed_floor": 0.75,
                "smoothed_kl": 1.2, "teacher_kl": 0.07}
    said = report.verdict(run, LADDER, Config())
    assert ("The objective, in the end 1.9000, is the training NLL of 1.6000 + 0.3500 of smoothing + 0.0500 of z-loss "
            "- 0.1000 of distillation.") in said
    assert "a floor of 0.7500, and 1.2000 above it" in said
    assert "KL(teacher || model), both softened, is 0.0700" in said
    run[-1] = {key: value for key, value in run[-1].items() if key not in report.PARTS} | {"objective": 1.6}
    assert "The objective" not in report.verdict(run, LADDER, Config())


def test_a_run_that_overfitted_and_stopped_early() -> None:
    said = report.verdict(records(4.17, 1.7, 1.9, train=0.8, steps=300), LADDER, Config())
    assert "at step 150 of 300" in said
    assert "since step 150 the validation loss rose by 0.200, and the training loss is at 0.800" in said
    assert "--dropout=0.1" in said


def test_a_run_that_stopped_on_a_plateau() -> None:
    said = report.verdict(records(4.17, 1.7, 1.705, steps=300), LADDER, Config())
    assert "stopped early: 5 evaluation(s) since step 150 were no better" in said
    assert "--patience=0" in said


def test_a_run_that_diverged() -> None:
    said = report.verdict(records(4.17, 300.0, train=500.0), LADDER, Config())
    assert "It diverged: the training loss is 500" in said
    assert "overfit" not in said
    without_numbers = [*records(4.17), {"step": 10, "seconds": 1.0}]
    assert "It diverged: the training loss is nan" in report.verdict(without_numbers, LADDER, Config())
    assert "No loss was a number" in report.verdict(without_numbers[1:], LADDER, Config())


def test_below_log_v_is_measured_from_log_v() -> None:
    above = Baseline("xz", 300.0, 400.0, math.inf)
    assert "1.17 nats below log|V|" in report.verdict(records(4.17, 3.0), [*LADDER, above], Config())
    assert report.standing(math.log(65) - 1e-6, LADDER).startswith("beats nothing yet")  # rounding is no rung


def test_a_run_past_the_last_rung() -> None:
    assert "all of the baselines" in report.verdict(records(4.17, 1.4), LADDER, Config())


def test_metrics_survive_a_line_cut_off(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "tra')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_a_run_opens_with_what_it_was(trained) -> None:
    run = open_run(trained[0])
    assert run.config.model.n_embd == 16
    assert run.baselines[0].nats_per_token == pytest.approx(math.log(run.load_tokenizer().vocab_size))
