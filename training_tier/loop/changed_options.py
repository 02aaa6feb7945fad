"""
Compares the options, data and model of a resumed run with those of its checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from modeling_tier.checkpoints.tensor_files import read_json
from training_tier.loop.integrity import RUN_OPTIONS, reading
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import Options

logger = logging.get_logger(__name__)

# Options that change neither the losses nor the weights nor which checkpoint is the best.
FREE_PREFIXES = ("dataloader_pin", "dataloader_prefetch", "ddp_", "hub_", "log_", "logging_", "push_to_hub", "save_")

FREE_OPTIONS = {
    "debug",
    "disable_tqdm",
    "do_eval",
    "do_predict",
    "do_train",
    "enable_jit_checkpoint",
    "include_num_input_tokens_seen",
    "local_rank",
    "output_dir",
    "project",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "resume_changed",
    "resume_from_checkpoint",
    "run_name",
    "skip_memory_metrics",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
}

FREE_DATA_OPTIONS = {
    "cache_features",  # but whether features are cached counts, as they are rounded
    "columns",
    "data",
    "image_cache",
    "image_root",
}  # where the data are; the digest compares them

# Fields of a configuration that do not describe the network, or that a training sets itself.
FREE_FIELDS = {
    "_name_or_path",
    "auto_map",
    "dtype",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "zero_shot_findings",  # an evaluation measures them
}


def digest(records: datasets.Dataset) -> str:
    """
    A hash of the ids, texts, labels and splits of records in their order, and (with streaming) of their row groups.
    Pixels and the locations of files do not count.
    """
    names = [
        name
        for name, feature in records.features.items()
        if isinstance(feature, datasets.Value) and name not in ("image", "report", "shard")
    ]
    frame = records.select_columns(sorted(names)).to_pandas()
    return sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()[:12]


def run_options(options: Options, train_records: datasets.Dataset, eval_records: datasets.Dataset) -> dict:
    """Every option that changes the losses, the weights, or the choice of the best checkpoint, with its value."""
    task, model_arguments, data_arguments, training_arguments, _ = options
    described = asdict(task) | asdict(model_arguments)
    for name in model_arguments.config_overrides():
        del described[name]  # these are in the model's configuration, see check_model
    described |= {name: value for name, value in asdict(data_arguments).items() if name not in FREE_DATA_OPTIONS}
    for name, value in training_arguments.to_dict().items():
        if name not in FREE_OPTIONS and not name.startswith(FREE_PREFIXES):
            described[name] = value
    described["cached features"] = data_arguments.cache_features is not None
    if not data_arguments.streaming:  # with streaming, their number sets the order of the images
        del described["dataloader_num_workers"]
    described["number of processes"] = training_arguments.world_size
    described["data"] = {
        "images": f"{len(train_records)} and {len(eval_records)} images of {data_arguments.data}",
        "digest": f"{digest(train_records)} {digest(eval_records)}",
    }
    return json.loads(json.dumps(described, default=str))


def describe_data(data: Mapping) -> str:
    return f"{data['images']} (digest {data['digest']})"


def check_options(checkpoint: str, options: Mapping, allow: bool) -> None:
    """
    Args:
        checkpoint (`str`): to resume from.
        options (`Mapping`): see [`run_options`].
        allow (`bool`): warn of a change instead of refusing it.

    Raises:
        `ValueError`: an option that changes the result differs from the checkpoint's.
    """
    file = Path(checkpoint, RUN_OPTIONS)
    if not file.is_file():
        logger.warning(f"{checkpoint} does not name the options of its run; they are not compared with this run's.")
        return
    before = read_json(file)
    if not isinstance(before.get("data"), dict) or not before["data"].keys() >= {"images", "digest"}:
        raise ValueError(f"{file} does not name the data of the run; resume from another checkpoint, or start again.")
    changes = []
    for name in sorted(before.keys() & options.keys()):
        if name == "data":
            if before[name]["digest"] != options[name]["digest"]:
                changes.append(f"data was {describe_data(before[name])} and is {describe_data(options[name])}")
        elif before[name] != options[name]:
            changes.append(f"{name} was {before[name]!r} and is {options[name]!r}")
    refuse_changes(checkpoint, changes, allow)


def refuse_changes(checkpoint: str, changes: list[str], allow: bool) -> None:
    if not changes:
        return
    if not allow:
        raise ValueError(
            f"These options differ from those of the checkpoint {checkpoint}: {'; '.join(changes)}. Set them back, or "
            "add --resume_changed true to resume with the change."
        )
    logger.warning(f"The run resumes with changes: {'; '.join(changes)}.")


def flatten(config: Mapping, prefix: str = "") -> dict:
    """The fields of a configuration and its nested ones, such as `"vision_config.hidden_size"`."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name in FREE_FIELDS or name.endswith("_token_id"):  # the tokenizers are compared instead
            continue
        if isinstance(value, Mapping):
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def check_model(
    checkpoint: str, model: PreTrainedModel, processing_class: ProcessorMixin | PreTrainedTokenizerBase, allow: bool
) -> None:
    """
    Args:
        checkpoint (`str`): to resume from.
        model ([`PreTrainedModel`]), processing_class: of the run that resumes.
        allow (`bool`): warn of another loss (entropy weights and the like) instead of refusing it.

    Raises:
        `ValueError`: the checkpoint has another network or tokenizer, or the loss has changed.
    """
    if not Path(checkpoint, "config.json").is_file():  # only an adapter
        return
    stored = read_json(Path(checkpoint, "config.json"))
    kind, other_kind = model.config.model_type, stored.get("model_type")
    if kind != other_kind:
        raise ValueError(
            f"{checkpoint} belongs to another model: it is of type {other_kind!r}, and this run's is of type {kind!r}."
        )
    with reading("configuration", checkpoint):
        configs = type(model.config).from_pretrained(checkpoint), model.config
        before, now = (flatten(json.loads(json.dumps(config.to_dict(), default=str))) for config in configs)
    now["architectures"] = [type(model).__name__]
    differing = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    for name in differing:
        if name == "image_size" or name not in ModelArguments.__dataclass_fields__:
            raise ValueError(
                f"{checkpoint} belongs to another model: its {name} is {before[name]!r}, and this run's is "
                f"{now[name]!r}."
            )
    refuse_changes(checkpoint, [f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing], allow)
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        with reading("tokenizer", checkpoint):
            words, other_words = tokenizer.get_vocab(), type(tokenizer).from_pretrained(checkpoint).get_vocab()
        if words != other_words:
            lacking = len(words.items() - other_words.items())
            raise ValueError(
                f"{checkpoint} belongs to another model: its tokenizer lacks {lacking} of the {len(words)} tokens of "
                "this run, or numbers them differently."
            )
