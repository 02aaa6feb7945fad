"""Models that bring their own code (`auto_map` in their config). It runs only with --trust_remote_code, which needs a
commit that cannot change, or a folder.
"""

import hashlib
import inspect
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from evaluation_tier.models.clip import ClipFamily
from evaluation_tier.models.contract import Pixels, to_unit_length
from modeling_tier.configuration_tier import located
from modeling_tier.texts_tier import FAMILIES

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")

WITH_CODE = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


def check_pinned(name: str) -> None:
    """ValueError for a name on the Hub without a commit, whose code may be another one tomorrow."""
    place = located(name)
    if not os.path.isdir(name) and not COMMIT.fullmatch(place.get("revision", "")):
        raise ValueError(
            f"--trust_remote_code runs the code of {name}, which may change: name the commit that you have read, "
            f"{place['pretrained_model_name_or_path']}@ and 40 hexadecimal digits, or download the model to a folder."
        )


def check_own_code(name: str) -> None:
    """ValueError for a model whose files name the code of another repository, which no commit here pins."""
    options = {"_raise_exceptions_for_missing_entries": False}
    place = located(name)
    repository = place.pop("pretrained_model_name_or_path")
    for file in WITH_CODE:
        path = cached_file(repository, file, **place, **options)
        for reference in references(json.loads(Path(path).read_text(encoding="utf-8"))) if path else ():
            if "--" in reference:
                raise ValueError(
                    f"{file} of {name} takes its code from another repository ({reference}), whose commit is not "
                    "pinned: download both to a folder and name the code's file there."
                )


def references(config: Any) -> Iterator[str]:
    """The classes that a JSON file names in `auto_map`, at any depth."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from texts_in(value) if key == "auto_map" else references(value)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def is_remote(model: Any) -> bool:
    """Whether the class of a model came with its weights."""
    return type(model).__module__.startswith("transformers_modules.")


def describe_code(model: PreTrainedModel) -> dict[str, Any]:
    """What metrics.json says of the code that ran: the model's class, and the SHA-256 of each file beside its own."""
    folder = Path(inspect.getfile(type(model))).parent
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.py"))}
    return {
        "class": type(model).__name__,
        "files": {name: digest for name, digest in files.items() if name != "__init__.py"},
    }


def check_remote(name: str, model: Any) -> None:
    """Warn of what is assumed of a model with its own code, or that it has none."""
    if not is_remote(model):
        logger.warning("--trust_remote_code has no effect on %s, which does not need code of its own.", name)
    elif model.config.model_type not in FAMILIES:
        logger.warning(
            "The texts of %s are padded to the longest and masked, as CLIP's are. If its owner's code pads otherwise, "
            "the scores are wrong: then use --adapter (docs/own_model.md).",
            name,
        )


class RemoteFamily(ClipFamily):
    """A model with its own code as an [`EvaluatedModel`]: its processor's pixels, and its tokenizer's texts with their
    mask."""

    def embed_images(self, pixels: Pixels) -> torch.Tensor:
        return to_unit_length(pooled(self.model.get_image_features(pixel_values=pixels)))

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        tokenizer, parts = self.processor.tokenizer, []
        text_config = getattr(self.model.config, "text_config", None)
        limit = min(
            tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", tokenizer.model_max_length)
        )
        for start in range(0, len(texts), batch_size):
            part = list(texts[start : start + batch_size])
            inputs = tokenizer(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            inputs = {key: inputs[key].to(self.device) for key in ("input_ids", "attention_mask") if key in inputs}
            parts.append(to_unit_length(pooled(self.model.get_text_features(**inputs))))
        return torch.cat(parts)


def pooled(features: Any) -> torch.Tensor:
    """The embeddings (batch, dim) of either kind of result: transformers 4 returned the tensor itself."""
    return features if isinstance(features, torch.Tensor) else features.pooler_output
