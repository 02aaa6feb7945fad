"""Training a classifier."""

import numpy as np
import pytest
import torch
from small_trainings import FINDINGS, assert_chosen_by_mean_auroc, small_arguments, weights_of, with_labels
from transformers import Trainer, TrainingArguments, set_seed

from evaluation_tier.scoring.findings import read_labels
from training_tier.data.labels import LabelledDataset, collate_labelled
from training_tier.data.pairs import PairOptions
from training_tier.loop.make_trainer import make_compute_metrics
from training_tier.loop.trainer import RadiographTrainer
from training_tier.options.compatibility import without_effect
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.start.classifier import make_classifier


@pytest.fixture
def make_trainer(tmp_path, phantom, labelled, base):
    def make(folder="run", freeze=False, trainer_class=RadiographTrainer, **options):
        set_seed(0)
        records = options.pop("records", phantom)
        arguments = ModelArguments(model=base)
        classifier, image_processor = make_classifier(arguments, FINDINGS, read_labels(phantom, FINDINGS), ())
        if freeze:
            classifier.freeze_image_tower()
        images = {"findings": FINDINGS, "image_processor": image_processor}
        return trainer_class(
            model=classifier,
            args=small_arguments(tmp_path / folder, **options),
            train_dataset=LabelledDataset(records, options=PairOptions(augmentation="standard"), **images),
            eval_dataset=LabelledDataset(labelled, **images),
            data_collator=collate_labelled,
            compute_metrics=make_compute_metrics(FINDINGS, FINDINGS[:2]),
            processing_class=image_processor,
        )

    return make


def test_the_auroc_counts_stated_labels_alone():
    class Prediction:
        predictions = np.array([[0.1, 3], [0.2, 1], [0.3, 2], [0.4, 0]])
        label_ids = np.array([[1, 0], [0, -100], [-100, 0], [1, 1.0]])

    metrics = make_compute_metrics(["A", "B"], ["B", "A"])(Prediction)
    assert metrics == {"auroc": 0.25, "auroc_B": 0.0, "auroc_A": 0.5}


def test_a_saved_classifier_goes_on_and_new_findings_get_a_new_head(make_trainer, phantom, base, caplog):
    trainer = make_trainer(num_train_epochs=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    trainer.train()
    trainer.save_model()
    labels = read_labels(phantom, FINDINGS)
    arguments = ModelArguments(model=trainer.args.output_dir)
    same, image_processor = make_classifier(arguments, FINDINGS, labels, ())
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in weights_of(trainer).items())
    assert image_processor.size == {"height": 32, "width": 32}
    other, _ = make_classifier(arguments, FINDINGS[::-1], labels[:, ::-1].copy(), ())
    assert "has other findings: a new head is trained" in caplog.text
    assert torch.equal(other.visual_projection.weight, trainer.model.visual_projection.weight)
    assert not other.classifier.weight.any() and list(other.config.id2label.values()) == FINDINGS[::-1]
    with pytest.raises(
        ValueError, match="head_from_prompts needs a text tower, which the classifier .* does not have"
    ):
        make_classifier(arguments, FINDINGS, labels, (), prompts="report")


def test_the_loss_falls(make_trainer, phantom):
    few = with_labels(phantom.select(range(8)), Consolidation=[1, 1, 0, 0] * 2, Edema=[1, 0] * 4)
    trainer = make_trainer(
        records=few, max_steps=60, learning_rate=1e-2, eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False
    )  # fmt: skip
    trainer.train_dataset.options = PairOptions()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_the_best_checkpoint_by_mean_auroc_is_kept(make_trainer):
    trainer = make_trainer(learning_rate=2e-3)
    trainer.train()
    assert_chosen_by_mean_auroc(trainer)
    assert trainer.evaluate()["eval_auroc"] == trainer.state.best_metric


def test_a_linear_probe_trains_the_head_alone(make_trainer):
    trainer = make_trainer(freeze=True, num_train_epochs=1)
    before = weights_of(trainer)
    trainer.train()
    changed = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(make_trainer):
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no", "load_best_model_at_end": False}
    whole = make_trainer(folder="whole", **options, save_total_limit=None)
    whole.train()
    resumed = make_trainer(folder="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert resumed.state.global_step == whole.state.global_step == 12
    expected, got = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_accumulated_batches_equal_one_whatever_is_stated_in_each(make_trainer, phantom):
    """The stock Trainer multiplies the loss by the number of batches where a model that says so does not divide it."""
    stated = [-1.0] * 24 + [1.0, 0.0] * 12
    records = with_labels(phantom, Consolidation=stated, Edema=stated)
    once = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    runs = []
    for steps in (1, 4):
        trainer = make_trainer(
            records=records,
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            **once,
        )
        trainer.train()
        runs.append((trainer.state.log_history[0], weights_of(trainer)))
    (one, expected), (four, got) = runs
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_stock_trainer_trains_it_from_labels(make_trainer, tmp_path):
    ours = make_trainer()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "stock"), max_steps=2, per_device_train_batch_size=8, use_cpu=True, report_to="none"
    )
    trainer = Trainer(ours.model, arguments, train_dataset=[
        {"pixel_values": torch.rand(3, 32, 32), "labels": torch.tensor([1.0, 0.0, -100.0])} for _ in range(16)
    ])  # fmt: skip
    assert trainer.label_names == ["labels"]
    loss = ours.model(torch.rand(8, 3, 32, 32), labels=torch.tensor([[1.0, 0.0, -100.0]] * 8)).loss.item()
    assert trainer.train().training_loss == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "clasification"}, "task='clasification' is not known; choose one of contrastive, classification"),
        ({"task": "classification", "label_fraction": 0.0}, "label_fraction=0.0 must be above 0 and at most 1"),
        ({"task": "classification", "label_fraction": 1.5}, "label_fraction=1.5 must be above 0 and at most 1"),
        ({"label_fraction": 0.1}, "label_fraction has no effect on the task 'contrastive'; add --task class"),
        ({"head_from_prompts": True}, "head_from_prompts has no effect on the task 'contrastive'"),
    ],
)
def test_options_of_the_task_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TaskArguments(**options)


def test_options_without_effect_on_a_classifier_are_known():
    assert without_effect(ModelArguments(token_entropy_weight=0.2, image_size=64)) == ["token_entropy_weight"]
    assert without_effect(ModelArguments()) == []
