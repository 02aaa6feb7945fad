"""MCC at the best threshold, as a module for `evaluate.load`."""

from collections.abc import Sequence

import evaluate

from evaluation_tier.evaluate_modules.metric_info import finding_metric_info
from evaluation_tier.statistics.metrics import best_threshold, metrics_at_threshold

DESCRIPTION = "Matthews correlation coefficient of one finding at a given threshold, or at the best one on a split."
CITATION = """@article{matthews1975comparison,
  title={Comparison of the predicted and observed secondary structure of {T4} phage lysozyme},
  author={Matthews, Brian W.},
  journal={Biochimica et Biophysica Acta}, volume={405}, number={2}, pages={442--451}, year={1975}
}"""
INPUTS = """
Args:
    predictions: scores; a higher score means that the finding is more likely.
    references: 1 present, 0 absent, -1 uncertain, NaN not stated; the last two are left out.
    threshold: present means score >= threshold; by default the best threshold on the split below.
    threshold_predictions, threshold_references: the split to choose the threshold on; by default the data themselves,
    which is optimistic. criterion: what the best threshold maximizes: "mcc" (default), "f1" or "youden".
Returns:
    mcc, f1 and threshold; NaN where undefined.
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class TierMCC(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return finding_metric_info(DESCRIPTION, CITATION, INPUTS)

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[float],
        threshold: float | None = None,
        threshold_predictions: Sequence[float] | None = None,
        threshold_references: Sequence[float] | None = None,
        criterion: str = "mcc",
    ) -> dict:
        if (threshold_predictions is None) != (threshold_references is None):
            raise ValueError("The split that chooses the threshold needs predictions and references: give both.")
        if threshold is None:
            if threshold_predictions is None:
                threshold_predictions, threshold_references = predictions, references
            threshold = best_threshold(threshold_references, threshold_predictions, criterion)
        found = metrics_at_threshold(references, predictions, threshold)
        return {"mcc": found["mcc"], "f1": found["f1"], "threshold": threshold}
