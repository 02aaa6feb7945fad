import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.figures.similarity import choose_images, draw_similarity, plot_similarity_maps
from evaluation_tier.output.file_names import file_names
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier.heat_map_tier import map_limit
from processing_tier.prompts.loader import Prompts, load_prompts
from processing_tier.radiograph_tier import read_radiograph

pytest.importorskip("matplotlib")


FINDINGS = ["Consolidation", "Nodule"]


@pytest.fixture(scope="module")
def evaluated(tier_model, phantom):
    metrics, predictions = evaluate_zero_shot(
        {"m": tier_model}, phantom, FINDINGS, min_positives=5, resampling=Resampling(5), dataset_name="phantom"
    )
    return metrics, predictions, load_prompts("report", list(metrics["findings"]))


@pytest.fixture
def drawn(monkeypatch):
    """Columns, label and figure of each call of `draw_similarity`."""
    calls = []

    def spy(columns, label):
        calls.append((columns, label, draw_similarity(columns, label)))
        return calls[-1][2]

    monkeypatch.setattr("evaluation_tier.figures.similarity.draw_similarity", spy)
    return calls


def test_images_of_each_outcome():
    predictions = pd.DataFrame(
        {"label_A": [1, 1, 1, 0, 0, 0, -1, np.nan], "score_A": [0.6, 0.9, 0.2, 0.7, 0.1, 0.3, 5.0, -5.0]},
        index=range(10, 18),
    )
    outcomes = {"True positive": 11, "False negative": 12, "False positive": 13, "True negative": 14}
    assert choose_images(predictions, "A", 0.5) == outcomes
    assert choose_images(predictions, "A", 0.7) == outcomes  # a score at the threshold counts as present
    assert choose_images(predictions, "A", 0.05) == {"True positive": 11, "False positive": 13}
    assert choose_images(predictions, "A", float("nan")) == {"Positive": 11, "Negative": 14}
    assert choose_images(predictions[6:], "A", 0.5) == {}


def test_a_figure_per_finding_with_its_outcomes_on_one_scale(tier_model, phantom, evaluated, tmp_path, drawn):
    metrics, predictions, prompts = evaluated
    paths = plot_similarity_maps(*tier_model, phantom, prompts, metrics, predictions, tmp_path)
    assert [path.name for path in paths] == [f"similarity_{name}.png" for name in file_names(prompts).values()]
    everything = [read_radiograph(image) for image in phantom["image"]]
    cases = [Case(row, finding, "") for row in range(len(phantom)) for finding in prompts]
    grids, _ = compute_grids(*tier_model, phantom, cases, prompts)
    differences = np.stack([grids[case]["difference_contribution"] for case in cases])
    differences = differences.reshape(len(phantom), len(prompts), *differences.shape[1:])
    to_pixels = tier_model[1].image_processor.post_process_similarity_map
    for i, (finding, path, (columns, label, figure)) in enumerate(zip(prompts, paths, drawn, strict=True)):
        assert label == "positive minus negative contribution,\nabove the average image"
        threshold = metrics["findings"][finding]["threshold"]
        rows = choose_images(predictions, finding, threshold)
        titles = [f"{outcome}\nscore {predictions.at[row, f'score_{finding}']:.3f}" for outcome, row in rows.items()]
        assert [column.title for column in columns] == titles
        rows_of_patches, columns_of_patches = differences.shape[2:]
        of_grid = f"{rows_of_patches} x {columns_of_patches} patches, threshold {threshold:.3f}"
        assert figure.get_suptitle() == f"{finding}, phantom (synthetic)\n{of_grid}"  # names no image or patient
        for row, column in zip(rows.values(), columns, strict=True):
            np.testing.assert_array_equal(column.radiograph, np.asarray(everything[row]))
            assert column.mask.any() == (phantom[row][finding] == 1) if column.mask is not None else True
            # against the average of all 60 images, seen in the radiograph's pixels
            grid = torch.from_numpy(differences[row, i] - differences[:, i].mean(axis=0))[None]
            expected = to_pixels(grid, [(64, 64)], tier_model[0].patch_centers)[0]
            np.testing.assert_allclose(column.similarity, expected.numpy(), atol=1e-5)
        overlays = [axes.images[-1] for axes in figure.axes[len(columns) : 2 * len(columns)]]
        limit = map_limit(np.concatenate([column.similarity.ravel() for column in columns]))
        for overlay, column in zip(overlays, columns, strict=True):
            assert overlay.get_clim() == (-limit, limit)
            alpha = overlay.get_alpha()
            assert alpha[np.abs(column.similarity) < limit / 100].max(initial=0) < 0.01  # transparent at 0
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB")).astype(int)
        assert (np.abs(picture - [0x39, 0xFF, 0x88]).max(axis=-1) < 40).sum() > 50, finding  # the outline of a mask


def test_the_borders_of_patches_lie_between_their_centres(tier_model, phantom, evaluated, tmp_path, drawn):
    metrics, predictions, prompts = evaluated
    finding = next(iter(prompts))
    plot_similarity_maps(*tier_model, phantom, {finding: prompts[finding]}, metrics, predictions, tmp_path)
    (rows, columns) = drawn[0][0][0].borders
    number = tier_model[0].config.vision_config.image_size // tier_model[0].config.vision_config.patch_size
    assert rows.max() == columns.max() == number - 1
    size = 64 / number
    for k in range(number - 1):  # halfway between two centres a new patch begins
        at = round(size * (k + 1))
        assert columns[0, at - 1] < k + 0.5 < columns[0, at] and rows[at - 1, 0] < k + 0.5 < rows[at, 0]


def test_figures_without_masks_or_thresholds(tier_model, phantom, evaluated, tmp_path, drawn):
    metrics, predictions, prompts = evaluated
    finding = next(iter(prompts))
    bare = phantom.remove_columns("masks")
    unknown = metrics | {"findings": {finding: metrics["findings"][finding] | {"threshold": None}}}
    plot_similarity_maps(*tier_model, bare, {finding: prompts[finding]}, unknown, predictions, tmp_path)
    columns, _, figure = drawn[0]
    assert [column.title.split("\n")[0] for column in columns] == ["Positive", "Negative"]
    assert all(column.mask is None for column in columns) and "threshold" not in figure.get_suptitle()


def test_figures_say_what_and_whose_they_are(tier_model, phantom, evaluated, tmp_path, drawn, monkeypatch):
    metrics, predictions, prompts = evaluated
    finding = next(iter(prompts))
    alone = {finding: Prompts(prompts[finding].positive, [])}
    two = {**metrics, "models": ["runs/a", "runs/b"]}
    plot_similarity_maps(*tier_model, phantom, alone, two, predictions, tmp_path)
    assert drawn[0][1] == "contribution,\nabove the average image"
    assert drawn[0][2].get_suptitle().startswith(f"{finding}, phantom (synthetic), map of runs/a alone\n")

    monkeypatch.setattr(
        tier_model[0].config, "image_pooling", "cls"
    )  # whose image embedding is not a sum over patches
    plot_similarity_maps(*tier_model, phantom, {finding: prompts[finding]}, metrics, predictions, tmp_path)
    assert drawn[1][1] == "positive minus negative direct contribution,\nabove the average image"


def test_models_without_maps_are_refused(brightness, phantom, evaluated, tmp_path):
    metrics, predictions, prompts = evaluated
    with pytest.raises(ValueError, match="BrightnessModel does not give similarity maps"):
        plot_similarity_maps(*brightness, phantom, prompts, metrics, predictions, tmp_path)
