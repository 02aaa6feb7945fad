"""Finds out the kind of a checkpoint, and reads its tensors and settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .biovil import CXR_BERT_TYPE, IMAGE_FILES, IMAGE_SIZES
from .openclip import OPENCLIP_CONFIG, WEIGHT_FILES
from .refusals import refuse_file, refuse_kind, refuse_model_type, refuse_other_models, refuse_settings
from .tensor_files import read_arguments, read_json, read_tensors

CLIP_LAYOUT = ("openai", "chexzero", "openclip")
KINDS = (*CLIP_LAYOUT, "clip", "tier", "biovil", "biovil_t", "biomedclip", "chexficient")
OPENCLIP_KINDS = ("openclip", "biomedclip")  # have an open_clip_config.json
# The released files are called best_<batch>_<learning rate>_original_<step>_<score>.pt (notebooks/zero_shot.ipynb).
CHEXZERO_NAME = re.compile(r"best_\d+_[\de.-]+_original_\d+_[\d.]+\.pt")
CHEXFICIENT_TENSOR = "image_projection.projection.weight"
CHEXZERO_SHAPE = {"patch": 16, "image": 320, "dim": 768}  # what `--random_init` makes (train.py:129-140)


@dataclass
class Source:
    """
    A checkpoint as stored on disk.

    Args:
        path (`Path`): A file, or the folder of a model.
        kind (`str`): One of `KINDS`.
        tensors (`dict[str, torch.Tensor]`): By their original names; empty for a folder of transformers.
        settings (`dict`): Content of `open_clip_config.json`, if it exists.
        arguments (`dict`): TIER's training arguments, if the file has them.
    """

    path: Path
    kind: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder itself, or the one of the file."""
        return self.path if self.path.is_dir() else self.path.parent


def open_source(path: str | Path, kind: str | None = None) -> Source:
    """
    Reads a checkpoint and detects its kind.

    Args:
        path (`str` or `Path`): A file, or the folder of a model (transformers or OpenCLIP).
        kind (`str`, *optional*):
            One of `KINDS`, for a file that does not show its kind: the tensors of OpenAI, CheXzero and OpenCLIP have
            the same names and shapes.

    Raises:
        ValueError: The file does not exist, cannot be read safely, or is not of a known kind or not of this `kind`.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"The file or folder {str(path)!r} does not exist; name a checkpoint on this machine.")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{str(path)!r} is a pipe or a device, not a file or folder; name a checkpoint.")
    if path.is_dir():
        source = open_folder(path)
        if kind not in (None, source.kind):
            raise ValueError(f"{path} is of the kind {source.kind!r}, not {kind!r}; leave the kind out.")
        return source
    refuse_file(path)
    tensors, container = read_tensors(path)
    beside = path.parent / OPENCLIP_CONFIG
    settings = read_json(beside) if beside.is_file() and path.name in WEIGHT_FILES else {}
    refuse_settings(path, settings)
    found = detect_kind(path.name, tensors, container, bool(settings))
    layout = CLIP_LAYOUT if found is None else (found,)
    if found in CLIP_LAYOUT and kind in CLIP_LAYOUT:  # the user may know better than the name of a file
        layout = CLIP_LAYOUT
    if kind not in (None, *layout):
        raise ValueError(f"{path.name} has the tensors of the kind {' or '.join(layout)}, not {kind}.")
    if kind is None and found is None:
        raise ValueError(
            f"{path.name} may come from OpenAI, CheXzero or OpenCLIP: their tensors have the same names, but they "
            "expect different pixels. Pass --kind openai, --kind chexzero or --kind openclip."
        )
    if found == "tier":
        return Source(path, "tier", tensors, arguments=read_arguments(path))
    return Source(path, kind or found, tensors, settings if (kind or found) in OPENCLIP_KINDS else {})


def open_folder(path: Path) -> Source:
    """The source of a folder; `from_pretrained` reads the tensors of a folder of transformers later."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") in ("clip", TierCLIPConfig.model_type):
        return Source(path, "clip")
    if (path / OPENCLIP_CONFIG).is_file():
        weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if weights is None:
            raise ValueError(f"{path} has {OPENCLIP_CONFIG} but lacks the weights ({', '.join(WEIGHT_FILES)}).")
        settings = read_json(path / OPENCLIP_CONFIG)
        refuse_settings(path, settings)
        refuse_file(weights)
        tensors, container = read_tensors(weights)
        kind = detect_kind(weights.name, tensors, container, has_settings=True)
        refuse_kind(weights, kind, (*CLIP_LAYOUT, "biomedclip"), OPENCLIP_CONFIG)
        return Source(path, kind, tensors, settings)
    if config.get("model_type") == TierDualEncoderConfig.model_type:
        raise ValueError(f"{path} is already a TierDualEncoderModel, which cannot be converted.")
    image_file = next((path / name for name in IMAGE_FILES if (path / name).is_file()), None)
    if config.get("model_type") == CXR_BERT_TYPE and image_file is not None:  # a repository of BioViL
        refuse_file(image_file)
        tensors, container = read_tensors(image_file)
        kind = detect_kind(image_file.name, tensors, container, False)
        refuse_kind(image_file, kind, tuple(IMAGE_SIZES), "the configuration of a CXR-BERT")
        return Source(path, kind, tensors)
    if is_chexficient(path / SAFE_WEIGHTS_NAME):
        return Source(path, "chexficient", read_tensors(path / SAFE_WEIGHTS_NAME)[0])
    if "chexficient" in str(config.get("model_type")).lower() and (path / WEIGHTS_NAME).is_file():
        source = open_source(path / WEIGHTS_NAME)
        refuse_kind(source.path, source.kind, ("chexficient",), "CheXficient's configuration")
        return Source(path, source.kind, source.tensors)
    if config:
        refuse_model_type(path, config)
    raise ValueError(
        f"{path} does not hold a model: config.json (transformers) and {OPENCLIP_CONFIG} (OpenCLIP) are missing. Name "
        "the checkpoint file itself, or another folder."
    )


def is_chexficient(weights: Path) -> bool:
    """
    Whether a file of safetensors holds CheXficient, whose configuration has a model type of its own; ValueError for a
    damaged one.
    """
    if not weights.is_file():
        return False
    refuse_file(weights)
    try:
        with safe_open(weights, "pt") as file:
            return CHEXFICIENT_TENSOR in file.keys()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights.name} cannot be read: it is damaged or cut short ({error}).") from None


def detect_kind(name: str, tensors: Mapping[str, torch.Tensor], container: str, has_settings: bool) -> str | None:
    """One of `KINDS`; None for tensors in CLIP's layout whose code base is unknown."""
    refuse_other_models(name, tensors)
    if "cnn.encoder.encoder.conv1.weight" in tensors:
        return "tier"
    if "encoder.backbone_to_vit.weight" in tensors:
        return "biovil_t"
    if "encoder.encoder.conv1.weight" in tensors:
        return "biovil"
    if CHEXFICIENT_TENSOR in tensors:
        return "chexficient"
    if any(key.startswith("visual.trunk.") for key in tensors):
        return "biomedclip"
    if "visual.conv1.weight" not in tensors:
        if any(key.startswith(("vision_model.", "text_model.")) for key in tensors):
            raise ValueError(f"{name} holds the weights of a model of transformers; name its folder instead.")
        raise ValueError(
            f"{name} is not of a kind that can be converted ({', '.join(KINDS)}). Its first tensors are "
            f"{', '.join(list(tensors)[:3])}."
        )
    if container == "torchscript" or "input_resolution" in tensors:
        return "openai"
    if has_settings or container in ("safetensors", "state_dict") or any(key.startswith("text.") for key in tensors):
        return "openclip"
    if CHEXZERO_NAME.fullmatch(name):
        return "chexzero"
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    grid = CHEXZERO_SHAPE["image"] // CHEXZERO_SHAPE["patch"]
    if (
        shapes["visual.conv1.weight"][2:] == (CHEXZERO_SHAPE["patch"],) * 2
        and shapes.get("visual.positional_embedding", ())[:1] == (grid**2 + 1,)
        and shapes.get("visual.proj", ())[1:] == (CHEXZERO_SHAPE["dim"],)
    ):
        return "chexzero"
    return None
