"""A picture of the first screen of a report, as README has it.

    python benchmarks/page_picture.py RUN_FOLDER OUT.png

Writes the report of the run folder again and opens it in Debian's Chromium, driven by Playwright,
which stores what a window of 1,280 by 900 pixels shows. With --at, the window is scrolled to a
section first, such as front. A page that was written before may stand in place of the run folder.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nas_attn import open_study
from nas_attn.errors import NasAttnError

COLOURS = 64
"""Colours of the picture; flat as pages are, more only make the file larger."""


def take_picture(page: Path, out: Path, section: str | None, *, is_dark: bool) -> None:
    """Store what the window shows."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise NasAttnError("no Chromium (apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(
            viewport={"width": 1280, "height": 900}, color_scheme="dark" if is_dark else "light"
        )
        opened.goto(page.absolute().as_uri())
        opened.add_style_tag(content="html { scroll-behavior: auto }")
        if section is not None:
            opened.evaluate("id => document.getElementById(id).scrollIntoView()", section)
        # Charts near the window are drawn; that of the front is never far.
        opened.wait_for_selector("#chart-front .main-svg")
        opened.wait_for_timeout(500)
        opened.screenshot(path=out)
        browser.close()
    with Image.open(out) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(out, optimize=True)
    print(f"{out}: {out.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of a study, or a page")
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", help="section to scroll to, such as front")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        is_page = options.run.suffix == ".html"
        page = options.run if is_page else open_study(options.run).report(Path(folder))
        take_picture(page, options.out, options.at, is_dark=options.dark)


if __name__ == "__main__":
    try:
        main()
    except NasAttnError as error:
        sys.exit(str(error))
