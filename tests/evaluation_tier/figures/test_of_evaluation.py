"""Similarity maps of --figures for models of every family, and one line about those that cannot give any."""

import numpy as np
import pytest
import torch
from own_model import OWN
from tiny_radzero import TEXTS, Parts
from tiny_siglip import save_siglip

from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.figures.heat_maps import compute_heat_maps
from evaluation_tier.figures.of_evaluation import draw_figures
from evaluation_tier.figures.similarity import draw_similarity, plot_similarity_maps
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.models.loading import load_model
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts, load_prompts
from processing_tier.radiograph_tier import read_radiograph

pytest.importorskip("matplotlib")

FINDING = "Cardiomegaly"


@pytest.fixture(scope="module")
def radzero(tmp_path_factory):
    return load_model(Parts().save(tmp_path_factory.mktemp("models") / "radzero"))


def evaluate(models_, phantom):
    options = {"findings": [FINDING], "min_positives": 1, "resampling": Resampling(5), "dataset_name": "phantom"}
    return evaluate_zero_shot(models_, phantom, **options)


def test_maps_of_a_model_of_the_contract_lie_over_its_own_picture(radzero, phantom, tmp_path, monkeypatch):
    """RadZero's picture is squashed; the map is the one that grounding measures."""
    metrics, predictions = evaluate({"radzero": radzero}, phantom)
    prompts = load_prompts("report", [FINDING])
    drawn = []

    def spy(columns, label):
        drawn.append((columns, label))
        return draw_similarity(columns, label)

    monkeypatch.setattr("evaluation_tier.figures.similarity.draw_similarity", spy)
    [path] = plot_similarity_maps(*radzero, phantom, prompts, metrics, predictions, tmp_path)
    assert path.is_file()
    [(columns, label)] = drawn
    assert label == "positive minus negative cosine,\nabove the average image"
    radiographs = [np.asarray(read_radiograph(image)) for image in phantom["image"]]
    grids, _ = compute_grids(*radzero, phantom, [Case(row, FINDING, "") for row in range(len(phantom))], prompts)
    for column in columns:
        [row] = [i for i, radiograph in enumerate(radiographs) if np.array_equal(radiograph, column.radiograph)]
        grid = torch.from_numpy(grids[Case(row, FINDING, "")]["above_average"])[None]
        lay = radzero[0].map_processor.post_process_similarity_map
        expected = lay(grid, [column.radiograph.shape], radzero[0].patch_centers)[0]
        np.testing.assert_allclose(column.similarity, expected.numpy(), rtol=0, atol=1e-6)


def test_the_maps_beside_those_of_others_are_of_the_same_cosines(radzero, phantom):
    few = phantom.select(range(6))
    found = compute_heat_maps(*radzero, few, {"Edema": Prompts([TEXTS[0]], [])}, Prompts([TEXTS[1]], []))
    assert found.kind == "cosine" and found.maps.shape == (6, 1, 4, 4) and found.patch_centers == (7, 14)
    model = radzero[0]
    positive, _ = embed_prompts(*radzero, {"a": Prompts([TEXTS[0]], []), "b": Prompts([TEXTS[1]], [])})
    pixels = torch.cat([model.preprocess(model.read_image(image)) for image in few["image"]])
    with torch.inference_mode():
        cosines = (model.embed_patches(pixels).patches @ torch.from_numpy(positive).T).numpy()
    low, high = (np.percentile(cosines, share, axis=(0, 1)) for share in (1, 99))
    scaled = np.clip((cosines - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found.maps[:, 0], (scaled[..., 0] - scaled[..., 1]).reshape(6, 4, 4), atol=1e-4)


@pytest.mark.slow
def test_the_maps_of_an_ensemble_are_drawn_side_by_side(radzero, tier_model, phantom, tmp_path):
    models_ = {"radzero": radzero, "tier": tier_model}
    metrics, predictions = evaluate(models_, phantom)
    prompts, no_finding = load_prompts("report", [FINDING]), load_prompts("report", ["No Finding"])["No Finding"]
    files = draw_figures(models_.get, phantom, prompts, no_finding, metrics, predictions, tmp_path)
    assert {"similarity_cardiomegaly.png", "similarity_of_models.png"} <= {path.name for path in files}


def test_one_line_tells_why_there_are_no_maps(phantom, tmp_path, caplog):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    save_siglip(tmp_path / "siglip")
    models_ = {"siglip": load_model(tmp_path / "siglip"), "mine": load_model(AdapterName(f"{file}:make"))}
    metrics, predictions = evaluate(models_, phantom)
    metrics["findings"][FINDING]["threshold"] = None  # so that the worst errors, another figure, are not drawn
    prompts, no_finding = load_prompts("report", [FINDING]), load_prompts("report", ["No Finding"])["No Finding"]
    assert draw_figures(models_.get, phantom, prompts, no_finding, metrics, predictions, tmp_path) == []
    assert [record.getMessage() for record in caplog.records if "maps" in record.getMessage()] == [
        "No similarity maps of siglip. SiglipModel does not give similarity maps of sentences: use a TIER model "
        "(docs/models.md says which models tier-convert makes one of, docs/siglip.md what makes one of SigLIP).",
        f"No similarity maps of mine. The model of --adapter {file}:make does not say where its patches lie in the "
        "picture: give it embed_patches and map_geometry (docs/own_model.md).",
    ]
