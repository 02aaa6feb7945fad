import json

import numpy as np
import pytest
from eval_command import PHANTOM, fails, run, save_two_models
from sklearn.metrics import roc_auc_score

from eval_zeroshot import parse
from evaluation_tier.analyses.learning_curve import DRAWS, choose_sizes, find_reached, measure_points
from evaluation_tier.analyses.probes import Learned, knn_scores, probe_scores
from evaluation_tier.run import run as run_evaluation
from processing_tier.readers import read_records


def make(num_images: int, seed: int) -> Learned:
    """Embeddings in which each of two findings has a direction of its own, and two images of each patient."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_images, 2)) < 0.4).astype(float)
    images = generator.standard_normal((num_images, 16))
    images[:, :2] += 2 * labels
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return Learned(images, labels, np.repeat(np.arange(num_images // 2), 2).astype(str))


@pytest.mark.parametrize(
    ("patients", "sizes"),
    [(4, [4]), (10, [10]), (11, [10, 11]), (300, [10, 30, 100, 300]), (2563, [10, 30, 100, 300, 1000, 2563])],
)
def test_sizes(patients, sizes):
    assert choose_sizes(patients) == sizes


def test_more_patients_are_better_and_draws_are_of_patients():
    learned, tested = make(400, 0), make(300, 1)
    seeds = []

    def probe(rows, seed):
        seeds.append(seed)
        return probe_scores(learned[rows], tested.images, 0.01), {"inverse_penalties": 0.01}

    methods = {"linear_probe": probe, "knn": lambda rows, seed: (knn_scores(learned[rows], tested.images), {})}
    points = measure_points(methods, learned, tested.labels, 3)
    again = measure_points(methods, learned, tested.labels, 3)
    for name, of_method in points.items():
        assert [point["n_patients"] for point in of_method] == [10, 30, 100, 200]
        assert [point["n_images"] for point in of_method] == [20, 60, 200, 400]
        assert [len(point["aurocs"]) for point in of_method] == [DRAWS, DRAWS, DRAWS, 1]
        means = [point["aurocs"].mean() for point in of_method]
        assert means[0] < means[2] and means[-1] > 0.8
        assert len(set(of_method[0]["aurocs"][:, 0])) > 1
        np.testing.assert_array_equal(of_method[1]["aurocs"], again[name][1]["aurocs"])
    assert seeds == [*[3, 4, 5, 6, 7] * 3, 3] * 2
    assert (
        points["linear_probe"][0]["chosen"] == {"inverse_penalties": [0.01] * DRAWS} and not points["knn"][0]["chosen"]
    )
    scores = probe_scores(learned, tested.images, 0.01)
    full = [roc_auc_score(tested.labels[:, i], scores[:, i]) for i in range(2)]
    np.testing.assert_allclose(points["linear_probe"][-1]["aurocs"][0], full)


def test_one_class_is_counted():
    learned = make(24, 0)
    learned.labels[:, 1] = np.nan
    points = measure_points({"knn": lambda rows, seed: (np.zeros((24, 2)), {})}, learned, learned.labels, 0)["knn"]
    assert [point["one_class"][:, 1].all() for point in points] == [True, True]
    assert not points[-1]["one_class"][:, 0].any() and points[-1]["aurocs"][0, 0] == 0.5


def test_reached_from_the_last_crossing():
    points = [{"n_patients": n, "auroc": value} for n, value in ((10, 0.9), (30, 0.5), (100, 0.7), (300, 0.8))]
    assert find_reached(points, 0.7) == 100
    assert find_reached(points, 0.85) is None and find_reached(points, 0.1) == 10


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_two_models(tmp_path_factory.mktemp("models"))


class Memory:
    """Fine-tuning that knows the labels of the images to learn from, and tells what it was asked."""

    steps = 7

    def __init__(self):
        self.checked, self.asked = [], []

    def check(self, model):
        self.checked.append(model)

    def score(self, model, drawn, findings, tested, seed):
        self.asked.append((model, drawn["image_id"][:], findings, seed))
        labels = np.array([tested[finding][:] for finding in findings]).T
        return labels if len(drawn) > 20 else -labels


FEW = [
    "--findings",
    "Cardiomegaly",
    "Edema",
    "--n_bootstrap",
    "20",
    "--learning_curve",
    "train",
]  # regressions cost time


@pytest.mark.slow
def test_the_command_draws_the_curve(models, tmp_path):
    """With fine-tuning, here of a memory: it gets the draws that the other classifiers get."""
    pytest.importorskip("matplotlib")
    training, output = Memory(), tmp_path / "out"
    given = [str(models[0]), "--data", PHANTOM, *FEW, "--output_dir", str(output), "--figures"]
    [result] = run_evaluation(parse([*given, "--threshold_split", "test", "--fine_tuning_steps", "7"]), training)
    metrics = json.loads((output / "metrics.json").read_text())
    curve = metrics["learning_curve"]
    assert curve["split"] == "train" and curve["n_images"] == 40 and curve["n_seen"] == 0
    assert curve["findings"] == list(metrics["findings"])
    assert curve["zero_shot"]["auroc"] == pytest.approx(metrics["mean"]["auroc"])
    assert list(curve["methods"]) == ["linear_probe", "knn", "fine_tuning"]
    for points in curve["methods"].values():
        assert [point["n_patients"] for point in points] == [10, curve["n_patients"]]
        for point in points:
            assert point["lowest"] <= point["auroc"] <= point["highest"]
            assert np.mean([np.mean(aurocs) for aurocs in point["findings"].values()]) == pytest.approx(point["auroc"])
    assert [len(point["inverse_penalties"]) for point in curve["methods"]["linear_probe"]] == [DRAWS, 1]
    assert (
        "Learning from 'train'. As good as zero-shot: Linear probe" in result.summary
        and "Fine-tuning from" in result.summary
    )
    page, tables = (output / "report.html").read_text(), (output / "tables.md").read_text()
    assert (output / "learning_curve.png").is_file() and "How few images" in page and "trained for 7 steps" in page
    last = next(line for line in tables.splitlines() if line.startswith(f"| {curve['n_patients']} | 40 |"))
    assert last.split(" | ")[4] == "1.000"  # one draw has no range

    of_ten, of_all = curve["methods"]["fine_tuning"]
    assert training.checked == [str(models[0])] and curve["fine_tuning_steps"] == 7 and of_all["auroc"] == 1
    train = read_records(PHANTOM, "train")
    patients = dict(zip(train["image_id"], train["patient_id"], strict=True))
    asked = [{patients[image] for image in images} for _, images, _, _ in training.asked]
    assert {len(drawn) for drawn in asked[:-1]} == {10} and len(asked[-1]) == curve["n_patients"]
    assert {seed for *_, seed in training.asked} <= set(range(DRAWS))
    # a finding of which a draw lacks a class is not asked for, and counts as chance
    chances = [sum(value == 0.5 for value in draw) for draw in zip(*of_ten["findings"].values(), strict=True)]
    assert of_ten["draws"] == pytest.approx([0.25 * number for number in chances])
    assert of_ten["n_one_class"] == curve["methods"]["knn"][0]["n_one_class"] == np.mean(chances)
    assert sum(len(findings) for _, _, findings, _ in training.asked) == 2 * (DRAWS + 1) - sum(chances)


@pytest.mark.slow
def test_each_model_has_its_curve(models, tmp_path, capsys):
    """That of a model alone; the split that chooses thresholds does not matter."""
    run(
        models[0],
        "--data",
        PHANTOM,
        *FEW,
        "--threshold_split",
        "test",
        "--output_dir",
        tmp_path / "one",
        capsys=capsys,
    )
    run("--each", *models, "--data", PHANTOM, *FEW, "--output_dir", tmp_path / "each", capsys=capsys)
    [of_first] = [path for path in (tmp_path / "each").glob("*/metrics.json") if "model0" in str(path)]
    alone, each = (
        json.loads(path.read_text())["learning_curve"] for path in (tmp_path / "one/metrics.json", of_first)
    )
    assert alone == each and list(alone["methods"]) == ["linear_probe", "knn"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--learning_curve", "validation"], "--learning_curve names the evaluated split 'validation'"),
        (["--learning_curve", "nowhere"], "nowhere"),
        (["--learning_curve", "train", "--benchmark", "chexpert-5"], "--learning_curve does not support --benchmark"),
        (["--fine_tuning_steps", 5], "--fine_tuning_steps has no effect without --learning_curve"),
        (["--learning_curve", "train", "--fine_tuning_steps", 0], "--fine_tuning_steps must be at least 1, but is 0"),
    ],
)
def test_bad_options_are_refused(models, options, error, capsys):
    given = [models[0], "--data", PHANTOM, "--split", "validation", *options]
    assert error in fails(*given, capsys=capsys)
    if "nowhere" in options:
        assert "--learning_curve is for one model" in fails(models[1], *given, capsys=capsys)
