"""Metrics of scores: pure functions of labels and scores, in numpy.

Labels are 1 (present), 0 (absent), -1 (uncertain) and NaN (not stated). Uncertain and unstated ones say nothing
about a score: every function here leaves them out. An undefined quantity (AUROC without both classes) is NaN, never a
number that looks measured.
"""

import math
from collections.abc import Iterable

import numpy as np

CRITERIA = ("mcc", "f1", "youden", "corner")


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


def count_labels(labels: np.ndarray) -> dict[str, int]:
    """How many labels are positive, negative, uncertain (-1) and missing (NaN): `n_positive` to `n_missing`."""
    labels = np.asarray(labels, dtype=np.float64)
    select_known(labels, np.zeros(labels.shape))
    return {
        "n_positive": int((labels == 1).sum()),
        "n_negative": int((labels == 0).sum()),
        "n_uncertain": int((labels == -1).sum()),
        "n_missing": int(np.isnan(labels).sum()),
    }


def weighted_areas(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    AUROC and average precision under several weightings of the samples at once.

    Ties count half in the AUROC (Mann-Whitney) and are one point of the precision-recall curve: the values are those
    of scikit-learn's `roc_auc_score` and `average_precision_score` with `sample_weight`.

    Args:
        labels (`np.ndarray`): (samples,) bool.
        scores (`np.ndarray`): (samples,) finite.
        weights (`np.ndarray`): (samples, weightings), not negative; in a bootstrap, how often each sample was drawn.

    Returns:
        Two arrays of shape (weightings,). The AUROC is NaN if a class has a weight of 0, the average precision if the
        positives do.
    """
    positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
    positives = positives[np.argsort(-scores[positives], kind="stable")]
    negatives = negatives[np.argsort(-scores[negatives], kind="stable")]
    positive_keys, negative_keys = -scores[positives], -scores[negatives]  # rising, from the highest score down
    above = np.searchsorted(negative_keys, positive_keys, side="left")  # negatives above each positive
    not_below = np.searchsorted(negative_keys, positive_keys, side="right")
    last_tied = np.searchsorted(positive_keys, positive_keys, side="right") - 1

    num_weightings = weights.shape[1]
    cumulative = np.zeros((len(negatives) + 1, num_weightings))  # [k]: weight of the k highest negatives
    add_up(weights[negatives], out=cumulative[1:])
    positive_weights = weights[positives].astype(np.float64)
    false_positives = cumulative[not_below]
    both = false_positives if (above == not_below).all() else (cumulative[above] + false_positives) / 2
    lost = np.einsum("pw,pw->w", positive_weights, both)

    true_positives = add_up(positive_weights, out=np.empty_like(positive_weights))[last_tied]
    predicted = np.maximum(true_positives + false_positives, np.finfo(np.float64).tiny)
    hits = np.einsum("pw,pw->w", positive_weights, np.divide(true_positives, predicted, out=true_positives))

    num_positive = positive_weights.sum(axis=0)
    pairs = num_positive * cumulative[-1]
    undefined = np.full(num_weightings, np.nan)
    return (
        np.divide(pairs - lost, pairs, out=undefined.copy(), where=pairs > 0),
        np.divide(hits, num_positive, out=undefined, where=num_positive > 0),
    )


def add_up(rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Cumulative sums down the rows, into `out`."""
    if rows.shape[1] < 128:
        return np.cumsum(rows, axis=0, out=out)
    out[:1] = rows[:1]
    for above, row, result in zip(out, rows[1:], out[1:], strict=False):  # 4 times as fast as cumsum on 1,000 columns
        np.add(above, row, out=result)
    return out


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    labels, scores = select_known(labels, scores)
    return float(weighted_areas(labels, scores, np.ones((len(labels), 1)))[0][0])


def auprc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision (no interpolation), NaN without positives."""
    labels, scores = select_known(labels, scores)
    return float(weighted_areas(labels, scores, np.ones((len(labels), 1)))[1][0])


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from (0, 0) to (1, 1), one point per distinct score."""
    labels, scores = select_known(labels, scores)
    true_positives, predicted, _ = count_at_thresholds(labels, scores)
    false_positives = predicted - true_positives
    return (
        np.concatenate([[0.0], false_positives / max((~labels).sum(), 1)]),
        np.concatenate([[0.0], true_positives / max(labels.sum(), 1)]),
    )


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Recall and precision, one point per distinct score, the highest score first; [`auprc`] is the area of its steps.
    """
    labels, scores = select_known(labels, scores)
    true_positives, predicted, _ = count_at_thresholds(labels, scores)
    return true_positives / max(labels.sum(), 1), true_positives / predicted


def count_at_thresholds(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives and predicted positives at every distinct score, and those scores, highest first."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last sample of each run of equal scores
    return np.cumsum(labels[order])[ends], ends + 1, scores[order][ends]


def metrics_from_counts(
    true_positives: np.ndarray, predicted: np.ndarray, num_positive: np.ndarray, num_samples: np.ndarray | int
) -> dict[str, np.ndarray]:
    """
    The metrics of yes-or-no predictions, from four marginal counts of one shape (or shapes that broadcast).

    Args:
        true_positives: predicted and positive.
        predicted: predicted positive, rightly or not.
        num_positive: positive.
        num_samples: all.

    Returns:
        `dict[str, np.ndarray]`: `sensitivity`, `specificity`, `ppv`, `npv`, `f1`, `mcc`. Each is NaN where its
        denominator counts nothing (F1: without positives; MCC: without one of the classes); MCC is 0 if all
        predictions are equal, as in scikit-learn.
    """
    true_positives, predicted, num_positive, num_samples = (
        np.asarray(count, dtype=np.float64) for count in (true_positives, predicted, num_positive, num_samples)
    )
    num_negative = num_samples - num_positive
    true_negatives = num_negative - (predicted - true_positives)
    variance = predicted * (num_samples - predicted) * num_positive * num_negative
    covariance = true_positives * num_samples - predicted * num_positive
    return {
        "sensitivity": divide(true_positives, num_positive),
        "specificity": divide(true_negatives, num_negative),
        "ppv": divide(true_positives, predicted),
        "npv": divide(true_negatives, num_samples - predicted),
        "f1": np.where(num_positive > 0, divide(2 * true_positives, predicted + num_positive), np.nan),
        "mcc": np.where(num_positive * num_negative > 0, divide(covariance, np.sqrt(variance), empty=0.0), np.nan),
    }


def divide(numerator: np.ndarray, denominator: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """The quotient, `empty` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, empty), where=denominator > 0)


def nanmean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; without any, NaN and no warning."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def metrics_at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """
    The metrics of [`metrics_from_counts`] when "present" means score >= threshold; all NaN for a NaN threshold.
    """
    labels, scores = select_known(labels, scores)
    predicted = scores >= threshold
    counts = (predicted & labels).sum(), predicted.sum(), labels.sum(), len(labels)
    return {
        name: float("nan") if np.isnan(threshold) else float(value)
        for name, value in metrics_from_counts(*counts).items()
    }


def sensitivity(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of the positives with score >= threshold (recall); NaN without positives."""
    return metrics_at_threshold(labels, scores, threshold)["sensitivity"]


def specificity(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of the negatives with score < threshold; NaN without negatives."""
    return metrics_at_threshold(labels, scores, threshold)["specificity"]


def ppv(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of positives among score >= threshold (precision), at this prevalence; NaN without such scores."""
    return metrics_at_threshold(labels, scores, threshold)["ppv"]


def npv(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Share of negatives among score < threshold, at this prevalence; NaN without such scores."""
    return metrics_at_threshold(labels, scores, threshold)["npv"]


def mcc(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """
    Matthews correlation coefficient of score >= threshold; 0 if all predictions are equal, NaN without both classes.
    """
    return metrics_at_threshold(labels, scores, threshold)["mcc"]


def f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """F1 of score >= threshold; 0 without a true positive, NaN without positives."""
    return metrics_at_threshold(labels, scores, threshold)["f1"]


def best_threshold(labels: np.ndarray, scores: np.ndarray, criterion: str = "mcc") -> float:
    """
    The score that is the best threshold when "present" means score >= threshold; the highest such score on a tie.

    The candidates are the scores that occur, never the infinite threshold that calls every image negative.

    Args:
        labels (`np.ndarray`): (samples,), 1, 0, -1 or NaN.
        scores (`np.ndarray`): (samples,).
        criterion (`str`, *optional*, defaults to `"mcc"`):
            The metric that the threshold maximizes: `"mcc"`, `"f1"`, or `"youden"` (sensitivity + specificity - 1;
            Youden 1950). `"corner"` is the point of the ROC curve that is nearest to (0, 1), as TIER takes it for
            COVID-19 (zero_shot_covid.py:18-21).

    Returns:
        `float`: NaN without both classes.

    Raises:
        `ValueError`: an unknown criterion; see also [`select_known`].
    """
    if criterion not in CRITERIA:
        raise ValueError(f"The criterion of a threshold is {criterion!r}; choose {', '.join(CRITERIA)}.")
    labels, scores = select_known(labels, scores)
    if labels.all() or not labels.any():
        return float("nan")
    true_positives, predicted, thresholds = count_at_thresholds(labels, scores)
    if criterion == "youden":  # sensitivity - (1 - specificity) times both denominators: whole numbers tie exactly
        values = true_positives * (~labels).sum() - (predicted - true_positives) * labels.sum()
    elif criterion == "corner":  # squared distances times both squared denominators, for the same reason
        missed, false_alarms = labels.sum() - true_positives, predicted - true_positives
        values = -((missed * (~labels).sum()) ** 2 + (false_alarms * labels.sum()) ** 2)
    else:
        values = metrics_from_counts(true_positives, predicted, labels.sum(), len(labels))[criterion]
    return float(thresholds[np.argmax(values)])


def sensitivity_threshold(labels: np.ndarray, scores: np.ndarray, wanted: float) -> float:
    """
    The highest threshold at which the sensitivity is at least `wanted`, when "present" means score >= threshold.

    Args:
        labels (`np.ndarray`): (samples,), 1, 0, -1 or NaN.
        scores (`np.ndarray`): (samples,).
        wanted (`float`): in (0, 1].

    Returns:
        `float`: the score of a positive; NaN without positives.

    Raises:
        `ValueError`: a sensitivity outside (0, 1]; see also [`select_known`].
    """
    if not 0 < wanted <= 1:
        raise ValueError(f"The wanted sensitivity must be above 0 and at most 1, but is {wanted}.")
    labels, scores = select_known(labels, scores)
    found = np.sort(scores[labels])[::-1]
    needed = math.ceil(wanted * len(found) - 1e-9)  # 0.95 of 20 is 19, whatever the rounding
    return float(found[needed - 1]) if len(found) else float("nan")
