"""What a checkpoint of sentence-transformers says about its texts: their pooling, length and case."""

import json
import os
import re
from typing import Any, NamedTuple

from transformers.utils import cached_file

from .configuration_tier import located

MODULES = "modules.json"
TRANSFORMER_FILES = tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta"))
LIMIT = 2**20  # bytes; these files have a few hundred
FOLDER = re.compile(r"\w[\w.-]*")  # one folder inside the checkpoint, such as 1_Pooling

# The names of the modes, and of the switches by which versions before 5.4 say the same
FLAG = re.compile(r"pooling_mode_(\w+?)(?:_tokens?)?")
POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "eos"}  # to those of `pooling_tier.TEXT_POOLINGS`


class SentenceSettings(NamedTuple):
    """`None` and `False` where the checkpoint does not say it."""

    pooling: str | None = None  # one of sentence-transformers' modes
    max_length: int | None = None  # tokens
    lower_case: bool = False


def read_sentence_settings(name: str | os.PathLike) -> SentenceSettings:
    """
    The settings in `modules.json`, in the `config.json` of the pooling's folder, and in `sentence_bert_config.json`
    (huggingface/sentence-transformers at 03ba732, `sentence_transformers/sentence_transformer/modules/pooling.py`).

    Args:
        name (`str` or `os.PathLike`): Folder of a text encoder, or its name on the Hub; see [`located`].

    Raises:
        ValueError: A file is damaged, or names a folder outside the checkpoint.
    """
    modules = read_file(name, MODULES)
    if modules is None:
        return SentenceSettings()
    pooling = None
    for module in modules if isinstance(modules, list) else [modules]:
        kind, folder = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise ValueError(f"{MODULES} of {str(name)!r} does not list modules with a type and a path; get it again.")
        if kind.rpartition(".")[2] == "Pooling":
            if not FOLDER.fullmatch(folder):
                raise ValueError(f"{MODULES} of {str(name)!r} names the folder {folder!r}, which is not inside it.")
            pooling = pooling_mode(read_file(name, f"{folder}/config.json") or {})
    settings: dict = next(filter(None, (read_file(name, file) for file in TRANSFORMER_FILES)), {})
    length = settings.get("max_seq_length")
    return SentenceSettings(pooling, length if isinstance(length, int) else None, bool(settings.get("do_lower_case")))


def pooling_mode(config: dict) -> str:
    """The mode of a pooling's configuration, or several ones joined by `+`; without any, it is the mean."""
    stated = config.get("pooling_mode")
    if stated is None:
        flags = ((FLAG.fullmatch(key), value) for key, value in config.items())
        stated = [match[1] for match, value in flags if match and value is True]
    modes = [stated] if isinstance(stated, str) else list(stated)
    return "+".join(map(str, modes)) or "mean"


def text_pooling(settings: SentenceSettings, name: str | os.PathLike) -> str | None:
    """
    The field `text_pooling` of [`TierDualEncoderConfig`] that these settings ask for; `None` if they do not say.

    Raises:
        ValueError: The checkpoint pools its texts in a way that this project does not have.
    """
    if settings.pooling is None or settings.pooling in POOLINGS:
        return POOLINGS.get(settings.pooling)
    raise ValueError(
        f"The text model {str(name)!r} pools its tokens by {settings.pooling!r}, which is not supported; set "
        f"text_pooling to one of {', '.join(POOLINGS.values())}, or choose another text model."
    )


def read_file(name: str | os.PathLike, file: str) -> Any:
    """The content of a JSON file of a checkpoint; `None` without the file."""
    try:
        place = located(name)
        path = cached_file(
            place["pretrained_model_name_or_path"],
            file,
            revision=place.get("revision"),
            _raise_exceptions_for_missing_entries=False,
        )
        if path is None:
            return None
        if os.path.getsize(path) > LIMIT:
            raise ValueError(f"it has more than {LIMIT >> 20} MiB")
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{file} of the text model {str(name)!r} cannot be read: {reason}.") from error
