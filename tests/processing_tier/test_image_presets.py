import numpy as np
import torch
from pictures import make_image, pixels
from PIL import Image
from torch.nn import functional as F

from processing_tier import TierImageProcessor
from processing_tier.grey_levels_tier import to_uint8


def test_chexzero_preset_against_its_own_steps():
    """CheXzero data_process.py:31-64 and zero_shot.py:377-385, written out."""
    for width, height in [(2022, 2544), (400, 300), (320, 320), (97, 201)]:
        image = make_image(width, height)
        ratio = 320.0 / max(width, height)
        small = image.resize((int(width * ratio), int(height * ratio)), Image.Resampling.LANCZOS)
        canvas = Image.new("L", (320, 320))
        canvas.paste(small, ((320 - small.width) // 2, (320 - small.height) // 2))
        expected = torch.from_numpy(np.asarray(canvas).astype(np.float32)).expand(1, 3, 320, 320)
        expected = (expected - 101.48761) / 83.43944
        expected = F.interpolate(expected, size=(224, 224), mode="bicubic", align_corners=False, antialias=False)
        result = pixels(TierImageProcessor.chexzero(), image)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)
        assert (result[:, 0] == result[:, 2]).all()


def test_tier_preset_against_its_own_steps():
    """TIER Modeling/MedCLIP_Datasets.py:46-52: Resize(256), CenterCrop(224), ImageNet normalisation, on RGB."""
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    std = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    for width, height in [(2022, 2544), (400, 300), (256, 259), (259, 256), (130, 97)]:
        image = make_image(width, height).convert("RGB")
        short, long = min(width, height), max(width, height)
        size = (256, int(256 * long / short)) if width <= height else (int(256 * long / short), 256)
        image = image.resize(size, Image.Resampling.BILINEAR)
        top, left = int(round((size[1] - 224) / 2.0)), int(round((size[0] - 224) / 2.0))
        image = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
        expected = torch.from_numpy((image - mean) / std).permute(2, 0, 1)[None]
        torch.testing.assert_close(
            pixels(TierImageProcessor.tier(), make_image(width, height)), expected, rtol=0, atol=2e-6
        )


def remap_to_uint8(array: np.ndarray) -> np.ndarray:
    """BioViL's loader, by its description: minimum to 0, maximum to 255, in float64, cut to whole numbers."""
    array = array.astype(np.float64) - array.min()
    return (array / array.max() * 255).astype(np.uint8)


def test_biovil_preset_against_its_own_steps(make_dicom, tmp_path):
    """hi-ml image/data/io.py, then transforms.py: Resize(512), CenterCrop(480), ToTensor."""
    rng = np.random.default_rng(0)
    small = np.asarray(make_image(600, 700))
    for name, array in (
        ("eight.png", (small * 0.6 + 31).astype(np.uint8)),
        ("sixteen.png", rng.integers(300, 3500, (700, 600), dtype=np.uint16)),
        ("colour.png", rng.integers(40, 200, (700, 600, 3), dtype=np.uint8)),
    ):
        Image.fromarray(array).save(tmp_path / name)
        image = Image.fromarray(remap_to_uint8(array)).convert("L")
        image = image.resize((512, int(512 * 700 / 600)), Image.Resampling.BILINEAR)
        top = int(round((image.height - 480) / 2.0))
        expected = np.asarray(image.crop((16, top, 496, top + 480)), dtype=np.float32) / 255
        processor = TierImageProcessor.biovil()
        path = tmp_path / name
        sources = [path, path.read_bytes(), Image.open(path), processor.read(path), np.asarray(Image.open(path))]
        for source in sources:
            result = pixels(processor, source)
            torch.testing.assert_close(result, torch.from_numpy(expected).expand(1, 3, -1, -1), rtol=0, atol=1e-6)
    stored = rng.integers(300, 3500, (480, 480), dtype=np.uint16)
    for photometric in ("MONOCHROME2", "MONOCHROME1"):  # whatever the window says
        data = make_dicom(stored, WindowCenter=5, WindowWidth=5, PhotometricInterpretation=photometric)
        grey = np.asarray(TierImageProcessor.biovil().read(data))
        expected = remap_to_uint8(stored)
        np.testing.assert_array_equal(grey, expected if photometric == "MONOCHROME2" else 255 - expected)


def test_tier_divides_sixteen_bits(tmp_path):
    """TIER Modeling/MedCLIP_Datasets.py:124: the numbers over 255 as float32, which PIL cuts to 8 bits."""
    array = np.random.default_rng(0).integers(0, 65536, (256, 256), dtype=np.uint16)
    array[0, :4] = (255, 254, 65279, 65535)
    Image.fromarray(array).save(tmp_path / "x.png")
    expected = np.asarray(Image.fromarray((array / 255).astype(np.float32)).convert("L"))
    processor = TierImageProcessor.tier()
    np.testing.assert_array_equal(np.asarray(processor.read(tmp_path / "x.png")), expected)
    grey = pixels(processor, tmp_path / "x.png", output_dtype="uint8")[0, 0].numpy()
    np.testing.assert_array_equal(grey, expected[16:240, 16:240])
    eight = make_image(256, 256)  # which TIER makes 0 and 1
    np.testing.assert_array_equal(np.asarray(processor.read(eight)), np.asarray(eight))


def test_grey_levels_of_one_call(tmp_path):
    array = np.linspace(1000, 3000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "x.png")
    processor = TierImageProcessor(size=64, output_dtype="uint8")
    for source in (str(tmp_path / "x.png"), array, Image.fromarray(array)):
        for option, expected in (
            ("window", to_uint8(array)),
            ("stretch", remap_to_uint8(array)),
            ("divide", array // 255),
        ):
            grey = pixels(processor, source, grey_levels=option)[0, 0].numpy()
            np.testing.assert_array_equal(grey, expected)


def test_presets_take_other_options():
    processor = TierImageProcessor.tier(size=112, resize_edge=128)
    assert (processor.size.height, processor.resize_edge, processor.geometry) == (112, 128, "crop")
    assert pixels(processor, make_image(200, 200), output_dtype="uint8").shape == (1, 1, 112, 112)
