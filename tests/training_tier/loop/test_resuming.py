"""A resumed run equals an uninterrupted one: within and between epochs, streamed, ordered, with early stopping."""

import shutil
from pathlib import Path

import pytest
import torch
from small_trainings import NOTHING_BUT_TRAINING, TINIEST_DUAL, same_weights

from processing_tier import TierImageProcessor
from training_tier.data.streaming import ShardedImages, read_shards
from training_tier.start.presets import PRESETS


@pytest.mark.parametrize(
    ("steps", "workers"),
    [(3, None), (6, None), (6, 0), (8, 0), (8, 2)],
    ids=[
        "within an epoch",
        "between epochs",
        "between streamed epochs",
        "within a streamed epoch",
        "within an epoch streamed by 2 workers",
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_contrastive, phantom, tmp_path, monkeypatch, steps, workers):
    decoded = []
    read = TierImageProcessor.read
    monkeypatch.setattr(TierImageProcessor, "read", lambda self, source: decoded.append(1) or read(self, source))
    options = {"save_strategy": "steps", "save_steps": steps, "eval_strategy": "no", "load_best_model_at_end": False}
    if workers is not None:
        (tmp_path / "data").mkdir()
        phantom.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=7)
        options |= {"dataloader_num_workers": workers, "records": read_shards(tmp_path, "train")}

    def make(folder):
        images = None if workers is None else ShardedImages(options["records"], shuffle_buffer=10)
        return make_contrastive(folder=folder, images=images, **options, save_total_limit=None)

    whole = make("whole")
    whole.train()
    decoded.clear()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{steps}")
    if not workers:
        assert len(decoded) == 8 * (12 - steps)  # none of the images that are skipped
    assert resumed.state.global_step == whole.state.global_step == 12
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    assert same_weights(whole, resumed)


@pytest.mark.slow
def test_a_run_in_batches_of_similar_lengths_is_resumed_exactly(make_contrastive):
    options = {"train_sampling_strategy": "group_by_length", **NOTHING_BUT_TRAINING}
    options |= {"save_strategy": "steps", "save_steps": 9, "save_total_limit": None}
    whole, resumed = make_contrastive(folder="whole", **options), make_contrastive(folder="resumed", **options)
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-9")
    assert same_weights(whole, resumed)


@pytest.mark.slow
def test_early_stopping_counts_on_in_a_resumed_run(make_contrastive, monkeypatch):
    aurocs = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9, 0.9, 0.9]
    options = {"early_stopping_patience": 3, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1}
    options |= {"eval_steps": 1, "max_steps": 8, "save_total_limit": None}

    def run(folder, checkpoint=None):
        trainer = make_contrastive(folder=folder, **options)
        monkeypatch.setattr(
            trainer, "zero_shot_auroc", lambda dataset: {"mean": aurocs[trainer.state.global_step - 1]}
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run("whole")
    assert whole.state.global_step == 5 and whole.state.best_metric == 0.7  # three evaluations after the second
    resumed = Path(whole.args.output_dir).with_name("resumed")
    for step in (2, 3):  # the best one and the last one of an interrupted run
        shutil.copytree(f"{whole.args.output_dir}/checkpoint-{step}", resumed / f"checkpoint-{step}")
    assert run("resumed", str(resumed / "checkpoint-3")).state.global_step == 5


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("model_type", ["vit", "dinov2"])
def test_towers_with_other_names_in_memory_than_in_files(make_contrastive, monkeypatch, model_type):
    """Resuming and the best model at the end read all of such a tower, whatever transformers calls its tensors."""
    vision = {"model_type": model_type, **VIT, "image_size": 32, "patch_size": 8}
    monkeypatch.setitem(PRESETS, "named", {**TINIEST_DUAL, "vision_config": vision})
    options = {"config": {"preset": "named"}, "save_strategy": "steps", "save_steps": 6, "save_total_limit": None}
    options |= {"eval_strategy": "no", "load_best_model_at_end": False}
    whole = make_contrastive(folder="whole", **options)
    whole.train()
    resumed = make_contrastive(folder="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-6")
    assert same_weights(whole, resumed)

    trained = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.state.best_model_checkpoint = f"{whole.args.output_dir}/checkpoint-6"
    whole._load_best_model()
    best = type(whole.model).from_pretrained(whole.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in whole.model.state_dict().items())
    assert all(not torch.equal(tensor, best[name]) for name, tensor in trained.items() if "layer.0.attention" in name)
