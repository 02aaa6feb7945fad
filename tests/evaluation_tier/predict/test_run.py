import argparse

import numpy as np
from PIL import Image
from tiny_models import save_tiny_clip

from evaluation_tier.predict.loading import load_pipeline
from evaluation_tier.predict.run import MAX_PRINTED, format_predictions, predict

STORED = {name: {"positive": [f"{name}."], "negative": [f"No {name}."]} for name in ("Edema", "Nodule")}


def test_memory_does_not_grow_with_the_pixels(tmp_path):
    model = save_tiny_clip(tmp_path / "tiny", 0, image_pooling="patch_mean", zero_shot_findings=STORED)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 700), dtype=np.uint8)).save(tmp_path / "x.png")
    pipe = load_pipeline(str(model), "cpu")
    args = argparse.Namespace(batch_size=2, threshold=None, top_k=None)
    images, _ = predict(pipe, [tmp_path / "x.png"] * 5, pipe.resolve_findings(None), args, with_maps=True)
    assert len(images) == 5
    for image in images:
        assert image["maps"].shape == (2, 4, 4) and image["maps"].nbytes == 128 and image["size"] == (900, 700)
        assert not any("heatmap" in finding for finding in image["findings"])


def test_a_long_table_is_cut_only_where_files_hold_it(tmp_path):
    finding = {"label": "Edema", "score": 0.5, "calibrated": True}
    images = [{"image": f"{i:02}.png", "findings": [finding]} for i in range(MAX_PRINTED + 5)]
    assert "24.png" in format_predictions(images, [])
    text = format_predictions(images, [tmp_path / "predictions.json"])
    assert "24.png" not in text and "... and 5 more images in the files below." in text
