"""SigLIP's pixels and texts: those of its owners' own processor, also where others go wrong."""

import logging
import string

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_siglip import make_tokenizer
from transformers import AutoProcessor, SiglipImageProcessorPil, SiglipProcessor
from transformers.utils.logging import warning_once

from processing_tier import TierImageProcessor, TierSiglipProcessor, read_radiograph

SHORT, LONG = "Edema.", "There is a small left pleural effusion, and the heart is enlarged. " * 8
TEXTS = [SHORT, LONG, "EDEMA.", "No edema, no effusion!", "  Edema .  "]


def make_image_processor(**options) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(**{"size": {"height": 32, "width": 32}, "do_convert_rgb": True, **options})


@pytest.fixture(scope="module")
def owners() -> SiglipProcessor:
    return SiglipProcessor(make_image_processor(), make_tokenizer())


@pytest.fixture(scope="module")
def ours(owners) -> TierSiglipProcessor:
    return TierSiglipProcessor(TierImageProcessor.from_clip(owners.image_processor), make_tokenizer())


def radiograph(mode: str, height: int = 90, width: int = 70) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 4096, (height, width))
    levels = np.cumsum(np.cumsum(levels - 2047, axis=0), axis=1)  # smooth, as pictures are
    levels = (levels - levels.min()) / np.ptp(levels)
    if mode == "I;16":
        return Image.fromarray((levels * 4095).astype(np.uint16))
    return Image.fromarray((levels * 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_pixels_are_those_of_siglips_processor_to_the_last_bit(mode, resample, tmp_path):
    """Also of 16-bit grey, read as everywhere here. (SigLIP's own conversion to RGB would clip it to white.)"""
    theirs = make_image_processor(resample=resample)
    ours = TierImageProcessor.from_clip(theirs)
    radiograph(mode).save(tmp_path / "image.png")
    pixels = ours(images=[tmp_path / "image.png"], return_tensors="pt").pixel_values
    picture = read_radiograph(tmp_path / "image.png").convert("RGB")
    assert torch.equal(pixels, theirs(images=[picture], return_tensors="pt").pixel_values)
    assert pixels.shape == (1, 3, 32, 32) and (pixels.min(), pixels.max()) > (-1.001, 0.5)


def test_a_16_bit_picture_converted_to_rgb_is_white():
    """What the test above would notice."""
    clipped = make_image_processor()(images=[radiograph("I;16")], return_tensors="pt").pixel_values
    assert (clipped == 1).float().mean() > 0.9


def test_pixels_of_a_batch_are_those_of_single_pictures(ours):
    pictures = [radiograph("L"), radiograph("L", 40, 120)]
    together = ours(images=pictures, return_tensors="pt").pixel_values
    for picture, pixels in zip(pictures, together, strict=True):
        assert torch.equal(ours(images=picture, return_tensors="pt").pixel_values[0], pixels)


def test_texts_are_those_of_siglips_processor(ours, owners):
    inputs = ours(text=TEXTS, return_tensors="pt")
    assert list(inputs) == ["input_ids"] and inputs["input_ids"].shape == (5, 64)
    expected = owners(text=TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["input_ids"][0], inputs["input_ids"][2])  # upper case
    for text, ids in zip(TEXTS, inputs["input_ids"], strict=True):
        assert torch.equal(ours(text=text, return_tensors="pt")["input_ids"][0], ids)


def test_a_tokenizer_that_keeps_upper_case_gets_lower_case(owners):
    """As with SigLIP 2's checkpoints of a fixed resolution, which name GemmaTokenizer."""
    tokenizer = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    tokenizer.backend_tokenizer.normalizer = tokenizer.backend_tokenizer.normalizer[1]  # without Lowercase
    assert tokenizer("EDEMA.").input_ids != tokenizer("edema.").input_ids
    ours = TierSiglipProcessor(TierImageProcessor(), tokenizer)
    inputs = ours(text=TEXTS, return_tensors="pt")
    expected = owners(text=TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    assert list(inputs) == ["input_ids"] and torch.equal(inputs["input_ids"], expected["input_ids"])


def test_a_saved_processor_is_the_same(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TierSiglipProcessor and (tmp_path / "processing_siglip_tier.py").is_file()
    inputs = {"text": TEXTS, "images": [radiograph("L")] * 5, "return_tensors": "pt"}
    before, after = ours(**inputs), loaded(**inputs)
    assert before.keys() == after.keys() == {"input_ids", "pixel_values"}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory):
    """SiglipTokenizer, on a small vocabulary laid out as SigLIP's: </s> ends and pads."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="SiglipTokenizer needs the package sentencepiece")
    from transformers import SiglipTokenizer

    folder = tmp_path_factory.mktemp("sentencepiece")
    words = "edema effusion no small left pleural and the heart is enlarged there a".split()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[i:] + words[:i]) for i in range(len(words))] * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    return SiglipTokenizer(str(folder / "spiece.model"), model_input_names=["input_ids"])


def test_siglips_own_tokenizer_drops_case_and_punctuation(sentencepiece_tokenizer):
    owners = SiglipProcessor(make_image_processor(), sentencepiece_tokenizer)
    ours = TierSiglipProcessor(TierImageProcessor(), sentencepiece_tokenizer)
    texts = [*TEXTS, f"{string.punctuation} Edema", "no   edema"]
    ids = ours(text=texts, return_tensors="pt")["input_ids"]
    expected = owners(text=texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    assert torch.equal(ids, expected["input_ids"]) and ids.shape == (7, 64)
    assert torch.equal(ids[0], ids[2]) and torch.equal(ids[0], ids[4]) and torch.equal(ids[0], ids[5])
    assert (ids[0, 1:] == 1).all() and ids[1, -1] == 1 and ids[1, -2] != 1  # end token and padding; truncated


@pytest.mark.parametrize("options", [{"padding": True}, {"text_kwargs": {"padding": "longest"}}])
def test_shorter_padding_warns(ours, caplog, monkeypatch, options):
    """As `SiglipProcessor`, it does what the caller says; the embeddings are then others."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    warning_once.cache_clear()
    ours(text=[SHORT], return_tensors="pt")
    ours(text=[SHORT], return_tensors="pt", padding="max_length")
    assert "shorter than those that SigLIP was trained on" not in caplog.text
    assert ours(text=[SHORT], return_tensors="pt", **options).input_ids.shape[1] < 64
    assert "shorter than those that SigLIP was trained on" in caplog.text
