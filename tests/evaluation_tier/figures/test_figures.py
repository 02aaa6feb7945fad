import json
import sys

import numpy as np
import pytest
from PIL import Image

from evaluation_tier.figures import style
from evaluation_tier.figures.calibration import plot_calibration
from evaluation_tier.figures.curves import plot_precision_recall, plot_roc
from evaluation_tier.figures.forest import plot_findings, plot_forest, plot_subgroups
from evaluation_tier.figures.style import COLOURS, labels_and_scores
from evaluation_tier.figures.training import plot_training_curves
from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.metrics import roc_curve
from evaluation_tier.statistics.resampling import Resampling

pytest.importorskip("matplotlib")


FINDINGS = ["Cardiomegaly", "Pleural Effusion", "Nodule"]


@pytest.fixture(scope="module")
def evaluated(tier_model, phantom):
    metrics, predictions = evaluate_zero_shot(
        {"m": tier_model}, phantom, FINDINGS, min_positives=5, resampling=Resampling(20), dataset_name="phantom"
    )
    return metrics, predictions


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are written."""
    figures = []
    real = style.save_png
    for module in ("curves", "calibration", "robustness", "training", "forest"):
        name = f"evaluation_tier.figures.{module}.save_png"
        monkeypatch.setattr(
            name, lambda figure, path, **options: figures.append(figure) or real(figure, path, **options)
        )
    return figures


def panels_of(figure) -> list:
    return [axes for axes in figure.axes if axes.axison]


def test_roc_figure(evaluated, tmp_path, drawn):
    metrics, predictions = evaluated
    path = plot_roc(metrics, predictions, tmp_path / "roc.png")
    assert colour_of(read(path), COLOURS[0]).sum() > 200
    assert list(tmp_path.iterdir()) == [path]
    panels = panels_of(drawn[0])
    assert [axes.get_title(loc="left").split("\n")[0] for axes in panels] == list(metrics["findings"])
    for axes, (finding, result) in zip(panels, metrics["findings"].items(), strict=True):
        chance, curve, point = axes.lines
        np.testing.assert_array_equal(chance.get_data(), [[0, 1], [0, 1]])
        np.testing.assert_array_equal(curve.get_data(), roc_curve(*labels_and_scores(predictions, finding)))
        expected = [1 - result["specificity"], result["sensitivity"]]
        np.testing.assert_allclose(np.ravel(point.get_data()), expected)
        assert len(axes.collections) == np.isfinite(result["auroc_ci95"]).all()  # the band


def test_a_finding_without_an_interval_has_no_band(evaluated, tmp_path, drawn):
    metrics, predictions = evaluated
    bare = {name: result | {"auroc_ci95": [None, None]} for name, result in metrics["findings"].items()}
    plot_roc(metrics | {"findings": bare}, predictions, tmp_path / "roc.png")
    assert not any(axes.collections for axes in panels_of(drawn[0]))


def test_the_findings_with_the_most_positives_have_panels(evaluated, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(style, "MAX_PANELS", 2)
    metrics, predictions = evaluated
    counts = {name: result["n_positive"] for name, result in metrics["findings"].items()}
    kept = sorted(counts, key=lambda name: -counts[name])[:2]
    plot_roc(metrics, predictions, tmp_path / "roc.png")
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in panels_of(drawn[0])]
    assert titles == [name for name in counts if name in kept]
    assert drawn[0].get_suptitle().endswith(f"the 2 of {len(counts)} findings with the most positives")


def test_figures_are_the_same_from_the_json_and_twice(evaluated, tmp_path):
    metrics, predictions = evaluated
    first = plot_roc(metrics, predictions, tmp_path / "a.png").read_bytes()
    assert first == plot_roc(json.loads(json.dumps(to_json(metrics))), predictions, tmp_path / "b.png").read_bytes()


def test_a_finding_without_a_measured_auroc_is_not_drawn(evaluated, tmp_path):
    metrics, predictions = evaluated
    undefined = {name: result | {"auroc": None} for name, result in metrics["findings"].items()}
    plot_roc(metrics | {"findings": undefined}, predictions, tmp_path / "roc.png")
    blue = np.abs(read(tmp_path / "roc.png") - [0x00, 0x72, 0xB2]).max(axis=-1) < 12
    assert not blue.any()


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


def test_a_single_logged_loss_is_visible(tmp_path):
    state = {"log_history": [{"loss": 1.0, "epoch": 1.0, "step": 8}], "global_step": 8}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    picture = read(plot_training_curves(tmp_path / "trainer_state.json", tmp_path / "x.png"))
    assert colour_of(picture, COLOURS[0]).sum() > 30


@pytest.mark.parametrize(
    ("folder", "arguments", "chosen"),
    [
        ("run", {"load_best_model_at_end": True}, 2.0),
        ("run", {"load_best_model_at_end": False}, 4.0),
        ("run", None, 4.0),
        ("checkpoint-16", {"load_best_model_at_end": True}, 4.0),  # its weights are of its own step
    ],
)
def test_the_chosen_epoch_is_marked(tmp_path, drawn, folder, arguments, chosen):
    run = tmp_path / folder
    run.mkdir()
    history = [{"loss": 5.0 - i, "eval_auroc": 0.5, "epoch": float(i), "step": 4 * i} for i in range(1, 5)]
    state = {"log_history": history, "global_step": 16, "best_global_step": 8}
    (run / "trainer_state.json").write_text(json.dumps(state))
    if arguments is not None:
        (run / "training_args.json").write_text(json.dumps(arguments))
    plot_training_curves(run / "trainer_state.json", run / "curves.png")
    for axes in panels_of(drawn[0]):
        assert list(axes.lines[-1].get_xdata()) == [chosen, chosen]


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


def test_precision_recall_figure(evaluated, tmp_path, drawn):
    metrics, predictions = evaluated
    picture = read(plot_precision_recall(metrics, predictions, tmp_path / "pr.png"))
    assert colour_of(picture, COLOURS[0]).sum() > 200
    for axes, result in zip(panels_of(drawn[0]), metrics["findings"].values(), strict=True):
        prevalence = result["n_positive"] / (result["n_positive"] + result["n_negative"])
        assert list(axes.lines[0].get_ydata()) == [prevalence, prevalence]
        assert axes.get_title(loc="left").endswith(f"{result['auprc']:.3f}, prevalence {prevalence:.3f}")
        assert axes.lines[2].get_xdata() == pytest.approx([result["sensitivity"]])


def test_nothing_is_cut_off_at_the_edges(evaluated, tmp_path):
    metrics, predictions = evaluated
    long = {f"{name}, as it is called elsewhere": result for name, result in metrics["findings"].items()}
    renamed = predictions.rename(
        columns=lambda name: f"{name}, as it is called elsewhere" if "_id" not in name else name
    )
    for plot in (plot_roc, plot_precision_recall):
        picture = read(plot(metrics | {"findings": long}, renamed, tmp_path / "figure.png"))
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all()


def test_a_long_title_is_broken(tmp_path):
    rows = [("", [("Mean", 0.6, (0.5, 0.7))])]
    title = "AUROC minus that of a model with a long name (positives), an archive with one, too (synthetic)"
    picture = read(plot_forest(rows, tmp_path / "forest.png", title=title, xlabel="AUROC"))
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 255).all()


def test_radiologists_are_points_on_both_curves(evaluated, tmp_path):
    metrics, predictions = evaluated
    finding = list(metrics["findings"])[0]
    reader = {"fpr": 0.9, "tpr": 0.1, "recall": 0.9, "precision": 0.9}
    nobody = {"fpr": None, "tpr": None, "recall": None, "precision": None}
    with_readers = metrics | {"radiologists": {"findings": {finding: {"readers": {"a": reader, "b": nobody}}}}}
    for plot in (plot_roc, plot_precision_recall):
        before = read(plot(metrics, predictions, tmp_path / "before.png"))
        after = read(plot(with_readers, predictions, tmp_path / "after.png"))
        assert not colour_of(before, COLOURS[2]).any()
        assert colour_of(after, COLOURS[2]).sum() > 50  # on the panel, and in the legend


def test_forest_plots(evaluated, tmp_path):
    metrics, _ = evaluated
    picture = read(plot_findings(metrics, tmp_path / "findings.png"))
    assert colour_of(picture, COLOURS[0]).sum() > 500
    undefined = {
        name: result | {"auroc": None, "auroc_ci95": [None, None]} for name, result in metrics["findings"].items()
    }
    picture = read(plot_findings(metrics | {"findings": undefined}, tmp_path / "findings.png"))
    assert not colour_of(picture, COLOURS[0]).any()
    group = {"n_images": 30, "mean": {"auroc": 0.6, "auroc_ci95": [0.5, 0.7]}}
    groups = {"groups": {"$F": group, "M": group}, "findings_in_mean": [list(metrics["findings"])[0]]}
    metrics = metrics | {"subgroups": {"sex": groups, "view": {"groups": {}, "findings_in_mean": []}}}
    first = plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes()
    assert colour_of(read(tmp_path / "subgroups.png"), COLOURS[0]).sum() > 200
    assert plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes() == first
    metrics["subgroups"]["view"] = {"groups": {"AP": group}, "findings_in_mean": []}  # nothing in common, no mean
    assert plot_subgroups(metrics, tmp_path / "subgroups.png").read_bytes() == first


def test_all_images_beside_subgroups_are_over_the_same_findings(evaluated, tmp_path, drawn):
    metrics, _ = evaluated
    first, second = list(metrics["findings"])[:2]
    group = {"n_images": 30, "mean": {"auroc": 0.6, "auroc_ci95": [0.5, 0.7]}}
    metrics = metrics | {"subgroups": {"sex": {"groups": {"F": group}, "findings_in_mean": [first, second]}}}
    plot_subgroups(metrics, tmp_path / "subgroups.png")
    (axes,) = drawn[0].axes
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    expected = (metrics["findings"][first]["auroc"] + metrics["findings"][second]["auroc"]) / 2
    assert points == pytest.approx([expected, 0.6])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["All (60)", "F (30)"]


def test_calibration_figure(evaluated, tmp_path):
    metrics, predictions = evaluated
    findings = {name: result | {"scale": None, "bias": None} for name, result in metrics["findings"].items()}
    with pytest.raises(ValueError, match="needs a finding with a calibration"):
        plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png")
    first, second = list(findings)[:2]
    findings[first] |= {"scale": 30.0, "bias": -1.0, "ece": 0.05}
    one = read(plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png"))
    findings[second] |= {"scale": 30.0, "bias": -1.0, "ece": None}
    two = read(plot_calibration(metrics | {"findings": findings}, predictions, tmp_path / "calibration.png"))
    assert two.shape[0] == one.shape[0] and two.shape[1] > one.shape[1]  # a panel for each


def test_calibration_has_equal_axes_and_a_histogram_of_all_images(evaluated, tmp_path, drawn):
    metrics, predictions = evaluated
    finding = list(metrics["findings"])[0]
    result = metrics["findings"][finding] | {"scale": 30.0, "bias": -1.0}
    plot_calibration(metrics | {"findings": {finding: result}}, predictions, tmp_path / "calibration.png")
    curve, histogram = panels_of(drawn[0])
    assert curve.get_xlim() == curve.get_ylim() == histogram.get_xlim() and curve.get_box_aspect() == 1
    heights = [sum(patch.get_height() for patch in bars) for bars in histogram.containers]
    assert heights == [result["n_negative"], result["n_positive"]]


def test_calibration_is_drawn_of_what_it_was_fitted_on(evaluated, tmp_path, monkeypatch):
    """Scores that are probabilities are calibrated by their log-odds, but not those that other findings give."""
    seen = []
    by_log_odds = "evaluation_tier.figures.calibration.log_odds"
    monkeypatch.setattr(by_log_odds, lambda scores: seen.append(len(scores)) or scores)
    metrics, predictions = evaluated
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
