"""Embeddings in numpy: equal to the model's own features, whatever the batch and the kind of image."""

import numpy as np
import pytest
import torch
from pipeline_checks import SENTENCES, encode, make_dicom, make_image
from tiny_siglip import make_tokenizer, siglip_sizes
from torch.nn import functional as F
from transformers import pipeline

from modeling_tier import TierSiglipConfig, TierSiglipModel
from modeling_tier.pipeline_tier import TASK
from processing_tier import TierImageProcessor


@pytest.fixture(params=["pipe", "siglip"])
def any_pipe(request, clip_pipe, models, processor):
    if request.param == "pipe":
        return [clip_pipe, pipeline(TASK, model=models["dual"], processor=processor, device="cpu")]
    model = TierSiglipModel(TierSiglipConfig(**siglip_sizes())).eval()
    parts = {"tokenizer": make_tokenizer(), "image_processor": TierImageProcessor(size={"height": 32, "width": 32})}
    return [pipeline(TASK, model=model, device="cpu", **parts)]


def test_embeddings_are_the_normalised_features_of_the_model(any_pipe):
    images = [make_image(40, 50, seed) for seed in range(5)]
    for pipe in any_pipe:
        pixels = pipe.image_processor(images, return_tensors="pt")["pixel_values"]
        tokens = pipe.tokenizer(
            [text.lower() for text in SENTENCES] if pipe.model.config.model_type == "tier_siglip" else SENTENCES,
            padding="max_length",
            max_length=pipe.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        with torch.no_grad():
            of_images = F.normalize(pipe.model.get_image_features(pixels).pooler_output, dim=-1).numpy()
            of_texts = F.normalize(pipe.model.get_text_features(**tokens).pooler_output, dim=-1).numpy()
        for batch_size in (1, 2, 32):
            embeds = pipe.encode_images(images, batch_size=batch_size)
            assert embeds.dtype == np.float32 and embeds.shape == of_images.shape
            np.testing.assert_allclose(embeds, of_images, rtol=0, atol=1e-6)
            np.testing.assert_allclose(pipe.encode_texts(SENTENCES, batch_size), of_texts, rtol=0, atol=1e-6)
        np.testing.assert_allclose(pipe.encode_images(iter(images), batch_size=2), of_images, rtol=0, atol=1e-6)
        np.testing.assert_allclose(pipe.encode_images(images[1]), of_images[1], rtol=0, atol=1e-6)  # (dim,)
        np.testing.assert_allclose(pipe.encode_texts(SENTENCES[2]), of_texts[2], rtol=0, atol=1e-6)
        assert np.ptp(of_images, axis=0).max() > 1e-4 and np.ptp(of_texts, axis=0).max() > 1e-4


def test_files_are_read_and_bad_ones_named(clip_pipe, tmp_path):
    array = np.random.default_rng(0).integers(0, 4096, (60, 50))
    (tmp_path / "x.dcm").write_bytes(make_dicom(array))
    (tmp_path / "x.png").write_bytes(encode(make_image(40, 50)))
    (tmp_path / "x.txt").write_text("a report")
    embeds = clip_pipe.encode_images([tmp_path / "x.dcm", str(tmp_path / "x.png")])
    np.testing.assert_allclose(embeds[1], clip_pipe.encode_images(make_image(40, 50)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^image 2: x.txt: the file is text, not an image"):
        clip_pipe.encode_images([tmp_path / "x.dcm", tmp_path / "x.txt"])


def test_nothing_to_encode_and_damaged_weights(clip_pipe):
    with pytest.raises(ValueError, match="^There is no image to encode: pass at least one.$"):
        clip_pipe.encode_images([])
    with pytest.raises(ValueError, match="^There is no text to encode: pass at least one.$"):
        clip_pipe.encode_texts([])
    with pytest.raises(ValueError, match="^batch_size must be at least 1, not 0.$"):
        clip_pipe.encode_images([make_image(40, 50)], batch_size=0)
    with torch.no_grad():
        clip_pipe.model.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="^The model's embeddings are not finite"):
        clip_pipe.encode_images(make_image(40, 50))
