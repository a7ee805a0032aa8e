"""One training at a time in a directory, and preparations that do not disturb each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from config.cli import load_config
from engine.start import lock_run
from tests.conftest import call, make_text
from tests.one_run import RUN, files, train

pytestmark = pytest.mark.usefixtures("numbers_only")


def test_a_second_training_in_the_same_directory_is_refused(finished: Path) -> None:
    """It does no harm to the first, whatever it wants; but one may look at the run."""
    before = files(finished.parent)
    with lock_run(load_config(RUN)[0]):
        for options in (
            (),
            ("--init_from=resume",),
            ("--init_from=auto",),
            (f"--out_dir={finished}/../run",),
        ):
            assert (
                "another process is training there; wait for it, or choose another --out_dir"
                in (train(*options, returns=2).stderr)
            )
        assert call("sample.py", "out/run", "--max_new_tokens=5").stdout
    assert files(finished.parent) == before
    assert "the run that was in out/run is now in out/run.1\n" in train("--max_iters=1").stdout
    assert not list(Path("out").glob(".*"))
    assert sorted(files(Path("out/run.1")).values()) == sorted(before.values())


def test_two_trainings_by_different_names_of_one_directory(data_dir: Path) -> None:
    (data_dir / "out").mkdir()
    (data_dir / "out/link").symlink_to(data_dir / "out/run")
    with lock_run(load_config(["--out_dir=out/run"])[0]):
        assert "another process is training there" in train("--out_dir=out/link", returns=2).stderr


def test_preparations_at_once_do_not_disturb_each_other(clone: Path) -> None:
    (clone / "twice.txt").write_text(make_text() * 20, encoding="utf-8")
    processes = [
        subprocess.Popen(
            [sys.executable, "data/prepare.py", "--corpus=twice.txt"],
            cwd=clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    for process in processes:
        printed, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert "6-gram" in printed
    assert len(list((clone / "data").glob("twice.txt-*"))) == 1
    assert not list((clone / "data").glob(".*"))
