import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.figures.calibration import plot_calibration
from evaluation_tier.figures.curves import plot_precision_recall, plot_roc
from evaluation_tier.figures.forest import plot_findings, plot_subgroups
from evaluation_tier.figures.similarity import draw_similarity, plot_similarity_maps
from evaluation_tier.figures.style import COLOURS
from evaluation_tier.figures.training import plot_training_curves
from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts, load_prompts
from processing_tier.radiograph_tier import read_radiograph

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def evaluated(tier_model, phantom):
    metrics, predictions = evaluate_zero_shot(
        {"m": tier_model}, phantom, min_positives=5, resampling=Resampling(5), dataset_name="phantom"
    )
    return metrics, predictions, load_prompts("report", list(metrics["findings"]))


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_roc_figure(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    path = plot_roc(metrics, predictions, tmp_path / "roc.png")
    picture = read(path)
    assert picture.shape[0] > 700 and picture.shape[1] > 900
    blue = np.abs(picture - [0x00, 0x72, 0xB2]).max(axis=-1) < 12  # the colour of the first finding
    assert blue.sum() > 200
    assert list(tmp_path.iterdir()) == [path]


def test_figures_are_the_same_from_the_json_and_twice(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    first = plot_roc(metrics, predictions, tmp_path / "a.png").read_bytes()
    assert first == plot_roc(json.loads(json.dumps(to_json(metrics))), predictions, tmp_path / "b.png").read_bytes()


def test_a_finding_without_a_measured_auroc_is_not_drawn(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    undefined = {name: result | {"auroc": None} for name, result in metrics["findings"].items()}
    plot_roc(metrics | {"findings": undefined}, predictions, tmp_path / "roc.png")
    blue = np.abs(read(tmp_path / "roc.png") - [0x00, 0x72, 0xB2]).max(axis=-1) < 12
    assert not blue.any()


def test_one_similarity_figure_per_finding_of_its_best_positive(tier_model, phantom, evaluated, tmp_path, monkeypatch):
    metrics, predictions, prompts = evaluated
    shown = []

    def spy(matplotlib, radiograph, mask, similarity, label):
        shown.append((radiograph, mask, similarity))
        assert label == "positive minus negative contribution,\nabove the average image"
        return draw_similarity(matplotlib, radiograph, mask, similarity, label)

    monkeypatch.setattr("evaluation_tier.figures.similarity.draw_similarity", spy)
    paths = plot_similarity_maps(*tier_model, phantom, prompts, metrics, predictions, tmp_path)
    assert [path.name for path in paths] == [f"similarity_{name}.png" for name in file_names(prompts).values()]
    everything = [read_radiograph(image) for image in phantom["image"]]
    cases = [Case(row, finding, "") for row in range(len(phantom)) for finding in prompts]
    grids, _ = compute_grids(*tier_model, phantom, cases, prompts)
    differences = np.stack([grids[case]["difference_contribution"] for case in cases])
    differences = differences.reshape(len(phantom), len(prompts), *differences.shape[1:])
    for i, (finding, path, (radiograph, mask, similarity)) in enumerate(zip(prompts, paths, shown, strict=True)):
        picture = read(path)
        assert picture.shape[1] > 1.8 * picture.shape[0]  # three panels
        green = np.abs(picture - [0x39, 0xFF, 0x88]).max(axis=-1) < 40  # the outline of the mask
        assert green.sum() > 50, finding
        positives = predictions[predictions[f"label_{finding}"] == 1]
        row = int(positives[f"score_{finding}"].idxmax())
        assert phantom[row][finding] == 1
        np.testing.assert_array_equal(np.asarray(radiograph), np.asarray(everything[row]))
        assert mask.any() and mask.shape == similarity.shape == (64, 64)
        # against the average of all 60 images, seen in the radiograph's pixels
        grid = torch.from_numpy(differences[row, i] - differences[:, i].mean(axis=0))[None]
        to_pixels = tier_model[1].image_processor.post_process_similarity_map
        expected = to_pixels(grid, [(64, 64)], tier_model[0].patch_centers)[0]
        np.testing.assert_allclose(similarity, expected.numpy(), atol=1e-5)


def test_similarity_figure_without_masks(tier_model, phantom, evaluated, tmp_path):
    metrics, predictions, prompts = evaluated
    finding = next(iter(prompts))
    bare = phantom.remove_columns("masks")
    (path,) = plot_similarity_maps(*tier_model, bare, {finding: prompts[finding]}, metrics, predictions, tmp_path)
    picture = read(path)
    assert picture.shape[1] < 1.95 * picture.shape[0]  # two panels


def test_similarity_figures_say_what_and_whose_they_are(tier_model, phantom, evaluated, tmp_path, monkeypatch):
    metrics, predictions, prompts = evaluated
    finding = next(iter(prompts))
    figures = []

    def spy(*arguments):
        figures.append(draw_similarity(*arguments))
        return figures[-1]

    monkeypatch.setattr("evaluation_tier.figures.similarity.draw_similarity", spy)
    alone = {finding: Prompts(prompts[finding].positive, [])}
    two = {**metrics, "models": ["runs/a", "runs/b"]}
    plot_similarity_maps(*tier_model, phantom, alone, two, predictions, tmp_path)
    assert figures[0].axes[-1].get_ylabel() == "contribution,\nabove the average image"
    assert figures[0].get_suptitle() == f"{finding}, phantom (synthetic)\nmap of runs/a alone"
    low, high = figures[0].axes[-2].images[-1].get_clim()
    assert low == -high < 0  # white is the average image

    monkeypatch.setattr(
        tier_model[0].config, "image_pooling", "cls"
    )  # whose image embedding is not a sum over patches
    plot_similarity_maps(*tier_model, phantom, {finding: prompts[finding]}, metrics, predictions, tmp_path)
    assert figures[1].axes[-1].get_ylabel() == "positive minus negative cosine,\nabove the average image"


def test_models_without_maps_are_refused(brightness, phantom, evaluated, tmp_path):
    metrics, predictions, prompts = evaluated
    with pytest.raises(ValueError, match="A BrightnessModel does not give similarity maps"):
        plot_similarity_maps(*brightness, phantom, prompts, metrics, predictions, tmp_path)


def trainer_state(folder, *keys):
    entries = [
        {"epoch": i / 10, "step": i, **{key: 5.0 - i / 10 for key in keys if not key.startswith("eval_")}}
        for i in range(20)
    ]
    entries += [{"epoch": float(i), "step": 10 * i, **{k: 4.0 for k in keys if k[:5] == "eval_"}} for i in range(2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries + [{"train_loss": 3, "epoch": 2}]}))
    return folder / "trainer_state.json"


def test_training_curves(tmp_path):
    keys = ["loss", "contrastive_loss", "token_entropy", "patch_entropy"]
    state = trainer_state(tmp_path, *keys, *[f"eval_{key}" for key in keys], "eval_auroc")
    five = read(plot_training_curves(state, tmp_path / "five.png"))
    three = read(plot_training_curves(trainer_state(tmp_path, *keys[:3]), tmp_path / "three.png"))
    assert five.shape[0] > 1.5 * three.shape[0]  # two rows of panels, and one
    orange = np.array([0xD5, 0x5E, 0x00])
    assert (np.abs(five - orange).max(axis=-1) < 12).sum() > 100
    assert not (np.abs(three - orange).max(axis=-1) < 12).any()  # no validation, so no such colour


def test_training_curves_of_what_is_no_training(tmp_path):
    with pytest.raises(ValueError, match="nowhere.json is not the trainer_state.json"):
        plot_training_curves(tmp_path / "nowhere.json", tmp_path / "x.png")
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the trainer_state.json"):
        plot_training_curves(tmp_path / "trainer_state.json", tmp_path / "x.png")
    for history in ([7], [{"loss": 1}], [{"loss": "x", "epoch": 1}], [{"loss": 1, "epoch": {}}], 7, {"a": 1}):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        with pytest.raises(ValueError, match="is not the trainer_state.json"):
            plot_training_curves(tmp_path / "trainer_state.json", tmp_path / "x.png")
    with pytest.raises(ValueError, match="does not log a loss"):
        plot_training_curves(trainer_state(tmp_path), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_file_names_stay_in_their_folder():
    found = file_names(["Nodule/Mass", "../../etc/passwd", "///"])
    assert list(found.values())[:2] == ["nodule_mass", "etc_passwd"] and found["///"].startswith("finding_")


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="^Figures need matplotlib: install it with pip install matplotlib"):
        plot_training_curves(tmp_path / "trainer_state.json", tmp_path / "x.png")


def colour_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has a colour, "#rrggbb"."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return np.abs(picture - [red, green, blue]).max(axis=-1) < 12


def test_precision_recall_figure(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    picture = read(plot_precision_recall(metrics, predictions, tmp_path / "pr.png"))
    assert picture.shape[0] > 700 and picture.shape[1] > 900
    assert colour_of(picture, COLOURS[0]).sum() > 200


def test_nothing_is_cut_off_at_the_edges(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    long = {f"{name}, as it is called elsewhere": result for name, result in metrics["findings"].items()}
    renamed = predictions.rename(columns=lambda name: f"{name}, as it is called elsewhere")
    for plot in (plot_roc, plot_precision_recall):
        picture = read(plot(metrics | {"findings": long}, renamed, tmp_path / "figure.png"))
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all()


def test_radiologists_are_points_on_both_curves(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    finding = list(metrics["findings"])[0]
    reader = {"fpr": 0.9, "tpr": 0.1, "recall": 0.9, "precision": 0.9}  # where no curve of these comes near
    nobody = {"fpr": None, "tpr": None, "recall": None, "precision": None}
    with_readers = metrics | {"radiologists": {"findings": {finding: {"readers": {"a": reader, "b": nobody}}}}}
    for plot in (plot_roc, plot_precision_recall):
        before = read(plot(metrics, predictions, tmp_path / "before.png"))
        after = read(plot(with_readers, predictions, tmp_path / "after.png"))
        assert (colour_of(after, COLOURS[0])).sum() > (colour_of(before, COLOURS[0])).sum() + 20


def test_forest_plots(evaluated, tmp_path):
    metrics, _, _ = evaluated
    picture = read(plot_findings(metrics, tmp_path / "findings.png"))
    assert colour_of(picture, COLOURS[0]).sum() > 500
    undefined = {
        name: result | {"auroc": None, "auroc_ci95": [None, None]} for name, result in metrics["findings"].items()
    }
    picture = read(plot_findings(metrics | {"findings": undefined}, tmp_path / "findings.png"))
    assert not colour_of(picture, COLOURS[0]).any()
    group = {"n_images": 30, "mean": {"auroc": 0.6, "auroc_ci95": [0.5, 0.7]}}
    groups = {"groups": {"$F": group, "M": group}, "findings_in_mean": ["Edema"]}
    metrics = metrics | {"subgroups": {"sex": groups, "view": {"groups": {}, "findings_in_mean": []}}}
    first = plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes()
    assert colour_of(read(tmp_path / "subgroups.png"), COLOURS[0]).sum() > 200
    assert plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes() == first
    metrics["subgroups"]["view"] = {"groups": {"AP": group}, "findings_in_mean": []}  # nothing in common, no mean
    assert plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes() == first


def test_calibration_figure(evaluated, tmp_path):
    metrics, predictions, _ = evaluated
    findings = {name: result | {"scale": None, "bias": None} for name, result in metrics["findings"].items()}
    with pytest.raises(ValueError, match="needs a finding with a calibration"):
        plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png")
    first, second = list(findings)[:2]
    findings[first] |= {"scale": 30.0, "bias": -1.0, "ece": 0.05}
    one = read(plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png"))
    findings[second] |= {"scale": 30.0, "bias": -1.0, "ece": None}
    two = read(plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png"))
    assert two.shape[0] == one.shape[0] and two.shape[1] > 1.4 * one.shape[1]  # a panel for each


def test_no_figure_names_an_image(tier_model, phantom, evaluated, tmp_path, monkeypatch):
    metrics, predictions, prompts = evaluated
    titles = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda figure, text, **options: titles.append(text))
    plot_similarity_maps(*tier_model, phantom, {"Edema": prompts["Edema"]}, metrics, predictions, tmp_path)
    assert titles == ["Edema, phantom (synthetic)"]


def test_calibration_is_drawn_of_what_it_was_fitted_on(evaluated, tmp_path, monkeypatch):
    """Scores that are probabilities are calibrated by their log-odds, but not those that other findings give."""
    seen = []
    by_log_odds = "evaluation_tier.figures.calibration.log_odds"
    monkeypatch.setattr(by_log_odds, lambda scores: seen.append(len(scores)) or scores)
    metrics, predictions, _ = evaluated
    finding = list(metrics["findings"])[0]
    result = metrics["findings"][finding] | {"scale": 1.0, "bias": 0.0}
    predictions = predictions.rename(columns=lambda name: name.replace(finding, "No Finding"))
    for scoring, no_finding, calls in (
        ("difference", "prompts", 0),
        ("softmax", "prompts", 1),
        ("softmax", "others", 1),
    ):
        protocol = metrics["protocol"] | {"scoring": scoring, "no_finding": no_finding}
        plot_calibration(
            metrics | {"findings": {"No Finding": result}, "protocol": protocol}, predictions, tmp_path / "c.png"
        )
        assert len(seen) == calls
