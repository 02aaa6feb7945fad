import json

import jinja2
import numpy as np
import pytest
import yaml

from evaluation_tier.output.card_head import card_data
from evaluation_tier.output.model_card import CARD_TEMPLATE, is_synthetic, write_model_card
from evaluation_tier.output.saved_thresholds import write_thresholds
from processing_tier.prompts.loader import Prompts


@pytest.fixture
def folder(tmp_path):
    config = {
        "token_entropy_weight": 0.1,
        "patch_entropy_weight": 0.0,
        "entropy_temperature": 0.07,
        "entropy_tokens": "words",
        "image_pooling": "patch_mean",
        "projection_dim": 128,
        "vision_config": {"image_size": 224, "patch_size": 16},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def read_card(folder) -> tuple[dict, str]:
    """The YAML head and the text."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_card_head_holds_the_numbers_of_the_json(folder, metrics):
    write_model_card(folder, metrics, model_name="someone/tier-small", license="cc-by-nc-4.0")
    head, _ = read_card(folder)
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "zero-shot-image-classification"
    assert head["license"] == "cc-by-nc-4.0"
    assert head["model-index"][0]["name"] == "tier-small"
    (results,) = head["model-index"][0]["results"]
    assert results["dataset"] == {"name": "iu_cxr", "type": "iu-cxr", "split": "validation"}
    values = {metric["name"]: metric["value"] for metric in results["metrics"]}
    assert values == {  # what is not measured is left out
        "AUROC, Cardiomegaly": 0.8512345,
        "AUPRC, Cardiomegaly": 0.4,
        "MCC, Cardiomegaly": 0.3,
        "F1, Cardiomegaly": 0.5,
        "AUPRC, Nodule|Mass": 0.4,
        "F1, Nodule|Mass": 0.5,
        "AUROC, mean": 0.8512345,
        "AUPRC, mean": 0.4,
        "MCC, mean": 0.3,
        "F1, mean": 0.5,
    }
    types = ["roc_auc", "average_precision", "matthews_correlation", "f1"]
    assert head["metrics"] == types and [metric["type"] for metric in results["metrics"]][:4] == types


def test_card_tells_what_else_was_measured(folder, metrics):
    metrics["subgroups"] = {
        "sex": {
            "groups": {"F": {"n_images": 100, "mean": {"auroc": 0.75, "auroc_ci95": [0.5, 1.0]}, "auroc": {}}},
            "mean_gap": None,
            "findings_in_mean": ["Cardiomegaly"],
        }
    }
    numbers = {"recall_at_5": 0.5, "recall_at_5_ci95": [0.25, 0.75], "recall_at_5_chance": 0.01}
    metrics["retrieval"] = {"dataset": "pairs", "image_to_text": numbers}
    pointing = {"pointing": {"mean": 0.25, "ci95": [0.125, 0.5]}, "pixel_auroc": {"mean": None, "ci95": None}}
    metrics["grounding"] = {"mean": {"maps": {"above_average": pointing}}}
    write_model_card(folder, metrics)
    head, text = read_card(folder)
    _, retrieval, grounding = head["model-index"][0]["results"]
    assert retrieval["task"]["name"] == "Retrieval of images and reports" and retrieval["dataset"]["name"] == "pairs"
    assert retrieval["metrics"] == [{"name": "R@5, image to text", "type": "recall", "value": 0.5}]
    assert grounding["metrics"] == [{"name": "Pointing, mean", "type": "accuracy", "value": 0.25}]
    assert grounding["dataset"]["name"] == "iu_cxr"
    maps = {"above_average": pointing, "above_average_contribution": {"pointing": {"mean": 0.5}}}
    (number,) = card_data("m", metrics | {"grounding": {"mean": {"maps": maps}}}, None).eval_results[-1:]
    assert (number.metric_name, number.metric_value) == ("Pointing of contributions, mean", 0.5)
    assert "\n### By sex\n" in text and "| F | 100 | 0.750 (0.500, 1.000) |\n" in text
    assert "| Report of an image | R@5 | 0.500 (0.250, 0.750) | 0.010 | not measured |\n" in text
    assert "| Pointing | 0.250 (0.125, 0.500) |\n| Pixel AUROC | not measured |\n\n" in text
    assert "on subgroups other than those above: not measured" in text
    assert "\n\n\n" not in text
    text.encode("ascii")


def test_card_says_how_it_was_evaluated(folder, metrics):
    write_model_card(folder, metrics)
    assert "\nSplit validation, prompts report, scoring difference.\n" in read_card(folder)[1]
    assert "compare the whole image" not in read_card(folder)[1]
    metrics["protocol"] |= {"name": "chexzero", "benchmark": "chexpert-5", "score_level": "both-max", "views": "all"}
    metrics["protocol"] |= {"benchmark_differs": ["It has 355 images and not 500."], "no_finding": "others"}
    write_model_card(folder, metrics)
    expected = (
        "Benchmark chexpert-5, split validation, views all, protocol chexzero, prompts report, scoring difference, "
        '"No Finding" scored by others, score level both-max. It has 355 images and not 500.\n'
    )
    assert expected in read_card(folder)[1]
    assert (
        "(both-max), as the pipeline `cxr-zero-shot-classification` does. `logits_per_image` and"
        in read_card(folder)[1]
    )


def test_card_has_baselines_and_the_short_tables_of_all_analyses(folder, metrics):
    part = {
        "maps": {"above_average": {"pointing": {"mean": 0.25, "ci95": [0.125, 0.5]}}},
        "baselines": {"center": {"pointing": {"mean": 0.375, "ci95": None}}},
    }
    metrics["grounding"] = {"mean": part}
    words = {"all": {"n_words": 10, "gini": 0.25}}
    sparse = {"num_patches": 49, "token_entropy": 3.5, "token_entropy_ci95": [3.0, 4.0], "words": words}
    metrics["sparsity"] = {"models": {"m": sparse}}
    metrics["robustness"] = {
        "wordings": {"mean": {"auroc": {"name": 0.5}, "auroc_ci95": {"name": [0.25, 0.75]}, "mean": 0.5}},
        "degradations": {"JPEG quality 10": {"findings": {}, "mean": {"auroc": 0.5, "drop": 0.25}}},
    }
    write_model_card(folder, metrics)
    text = read_card(folder)[1]
    assert "\n### Grounding: without the image\n" in text and "| Pointing | 0.375 |\n" in text
    assert (
        "\n### Sparsity: entropies\n" in text
        and "| m | 3.5000 (3.0000, 4.0000) |\n" in text
        and "gini" not in text.lower()
    )
    assert "\n### Robustness: wordings\n" in text and "| name | 0.500 (0.250, 0.750) |\n" in text
    assert "\n### Robustness: degraded images\n" in text and "| JPEG quality 10 | 0.500 | 0.250 |\n" in text
    text.encode("ascii")


def test_card_leaves_out_an_attribute_whose_groups_have_nothing_in_common(folder, metrics):
    group = {"n_images": 9, "mean": {"auroc": None, "auroc_ci95": [None, None]}, "auroc": {"Cardiomegaly": 0.75}}
    metrics["subgroups"] = {"age": {"groups": {"18-39": group, "40-59": group}, "findings_in_mean": []}}
    write_model_card(folder, metrics)
    text = read_card(folder)[1]
    assert "By age" not in text and "on subgroups by sex, age or origin: not measured" in text


def test_card_is_clean(folder, metrics):
    text = write_model_card(folder, metrics, {"dataset": "iu_cxr", "epochs": np.int64(3)}).read_text()
    for leftover in ("!!python", "{{", "}}", "{%", "%}", "None", "nan", "Undefined", "\n\n\n"):
        assert leftover not in text
    assert text.endswith(".\n")
    text.encode("ascii")


def test_card_says_what_it_must(folder, metrics):
    training = {"dataset": "iu_cxr", "n_images": 2654, "epochs": 30, "initialized_from": "random weights"}
    write_model_card(folder, metrics, training, model_name="tier-small")
    _, text = read_card(folder)
    assert "# tier-small\n" in text
    for heading in ("Not for clinical use", "Intended use", "How to load it", "Training", "Results", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "| Weight of the token entropy | 0.1 |" in text
    assert "| Weight of the patch entropy | 0.0 |" in text
    assert "| Images | 2,654 |" in text
    assert "| Patients | not measured |" in text
    assert "| Cardiomegaly | 25 | 300 | 0.851 | 0.801 - 0.901 | 0.400 | 0.300 | 0.500 |" in text
    assert "| Nodule\\|Mass | 1 | 300 | not measured | not measured | 0.400 | not measured | 0.500 |" in text
    assert "| **Mean** | | | **0.851** | 0.800 - 0.900 |" in text
    assert "Edema (3 positives)" in text
    assert "synthetic" not in text.lower()


def test_card_of_a_dual_encoder_names_its_towers(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "tier_dual_encoder", "image_size": 320, "frozen_text_layers": 8}
    config |= {"vision_config": {"model_type": "resnet"}, "text_config": {"model_type": "bert"}}
    (folder / "config.json").write_text(json.dumps(config))
    write_model_card(folder)
    _, text = read_card(folder)
    assert "a dual encoder of two towers, resnet for images and bert for text, with text-image entropy" in text
    assert "| Image size (pixels) | 320 |" in text and "| Frozen text layers | 8 |" in text
    assert "CLIP model" not in text and "Patch size" not in text


def test_card_without_results(folder):
    write_model_card(folder)
    head, text = read_card(folder)
    assert "model-index" not in head
    assert "Zero-shot AUROC: not measured." in text
    assert "| Data | not measured |" in text
    assert f'from_pretrained("path/to/{folder.name}"' in text


def test_card_of_the_phantom_says_synthetic(folder, metrics):
    write_model_card(folder, metrics | {"dataset": "phantom:num_images=300"}, {"dataset": "phantom"})
    head, text = read_card(folder)
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "phantom:num_images=300 (synthetic)"
    assert "**Trained on synthetic radiographs.**" in text
    assert "| Data | phantom (synthetic) |" in text
    assert "Zero-shot on phantom:num_images=300 (synthetic radiographs, no patients)" in text
    assert is_synthetic("phantom") and not is_synthetic("phantom_limbs") and not is_synthetic(None)


def test_card_of_an_unregularized_model_does_not_claim_otherwise(folder, metrics):
    write_model_card(folder, metrics)
    assert "with text-image entropy regularization" in read_card(folder)[1]
    (folder / "config.json").write_text('{"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0}')
    write_model_card(folder, metrics)
    assert "with the weights of TIER's entropy terms at 0" in read_card(folder)[1]
    assert "text-image entropy regularization" not in read_card(folder)[1]


def test_card_of_a_calibrated_model_says_for_what_it_is(folder, metrics):
    write_model_card(folder, metrics)
    assert "are not calibrated" in read_card(folder)[1]
    config = json.loads((folder / "config.json").read_text())
    findings = {"Edema": {"positive": ["Edema."], "negative": ["Dry."], "scale": 30.0, "bias": -2.0}}
    findings["Edema"]["measured_on"] = {"dataset": "padchest", "split": "test", "images": 40, "date": "2026-01-31"}
    findings["Hernia"] = {"positive": ["Hernia."], "negative": ["None."], "threshold": 0.4}
    (folder / "config.json").write_text(json.dumps(config | {"zero_shot_findings": findings}))
    write_model_card(folder, metrics)
    assert "hold for images like those on which they were measured" in read_card(folder)[1]
    assert (
        "They were measured on 40 images of padchest, split 'test', 2026-01-31. Not calibrated: Hernia."
        in read_card(folder)[1]
    )
    assert "are not calibrated" not in read_card(folder)[1]


def test_names_of_findings_cannot_write_the_card(folder, metrics):
    """A finding's name comes from the table of whoever made the data."""
    metrics["findings"]["<img src=x>[a](http://b)"] = metrics["findings"]["Cardiomegaly"]
    metrics["protocol"]["findings_left_out"] = {"Edema": "no <b>images</b>"}
    write_model_card(folder, metrics)
    text = read_card(folder)[1]
    assert r"| \<img src=x\>\[a\](http://b) | 25 |" in text and r"Edema (no \<b\>images\</b\>)" in text


def test_training_facts_stay_with_the_model(folder, metrics):
    """Training writes them; an evaluation later renders them with its results."""
    write_model_card(folder, training={"dataset": "iu_cxr", "seed": 7})
    write_model_card(folder, metrics)
    _, text = read_card(folder)
    assert "| Seed | 7 |" in text and "| Cardiomegaly | 25 |" in text


def test_card_errors(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="^Unknown training fact 'epoch': use dataset, "):
        write_model_card(folder, training={"epoch": 3})
    with pytest.raises(ValueError, match="does not hold a model: config.json is missing"):
        write_model_card(tmp_path_factory.mktemp("empty"))


def test_a_misspelt_name_in_the_template_is_an_error_not_a_blank(folder, tmp_path, monkeypatch):
    template = tmp_path / "template.md"
    template.write_text(CARD_TEMPLATE.read_text() + "{{ licnse }}")
    monkeypatch.setattr("evaluation_tier.output.model_card.CARD_TEMPLATE", template)
    with pytest.raises(jinja2.UndefinedError, match="licnse"):
        write_model_card(folder)
    assert not (folder / "README.md").exists()


DAMAGED = "a number is not finite, a text is not valid Unicode, or values are nested too deeply. Save the model again."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{",
            "{path} is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
        ),
        ("[]", "{path} is not a JSON object."),
        (" " * (2**20 + 1), "{path} has more than 1,048,576 bytes; download it again."),
        ('{"vision_config": 0.5}', "{path}: vision_config must not be 0.5. Save the model again."),
        (
            '{"zero_shot_findings": ["x"]}',
            "{path}: zero_shot_findings must not be ['x']. Save the model again.",
        ),
        ('{"id2label": {"0": 1}}', "{path}: id2label has a name that is not text. Save the model again."),
        (
            '{"logit_scale_init_value": NaN}',
            "{path}: " + DAMAGED,
        ),
        (
            '{"x": "\\ud800"}',
            "{path}: " + DAMAGED,
        ),
        (
            '{"zero_shot_findings": {"Mass": 1}}',
            "The finding 'Mass' must have the keys positive, negative, threshold, scale, bias, score_level, "
            "measured_on, not 1.",
        ),
    ],
)
def test_a_damaged_configuration_is_one_sentence_and_stays_as_it_is(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_text(content)
    metrics = {
        "findings": {"Edema": {"scale": 30.0, "bias": -2.0, "threshold": 0.01}},
        "protocol": {"scoring": "difference", "score_level": "global"},
    }
    prompts = {"Edema": Prompts(["edema"], ["no edema"])}
    for write in (lambda: write_thresholds(tmp_path, metrics, prompts, {}), lambda: write_model_card(tmp_path)):
        with pytest.raises(ValueError) as error:
            write()
        assert type(error.value) is ValueError and str(error.value) == message.format(path=path)
    assert path.read_text() == content and [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "{folder}/training_facts.json is not a JSON object."),
        ('{"dataset": 7}', "{folder}/training_facts.json: dataset must be a name, not 7."),
    ],
)
def test_damaged_training_facts_are_one_sentence(tmp_path, content, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_facts.json").write_text(content)
    with pytest.raises(ValueError) as error:
        write_model_card(tmp_path)
    assert type(error.value) is ValueError and str(error.value) == message.format(folder=tmp_path)
    assert (tmp_path / "training_facts.json").read_text() == content and not (tmp_path / "README.md").exists()


def test_the_card_states_the_evidence_entropy_where_the_loss_has_it(folder):
    write_model_card(folder)
    assert "evidence" not in read_card(folder)[1]
    config = json.loads((folder / "config.json").read_text())
    config |= {"evidence_entropy_weight": 0.1, "evidence_patches": 55.0}
    (folder / "config.json").write_text(json.dumps(config))
    write_model_card(folder)
    text = read_card(folder)[1]
    assert "| Weight of the evidence entropy | 0.1 |\n| Patches of evidence without a penalty | 55.0 |\n" in text
    assert "A term of this project is added, `evidence_entropy_weight * evidence_entropy`, which rewards" in text


def test_published_training_data_are_told(folder, metrics):
    metrics["protocol"]["exposure"] = "X was trained on padchest; the evaluated data are of another data set (rsna)"
    write_model_card(folder, metrics)
    text = read_card(folder)[1]
    assert "published training data: X was trained on padchest; the evaluated data are of another data set" in text
    assert "**The evaluated data may be training data:**" not in text
    metrics["protocol"] |= {"exposure": "X was trained on rsna", "exposure_overlap": ["m"]}
    write_model_card(folder, metrics)
    text = read_card(folder)[1]
    assert "**The evaluated data may be training data:** X was trained on rsna." in text
    assert text.count("X was trained on rsna") == 1
