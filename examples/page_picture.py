"""
The picture of the page in docs/page.md: a synthetic radiograph, an answer, and the map of a clicked word.

    tier-app runs/phantom &
    python examples/page_picture.py http://127.0.0.1:7860 docs/page.png

Needs Chromium (apt-get install chromium) and playwright (pip install playwright). Prints the path of the picture.
"""

import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from command_line import Parser, one_sentence_errors  # noqa: E402
from evaluation_tier.output.writing import check_writable  # noqa: E402

COMMAND = Path(__file__).name
SENTENCE, WORD = "Moderate bilateral pleural effusions.", "effusions"
WIDTH, HEIGHT = 1280, 800
SAMPLE = 1  # with a pleural effusion and a consolidation
MILLISECONDS = 600_000  # against hangs only


def take_picture(address: str) -> Image.Image:
    """The screen after a question and a click on a word. ValueError without Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise ValueError("Chromium is not installed: apt-get install chromium.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(MILLISECONDS)
        page.goto(address)
        page.locator(".tier-sample").nth(SAMPLE).click()
        page.fill("textarea", SENTENCE)
        page.click("#ask")
        row = page.locator(f'[data-row="finding {SENTENCE}"]').first
        row.locator(".tier-word", has_text=WORD).click()
        page.evaluate("scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # the interface fades in
        picture = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(picture)).convert("RGB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument("address", metavar="ADDRESS", help="what tier-app printed")
    parser.add_argument("output", type=Path, metavar="FILE.png", help="where to write the picture")
    with one_sentence_errors(COMMAND):
        args = parser.parse(argv)
        check_writable(args.output.parent, "FILE.png")
        picture = take_picture(args.address)
        few = picture.quantize(256, kmeans=2)  # colours: half the bytes
        picture.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG).save(args.output, optimize=True)
        print(args.output)


if __name__ == "__main__":
    main()
