"""What the weights of a checkpoint are called where they were published."""

from pathlib import Path

from .source import CHEXZERO_NAME, Source

# Kinds that one publication alone has
TITLES = {"tier": "TIER", "biovil": "BioViL", "biovil_t": "BioViL-T", "chexficient": "CheXficient"}


def published_name(source: Source, name: str) -> str:
    """
    The publication, if the checkpoint shows it, else its name on the Hub, or that of its folder or file.

    Args:
        source (`Source`): The checkpoint.
        name (`str`): What the user called it.
    """
    if source.kind in TITLES:
        return TITLES[source.kind]
    if source.kind == "chexzero" and CHEXZERO_NAME.fullmatch(source.path.name):
        return "CheXzero"
    if source.kind == "openai" and "input_resolution" in source.tensors:  # which OpenAI's own code drops in training
        return "OpenAI CLIP"
    return source.path.resolve().name if Path(name).exists() else name.partition("@")[0]
