"""Small trainings on the CPU for tests: presets, options and data, and the comparison of two runs."""

import math

import numpy as np
import torch
from transformers import TrainerCallback, set_seed

from modeling_tier import TierCLIPModel
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import preset_config

TINIEST = {
    "projection_dim": 16,
    "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
}
TINIEST_DUAL = {
    "projection_dim": 16,
    "image_size": 32,
    "text_config": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
ENTROPY_WEIGHTS = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.2}
FINDINGS = ["Consolidation", "Pneumothorax", "Edema"]
NOTHING_BUT_TRAINING = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def small_arguments(folder, **options) -> TierTrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TierTrainingArguments(**{**defaults, **options})


def make_twelve_steps(parent, phantom, processor, folder="run", **options):
    """A training of twelve steps in two epochs, with checkpoints after 4, 8 and 12."""
    set_seed(0)
    defaults = {
        "logging_steps": 5,
        "warmup_steps": 0.1,
        "save_strategy": "steps",
        "save_steps": 4,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "load_best_model_at_end": False,
    }
    records = make_phantom(16, seed=0, image_size=64, split="validation")
    return TierTrainer(
        model=TierCLIPModel(preset_config("tiniest", processor.tokenizer, **ENTROPY_WEIGHTS)),
        args=small_arguments(parent / folder, **{**defaults, **options}),
        train_dataset=PairDataset(phantom, processor.image_processor, PairOptions(augmentation="standard")),
        eval_dataset=PairDataset(records, processor.image_processor),
        data_collator=PairCollator(processor.tokenizer),
        processing_class=processor,
    )


def with_labels(records, **columns):
    """The records with other labels, one list per finding."""
    features = records.features
    for finding, values in columns.items():
        records = records.remove_columns(finding).add_column(finding, np.array(values, dtype=np.float32))
    return records.cast(features.__class__({name: features[name] for name in records.column_names}))


def break_images(records, indices):
    """The records; the images of some of them are cut short and do not decode."""
    image = records[0]["image"]["bytes"][:100]
    return records.map(
        lambda row, i: {"image": {"bytes": image, "path": None}} if i in indices else row,
        with_indices=True,
        features=records.features,
    )


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_weights(trainer, other) -> bool:
    expected, got = trainer.model.state_dict(), other.model.state_dict()
    return all(torch.equal(expected[name], got[name]) for name in expected)


def assert_chosen_by_mean_auroc(trainer):
    """After a training: the AUROC is the mean of the findings', and its best value is the best checkpoint's."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_auroc" in entry]
    for entry in evaluations:
        both = [entry["eval_auroc_Consolidation"], entry["eval_auroc_Pneumothorax"]]
        assert math.isclose(entry["eval_auroc"], sum(both) / 2, rel_tol=1e-6)
    assert trainer.state.best_metric == max(entry["eval_auroc"] for entry in evaluations)


class At(TrainerCallback):
    """Does something before the weights change in a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.do()


def history_of(trainer):
    """The log without what is measured in seconds."""
    timed = ("runtime", "per_second", "data_wait", "tflops", "train_loss", "total_flos")
    entries = [
        {name: value for name, value in entry.items() if not name.endswith(timed)}
        for entry in trainer.state.log_history
    ]
    return [entry for entry in entries if entry.keys() - {"step", "epoch"}]


def assert_same(resumed, whole):
    assert same_weights(whole, resumed)
    assert history_of(resumed) == history_of(whole)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])
