"""Classifiers of frozen embeddings, for a learning curve: a linear probe and k-NN."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, on standardised embeddings
FOLDS = 5
MAX_PATIENTS = 1000  # of the cross-validation: more cost time and hardly change the choice

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the weighted k-NN of Wu et al. 2018 (1805.01978), with DINO's k (2104.14294)


@dataclass
class Learned:
    """Images to learn from."""

    images: np.ndarray  # (images, dim)
    labels: np.ndarray  # (images, findings): 1, 0, -1 or NaN
    patients: np.ndarray  # (images,)

    def __getitem__(self, rows: np.ndarray) -> "Learned":
        return Learned(self.images[rows], self.labels[rows], self.patients[rows])

    def has_both_classes(self) -> np.ndarray:
        """Whether a finding is present in an image and absent in another one, (findings,) bool."""
        return (self.labels == 1).any(axis=0) & (self.labels == 0).any(axis=0)


def choose_inverse_penalty(drawn: Learned, seed: int) -> float:
    """
    The one of `INVERSE_PENALTIES` with the lowest cross-entropy of patients that a probe did not learn from, over all
    findings (five folds of the drawn patients). The strongest penalty where no fold can be learnt.

    The cross-entropy, and not the AUROC: a fold of few patients often lacks a class, so that it has no AUROC.
    """
    units, unit_of_image = np.unique(drawn.patients, return_inverse=True)
    fold_of_unit = np.arange(len(units)) % FOLDS
    fold_of_unit[MAX_PATIENTS:] = -1
    folds = np.random.default_rng(seed).permutation(fold_of_unit)[unit_of_image]
    losses = np.zeros(len(INVERSE_PENALTIES))
    for fold in range(FOLDS):
        learned, held = drawn[(folds != fold) & (folds >= 0)], drawn[folds == fold]
        if not len(held.images) or not len(learned.images):
            continue
        known = ((held.labels == 0) | (held.labels == 1)) & learned.has_both_classes()
        signs = np.where(held.labels == 1, 1, -1)[known]
        for i, inverse_penalty in enumerate(INVERSE_PENALTIES):
            logits = probe_scores(learned, held.images, inverse_penalty)[known]
            losses[i] += np.logaddexp(0, -signs * logits).sum()
    return INVERSE_PENALTIES[int(np.argmin(losses))]


def probe_scores(drawn: Learned, tested: np.ndarray, inverse_penalty: float) -> np.ndarray:
    """
    The logits of a logistic regression for each finding, (tested, findings); 0 for all images if the drawn ones lack a
    class, so that its AUROC is that of chance.
    """
    scaler = StandardScaler().fit(drawn.images)
    images, tested = scaler.transform(drawn.images), scaler.transform(tested)
    scores = np.zeros((len(tested), drawn.labels.shape[1]))
    for i in np.flatnonzero(drawn.has_both_classes()):
        known = (drawn.labels[:, i] == 0) | (drawn.labels[:, i] == 1)
        probe = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(images[known], drawn.labels[known, i])
        scores[:, i] = probe.decision_function(tested)
    return scores


def knn_scores(drawn: Learned, tested: np.ndarray) -> np.ndarray:
    """
    For each finding the share of the nearest images that have it, weighted by exp(cosine / `TEMPERATURE`), (tested,
    findings); 0 if the drawn images lack a class.
    """
    scores = np.zeros((len(tested), drawn.labels.shape[1]))
    for i in np.flatnonzero(drawn.has_both_classes()):
        known = (drawn.labels[:, i] == 0) | (drawn.labels[:, i] == 1)
        search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, known.sum()), metric="cosine")
        distances, nearest = search.fit(drawn.images[known]).kneighbors(tested)
        weights = np.exp(-distances / TEMPERATURE)
        scores[:, i] = (weights * drawn.labels[known, i][nearest]).sum(axis=1) / weights.sum(axis=1)
    return scores
