"""bench/records.py: each seed is measured once, and the table says what counts, or why not."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import records, time_to_loss
from bench.board import Board, Row, Run, find_faults, to_markdown
from config.cli import load_config
from config.errors import UserError
from surprisal import LN2
from tests.conftest import call, only_numbers, trained_dtype

RECIPE = f"""
[data]
corpus = "text.txt"

[model]
block_size = 8
n_layer = 1
n_head = 1

[optim]
batch_size = 4
max_iters = 2

[run]
dtype = "{trained_dtype()}"
"""
COMMAND = "tiny.toml --n_embd=8"
TIMED = Board("Time to 9", "text.txt", most_nats=9)
IN_A_MINUTE = Board("After one minute", "text.txt", most_seconds=60)
COMMIT = "0123456789" * 4
CPU = "a CPU, 2 threads"


class Programs:
    """Runs commands in this process instead of others; each takes a second."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.stop_at = ""  # the command that Ctrl-C ends
        self.damaged = ""  # a file

    def run(self, arguments: list[str], folder: str, **env: str) -> tuple[float, str]:
        command = shlex.join(arguments)
        if self.stop_at and self.stop_at in command:
            self.stop_at = ""
            raise KeyboardInterrupt
        self.called.append(command)
        done = call(*arguments, check=False)
        if done.returncode != 0:
            raise UserError(done.stderr.strip())
        for path in Path().rglob(self.damaged or "no such file"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        return 1.0, done.stdout

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, command)) for command in self.called)


@pytest.fixture
def programs(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """An empty board of one tiny recipe; a row has two seeds."""
    only_numbers(monkeypatch)
    programs = Programs()
    monkeypatch.setattr(time_to_loss, "run", programs.run)
    monkeypatch.setattr(records, "ROOT", data_dir)
    monkeypatch.setattr(records, "RECIPES", {TIMED: [COMMAND]})
    monkeypatch.setattr(records, "find_commit", lambda: COMMIT)
    monkeypatch.setattr(records, "cpu_name", lambda: CPU)
    monkeypatch.setattr(records, "CORES", 1)  # models this small are slower with two
    monkeypatch.setattr("bench.board.SEEDS", 2)
    monkeypatch.setattr("compress.MIN_STREAM", 40)
    Path("tiny.toml").write_text(RECIPE, encoding="utf-8")
    return programs


def measure(*arguments: str, returns: int = 0) -> str:
    """Call bench/records.py; returns what it printed, and the line of its error."""
    done = call("bench/records.py", "--seeds=1,2", *arguments, check=False)
    assert done.returncode == returns, done.stderr
    return done.stdout + done.stderr


def read_rows() -> list[Row]:
    rows: list[Row] = json.loads(Path("docs/records.json").read_bytes())
    return rows


def read_table() -> str:
    return Path("docs/records.md").read_text(encoding="utf-8")


def test_each_seed_is_trained_compressed_and_expanded(programs: Programs) -> None:
    threads = torch.get_num_threads()
    printed = measure()
    assert torch.get_num_threads() == threads
    assert programs.count("^train.py") == 2
    assert programs.count("^compress.py") == 4
    assert programs.count("^evaluate.py .*--dynamic") == 2
    row, learning = read_rows()
    assert (row["recipe"], row["commit"]) == (COMMAND, COMMIT)
    assert row["cpu"].startswith(CPU)
    size = len(records.read_val(COMMAND))
    for seed, run in row["runs"].items():
        assert run["seconds"] == 1
        assert f"{LN2 * run['bits_per_byte']:.4f} nats" in printed
        file = Path(f"out/records/{row['log']}/{seed}.txt.srp")
        assert run["file_bits_per_byte"] == 8 * file.stat().st_size / size
        assert run["file_bits_per_byte"] == pytest.approx(run["bits_per_byte"], rel=0.1)
        log = Path(f"docs/records/{row['log']}/{seed}.txt").read_text(encoding="utf-8")
        assert COMMIT in log
        assert f"$ python train.py {COMMAND} --seed={seed}\n" in log
        assert log.count("$ python compress.py") == log.count("bits in the file") == 2
    assert (row["learns"], learning["learns"]) == (False, True)
    for seed, run in learning["runs"].items():
        assert run["seconds"] == 1
        assert 0 < run["bits_per_byte"] != row["runs"][seed]["bits_per_byte"]
        assert run["file_bits_per_byte"] is None
    assert read_table().count("| 1 | 1.0 (1.0 to 1.0) |") == 2
    called = len(programs.called)
    measure()  # there is nothing left to do
    assert len(programs.called) == called


@pytest.mark.parametrize(
    "stop_at", ["train.py", "seed=2", "compress.py", "1.txt.srp", "2.txt --over", "--dynamic"]
)
def test_it_goes_on_where_it_was_stopped(programs: Programs, stop_at: str) -> None:
    programs.stop_at = stop_at
    measure(returns=130)
    measure()
    assert programs.count("^train.py") == 2
    assert programs.count("^compress.py.*srp") == 2
    for row in read_rows():
        assert list(row["runs"]) == ["1", "2"]
    assert "| 1, 2 |" in read_table()


def test_a_training_whose_run_is_gone_is_trained_again(programs: Programs) -> None:
    programs.stop_at = "compress.py"
    measure(returns=130)
    for path in Path("out/records").rglob("config.toml"):
        path.unlink()
    measure()
    assert programs.count("^train.py.*seed=1") == 2
    assert programs.count("^train.py.*seed=2") == 1


@pytest.mark.parametrize("damaged", ["1.txt.srp", "1.txt"])
def test_a_file_that_gives_another_text_back_is_an_error(programs: Programs, damaged: str) -> None:
    programs.damaged = damaged
    printed = measure(returns=2)
    assert "1.txt.srp: damaged" in printed or "does not give back the validation text" in printed
    row = read_rows()[0]
    assert "file_bits_per_byte" not in row["runs"]["1"]
    assert not Path("docs/records.md").exists()
    programs.damaged = ""
    measure()
    assert programs.count("^train.py") == 2


def test_another_commit_or_cpu_is_another_row(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure()
    monkeypatch.setattr(records, "find_commit", lambda: COMMIT[::-1])
    measure()
    monkeypatch.setattr(records, "cpu_name", lambda: "another CPU")
    measure()
    assert programs.count("^train.py") == 6
    rows = read_rows()
    assert len({row["log"] for row in rows}) == 3
    assert read_table().count(f"`{COMMAND}`") == 6  # standing still, and learning


def test_only_recipes_of_a_board_that_predict_all_of_val_are_measured(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is on no board" in measure("tiny.toml", returns=2)
    for option in ("--split=tuning", "--documents=lines", "--mask=a"):
        monkeypatch.setattr(records, "RECIPES", {TIMED: [f"tiny.toml {option}"]})
        assert "all of the usual validation text" in measure(returns=2)
    assert programs.called == []


def test_without_rows_there_is_no_table(programs: Programs) -> None:
    measure("--measure=false")
    assert programs.called == []
    assert not Path("docs").exists()


# The table.


def make_row(recipe: str, *runs: tuple[float, float, float | None], **others: Any) -> Row:
    """Make a row from seconds, nats, and bits per byte of the file as a share of the loss."""
    row: Row = {"recipe": recipe, "commit": COMMIT, "cpu": CPU, "log": recipe, "runs": {}}
    row |= {"learns": False, "chosen_on_val": False}
    for seed, (seconds, nats, ratio) in enumerate(runs, start=1):
        bits = nats / LN2
        run: Run = {"seconds": seconds, "bits_per_byte": bits}
        run["file_bits_per_byte"] = None if ratio is None else ratio * bits
        row["runs"][str(seed)] = run
    return row | others


def same_runs(seconds: float, nats: float, ratio: float | None = 1.0, count: int = 5) -> Any:
    return [(seconds, nats, ratio)] * count


def find_ranks(table: str) -> list[str]:
    """List the recipes of a table that have a rank, in their order."""
    return re.findall(r"^\| \d+ \|.*?`(\w+)`", table, re.MULTILINE)


def test_a_board_ranks_by_seconds_or_by_loss() -> None:
    fast = make_row("fast", *same_runs(2, 1.9))
    good = make_row("good", *same_runs(5, 1.8))
    rows = [good, fast]
    commands = ["fast", "good"]
    assert find_ranks(to_markdown({TIMED: commands}, rows)) == ["fast", "good"]
    assert find_ranks(to_markdown({IN_A_MINUTE: commands}, rows)) == ["good", "fast"]
    assert find_ranks(to_markdown({IN_A_MINUTE: ["fast"]}, rows)) == ["fast"]


def test_a_row_has_mean_spread_median_and_range() -> None:
    nats = [1.0, 2.0, 3.0, 2.0, 2.0]
    ratios = [1.0, 1.001, 0.996, 1.0, 1.0]
    runs = zip([10, 30, 20, 40, 15], nats, ratios, strict=True)
    table = to_markdown({TIMED: ["a"]}, [make_row("a", *runs)])
    line = next(line for line in table.splitlines() if line.startswith("| 1 |"))
    bits = 2 / LN2
    in_file = np.mean(np.multiply(nats, ratios)) / LN2
    cells = ["1", "20.0 (10.0 to 40.0)", "2.0000 ± 0.7071", f"{bits:.4f}", f"{in_file:.4f}"]
    cells += ["-0.40%", "`a`", "1, 2, 3, 4, 5", COMMIT[:8], CPU, "[log](records/a)"]
    assert line == f"| {' | '.join(cells)} |"


def test_what_does_not_count_has_no_rank_and_says_why() -> None:
    rows = [
        make_row("high", *same_runs(2, 9.1)),
        make_row("slow", *same_runs(61, 1.5)),
        make_row("short", *same_runs(2, 1.5, count=4)),
        make_row("long", *same_runs(3600, 1.5, count=3)),
    ]
    commands = ["high", "slow", "short", "long"]
    table = to_markdown({TIMED: commands}, rows)
    assert find_ranks(table) == ["slow", "long"]
    assert "has no rank: **its 9.1000 nats are above 9**" in table
    assert "has no rank: 4 of 5 seeds are measured" in table
    faults = find_faults({IN_A_MINUTE: commands}, rows)
    assert any("slow has no rank: its 61.0 s are above 60" in fault for fault in faults)


def test_a_file_that_differs_by_more_than_a_hundredth_is_loud() -> None:
    rows = [make_row("a", *same_runs(2, 1.5, count=4), (2, 1.5, 1.0123))]
    recipes = {TIMED: ["a"]}
    assert "| **+1.23%: more than 1%** |" in to_markdown(recipes, rows)
    assert find_faults(recipes, rows) == ["a, seed 5: the file differs by +1.23%: more than 1%"]


def test_an_ensemble_has_no_file_and_says_so() -> None:
    rows = [make_row("ensemble", *same_runs(2, 1.5, None))]
    recipes = {TIMED: ["ensemble"]}
    assert "| by evaluate.py only |  |" in to_markdown(recipes, rows)
    assert find_faults(recipes, rows) == []


def test_a_recipe_that_was_chosen_on_validation_text_says_so() -> None:
    rows = [make_row("a", *same_runs(2, 1.5), chosen_on_val=True)]
    assert "| `a`, chosen on validation text |" in to_markdown({TIMED: ["a"]}, rows)


def test_what_learns_while_it_reads_has_its_own_ranking() -> None:
    rows = [
        make_row("still", *same_runs(2, 1.5)),
        make_row("learns", *same_runs(2, 1.4), learns=True),
    ]
    table = to_markdown({IN_A_MINUTE: ["still", "learns"]}, rows)
    still, learns = table.split(", learning while it reads\n")
    assert (find_ranks(still), find_ranks(learns)) == (["still"], ["learns"])


# The real recipes, and the real commit.


def test_every_recipe_is_of_its_board() -> None:
    for board, commands in records.RECIPES.items():
        for command in commands:
            cfg, _ = load_config(shlex.split(command))
            assert cfg.data.corpus == board.corpus, command


def test_the_commit_is_that_of_what_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committing a table changes no commit of a row; what is not committed has none."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "a")
        monkeypatch.setenv(f"{name}_EMAIL", "a@b")
    with pytest.raises(UserError, match="git"):
        records.find_commit()
    try:
        records.call_git("init", "--quiet")
    except UserError:
        pytest.skip("git is not installed")

    def commit(path: str) -> str:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("a", encoding="utf-8")
        records.call_git("add", path)
        records.call_git("commit", "--quiet", "--message=a")
        return records.call_git("rev-parse", "HEAD").strip()

    first = commit("model.py")
    assert records.find_commit() == first
    assert commit("docs/records.json") != first
    assert records.find_commit() == first
    second = commit("config/a.toml")
    assert records.find_commit() == second
    (tmp_path / "model.py").write_text("b", encoding="utf-8")
    (tmp_path / "docs/records.json").write_text("b", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.py: commit it"):
        records.find_commit()
