"""Does it hold at another hospital? Thresholds and calibration from one data set, measured on another.

The first data set (`Source`) is a folder of results of the same model: its labels and scores choose, for each finding,
the highest threshold with the wanted sensitivity, and fit scale and bias. Both are applied unchanged to the images
that are evaluated now. Intervals resample these images' patients; threshold, scale and bias stay fixed.

Controls: AUROC and specificity of the same positives against healthy images ("No Finding") and against sick ones
(another finding). A model that tells sick from healthy, but not one finding from another, has only the first.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd

from evaluation_tier.output.metrics_file import read_metrics
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.scoring.findings import NO_FINDING, is_scored_by_others, read_labels
from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings, percentile_interval
from evaluation_tier.statistics.calibration import calibrate, log_odds, measure_calibration, resample_ece
from evaluation_tier.statistics.metrics import count_labels, metrics_at_threshold, sensitivity_threshold
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, draw_resamples, find_too_few
from processing_tier.prompts.loader import normalize_finding
from processing_tier.records.identities import family
from processing_tier.records.schema import finding_columns

logger = logging.getLogger(__name__)

WANTED_SENSITIVITY = 0.95

CONTROLS = {"healthy": 1, "sick": 0}  # group to the label of "No Finding"

SAME_SCORES = ("prompts", "prompts_replaced", "scoring", "no_finding", "score_level")  # else scores do not compare


class Source(NamedTuple):
    """The results that thresholds and calibration are fitted on."""

    folder: Path
    metrics: Mapping
    predictions: pd.DataFrame

    def columns(self, finding: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels and scores, (images,) float64."""
        return tuple(self.predictions[f"{kind}_{finding}"].to_numpy(np.float64) for kind in ("label", "score"))


def read_source(folder: str | Path, dataset: datasets.Dataset, dataset_name: str) -> Source:
    """
    Args:
        folder: that `tier-eval` wrote, of other data.
        dataset: to be evaluated now.
        dataset_name: of it.

    Raises:
        ValueError: the folder does not hold results, or these are of the patients that are evaluated now.
    """
    metrics = read_metrics(folder)
    source = Source(Path(folder), metrics, read_predictions(folder, metrics))
    patients = set(source.predictions["patient_id"].astype(str)) & set(map(str, dataset["patient_id"][:]))
    if family(metrics["dataset"]) == family(dataset_name) and patients:
        raise ValueError(
            f"--transfer {folder}: thresholds and calibration would be fitted on {len(patients):,} of the patients "
            "that are evaluated. Name results on other data, or evaluate another --split."
        )
    if "trained_on" in source.predictions and source.predictions["trained_on"].any():
        logger.warning("The thresholds of %s come from images that the model was trained on.", folder)
    return source


def check_same_model(source: Source, weights: Mapping[str, str]) -> None:
    """ValueError if the results are of other weights; `weights` are the hashes of this evaluation, by name."""
    theirs = source.metrics.get("weights") or {}
    if sorted(theirs.values()) != sorted(weights.values()):
        models = ", ".join(map(str, source.metrics.get("models") or ["an unknown model"]))
        raise ValueError(
            f"--transfer {source.folder} holds results of {models} with other weights than {', '.join(weights)}: "
            "thresholds carry over only for the same model. Evaluate this one on those data first."
        )


def match_findings(
    source: Source, findings: Sequence[str], find_prompts: Callable[[list[str]], Mapping] | None = None
) -> dict[str, str]:
    """
    Each finding's name in the results of the source: the same name, or one with the same sentences ("Effusion" and
    "Pleural Effusion").

    Args:
        find_prompts: the sentences of findings; None for classifiers.
    """
    there = {normalize_finding(name): name for name in source.metrics["findings"]}
    matched = {name: there[normalize_finding(name)] for name in findings if normalize_finding(name) in there}
    others = [name for name in findings if name not in matched]
    left = [name for name in source.metrics["findings"] if name not in matched.values()]
    if find_prompts and others and left:
        asked, known = find_prompts(others), find_prompts(left)
        for name in others:
            same = [other for other in left if known[other] == asked[name] and other not in matched.values()]
            if same:
                matched[name] = same[0]
    return {name: matched[name] for name in findings if name in matched}


def check_scores(source: Source, protocol: Mapping, keys: Sequence[str] = SAME_SCORES) -> None:
    """ValueError if the scores of the source were computed in another way than those of `protocol`."""
    for key in keys:
        theirs, ours = source.metrics["protocol"].get(key), protocol.get(key)
        if theirs != ours:
            raise ValueError(
                f"--transfer {source.folder} holds scores with {key} {theirs!r}, but these have {ours!r}: a threshold "
                "carries over only between scores of one kind. Evaluate both data sets with the same options."
            )


class Carried(NamedTuple):
    """What is measured, one column per finding, (images, findings)."""

    labels: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray  # calibrated on the source; NaN without a calibration
    thresholds: np.ndarray  # (findings,)


def measure_transfer(
    source: Source,
    metrics: Mapping,
    predictions: pd.DataFrame,
    dataset: datasets.Dataset,
    matched: Mapping[str, str],
    wanted: float = WANTED_SENSITIVITY,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    Args:
        source: where thresholds and calibration are fitted.
        metrics, predictions: of the evaluation, as `ZeroShot.results` returns them.
        dataset: the evaluated images; `predictions` is indexed by its rows.
        matched: of `match_findings`.
        wanted: sensitivity of the thresholds on the source, in (0, 1].
        resampling: number and seed; whole patients are drawn for every kind.

    Returns:
        `fitted_on`, `wanted_sensitivity`, `n_findings`, `n_kept` (sensitivity at least as wanted), `n_lost` (its
        whole interval below), `findings` by name, `mean` and `left_out` with the reasons. Of a finding: `sensitivity`,
        `specificity`, `ece`, `auroc_healthy`, `auroc_sick`, `auroc_difference` (healthy minus sick),
        `specificity_healthy`, `specificity_sick`, each with `_ci95`; `fitted` holds what the source itself has.

    Raises:
        ValueError: no finding is in both results, or their scores are of different kinds.
    """
    protocol = metrics["protocol"]
    check_scores(source, protocol)
    names = choose_findings(source, metrics, matched)
    of_probabilities = protocol["scoring"] not in ("difference", "logit")
    fitted = {name: fit(source, matched[name], wanted, of_probabilities) for name in names}
    carried = carry_over(predictions, names, fitted, of_probabilities)
    patients = predictions["patient_id"].tolist()
    draws = draw_resamples(patients, resampling.num_resamples, resampling.seed)
    healthy = read_healthy(dataset, predictions.index.to_numpy())
    controls = {} if healthy is None else select_controls(carried.labels, names, healthy)
    point = measure(carried, controls, np.ones((1, len(predictions))))
    resampled = measure(carried, controls, draws)
    few = {group: find_too_few(labels, patients) for group, labels in {"": carried.labels, **controls}.items()}
    estimates = estimate(point, resampled, few)
    results: dict[str, dict] = {}
    for i, name in enumerate(names):
        counts = count_labels(carried.labels[:, i])
        results[name] = {"fitted_as": matched[name], "fitted": fitted[name], **counts, **estimates[i]}
    return {
        "fitted_on": describe_source(source),
        "dataset": metrics["dataset"],
        "wanted_sensitivity": wanted,
        "n_findings": len(names),
        "n_kept": sum(entry["sensitivity"] >= wanted for entry in results.values()),
        "n_lost": sum(entry["sensitivity_ci95"][1] < wanted for entry in results.values()),
        "healthy_controls": None if healthy is None else int((healthy == 1).sum()),
        "findings": results,
        "mean": estimates[-1],
        "left_out": explain_left_out(source, metrics, matched),
    }


def choose_findings(source: Source, metrics: Mapping, matched: Mapping[str, str]) -> list[str]:
    """The matched findings that their own sentences or heads score; ValueError without one."""
    protocol = metrics["protocol"]
    names = [name for name in metrics["findings"] if name in matched and not is_scored_by_others(name, protocol)]
    if not names:
        raise ValueError(
            f"--transfer {source.folder} has results of {', '.join(source.metrics['findings'])}, and these data have "
            f"{', '.join(metrics['findings'])}: no finding can be carried over."
        )
    return names


def fit(source: Source, finding: str, wanted: float, of_probabilities: bool) -> dict[str, float]:
    """Threshold, scale and bias of a finding of the source, and its numbers on the images that they are fitted on."""
    labels, scores = source.columns(finding)
    threshold = sensitivity_threshold(labels, scores, wanted)
    calibration, _ = measure_calibration(labels, scores, labels, scores, of_probabilities)
    at = {"sensitivity": math.nan, "specificity": math.nan}
    if not math.isnan(threshold):
        at |= {key: metrics_at_threshold(labels, scores, threshold)[key] for key in at}
    return {
        "threshold": threshold,
        **{key: calibration[key] for key in ("scale", "bias", "ece")},
        **at,
        **count_labels(labels),
    }


def carry_over(
    predictions: pd.DataFrame, names: Sequence[str], fitted: Mapping[str, Mapping], of_probabilities: bool
) -> Carried:
    """The evaluated images under thresholds and calibration of the source."""
    labels, scores = (
        np.stack([predictions[f"{kind}_{name}"].to_numpy(np.float64) for name in names], axis=1)
        for kind in ("label", "score")
    )
    logits = log_odds(scores) if of_probabilities else scores
    probabilities = [
        calibrate(logits[:, i], fitted[name]["scale"], fitted[name]["bias"]) for i, name in enumerate(names)
    ]
    thresholds = np.array([fitted[name]["threshold"] for name in names])
    return Carried(labels, scores, np.stack(probabilities, axis=1), thresholds)


def read_healthy(dataset: datasets.Dataset, rows: np.ndarray) -> np.ndarray | None:
    """The labels of "No Finding" of these rows, (images,); None if the data have no such column."""
    columns = [name for name in finding_columns(dataset) if normalize_finding(name) in NO_FINDING]
    return read_labels(dataset, columns[:1])[rows, 0] if columns else None


def select_controls(labels: np.ndarray, names: Sequence[str], healthy: np.ndarray) -> dict[str, np.ndarray]:
    """
    The labels (images, findings) of the positives and of one group of controls; NaN for the other images. "No Finding"
    does not have controls with another finding.
    """
    own = np.array([normalize_finding(name) in NO_FINDING for name in names])
    return {
        group: np.where((labels == 0) & ((healthy != value)[:, None] | own), np.nan, labels)
        for group, value in CONTROLS.items()
    }


def measure(carried: Carried, controls: Mapping[str, np.ndarray], draws: np.ndarray) -> dict[str, np.ndarray]:
    """Each number of `measure_transfer` in each resample, (resamples, findings)."""
    labels, scores, probabilities, thresholds = carried
    at = bootstrap(labels, scores, draws, thresholds)
    eces = [resample_ece(labels[:, i], probabilities[:, i], draws) for i in range(labels.shape[1])]
    measured = {
        "sensitivity": at["sensitivity"],
        "specificity": at["specificity"],
        "ece": np.stack(eces, axis=1),
    }
    for group, with_controls in controls.items():
        found = bootstrap(with_controls, scores, draws, thresholds)
        measured |= {f"{key}_{group}": found[key] for key in ("auroc", "specificity")}
    if controls:
        measured["auroc_difference"] = measured["auroc_healthy"] - measured["auroc_sick"]
    return measured


def estimate(
    point: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], few: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """
    Each number with its interval, of each finding and, last, of their mean.

    Args:
        few: which findings have too few patients, (findings,) bool: among all images (`""`), and with
            each group of controls.
    """
    num_findings = len(few[""])
    estimates: list[dict[str, Any]] = [{} for _ in range(num_findings + 1)]
    for key, values in point.items():
        lacks = np.any([of for group, of in few.items() if not group or key.endswith((group, "difference"))], axis=0)
        for i in range(num_findings):
            kept = resampled[key][:0, i] if lacks[i] else resampled[key][:, i]
            estimates[i] |= {key: float(values[0, i]), f"{key}_ci95": percentile_interval(kept).tolist()}
        mean, spread = mean_over_findings(values[0], resampled[key])
        interval = percentile_interval(spread[:0] if lacks.all() else spread)
        estimates[-1] |= {key: mean, f"{key}_ci95": interval.tolist()}
    return estimates


def describe_source(source: Source) -> dict:
    """The images that thresholds and calibration come from."""
    protocol = source.metrics["protocol"]
    return {
        "dataset": source.metrics["dataset"],
        "split": protocol.get("split"),
        "n_images": source.metrics["n_images"],
        "n_patients": source.predictions["patient_id"].nunique(),
        "training_overlap": protocol.get("training_overlap"),
    }


def explain_left_out(source: Source, metrics: Mapping, matched: Mapping[str, str]) -> dict[str, str]:
    """The findings of either data set that are not carried over, with the reason."""
    reasons = {}
    for name in metrics["findings"]:
        if name not in matched:
            reasons[name] = f"not evaluated on {source.metrics['dataset']}"
        elif is_scored_by_others(name, metrics["protocol"]):
            reasons[name] = "scored by the other findings of its data set"
    there = [name for name in source.metrics["findings"] if name not in matched.values()]
    return reasons | dict.fromkeys(there, f"not evaluated on {metrics['dataset']}")
