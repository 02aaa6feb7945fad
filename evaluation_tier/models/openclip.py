"""
Models of OpenCLIP, scored by its own library: the extra `[open_clip]`.

A folder in OpenCLIP's layout is read as `open_clip.create_model("local-dir:...")` reads it (open_clip_torch 3.3.0,
src/open_clip/factory.py:251-625), but no weights are unpickled, no code beside them runs, and what the folder lacks is
not downloaded.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from PIL import Image
from torch import nn

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.contract import WINDOW, Pixels, to_unit_length
from modeling_tier.checkpoints.openclip import CLIP_VOCABULARY, OPENCLIP_CONFIG, WEIGHT_FILES
from modeling_tier.checkpoints.tensor_files import read_json
from modeling_tier.configuration_tier import located
from processing_tier.hub_names import MODEL_NAME
from processing_tier.radiograph_tier import read_radiograph

FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]

SAFE_WEIGHTS = tuple(name for name in WEIGHT_FILES if name.endswith(".safetensors"))

PACKAGES = ("open_clip_torch", "timm", "torchvision")  # on which pixels and embeddings depend

TOKENIZER_OPTIONS = ("clean", "strip_sep_token")  # that only change the text; others could run code or draw at random


def is_open_clip(name: str | Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder, or a name on the Hub, is in OpenCLIP's layout and not also a model of transformers."""
    if "model_type" in config:
        return False
    if Path(name).is_dir():
        return (Path(name) / OPENCLIP_CONFIG).is_file()
    place = located(name)
    try:
        hf_hub_download(place.pop("pretrained_model_name_or_path"), OPENCLIP_CONFIG, **place)
    except Exception:  # the Hub's errors are of many kinds; loading the model says what is wrong
        return False
    return True


def folder_of_file(name: str | Path) -> str | Path:
    """
    The folder of an OpenCLIP model, for the file of its weights; any other name unchanged.

    Raises:
        ValueError: for a file of another kind, or one that is not the file that is read of its folder.
    """
    path = Path(name)
    if not path.is_file():
        return name
    folder = path.parent
    if path.name not in WEIGHT_FILES or not (folder / OPENCLIP_CONFIG).is_file():
        raise ValueError(
            f"The model {name} is a file, and only {OPENCLIP_CONFIG} beside weights of OpenCLIP says how they are "
            "read: name the folder of the model, or convert the file with tier-convert and name the folder that it "
            "writes."
        )
    read = next((file for file in SAFE_WEIGHTS if (folder / file).is_file()), path.name)
    if path.name != read:
        raise ValueError(f"{name} is not read, because {read} lies beside it: name that file, or the folder {folder}.")
    return folder


def check_open_clip(name: str | Path, folder: Path) -> None:
    """ValueError for a folder in OpenCLIP's layout without weights that may be read, or without the library."""
    if not any((folder / file).is_file() for file in SAFE_WEIGHTS):
        raise ValueError(
            f"The OpenCLIP model {name} has no weights as safetensors ({SAFE_WEIGHTS[0]}): pickled weights are "
            "never read here. If its towers are plain ones, tier-convert reads them; else docs/openclip.md has "
            "the lines that save them so."
        )
    import_open_clip(name)


def import_open_clip(name: str | Path) -> ModuleType:
    """The library; ValueError, with what to do, without it."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"The model {name} is OpenCLIP's and needs the package {error.name or 'open_clip'}: pip install "
            "'tier-clip[open_clip]'. If its towers are plain ones, tier-convert makes a model of it that does not."
        ) from error
    except Exception as error:  # torchvision of another version than torch raises a RuntimeError
        raise ValueError(
            f"The model {name} is OpenCLIP's, but the package open_clip does not start ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): install versions of torch and torchvision that fit together."
        ) from error
    return open_clip


def load_open_clip(name: str | Path, device: str | torch.device) -> "OpenClip":
    """
    Args:
        name: a folder, or a name on the Hub.

    Raises:
        ValueError: for settings that would run code or download, a missing or an unexpected tensor, a tokenizer that
            is not the model's, and without the library.
    """
    folder = Path(name)
    if not folder.is_dir():
        place = located(name)
        repository = place.pop("pretrained_model_name_or_path")
        folder = Path(snapshot_download(repository, **place, allow_patterns=FILES, ignore_patterns=["*/*"]))
        check_open_clip(name, folder)
    library = import_open_clip(name)
    settings = read_json(folder / OPENCLIP_CONFIG)
    text = check_settings(name, settings)
    if text.get("hf_model_name"):
        text["hf_model_name"] = find_text_config(name, text["hf_model_name"], may_download=not Path(name).is_dir())
    weights = next(folder / file for file in SAFE_WEIGHTS if (folder / file).is_file())
    place = f"local-dir:{folder}"
    untrained = dict.fromkeys(("load_weights", "pretrained_image", "pretrained_text"), False)  # nothing is downloaded
    options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    try:
        with quiet():
            model = library.create_model(place, text_cfg=text, **untrained)
            library.load_checkpoint(model, str(weights), strict=True)
            tokenizer = library.get_tokenizer(place, **options)
            preprocess = library.transform.image_transform_v2(
                library.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
            )
    except Exception as error:  # libraries raise many kinds here; all mean that this is not a usable model
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"The OpenCLIP model {name} does not load ({reason}).") from error
    check_vocabulary(name, tokenizer, getattr(model, "vocab_size", None) or model.text.vocab_size)  # the second: CoCa
    return OpenClip(model, tokenizer, preprocess, settings).to(device).eval()


def check_settings(name: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `text_cfg` of a model that neither downloads nor runs anything; ValueError for another one."""
    model = settings.get("model_cfg")
    parts = [model.get(key) for key in ("vision_cfg", "text_cfg")] if isinstance(model, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{OPENCLIP_CONFIG} of {name} lacks a model_cfg with a vision_cfg and a text_cfg.")
    vision, text = parts
    timm = vision.get("timm_model_name")
    if timm is not None and (not isinstance(timm, str) or any(mark in timm for mark in ":/\\")):
        raise ValueError(
            f"{OPENCLIP_CONFIG} of {name} asks for the image tower {timm!r}, which is not the name of an architecture "
            "of timm: write that name into it."
        )
    for key in text.get("tokenizer_kwargs") or {}:
        if key not in TOKENIZER_OPTIONS:
            raise ValueError(
                f"{OPENCLIP_CONFIG} of {name} gives its tokenizer the option {key!r}; known are "
                f"{', '.join(TOKENIZER_OPTIONS)}: evaluate the model with --adapter (docs/own_model.md)."
            )
    return {**text, "hf_model_pretrained": False}  # else the library downloads weights, and these replace them


def find_text_config(name: str | Path, text_model: Any, may_download: bool) -> str:
    """The folder with config.json of a text tower of transformers, in the cache of the Hub."""
    if not isinstance(text_model, str) or not MODEL_NAME.fullmatch(text_model):
        raise ValueError(f"{OPENCLIP_CONFIG} of {name} has the hf_model_name {text_model!r}, not a name on the Hub.")
    try:
        path = Path(hf_hub_download(text_model, "config.json", local_files_only=not may_download))
    except Exception as error:  # the Hub's errors are of many kinds
        raise ValueError(
            f"The text tower of {name} has the architecture of {text_model}, whose config.json is not on this "
            f"machine: run `hf download {text_model} config.json` first."
        ) from error
    if "auto_map" in read_json(path):
        raise ValueError(f"The text tower {text_model} of {name} needs code of its own, which is not run.")
    return str(path.parent)


def check_vocabulary(name: str | Path, tokenizer: Any, num_tokens: int) -> None:
    """ValueError for a tokenizer without words, or of another model."""
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers; without it, the library's own for CLIP
    if inner is not None and not inner.get_vocab().keys() - set(inner.all_special_tokens):
        raise ValueError(f"The tokenizer of {name} has only special tokens: put its vocabulary into the folder.")
    known = CLIP_VOCABULARY if inner is None else len(inner)
    if known > num_tokens or inner is None and known != num_tokens:
        raise ValueError(
            f"The tokenizer of {name} has {known} tokens, the model {num_tokens}: put the tokenizer of the model into "
            f"the folder, and set hf_tokenizer_name in {OPENCLIP_CONFIG}."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of the library, which says that a model is untrained before its weights are read."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


class OpenClip(nn.Module):
    """
    A model of OpenCLIP as an [`EvaluatedModel`]: its own towers, transforms and tokenizer.

    Args:
        model: has `encode_image` and `encode_text`.
        tokenizer: texts to ids of one length.
        preprocess: a PIL image of mode "RGB" to (3, height, width).
        settings: the content of open_clip_config.json.
    """

    decoding = WINDOW

    def __init__(self, model: nn.Module, tokenizer: Any, preprocess: Any, settings: Mapping[str, Any]):
        super().__init__()
        self.model, self.tokenizer, self.transform, self.settings = model, tokenizer, preprocess, settings

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels, of a square image."""
        size = self.model.visual.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return height if height == width else None

    @property
    def preprocessing(self) -> str:
        return json.dumps(["open_clip", self.model.visual.preprocess_cfg], sort_keys=True, default=str)

    @property
    def identity(self) -> str:
        versions = {package: version(package) for package in PACKAGES}
        parts = {"weights": hash_weights(self.model), "settings": self.settings, "versions": versions}
        return json.dumps(parts, sort_keys=True, default=str)

    def read_image(self, image: Any) -> Image.Image:
        return read_radiograph(image)

    def preprocess(self, image: Image.Image) -> Pixels:
        return self.transform(image.convert("RGB"))[None]

    def embed_images(self, pixels: Pixels) -> torch.Tensor:
        return to_unit_length(self.model.encode_image(pixels))

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        parts = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        ids = (self.tokenizer(part).to(self.device) for part in parts)
        return torch.cat([to_unit_length(self.model.encode_text(of_part)) for of_part in ids])
