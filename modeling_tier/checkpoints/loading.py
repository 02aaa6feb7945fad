"""The model of a checkpoint, and the assumptions made."""

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from .biomedclip import load_biomedclip
from .biovil import CXR_BERT_TYPE, IMAGE_SIZES, load_biovil
from .chexficient import load_chexficient
from .clip import load_clip, load_clip_folder
from .source import Source
from .tensor_files import read_json
from .tier import WEIGHTS, load_tier


def load_source(
    source: Source, activation: str | None = None, text_folder: str | Path | None = None
) -> PreTrainedModel:
    """
    Makes the model of a checkpoint, in float32 and evaluation mode.

    Args:
        source ([`Source`]): From [`open_source`].
        activation (`str`, *optional*):
            `"gelu"` (the default, as in OpenCLIP) or `"quick_gelu"`, for an OpenCLIP checkpoint without its
            configuration. Its tensors do not show the activation.
        text_folder (`str` or `Path`, *optional*):
            BioViL's text tower, the folder of CXR-BERT; by default the folder of the checkpoint, if it holds one.

    Returns:
        [`TierCLIPModel`], or [`TierDualEncoderModel`] for models with other towers than CLIP's.

    Raises:
        ValueError: The checkpoint does not match the model, or an option does not apply to it.
    """
    if activation is not None and (source.kind != "openclip" or source.settings):
        raise ValueError(f"The checkpoint ({source.kind}) fixes the activation; leave --activation out.")
    is_biovil = source.kind in IMAGE_SIZES
    if is_biovil and text_folder is None:
        text_folder = beside_cxr_bert(source.folder)
    if not is_biovil and text_folder is not None:
        raise ValueError(f"--text_model does not apply to a checkpoint of the kind {source.kind!r}; leave it out.")
    if source.kind == "clip":
        return load_clip_folder(source.path)
    if source.kind == "tier":
        return load_tier(source.tensors, source.arguments)
    if is_biovil:
        return load_biovil(source.kind, source.tensors, Path(text_folder))
    if source.kind == "biomedclip":
        return load_biomedclip(source.tensors, source.settings)
    if source.kind == "chexficient":
        return load_chexficient(source.tensors)
    return load_clip(source, activation)


def beside_cxr_bert(folder: Path) -> Path:
    """The folder, if it holds a CXR-BERT, as repositories of BioViL do; ValueError otherwise."""
    config = folder / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != CXR_BERT_TYPE:
        raise ValueError("BioViL's file holds only the image tower. Pass the folder of CXR-BERT with --text_model.")
    return folder


def describe_assumptions(source: Source, config: PreTrainedConfig, activation: str | None = None) -> list[str]:
    """Notes for the user: the checkpoint's facts about its training, or the assumptions in their place."""
    if source.kind == "openclip" and not source.settings and activation is None:
        return [
            "open_clip_config.json is missing, so the activation is assumed to be gelu. If the model has quick_gelu, "
            "convert again with --activation quick_gelu."
        ]
    if source.kind == "biomedclip" and not source.settings:
        return [
            "open_clip_config.json is missing, so its settings are assumed to be BiomedCLIP's: [CLS] of the text, the "
            "class token of the image, 256 tokens, and OpenAI's pixels. Put the file beside the checkpoint if the "
            "model is another one."
        ]
    if source.kind == "biovil_t":
        return ["the model embeds single images; BioViL-T's comparison with an earlier image is left out."]
    if source.kind != "tier":
        return []
    if not WEIGHTS.keys() & source.arguments.keys():
        return [
            "the checkpoint does not say with which entropy weights it was trained, so both are 0. To train it "
            "further, pass --token_entropy_weight and --patch_entropy_weight."
        ]
    weights = ", ".join(f"{ours}={getattr(config, ours):g} ({theirs})" for theirs, ours in WEIGHTS.items())
    return [f"the checkpoint was trained with {weights}."]
