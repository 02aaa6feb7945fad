import json
import logging
import time

import numpy as np
import pytest
import torch
from pictures import make_image, pixels
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from processing_tier import TierImageProcessor, read_radiograph
from processing_tier.grey_levels_tier import STRIP, take_levels, to_uint8, window_to_uint8

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
@pytest.mark.parametrize("shape", [(256, 256), (200, 300), (301, 117), (64, 64)])
def test_float_output_is_the_normalised_uint8_output(geometry, shape):
    processor = TierImageProcessor(geometry=geometry, size=96)
    images = [make_image(*shape), make_image(*shape[::-1], seed=1)]
    grey, normalised = pixels(processor, images, output_dtype="uint8"), pixels(processor, images)
    assert grey.shape == (2, 1, 96, 96) and grey.dtype == torch.uint8
    assert normalised.shape == (2, 3, 96, 96) and normalised.dtype == torch.float32
    torch.testing.assert_close(normalised, (grey.float() / 255 - CLIP_MEAN) / CLIP_STD, rtol=0, atol=1e-6)


def test_every_geometry_keeps_a_square_of_the_right_size():
    image = make_image(80, 80)
    for geometry in ("pad", "crop", "squash"):
        grey = pixels(TierImageProcessor(geometry=geometry, size=80), image, output_dtype="uint8")
        np.testing.assert_array_equal(grey[0, 0].numpy(), np.asarray(image))


def test_pad_centres_on_black():
    grey = pixels(TierImageProcessor(size=100), Image.new("L", (400, 200), 255), output_dtype="uint8")[0, 0]
    assert (grey[25:75] == 255).all() and (grey[:25] == 0).all() and (grey[75:] == 0).all()


def test_crop_cuts_the_centre():
    image = np.zeros((50, 150), dtype=np.uint8)
    image[:, 50:100] = make_image(50, 50)
    grey = pixels(TierImageProcessor(size=50, geometry="crop"), image, output_dtype="uint8")[0, 0]
    np.testing.assert_array_equal(grey.numpy(), image[:, 50:100])


def test_squash_is_one_resize():
    image = make_image(150, 60)
    grey = pixels(TierImageProcessor(size=50, geometry="squash"), image, output_dtype="uint8")[0, 0]
    np.testing.assert_array_equal(grey.numpy(), np.asarray(image.resize((50, 50), Image.Resampling.BICUBIC)))


def test_crop_equals_stock_clip():
    """With CLIP's geometry and constants the pixels are CLIP's, to the rounding of the crop offset."""
    clip, tier = CLIPImageProcessorPil(), TierImageProcessor(geometry="crop")
    for width, height in [(256, 256), (224, 224), (300, 260), (500, 400)]:
        image = make_image(width, height)
        torch.testing.assert_close(pixels(tier, image), pixels(clip, image), rtol=0, atol=1e-6)


def test_inputs_of_every_kind_give_the_same_pixels(tmp_path):
    processor = TierImageProcessor(size=40)
    image = make_image(60, 50)
    array = np.asarray(image)
    image.save(tmp_path / "x.png")
    expected = pixels(processor, image)
    alike = [
        image.convert("RGB"),
        image.convert("RGBA"),
        array,
        array[None],
        np.stack([array] * 3),
        np.stack([array] * 3, axis=-1),
        array.astype(np.float32),
        array / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy())[None],
        Image.fromarray(array.astype(np.uint16)),
        str(tmp_path / "x.png"),
    ]
    for other in alike:
        torch.testing.assert_close(pixels(processor, other), expected, rtol=0, atol=0)
        torch.testing.assert_close(pixels(processor, [other, other]), expected.expand(2, -1, -1, -1), rtol=0, atol=0)
    batch = torch.from_numpy(array.copy())[None, None].expand(3, 1, -1, -1)
    torch.testing.assert_close(pixels(processor, batch), expected.expand(3, -1, -1, -1), rtol=0, atol=0)


@pytest.mark.parametrize(
    "processor",
    [
        TierImageProcessor(size=64),
        TierImageProcessor(size=64, geometry="crop"),
        TierImageProcessor(size=64, geometry="squash"),
        TierImageProcessor(size=64, resize_edge=80, geometry="crop"),
        TierImageProcessor.chexzero(size=64, resize_edge=90, reduced_decoding=True),
    ],
    ids=["pad", "crop", "squash", "crop of a larger one", "chexzero"],
)
@pytest.mark.parametrize("shape", [(1100, 870), (703, 1101), (811, 811)])
def test_reduced_decoding_gives_the_pixels_of_the_whole_picture(processor, shape, tmp_path):
    width, height = shape
    y, x = np.mgrid[0:height, 0:width] / 1000
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    array = (120 + 80 * np.sin(8 * x) * np.cos(9 * y) + 30 * (x % 0.1 < 0.01) + noise).clip(0, 255)
    path = tmp_path / "x.jpg"
    Image.fromarray(array.astype(np.uint8)).save(path, quality=95)
    reduced, full = processor.read(path), read_radiograph(path)
    edge = processor.resize_edge or 64
    used = max(reduced.size) if processor.geometry == "pad" else min(reduced.size)
    assert reduced.info["original_size"] == full.size and reduced.info["reduction"] > 1
    assert 1.5 * edge <= used and (reduced.info["reduction"] == 8 or used < 3 * edge)
    options = {"do_rescale": False, "do_normalize": False}
    difference = (pixels(processor, reduced, **options) - pixels(processor, full, **options)).abs()
    assert difference.mean() < 0.5
    # A call with the path reads the same way, also where it asks for another size
    torch.testing.assert_close(pixels(processor, str(path)), pixels(processor, reduced), rtol=0, atol=0)
    whole = pixels(processor, str(path), reduced_decoding=False)
    torch.testing.assert_close(whole, pixels(processor, full), rtol=0, atol=0)
    larger = {**options, "size": 200, "resize_edge": None}
    difference = (pixels(processor, str(path), **larger) - pixels(processor, full, **larger)).abs()
    assert difference.mean() < 0.5


def test_a_sixteen_bit_file_is_not_clipped(tmp_path):
    array = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "x.png")
    grey = pixels(TierImageProcessor(size=64), str(tmp_path / "x.png"), output_dtype="uint8")[0, 0]
    np.testing.assert_array_equal(grey.numpy(), to_uint8(array))
    assert grey[0].float().mean() < 5 and grey[-1].float().mean() > 250 and 120 < grey[31].float().mean() < 135


def test_lookups_in_strips():
    table, rng = np.arange(65536)[::-1].astype(np.uint8), np.random.default_rng(0)
    for shape in ((STRIP - 1,), (STRIP + 1,), (3, STRIP), (7, 5, 3), (1, 1)):
        patterns = rng.integers(0, 65536, shape).astype(np.uint16)
        for array in (patterns, patterns[::-1]):
            np.testing.assert_array_equal(take_levels(table, array), np.take(table, array))


def test_windows():
    array = np.array([0, 10, 15, 20, 99])
    np.testing.assert_array_equal(window_to_uint8(array, 10, 20), [0, 0, 128, 255, 255])
    np.testing.assert_array_equal(window_to_uint8(array, 10, 10), [0] * 5)
    np.testing.assert_array_equal(to_uint8(np.array([0, 0.5, 1])), [0, 128, 255])
    np.testing.assert_array_equal(to_uint8(np.array([0.0, 1.4, 254.6])), [0, 1, 255])
    np.testing.assert_array_equal(to_uint8(np.array([True, False])), [255, 0])
    assert to_uint8(np.array([-5, 5])).tolist() == [0, 255]


def test_rescale_and_normalise_can_be_left_out():
    image = make_image(32, 32)
    processor = TierImageProcessor(size=32)
    grey = np.asarray(image)
    raw = pixels(processor, image, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(raw[0, 1].numpy(), grey.astype(np.float32))
    scaled = pixels(processor, image, do_normalize=False)
    np.testing.assert_allclose(scaled[0, 1].numpy(), grey / np.float32(255), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"geometry": "crop", "size": {"height": 48, "width": 48}, "output_dtype": "uint8", "reduced_decoding": False},
        {"geometry": "squash", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]},
        {"preset": "chexzero"},
        {"preset": "tier"},
        {"preset": "biovil"},
    ],
)
def test_save_and_load(options, tmp_path):
    options = dict(options)
    preset = options.pop("preset", None)
    processor = getattr(TierImageProcessor, preset)() if preset else TierImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TierImageProcessor
    image = make_image(100, 80)
    torch.testing.assert_close(pixels(loaded, image), pixels(processor, image), rtol=0, atol=0)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_tier.TierImageProcessor"}
    assert saved["size"] == dict(processor.size) and "crop_size" not in saved
    levels = {"tier": "divide", "biovil": "stretch"}.get(preset, "window")
    assert loaded.grey_levels == saved["grey_levels"] == processor.grey_levels == levels
    assert loaded.reduced_decoding == saved["reduced_decoding"] == processor.reduced_decoding
    assert processor.reduced_decoding == (preset is None and options.get("reduced_decoding", True))
    assert (tmp_path / "image_processing_tier.py").exists()


def test_options_given_at_loading_win(tmp_path, caplog):
    TierImageProcessor().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        loaded = TierImageProcessor.from_pretrained(tmp_path, geometry="crop", output_dtype="uint8", size=32)
    assert (loaded.geometry, loaded.output_dtype, loaded.size.height) == ("crop", "uint8", 32)
    assert not caplog.records  # declared in valid_kwargs, so no warning about backward compatibility


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "stretch"}, "geometry='stretch' is not known; choose one of pad, crop, squash."),
        ({"grey_levels": "log"}, "grey_levels='log' is not known; choose one of window, stretch, divide."),
        ({"output_dtype": "int8"}, "output_dtype='int8' is not known; choose one of float32, uint8."),
        (
            {"size": {"height": 10, "width": 20}},
            "size={'height': 10, 'width': 20} is not a square; give {'height': S, 'width': S} with the model's "
            "image_size.",
        ),
        (
            {"size": {"shortest_edge": 224}},
            "size={'shortest_edge': 224} is not a square; give {'height': S, 'width': S} with the model's image_size.",
        ),
        (
            {"do_center_crop": True, "crop_size": 224},
            "do_center_crop=True has no effect here; use geometry='crop' or 'pad' instead.",
        ),
        (
            {"geometry": "squash", "resize_edge": 256},
            "resize_edge=256 has no effect with geometry='squash'; leave it out.",
        ),
        ({"geometry": "crop", "resize_edge": 200}, "resize_edge=200 is too small; use at least size=224."),
        (
            {"resize_edge": 320, "output_dtype": "uint8"},
            "output_dtype='uint8' cannot hold the pixels of a padded resize_edge, which are resampled after "
            "normalisation; use output_dtype='float32'.",
        ),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError) as error:
        TierImageProcessor(**options)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        TierImageProcessor()(make_image(8, 8), **options)
    assert str(error.value) == message


def test_a_misspelt_option_is_noticed(caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        TierImageProcessor(geometri="crop")
    assert [record.getMessage() for record in caplog.records] == [
        "TierImageProcessor has no option geometri; it has no effect."
    ]


@pytest.mark.slow
def test_speed_in_a_collator():
    """Under 1 ms per 256 px image on a quiet machine; the bound leaves room for a busy one."""
    images = [make_image(256, 256, seed) for seed in range(64)]
    processor = TierImageProcessor(output_dtype="uint8")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        pixels(processor, images)
        times.append(time.perf_counter() - start)
    assert min(times) / 64 < 3e-3
