"""The picture of a report in the README: `python -m tests.report.screenshot RUN/report.html FILE.png`.

It shows the page as a reader has it who has gone to the questions. Fewer colours keep the file small.
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path

SIZE = {"width": 1200, "height": 980}
COLOURS = 96


def main():
    """Takes the picture."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--question", type=int, default=0, help="its place in the list, from 0")
    wanted = parser.parse_args()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(wanted.page.resolve().as_uri())
        for _ in range(wanted.question):
            page.keyboard.press("j")
        if (draft := page.locator(".draft summary")).count():
            draft.first.click()
        page.locator("#questions").evaluate("node => node.scrollIntoView()")
        taken = Image.open(BytesIO(page.screenshot()))
        browser.close()
    taken.convert("RGB").quantize(COLOURS).save(wanted.file, optimize=True)
    print(f"{wanted.file}: {wanted.file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
