"""
Image processor: geometry and normalisation, from any picture of a radiograph to the pixels that the model takes, and
from its maps back to the picture. How files are decoded is in `radiograph_tier.py`.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .grey_levels_tier import GREY_LEVELS
from .radiograph_tier import Source, fetch_radiograph, original_size, read_radiograph, resize

logger = logging.get_logger(__name__)

GEOMETRIES = ("pad", "crop", "squash")
OUTPUT_DTYPES = ("float32", "uint8")
# The options that decide which pixels of a file are read
READ_OPTIONS = ("do_resize", "size", "geometry", "resize_edge", "reduced_decoding", "grey_levels")
UNUSED_OPTIONS = ("do_center_crop", "crop_size", "do_pad", "pad_size")
SERVICE_KEYS = ("processor_class", "image_processor_type", "feature_extractor_type", "auto_map")


class TierImageProcessorKwargs(ImagesKwargs, total=False):
    """
    geometry (`str`, *optional*, defaults to `"pad"`):
        How a picture of any shape becomes a square: `"pad"` scales the longest side to the square and centres it on
        black, `"crop"` scales the shortest side and keeps the centre, `"squash"` ignores the aspect ratio.
    resize_edge (`int`, *optional*):
        Length in pixels that the first resize gives the longest (`"pad"`) or the shortest (`"crop"`) side, where it
        differs from `size`. With `"pad"` the padded square of this edge is normalised and then resampled to `size`
        (CheXzero's two steps); with `"crop"` the centre of `size` is cut from it (TIER's 256 to 224).
    output_dtype (`str`, *optional*, defaults to `"float32"`):
        `"float32"` for (batch, 3, height, width) normalised pixels, `"uint8"` for (batch, 1, height, width) raw ones,
        which the model normalises: the same numbers in a twelfth of the bytes.
    reduced_decoding (`bool`, *optional*, defaults to `True`):
        Whether JPEG files are decoded at the least size that the geometry needs: several times as fast, and on average
        less than one grey level of 255 away.
    grey_levels (`str`, *optional*, defaults to `"window"`):
        How the numbers of a file become 256 grey levels: `"window"` as [`read_radiograph`] says, `"stretch"` from each
        picture's smallest number to its largest (BioViL), `"divide"` by 255 where there are more than 8 bits (TIER).
    """

    geometry: str | None
    resize_edge: int | None
    output_dtype: str | None
    reduced_decoding: bool | None
    grey_levels: str | None


def place(height: int, width: int, geometry: str, edge: int, size: int) -> tuple[int, int, int, int]:
    """
    Where the original picture lies in the square that the model sees.

    Args:
        height (`int`), width (`int`): the original picture, in pixels.
        geometry (`str`): one of `GEOMETRIES`.
        edge (`int`): `resize_edge`, or `size` without one.
        size (`int`): edge of the model's square; only `"crop"` uses it.

    Returns:
        `tuple[int, int, int, int]`: resized height, resized width, top, left; top and left are negative where `"crop"`
        cuts. `"pad"` rounds down as CheXzero does (data_process.py:31-64), `"crop"` as torchvision's Resize and
        CenterCrop do.
    """
    if geometry == "squash":
        return edge, edge, 0, 0
    if geometry == "pad":
        ratio = edge / max(height, width)
        new_height, new_width = max(int(height * ratio), 1), max(int(width * ratio), 1)
        return new_height, new_width, (edge - new_height) // 2, (edge - new_width) // 2
    shortest = min(height, width)
    new_height, new_width = int(edge * height / shortest), int(edge * width / shortest)
    return new_height, new_width, -round((new_height - size) / 2), -round((new_width - size) / 2)


class TierImageProcessor(CLIPImageProcessorPil):
    """
    Turns radiographs into `pixel_values`. The picture stays one 8-bit grey channel until the very end, so that the
    float and the `uint8` output are the same numbers.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
            The square that the model sees, in pixels.
        geometry (`str`, *optional*, defaults to `"pad"`), resize_edge (`int`, *optional*),
        output_dtype (`str`, *optional*, defaults to `"float32"`),
        reduced_decoding (`bool`, *optional*, defaults to `True`),
        grey_levels (`str`, *optional*, defaults to `"window"`):
            See [`TierImageProcessorKwargs`].
        image_mean, image_std (`list[float]`, *optional*, default to CLIP's):
            Three numbers each on the 0..1 scale; equal to `pixel_mean` and `pixel_std` of the model's config.
        resample (`PILImageResampling`, *optional*, defaults to `BICUBIC`):
            Filter of the first resize (antialiased by PIL).

    Raises:
        `ValueError`: an unknown geometry or output_dtype, a size that is not square, or an option that this processor
        does not use.
    """

    valid_kwargs = TierImageProcessorKwargs
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_center_crop = None
    crop_size = None
    geometry = "pad"
    resize_edge = None
    output_dtype = "float32"
    reduced_decoding = True
    grey_levels = "window"

    def __init__(self, **kwargs: Any) -> None:
        unknown = [k for k in kwargs if k not in self.valid_kwargs.__annotations__ and k not in SERVICE_KEYS]
        if unknown:
            logger.warning(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}; it has no effect.")
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def chexzero(cls, **kwargs: Any) -> "TierImageProcessor":
        """
        The pixels CheXzero was trained on: longest side to 320 with PIL's Lanczos filter, centred on black,
        (x - 101.48761) / 83.43944 on the 0..255 scale, then 224 by bicubic interpolation without antialiasing
        (CheXzero data_process.py:31-64, train.py:84-87, zero_shot.py:377-385). Like there, files are decoded in full.
        """
        preset = {
            "reduced_decoding": False,
            "geometry": "pad",
            "resize_edge": 320,
            "resample": PILImageResampling.LANCZOS,
            "image_mean": [101.48761 / 255] * 3,
            "image_std": [83.43944 / 255] * 3,
        }
        return cls(**{**preset, **kwargs})

    @classmethod
    def tier(cls, **kwargs: Any) -> "TierImageProcessor":
        """
        The pixels TIER was evaluated on: shortest side to 256 (bilinear, antialiased), centre crop 224, ImageNet mean
        and standard deviation (TIER Modeling/MedCLIP_Datasets.py:46-52). Files are decoded in full, and those of more
        than 8 bits are divided by 255 (:124), as in TIER. TIER also divides PadChest's 8-bit files, which leaves only
        0 and 1; here they keep their values.
        """
        preset = {
            "reduced_decoding": False,
            "grey_levels": "divide",
            "geometry": "crop",
            "resize_edge": 256,
            "resample": PILImageResampling.BILINEAR,
            "image_mean": list(IMAGENET_DEFAULT_MEAN),
            "image_std": list(IMAGENET_DEFAULT_STD),
        }
        return cls(**{**preset, **kwargs})

    @classmethod
    def biovil(cls, **kwargs: Any) -> "TierImageProcessor":
        """
        The pixels of BioViL's own inference: each file stretched from its smallest number to its largest, shortest
        side to 512 (bilinear, antialiased), centre crop 480, 0..1 without mean and standard deviation
        (hi-ml-multimodal, image/data/io.py and transforms.py). In DICOM files the stored values are stretched, and
        MONOCHROME1 is inverted, which BioViL does not do.
        """
        preset = {
            "reduced_decoding": False,
            "grey_levels": "stretch",
            "geometry": "crop",
            "size": {"height": 480, "width": 480},
            "resize_edge": 512,
            "resample": PILImageResampling.BILINEAR,
            "image_mean": [0.0] * 3,
            "image_std": [1.0] * 3,
        }
        return cls(**{**preset, **kwargs})

    @classmethod
    def from_clip(cls, image_processor: CLIPImageProcessorPil | SiglipImageProcessorPil) -> "TierImageProcessor":
        """
        A processor that makes the same pixels as an image processor of CLIP or SigLIP, from any radiograph.

        Raises:
            `ValueError`: it is not one of these, or does not make squares.
        """
        name = type(image_processor).__name__
        if not isinstance(image_processor, (CLIPImageProcessorPil, SiglipImageProcessorPil)):
            raise ValueError(
                f"A {name} is not the image processor of CLIP or SigLIP; save the one that the model was trained on."
            )
        crop = image_processor.crop_size
        square = crop if image_processor.do_center_crop else image_processor.size
        edge = image_processor.size.shortest_edge
        if not square or not square.height or square.height != square.width or edge and edge < square.height:
            raise ValueError(f"The {name} does not make squares (size={image_processor.size}, crop_size={crop}).")
        return cls(
            geometry="crop" if edge else "squash",
            resize_edge=edge if edge and edge > square.height else None,
            size={"height": square.height, "width": square.width},
            resample=image_processor.resample,
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> str:
        """Like [`TierProcessor.push_to_hub`]: the repository is private unless you pass `private=False`."""
        return super().push_to_hub(repo_id, private=private, **kwargs)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        geometry, output_dtype, size = kwargs["geometry"], kwargs["output_dtype"], kwargs["size"]
        resize_edge = kwargs["resize_edge"]
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry={geometry!r} is not known; choose one of {', '.join(GEOMETRIES)}.")
        if output_dtype not in OUTPUT_DTYPES:
            raise ValueError(f"output_dtype={output_dtype!r} is not known; choose one of {', '.join(OUTPUT_DTYPES)}.")
        if kwargs["grey_levels"] not in GREY_LEVELS:
            raise ValueError(
                f"grey_levels={kwargs['grey_levels']!r} is not known; choose one of {', '.join(GREY_LEVELS)}."
            )
        if not size.height or size.height != size.width:
            raise ValueError(
                f"size={dict(size)} is not a square; give {{'height': S, 'width': S}} with the model's image_size."
            )
        for name in UNUSED_OPTIONS:
            if kwargs[name]:
                raise ValueError(f"{name}={kwargs[name]!r} has no effect here; use geometry='crop' or 'pad' instead.")
        if resize_edge is not None:
            if geometry == "squash":
                raise ValueError(f"resize_edge={resize_edge} has no effect with geometry='squash'; leave it out.")
            if resize_edge < 1 or geometry == "crop" and resize_edge < size.height:
                raise ValueError(f"resize_edge={resize_edge} is too small; use at least size={size.height}.")
            if geometry == "pad" and output_dtype == "uint8":
                raise ValueError(
                    "output_dtype='uint8' cannot hold the pixels of a padded resize_edge, which are resampled after "
                    "normalisation; use output_dtype='float32'."
                )

    def read(self, source: Source, timeout: float | None = 30.0, root: str | os.PathLike | None = None) -> Image.Image:
        """
        Read any file (DICOM too), a picture in memory or a URL with [`read_radiograph`], as mode "L". Training,
        evaluation, the pipeline and a call of this processor with paths all read this way.

        With `reduced_decoding` the result may be smaller than the picture in the file. `info["original_size"]` is the
        (width, height) of the file's picture, which [`~TierImageProcessor.post_process_similarity_map`] maps back to.

        Args:
            source: what `read_radiograph` takes, or an `http://` or `https://` URL.
            timeout (`float`, *optional*, defaults to 30.0):
                Seconds that a server may be silent; `None` waits forever.
            root (`str` or `os.PathLike`, *optional*): folder that paths must not leave, see `read_radiograph`.

        Raises:
            `ValueError`: the URL cannot be fetched, or as `read_radiograph` says.
        """
        return read_for(source, {name: getattr(self, name) for name in READ_OPTIONS}, timeout, root)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        options = {name: kwargs[name] for name in READ_OPTIONS}
        return super()._preprocess_image_like_inputs(self.fetch_images(images, options), *args, **kwargs)

    def fetch_images(self, image_url_or_urls: Any, options: Mapping[str, Any] | None = None) -> Any:
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image, options) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike, bytes)) or hasattr(image_url_or_urls, "read"):
            # Not the library's loader: its RGB conversion clips 16-bit files
            return read_for(image_url_or_urls, options) if options else self.read(image_url_or_urls)
        if getattr(image_url_or_urls, "ndim", None) == 2:
            return image_url_or_urls[None]  # (1, height, width): the library needs a channel
        return super().fetch_images(image_url_or_urls)

    def process_image(
        self, image: Any, input_data_format: str | None = None, grey_levels: str | None = None, **kwargs: Any
    ) -> Image.Image:
        if not isinstance(image, Image.Image):
            image = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
            image = np.moveaxis(image, 0, -1)  # (height, width, channels)
        return read_radiograph(image, grey_levels=grey_levels or self.grey_levels)

    # More than 7 parameters: the library calls it with each option by name
    def _preprocess(
        self,
        images: list[Image.Image],
        do_resize: bool,
        size: Any,  # `SizeDict` of the library
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        geometry: str,
        resize_edge: int | None,
        output_dtype: str,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> BatchFeature:
        edge = resize_edge or size.height
        canvas = edge if geometry == "pad" else size.height
        if do_resize:
            images = [fit(image, geometry, edge, canvas, resample) for image in images]
        images = [np.asarray(image) for image in images]  # each (height, width)
        if output_dtype == "uint8":
            return BatchFeature({"pixel_values": [image[None] for image in images]}, tensor_type=return_tensors)

        # The 256 grey levels go through CLIP's arithmetic once; every pixel is then looked up.
        levels = np.repeat(np.arange(256, dtype=np.uint8)[None, None], 3, axis=0)  # (3, 1, 256)
        if do_rescale:
            levels = self.rescale(levels, rescale_factor)
        if do_normalize:
            levels = self.normalize(levels, image_mean, image_std)
        levels = levels.reshape(3, 256).astype(np.float32)
        pixel_values = [np.take(levels, image, axis=1) for image in images]  # each (3, height, width)
        if do_resize and canvas != size.height:
            batch = torch.from_numpy(np.stack(pixel_values))
            batch = F.interpolate(batch, size=(size.height, size.width), mode="bicubic", align_corners=False)
            pixel_values = list(batch.numpy())
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def post_process_similarity_map(
        self,
        maps: torch.Tensor,
        original_sizes: list[tuple[int, int]] | torch.Tensor,
        patch_centers: tuple[float, float] | None = None,
    ) -> list[torch.Tensor]:
        """
        Map the model's patch grid back to the pixels of the original pictures.

        Args:
            maps (`torch.Tensor` of shape `(images, texts, rows, columns)` or `(images, rows, columns)`):
                Output of `model.get_similarity_map`, for pixels made by this processor.
            original_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(images, 2)`):
                (height, width) of each original picture, in pixels.
            patch_centers (`tuple[float, float]`, *optional*):
                `model.patch_centers`: where the patches lie in the model's input. By default, with a warning, they
                tile it, as the patches of a ViT do. The map of a ResNet is then half a patch off.

        Returns:
            `list[torch.Tensor]`: for each image a float32 map `(texts, height, width)` or `(height, width)`, bilinear
            between patch centres. Padding is cut off. Pixels that `"crop"` cut away are NaN: the model never saw them.

        Raises:
            `ValueError`: the number of sizes differs from the number of maps.
        """
        if patch_centers is None:
            logger.warning_once("Maps of a ResNet lie half a patch off: pass patch_centers=model.patch_centers.")
        if len(maps) != len(original_sizes):
            raise ValueError(f"{len(maps)} maps but {len(original_sizes)} original_sizes; give a size for each map.")
        size = self.size["height"]
        edge = self.resize_edge or size
        canvas = edge if self.geometry == "pad" else size
        results = []
        for image_maps, (height, width) in zip(maps, original_sizes, strict=True):
            height, width = int(height), int(width)
            new_height, new_width, top, left = place(height, width, self.geometry, edge, size)
            # Centre of each original pixel, in grid_sample's -1..1 over the model's square
            y = (torch.arange(height, device=maps.device) + 0.5) * (new_height / height) + top
            x = (torch.arange(width, device=maps.device) + 0.5) * (new_width / width) + left
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None] * 2 / canvas - 1
            outside = (grid.abs() > 1).any(-1)[:, None]
            flat = image_maps.float().reshape(1, -1, *image_maps.shape[-2:])  # (1, texts, rows, columns)
            if patch_centers is not None:  # patch i lies at first + step * i
                first, step = patch_centers
                grid = (size * (grid + 1) - 2 * first + step) / (step * grid.new_tensor(flat.shape[:1:-1])) - 1
            result = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
            results.append(result.masked_fill(outside, float("nan")).reshape(*image_maps.shape[:-2], height, width))
        return results


def read_for(
    source: Source, options: Mapping[str, Any], timeout: float | None = 30.0, root: str | os.PathLike | None = None
) -> Image.Image:
    """[`TierImageProcessor.read`] for these values of `READ_OPTIONS`."""
    least_size = None
    if options["do_resize"] and options["reduced_decoding"]:
        edge = options["resize_edge"] or options["size"]["height"]
        least_size = {"longest_edge" if options["geometry"] == "pad" else "shortest_edge": edge}
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return fetch_radiograph(source, timeout, least_size, options["grey_levels"])
    return read_radiograph(source, root, least_size, options["grey_levels"])


def fit(image: Image.Image, geometry: str, edge: int, canvas: int, resample: int) -> Image.Image:
    """Resize a grey picture and place it on the black square of `canvas` pixels (see [`place`])."""
    width, height = original_size(image)
    new_height, new_width, top, left = place(height, width, geometry, edge, canvas)
    if (new_width, new_height) != image.size:
        image = resize(image, (new_width, new_height), resample)
    if (new_width, new_height) == (canvas, canvas):
        return image
    square = Image.new("L", (canvas, canvas))
    square.paste(image, (left, top))
    return square


TierImageProcessor.register_for_auto_class("AutoImageProcessor")
