"""AUROC with a patient bootstrap interval, as a module for `evaluate.load`."""

from collections.abc import Sequence

import evaluate
import numpy as np

from evaluation_tier.evaluate_modules.metric_info import finding_metric_info
from evaluation_tier.statistics.bootstrap import bootstrap_auroc
from evaluation_tier.statistics.metrics import auroc
from evaluation_tier.statistics.resampling import Resampling

DESCRIPTION = "AUROC of one finding with a 95 % percentile interval from resampling patients."
CITATION = """@article{hanley1982meaning,
  title={The meaning and use of the area under a receiver operating characteristic ({ROC}) curve},
  author={Hanley, James A. and McNeil, Barbara J.},
  journal={Radiology}, volume={143}, number={1}, pages={29--36}, year={1982}
}"""
INPUTS = """
Args:
    predictions: scores; a higher score means that the finding is more likely.
    references: 1 present, 0 absent, -1 uncertain, NaN not stated; the last two are left out.
    patient_ids: the patient of each score; by default each score belongs to another patient.
    num_resamples: bootstrap resamples of the patients (default: 1000).
    seed: random seed of the bootstrap (default: 0).
Returns:
    auroc, and auroc_ci95 as [low, high]; NaN where undefined.
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class TierAUROC(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return finding_metric_info(DESCRIPTION, CITATION, INPUTS)

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[float],
        patient_ids: Sequence | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> dict:
        labels, scores = np.array(references, dtype=np.float64), np.array(predictions, dtype=np.float64)
        patient_ids = range(len(labels)) if patient_ids is None else patient_ids
        found = bootstrap_auroc(labels[:, None], scores[:, None], patient_ids, Resampling(num_resamples, seed))
        return {"auroc": auroc(labels, scores), "auroc_ci95": found.interval[0].tolist()}
