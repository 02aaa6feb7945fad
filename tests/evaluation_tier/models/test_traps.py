"""
The traps of every family that is evaluated without a conversion: texts of several lengths, upper case, punctuation,
pictures of 16 bits, batches. The expected numbers are those of the owners' processors. OpenCLIP's: `test_openclip.py`;
converted models: `tests/test_convert_published.py`.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from seeded_checkpoints import write_pictures
from tiny_models import save_tiny_clip
from tiny_radzero import Parts
from tiny_siglip import TOWER, make_tokenizer, save_siglip
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    SiglipImageProcessorPil,
)

from evaluation_tier.models.embedding import inference
from evaluation_tier.models.families import family_of
from evaluation_tier.models.loading import load_model
from modeling_tier import TierCLIPModel

TEXTS = [
    "edema",
    "There is NO Edema; but -- a small LEFT pleural effusion!!",
    "the heart is enlarged, and there is a small left pleural effusion. " * 12,
    "edema.",
]


def save_clip(folder):
    """A CLIPModel with CLIP's own processor, and its texts and pixels by these."""
    tiny = save_tiny_clip(folder / "tiny", 0, image_pooling="cls")
    model = TierCLIPModel.from_pretrained(tiny).to_clip().eval()
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    processor = CLIPProcessor(images, AutoTokenizer.from_pretrained(tiny))
    for part in (model, processor):
        part.save_pretrained(folder / "clip")
    limit = model.config.text_config.max_position_embeddings

    def tokens(text):
        return dict(processor.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt"))

    return folder / "clip", tokens, images, model


def save_siglip_family(folder):
    model = save_siglip(folder / "siglip")
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2)
    return folder / "siglip", siglip_tokens(make_tokenizer()), images, model


def save_siglip2(folder):
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 44, "max_position_embeddings": 64, "projection_size": 24}
    vision = {**TOWER, "hidden_size": 24, "num_patches": 256, "patch_size": 16}
    model, tokenizer = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval(), make_tokenizer()
    images = Siglip2ImageProcessorPil()
    for part in (model, Siglip2Processor(images, tokenizer)):
        part.save_pretrained(folder / "siglip2")
    return folder / "siglip2", siglip_tokens(tokenizer), images, model


def siglip_tokens(tokenizer):
    options = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "pt"}
    return lambda text: {"input_ids": tokenizer([text.lower()], **options)["input_ids"]}


@pytest.fixture(
    scope="module", params=[save_clip, save_siglip_family, save_siglip2], ids=["clip", "siglip", "siglip2"]
)
def made(request, tmp_path_factory):
    """The model as an evaluation sees it, and its owner's: tokens of a text, pixels, the model."""
    folder, tokens, images, model = request.param(tmp_path_factory.mktemp("model"))
    loaded = load_model(folder)
    assert type(loaded[0]) is type(model) and (type(model) is CLIPModel) == (request.param is save_clip)
    return family_of(*loaded), tokens, images, model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_texts_are_those_of_the_owner(made):
    """Short and long, upper case and punctuation, in one batch and alone."""
    family, tokens, _, model = made
    with inference(model):
        expected = torch.cat([model.get_text_features(**tokens(text)).pooler_output for text in TEXTS])
        expected = F.normalize(expected, dim=-1)
        assert (family.embed_texts(TEXTS) - expected).abs().max() < 1e-5
        assert (family.embed_texts(TEXTS, batch_size=1) - expected).abs().max() < 1e-5
    assert (expected[0] - expected[3]).abs().max() > 1e-3  # a full stop is read


def test_pictures_are_those_of_the_owner(made, pictures):
    family, _, images, model = made
    named = {name: family.preprocess(family.read_image(str(path))) for name, path in pictures.items()}
    for name in ("wide", "high"):
        with Image.open(pictures[name]) as picture:
            expected = images(images=[picture.convert("RGB")], return_tensors="pt")
        own = named[name] if isinstance(named[name], dict) else {"pixel_values": named[name]}
        for key, value in own.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)  # bit-equal
    check_embeddings(family, named, lambda pixels: owners_images(model, pixels))


def owners_images(model, pixels):
    inputs = pixels if isinstance(pixels, dict) else {"pixel_values": pixels}
    return F.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)


def check_embeddings(family, named, expected) -> None:
    """Alone and in a batch; a picture of 16 bits is near the same one of 8 bits (the owners' code makes it white)."""
    with torch.inference_mode():
        alone = {name: family.embed_images(pixels) for name, pixels in named.items()}
        for name, pixels in named.items():
            assert (alone[name] - expected(pixels)).abs().max() < 1e-5
        parts = [named["wide"], named["high"]]
        stacked = (
            {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            if isinstance(parts[0], dict)
            else torch.cat(parts)
        )
        together = family.embed_images(stacked)
    for row, name in enumerate(("wide", "high")):
        assert (together[row] - alone[name][0]).abs().max() < 1e-5
    near, far = (alone["deep"] - alone["wide"]).norm(), (alone["high"] - alone["wide"]).norm()
    assert near < 0.5 * far


def test_radzero(tmp_path, pictures):
    parts = Parts()
    family = load_model(parts.save(tmp_path / "radzero"))[0]
    _, queries, tokens = parts.scores([str(path) for path in pictures.values()], TEXTS[:2], family.tokenizer)
    with torch.inference_mode():
        texts = family.embed_texts([*TEXTS[:2], TEXTS[3]])
        np.testing.assert_allclose(texts[:2], queries, rtol=0, atol=1e-5)
        np.testing.assert_allclose(family.embed_texts(TEXTS, batch_size=1), family.embed_texts(TEXTS), atol=1e-5)
    named = {name: family.preprocess(family.read_image(str(path))) for name, path in pictures.items()}
    own = BlipImageProcessorPil(size={"height": 56, "width": 56})
    with Image.open(pictures["wide"]) as picture:
        levels = np.asarray(picture, dtype=np.float64)
        spread = np.rint((levels - levels.min()) * (255 / (levels.max() - levels.min()))).astype(np.uint8)
    expected = own(Image.fromarray(spread).convert("RGB"), return_tensors="pt")["pixel_values"]
    assert (named["wide"] - expected).abs().max() < 0.06  # one grey level, where rounding meets a half
    by_name = {id(pixels): torch.from_numpy(tokens[i, :1]).float() for i, pixels in enumerate(named.values())}
    check_embeddings(family, named, lambda pixels: by_name[id(pixels)])
