import numpy as np
import pytest
from PIL import Image

from processing_tier import TierImageProcessor, read_radiograph
from processing_tier.phantom.dataset import make_phantom
from training_tier.data import augmentation
from training_tier.data.augmentation import AUGMENTATIONS, augment, augment_tier


def vary(name, image, seed, size=64, **options):
    rng = np.random.default_rng(seed)
    if name == "standard":
        return augment(image, rng)
    return augment_tier(image, rng, TierImageProcessor(size=size, **options))


def test_standard_augmentation_moves_and_recolours_but_keeps_the_format():
    y, x = np.mgrid[:80, :60]
    image = Image.fromarray((128 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8))
    results = [augment(image, np.random.default_rng(seed)) for seed in range(30)]
    assert all(result.size == (60, 80) and result.mode == "L" for result in results)
    assert len({result.tobytes() for result in results}) == 30
    assert results[0].tobytes() == augment(image, np.random.default_rng(0)).tobytes()


def test_standard_augmentation_keeps_the_centre_within_the_shift_and_scale_it_promises():
    array = np.zeros((101, 101), dtype=np.uint8)
    array[48:53, 48:53] = 255
    for seed in range(40):
        result = np.asarray(augment(Image.fromarray(array), np.random.default_rng(seed))).astype(float)
        y, x = np.argwhere(result == result.max()).mean(axis=0)
        assert abs(y - 50) < 0.08 * 101 + 3 and abs(x - 50) < 0.08 * 101 + 3


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_a_heart_stays_on_its_side(name):
    image = read_radiograph(make_phantom(1, seed=0, image_size=96)[0]["image"])
    plain = np.asarray(image.resize((64, 64)), dtype=float)
    plain[:, 32:] *= 0.3  # no one can take it for its mirror image
    image = Image.fromarray(plain.astype(np.uint8))
    for seed in range(60):
        result = np.asarray(vary(name, image, seed).resize((64, 64)), dtype=float)
        same, mirrored = (np.corrcoef(result.ravel(), side.ravel())[0, 1] for side in (plain, plain[:, ::-1]))
        assert same > mirrored + 0.05
        assert result[:, :16].mean() > result[:, 48:].mean()


@pytest.mark.parametrize(
    ("options", "shape"),
    [({"geometry": "pad"}, (70, 90)), ({"geometry": "squash"}, (90, 70)), ({"geometry": "crop"}, (90, 61))],
)
def test_tier_augmentation_fits_the_model_and_is_drawn_by_the_generator(options, shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = Image.fromarray((128 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8))
    results = [vary("tier", image, seed, size=48, **options) for seed in range(30)]
    assert all(result.size == (48, 48) and result.mode == "L" for result in results)
    assert len({result.tobytes() for result in results}) == 30
    assert results[4].tobytes() == vary("tier", image, 4, size=48, **options).tobytes()


@pytest.fixture
def crop_alone(monkeypatch):
    """TIER's augmentation without its other parts."""
    for name, value in {"ROTATION": 0.0, "SHIFT": 0.0, "SCALE": (1.0, 1.0), "JITTER": (1.0, 1.0)}.items():
        monkeypatch.setattr(augmentation, f"TIER_{name}", value)


def test_a_crop_has_the_area_and_the_ratio_it_promises(crop_alone):
    # the grey levels are coordinates, so that the result says where it was cut
    steps = np.linspace(0, 255, 512, dtype=np.uint8)
    across = Image.fromarray(np.repeat(steps[None], 512, axis=0))
    down = Image.fromarray(np.repeat(steps[:, None], 512, axis=1))
    areas, ratios = [], []
    for seed in range(200):
        options = {"size": 224, "geometry": "squash"}
        x, y = (np.asarray(vary("tier", image, seed, **options), dtype=float) for image in (across, down))
        width, height = (x[0, -1] - x[0, 0]) / 255, (y[-1, 0] - y[0, 0]) / 255
        assert width > 0 and height > 0
        areas.append(width * height)
        ratios.append(width / height)
    assert 0.58 < min(areas) < 0.65 and max(areas) > 0.9
    assert 0.88 < min(ratios) < 0.92 and max(ratios) < 1.02


def test_a_tall_picture_is_cropped_to_squares_from_anywhere_in_it(crop_alone):
    steps = np.linspace(0, 255, 600, dtype=np.uint8)
    down = Image.fromarray(np.repeat(steps[:, None], 200, axis=1))
    tops = [np.asarray(vary("tier", down, seed, size=56, geometry="crop"))[0, 0] for seed in range(100)]
    assert min(tops) < 10 and max(tops) > 255 * 0.55


def test_brightness_and_contrast_are_those_of_the_factors(monkeypatch):
    for name, value in {
        "ROTATION": 0.0,
        "SHIFT": 0.0,
        "SCALE": (1.0, 1.0),
        "MIN_AREA": 1.0,
        "RATIO": (1.0, 1.0),
    }.items():
        monkeypatch.setattr(augmentation, f"TIER_{name}", value)
    flat = Image.new("L", (64, 64), 100)
    means = [np.asarray(vary("tier", flat, seed, geometry="squash")).mean() for seed in range(200)]
    assert 80 <= min(means) < 82 and 118 < max(means) <= 120  # contrast leaves a flat picture as it is
