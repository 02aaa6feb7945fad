"""Checks of a folder of transformers before its weights are read."""

from pathlib import Path

from transformers import is_sentencepiece_available
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME

from .tensor_files import check_pickle, read_json

MODEL_JSON_LIMIT = 64 * 2**20  # bytes; a multilingual tokenizer has half of it, and a training log less
ADAPTER = "adapter_config.json"
SIGLIP_VOCABULARY = "spiece.model"


def check_not_adapter(folder: str | Path) -> None:
    """Raises ValueError for a folder that holds a LoRA adapter without its model."""
    folder = Path(folder)
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"The folder {folder} holds only a LoRA adapter ({ADAPTER}). Merge it into its model (peft's "
            "merge_and_unload, then save_pretrained), and pass the folder of the merged model."
        )


def check_model_folder(folder: str | Path) -> None:
    """
    Checks the weights that a folder names: they must be inside it, and pickled ones must hold only tensors.

    Args:
        folder (`str` or `Path`): Folder of a model; anything else, such as a name on the Hub, passes.

    Raises:
        ValueError: An index of weights is damaged or names a file outside the folder, a pickle is not safe to read, a
            JSON file is too large, or the tokenizer is SigLIP's and cannot be read.
    """
    folder = Path(folder)
    for path in sorted(folder.glob("*.json")):
        if path.is_file() and path.stat().st_size > MODEL_JSON_LIMIT:
            raise ValueError(f"{path} is larger than {MODEL_JSON_LIMIT >> 20} MiB; download it again.")
    check_siglip_vocabulary(folder)
    for index in (folder / SAFE_WEIGHTS_INDEX_NAME, folder / WEIGHTS_INDEX_NAME):
        if index.is_file():
            check_index(index)
    if not (folder / SAFE_WEIGHTS_NAME).is_file() and not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        for path in sorted(folder.glob("pytorch_model*.bin")):
            if path.is_file():
                check_pickle(path)


def check_siglip_vocabulary(folder: Path) -> None:
    """Raises ValueError for the tokenizer of SigLIP without its vocabulary, or without the package that reads it."""
    config = folder / "tokenizer_config.json"
    if not config.is_file() or '"SiglipTokenizer"' not in config.read_text(encoding="utf-8", errors="replace"):
        return
    if not (folder / SIGLIP_VOCABULARY).is_file():
        raise ValueError(
            f"{folder} holds the tokenizer of SigLIP without its vocabulary; put the file {SIGLIP_VOCABULARY} of the "
            "model's release into the folder."
        )
    if not is_sentencepiece_available():
        raise ValueError(
            f"{folder} holds the tokenizer of SigLIP, which needs the package sentencepiece: pip install "
            "'tier-clip[siglip]'."
        )


def check_index(index: Path) -> None:
    """Raises ValueError for an index of weights whose files are not plain names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} lacks a weight_map from tensors to files; download the model again.")
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise ValueError(
                f"{index} names the file {name!r}, which is outside the model's folder, so it was not read. Get the "
                "model from its owner again."
            )
