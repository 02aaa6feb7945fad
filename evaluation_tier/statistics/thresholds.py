"""The threshold that each metric is reported at: the rule, which protocols differ in, and the split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from evaluation_tier.statistics.metrics import CRITERIA, best_threshold

NAMES = {
    "mcc": "highest MCC",
    "f1": "highest F1",
    "youden": "highest Youden index",
    "corner": "ROC point nearest to (0, 1)",
}


@dataclass(frozen=True)
class ThresholdRule:
    """
    The criterion of [`best_threshold`] that chooses the threshold of each metric.

    Args:
        mcc (`str`, *optional*, defaults to `"mcc"`):
            For MCC, sensitivity and specificity, and for the `threshold` in the results.
        f1 (`str`, *optional*, defaults to `"mcc"`):
            For F1. CheXzero uses the threshold of MCC for both (metrics.py:104-149), TIER the one with the highest F1
            (evalMCCScores.py:22-41).
        accuracy (`str`, *optional*): For accuracy, which is not reported without a criterion.

    Raises:
        `ValueError`: a criterion that [`best_threshold`] does not know.
    """

    mcc: str = "mcc"
    f1: str = "mcc"
    accuracy: str | None = None

    def __post_init__(self) -> None:
        for criterion in (self.mcc, self.f1, self.accuracy):
            if criterion is not None and criterion not in CRITERIA:
                raise ValueError(f"The criterion of a threshold is {criterion!r}; choose {', '.join(CRITERIA)}.")

    def describe(self, where: str) -> str:
        """The rule in words: `"highest MCC on the split 'validation'; for F1 the highest F1 there"`."""
        others = {"F1": self.f1, "accuracy": self.accuracy}
        differing = [
            f"; for {metric} the {NAMES[criterion]} there"
            for metric, criterion in others.items()
            if criterion not in (None, self.mcc)
        ]
        return f"{NAMES[self.mcc]} on {where}{''.join(differing)}"


HIGHEST_MCC = ThresholdRule()


@dataclass(frozen=True, eq=False)
class ThresholdChoice:
    """
    The rule and the split that choose thresholds.

    Args:
        rule ([`ThresholdRule`], *optional*): by default the highest MCC for all metrics.
        labels, scores (`np.ndarray`, *optional*):
            (images, findings), of a split other than the evaluated one; by default the evaluated images themselves.

    Raises:
        `ValueError`: labels without scores, or the reverse.
    """

    rule: ThresholdRule = HIGHEST_MCC
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.labels is None) != (self.scores is None):
            raise ValueError("The split that chooses the thresholds needs both labels and scores: give both.")

    def on_split(self, labels: np.ndarray, scores: np.ndarray) -> "ThresholdChoice":
        """The choice on its own split or, without one, on these labels and scores; as float64."""
        if self.labels is not None:
            labels, scores = self.labels, self.scores
        return replace(self, labels=np.asarray(labels, dtype=np.float64), scores=np.asarray(scores, dtype=np.float64))

    def choose(self) -> list[dict[str, float]]:
        """The best threshold of each finding by each criterion."""
        return [
            {name: best_threshold(labels, scores, name) for name in CRITERIA}
            for labels, scores in zip(self.labels.T, self.scores.T, strict=True)
        ]


def f1_threshold(result: Mapping) -> float | None:
    """The threshold of F1 of one finding of `metrics.json`; results of older versions have one threshold for all."""
    return result.get("f1_threshold", result.get("threshold"))
