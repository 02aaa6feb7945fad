"""From scores to probabilities, and how far those can be trusted: pure functions of labels and scores, in numpy.

Labels are as in [`metrics`]: uncertain (-1) and unstated (NaN) ones are left out. Fit scale, bias and temperature on
another split than the one that you report.
"""

from typing import NamedTuple

import numpy as np

from evaluation_tier.statistics.metrics import divide, select_known

BINNINGS = ("equal_width", "equal_mass")


class ReliabilityCurve(NamedTuple):
    """Predicted against observed, one entry per bin that holds a sample, from low to high probability."""

    mean_probability: np.ndarray  # (bins,), 0..1
    frequency: np.ndarray  # (bins,): share of positives, 0..1
    count: np.ndarray  # (bins,): samples


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(logits, dtype=np.float64) / 2))


def calibrate(scores: np.ndarray, scale: float, bias: float = 0.0) -> np.ndarray:
    """Probabilities sigmoid(scale * score + bias), with what [`fit_calibration`] or 1 / [`fit_temperature`] gave."""
    return sigmoid(scale * np.asarray(scores, dtype=np.float64) + bias)


def fit_calibration(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """
    Platt scaling: the scale, at least 0, and the bias for which sigmoid(scale * score + bias) has the lowest negative
    log likelihood.

    The labels count as (P + 1) / (P + 2) and 1 / (N + 2), P and N being the numbers of positives and negatives, so
    that scale and bias stay finite for scores that separate the classes (Platt 1999, section 2.2).

    Returns:
        (scale, bias): NaN without both classes, and if all scores are equal. If a higher score does not mean that a
        finding is more likely, the scale is 0: every probability is then the mean of the smoothed labels.
    """
    labels, scores = select_known(labels, scores)
    if labels.all() or not labels.any() or np.ptp(scores) <= 1e-12 * np.abs(scores).max():  # no spread but rounding
        return float("nan"), float("nan")
    spread = scores.std()
    targets = smooth_labels(labels)
    design = np.stack([(scores - scores.mean()) / spread, np.ones(len(scores))])
    start = np.array([0.0, np.log(targets.mean() / (1 - targets.mean()))])
    slope, intercept = fit_logistic(design, targets, start)
    if slope <= 0:  # the loss is convex: of the scales from 0 up, 0 is the best
        return 0.0, float(start[1])
    scale = slope / spread
    return float(scale), float(intercept - scale * scores.mean())


def fit_temperature(labels: np.ndarray, scores: np.ndarray) -> float:
    """
    Temperature scaling: the temperature for which sigmoid(score / temperature) has the lowest negative log likelihood
    (Guo et al. 2017, section 4.2, for one logit).

    The scores are logits: present and absent must be equally likely at 0, because only a scale is fitted. The labels
    are smoothed as in [`fit_calibration`].

    Returns:
        `float`: > 0; NaN without both classes, and if no positive temperature is best.
    """
    labels, scores = select_known(labels, scores)
    size = np.sqrt(np.mean(scores**2)) if len(scores) else 0.0
    if labels.all() or not labels.any() or not size:
        return float("nan")
    [scale] = fit_logistic(scores[None] / size, smooth_labels(labels), np.zeros(1)) / size
    return float(1 / scale) if scale > 0 else float("nan")


def smooth_labels(labels: np.ndarray) -> np.ndarray:
    """Platt's targets, (P + 1) / (P + 2) for positives and 1 / (N + 2) for negatives."""
    return np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))


def fit_logistic(design: np.ndarray, targets: np.ndarray, start: np.ndarray) -> np.ndarray:
    """
    Weights of the logistic regression of `targets` (samples,), in (0, 1), on `design` (weights, samples).
    """
    weights = start

    def loss(weights: np.ndarray) -> float:
        logits = weights @ design
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    for _ in range(100):  # Newton's method; the loss is convex
        probabilities = sigmoid(weights @ design)
        hessian = (design * probabilities * (1 - probabilities)) @ design.T
        step = np.linalg.solve(hessian, design @ (probabilities - targets))
        while np.abs(step).max() > 1e-12 and loss(weights - step) > loss(weights):
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def select_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[`select_known`] for scores that must be probabilities."""
    labels, probabilities = select_known(labels, probabilities)
    outside = (probabilities < 0) | (probabilities > 1)
    if outside.any():
        raise ValueError(
            f"Probabilities lie between 0 and 1, but one is {probabilities[outside][0]:g}: calibrate the scores first."
        )
    return labels, probabilities


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """
    Brier score: the mean squared difference of probability and label, 0 (best) to 1; NaN without samples.

    Raises:
        `ValueError`: a probability outside 0..1; see also [`select_known`].
    """
    labels, probabilities = select_probabilities(labels, probabilities)
    return float(np.mean((probabilities - labels) ** 2)) if len(labels) else float("nan")


def reliability_curve(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15, binning: str = "equal_width"
) -> ReliabilityCurve:
    """
    Mean predicted probability and observed frequency, bin by bin.

    Args:
        labels (`np.ndarray`): (samples,), 1, 0, -1 or NaN.
        probabilities (`np.ndarray`): (samples,), of being positive, 0..1.
        bins (`int`, *optional*, defaults to 15): at least 1; Guo et al. 2017 use 15.
        binning (`str`, *optional*, defaults to `"equal_width"`):
            `"equal_width"`: bin k holds k / bins <= p < (k + 1) / bins, the last one 1.0 too. `"equal_mass"`: the bins
            end at the quantiles of the probabilities, so that they hold equally many samples but for ties, which stay
            in one bin; there are fewer bins where more than a bin's share is tied.

    Raises:
        `ValueError`: a probability outside 0..1, fewer than 1 bin, an unknown binning; see also [`select_known`].
    """
    if bins < 1:
        raise ValueError(f"The number of bins must be at least 1, but is {bins}.")
    if binning not in BINNINGS:
        raise ValueError(f"The binning is {binning!r}; choose {' or '.join(BINNINGS)}.")
    labels, probabilities = select_probabilities(labels, probabilities)
    if not len(labels):
        return ReliabilityCurve(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64))
    edges = np.arange(1, bins) / bins
    if binning == "equal_mass":  # a quantile that is a sample: rounding cannot separate it from its ties
        edges = np.unique(np.quantile(probabilities, edges, method="higher"))
    bin_of = np.searchsorted(edges, probabilities, side="right")
    count = np.bincount(bin_of, minlength=len(edges) + 1)
    filled = count > 0
    count = count[filled]
    return ReliabilityCurve(
        np.bincount(bin_of, probabilities, len(filled))[filled] / count,
        np.bincount(bin_of, labels, len(filled))[filled] / count,
        count,
    )


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15, binning: str = "equal_width") -> float:
    """
    Expected calibration error of a yes-or-no finding: the mean over the samples of the gap between their bin's mean
    probability and its frequency of positives (Naeini et al. 2015), 0 (best) to 1; NaN without samples.

    With few samples per bin, a perfect model has an error above 0 too. Arguments and errors: see
    [`reliability_curve`].
    """
    curve = reliability_curve(labels, probabilities, bins, binning)
    if not len(curve.count):
        return float("nan")
    return float(np.average(np.abs(curve.mean_probability - curve.frequency), weights=curve.count))


def resample_ece(labels: np.ndarray, probabilities: np.ndarray, draws: np.ndarray, bins: int = 15) -> np.ndarray:
    """
    [`ece`] with bins of equal width in every resample.

    The error is a sum of absolute gaps, so resamples of few images have a larger one than the data: an interval of a
    small error may lie above it.

    Args:
        labels, probabilities (`np.ndarray`): (images,).
        draws (`np.ndarray`): (resamples, images), how often each image was drawn.

    Returns:
        `np.ndarray`: (resamples,); NaN in a resample without a known label, and for probabilities that are NaN.
    """
    known = (labels == 0) | (labels == 1)
    if np.isnan(probabilities[known]).any() or not known.any():
        return np.full(len(draws), np.nan)
    labels, probabilities = select_probabilities(labels, probabilities)
    gaps = np.zeros((len(labels), bins))
    bin_of = np.searchsorted(np.arange(1, bins) / bins, probabilities, side="right")
    gaps[np.arange(len(labels)), bin_of] = probabilities - labels
    weights = draws[:, known].astype(np.float64)
    return divide(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite for 0 and 1 too."""
    probabilities = np.clip(probabilities, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    return np.log(probabilities) - np.log1p(-probabilities)


def measure_calibration(
    labels: np.ndarray, scores: np.ndarray, fit_labels: np.ndarray, fit_scores: np.ndarray, probabilities: bool
) -> tuple[dict[str, float], np.ndarray]:
    """
    How far the calibrated probabilities of one finding can be trusted.

    Args:
        labels, scores (`np.ndarray`): (images,), of the evaluated split.
        fit_labels, fit_scores (`np.ndarray`): (images,), of the split on which scale and bias are fitted.
        probabilities (`bool`): the scores are probabilities: scale and bias are of their log-odds.

    Returns:
        `scale`, `bias`, `ece` and `brier`; and the squared error of each image (images,), NaN where the label is not
        known.
    """
    if probabilities:
        scores, fit_scores = log_odds(scores), log_odds(fit_scores)
    scale, bias = fit_calibration(fit_labels, fit_scores)
    calibrated = calibrate(scores, scale, bias)
    undefined = np.isnan(scale)
    measured = {
        "scale": scale,
        "bias": bias,
        "ece": float("nan") if undefined else ece(labels, calibrated),
        "brier": float("nan") if undefined else brier(labels, calibrated),
    }
    return measured, np.where((labels == 0) | (labels == 1), (calibrated - labels) ** 2, np.nan)
