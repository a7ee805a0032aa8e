"""Watchers see the lines of a run's files, and take neither time nor a training with them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.run import Run, open_run
from engine.watchers import Watchers
from page.watcher import PageWatcher


@pytest.fixture
def own(trained, tmp_path: Path) -> Run:
    return open_run(Path(shutil.copytree(trained[0], tmp_path / "run")))


def test_the_page_takes_at_most_2_percent_of_the_time(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    written = []

    def script_of_run(run: Run, live: bool) -> str:
        nonlocal now
        now += 2.0  # seconds that it takes
        written.append(live)
        return ""

    monkeypatch.setattr("page.watcher.script_of_run", script_of_run)
    monkeypatch.setattr("page.watcher.time", SimpleNamespace(perf_counter=lambda: now))
    watcher = PageWatcher(own, 0)
    for step in range(1000):
        watcher.update({"step": step, "train_nll": 1.0})
        watcher.update({"step": step, "val_nll": 1.0})
        now += 1.0
    assert 2.0 * (len(written) - 1) <= 0.02 * now
    assert len(written) > 5
    assert all(written)
    watcher.close()
    assert written[-1] is False


def test_a_page_without_room_is_told_once_and_written_later(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report.html", "report.js"):
        (own.path / name).unlink()

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("page.page.write_atomically", refuse)
        watchers = Watchers(["page"], own, 0, told.append)
        for step in (0, 1, 2):
            watchers.update({"step": step, "val_nll": 1.0})
    path = own.path / "report.html"  # whose address is not said
    assert told == [f"warning: {path} could not be written (No space left on device)"]
    assert watchers.unwritten() == ["report.html"]
    watchers.close()
    assert watchers.unwritten() == []
    assert path.exists()
    assert '"live":false' in (own.path / "report.js").read_text(encoding="utf-8")


def test_report_html_is_one_file_to_share_after_the_end(own: Run) -> None:
    watcher = PageWatcher(own, 0)
    watcher.update({"step": 1, "val_nll": 1.0})
    page = own.path / "report.html"
    assert "receive({" not in page.read_text(encoding="utf-8")
    watcher.close()
    data = (own.path / "report.js").read_text(encoding="utf-8")
    assert data in page.read_text(encoding="utf-8")


def test_a_page_is_not_written_into_another_runs_directory(own: Run) -> None:
    told: list[str] = []
    watchers = Watchers(["page"], own, 0, told.append)
    (own.path / "history.jsonl").write_text('{"step": 0}\n')
    (own.path / "report.js").unlink()
    watchers.close()
    assert "somebody moved or replaced its directory" in told[-1]
    assert not (own.path / "report.js").exists()


def test_the_address_of_the_page_is_said_once_at_the_start(
    own: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    watchers = Watchers(["page"], own, 0, told.append)
    watchers.update({"step": 1, "val_nll": 1.0})
    watchers.close()
    path = own.path / "report.html"
    assert told in ([f"The page: {path.resolve().as_uri()}\n"], [f"The page: {path}\n"])
    monkeypatch.setattr("page.watcher.screen_width", lambda: 10)
    assert PageWatcher(own, 0).address == f"The page: {path}"
    monkeypatch.setattr("page.watcher.screen_width", lambda: 1000)
    assert PageWatcher(own, 0).address == f"The page: {path.resolve().as_uri()}"
    assert Watchers([], own, 0, told.append).unwritten() == []
    assert len(told) == 1
