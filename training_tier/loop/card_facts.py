"""The facts of a training on the model card."""

import os
from pathlib import Path
from typing import Any

import datasets

from processing_tier.readers import dataset_name
from training_tier.options.compatibility import has_random_weights
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import Options


def training_facts(options: Options, records: datasets.Dataset) -> dict[str, Any]:
    """The facts of a training on these records; see [`write_model_card`]."""
    task, model_arguments, data_arguments, arguments, _ = options
    learned_from: dict[str, Any]
    if task.task == "classification":
        learned_from = {
            "label_fraction": task.label_fraction,
            "trained_part": "head" if task.freeze_image_tower else "image tower and head",
        }
    else:
        text, sentences = data_arguments.text, "sentences of impression and findings"
        if data_arguments.sentences_per_image:
            text = f"{data_arguments.sentences_per_image} {sentences} for each image"
        elif data_arguments.sample_sentences:
            text = sentences
        learned_from = {"text": text}
    return {
        "dataset": dataset_name(data_arguments.data),
        "n_images": len(records),
        "n_patients": len(set(records["patient_id"][:])),
        **learned_from,
        "initialized_from": describe_start(model_arguments),
        "epochs": f"{arguments.max_steps:,} steps" if arguments.max_steps > 0 else arguments.num_train_epochs,
        "batch_size": arguments.train_batch_size * arguments.world_size,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
    }


def describe_start(arguments: ModelArguments) -> str:
    """The weights that a training starts from."""
    if arguments.vision_model is not None and arguments.text_model is not None:
        return f"{public_name(arguments.vision_model)} and {public_name(arguments.text_model)}"
    return f"random ({arguments.model})" if has_random_weights(arguments) else public_name(arguments.model)


def public_name(name: str) -> str:
    """The whole name of a model on the Hub, and only the last part of a folder's path."""
    return Path(name).resolve().name if os.path.isdir(name) else name
