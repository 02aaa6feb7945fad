import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_trainings import small_arguments, weights_of
from transformers import Trainer, TrainingArguments, set_seed

from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.scoring.zeroshot import zero_shot_auroc
from modeling_tier import TierCLIPForImageClassification, TierCLIPModel, TierDualEncoderForImageClassification
from processing_tier import TierProcessor
from processing_tier.phantom.dataset import make_phantom
from processing_tier.prompts.loader import load_prompts
from training_tier.data.pairs import PairOptions
from training_tier.loop.classification import (
    LabelledDataset,
    choose_findings,
    collate_labelled,
    make_classifier,
    make_compute_metrics,
    take_patients,
)
from training_tier.loop.trainer import RadiographTrainer
from training_tier.options.compatibility import without_effect
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.start.initialization import make_model
from training_tier.start.presets import preset_config

FINDINGS = ["Consolidation", "Pneumothorax", "Edema"]


def with_labels(records, **columns):
    """The records with other labels, one list per finding."""
    features = records.features
    for finding, values in columns.items():
        records = records.remove_columns(finding).add_column(finding, np.array(values, dtype=np.float32))
    return records.cast(features.__class__({name: features[name] for name in records.column_names}))


@pytest.fixture(scope="module")
def evaluation():
    """24 images with labels drawn at random, so that each finding has both classes."""
    drawn = np.random.default_rng(0).integers(0, 2, (len(FINDINGS), 24)).astype(float).tolist()
    records = make_phantom(24, seed=0, image_size=64, split="validation")
    return with_labels(records, **dict(zip(FINDINGS, drawn, strict=True)))


@pytest.fixture
def base(tmp_path, processor):
    """Folder of a model of images and texts, with its processor."""
    set_seed(0)
    TierCLIPModel(preset_config("tiniest", processor.tokenizer)).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def make_trainer(tmp_path, phantom, evaluation, base):
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
            eval_dataset=LabelledDataset(evaluation, **images),
            data_collator=collate_labelled,
            compute_metrics=make_compute_metrics(FINDINGS, FINDINGS[:2]),
            processing_class=image_processor,
        )

    return make


def test_shares_of_the_patients_are_nested_and_whole():
    records = make_phantom(60, seed=0, image_size=64)
    records = records.remove_columns("patient_id").add_column("patient_id", [f"p{i // 2}" for i in range(60)])
    shares = {fraction: take_patients(records, fraction, seed=3) for fraction in (0.001, 0.1, 0.5, 1.0)}
    patients = [set(share["patient_id"][:]) for share in shares.values()]
    assert [len(share) for share in patients] == [1, 3, 15, 30]
    assert all(smaller < larger for smaller, larger in zip(patients, patients[1:], strict=False))
    assert all(len(share) == 2 * len(chosen) for share, chosen in zip(shares.values(), patients, strict=True))
    assert shares[1.0]["image_id"][:] == records["image_id"][:]
    order = records["image_id"][:]
    assert shares[0.5]["image_id"][:] == [name for name in order if name in set(shares[0.5]["image_id"][:])]
    assert take_patients(records, 0.1, seed=3)["image_id"][:] == shares[0.1]["image_id"][:]
    assert take_patients(records, 0.1, seed=4)["image_id"][:] != shares[0.1]["image_id"][:]


def test_findings_need_both_classes_in_training_and_in_evaluation(phantom, evaluation):
    half, few, many = [1.0, 0.0] * 24, [1.0] * 3 + [0.0] * 45, [1.0] * 45 + [0.0] * 3
    train = with_labels(phantom, Consolidation=few, Pneumothorax=many, Edema=half, Cardiomegaly=half)
    evaluation = with_labels(evaluation, Edema=[0.0] * 24, Cardiomegaly=[1.0, 0.0] * 12)
    learnt, scored = choose_findings(train, evaluation, None, min_positives=4)
    assert {"Cardiomegaly", "Edema"} <= set(learnt) and not {"Consolidation", "Pneumothorax"} & set(learnt)
    assert "Cardiomegaly" in scored and "Edema" not in scored and set(scored) < set(learnt)
    assert choose_findings(train, evaluation, ["Consolidation"], 4) == (["Consolidation"], ["Consolidation"])
    with pytest.raises(ValueError, match="The finding 'Edema' has no positive image among the 24"):
        choose_findings(train, evaluation, ["Edema"], 4)
    with pytest.raises(ValueError, match="The finding 'Edema' has no negative image among the 48"):
        choose_findings(with_labels(phantom, Edema=[1.0] * 48), evaluation, ["Edema"], 4)
    with pytest.raises(ValueError, match="No finding has 1000 positives"):
        choose_findings(train, evaluation, None, min_positives=1000)
    with pytest.raises(ValueError, match="No finding has 4 positives and as many negatives among the 48 training"):
        unlearnable = dict.fromkeys(["Consolidation", "Pneumothorax"], [-1.0] * 24)
        choose_findings(
            train.select_columns([*train.column_names[:10], "Edema"]), with_labels(evaluation, **unlearnable), None, 4
        )


def test_batches_have_labels_and_images_that_do_not_decode_have_none(phantom, processor):
    nan = float("nan")
    records = with_labels(phantom.select(range(3)), Consolidation=[1, -1, 0], Edema=[nan, 0, 1]).map(
        lambda row, i: {"image": {"bytes": b"nothing", "path": None}} if i == 2 else row,
        with_indices=True,
        features=None,
    )
    dataset = LabelledDataset(records, ["Consolidation", "Edema"], image_processor=processor.image_processor)
    batch = collate_labelled([dataset[i] for i in range(3)])
    assert batch["labels"].tolist() == [[1, -100], [-100, 0], [-100, -100]]
    assert batch["pixel_values"].shape == (3, 1, 32, 32) and not batch["pixel_values"][2].any()
    ((index, image_id, error),) = batch["unreadable"]
    assert (index, image_id) == (2, records[2]["image_id"]) and "not" in error and batch["indices"] == [0, 1, 2]
    assert "pixel_values" not in collate_labelled([dataset[2]])


def test_the_auroc_counts_stated_labels_alone():
    class Prediction:
        predictions = np.array([[0.1, 3], [0.2, 1], [0.3, 2], [0.4, 0]])
        label_ids = np.array([[1, 0], [0, -100], [-100, 0], [1, 1.0]])

    metrics = make_compute_metrics(["A", "B"], ["B", "A"])(Prediction)
    assert metrics == {"auroc": 0.25, "auroc_B": 0.0, "auroc_A": 0.5}


@pytest.mark.parametrize("preset", ["tiniest", "tiniest-dual"])
def test_a_head_from_prompts_starts_with_the_zero_shot_auroc(preset, tmp_path, phantom, evaluation):
    set_seed(1)
    model, processor = make_model(ModelArguments(model=preset), phantom["impression"][:])
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    labels = read_labels(phantom, FINDINGS)
    classifier, image_processor = make_classifier(
        ModelArguments(model=str(tmp_path / "base")), FINDINGS, labels, (), prompts="report"
    )
    dataset = LabelledDataset(evaluation, FINDINGS, image_processor=image_processor)
    batch = collate_labelled([dataset[i] for i in range(len(dataset))])
    with torch.no_grad():
        logits = classifier.eval()(batch["pixel_values"]).logits.numpy()

    class Prediction:
        predictions, label_ids = logits, batch["labels"].numpy()

    metrics = make_compute_metrics(FINDINGS, FINDINGS)(Prediction)
    prompts = load_prompts("report", FINDINGS)
    expected = zero_shot_auroc(model.eval(), TierProcessor(image_processor, processor.tokenizer), evaluation, FINDINGS,
                               prompts)  # fmt: skip
    # a random dual encoder's scores differ by little more than what zero-shot scores are rounded to, so that some tie
    assert metrics["auroc"] == pytest.approx(expected["mean"], abs=0.005)
    for finding in FINDINGS:
        assert metrics[f"auroc_{finding}"] == pytest.approx(expected[finding], abs=0.01)
    odds = [(labels[:, i] == 1).sum() / (labels[:, i] == 0).sum() for i in range(3)]
    assert classifier.classifier.bias.exp().tolist() == pytest.approx(odds)


def test_a_head_without_prompts_starts_at_how_frequent_each_finding_is(base, phantom):
    labels = np.array([[1, 0, 0], [0, 0, -1], [0, 1, np.nan], [0, 1, 1]])
    classifier, _ = make_classifier(ModelArguments(model=base), FINDINGS, labels, ())
    with torch.no_grad():
        logits = classifier(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)).logits
    torch.testing.assert_close(logits.sigmoid(), torch.tensor([[1 / 4, 1 / 2, 1 / 2]] * 2))
    assert classifier.config.id2label == dict(enumerate(FINDINGS))


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
    assert "knows other findings: it starts anew" in caplog.text
    assert torch.equal(other.visual_projection.weight, trainer.model.visual_projection.weight)
    assert not other.classifier.weight.any() and list(other.config.id2label.values()) == FINDINGS[::-1]
    with pytest.raises(
        ValueError, match="head_from_prompts needs a text tower, which the classifier .* does not have"
    ):
        make_classifier(arguments, FINDINGS, labels, (), prompts="report")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "nor a checkpoint that can be loaded: "),
        (
            lambda file: save_file(
                {
                    name: tensor[:2] if name == "classifier.weight" else tensor
                    for name, tensor in load_file(file).items()
                },
                file,
                metadata={"format": "pt"},
            ),
            "does not fit a TierCLIPForImageClassification: 1 mismatched keys, for example .*classifier.weight",
        ),
    ],
    ids=["cut short", "another shape"],
)
def test_a_damaged_classifier_is_one_sentence(tmp_path, phantom, base, damage, message):
    labels = read_labels(phantom, FINDINGS)
    classifier, image_processor = make_classifier(ModelArguments(model=base), FINDINGS, labels, ())
    classifier.save_pretrained(tmp_path / "saved")
    image_processor.save_pretrained(tmp_path / "saved")
    damage(tmp_path / "saved" / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        make_classifier(ModelArguments(model=str(tmp_path / "saved")), FINDINGS, labels, ())


def test_random_weights_start_a_classifier_too_but_no_prompts_do(phantom):
    labels = read_labels(phantom, FINDINGS)
    classifier, _ = make_classifier(ModelArguments(model="nano"), FINDINGS, labels, FINDINGS)  # no report at all
    assert type(classifier) is TierCLIPForImageClassification
    classifier, _ = make_classifier(ModelArguments(model="resnet-tiny"), FINDINGS, labels, FINDINGS)
    assert type(classifier) is TierDualEncoderForImageClassification
    with pytest.raises(ValueError, match="the weights of 'nano' are random; start from a trained --model"):
        make_classifier(ModelArguments(model="nano"), FINDINGS, labels, FINDINGS, prompts="report")


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
    evaluations = [entry for entry in trainer.state.log_history if "eval_auroc" in entry]
    for entry in evaluations:
        both = [entry["eval_auroc_Consolidation"], entry["eval_auroc_Pneumothorax"]]
        assert entry["eval_auroc"] == pytest.approx(sum(both) / 2)
    assert trainer.state.best_metric == max(entry["eval_auroc"] for entry in evaluations)
    assert trainer.evaluate()["eval_auroc"] == trainer.state.best_metric


def test_a_linear_probe_trains_the_head_alone(make_trainer):
    trainer = make_trainer(freeze=True, num_train_epochs=1)
    before = weights_of(trainer)
    trainer.train()
    changed = {name for name, tensor in weights_of(trainer).items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


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
