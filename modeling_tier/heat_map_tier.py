"""Heat-maps as the pipeline returns them: JSON as they are, arrays, and pictures over the radiograph."""

import copy
import io
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

JSON_EDGE = 32  # cells along the longer side of the map in JSON

# Blue over grey to red, from against to for the finding: 17 colours of Moreland's diverging map ("Diverging Color Maps
# for Scientific Visualization", ISVC 2009; matplotlib's "coolwarm"), which people without red-green vision can read.
COLOURS = np.array(
    [
        *((59, 76, 192), (78, 104, 216), (98, 130, 234), (119, 154, 247), (141, 176, 254), (163, 194, 254)),
        *((185, 208, 249), (204, 217, 237), (221, 220, 220), (235, 211, 198), (244, 197, 173), (247, 177, 148)),
        *((244, 154, 123), (236, 127, 99), (222, 97, 77), (203, 62, 56), (180, 4, 38)),
    ],
    dtype=np.uint8,
)
STEPS = np.linspace(0, len(COLOURS) - 1, 513)  # an odd number, so that 0 has the middle colour
LEVELS = np.stack([np.interp(STEPS, np.arange(len(COLOURS)), channel) for channel in COLOURS.T], 1).astype(np.float32)
OPACITY = 0.7  # of the strongest colour; where the map is 0, the radiograph shows through


def map_limit(values: np.ndarray) -> float:
    """The value of the strongest colour, symmetric about 0: 99 % lie below it, so that one patch cannot take all."""
    return max(float(np.nanpercentile(np.abs(values), 99)), 1e-12)


def map_opacity(values: np.ndarray, limit: float, opacity: float = OPACITY) -> np.ndarray:
    """How opaque the colour of each value is, 0 to `opacity`: in proportion to its size, 0 for NaN."""
    return opacity * np.nan_to_num(np.abs(values) / limit).clip(0, 1)


def map_colours(values: np.ndarray, limit: float) -> np.ndarray:
    """The colour of each value, float32 (..., 3) in 0..255: the last of `COLOURS` from `limit` on; grey for NaN."""
    place = (np.nan_to_num(values / limit).clip(-1, 1) + 1) / 2 * (len(LEVELS) - 1)
    return LEVELS[place.round().astype(np.intp)]


class Picture:
    """The radiograph under the heat-maps of one image. A file is read when it is first drawn, in full."""

    def __init__(self, source: Any, image_processor: Any):
        self.source, self.image_processor = source, image_processor

    @cached_property
    def image(self) -> Image.Image:
        """Mode "L", upright. ValueError if the file can no longer be read."""
        if isinstance(self.source, Image.Image):
            return self.source
        reader = copy.copy(self.image_processor)
        reader.reduced_decoding = False  # the model needs fewer pixels than a reader
        return reader.read(self.source)


class HeatMap(dict):
    """
    Where an image resembles the positive sentences of a finding more than the negative ones.

    It is a dictionary that JSON takes as it is: `height` and `width` of the original (upright) image in pixels, and
    `values`, rows of numbers that divide the image evenly, at most 32 along the longer side, with `None` where the
    model did not see the image. Numpy takes it as its `array`.

    Args:
        patches (`torch.Tensor` of shape `(rows, columns)`): The map on the model's grid of patches.
        size (`tuple[int, int]`): (height, width) of the original image.
        patch_centers (`tuple[float, float]`): Of the model, see `post_process_similarity_map`.
        picture ([`Picture`]): The radiograph, with the image processor that made the model's pixels of it.
    """

    def __init__(
        self, patches: torch.Tensor, size: tuple[int, int], patch_centers: tuple[float, float], picture: Picture
    ) -> None:
        self.patches, self.patch_centers, self.picture = patches, patch_centers, picture
        height, width = (int(length) for length in size)
        super().__init__(height=height, width=width)
        coarse = self.at_size(fit_edge((height, width), JSON_EDGE))
        self["values"] = [[value and float(f"{value:.4g}") for value in row] for row in to_lists(coarse)]

    def at_size(self, size: tuple[int, int]) -> np.ndarray:
        """The map over the whole image at another (height, width), float32."""
        post_process = self.picture.image_processor.post_process_similarity_map
        return post_process(self.patches[None], [size], self.patch_centers)[0].numpy()

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of `array`."""
        return self["height"], self["width"]

    @cached_property
    def array(self) -> np.ndarray:
        """
        float32 (height, width) in the pixels of the original image, interpolated between the patches, NaN where the
        model did not see the image. Made when it is first asked for, and kept.
        """
        return self.at_size(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy is not False)

    @property
    def limit(self) -> float:
        """The value of the strongest colour of [`overlay`], where the caller does not pass one; see [`map_limit`]."""
        return map_limit(np.array(self["values"], dtype=float))

    def overlay(
        self, limit: float | None = None, opacity: float = OPACITY, longest_edge: int | None = None
    ) -> Image.Image:
        """
        The radiograph with the map over it: red speaks for the finding, blue against it, and nothing is drawn where
        the map is 0.

        Args:
            limit (`float`, *optional*):
                The value of the strongest colour. By default each map has its own, so that a map that is weak
                everywhere looks as strong as any other: pass one limit to compare images.
            opacity (`float`, *optional*, defaults to 0.7): Of the strongest colour, 0 to 1.
            longest_edge (`int`, *optional*): Pixels of the longer side, by default those of the original.

        Returns:
            `PIL.Image.Image`: Mode "RGB", upright.

        Raises:
            ValueError: An argument is out of its range, or the file of the image can no longer be read.
        """
        limit = self.limit if limit is None else limit
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit must be a number above 0, not {limit!r}.")
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be a number from 0 to 1, not {opacity!r}.")
        if longest_edge is not None and longest_edge < 1:
            raise ValueError(f"longest_edge must be at least 1 pixel, not {longest_edge!r}.")
        height, width = self.shape if longest_edge is None else fit_edge(self.shape, longest_edge)
        grey = self.picture.image.resize((width, height), Image.Resampling.LANCZOS)
        values = self.at_size((height, width))
        alpha = map_opacity(values, limit, opacity)[..., None]
        blended = (1 - alpha) * np.asarray(grey, dtype=np.float32)[..., None] + alpha * map_colours(values, limit)
        return Image.fromarray(blended.round().astype(np.uint8))

    def to_png(self, **options: Any) -> bytes:
        """The picture of [`overlay`], which takes these options, as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self.overlay(**options).save(buffer, "PNG")
        return buffer.getvalue()


def fit_edge(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """A (height, width) in proportion, whose longer side is at most `edge`."""
    scale = min(edge / max(size), 1.0)
    height, width = (max(round(length * scale), 1) for length in size)
    return height, width


def to_lists(heatmap: np.ndarray) -> list[list[float | None]]:
    """Rows of numbers, with `None` for NaN, which JSON lacks."""
    return np.where(np.isnan(heatmap), None, heatmap.astype(object)).tolist()
