"""Bootstrap statistics that the probes of robustness share."""

from collections.abc import Callable, Iterable

import numpy as np

from evaluation_tier.statistics.bootstrap import bootstrap, percentile_interval
from evaluation_tier.statistics.resampling import chunks


def with_interval(statistic: Callable[[np.ndarray], np.ndarray], draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of all images (values,), and its 95 % intervals over resamples (values, 2).

    Args:
        statistic: from (resamples, images), how often each image was drawn, to (resamples, values).
        draws: see `draw_resamples`.
    """
    point = statistic(np.ones((1, draws.shape[1])))[0]
    if not len(draws):
        return point, np.full((len(point), 2), np.nan)
    resampled = np.concatenate([statistic(draws[part]) for part in chunks(*draws.shape)])
    return point, np.array([percentile_interval(each) for each in resampled.T])


def resampled_aurocs(draws: np.ndarray, labels: np.ndarray, scores: Iterable[np.ndarray]) -> np.ndarray:
    """AUROC by each of several scores (images, findings), the mean over the findings last:
    (resamples, scores, findings + 1)."""
    aurocs = np.stack([bootstrap(labels, each, draws)["auroc"] for each in scores], axis=1)
    return np.concatenate([aurocs, aurocs.mean(axis=-1, keepdims=True)], axis=-1)


def resampled_share(draws: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of resampled values (samples, ...) over the samples `where`, (resamples, ...); NaN without samples."""
    draws = draws.astype(np.float64)
    weight = np.tensordot(draws, where.astype(np.float64), axes=1)
    total = np.tensordot(draws, np.where(where, values, 0.0), axes=1)
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
