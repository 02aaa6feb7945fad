"""The picture of the page that the documentation shows, and the Space that serves the same page."""

import runpy
import shutil
from pathlib import Path

import page_picture
import pytest
import yaml
from page_server import page_server
from PIL import Image
from tiny_models import save_tiny_clip

import app

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "model_cards" / "space"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed (apt-get install chromium)")
def test_the_picture_is_small(tmp_path, capsys):
    pytest.importorskip("gradio", reason="the page needs Gradio: make slow installs it")
    pytest.importorskip("playwright", reason="playwright drives the browser: make slow installs it")
    model = save_tiny_clip(tmp_path / "tiny", 0, image_pooling="patch_mean")
    (tmp_path / "temporary").mkdir()
    with page_server([model], tmp_path / "temporary") as served:
        page_picture.main([served.address, str(tmp_path / "page.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (page_picture.WIDTH, page_picture.HEIGHT)
    for path in (tmp_path / "page.png", ROOT / "docs" / "page.png"):
        assert path.stat().st_size < 300_000


def test_the_space_serves_the_same_page():
    head = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    pins = (ROOT / "constraints.txt").read_text().split()
    assert head["sdk"] == "gradio" and f"gradio=={head['sdk_version']}" in pins
    space = runpy.run_path(str(SPACE / head["app_file"]), run_name="space")
    assert space["main"] is app.main
    assert app.parse([*space["MODELS"], "--host", "0.0.0.0"]).port == 7860  # where a Space expects it
    assert "tier-clip[app" in (SPACE / "requirements.txt").read_text()
