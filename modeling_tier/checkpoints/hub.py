"""Fetches the checkpoint of a name on the Hub: the files that a conversion reads, and no code."""

from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..configuration_tier import located
from .biovil import IMAGE_FILES
from .openclip import WEIGHT_FILES

SETTINGS = ("*.json", "vocab.txt", "merges.txt")


def download_checkpoint(name: str) -> Path:
    """
    The folder of a model on the Hub, in the cache of huggingface_hub. Without a network, a download from before.

    Args:
        name (`str`): `"owner/name"`, or `"owner/name@revision"`.

    Raises:
        ValueError: The model is neither on the Hub nor in the cache, or is not public.
    """
    place = located(name)
    repository, revision = place["pretrained_model_name_or_path"], place.get("revision")
    try:
        try:
            files = list_repo_files(repository, revision=revision)
        except Exception:  # without a network: whatever an earlier download fetched
            weights = list(WEIGHT_FILES)
        else:
            of_transformers = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) if CONFIG_NAME in files else ()
            order = (*of_transformers, *WEIGHT_FILES)
            weights = next(([file] for file in order if file in files), ["*.safetensors"])  # one form of them
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*SETTINGS, *IMAGE_FILES, *weights],
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # the many ways in which a download fails
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"The checkpoint {name!r} cannot be fetched from the Hub ({type(error).__name__}: {reason[:200]}). Check "
            "the name and the network, or download it and name its folder."
        ) from None
