"""Opens pages in Chromium, for tests; without it, or without playwright, these are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from page.page import write_runs

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -r requirements-ci.txt"
)
NEEDS_BROWSER = pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt install chromium")
LOSS = "plots.get(byId('loss'))"
DRAWN = "document.querySelector('#loss > *, #tokens span')"
LABELS = "[...document.querySelectorAll('#loss .labels span')]"  # right of the axes


@contextmanager
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Tab:
    """An open page, whose errors and requests are failures."""

    def __init__(
        self, browser: Any, path: Path, width: int = 1200, drawn: str = DRAWN, **kinds: Any
    ) -> None:
        viewport = {"width": width, "height": 900}
        self.page = browser.new_page(viewport=viewport, **kinds)
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._check_message)
        self.page.on("request", self._check_request)
        self.page.goto(path.as_uri())
        self.page.wait_for_function(drawn)

    def _check_message(self, message: Any) -> None:
        if message.type == "error":
            self.troubles.append(message.text)

    def _check_request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(request.url)

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def close(self) -> None:
        self.page.close()
        assert not self.troubles, self.troubles


def open_page(browser: Any, run: Path, **kinds: Any) -> Tab:
    """Write the page of a run, and open it."""
    write_runs(run / "whole.html", [run])
    return Tab(browser, run / "whole.html", **kinds)


def drawn(tab: Tab, place: str, number: int, column: str = "y") -> list[float]:
    """Return what Bokeh has been given to draw, as soon as the plot can be seen."""
    tab(f"byId('{place}').scrollIntoView()")
    tab.page.wait_for_function(f"plots.get(byId('{place}'))?.waits === false")
    return list(tab(f"[...plots.get(byId('{place}')).sources[{number}].data.{column}]"))
