"""The Trainer of both tasks: what is trained and decayed, unreadable images, speed in the log, and the seed."""

import pytest
import torch
from small_trainings import NOTHING_BUT_TRAINING, break_images, weights_of

from processing_tier.phantom.dataset import make_phantom


def test_every_parameter_with_a_gradient_is_trained(make_contrastive):
    trainer = make_contrastive()
    before = weights_of(trainer)
    trainer.train()
    unchanged = [name for name, tensor in weights_of(trainer).items() if torch.equal(tensor, before[name])]
    # patch_mean pooling reads the patches alone; the class token still feeds them through attention
    assert [name for name in unchanged if "position_ids" not in name] == []


def test_evaluation_counts_the_last_smaller_batch(make_contrastive):
    trainer = make_contrastive(per_device_eval_batch_size=10)
    assert [len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()] == [10, 10, 4]
    assert trainer.args.dataloader_drop_last


def test_weight_decay_is_for_matrices_alone(make_contrastive):
    trainer = make_contrastive()
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "vision_model.embeddings.patch_embedding.weight" in decayed and "visual_projection.weight" in decayed
    for name in decayed:
        assert trainer.model.get_parameter(name).ndim >= 2 and not name.endswith(("position_embedding.weight", "bias"))
    assert not {"logit_scale", "vision_model.embeddings.class_embedding"} & set(decayed)


def test_weight_decay_of_a_dual_encoder_is_for_matrices_alone(make_contrastive):
    trainer = make_contrastive(config={"preset": "tiniest-dual"})
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    parameters = dict(trainer.model.named_parameters())
    spared = set(parameters) - decayed
    assert {name for name in spared if parameters[name].ndim > 1} == {
        f"text_model.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert all(parameters[name].ndim > 1 for name in decayed)  # no norm, neither of batches nor of layers, and no bias
    assert {"visual_projection.0.weight", "text_projection.3.weight"} <= decayed
    assert "vision_model.embedder.embedder.convolution.weight" in decayed and "logit_scale" in spared


def test_a_dual_encoder_trains_all_but_its_frozen_layers(make_contrastive):
    trainer = make_contrastive(config={"preset": "tiniest-dual", "frozen_text_layers": 1})
    before = weights_of(trainer)
    trainer.train()
    unchanged = {name for name, tensor in weights_of(trainer).items() if torch.equal(tensor, before[name])}
    frozen = ("text_model.embeddings.", "text_model.encoder.layer.0.")
    assert unchanged == {name for name in before if name.startswith(frozen)}
    evaluations = [entry for entry in trainer.state.log_history if "eval_auroc" in entry]
    assert trainer.state.best_metric == max(entry["eval_auroc"] for entry in evaluations)
    assert (
        trainer.zero_shot_auroc(trainer.eval_dataset)["mean"] == trainer.state.best_metric
    )  # the best weights are loaded


def test_throughput_of_a_run_is_logged(make_contrastive):
    trainer = make_contrastive(max_steps=2, **NOTHING_BUT_TRAINING)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["images_per_second"] > 0 and 0 < entry["data_wait"] < 1 and entry["tflops"] > 0
        assert "mfu" not in entry


def test_a_seed_fixes_the_run(make_contrastive):
    runs = []
    for folder in ("a", "b"):
        trainer = make_contrastive(folder=folder)
        trainer.train()
        runs.append(weights_of(trainer))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.slow
def test_an_image_that_does_not_decode_is_skipped_and_listed(make_contrastive):
    records = make_phantom(104, seed=1, image_size=64)
    trainer = make_contrastive(break_images(records, {5}), num_train_epochs=1, dataloader_drop_last=False)
    trainer.train()
    assert trainer.unreadable[5][0] == records[5]["image_id"] and len(trainer.unreadable) == 1
    assert trainer.state.global_step == 13


def test_more_than_one_percent_of_them_stops_the_run(make_contrastive, phantom):
    trainer = make_contrastive(break_images(phantom, {5}))
    with pytest.raises(ValueError, match="^At least 1 of 48 training images do not decode, more than 1 %: repair or"):
        trainer.train()
