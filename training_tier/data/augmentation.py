"""Random augmentation of training radiographs: position of the patient and exposure of the film."""

import math

import numpy as np
from PIL import Image, ImageEnhance

from processing_tier import TierImageProcessor
from processing_tier.image_processing_tier import fit, place
from processing_tier.radiograph_tier import original_size, resize

AUGMENTATIONS = ("standard", "tier", "none")

MAX_ROTATION = 7.0  # degrees

MAX_SHIFT = 0.06  # of width and height

SCALE = (0.92, 1.15)  # below 1, the borders show black

MAX_STRETCH = 0.06  # change of the aspect ratio, ln

MAX_GAMMA = 0.15  # exponent, ln

MAX_CONTRAST = 0.15  # factor, ln

MAX_BRIGHTNESS = 0.06  # of the range

# TIER's (authors' code, MedCLIP_Datasets.py:38-44), except for the smallest area. They used torchvision's default of
# 8 %, which can crop away everything that the text describes.
TIER_MARGIN = 256 / 224  # of the resized picture over the crop

TIER_MIN_AREA = 0.6  # of the resized picture

TIER_RATIO = (0.9, 1.0)  # width over height of the crop

TIER_ROTATION = 10.0  # degrees

TIER_SHIFT = 0.05  # of width and height

TIER_SCALE = (0.95, 1.05)

TIER_JITTER = (0.8, 1.2)  # factors of brightness and of contrast


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """
    The standard augmentation: one random affine map and one random tone curve. It does not flip: a heart on the right
    is a finding, and reports name sides. It crops little, because the text may describe the removed area.

    Args:
        image (`PIL.Image.Image`): mode "L".
        rng (`np.random.Generator`): the source of all randomness.

    Returns:
        `PIL.Image.Image`: mode "L", the same size.
    """
    angle = math.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    scale = math.exp(rng.uniform(math.log(SCALE[0]), math.log(SCALE[1])))
    stretch = math.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH) / 2)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    gamma = math.exp(rng.uniform(-MAX_GAMMA, MAX_GAMMA))
    contrast = math.exp(rng.uniform(-MAX_CONTRAST, MAX_CONTRAST))
    brightness = rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS)

    image = move(image, angle, scale * stretch, scale / stretch, shift)
    levels = np.linspace(0, 1, 256) ** gamma
    levels = (levels - 0.5) * contrast + 0.5 + brightness
    levels[0] = 0.0  # black borders stay black
    return image.point(np.rint(255 * levels.clip(0, 1)).astype(int).tolist())


def augment_tier(image: Image.Image, rng: np.random.Generator, image_processor: TierImageProcessor) -> Image.Image:
    """
    TIER's augmentation: a random crop, resized to the model's size, a random affine map, and random brightness and
    contrast. It does not flip.

    The authors' 224 and 256 pixels are here the image processor's size and 8/7 of it. The crop is taken from the image
    as the image processor pads or squashes it, or from the whole image.

    Args:
        image (`PIL.Image.Image`): mode "L".
        rng (`np.random.Generator`): the source of all randomness.
        image_processor ([`TierImageProcessor`]): of the model.

    Returns:
        `PIL.Image.Image`: mode "L", the image processor's size.
    """
    size, geometry = image_processor.size["height"], image_processor.geometry
    edge = round(TIER_MARGIN * size)
    if geometry == "pad":
        image = fit(image, geometry, edge, edge, Image.Resampling.BILINEAR)
    else:
        width, height = original_size(image)
        height, width, *_ = place(height, width, geometry, edge, edge)
        image = resize(image, (width, height), Image.Resampling.BILINEAR)

    area = rng.uniform(TIER_MIN_AREA, 1) * image.width * image.height
    ratio = math.exp(rng.uniform(math.log(TIER_RATIO[0]), math.log(TIER_RATIO[1])))
    width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    shrink = min(1, image.width / width, image.height / height)  # when the crop does not fit
    width, height = shrink * width, shrink * height
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)

    angle = math.radians(rng.uniform(-TIER_ROTATION, TIER_ROTATION))
    shift = rng.uniform(-TIER_SHIFT, TIER_SHIFT, size=2)
    scale = rng.uniform(*TIER_SCALE)
    image = move(image, angle, scale, scale, shift)
    for enhance in rng.permutation([ImageEnhance.Brightness, ImageEnhance.Contrast]):
        image = enhance(image).enhance(rng.uniform(*TIER_JITTER))
    return image


def move(image: Image.Image, angle: float, x_scale: float, y_scale: float, shift: np.ndarray) -> Image.Image:
    """Rotate (radians), scale and shift (shares of width and height) an image about its centre, on black."""
    width, height = image.size
    # PIL needs the inverse map: the source of each output pixel.
    a, b = math.cos(angle) / x_scale, -math.sin(angle) / y_scale
    d, e = math.sin(angle) / x_scale, math.cos(angle) / y_scale
    x_center, y_center = width / 2, height / 2
    c = x_center - a * (x_center + shift[0] * width) - b * (y_center + shift[1] * height)
    f = y_center - d * (x_center + shift[0] * width) - e * (y_center + shift[1] * height)
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
