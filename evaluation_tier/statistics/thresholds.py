"""The threshold that each metric is reported at: a rule of the protocol, since references differ in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation_tier.statistics.metrics import CRITERIA

NAMES = {
    "mcc": "highest MCC",
    "f1": "highest F1",
    "youden": "highest Youden index",
    "corner": "ROC point nearest to (0, 1)",
}


@dataclass(frozen=True)
class ThresholdRule:
    """
    By which criterion of [`best_threshold`] the threshold of each metric is chosen.

    Args:
        mcc (`str`, *optional*, defaults to `"mcc"`):
            Of MCC, sensitivity and specificity, and of the `threshold` that results carry.
        f1 (`str`, *optional*, defaults to `"mcc"`):
            Of F1. CheXzero takes the threshold of MCC for both (metrics.py:104-149), TIER one with the highest F1
            (evalMCCScores.py:22-41).
        accuracy (`str`, *optional*): Of the accuracy, which is not reported without one.

    Raises:
        `ValueError`: a criterion that [`best_threshold`] does not know.
    """

    mcc: str = "mcc"
    f1: str = "mcc"
    accuracy: str | None = None

    def __post_init__(self):
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


def f1_threshold(result: Mapping) -> float | None:
    """The threshold of F1 of one finding of `metrics.json`; results of older versions have one threshold for all."""
    return result.get("f1_threshold", result.get("threshold"))
