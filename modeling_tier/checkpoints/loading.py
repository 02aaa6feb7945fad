"""The model of a checkpoint, and the assumptions made."""

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from .biovil import load_biovil
from .clip import load_clip, load_clip_folder
from .source import Source
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
        text_folder (`str` or `Path`, *optional*): BioViL's text tower, the folder of CXR-BERT.

    Returns:
        [`TierCLIPModel`] or, for `"tier"` and `"biovil"`, [`TierDualEncoderModel`].

    Raises:
        ValueError: The checkpoint does not match the model, or an option does not apply to it.
    """
    if activation is not None and (source.kind != "openclip" or source.settings):
        raise ValueError(f"The checkpoint ({source.kind}) fixes the activation; leave --activation out.")
    if source.kind == "biovil" and text_folder is None:
        raise ValueError("BioViL's file holds only the image tower. Pass the folder of CXR-BERT with --text_model.")
    if source.kind != "biovil" and text_folder is not None:
        raise ValueError(f"--text_model does not apply to a checkpoint of the kind {source.kind!r}; leave it out.")
    if source.kind == "clip":
        return load_clip_folder(source.path)
    if source.kind == "tier":
        return load_tier(source.tensors, source.arguments)
    if source.kind == "biovil":
        return load_biovil(source.tensors, Path(text_folder))
    return load_clip(source, activation)


def describe_assumptions(source: Source, config: PreTrainedConfig, activation: str | None = None) -> list[str]:
    """Notes for the user: the checkpoint's facts about its training, or the assumptions in their place."""
    if source.kind == "openclip" and not source.settings and activation is None:
        return [
            "open_clip_config.json is missing, so the activation is assumed to be gelu. If the model has quick_gelu, "
            "convert again with --activation quick_gelu."
        ]
    if source.kind != "tier":
        return []
    if not WEIGHTS.keys() & source.arguments.keys():
        return [
            "the checkpoint does not say with which entropy weights it was trained, so both are 0. To train it "
            "further, pass --token_entropy_weight and --patch_entropy_weight."
        ]
    weights = ", ".join(f"{ours}={getattr(config, ours):g} ({theirs})" for theirs, ours in WEIGHTS.items())
    return [f"the checkpoint was trained with {weights}."]
