"""Whether a run goes on as it began: which checkpoint is whole, and what it was made with."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import datasets
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from modeling_tier.checkpoints.tensor_files import read_json
from training_tier.loop.checkpoints import list_checkpoints
from training_tier.loop.integrity import RUN_OPTIONS, find_fault, reading
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments

logger = logging.get_logger(__name__)

UNFINISHED = "_saving"  # folder in output_dir of what is being written

# Options of the training that change neither the losses nor the weights nor which checkpoint is the best.
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

FREE_DATA_OPTIONS = {"columns", "data", "image_cache", "image_root"}  # where they lie; what they are, the digest tells

# Of a configuration: what says nothing about the network, or is set by a training itself.
FREE_FIELDS = {
    "_name_or_path",
    "auto_map",
    "dtype",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "zero_shot_findings",  # which an evaluation measures
}


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of a run, by its step; a warning for each newer one that is not whole."""
    if not os.path.isdir(output_dir):
        return None
    for folder in reversed(list_checkpoints(output_dir).values()):
        checkpoint = os.path.join(output_dir, folder.name)
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning(f"{checkpoint} is not whole and is passed over: {fault}.")
    return None


def choose_checkpoint(checkpoint: str | None, output_dir: str | os.PathLike) -> str | None:
    """
    The folder to resume from: the last whole one of `output_dir` for `"last"`, `None` where that is not asked for.

    Raises:
        `ValueError`: there is none, or the one that was named is not whole.
    """
    if checkpoint == "last":
        checkpoint = last_checkpoint(output_dir)
        if checkpoint is None:
            raise ValueError(f"output_dir {os.fspath(output_dir)!r} holds no whole checkpoint to resume from.")
    elif checkpoint is not None and (fault := find_fault(checkpoint)):
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} is no whole checkpoint: {fault}; name another, or "
            "--resume_from_checkpoint last."
        )
    return checkpoint


def digest(records: datasets.Dataset) -> str:
    """
    Of the ids, texts, labels and splits of records, in their order, and (with streaming) of how they are divided into
    row groups; not of pixels, and not of the places where files lie.
    """
    names = [
        name
        for name, feature in records.features.items()
        if isinstance(feature, datasets.Value) and name not in ("image", "report", "shard")
    ]
    frame = records.select_columns(sorted(names)).to_pandas()
    return sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()[:12]


def run_options(
    task: TaskArguments,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: TierTrainingArguments,
    train_records: datasets.Dataset,
    eval_records: datasets.Dataset,
) -> dict:
    """Name to value of all that losses, final weights, or the choice of the best checkpoint depend on."""
    options = asdict(task) | asdict(model_arguments)
    for name in model_arguments.config_overrides():
        del options[name]  # what the model has of these is in its configuration, see check_model
    options |= {name: value for name, value in asdict(data_arguments).items() if name not in FREE_DATA_OPTIONS}
    for name, value in training_arguments.to_dict().items():
        if name not in FREE_OPTIONS and not name.startswith(FREE_PREFIXES):
            options[name] = value
    if not data_arguments.streaming:  # where they decide who reads which images
        del options["dataloader_num_workers"]
    options["number of processes"] = training_arguments.world_size
    options["data"] = {
        "images": f"{len(train_records)} and {len(eval_records)} images of {data_arguments.data}",
        "digest": f"{digest(train_records)} {digest(eval_records)}",
    }
    return json.loads(json.dumps(options, default=str))


def describe_data(data: Mapping) -> str:
    return f"{data['images']} (digest {data['digest']})"


def check_options(checkpoint: str, options: Mapping, allow: bool) -> None:
    """
    Args:
        checkpoint (`str`): to resume from.
        options (`Mapping`): see [`run_options`].
        allow (`bool`): warn of what has changed instead of refusing it.

    Raises:
        `ValueError`: an option that changes the result is not what it was when the checkpoint was made.
    """
    file = Path(checkpoint, RUN_OPTIONS)
    if not file.is_file():
        logger.warning(f"{checkpoint} does not tell the options of its run: they are not compared with those given.")
        return
    before = read_json(file)
    if not isinstance(before.get("data"), dict) or not before["data"].keys() >= {"images", "digest"}:
        raise ValueError(f"{file} does not tell the data of the run; resume from another checkpoint, or start again.")
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
            f"Resumed from {checkpoint}, the run would not go on as it began: {'; '.join(changes)}. Give what it "
            "was, or add --resume_changed true to go on with the change."
        )
    logger.warning(f"The run goes on otherwise than it began: {'; '.join(changes)}.")


def flatten(config: Mapping, prefix: str = "") -> dict:
    """The fields of a configuration and of those in it, `"vision_config.hidden_size"` and the like."""
    fields = {}
    for name, value in config.items():
        if name in FREE_FIELDS or name.endswith("_token_id"):  # the tokenizers are compared
            continue
        if isinstance(value, Mapping):
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def check_model(checkpoint: str, model: PreTrainedModel, processing_class, allow: bool) -> None:
    """
    Args:
        checkpoint (`str`): to resume from.
        model ([`PreTrainedModel`]), processing_class: of the run that is to go on.
        allow (`bool`): warn of another loss (entropy weights and the like) instead of refusing it.

    Raises:
        `ValueError`: the checkpoint is one of another network or tokenizer, or the loss has changed.
    """
    if not Path(checkpoint, "config.json").is_file():  # an adapter alone
        return
    stored = read_json(Path(checkpoint, "config.json"))
    kind, other_kind = model.config.model_type, stored.get("model_type")
    if kind != other_kind:
        raise ValueError(
            f"{checkpoint} belongs to another model: it is a {other_kind!r} and that of this run a {kind!r}."
        )
    with reading("configuration", checkpoint):
        configs = type(model.config).from_pretrained(checkpoint), model.config
        before, now = (flatten(json.loads(json.dumps(config.to_dict(), default=str))) for config in configs)
    now["architectures"] = [type(model).__name__]
    differing = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    for name in differing:
        if name == "image_size" or name not in ModelArguments.__dataclass_fields__:
            raise ValueError(
                f"{checkpoint} belongs to another model: its {name} is {before[name]!r}, and that of this run "
                f"{now[name]!r}."
            )
    refuse_changes(checkpoint, [f"{name} was {before[name]!r} and is {now[name]!r}" for name in differing], allow)
    tokenizer = processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        with reading("tokenizer", checkpoint):
            words, other_words = tokenizer.get_vocab(), type(tokenizer).from_pretrained(checkpoint).get_vocab()
        if words != other_words:
            raise ValueError(
                f"{checkpoint} belongs to another model: {len(words.items() - other_words.items())} of the "
                f"{len(words)} tokens of this run have another number in its tokenizer or none."
            )
