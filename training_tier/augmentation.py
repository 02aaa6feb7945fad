"""Random variation of training radiographs: how the patient stood and how the film was exposed."""

import math

import numpy as np
from PIL import Image

MAX_ROTATION = 7.0  # degrees
MAX_SHIFT = 0.06  # of width and height
SCALE = (0.92, 1.15)  # below 1, the borders show black
MAX_STRETCH = 0.06  # ln of the change of the aspect ratio
MAX_GAMMA = 0.15  # ln of the exponent
MAX_CONTRAST = 0.15  # ln of the factor
MAX_BRIGHTNESS = 0.06  # of the range


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """
    One random affine map and one random tone curve. No mirror image: a heart on the right is a finding, and reports
    name sides. No small crops either: the text may describe what they cut off (TIER's crops go down to 8 % of the
    area, MedCLIP_Datasets.py:40).

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

    # PIL asks where each output pixel comes from: the inverse of rotate, scale, shift about the centre.
    width, height = image.size
    x_scale, y_scale = 1 / (scale * stretch), stretch / scale
    a, b = math.cos(angle) * x_scale, -math.sin(angle) * y_scale
    d, e = math.sin(angle) * x_scale, math.cos(angle) * y_scale
    x_center, y_center = width / 2, height / 2
    c = x_center - a * (x_center + shift[0] * width) - b * (y_center + shift[1] * height)
    f = y_center - d * (x_center + shift[0] * width) - e * (y_center + shift[1] * height)
    image = image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)

    levels = np.linspace(0, 1, 256) ** gamma
    levels = (levels - 0.5) * contrast + 0.5 + brightness
    levels[0] = 0.0  # black borders stay black
    return image.point(np.rint(255 * levels.clip(0, 1)).astype(int).tolist())
