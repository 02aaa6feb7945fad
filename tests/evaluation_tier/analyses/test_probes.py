import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation_tier.analyses import probes
from evaluation_tier.analyses.probes import (
    INVERSE_PENALTIES,
    Learned,
    choose_inverse_penalty,
    knn_scores,
    probe_scores,
)


def make(num_images: int, seed: int, shift: float = 2.0) -> Learned:
    """Embeddings in which each of two findings has a direction of its own, and a patient for each image."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_images, 2)) < 0.4).astype(float)
    images = generator.standard_normal((num_images, 16))
    images[:, :2] += shift * labels
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return Learned(images, labels, np.arange(num_images).astype(str))


def test_probe_is_the_regression_of_the_known_labels():
    drawn, tested = make(60, 0), make(40, 1)
    drawn.labels[:10, 0], drawn.labels[10:20, 0] = -1, np.nan
    scaler = StandardScaler().fit(drawn.images)
    probe = LogisticRegression(C=0.1, max_iter=1000)
    probe.fit(scaler.transform(drawn.images[20:]), drawn.labels[20:, 0])
    expected = probe.decision_function(scaler.transform(tested.images))
    np.testing.assert_allclose(probe_scores(drawn, tested.images, 0.1)[:, 0], expected)


def test_neighbours_vote_by_their_cosine():
    images, labels = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), np.array([[1.0], [0.0], [0.0]])
    drawn = Learned(images, labels, np.array(["a", "b", "c"]))
    weights = np.exp((np.array([1.0, 0.6, 0.0]) - 1) / 0.07)
    np.testing.assert_allclose(knn_scores(drawn, np.array([[1.0, 0.0]])), [[weights[0] / weights.sum()]])
    np.testing.assert_allclose(knn_scores(drawn, np.array([[1.0, 0.0]]) * 5), [[weights[0] / weights.sum()]])


def test_one_class_is_chance():
    drawn, tested = make(30, 0), make(40, 1)
    drawn.labels[:, 1] = 0
    assert drawn.has_both_classes().tolist() == [True, False]
    for scores in (probe_scores(drawn, tested.images, 0.01), knn_scores(drawn, tested.images)):
        assert np.ptp(scores[:, 1]) == 0 < np.ptp(scores[:, 0])


def test_the_penalty_follows_the_signal():
    """Labels that the images do not tell want a strong penalty, a strong signal a weak one."""
    assert choose_inverse_penalty(make(100, 0, shift=0), 0) <= 0.01
    assert choose_inverse_penalty(make(100, 0, shift=5), 0) >= 0.1


def test_the_penalty_is_that_of_the_lowest_loss_by_hand():
    drawn = make(50, 3)
    folds = np.random.default_rng(7).permutation(np.arange(50) % 5)[np.unique(drawn.patients, return_inverse=True)[1]]
    losses = []
    for penalty in INVERSE_PENALTIES:
        total = 0.0
        for fold in range(5):
            logits = probe_scores(drawn[folds != fold], drawn.images[folds == fold], penalty)
            of_class = 1 / (1 + np.exp(-np.where(drawn.labels[folds == fold] == 1, logits, -logits)))
            total -= np.log(of_class).sum()
        losses.append(total)
    assert choose_inverse_penalty(drawn, 7) == INVERSE_PENALTIES[int(np.argmin(losses))]


def test_images_of_a_patient_are_in_one_fold():
    """Ten copies of each image: were they in several folds, each fold would know its labels."""
    few = make(12, 0, shift=0)
    rows = np.repeat(np.arange(12), 10)
    assert choose_inverse_penalty(few[rows], 0) == INVERSE_PENALTIES[0]
    apart = Learned(few.images[rows], few.labels[rows], np.arange(120).astype(str))
    assert choose_inverse_penalty(apart, 0) == INVERSE_PENALTIES[-1]


@pytest.mark.parametrize("num_patients", [1, 2, 3])
def test_too_few_patients_take_the_strongest_penalty(num_patients):
    drawn = make(num_patients, 0)
    drawn.labels[:] = 0
    assert choose_inverse_penalty(drawn, 0) == INVERSE_PENALTIES[0]


def test_many_patients_are_cut_to_a_number(monkeypatch):
    """The choice among 60 patients is that among those that have a fold."""
    drawn = make(60, 0)
    monkeypatch.setattr(probes, "MAX_PATIENTS", 20)
    folds = np.random.default_rng(0).permutation(np.where(np.arange(60) < 20, np.arange(60) % 5, -1))
    units, unit_of_image = np.unique(drawn.patients, return_inverse=True)
    unused = folds[unit_of_image] < 0
    before = choose_inverse_penalty(drawn, 0)
    drawn.labels[unused] = 1 - drawn.labels[unused]
    drawn.images[unused] *= -100
    assert unused.sum() == 40 and choose_inverse_penalty(drawn, 0) == before
