"""The words are true: metrics are made up that deserve each verdict."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from config.schema import Config, OptimConfig, RunConfig, TablesConfig
from data.info import Baseline, CorpusInfo, SplitInfo
from engine.metrics import Record, parse_record
from engine.state import TrainState
from report import progress, words
from report.verdict import make_verdict

DEFAULTS = Config()
Records = list[Record]


def make_baseline(name: str, nats: float) -> Baseline:
    bits = nats / math.log(2)
    return Baseline(name=name, nats_per_token=nats, bits_per_byte=bits, perplexity=math.exp(nats))


def make_info(*more: Baseline, **changes: object) -> CorpusInfo:
    baselines = [
        make_baseline("uniform, log|V|", math.log(65)),
        make_baseline("bigram", 2.48),
        make_baseline("6-gram", 1.52),
        make_baseline("gzip", 2.21),
    ]
    info = CorpusInfo(
        format=0,
        name="x",
        sha256="",
        tokenizer="char",
        vocab_size=65,
        train=SplitInfo(tokens=9000, documents=1, targets=8999),
        val=SplitInfo(tokens=1000, documents=1, targets=999),
        prompt="",
        baselines=[*baselines, *more],
    )
    return info.model_copy(update=changes)


def make_records(*val: float, train: float = 1.6, steps: int = 400) -> Records:
    """Make evaluations, evenly spread, and the last line, which has the best model's exact loss."""
    interval = steps // max(1, len(val) - 1)
    records: Records = []
    for number, nll in enumerate(val):
        record: Record = {
            "step": number * interval,
            "seconds": 10.0 * number,
            "val_nll": nll,
            "val_perplexity": math.exp(nll),
            "val_accuracy": 0.5,
            "val_bits_per_byte": nll / math.log(2),
        }
        if number > 0:
            record["train_nll"] = train
        records.append(record)
    best = min(records, key=lambda record: record["val_nll"])
    outcome: Record = {
        "step": records[-1]["step"],
        "best_step": best["step"],
        "best_epochs": 2.0,
        "best_train_read_nll": train + 0.01,
        "best_train_read_error": 0.01,
    }
    for key in ("val_nll", "val_accuracy", "val_bits_per_byte"):
        outcome[f"best_{key}"] = best[key]
    return [*records, outcome]


def make_state(records: list[Record], **changes: object) -> TrainState:
    """The state of a training that ended with these records; its training loss has not changed."""
    best: Record = {"val_nll": 4.0, "step": 0}
    evaluations = [record for record in records if "val_nll" in record]
    if evaluations:
        best = min(evaluations, key=lambda record: record["val_nll"])
    state = TrainState(
        step=int(records[-1]["step"]),
        best_nll=best["val_nll"],
        best_step=int(best["step"]),
        mean=1.6,
        mean_after_best=1.6,
    )
    return state.model_copy(update=changes)


def judge(
    records: list[Record],
    info: CorpusInfo,
    cfg: Config = DEFAULTS,
    epochs: float = 0.5,
    **state: object,
) -> str:
    last = records[-1]
    at_the_end = make_state(records, **state)
    return make_verdict(records, last, info, cfg=cfg, state=at_the_end, epochs=epochs).text


def verdict(
    records: list[Record], cfg: Config = DEFAULTS, epochs: float = 0.5, **state: object
) -> str:
    return judge(records, make_info(), cfg, epochs, **state)


def test_advice_for_a_run_that_did_not_overfit() -> None:
    """Longer or larger; but a second reading harms tables of n-grams, and a source has its size."""
    records = make_records(1.9, 1.7, 1.6)
    tables = Config(tables=TablesConfig(max_ngram=4))
    source = DEFAULTS.with_run(init_from="out/gpt2")
    assert verdict(records).endswith("Try longer, --max_iters=1600, or larger, --n_layer=4.")
    assert verdict(records, tables).endswith("Try larger, --n_layer=4.")
    assert verdict(records, source).endswith("Try longer, --max_iters=1600.")


def test_the_baselines_are_listed_from_the_worst_to_the_best() -> None:
    printed = make_info().describe()
    table = printed.splitlines()[3:]
    names = [line.split()[0] for line in table]
    assert names == ["These", "uniform,", "bigram", "6-gram", "These", "gzip"]
    assert "9,000 training and 1,000 validation tokens" in printed


@pytest.mark.parametrize(
    ("nll", "said"),
    [
        (4.2, "beats nothing yet; next uniform, log|V|, 4.174"),
        # rounding beats nothing
        (math.log(65) - 1e-6, "beats nothing yet; next uniform, log|V|, 4.174"),
        (3.0, "beats uniform, log|V|, 4.174; next bigram, 2.480"),
        (2.0, "beats gzip, 2.210; next 6-gram, 1.520"),
        (1.5, "beats 6-gram, 1.520: the last baseline"),
    ],
)
def test_the_next_baseline_is_named(nll: float, said: str) -> None:
    assert progress.describe_standing(nll, make_info().baselines).lstrip() == said


def test_a_line_of_the_table_has_80_columns_also_with_large_numbers() -> None:
    record = {
        "step": 1_234_567,
        "train_nll": 12.3456,
        "val_nll": 12.3456,
        "val_perplexity": 1.234e20,
        "val_accuracy": 1.0,
        "val_bits_per_byte": 123.456,
        "grad_norm": 1.2e-10,
        "lr": 9.1e-05,
        "tokens_per_second": 1_234_567,
    }
    line = progress.describe_progress(record)
    assert len(line) == len(progress.COLUMNS) == 80
    assert len(line.split()) == len(record)  # no two numbers touch
    assert progress.describe_progress(record | {"kl_gap": -0.04}).splitlines() == [
        line,
        "        -0.0400 above the source",
    ]


def test_the_line_of_the_gpus_fits_80_columns() -> None:
    record = {
        "gpu_tokens_per_second": 1_234_567,
        "gpu_gigabytes": 133.1,
        "mfu": 0.412,
        "seconds_left": 36_003.0,
    }
    said = "each GPU: 1,234,567 tokens/s, MFU 41%, 133.1 GB at peak; 10:00:03 left"
    assert progress.describe_gpus(record).lstrip() == said
    assert len(progress.describe_gpus(record)) <= 80


def test_columns_stay_apart_where_a_run_diverges() -> None:
    """A loss of 370.1892 has no room for its digits: it gets fewer of them."""
    for nll in (99.99, 117.9623, 1234.5678, 6.5e30, 1e300, math.inf, math.nan):
        record = {
            "step": 2,
            "train_nll": nll,
            "val_nll": nll,
            "val_perplexity": math.exp(min(nll, 700)),
            "val_accuracy": 1.0,
            "val_bits_per_byte": nll,
            "grad_norm": 1.2e-10,
            "lr": 1e38,
            "tokens_per_second": 123_456_789,
        }
        line = progress.describe_progress(record)
        columns = line.split()
        assert len(line) == 80
        assert len(columns) == len(record)
        assert float(columns[2]) == pytest.approx(nll, rel=0.5, nan_ok=True)


def test_baselines_keep_their_columns() -> None:
    """A compressor's header makes the perplexity of a short text large."""
    info = make_info(make_baseline("xz", 12.5), make_baseline("bzip2", 300.0))
    table = info.describe().split("\n\n")[1].splitlines()
    title, *rows = [row for row in table if not row.startswith("  These")]
    assert len(rows) == 6
    assert title.endswith("perplexity  training text")
    for row in rows:
        assert re.fullmatch(r" +(read|not read)", row[title.index("  training text") :]), row


def test_the_entropy_rate_is_no_baseline_to_beat() -> None:
    rate = Baseline(name="entropy rate", nats_per_token=1.2, bits_per_byte=1.7, perplexity=3.3)
    info = make_info(rate, entropy_rate=1.2, source_nll=1.25)
    assert progress.describe_standing(1.21, info.baselines).endswith(
        "beats 6-gram, 1.520: the last baseline"
    )
    said = judge(make_records(4.17, 1.4), info)
    assert "6-gram; ahead: none." in said
    assert "1.4000 is the entropy rate 1.2000, +0.0500 of sampling error of this text" in said
    assert "KL(source || model) = 0.1500" in said


def test_a_run_that_still_improves() -> None:
    said = verdict(make_records(4.17, 2.0, 1.7))
    assert (
        "The best model, of step 400 of 400, has a loss of 1.7000 nats per token "
        "on all 999 validation"
    ) in said
    assert "2.47 nats below log|V|; 2.453 bits per byte; top-1 accuracy 50.0%" in said
    assert "perplexity 5.47" in said
    assert "it beats uniform, log|V|, bigram; ahead: 6-gram (1.520)." in said
    assert "it beats gzip; ahead: none." in said
    assert "did not overfit" in said
    assert "On training text that it read the best model has 1.6100, 0.090 ± 0.020 lower." in said
    assert f"--max_iters={2 * Config().optim.max_iters}" in said


def test_a_run_that_beats_everything() -> None:
    assert verdict(make_records(4.17, 1.4)).count("; ahead: none.") == 2
    assert verdict(make_records(4.18)).count("it beats none; ahead: ") == 2


def test_a_slight_rise_at_the_end_is_no_overfitting() -> None:
    assert "did not overfit" in verdict(make_records(4.17, 1.7, 1.705, steps=300))


def test_a_run_that_overfitted() -> None:
    records = make_records(4.17, 1.7, 1.9, train=0.8, steps=300)
    said = verdict(records, epochs=9.26, overfitting=5, mean=0.8)
    assert "of step 150 of 300" in said
    assert (
        "It overfitted: since step 150 the validation loss rose by 0.200, "
        "and the training loss fell by 0.800.\n"
        "  Training read its text 9.3 times."
    ) in said
    assert "On training text that it read the best model has 0.8100, 0.890 ± 0.020 lower." in said
    assert "--dropout=0.1" in said
    assert "Therefore it stopped early; --patience=0 trains on." in said


def test_what_reading_was_worth_is_told_from_a_harder_text() -> None:
    *records, final = make_records(4.17, 2.0, 1.634, train=1.466)
    unread = {"best_epochs": 0.38, "best_train_unread_nll": 1.496, "best_train_unread_error": 0.002}
    said = verdict([*records, final | unread | {"best_train_read_error": 0.002}])
    assert (
        "The best model read 38% of the training text. "
        "Its loss is 1.4760 on that, and 1.4960 on the rest."
    ) in said
    assert "  Having read a text lowers its loss by 0.020 ± 0.006: that is memorisation." in said
    harder = "The validation text is 0.138 ± 0.004 harder than training text that it did not read."
    assert f"  {harder}" in said
    noisy = [*records, final | unread]
    assert "So memorisation cannot be told from noise: +0.020 ± 0.020." in verdict(noisy)
    tuned = verdict(noisy, Config(run=RunConfig(init_from="out/first")))
    means = "Read means here: in this training. What out/first had read before is not counted."
    assert f"  {means}" in tuned


def test_training_text_that_was_not_read_is_told_alone() -> None:
    *records, final = make_records(4.17, 2.0, 1.634, train=1.466)
    for name in ("best_train_read_nll", "best_train_read_error"):
        del final[name]
    unread = {"best_epochs": 0.38, "best_train_unread_nll": 1.496, "best_train_unread_error": 0.002}
    said = verdict([*records, final | unread])
    assert "On training text that it did not read the best model has 1.4960." in said
    old = verdict([*records, final | {"best_train_nll": 1.5}])  # as an earlier edition wrote it
    assert "did not overfit" in old
    assert "training text" not in old


def test_a_rise_that_is_no_overfitting() -> None:
    """It is noise, or the learning rates are too high: advice names lower rates, and no dropout."""
    records = make_records(4.17, 1.7, 1.75, steps=300)
    noise = verdict(records, recovered=0.1, epochs=9)
    fell = (
        "Since step 150 the validation loss rose by 0.050. That is noise: it has fallen by 0.100 "
    )
    assert fell in noise
    high = verdict(records, mean=1.7, epochs=9)
    assert "rose by 0.050, and the training loss by 0.100: the learning rates are too high." in high
    once = verdict(records, mean=1.5)
    assert "It did not overfit: training read 50% of its text, and nothing twice." in once
    flat = verdict(records, epochs=9)
    assert "and the training loss did not fall.\n  It did not overfit: that is noise, or " in flat
    for said in (noise, high, once, flat):
        assert "It overfitted" not in said
        assert "--dropout" not in said
        lower = "--learning_rate=0.005 --muon_learning_rate=0.015"
        assert f"Try lower rates, {lower}, or larger batches, " in said
        assert "--schedule" not in said
    optim = OptimConfig(schedule="constant", optimizer="adamw")
    said = verdict(records, Config(optim=optim))
    assert "--muon" not in said
    assert "rates that decay, --schedule=linear" in said


def test_who_loses_to_counting_on_the_plays_is_told_what_does_not() -> None:
    plays = make_info(name="shakespeare")
    recipe = "config/shakespeare_ngram.toml beats the 6-gram"
    assert recipe in judge(make_records(4.17, 1.6), plays)
    assert recipe not in judge(make_records(4.17, 1.5), plays)
    assert recipe not in verdict(make_records(4.17, 1.6))


def test_a_run_whose_loss_rose_above_uniform_at_first() -> None:
    said = verdict(make_records(4.17, 12.2, 2.0))
    assert "At step 200 the validation loss was 12.200, worse than log|V|." in said
    assert "Try smaller steps: --learning_rate=0.0025" in said
    assert "Try longer" not in said


def test_a_run_that_diverged() -> None:
    said = verdict(make_records(4.17, 300.0, train=500.0))
    diverged = "It diverged: the training loss is 500, and log|V| is 4.174."
    assert f"{diverged} best.safetensors has" in said
    smaller = "--learning_rate=0.0025, --muon_learning_rate=0.0075, --warmup_iters=80."
    assert f"Try smaller steps: {smaller}" in said
    assert "--grad_clip" not in said  # it is 1 already
    assert "--dtype" not in said
    assert "overfit" not in said


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            {"learning_rate": 3},
            "learning_rate=3 is 300 times its default of 0.01: try --learning_rate=0.01.",
        ),
        (
            {"muon_learning_rate": 1.5, "learning_rate": 0.049},
            "muon_learning_rate=1.5 is 50 times its default of 0.03: try --muon_learning_rate=0.03",
        ),
        (
            {"muon_learning_rate": 1.5, "optimizer": "adamw"},
            "Try smaller steps: --learning_rate=0.0025, --warmup_iters=80.",
        ),
        ({"learning_rate": 1e-5}, "Try smaller steps: --learning_rate=2.5e-06, "),
    ],
)
def test_a_run_that_diverged_names_the_rate_that_is_far_from_its_default(
    rates: dict[str, Any], said: str
) -> None:
    cfg = Config(optim=OptimConfig(**rates))
    last_line = verdict(make_records(4.17, 300.0, train=500.0), cfg).splitlines()[-1]
    assert last_line.startswith(said)
    assert "times its default" not in verdict(make_records(4.17, 2.0), cfg)


def test_a_run_of_nonfinite_steps_diverged() -> None:
    first, final = make_records(4.17)
    stopped = {"step": 10, "seconds": 1.0, "nonfinite_steps": 10, "nonfinite_in_a_row": 10}
    said = verdict([first, stopped, final], nonfinite_steps=10, nonfinite_in_a_row=10)
    assert "It diverged: the last 10 step(s) had no finite loss and gradient." in said
    assert "not finite: 10." in said
    assert "No loss was finite" in verdict([{"step": 10, "seconds": 1.0}])


def test_an_overflow_of_float16_in_the_last_step_is_no_divergence() -> None:
    """It makes the loss scale smaller; only as many in a row as end a training are a sign."""
    records = make_records(4.17, 2.0)
    float16 = DEFAULTS.with_run(dtype="float16")
    overflow = verdict(records, float16, nonfinite_steps=9, nonfinite_in_a_row=9)
    assert "It diverged" not in overflow
    too_many = verdict(records, float16, nonfinite_steps=10, nonfinite_in_a_row=10)
    assert "It diverged: the last 10 step(s) had no finite loss and gradient." in too_many
    float32 = verdict(records, nonfinite_steps=1, nonfinite_in_a_row=1)
    assert "It diverged: the last 1 step(s)" in float32


def test_advice_names_no_option_that_has_such_a_value_already() -> None:
    optim = OptimConfig(grad_clip=0, optimizer="adamw", warmup_iters=100)
    cfg = Config(optim=optim).with_run(dtype="bfloat16")
    said = verdict(make_records(4.17, 300.0, train=500.0), cfg)
    assert "Try smaller steps: --learning_rate=0.0025, --grad_clip=1, --dtype=float32." in said


def test_steps_that_changed_nothing_and_spikes_are_told() -> None:
    """The lines of steps count them; the last line, with the best model's loss, does not."""
    records = make_records(4.17, 2.0)
    records[-2] |= {"skipped_steps": 3, "nonfinite_steps": 4, "loss_spikes": 2}
    said = verdict(records)
    assert "Steps that had no target, and were skipped: 3." in said
    assert "because their loss or gradient was not finite: 4." in said
    assert "--warmup_iters may help): 2." in said


def test_the_objective_comes_apart() -> None:
    run = make_records(4.17, 2.0, 1.7)
    run[-2] |= {
        "objective": 1.9,
        "smoothing": 0.35,
        "z_loss": 0.05,
        "distillation": -0.1,
        "smoothed_entropy": 0.75,
        "smoothed_kl": 1.2,
        "teacher_kl": 0.07,
    }
    said = verdict(run)
    assert (
        "The objective at the end, 1.9000, is the training NLL of 1.6000 "
        "+0.3500 of label smoothing +0.0500 of z-loss -0.1000 of distillation."
    ) in said
    assert "H(p) is 0.7500, and KL(p || q) is 1.2000" in said
    assert "this KL is 0.0700" in said
    run[-2] = make_records(4.17, 2.0, 1.7)[-2] | {"objective": 1.6}
    assert "The objective" not in verdict(run)


def test_below_log_v_is_measured_from_log_v() -> None:
    """A compressor of a short text may be far above log|V|."""
    info = make_info(make_baseline("xz", 300.0))
    assert "1.17 nats below log|V|" in judge(make_records(4.17, 3.0), info)


def test_samples_are_told_from_their_prompt() -> None:
    assert words.show_samples("", ["\nab\n"]) == "A sample:\n\nab"
    assert words.show_samples("", ["ab", "cd"]) == "2 samples:\n\nab\n\ncd"
    shown = words.show_samples("CAT:\n", ["a\nb\n", "c"])
    assert shown == "Prompt:\n\nCAT:\n\n2 samples:\n\na\nb\n\nc"
    assert progress.describe_sample("ab\ncd\x1b[0m").endswith("writes: ab⏎cd␛[0m")


def test_the_options_that_differ_are_named() -> None:
    cfg = Config().with_run(seed=2, out_dir="out/x")
    assert words.describe_options(cfg.changed()) == "options that differ from the defaults: seed=2"
    assert words.describe_options(Config().changed()).endswith(": none")


def test_a_damaged_line_of_metrics_is_left_out() -> None:
    assert parse_record(b'{"step": 1, "val_nll": 2.5}') == {"step": 1, "val_nll": 2.5}
    for line in (
        b'{"step": 2, "tra',
        b"",
        b"[1]",
        b'{"val_nll": 2.5}',
        b'{"step": "2"}',
        b'{"step": true}',
        b"[" * 100_000,
    ):
        assert parse_record(line) is None
    for impossible in ("1e999", "NaN", "-1e308", "1" + 400 * "0"):
        assert parse_record(f'{{"step": 1, "tokens": {impossible}}}'.encode()) == {"step": 1}


@pytest.mark.parametrize(
    ("cores", "options", "advice"),
    [
        (1, {"micro_batch_size": 8}, "--micro_batch_size=4, "),
        # 4 in each of two threads would be as many
        (2, {"micro_batch_size": 8}, "--micro_batch_size=2, "),
        (2, {"micro_batch_size": 2}, "--micro_batch_size=1, "),
        (16, {"micro_batch_size": 4}, "--micro_batch_size=1 and OMP_NUM_THREADS=4, "),
        (16, {"micro_batch_size": 4, "compile": True}, "--micro_batch_size=2, "),
        (2, {"micro_batch_size": 1}, "--micro_batch_size=1 and OMP_NUM_THREADS=1, "),
    ],
)
def test_half_the_memory_counts_the_micro_batches_of_all_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, options: dict[str, object], advice: str
) -> None:
    monkeypatch.setattr("engine.device.count_workers", lambda: cores)
    assert f"use {advice}" in words.advise_less_memory(Config().with_run(device="cpu", **options))


def test_less_memory() -> None:
    cfg = Config()
    assert "--micro_batch_size=2, which gives the same result" in words.advise_less_memory(cfg)
    assert "--micro_batch_size" not in words.advise_less_memory(cfg.with_run(micro_batch_size=1))


def test_next_commands_quote_the_name_of_the_run() -> None:
    assert "curves.py 'out/my run' OTHER_RUN" in words.next_commands(Path("out/my run"))
