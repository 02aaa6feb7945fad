"""A small training of twelve steps in two epochs, for tests that stop and resume it."""

import torch
from transformers import TrainerCallback, set_seed

from modeling_tier import TierCLIPModel
from processing_tier.phantom.dataset import make_phantom
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import preset_config


def make_twelve_steps(parent, phantom, processor, folder="run", **options):
    set_seed(0)
    defaults = {
        "output_dir": str(parent / folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 4,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    weights = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.2}
    records = make_phantom(16, seed=0, image_size=64, split="validation")
    return TierTrainer(
        model=TierCLIPModel(preset_config("tiniest", processor.tokenizer, **weights)),
        args=TierTrainingArguments(**{**defaults, **options}),
        train_dataset=PairDataset(phantom, processor.image_processor, PairOptions(augmentation="standard")),
        eval_dataset=PairDataset(records, processor.image_processor),
        data_collator=PairCollator(processor.tokenizer),
        processing_class=processor,
    )


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
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert history_of(resumed) == history_of(whole)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])
