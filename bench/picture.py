"""Takes a picture of a part of a page, for docs/: `python bench/picture.py PAGE PART PNG`.

PART is an id in it, such as along. Needs Chromium and playwright, as the page's tests do.
"""

import argparse
import shutil
from pathlib import Path

WIDTH = 960  # pixels of the page
DRAWING = 3000  # milliseconds after which its charts are drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a part of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("part")
    parser.add_argument("png", type=Path)
    options = parser.parse_args()
    take_picture(options.page, options.part, options.png)


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
    main()
