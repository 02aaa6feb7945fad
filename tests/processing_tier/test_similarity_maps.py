import numpy as np
import pytest
import torch
from pictures import pixels
from PIL import Image

from processing_tier import TierImageProcessor
from processing_tier.image_processing_tier import place

each_geometry = pytest.mark.parametrize(
    "processor",
    [
        TierImageProcessor(size=64),
        TierImageProcessor(size=64, geometry="crop"),
        TierImageProcessor(size=64, geometry="squash"),
        TierImageProcessor.chexzero(size=64),
        TierImageProcessor.tier(size=64, resize_edge=72),
    ],
    ids=["pad", "crop", "squash", "chexzero", "tier"],
)


@pytest.mark.parametrize("shape", [(100, 100), (100, 40), (33, 70), (640, 480)])
@each_geometry
def test_similarity_map_returns_to_original_pixels(shape, processor):
    """A picture that is a ramp, read back from its own pixels as if they were the map, is the ramp again."""
    width, height = shape
    ramp = np.add.outer(np.linspace(0, 155, height), np.linspace(0, 100, width))
    image = Image.fromarray(np.rint(ramp).astype(np.uint8))
    maps = pixels(processor, image, do_normalize=False)[:, :1] * 255  # (1, 1, 64, 64), one "patch" per pixel
    (result,) = processor.post_process_similarity_map(maps, [(height, width)])
    assert result.shape == (1, height, width)
    seen = ~result.isnan()[0].numpy()
    if processor.geometry == "crop":
        assert seen[height // 2, width // 2]
    else:
        assert seen.all()
    inner = np.zeros_like(seen)
    inner[height // 4 : -height // 4, width // 4 : -width // 4] = True
    difference = np.abs(result[0].numpy() - ramp)[seen & inner]
    assert difference.size and difference.max() < 2.5


def test_similarity_map_of_patches():
    """2x2 patches over a padded wide picture: the rows of padding are gone, left is left."""
    maps = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # (1, 1, rows, columns)
    (result,) = TierImageProcessor(size=8).post_process_similarity_map(maps, [(4, 8)])
    expected = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]).expand(1, 4, 8)
    torch.testing.assert_close(result, expected)
    (flat,) = TierImageProcessor(size=8).post_process_similarity_map(maps[:, 0], torch.tensor([[4, 8]]))
    torch.testing.assert_close(flat, expected[0])
    with pytest.raises(ValueError, match="^1 maps but 2 original_sizes; give a size for each map.$"):
        TierImageProcessor().post_process_similarity_map(maps, [(4, 8), (4, 8)])


def test_similarity_map_marks_what_crop_cut_away():
    maps = torch.ones(1, 3, 2, 2)
    (result,) = TierImageProcessor(size=8, geometry="crop").post_process_similarity_map(maps, [(4, 8)])
    assert result.shape == (3, 4, 8)
    assert result[:, :, 2:6].eq(1).all() and result[:, :, :2].isnan().all() and result[:, :, 6:].isnan().all()


def test_place():
    assert place(200, 400, "pad", 100, 100) == (50, 100, 25, 0)
    assert place(200, 400, "crop", 100, 100) == (100, 200, 0, -50)
    assert place(200, 400, "squash", 100, 100) == (100, 100, 0, 0)
    assert place(1, 5000, "pad", 100, 100) == (1, 100, 49, 0)  # never an empty picture


def test_similarity_maps_have_the_pixels_of_the_file(tmp_path):
    Image.fromarray(np.zeros((903, 701), dtype=np.uint8)).save(tmp_path / "x.jpg")
    picture = TierImageProcessor(size=32).read(tmp_path / "x.jpg", root=tmp_path)
    assert picture.size == (88, 113)
    width, height = picture.info["original_size"]
    (result,) = TierImageProcessor(size=32).post_process_similarity_map(torch.ones(1, 2, 4, 4), [(height, width)])
    assert result.shape == (2, 903, 701)
    with pytest.raises(ValueError, match="^x.jpg: the path leaves the image folder"):
        TierImageProcessor().read("../x.jpg", root=tmp_path / "inner")


@pytest.mark.parametrize("centers", [(0.5, 8.0), (4.0, 8.0), (0.5, 9.0)], ids=["resnet", "vit", "odd"])
@pytest.mark.parametrize("shape", [(100, 100), (100, 40), (33, 70)])
@each_geometry
def test_values_lie_at_the_centres_of_the_patches(processor, shape, centers):
    """A slope that is known at the centres of the patches has the right height at every pixel between them."""
    (first, step), (height, width) = centers, shape
    places = first + step * torch.arange(8 if step == 8 else 7)  # in pixels of the model's input
    maps = 3 * places[:, None] + 5 * places[None]
    (result,) = processor.post_process_similarity_map(maps[None], [shape], centers)
    edge = processor.resize_edge or 64
    new_height, new_width, top, left = place(height, width, processor.geometry, edge, 64)
    scale = 64 / edge if processor.geometry == "pad" else 1
    y = ((torch.arange(height) + 0.5) * new_height / height + top) * scale
    x = ((torch.arange(width) + 0.5) * new_width / width + left) * scale
    expected = 3 * y.clamp(places[0], places[-1])[:, None] + 5 * x.clamp(places[0], places[-1])[None]
    seen = ~result.isnan()
    assert torch.equal(seen, ((y > 0) & (y < 64))[:, None] & ((x > 0) & (x < 64)))  # does not depend on the centres
    torch.testing.assert_close(result[seen], expected[seen], rtol=0, atol=2e-3)


def test_by_default_patches_tile_the_image():
    maps, processor = torch.rand(2, 3, 4, 4), TierImageProcessor(size=32)
    sizes = [(40, 20), (32, 32)]
    for tiled, default in zip(
        processor.post_process_similarity_map(maps, sizes, (4, 8)),
        processor.post_process_similarity_map(maps, sizes),
        strict=True,
    ):
        torch.testing.assert_close(tiled, default, rtol=0, atol=1e-6)
