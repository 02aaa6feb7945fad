import json

import numpy as np
import pytest
from eval_command import PHANTOM, fails, run, save_two_models
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from evaluation_tier.analyses.learning_curve import (
    DRAWS,
    INVERSE_PENALTY,
    Learned,
    choose_sizes,
    find_reached,
    knn_scores,
    measure_points,
    probe_scores,
)


def make(num_images: int, seed: int, findings: int = 2) -> Learned:
    """Embeddings in which each finding has a direction of its own."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_images, findings)) < 0.4).astype(float)
    images = generator.standard_normal((num_images, 16))
    images[:, :findings] += 2 * labels
    return Learned(images / np.linalg.norm(images, axis=1, keepdims=True), labels)


@pytest.mark.parametrize(
    ("patients", "sizes"),
    [(4, [4]), (10, [10]), (11, [10, 11]), (300, [10, 30, 100, 300]), (2563, [10, 30, 100, 300, 1000, 2563])],
)
def test_sizes(patients, sizes):
    assert choose_sizes(patients) == sizes


def test_probe_is_the_regression_of_the_known_labels():
    drawn, tested = make(60, 0), make(40, 1)
    drawn.labels[:10, 0], drawn.labels[10:20, 0] = -1, np.nan
    scaler = StandardScaler().fit(drawn.images)
    probe = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    probe.fit(scaler.transform(drawn.images[20:]), drawn.labels[20:, 0])
    expected = probe.decision_function(scaler.transform(tested.images))
    np.testing.assert_allclose(probe_scores(drawn, tested.images)[:, 0], expected)


def test_neighbours_vote_by_their_cosine():
    drawn = Learned(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), np.array([[1.0], [0.0], [0.0]]))
    weights = np.exp((np.array([1.0, 0.6, 0.0]) - 1) / 0.07)
    np.testing.assert_allclose(knn_scores(drawn, np.array([[1.0, 0.0]])), [[weights[0] / weights.sum()]])
    np.testing.assert_allclose(knn_scores(drawn, np.array([[1.0, 0.0]]) * 5), [[weights[0] / weights.sum()]])


def test_one_class_is_chance():
    drawn, tested = make(30, 0), make(40, 1)
    drawn.labels[:, 1] = 0
    for scores in (probe_scores(drawn, tested.images), knn_scores(drawn, tested.images)):
        assert np.ptp(scores[:, 1]) == 0 < np.ptp(scores[:, 0])


def test_more_patients_are_better_and_draws_are_of_patients():
    learned, tested = make(400, 0), make(300, 1)
    patients = np.repeat(np.arange(200), 2).astype(str)  # two images each
    points = measure_points(learned, patients, tested.images, tested.labels, 0)
    again = measure_points(learned, patients, tested.images, tested.labels, 0)
    for name, of_method in points.items():
        assert [point["n_patients"] for point in of_method] == [10, 30, 100, 200]
        assert [point["n_images"] for point in of_method] == [20, 60, 200, 400]
        assert [len(point["aurocs"]) for point in of_method] == [DRAWS, DRAWS, DRAWS, 1]
        means = [point["aurocs"].mean() for point in of_method]
        assert means[0] < means[2] and means[-1] > 0.8
        assert len(set(of_method[0]["aurocs"][:, 0])) > 1
        np.testing.assert_array_equal(of_method[1]["aurocs"], again[name][1]["aurocs"])
    scores = probe_scores(learned, tested.images)
    full = [roc_auc_score(tested.labels[:, i], scores[:, i]) for i in range(2)]
    np.testing.assert_allclose(points["linear_probe"][-1]["aurocs"][0], full)


def test_reached_from_the_last_crossing():
    points = [{"n_patients": n, "auroc": value} for n, value in ((10, 0.9), (30, 0.5), (100, 0.7), (300, 0.8))]
    assert find_reached(points, 0.7) == 100
    assert find_reached(points, 0.85) is None and find_reached(points, 0.1) == 10


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_two_models(tmp_path_factory.mktemp("models"))


def test_the_command_draws_the_curve(models, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    given = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 20, "--learning_curve", "train"]
    output = tmp_path / "out"
    text = run(models[0], *given, "--threshold_split", "test", "--output_dir", output, "--figures", capsys=capsys).out
    metrics = json.loads((output / "metrics.json").read_text())
    curve = metrics["learning_curve"]
    assert curve["split"] == "train" and curve["n_images"] == 40 and curve["n_seen"] == 0
    assert curve["findings"] == list(metrics["findings"])
    assert curve["zero_shot"]["auroc"] == pytest.approx(metrics["mean"]["auroc"])
    for points in curve["methods"].values():
        assert [point["n_patients"] for point in points] == [10, curve["n_patients"]]
        for point in points:
            assert point["lowest"] <= point["auroc"] <= point["highest"]
            assert np.mean([np.mean(aurocs) for aurocs in point["findings"].values()]) == pytest.approx(point["auroc"])
    assert "Learning from 'train'. As good as zero-shot: Linear probe" in text
    assert (output / "learning_curve.png").is_file() and "How few images" in (output / "report.html").read_text()

    run("--each", *models, *given, "--output_dir", tmp_path / "each", capsys=capsys)
    [of_first] = [
        json.loads(path.read_text())["learning_curve"]
        for path in (tmp_path / "each").glob("*/metrics.json")
        if "model0" in str(path)
    ]
    assert of_first == curve  # the split that chooses thresholds does not matter


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--learning_curve", "validation"], "--learning_curve names the evaluated split 'validation'"),
        (["--learning_curve", "nowhere"], "nowhere"),
        (["--learning_curve", "train", "--benchmark", "chexpert-5"], "--learning_curve does not support --benchmark"),
    ],
)
def test_bad_options_are_refused(models, options, error, capsys):
    given = [models[0], "--data", PHANTOM, "--split", "validation", *options]
    assert error in fails(*given, capsys=capsys)
    if "nowhere" in options:
        assert "--learning_curve is for one model" in fails(models[1], *given, capsys=capsys)
