"""The page in a real browser: upload a DICOM, ask, click a word, download, a bad file, many users, two models."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from page_server import page_server
from PIL import Image
from pipeline_checks import make_dicom
from tiny_models import save_tiny_clip

from evaluation_tier.predict.files import NOTE

pytest.importorskip("gradio", reason="the page needs Gradio: make slow installs it")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: make slow installs it")

CHROMIUM = shutil.which("chromium")
MISSING = "Chromium is not installed (apt-get install chromium), so the page is not tested in a browser"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]

NUM_USERS = 20
HANG = 600_000  # milliseconds


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def served(model_folder, temporary, tmp_path_factory):
    second = save_tiny_clip(tmp_path_factory.mktemp("second") / "other", 1, image_pooling="patch_mean")
    with page_server([model_folder, second], temporary) as served:
        yield served


@pytest.fixture(scope="module")
def address(served):
    return served.address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    yield page
    page.context.close()


def open_page(browser, address):
    """A page of a new user, with the addresses that it has asked for and the errors of its scripts."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    context.set_default_timeout(HANG)
    page = context.new_page()
    page.requested, page.errors = [], []
    context.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".tier-drop")
    page.wait_for_selector("#ask")
    return page


def drop(page, name: str, content: bytes) -> None:
    """Drop a file on the page with the mouse."""
    transfer = page.evaluate_handle(
        "([name, bytes]) => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], name)); return data; }",
        [name, list(content)],
    )
    page.dispatch_event(".tier-drop", "drop", {"dataTransfer": transfer})


def download(page, selector: str) -> tuple[str, bytes]:
    with page.expect_download() as told:
        page.locator(selector).first.click()
    return told.value.suggested_filename, Path(told.value.path()).read_bytes()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_upload_ask_click_and_download(page, served, temporary):
    drop(page, "chest.dcm", make_dicom(np.random.default_rng(0).integers(0, 4096, (60, 50))))
    assert "chest.dcm (" in page.inner_text(".tier-file")
    page.fill("textarea", "Moderate right effusion.")
    page.click("#ask")
    page.wait_for_selector(".tier-answer")
    models = page.locator(".tier-model")
    assert models.count() == 2 and models.locator("h3").all_inner_texts()[0].endswith("/tiny")
    layers = [models.nth(i).locator(".tier-layer") for i in range(2)]
    first = [layer.get_attribute("src") for layer in layers]

    word = models.nth(0).locator('[data-row="finding Moderate right effusion."] .tier-word', has_text="effusion")
    word.click()
    assert page.locator(".tier-caption").all_inner_texts() == ["Word “effusion” of “Moderate right effusion.”"] * 2
    assert [layer.get_attribute("src") for layer in layers][0] == word.get_attribute("data-layer") != first[0]
    assert layers[1].get_attribute("src") != first[1]
    page.locator(".tier-opacity input").fill("25")
    assert [layer.evaluate("layer => layer.style.opacity") for layer in layers] == ["0.25", "0.25"]

    name, content = download(page, ".tier-png")
    assert name == "chest.png"
    with Image.open(io.BytesIO(content)) as picture:
        # the picture, enlarged, and lines under it
        assert picture.width == 512 and picture.height > round(512 * 60 / 50) + 60
        assert np.asarray(picture.convert("L"))[-120:].min() < 80
    name, content = download(page, ".tier-json")
    told = json.loads(content)
    assert (name, told["note"], told["image"]) == ("chest.json", NOTE, "chest.dcm")
    assert [len(model["results"]) for model in told["models"]] == [6, 6]  # the sentence, and what is chosen

    page.fill("textarea", "Edema.")  # the browser has kept the image for the next question
    page.click("#ask")
    page.wait_for_selector('[data-row="finding Edema."]')
    assert files_in(temporary) == []
    assert page.evaluate("indexedDB.databases()") == [] and page.errors == []
    foreign = [url for url in page.requested if not url.startswith((f"{served.address}/", "data:", "blob:"))]
    assert page.requested and foreign == []
    assert served.log.empty()  # nothing of the question is logged


def test_a_bad_file_gets_a_sentence(page, temporary):
    for name, content, sentence in (
        ("notes.txt", b"some text\n", "notes.txt: the file is text, not an image; name the image file."),
        ("empty.png", b"", "The file is empty: choose another."),
    ):
        drop(page, name, content)
        page.click("#ask")
        page.wait_for_function("text => document.querySelector('.tier-error')?.textContent === text", arg=sentence)
    shown = page.content()
    assert "Traceback" not in shown and str(temporary) not in shown and str(temporary.parent) not in shown
    assert page.locator(".tier-banner").is_visible() and "Not for clinical use" in page.inner_text(".tier-banner")
    page.evaluate("document.querySelector('.tier-drop').dataset.max = 5")
    drop(page, "large.png", b"123456")
    assert page.inner_text(".tier-file").startswith("large.png is larger than")
    assert files_in(temporary) == []


def test_no_path_in_what_the_server_tells(page, address, model_folder, temporary):
    for path in ("/", "/config"):
        text = page.request.get(address + path).text()
        assert str(model_folder.parent) not in text and str(temporary) not in text
    assert page.request.post(f"{address}/gradio_api/upload", multipart={"files": "x"}).status == 404


def test_twenty_users_at_once(browser, address, temporary):
    pages = [open_page(browser, address) for _ in range(NUM_USERS)]
    for number, page in enumerate(pages):
        page.locator(".tier-sample").nth(number % 4).click()
        page.fill("textarea", f"Effusion number {number}.")
    for page in pages:
        page.click("#ask")
    for number, page in enumerate(pages):
        page.wait_for_selector(f'[data-row="finding Effusion number {number}."]')
        assert page.locator(".tier-model").count() == 2 and page.locator(".tier-error").count() == 0
        assert page.locator('[data-row^="finding Effusion number"]').count() == 2  # its own answer, and no other
    assert files_in(temporary) == []
    for page in pages:
        page.context.close()
