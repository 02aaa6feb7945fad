"""Classifiers: the loss of partly stated labels, the image tower they take over, and how they are saved."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from shipped import CLASSIFIER_CODE
from transformers import (
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    pipeline,
)

from modeling_tier import (
    TierCLIPForImageClassification,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)
from modeling_tier.modeling_classification_tier import masked_bce

NAN = float("nan")
FINDINGS = ["Edema", "Pleural Effusion", "Pneumothorax"]
LABELS = [[1, 0, -1], [NAN, 1, 0], [-100, NAN, -1], [0, 0, 1.0]]  # 7 of 12 are stated
CLASSIFIERS = {"clip": TierCLIPForImageClassification, "dual": TierDualEncoderForImageClassification}


def make_dual() -> TierDualEncoderModel:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config = TierDualEncoderConfig(
        text_config={"model_type": "bert", "vocab_size": 99, **text},
        vision_config={"model_type": "resnet", **vision},
        projection_dim=12,
        image_size=32,
    )
    return TierDualEncoderModel(config).eval()


@pytest.fixture(params=["clip", "clip, patch_mean", "dual"])
def kind(request) -> str:
    return request.param.split(",")[0]


@pytest.fixture
def model(request, make_tier):
    """A model of images and texts, one of each kind."""
    name = request.node.callspec.params["kind"]
    return make_dual() if name == "dual" else make_tier(image_pooling="patch_mean" if "," in name else "cls")


@pytest.fixture
def classifier(kind, model):
    """A classifier on a copy of that model's image tower, with a head that is not 0."""
    classifier = CLASSIFIERS[kind].from_image_tower(model, FINDINGS)
    torch.nn.init.normal_(classifier.classifier.weight)
    torch.nn.init.normal_(classifier.classifier.bias)
    return classifier


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor(LABELS)


def test_the_loss_is_the_mean_over_the_stated_labels(labels):
    logits = torch.randn(4, 3)
    terms = []
    for row, wanted in zip(logits.tolist(), LABELS, strict=True):
        for logit, label in zip(row, wanted, strict=True):
            if label in (0, 1):
                probability = 1 / (1 + math.exp(-logit))
                terms.append(-math.log(probability if label == 1 else 1 - probability))
    assert len(terms) == 7
    assert masked_bce(logits, labels).item() == pytest.approx(sum(terms) / 7, rel=1e-6)
    everything = torch.randint(0, 2, (4, 3)).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, everything)
    torch.testing.assert_close(masked_bce(logits, everything), expected)
    torch.testing.assert_close(masked_bce(logits, everything.long()), expected)


def test_unstated_labels_have_no_gradient(labels):
    logits = torch.randn(4, 3, requires_grad=True)
    masked_bce(logits, labels).backward()
    stated = (labels == 0) | (labels == 1)
    assert not logits.grad[~stated].any()
    expected = (logits.detach().sigmoid() - labels.nan_to_num()) / 7
    torch.testing.assert_close(logits.grad[stated], expected[stated])


def test_a_batch_without_any_label_has_a_loss_and_a_gradient_of_zero(classifier, batch):
    nothing = torch.tensor([NAN, -1.0, -100.0]).expand(4, 3)
    output = classifier.train()(batch["pixel_values"], labels=nothing)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in classifier.classifier.parameters())
    assert all(p.grad.isfinite().all() for p in classifier.parameters() if p.grad is not None)


def test_batches_of_one_step_add_up_whatever_is_stated_in_each(classifier, batch, labels):
    whole = classifier(batch["pixel_values"], labels=labels).loss
    total = (labels >= 0).sum()
    for num_items in (total, total.item()):
        parts = [
            classifier(batch["pixel_values"][rows], labels=labels[rows], num_items_in_batch=num_items).loss
            for rows in ([0], [1, 2, 3])
        ]
        torch.testing.assert_close(sum(parts), whole)


def test_the_head_reads_the_models_own_image_embedding(classifier, model, batch):
    expected = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    assert torch.equal(classifier.get_image_features(batch["pixel_values"]).pooler_output, expected)
    embeds = expected / expected.norm(dim=-1, keepdim=True) * expected.shape[-1] ** 0.5
    logits = embeds @ classifier.classifier.weight.T + classifier.classifier.bias
    torch.testing.assert_close(classifier(batch["pixel_values"]).logits, logits)


def test_a_zero_shot_head_gives_the_difference_of_the_models_own_logits(classifier, model, batch):
    positive, negative = [[97, 5, 6, 98], [97, 7, 8, 98], [97, 9, 9, 98]], [[97, 15, 6, 98]] * 3
    with torch.no_grad():
        output = model(input_ids=torch.tensor(positive + negative), pixel_values=batch["pixel_values"])
        classifier.set_zero_shot_head(
            output.text_embeds[:3], output.text_embeds[3:], scale=model.logit_scale.exp().item()
        )
        expected = output.logits_per_image[:, :3] - output.logits_per_image[:, 3:]
        torch.testing.assert_close(classifier(batch["pixel_values"]).logits, expected, rtol=1e-4, atol=1e-4)


def test_grey_bytes_are_the_normalised_floats(classifier):
    pixels = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    mean = torch.tensor(classifier.config.pixel_mean).view(3, 1, 1)
    std = torch.tensor(classifier.config.pixel_std).view(3, 1, 1)
    torch.testing.assert_close(classifier(pixels).logits, classifier((pixels / 255 - mean) / std).logits)


def test_a_linear_probe_leaves_the_image_tower_bit_for_bit(classifier, batch, labels):
    classifier.freeze_image_tower()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert [name for name, p in classifier.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        classifier.train()(batch["pixel_values"], labels=labels).loss.backward()
        optimizer.step()
    changed = [name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]
    assert classifier.training and classifier.classifier.training


def test_whole_training_changes_every_parameter(classifier, batch, labels):
    before = {name: parameter.clone() for name, parameter in classifier.named_parameters()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    classifier.train()(batch["pixel_values"], labels=labels).loss.backward()
    optimizer.step()
    unchanged = [name for name, parameter in classifier.named_parameters() if torch.equal(parameter, before[name])]
    # the bias of the keys adds the same to every score, which the softmax takes away again
    assert [name for name in unchanged if not name.endswith("k_proj.bias")] == []


def test_a_saved_model_of_images_and_texts_lends_its_image_tower(kind, model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = CLASSIFIERS[kind].from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not any(name.startswith(("text_", "logit_scale")) for name in loaded.state_dict())
    features = loaded.get_image_features(batch["pixel_values"]).pooler_output
    assert torch.equal(features, model.get_image_features(batch["pixel_values"]).pooler_output)
    assert not loaded(batch["pixel_values"]).logits.any()  # a new head starts at 0
    assert loaded(batch["pixel_values"]).logits.shape == (4, 5)


def test_a_plain_clip_model_lends_its_image_tower(clip, batch, tmp_path):
    clip.save_pretrained(tmp_path)
    loaded = TierCLIPForImageClassification.from_pretrained(tmp_path)
    expected = clip.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    assert torch.equal(loaded.get_image_features(batch["pixel_values"]).pooler_output, expected)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_image_tower_that_does_not_fit_is_refused_by_its_tensor(change, kind, model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.startswith("vision_model."))
    if change == "missing":
        del tensors[name]
    else:
        name = "vision_model.extra.weight"
        tensors[name] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"does not hold the image tower of a .*: 1 {change} keys, for example {name}"
    ):
        CLASSIFIERS[kind].from_pretrained(tmp_path)


def test_a_checkpoint_without_an_image_tower_is_refused(make_tier, tmp_path):
    make_tier().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text_")}
    save_file(text, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not hold the image tower of a TierCLIPForImageClassification: 4. miss"):
        TierCLIPForImageClassification.from_pretrained(tmp_path)
    config = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError):
        TierCLIPForImageClassification.from_pretrained(tmp_path / "text")


def test_another_number_of_findings_needs_to_be_asked_for(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(classifier).from_pretrained(tmp_path, num_labels=2)
    loaded = type(classifier).from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape[0] == 2


def test_labels_of_another_shape_are_refused(classifier, batch):
    with pytest.raises(ValueError, match=r"one column per finding, \(4, 3\), not the shape \(4,\)"):
        classifier(batch["pixel_values"], labels=torch.zeros(4))


def test_findings_that_exclude_one_another_are_refused(make_tier):
    config = make_tier().config
    config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match="problem_type must be 'multi_label_classification'"):
        TierCLIPForImageClassification(config)


def test_a_tuple_and_hidden_states_on_request(classifier, batch, labels):
    plain = classifier(batch["pixel_values"], labels=labels)
    assert plain.hidden_states is None and plain.attentions is None
    loss, logits, hidden_states = classifier(
        batch["pixel_values"], labels=labels, return_dict=False, output_hidden_states=True
    )
    assert torch.equal(loss, plain.loss) and torch.equal(logits, plain.logits)
    assert len(hidden_states) == 3


def test_half_precision_stays_near(classifier, batch, labels):
    expected = classifier(batch["pixel_values"], labels=labels)
    output = classifier.bfloat16()(batch["pixel_values"].bfloat16(), labels=labels)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0.1, atol=0.1)


# Runs where `import modeling_tier` fails, as it does for somebody who has only transformers.
CLEAN_PROCESS = """
import json, sys

sys.modules["modeling_tier"] = None
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

results = {}
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    batch = load_file(folder + "/batch.safetensors")
    output = model(**batch)
    model.save_pretrained(folder + "-again")
    again = AutoModelForImageClassification.from_pretrained(folder + "-again", trust_remote_code=True)(**batch)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True)
    results[folder] = {
        "module": type(model).__module__.split(".")[0],
        "loss": output.loss.item(),
        "logits": output.logits.tolist(),
        "again": again.logits.tolist(),
        "sigmoid": classify(folder + "/image.png", function_to_apply="sigmoid"),
        "default": classify(folder + "/image.png"),
    }
print("RESULT" + json.dumps(results))
"""


@pytest.mark.slow
def test_saved_classifiers_load_with_and_without_the_package(make_tier, batch, labels, tmp_path):
    expected = {}
    for kind, model in (("clip", make_tier(image_pooling="cls")), ("dual", make_dual())):
        model.save_pretrained(tmp_path / "model")  # whose configuration then names classes and a pipeline of its own
        source = type(model).from_pretrained(tmp_path / "model")
        classifier = CLASSIFIERS[kind].from_image_tower(source, FINDINGS)
        torch.nn.init.normal_(classifier.classifier.weight)
        torch.nn.init.normal_(classifier.classifier.bias)
        folder = tmp_path / f"{kind}-classifier"
        classifier.save_pretrained(folder)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPImageProcessorPil(**size).save_pretrained(folder)
        Image.effect_noise((50, 40), 80).convert("RGB").save(folder / "image.png")
        save_file({"pixel_values": batch["pixel_values"], "labels": labels}, folder / "batch.safetensors")

        assert {path.name for path in folder.glob("*.py")} == CLASSIFIER_CODE
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"] == {
            "AutoConfig": f"configuration_tier.{type(model.config).__name__}",
            "AutoModelForImageClassification": f"modeling_classification_tier.{type(classifier).__name__}",
        }
        assert "custom_pipelines" not in config
        assert config["id2label"] == {"0": "Edema", "1": "Pleural Effusion", "2": "Pneumothorax"}
        assert (config["architectures"], config["problem_type"]) == (
            [type(classifier).__name__],
            "multi_label_classification",
        )
        assert not any(name.startswith("text_") for name in load_file(folder / "model.safetensors"))

        output = classifier(batch["pixel_values"], labels=labels)
        here = AutoModelForImageClassification.from_pretrained(folder)
        assert type(here) is type(classifier)
        assert torch.equal(here(batch["pixel_values"]).logits, output.logits)
        classify = pipeline("image-classification", model=str(folder))
        scores = classify(str(folder / "image.png"), function_to_apply="sigmoid")
        assert sorted(score["label"] for score in scores) == sorted(FINDINGS)
        expected[str(folder)] = output, scores

    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", CLEAN_PROCESS, *expected]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.split("RESULT")[1])
    for folder, (output, scores) in expected.items():
        result = results[folder]
        assert result["module"] == "transformers_modules"
        assert result["loss"] == pytest.approx(output.loss.item(), rel=1e-5)
        torch.testing.assert_close(torch.tensor(result["logits"]), output.logits, rtol=1e-5, atol=1e-5)
        assert result["again"] == result["logits"]
        assert result["default"] == result["sigmoid"]  # the problem type tells the pipeline
        assert [score["label"] for score in result["sigmoid"]] == [score["label"] for score in scores]
        assert [s["score"] for s in result["sigmoid"]] == pytest.approx([s["score"] for s in scores], abs=1e-5)


def test_a_classifier_is_no_model_of_images_and_texts(make_tier, tmp_path):
    classifier = TierCLIPForImageClassification.from_image_tower(make_tier(), FINDINGS)
    assert not isinstance(classifier, (TierCLIPModel, CLIPModel))
    assert not hasattr(classifier, "get_text_features") and not hasattr(classifier, "logit_scale")
