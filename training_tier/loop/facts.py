"""What a training tells the model card about itself."""

import os
from pathlib import Path

import datasets

from processing_tier.readers import dataset_name
from training_tier.options.parsing import Options
from training_tier.start.presets import PRESETS


def training_facts(options: Options, records: datasets.Dataset) -> dict:
    """What the model card says about a training on these records; see [`write_model_card`]."""
    task, model_arguments, data_arguments, arguments, _ = options
    model, towers = model_arguments.model, (model_arguments.vision_model, model_arguments.text_model)
    # folders by their last name, names on the Hub whole
    names = [Path(name).resolve().name if name and os.path.isdir(name) else name for name in (model, *towers)]
    if towers[0] is not None:
        initialized_from = f"{names[1]} and {names[2]}"
    else:
        initialized_from = f"random ({model})" if model in PRESETS else names[0]
    if task.task == "classification":
        learnt_from = {
            "label_fraction": task.label_fraction,
            "trained_part": "head" if task.freeze_image_tower else "image tower and head",
        }
    else:
        sentences = "sentences of impression and findings"
        learnt_from = {"text": sentences if data_arguments.sample_sentences else data_arguments.text}
    return {
        "dataset": dataset_name(data_arguments.data),
        "n_images": len(records),
        "n_patients": len(set(records["patient_id"][:])),
        **learnt_from,
        "initialized_from": initialized_from,
        "epochs": f"{arguments.max_steps:,} steps" if arguments.max_steps > 0 else arguments.num_train_epochs,
        "batch_size": arguments.train_batch_size * arguments.world_size,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
    }
