"""CheXzero's own bootstrap: its draws, its order of undefined values, its centre (eval.py, metrics.py at 5c341db)."""

from collections.abc import Mapping, Sequence

import numpy as np

FEWEST_RESAMPLES = 40  # of fewer, the reference's lower position is the highest value


def draw_chexzero_resamples(num_images: int, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """
    The resamples of CheXzero: images (there, one per study) one by one, resample i with the random state seed + i.

    These are the draws of `sklearn.utils.resample(range(num_images), random_state=i)` in `bootstrap` of CheXzero's
    eval.py:199-229, whose seed is 0. See [`chexzero_interval`].

    Returns:
        `np.ndarray`: (resamples, images) uint16, how often each image was drawn.
    """
    draws = np.empty((num_resamples, num_images), dtype=np.uint16)
    for i in range(num_resamples):
        drawn = np.random.RandomState(seed + i).randint(0, num_images, size=num_images)
        draws[i] = np.bincount(drawn, minlength=num_images)
    return draws


def chexzero_interval(values: np.ndarray) -> tuple[float, np.ndarray]:
    """
    Centre and 95 % interval as CheXzero reports them, but not rounded to 4 digits.

    The centre is the mean of the resamples, not the value of the data, and the bounds are the sorted values at (from
    0) `int(0.025 n) - 1` and `int(0.975 n) - 1`: 24 and 974 of 1,000 (`compute_cis`, eval.py:164-197). As there, NaN
    values (a resample lacks a class) are left out of the mean but sorted last. They shift the bounds of a rare
    finding, and the upper bound is NaN if more than 2.5 % of the values are. [`percentile_interval`] does neither.

    Args:
        values (`np.ndarray`): (resamples,), at least `FEWEST_RESAMPLES`, NaN where undefined.

    Raises:
        `ValueError`: fewer than 40 values, for which the reference's lower position is the highest value.
    """
    if len(values) < FEWEST_RESAMPLES:
        raise ValueError(
            f"CheXzero's intervals need at least {FEWEST_RESAMPLES} resamples, but there are {len(values)}."
        )
    bounds = np.sort(values)[[int(0.05 / 2 * len(values)) - 1, int((1 - 0.05 / 2) * len(values)) - 1]]
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan"), bounds


def fill_one_class_resamples(
    resampled: dict[str, np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    draws: np.ndarray,
    thresholds: Mapping[str, Sequence[float]],
) -> None:
    """
    Give MCC and F1 the reference's values in resamples that lack a class, in place.

    In the reference, MCC is then 0. F1 of a resample without positives is 0, or 1 if nothing is called present
    (scikit-learn's `matthews_corrcoef` and `compute_f1`, metrics.py:220-281). AUROC stays NaN, as there.

    Args:
        resampled: `"mcc"` and `"f1"`, each (resamples, findings), as [`bootstrap`] gives them.
        labels, scores: (images, findings).
        draws: (resamples, images), how often each image was drawn.
        thresholds: of `"mcc"` and `"f1"`, each (findings,). A finding without a threshold stays NaN.
    """
    for name, values in resampled.items():
        for i, threshold in enumerate(thresholds[name]):
            undefined = np.isnan(values[:, i])
            if np.isnan(threshold) or not undefined.any():
                continue
            called = (scores[:, i] >= threshold) & np.isin(labels[:, i], (0, 1))
            nothing_called = draws[undefined][:, called].sum(axis=1) == 0
            values[undefined, i] = nothing_called if name == "f1" else 0.0
