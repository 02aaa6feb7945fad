"""The model of a checkpoint."""

from pathlib import Path

from .biovil import load_biovil
from .clip import load_clip, load_clip_folder
from .source import Source
from .tier import load_tier


def load_source(source: Source, activation: str | None = None, text_folder: str | Path | None = None):
    """
    Make the model of a checkpoint, in float32 and evaluation mode.

    Args:
        source ([`Source`]): From [`open_source`].
        activation (`str`, *optional*):
            `"gelu"` (the default, as in OpenCLIP) or `"quick_gelu"`, for an OpenCLIP checkpoint without its
            configuration; its tensors do not tell.
        text_folder (`str` or `Path`, *optional*): BioViL's text tower, the folder of CXR-BERT.

    Returns:
        [`TierCLIPModel`] or, for `"tier"` and `"biovil"`, [`TierDualEncoderModel`].

    Raises:
        ValueError: the checkpoint is not what the model needs, or an option has no effect on it.
    """
    if activation is not None and (source.kind != "openclip" or source.settings):
        raise ValueError(f"The activation is known for this checkpoint ({source.kind}); leave --activation out.")
    if source.kind == "biovil" and text_folder is None:
        raise ValueError("BioViL's file holds the image tower alone; give the folder of CXR-BERT with --text_model.")
    if source.kind != "biovil" and text_folder is not None:
        raise ValueError(f"--text_model has no effect on a checkpoint of the kind {source.kind!r}; leave it out.")
    if source.kind == "clip":
        return load_clip_folder(source.path)
    if source.kind == "tier":
        return load_tier(source.tensors, source.arguments)
    if source.kind == "biovil":
        return load_biovil(source.tensors, Path(text_folder))
    return load_clip(source, activation)
