"""The head that a classifier starts with."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_trainings import FINDINGS
from transformers import set_seed

from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.scoring.zeroshot import zero_shot_auroc
from modeling_tier import TierCLIPForImageClassification, TierDualEncoderForImageClassification
from processing_tier import TierProcessor
from processing_tier.prompts.loader import load_prompts
from training_tier.data.labels import LabelledDataset, collate_labelled
from training_tier.loop.make_trainer import make_compute_metrics
from training_tier.options.model import ModelArguments
from training_tier.start.classifier import make_classifier
from training_tier.start.initialization import make_model


@pytest.mark.parametrize("preset", ["tiniest", "tiniest-dual"])
def test_a_head_from_prompts_starts_with_the_zero_shot_auroc(preset, tmp_path, phantom, labelled):
    set_seed(1)
    model, processor = make_model(ModelArguments(model=preset), phantom["impression"][:])
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    labels = read_labels(phantom, FINDINGS)
    classifier, image_processor = make_classifier(
        ModelArguments(model=str(tmp_path / "base")), FINDINGS, labels, (), prompts="report"
    )
    dataset = LabelledDataset(labelled, FINDINGS, image_processor=image_processor)
    batch = collate_labelled([dataset[i] for i in range(len(dataset))])
    with torch.no_grad():
        logits = classifier.eval()(batch["pixel_values"]).logits.numpy()

    class Prediction:
        predictions, label_ids = logits, batch["labels"].numpy()

    metrics = make_compute_metrics(FINDINGS, FINDINGS)(Prediction)
    prompts = load_prompts("report", FINDINGS)
    expected = zero_shot_auroc(model.eval(), TierProcessor(image_processor, processor.tokenizer), labelled, FINDINGS,
                               prompts, score_level="global")  # fmt: skip
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
