"""A TierImageProcessor for the pixels of other projects' checkpoints, and its settings for CLIP and OpenCLIP."""

from collections.abc import Mapping
from pathlib import Path

from transformers import CLIPImageProcessorPil
from transformers.image_utils import PILImageResampling
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .bounded_json import parse_json
from .image_processing_tier import TierImageProcessor

RESIZE_MODES = {"shortest": "crop", "longest": "pad", "squash": "squash"}  # OpenCLIP's name: TierImageProcessor's
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # of transformers
FILTERS = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}  # likewise


def make_checkpoint_image_processor(kind: str, folder: Path, settings: Mapping, image_size: int) -> TierImageProcessor:
    """
    The image processor for the pixels that a checkpoint was trained on.

    Args:
        kind (`str`):
            The kind of checkpoint: `"chexzero"`, `"tier"`, `"biovil"`, `"biovil_t"`, `"clip"`, `"chexficient"`,
            `"openai"`, `"openclip"` or `"biomedclip"`.
        folder (`Path`): The folder of the checkpoint, or of its file.
        settings (`Mapping`): Content of `open_clip_config.json`; empty without one.
        image_size (`int`): Edge in pixels of the square that the model sees.

    Raises:
        ValueError: The checkpoint's settings ask for something that TierImageProcessor does not do.
    """
    size = {"height": image_size, "width": image_size}
    if kind == "chexzero":
        # The 320 px model takes the padded square as it is (train.py:69-76 of CheXzero).
        return TierImageProcessor.chexzero(size=size, **({"resize_edge": None} if image_size == 320 else {}))
    if kind == "tier":
        return TierImageProcessor.tier(size=size)
    if kind in ("biovil", "biovil_t"):
        return TierImageProcessor.biovil(size=size)
    if kind == "clip":
        return load_clip_image_processor(folder, size)
    if kind == "chexficient":
        return load_chexficient_image_processor(folder, size)
    preprocess = settings.get("preprocess_cfg") or {}  # of OpenCLIP; its defaults are OpenAI's pixels
    mode, filter_name = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if mode not in RESIZE_MODES or filter_name not in FILTERS:
        raise ValueError(
            f"open_clip_config.json asks for resize_mode={mode!r} and interpolation={filter_name!r}, but only "
            f"{', '.join(RESIZE_MODES)} and {', '.join(FILTERS)} are supported."
        )
    options = {
        "geometry": RESIZE_MODES[mode],
        "size": size,
        "resample": FILTERS[filter_name],
        "image_mean": preprocess.get("mean"),
        "image_std": preprocess.get("std"),
    }
    return TierImageProcessor(**{name: value for name, value in options.items() if value is not None})


def load_clip_image_processor(folder: Path, size: dict[str, int]) -> TierImageProcessor:
    """The image processor of a folder of transformers; CLIP's pixels for a folder without one."""
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return TierImageProcessor(geometry="crop", size=size)
    try:
        stored = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        if isinstance(stored, TierImageProcessor):
            return stored
        image_processor = TierImageProcessor.from_clip(stored)
    except Exception as error:  # transformers raises many kinds for damaged files
        raise ValueError(
            f"the image processor of {folder} cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Fix or remove its preprocessor_config.json."
        ) from None
    if dict(image_processor.size) != size:
        raise ValueError(f"the image processor of {folder} does not make squares of {size['height']} pixels.")
    return image_processor


def load_chexficient_image_processor(folder: Path, size: dict[str, int]) -> TierImageProcessor:
    """
    CheXficient's pixels: bicubic resize of the shortest side, centre crop, OpenAI's mean and deviation (main.py:44-56
    of cwangrun/CheXficient at 93b55e9). What a processor's file in the folder says comes first, whatever its class.
    """
    path = next((folder / name for name in PROCESSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        return TierImageProcessor(geometry="crop", size=size)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        content = content.get("image_processor", content)
        if content.get("do_pad"):
            raise ValueError("do_pad=True is not supported")
        known = {
            key: value for key, value in content.items() if key in CLIPImageProcessorPil.valid_kwargs.__annotations__
        }
        image_processor = TierImageProcessor.from_clip(CLIPImageProcessorPil(**known))
    except Exception as error:  # as above
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from None
    if dict(image_processor.size) != size:
        raise ValueError(f"{path} does not make squares of {size['height']} pixels.")
    return image_processor


def to_stock(image_processor: TierImageProcessor) -> CLIPImageProcessorPil | None:
    """CLIP's own image processor for the same pixels; `None` where it cannot make them."""
    size = dict(image_processor.size)
    options = {name: getattr(image_processor, name) for name in ("resample", "image_mean", "image_std")}
    if image_processor.geometry == "crop":
        edge = image_processor.resize_edge or size["height"]
        return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=size, **options)
    if image_processor.geometry == "squash":
        return CLIPImageProcessorPil(size=size, do_center_crop=False, **options)
    return None


def to_openclip_preprocessing(image_processor: TierImageProcessor) -> tuple[dict, bool]:
    """`preprocess_cfg` of `open_clip_config.json`, and whether OpenCLIP makes exactly these pixels from it."""
    names = {ours: theirs for theirs, ours in FILTERS.items()}
    preprocess = {
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "interpolation": names.get(image_processor.resample, "bicubic"),
        "resize_mode": {ours: theirs for theirs, ours in RESIZE_MODES.items()}[image_processor.geometry],
    }
    return preprocess, not image_processor.resize_edge and image_processor.resample in names
