"""A model that learns while it reads: what it predicts, what it learns, what stays as it was."""

import hashlib
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import evaluate
from config.errors import UserError
from config.schema import TablesConfig
from data.batches import IGNORE_INDEX
from data.documents import Split
from data.eval_text import EvalText
from engine.dynamic import (
    MEAN_SQUARE,
    Learner,
    Rates,
    RowwiseAdaGrad,
    cut_for_learning,
    default_context,
    default_stride,
    group_windows,
    make_batches,
    predict_and_learn,
    predict_only,
)
from engine.run import open_run
from engine.scoring import predict, score_targets
from model import GPT
from page.along import DIGITS, MASKED, STEPS_A_BIT
from tests.conftest import CPU, TINY, call, make_model, make_text, only_numbers, training_in

TABLES = TablesConfig(max_ngram=4, table_rows=50)
FAST = Rates(learning_rate=0.01, table_learning_rate=0.05)
EOS = 12


def tokens_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 12, n)


def text_of(split: Split, stride: int = 3, eos: int | None = None) -> EvalText:
    return cut_for_learning(EvalText(split, 8, eos, stride), 8 - stride)


def losses(model: GPT, text: EvalText, rates: Rates = FAST) -> np.ndarray:
    """Return the loss of each target of a text, which the model learns."""
    batches = make_batches(text, group_windows(text))
    predictions = predict_and_learn(Learner(model, rates, CPU), batches)
    return score_targets(predictions, [1.0]).nll


@pytest.mark.parametrize("tables", [None, TABLES])
@pytest.mark.parametrize("form", ["nanochat", "gpt2"])
def test_with_rates_of_zero_each_loss_is_the_ordinary_one(tables, form: str) -> None:
    model = make_model(form=form, tables=tables)
    split = Split(tokens_of(200), np.arange(200) % 5 > 0)
    text = text_of(split, stride=2)
    still = losses(model, text, Rates(0.0, 0.0))
    batches = make_batches(text, group_windows(text))
    only_predicted = predict_only(Learner(model, FAST, CPU), batches)
    assert (still == score_targets(only_predicted, [1.0]).nll).all()
    ordinary = EvalText(split, 8, stride=2)
    assert (ordinary.positions == text.positions).all()
    of_ordinary = score_targets(predict(model, ordinary.batches(), CPU), [1.0])
    assert still == pytest.approx(of_ordinary.nll, abs=1e-5)
    assert (losses(model, text, FAST) != still).mean() > 0.9


@pytest.mark.parametrize("eos", [None, EOS])
def test_no_target_is_learned_before_it_is_counted(eos) -> None:
    """A token that changes moves its own loss and later ones, and none before."""
    tokens = tokens_of(120)
    tokens[::7] = EOS
    before = losses(make_model(tables=TABLES), text_of(Split(tokens), eos=eos))
    for place in (1, 30, 31, 32, 33, 118):
        changed = tokens.copy()
        changed[place] = (changed[place] + 1) % 12
        if eos is not None and EOS in (tokens[place], changed[place]):
            continue  # it would change the documents
        after = losses(make_model(tables=TABLES), text_of(Split(changed), eos=eos))
        assert (after[: place - 1] == before[: place - 1]).all()
        assert after[place - 1] != before[place - 1]
        assert (after[place + 10 :] != before[place + 10 :]).all()


def test_masked_tokens_are_context_and_are_not_learned() -> None:
    """What is no target moves no weight, except as the context of a target."""
    tokens = tokens_of(100)
    unmasked = np.arange(100) % 20 >= 16  # so that most windows of 3 have no target
    text = text_of(Split(tokens, unmasked))
    nll = losses(make_model(), text)
    assert len(nll) == unmasked.sum() == len(text.positions)

    def losses_with_other(places: slice) -> np.ndarray:
        changed = tokens.copy()
        changed[places] = (changed[places] + 1) % 12
        return losses(make_model(), text_of(Split(changed, unmasked)))

    changed_late = losses_with_other(slice(86, 96))
    assert changed_late[:-4].tolist() == nll[:-4].tolist()
    # no window with a target has these as its context
    assert losses_with_other(slice(40, 48)).tolist() == nll.tolist()


def test_two_learners_of_one_text_agree_in_every_bit() -> None:
    """So a decoder can repeat the steps of an encoder."""
    one, other, start = (make_model(tables=TABLES) for _ in range(3))
    text = text_of(Split(tokens_of(100)))
    assert losses(one, text).tolist() == losses(other, text).tolist()
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert not any(map(torch.equal, one.parameters(), start.parameters()))


def test_a_part_with_a_rate_of_zero_stands_still() -> None:
    text = text_of(Split(tokens_of(100)))
    for rates, tables_move in ((Rates(0.01, 0.0), False), (Rates(0.0, 0.01), True)):
        model = make_model(tables=TABLES)
        losses(model, text, rates)
        start = make_model(tables=TABLES)
        old = dict(start.named_parameters())
        for name, p in model.named_parameters():
            moves = name.startswith("tables.") == tables_move
            assert p.equal(old[name]) != moves


def test_a_row_moves_less_the_more_often_it_occurred() -> None:
    """The step is lr g / sqrt(v), and v sums the mean squares of the row's gradients.

    It does not begin at zero: so a row whose first gradient is small moves little.
    """
    table = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = RowwiseAdaGrad([table], lr=0.1)
    gradients = torch.tensor([[3.0, 4.0], [3.0, 4.0], [6.0, 8.0]])
    moved = torch.zeros(2)
    row = torch.tensor([[2]])
    square_sum = MEAN_SQUARE
    for g in gradients:
        table.grad = torch.sparse_coo_tensor(row, g[None], (4, 2), check_invariants=True)
        optimizer.step()
        square_sum += float(g.square().mean())
        moved -= 0.1 * g / square_sum**0.5
        assert table[2].tolist() == pytest.approx(moved.tolist())
    assert not table[[0, 1, 3]].any()
    small = torch.full((1, 2), 1e-3)
    table.grad = torch.sparse_coo_tensor(torch.tensor([[3]]), small, (4, 2), check_invariants=True)
    optimizer.step()
    assert float(table[3].detach().abs().max()) < 0.001  # at zero it would be 0.1


def test_a_text_that_repeats_is_learned() -> None:
    """The loss of what came before falls far below that of a model that stands still."""
    split = Split(np.tile(tokens_of(30), 20))
    for tables in (None, TABLES):
        model = make_model(std=0.02, tables=tables)
        still = losses(model, text_of(split), Rates(0.0, 0.0))[-100:]
        learned = losses(model, text_of(split))[-100:]
        assert learned.mean() < still.mean() - 0.5


def test_a_model_that_diverges_says_what_to_do() -> None:
    text = text_of(Split(tokens_of(100)))
    with pytest.raises(UserError, match="diverged while it learned: use lower learning rates"):
        losses(make_model(), text, Rates(learning_rate=1e30))


@pytest.mark.parametrize("stride", [1, 3, 4, 8])
@pytest.mark.parametrize("n", [2, 3, 9, 64, 200])
@pytest.mark.parametrize("documents", [False, True])
def test_each_token_is_a_target_once_with_few_new_ones_in_a_step(n, stride, documents) -> None:
    tokens = np.arange(n)
    eos = None
    if documents:
        eos = n
        tokens = np.where(np.arange(n) % 11 == 5, eos, tokens)
    text = text_of(Split(tokens), stride, eos)
    assert text.positions.tolist() == list(range(1, n))
    groups = group_windows(text)
    assert np.concatenate(groups).tolist() == text.windows.tolist()
    targets = []
    for inputs, goals, _ in make_batches(text, groups):
        unmasked = goals != IGNORE_INDEX
        assert 0 < unmasked.sum() <= stride
        assert inputs.shape[1] <= 8
        targets += goals[unmasked].tolist()
        for row, is_target in zip(inputs, unmasked, strict=True):
            last = is_target.nonzero()[0][-1]
            assert eos not in row[1 : last + 1]  # one document
    assert targets == tokens[1:].tolist()
    # no group is smaller than it has to be
    sizes = []
    for group in groups:
        lengths, skips = group[:, 1], group[:, 2]
        sizes.append((lengths - skips).tolist())
    assert all(sum(one) + other[0] > stride for one, other in itertools.pairwise(sizes))


def test_a_small_window_has_context_too() -> None:
    sizes = [1, 2, 8, 256, 1024]
    strides = list(map(default_stride, sizes))
    assert strides == [1, 1, 4, 128, 128]
    assert list(map(default_context, sizes, strides)) == [0, 1, 2, 64, 256]


# The command.


NAMES = ["hamned", "doramen", "catesan", "someret", "ventos"]  # in letters of the old words


NAMES_IN_ORDER = sorted(NAMES)


def make_play() -> str:
    """Write a text in whose second half there are names that its first half does not have."""
    rng = random.Random(1)
    text = make_text(60)
    for _ in range(80):
        text += " ".join(rng.choices(NAMES, k=3)) + " sat;\n"
    return text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make tiny runs in the current directory, each named after what is special in it."""
    directory = tmp_path_factory.mktemp("dynamic")
    with training_in(directory) as patch:
        only_numbers(patch)
        Path("story.txt").write_text("the cat sat on a mat;\n" * 60, encoding="utf-8")
        lines = [f'{{"prompt": "{n} and 1", "completion": "make {n + 1}"}}' for n in range(200)]
        Path("play.txt").write_text(make_play(), encoding="utf-8")
        Path("records.jsonl").write_text("\n".join(lines), encoding="utf-8")
        for out, *arguments in (
            ["whole"],
            ["tables", "--max_ngram=3", "--table_rows=50"],
            ["padded", "--documents=lines", "--padded"],
            ["records", "--corpus=records.jsonl", "--predict_eos=false"],
        ):
            call("train.py", "--corpus=text.txt", f"--out_dir=out/{out}", *TINY, *arguments)
        yield directory


def found(*argv: str) -> dict[str, Any]:
    """Read what `evaluate.py ... --json` prints."""
    return json.loads(call("evaluate.py", *argv, "--json").stdout, parse_constant=pytest.fail)


def rates_of(run: str, *, still: bool = False) -> list[str]:
    """Return the options for the rates of a run, which are 0 if it is to stand still."""
    options = ["--learning_rate=0.003"]
    if run == "out/tables":
        options.append("--table_learning_rate=0.01")
    if still:
        options = [option.partition("=")[0] + "=0" for option in options]
    return options


@pytest.mark.parametrize("run", ["out/whole", "out/tables", "out/padded", "out/records"])
def test_the_loss_standing_still_and_learning(runs, run: str) -> None:
    result = found(run, "--dynamic", "--context=4", *rates_of(run))
    ordinary = found(run, "--stride=4")
    dynamic = result["dynamic"]
    nats = ordinary["loss"]["nats_per_token"]["value"]
    assert dynamic["standing_still"]["nats_per_token"]["value"] == pytest.approx(nats, abs=1e-5)
    gain = dynamic["gain"]["nats_per_token"]
    difference = nats - result["loss"]["nats_per_token"]["value"]
    assert gain["value"] == pytest.approx(difference, abs=1e-5)
    assert gain["low"] < gain["value"] < gain["high"]
    assert (dynamic["table_learning_rate"] is None) == (run != "out/tables")
    assert result["targets"] == ordinary["targets"]
    assert result["stride"] == 4
    assert result["steps"] >= result["targets"] / 4
    assert result["baselines"] == ordinary["baselines"]
    still = found(run, "--dynamic", "--context=1", *rates_of(run, still=True))
    assert still["loss"] == still["dynamic"]["standing_still"]


def test_a_run_learns_a_text_of_ones_own(runs) -> None:
    result = found("out/tables", "--text=story.txt", "--dynamic", *rates_of("out/tables"))
    dynamic = result["dynamic"]
    assert dynamic["gain"]["nats_per_token"]["low"] > 0.5
    assert dynamic["gain_of_first_tenth"] < dynamic["gain_of_last_tenth"] - 0.3


def test_the_files_of_a_run_stay_as_they_are(runs) -> None:
    def checksums() -> dict[str, str]:
        files = sorted(Path("out/tables").iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = checksums()
    call("evaluate.py", "out/tables", "--dynamic", "--against=out/whole")
    assert checksums() == before


def test_against_another_run_both_learn(runs) -> None:
    result = found("out/tables", "--dynamic", *rates_of("out/tables"), "--against=out/whole")
    other = found("out/whole", "--dynamic", *rates_of("out/whole"))
    against = result["against"]
    assert against["loss"] == other["loss"]
    assert against["dynamic"] == other["dynamic"]
    ours, theirs = (each["loss"]["nats_per_token"]["value"] for each in (result, other))
    difference = against["difference"]["nats_per_token"]["value"]
    assert difference == pytest.approx(ours - theirs)


def test_a_limit_reads_the_beginning_of_a_text(runs) -> None:
    part = found("out/whole", "--dynamic", "--max_tokens=300")
    whole = found("out/whole", "--dynamic")
    assert part["targets"] == 300
    assert part["of_targets"] == whole["targets"] == whole["of_targets"]
    assert part["baselines"] == []
    said = call("evaluate.py", "out/whole", "--dynamic", "--max_tokens=300").stdout
    assert "targets of " in said
    assert ", the first ones (--max_tokens=0 evaluates all)" in said


def test_the_loss_along_the_text_adds_up(runs, monkeypatch) -> None:
    """Of each part: the model standing still, learning, and PPMd after the training text."""
    monkeypatch.setattr("report.along_text.PART_BYTES", 100)
    result = found("out/tables", "--dynamic", *rates_of("out/tables"))
    along = result["along_text"]
    starts = along["start"]
    assert starts[0] == 0
    assert len(starts) == pytest.approx(result["bytes"] / 100, abs=1)
    sizes = np.diff([*starts, result["bytes"]])
    assert (sizes[:-1] > 90).all()
    assert (sizes[:-1] < 110).all()
    trained = [each for each in result["baselines"] if each["name"] == "trained PPMd"]
    losses = {
        "standing still": result["dynamic"]["standing_still"]["bits_per_byte"]["value"],
        "learning": result["loss"]["bits_per_byte"]["value"],
        "trained PPMd": trained[0]["bits_per_byte"],
    }
    assert list(along["bits_per_byte"]) == list(losses)
    for name, loss in losses.items():
        bits = sum(sizes * along["bits_per_byte"][name])
        late = 8 * 5 if name == "trained PPMd" else 0.1  # whole bytes, some of them late
        assert bits == pytest.approx(loss * result["bytes"], abs=late)


PLAY = ["out/tables", "--text=play.txt", "--dynamic"]


def test_new_words_come_in_where_a_play_begins(runs, monkeypatch) -> None:
    """There is a mark, and whoever learns pays less for them each time."""
    monkeypatch.setattr("report.along_text.PART_BYTES", 50)
    along = found(*PLAY, *rates_of("out/tables"))["along_text"]
    text = make_play()
    place = min(text.index(name) for name in NAMES)
    before = len(text[:place].encode()) - len(text[0])  # the first character is no target
    (mark,) = along["marks"]
    assert mark["start"] == before
    assert sorted(mark["words"]) == NAMES_IN_ORDER
    new = along["new_words"]
    assert new["words"] == len(NAMES)
    assert sorted(new["examples"]) == NAMES_IN_ORDER
    still, learning = (new["bits"][name] for name in ("standing still", "learning"))
    assert len(still) == len(learning) == 10
    assert learning[-1] < learning[0] - 5
    assert still[-1] == pytest.approx(still[0], abs=2)


def unpack(part: dict[str, Any], name: str) -> list[float | None]:
    """Read the packed costs of a part in a page, in bits."""
    digits = "".join(DIGITS)
    packed = part[name]
    costs: list[float | None] = []
    for high, low in zip(packed[::2], packed[1::2], strict=True):
        code = 64 * digits.index(high) + digits.index(low)
        costs.append(None if code == MASKED else code / STEPS_A_BIT)
    return costs


@pytest.mark.parametrize("run", ["out/tables", "out/padded", "out/records"])
def test_the_page_has_each_part_token_by_token(runs, run: str, monkeypatch) -> None:
    """With what each token cost standing still and learning, and none for a masked one."""
    monkeypatch.setattr("report.along_text.PART_BYTES", 100)
    written: dict[str, Any] = {}
    monkeypatch.setattr("page.page.write_page", lambda path, content: written.update(content))
    result = found(run, "--dynamic", *rates_of(run), "--html=page.html")
    along = written["along"]
    assert along["start"] == result["along_text"]["start"]
    assert along["masks"] == (run == "out/records")
    sizes = np.diff([*along["start"], along["end"]])
    costs: dict[str, list[float | None]] = {"standing still": [], "learning": []}
    for number, part in enumerate(along["parts"]):
        for name, packed in (("standing still", "still"), ("learning", "learning")):
            own = unpack(part, packed)
            assert len(own) == len(part["tokens"])
            bits = sum(cost for cost in own if cost is not None)
            expected = along["bits_per_byte"][name][number] * sizes[number]
            if not along["masks"]:
                assert bits == pytest.approx(expected, abs=0.01 * len(own))
            costs[name] += own
    targets = [cost for cost in costs["learning"] if cost is not None]
    assert len(targets) == result["targets"]
    nats = result["loss"]["nats_per_token"]["value"]
    assert np.mean(targets) * np.log(2) == pytest.approx(nats, abs=0.004)
    assert (None in costs["learning"]) == along["masks"]
    joined = "".join("".join(part["tokens"]) for part in along["parts"])
    assert "the cat" in joined or "make" in joined


def test_a_page_of_a_long_text_has_the_start_of_each_part(runs, monkeypatch) -> None:
    monkeypatch.setattr("page.along.MAX_SHOWN", 60)
    monkeypatch.setattr("report.along_text.PART_BYTES", 100)
    written: dict[str, Any] = {}
    monkeypatch.setattr("page.page.write_page", lambda path, content: written.update(content))
    found("out/whole", "--dynamic", "--html=page.html")
    parts = written["along"]["parts"]
    most = 60 // len(parts)
    assert [len(part["tokens"]) for part in parts] == [most] * len(parts)


def test_ppmd_is_left_out_along_a_masked_text_and_one_without_a_text_before(runs) -> None:
    for argv in (
        ["out/records"],
        ["out/whole", "--text=story.txt"],
        ["out/whole", "--split=train"],
    ):
        along = found(*argv, "--dynamic")["along_text"]
        assert list(along["bits_per_byte"]) == ["standing still", "learning"]


BOTH = ["out/whole", "--against=out/tables"]


def test_what_is_said_tells_who_learns(runs) -> None:
    said = call("evaluate.py", "out/tables", "--dynamic").stdout
    result = found("out/tables", "--dynamic")
    loss = result["loss"]["nats_per_token"]["value"]
    still = result["dynamic"]["standing_still"]["nats_per_token"]["value"]
    assert f"learns while it reads, and has a loss of {loss:.4f} nats per token" in said
    assert f"Standing still, in the same windows, it has {still:.4f}" in said
    assert "rates: 0.0002 by AdamW, tables of n-grams 0.02 by AdaGrad.\n" in said
    assert "It learned too; standing" in call("evaluate.py", *BOTH, "--dynamic").stdout
    of_still = said.index("Of those that stand still")
    assert said.index("Standing still:\n") < of_still < said.index("Learning:\nOf those that ")


def test_a_learner_is_mixed_with_an_ngram(runs) -> None:
    """The mixture is of what the learner predicted; the n-gram stands still."""
    alone = found("out/tables", "--dynamic", *rates_of("out/tables"))
    result = found("out/tables", "--dynamic", *rates_of("out/tables"), "--mix=3-gram")
    mix = result.pop("mix")
    assert result == alone
    assert mix["targets"] == result["targets"]
    counted = [each for each in alone["baselines"] if each["name"] == "3-gram"]
    assert mix["ngram_nats_per_token"] == pytest.approx(counted[0]["nats_per_token"])
    own, mixed = (each["loss"]["nats_per_token"]["value"] for each in (alone, mix))
    assert mix["gain"]["nats_per_token"]["value"] == pytest.approx(own - mixed)
    of_still = found("out/tables", "--stride=4", "--mix=3-gram")["mix"]
    assert mixed != of_still["loss"]["nats_per_token"]["value"]
    said = call("evaluate.py", "out/tables", "--dynamic", "--mix=3-gram").stdout
    assert "Mixed with the 3-gram, each target with the weights that were best before it:" in said


def test_beside_a_loss_on_plays_stands_that_of_english(runs) -> None:
    """The same sentence as at the end of a training, with the loss of the one that learns."""
    run = open_run(Path("out/whole"))
    options = evaluate.EvaluateOptions(dynamic=True)
    loss = {"bits_per_token": np.array([1.76, 1.7, 1.8])}
    assert evaluate.beside_english(run, loss, options) == ""
    assert "English has" not in call("evaluate.py", "out/whole", "--dynamic").stdout
    info = run.info.model_copy(update={"name": "shakespeare"})
    of_plays = replace(run, info=info)
    says = evaluate.beside_english(of_plays, loss, options)
    assert says.startswith("English has about 1.0 to 1.5 bits per character; this is 1.76. That")
    with mock.patch("evaluate.beside_english", return_value=says):
        said = call("evaluate.py", "out/whole", "--dynamic").stdout
    assert f"by AdamW.\n  {says}\n" in said
    own = evaluate.EvaluateOptions(dynamic=True, text="story.txt")
    assert evaluate.beside_english(of_plays, loss, own) == ""


def test_a_rate_of_tables_needs_tables(runs) -> None:
    with pytest.raises(UserError, match="table_learning_rate: out/whole has no tables of n-grams"):
        evaluate.main(["out/whole", "--dynamic", "--table_learning_rate=0.1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dynamic", "--explain=the cat"], "dynamic and explain: use one of them"),
        (["--dynamic", "--tables"], "dynamic and tables: use one of them"),
        (["--learning_rate=0.1"], "learning_rate: only --dynamic has it"),
        (["--context=3"], "context: only --dynamic has it"),
        (["--dynamic", "--context=5"], "context=5: with stride=4 it is more than block_size=8 of"),
        (["--dynamic", "--learning_rate=-1"], "learning_rate"),
        (["out/whole", "--dynamic", "--ensemble"], "dynamic and ensemble: use one of them"),
    ],
)
def test_what_contradicts_it_is_refused(runs, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate.main(["out/tables", *argv])
