"""What a score is worth: pure functions of labels and scores, in numpy.

Labels are 1 (present), 0 (absent), -1 (uncertain) and NaN (not stated). Uncertain and unstated ones say nothing
about a score: every function here leaves them out. A quantity that is undefined (AUROC without both classes) is
NaN, never a number that looks measured.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES_IN_MEMORY = 4_000_000  # numbers held at once while resampling; bounds the memory, not the result


class BootstrapAUROC(NamedTuple):
    """Bootstrap intervals, one row or entry per finding, and those of the mean over the findings."""

    interval: np.ndarray  # (findings, 2): lower and upper bound
    mean_interval: np.ndarray  # (2,)
    num_dropped: np.ndarray  # (findings,): resamples in which the finding lacks a class
    mean_num_dropped: int  # resamples in which any finding lacks a class


def select_known(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (bool) and scores (float64) of the samples whose label is 0 or 1.

    Raises:
        ValueError: for a label other than 1, 0, -1 and NaN, or a score that is not finite.
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(
            f"Labels and scores must be two rows of equal length, but have shapes {labels.shape} and {scores.shape}."
        )
    known = (labels == 0) | (labels == 1)
    foreign = ~known & (labels != -1) & ~np.isnan(labels)
    if foreign.any():
        raise ValueError(
            f"A label must be 1, 0, -1 or NaN, but one is {labels[foreign][0]:g}: recode the column before evaluating."
        )
    if not np.isfinite(scores[known]).all():
        raise ValueError("Scores must be finite, but some are NaN or infinite: the model's weights may be damaged.")
    return labels[known] == 1, scores[known]


def weighted_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under several weightings of the samples at once; ties count half (Mann-Whitney).

    Args:
        labels: (samples,) bool.
        scores: (samples,) finite.
        weights: (weightings, samples), not negative; in a bootstrap, how often each sample was drawn.

    Returns:
        (weightings,): NaN where a class has no weight.
    """
    negative_order = np.flatnonzero(~labels)[np.argsort(scores[~labels], kind="stable")]
    below = np.searchsorted(scores[negative_order], scores[labels], side="left")
    not_above = np.searchsorted(scores[negative_order], scores[labels], side="right")

    negative_weights = weights[:, negative_order]
    positive_weights = weights[:, labels]
    cumulative = np.zeros((len(weights), len(negative_order) + 1))  # [:, k]: weight of the k lowest negatives
    np.cumsum(negative_weights, axis=1, out=cumulative[:, 1:])
    wins = (positive_weights * (cumulative[:, below] + cumulative[:, not_above])).sum(axis=1) / 2
    pairs = positive_weights.sum(axis=1) * cumulative[:, -1]
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    labels, scores = select_known(labels, scores)
    return float(weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def auprc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision (no interpolation), NaN without positives."""
    labels, scores = select_known(labels, scores)
    if not labels.any():
        return float("nan")
    true_positives, predicted, _ = count_at_thresholds(labels, scores)
    recall_gain = np.diff(true_positives, prepend=0) / labels.sum()
    return float((recall_gain * true_positives / predicted).sum())


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1), one point per distinct score."""
    labels, scores = select_known(labels, scores)
    true_positives, predicted, _ = count_at_thresholds(labels, scores)
    false_positives = predicted - true_positives
    return (
        np.concatenate([[0.0], false_positives / max((~labels).sum(), 1)]),
        np.concatenate([[0.0], true_positives / max(labels.sum(), 1)]),
    )


def count_at_thresholds(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives and predicted positives at every distinct score, and those scores, highest first."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last sample of each run of equal scores
    return np.cumsum(labels[order])[ends], ends + 1, scores[order][ends]


def mcc_from_counts(true_positives, predicted, num_positive, num_samples) -> np.ndarray:
    """Matthews correlation coefficient from the four marginal counts; 0 where it is undefined."""
    true_positives, predicted = np.asarray(true_positives, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    covariance = true_positives * num_samples - predicted * num_positive
    variance = predicted * (num_samples - predicted) * num_positive * (num_samples - num_positive)
    return np.divide(covariance, np.sqrt(variance), out=np.zeros_like(covariance), where=variance > 0)


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The score with the highest MCC when "present" means score >= threshold; the highest such score on a tie.

    Only scores that occur are candidates, never the infinite threshold at which nothing is called present.
    NaN without both classes.
    """
    labels, scores = select_known(labels, scores)
    if labels.all() or not labels.any():
        return float("nan")
    true_positives, predicted, thresholds = count_at_thresholds(labels, scores)
    return float(thresholds[np.argmax(mcc_from_counts(true_positives, predicted, labels.sum(), len(labels)))])


def mcc(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Matthews correlation coefficient of score >= threshold; 0 where undefined, NaN for a NaN threshold."""
    labels, scores = select_known(labels, scores)
    if np.isnan(threshold) or not len(labels):
        return float("nan")
    predicted = scores >= threshold
    return float(mcc_from_counts((predicted & labels).sum(), predicted.sum(), labels.sum(), len(labels)))


def f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """F1 of score >= threshold; 0 when nothing is right, NaN for a NaN threshold or no positives at all."""
    labels, scores = select_known(labels, scores)
    if np.isnan(threshold) or not labels.any():
        return float("nan")
    predicted = scores >= threshold
    return float(2 * (predicted & labels).sum() / (predicted.sum() + labels.sum()))


def fit_calibration(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The scale and the bias for which sigmoid(scale * score + bias) has the lowest negative log likelihood.

    The labels count as (P + 1) / (P + 2) and 1 / (N + 2), P and N being the numbers of positives and negatives, so
    that scale and bias stay finite for scores that separate the classes (Platt 1999, section 2.2).

    Returns:
        (scale, bias): NaN without both classes, and where a higher score does not mean that a finding is more likely.
    """
    labels, scores = select_known(labels, scores)
    spread = scores.std() if len(scores) else 0.0
    if labels.all() or not labels.any() or not spread:
        return float("nan"), float("nan")
    targets = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))
    design = np.stack([(scores - scores.mean()) / spread, np.ones(len(scores))])
    weights = np.array([0.0, np.log(targets.mean() / (1 - targets.mean()))])

    def loss(weights: np.ndarray) -> float:
        logits = weights @ design
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    for _ in range(100):  # Newton's method; the loss is convex
        probabilities = 0.5 * (1 + np.tanh(weights @ design / 2))
        hessian = (design * probabilities * (1 - probabilities)) @ design.T
        step = np.linalg.solve(hessian, design @ (probabilities - targets))
        while np.abs(step).max() > 1e-12 and loss(weights - step) > loss(weights):
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    scale = weights[0] / spread
    return (float(scale), float(weights[1] - scale * scores.mean())) if scale > 0 else (float("nan"), float("nan"))


def bootstrap_auroc(
    labels: np.ndarray, scores: np.ndarray, patient_ids: np.ndarray, num_resamples: int = 1000, seed: int = 0
) -> BootstrapAUROC:
    """95 % percentile intervals of each finding's AUROC and of their mean, resampling patients, not images.

    Images of one patient stand or fall together: resampling them one by one would make the interval too narrow.
    All findings share the resamples. A resample that leaves a finding without positives or without negatives is
    dropped for that finding (and for the mean) and counted; kept as NaN, it would shift the percentiles.

    Args:
        labels: (images, findings), 1, 0, -1 or NaN.
        scores: (images, findings).
        patient_ids: (images,), anything that numpy can compare.
        num_resamples: at least 1; CheXzero uses 1,000.
        seed: of the resampling.
    """
    if num_resamples < 1:
        raise ValueError(f"The number of bootstrap resamples must be at least 1, but is {num_resamples}.")
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    patients, patient_of_image = np.unique(np.asarray(patient_ids).astype(str), return_inverse=True)
    generator = np.random.default_rng(seed)

    num_findings, chunk = labels.shape[1], max(1, RESAMPLES_IN_MEMORY // max(len(labels), 1))
    rows_of_finding = [np.flatnonzero((labels[:, i] == 0) | (labels[:, i] == 1)) for i in range(num_findings)]
    known = [select_known(labels[:, i], scores[:, i]) for i in range(num_findings)]
    resampled = np.empty((num_resamples, num_findings))
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = generator.integers(len(patients), size=(size, len(patients)))
        drawn += np.arange(size)[:, None] * len(patients)  # one bincount for all resamples of the chunk
        times_drawn = np.bincount(drawn.ravel(), minlength=size * len(patients)).reshape(size, len(patients))
        weights = times_drawn[:, patient_of_image].astype(np.float64)
        for i, (known_labels, known_scores) in enumerate(known):
            values = weighted_auroc(known_labels, known_scores, weights[:, rows_of_finding[i]])
            resampled[start : start + size, i] = values

    complete = resampled.mean(axis=1) if num_findings else np.full(num_resamples, np.nan)
    return BootstrapAUROC(
        interval=np.array([percentile_interval(column) for column in resampled.T]).reshape(num_findings, 2),
        mean_interval=percentile_interval(complete),
        num_dropped=np.isnan(resampled).sum(axis=0),
        mean_num_dropped=int(np.isnan(complete).sum()),
    )


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """The 2.5th and 97.5th percentile of the values that are not NaN; NaN when none is left."""
    values = values[~np.isnan(values)]
    return np.percentile(values, [2.5, 97.5]) if len(values) else np.full(2, np.nan)
