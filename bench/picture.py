"""Take a picture of a part of a page, for docs/.

    python bench/picture.py PAGE PART PNG

PART is an id in it, such as along. It needs Chromium and playwright, as the page's tests do.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.errors import UserError, run_command
from config.parser import load_options
from config.values import Section

WIDTH = 960  # pixels of the page
DRAWING = 3000  # milliseconds after which its charts are drawn


class PictureOptions(Section):
    """There are none."""


def main(argv: list[str]) -> None:
    words, _ = load_options(
        PictureOptions, argv, "PAGE PART PNG", 3, "a page, an id in it, and the picture to write"
    )
    page, part, png = words
    if not Path(page).is_file():
        raise UserError(f"{page}: is no page; evaluate.py RUN --html=page.html writes one")
    take_picture(Path(page), part, Path(png))


def take_picture(page: Path, part: str, png: Path) -> None:
    """Open a page as a reader would, on a light ground, and keep what one of its parts shows."""
    from playwright.sync_api import sync_playwright  # here, because only the CI and docs need it

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        place = tab.locator(f"#{part}")
        place.scroll_into_view_if_needed()
        tab.wait_for_timeout(DRAWING)
        place.screenshot(path=png)
        browser.close()


if __name__ == "__main__":
    run_command(main)
