import numpy as np
import pandas as pd
import pytest
import torch

from evaluation_tier.figures.heat_maps import choose_images, compute_heat_maps, plot_heat_maps, scale
from evaluation_tier.models.embedding import embed_prompts
from processing_tier.prompts.loader import Prompts

PROMPTS = {"Edema": Prompts(["There is edema.", "Edema."], ["No edema."]), "Mass": Prompts(["A mass."], [])}
NO_FINDING = Prompts(["The lungs are clear."], ["A mass."])


@pytest.mark.parametrize("image_pooling, kind", [("cls", "direct contribution"), ("patch_mean", "contribution")])
def test_maps_are_scaled_over_the_set_and_compared_with_no_finding(
    tier_model, phantom, monkeypatch, image_pooling, kind
):
    """As zero_shot_heatmaps.py does it: percentiles of all patches of all images, then minus the normal map."""
    model, processor = tier_model
    monkeypatch.setattr(model.config, "image_pooling", image_pooling)
    dataset = phantom.select(range(12))
    found = compute_heat_maps(model, processor, dataset, PROMPTS, NO_FINDING, batch_size=5)
    assert found.kind == kind and found.findings == ["Edema", "Mass"] and found.maps.shape == (12, 2, 4, 4)

    texts, _ = embed_prompts(model, processor, {**PROMPTS, "normal": NO_FINDING})
    read = processor.image_processor.read
    pixels = processor.image_processor(
        [read(image) for image in dataset.with_format(None)["image"]], return_tensors="pt"
    )
    with torch.no_grad():
        patches = model.get_patch_map(pixels["pixel_values"]).flatten(1, 2)
        direct = model.get_direct_map(pixels["pixel_values"]).flatten(1, 2) if image_pooling == "cls" else None
    weights = patches.norm(dim=-1) / (16 * patches.mean(dim=1, keepdim=True).norm(dim=-1))
    cosines = torch.nn.functional.cosine_similarity(patches[:, :, None], torch.from_numpy(texts), dim=-1)
    cosines = (cosines * weights[:, :, None] if direct is None else direct @ torch.from_numpy(texts).T).numpy()
    scaled = []
    for i in range(3):
        low, high = np.percentile(cosines[..., i], 1), np.percentile(cosines[..., i], 99)
        scaled.append(np.clip((cosines[..., i] - low) / (high - low), 0, 1))
    for i in range(2):
        expected = (scaled[i] - scaled[2]).reshape(12, 4, 4)
        np.testing.assert_allclose(found.maps[:, i], expected, atol=1e-3)
    again = compute_heat_maps(model, processor, dataset, {"Mass": NO_FINDING}, NO_FINDING)
    assert np.abs(again.maps).max() == 0  # the same sentences see the same


def test_scaling_clips_the_extremes_and_leaves_constants_at_0():
    values = np.arange(101.0)
    assert scale(values)[[0, 1, 50, 99, 100]] == pytest.approx([0, 0, 0.5, 1, 1])
    assert (scale(np.full(5, 0.3)) == 0).all()
    assert np.isnan(scale(np.array([0.0, np.nan, 1.0]))).tolist() == [False, True, False]


def test_each_finding_is_shown_on_its_surest_positive():
    predictions = pd.DataFrame(
        {"label_A": [1, 1, 0], "score_A": [0.2, 0.5, 0.9], "label_B": [0, 0, 0], "score_B": [1, 2, 3]}, index=[4, 7, 9]
    )
    assert choose_images(predictions, ["A", "B"]) == {"A": 7}
    normal = predictions.rename(columns=lambda name: name.replace("_A", "_No Finding"))
    assert choose_images(normal, ["No Finding"]) == {}  # what the others are compared with


def test_the_figure_has_a_row_per_finding_and_a_column_per_model(tier_model, phantom, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    model, processor = tier_model
    dataset = phantom.select(range(6))
    maps = compute_heat_maps(model, processor, dataset, PROMPTS, NO_FINDING)
    sizes = {}
    for names in (("a",), ("a", "b$")):
        path = tmp_path / f"{len(names)}.png"
        images = {"Edema": 3, "Mass": 0}
        plot_heat_maps(
            dict.fromkeys(names, maps),
            dict.fromkeys(names, processor.image_processor),
            dataset,
            images,
            path,
            "phantom",
        )
        with Image.open(path) as image:
            sizes[names] = image.size
    assert sizes["a", "b$"][0] > sizes["a",][0] and sizes["a", "b$"][1] == sizes["a",][1]
    with pytest.raises(ValueError, match="need an evaluated image with a finding"):
        plot_heat_maps({"a": maps}, {"a": processor.image_processor}, dataset, {}, tmp_path / "no.png")
