"""Grounding of classifiers: class activation maps, which are all that they have."""

import json

import numpy as np
import pytest
import torch

import eval_zeroshot
from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import read_cases
from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.models.images import read_batches
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier import TierCLIPForImageClassification
from processing_tier.prompts.loader import load_prompts

LEARNT = ["Nodule", "Cardiomegaly", "Pleural Effusion"]  # not in the order of the data, and not all of them


@pytest.fixture(scope="module")
def zero_shot_head(tier_model):
    """A classifier that is the zero-shot classifier of the model."""
    model, processor = tier_model
    classifier = TierCLIPForImageClassification.from_image_tower(model, LEARNT).eval()
    sides = map(torch.from_numpy, embed_prompts(model, processor, load_prompts("report", LEARNT)))
    classifier.set_zero_shot_head(*sides, scale=5.0)
    return classifier, processor.image_processor


def test_maps_of_a_classifier_sum_to_its_logits(zero_shot_head, phantom):
    model, image_processor = zero_shot_head
    few = phantom.select(range(20)).with_format(None)
    cases = [case for case in read_cases(few) if case.finding in LEARNT]
    grids, num_reference = compute_grids(model, image_processor, few, cases, {}, batch_size=1)
    assert list(grids) == cases and num_reference == 20
    with torch.no_grad():
        batches = list(read_batches(model, image_processor, few, 1))
        maps = torch.cat([model.get_class_activation_map(batch.pixels) for batch in batches]).numpy()
        logits = torch.cat([model(batch.pixels).logits for batch in batches]).numpy()
    for case in cases:
        label = LEARNT.index(case.finding)
        found = grids[case]
        assert set(found) == {"class_activation", "above_average_class_activation", "average_class_activation"}
        np.testing.assert_allclose(found["class_activation"], maps[case.row, label], rtol=0, atol=1e-6)
        assert found["class_activation"].sum() == pytest.approx(logits[case.row, label], abs=1e-5)
        np.testing.assert_allclose(found["average_class_activation"], maps[:, label].mean(axis=0), rtol=0, atol=1e-6)
        above = found["class_activation"] - found["average_class_activation"]
        np.testing.assert_allclose(found["above_average_class_activation"], above, rtol=0, atol=1e-7)


def test_a_zero_shot_head_points_where_its_model_does(zero_shot_head, tier_model, phantom):
    options = {"resampling": Resampling(5), "dataset_name": "phantom"}
    of_head = evaluate_grounding(*zero_shot_head, phantom, **options)
    of_model = evaluate_grounding(*tier_model, phantom, findings=LEARNT, **options)
    assert list(of_head["findings"]) == list(of_model["findings"]) == sorted(LEARNT)  # the others were never learnt
    assert of_head["protocol"]["prompts"] == "none (trained heads)"
    names = {"class_activation": "difference_contribution"}
    names["above_average_class_activation"] = "above_average_contribution"
    assert list(of_head["mean"]["maps"]) == list(names)
    assert list(of_head["mean"]["baselines"]) == ["average_class_activation", "prior", "centre", "random"]
    for part in ("mean", "all_regions"):
        for name, same in names.items():
            for metric in ("pointing", "pixel_auroc", "signed_cnr"):  # a scale does not change them
                found, expected = (of[part]["maps"][n][metric] for of, n in ((of_head, name), (of_model, same)))
                assert found["mean"] == pytest.approx(expected["mean"], abs=2e-3)


def test_findings_that_were_never_learnt(zero_shot_head, phantom):
    model, image_processor = zero_shot_head
    known = "it knows 'Nodule', 'Cardiomegaly', 'Pleural Effusion'.$"
    with pytest.raises(ValueError, match=f"^The classifier was not trained on 'Edema': {known}"):
        evaluate_grounding(model, image_processor, phantom, findings=["Edema", "Nodule"])
    others = phantom.filter(lambda masks: {mask["finding"] for mask in masks} == {"Edema"}, input_columns="masks")
    with pytest.raises(ValueError, match=f"^The classifier was not trained on 'Edema': {known}"):
        evaluate_grounding(model, image_processor, others)


@pytest.mark.slow
def test_the_command_grounds_and_draws_a_classifier(zero_shot_head, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder, output = tmp_path / "classifier", tmp_path / "evaluation"
    for part in zero_shot_head:
        part.save_pretrained(folder)
    words = [folder, "--data", "phantom:num_images=60,image_size=64", "--split", "validation"]
    words += ["--analyses", "grounding", "--figures", "--model_card", "--min_positives", 2, "--n_bootstrap", 20]
    eval_zeroshot.main([str(word) for word in [*words, "--output_dir", output]])
    assert "Classifier on phantom" in capsys.readouterr().out
    grounding = json.loads((output / "metrics.json").read_text())["grounding"]
    assert list(grounding["findings"]) == sorted(LEARNT)
    assert 0 <= grounding["all_regions"]["maps"]["class_activation"]["pointing"]["mean"] <= 1
    assert (output / "grounding.png").is_file() and (output / "grounding_regions.parquet").is_file()
    drawn = {path.name for path in output.glob("similarity_*.png")}
    assert drawn == {f"similarity_{name.lower().replace(' ', '_')}.png" for name in LEARNT}
    assert "Maps of the model: class activations" in (output / "report.html").read_text()
    assert "Above average" in (output / "tables.md").read_text()
    assert "Pointing of class activations, mean" in (folder / "README.md").read_text()
    with pytest.raises(SystemExit):
        eval_zeroshot.main([str(folder), *map(str, words[1:5]), "--analyses", "deletion"])
    assert "does not give similarity maps of sentences" in capsys.readouterr().err
