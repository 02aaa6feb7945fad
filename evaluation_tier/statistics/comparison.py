"""Two evaluations of the same images, side by side: what the second model gains on the first, and how sure that is."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation_tier.output.metrics_file import as_float, read_metrics, to_json
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.tables import format_cell
from evaluation_tier.statistics.bootstrap import bootstrap
from evaluation_tier.statistics.metrics import nanmean
from evaluation_tier.statistics.paired import delong, paired_bootstrap
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.summary import TOO_FEW
from evaluation_tier.statistics.thresholds import f1_threshold

logger = logging.getLogger(__name__)

COMPARED = ("auroc", "auprc", "mcc", "f1")

# What the protocol says of the intervals and of the data, which a comparison makes anew or checks itself
NOT_OF_SCORES = (
    "intervals",
    "n_bootstrap",
    "seed",
    "n_patients",
    "min_positives",
    "benchmark_differs",
    "findings_left_out",
    "resamples_dropped",
    "images_skipped",
    "training_overlap",
    "threshold_overlap",
    "n_trained_images",
    "n_trained_patients_images",
    "trained",
)


def compare_evaluations(
    first: str | Path,
    second: str | Path,
    resampling: Resampling = PATIENT_BOOTSTRAP,
    trained: str = "refuse",
) -> dict:
    """
    The second evaluation's metrics minus the first's, on the same images, with paired 95 % intervals.

    Both models are measured on the same resamples of the patients, so what makes an image hard for both cancels: two
    models may differ surely although their own intervals overlap.

    Args:
        first (`str` or `Path`): folder that `eval_zeroshot.py` wrote, with `metrics.json` and `predictions.parquet`.
        second (`str` or `Path`): likewise.
        resampling ([`Resampling`], *optional*): of the patients.
        trained (`str`, *optional*, defaults to `"refuse"`):
            What to do with images that one of the models was trained on: `"refuse"`, `"exclude"` (from both) or
            `"include"`.

    Returns:
        `dict`: of JSON's own types, numbers that are undefined being `None`.

        - `"first"`, `"second"`: `folder` and `models`.
        - `"dataset"`, `"n_images"`, `"n_patients"`, `"n_bootstrap"`, `"seed"`.
        - `"training_overlap"`: of each, what its evaluation says of images that the model was trained on.
        - `"protocol_differences"`: by key the two values; a warning names them too.
        - `"findings"`: by name `n_positive`, `n_negative`, and for each of `auroc`, `auprc`, `mcc`, `f1` its `first`,
          `second`, `difference`, `difference_ci95` and `p_bootstrap`; of the AUROC also `p_delong`, by DeLong's test
          (1988), which takes images as independent: with several of a patient it finds differences where there are
          none. MCC and F1 are at the thresholds that each evaluation chose.
        - `"mean"`: the same over the findings, without `p_delong`.
        - `"findings_left_out"`: by name in which of the two it is missing.

    Raises:
        `ValueError`: for a folder without a whole evaluation, and when images, patients or labels of the two differ,
            with the number of those that do.
    """
    metrics = [read_metrics(folder) for folder in (first, second)]
    findings = [finding for finding in metrics[0]["findings"] if finding in metrics[1]["findings"]]
    if not findings:
        of_first, of_second = (", ".join(map(repr, read["findings"])) or "none" for read in metrics)
        raise ValueError(
            f"The results have no finding in common: {first} has {of_first}; {second} has {of_second}. Evaluate both "
            "models on the same findings."
        )
    tables = [read_predictions(folder, read) for folder, read in zip((first, second), metrics, strict=True)]
    tables = without_trained(tables, metrics, (str(first), str(second)), trained)
    tables = align(*tables, str(first), str(second), findings)
    differing = protocol_differences(*metrics)
    if differing:
        described = ", ".join(f"{key} ({format_cell(a)} / {format_cell(b)})" for key, (a, b) in differing.items())
        logger.warning("The protocols of the two results differ in %s: scores may differ for that reason.", described)

    labels = columns_of(tables[0], "label", findings)
    scores = [columns_of(table, "score", findings) for table in tables]
    thresholds = [
        {
            "mcc": [as_float(read["findings"][finding].get("threshold")) for finding in findings],
            "f1": [as_float(f1_threshold(read["findings"][finding])) for finding in findings],
        }
        for read in metrics
    ]
    patients = tables[0]["patient_id"].tolist()
    draws = resampling.draw(patients, labels)
    too_few = find_too_few(labels, patients)
    for finding in np.array(findings)[too_few]:
        logger.warning("No interval and no p-value for %s: %s.", finding, TOO_FEW)
    paired = paired_bootstrap(labels, *scores, draws, *thresholds, unit_ids=patients)
    everyone = np.ones((1, len(labels)))
    values = [bootstrap(labels, of_model, everyone, at) for of_model, at in zip(scores, thresholds, strict=True)]

    results = {}
    for i, finding in enumerate(findings):
        part = {"n_positive": int((labels[:, i] == 1).sum()), "n_negative": int((labels[:, i] == 0).sum())}
        for name in COMPARED:
            part[name] = {
                "first": values[0][name][0, i],
                "second": values[1][name][0, i],
                "difference": paired[name].difference[i],
                "difference_ci95": paired[name].interval[i],
                "p_bootstrap": paired[name].p_value[i],
            }
        p_delong = delong(labels[:, i], scores[0][:, i], scores[1][:, i]).p_value
        part["auroc"]["p_delong"] = float("nan") if too_few[i] else p_delong
        results[finding] = part
    mean = {}
    for name in COMPARED:
        defined = ~np.isnan(paired[name].difference)  # the means are of the same findings
        mean[name] = {
            "first": nanmean(values[0][name][0, defined]),
            "second": nanmean(values[1][name][0, defined]),
            "difference": paired[name].mean_difference,
            "difference_ci95": paired[name].mean_interval,
            "p_bootstrap": paired[name].mean_p_value,
        }
    left_out = {finding: f"not in {second}" for finding in metrics[0]["findings"] if finding not in findings}
    left_out |= {finding: f"not in {first}" for finding in metrics[1]["findings"] if finding not in findings}
    return to_json(
        {
            "first": {"folder": str(first), "models": metrics[0].get("models") or []},
            "second": {"folder": str(second), "models": metrics[1].get("models") or []},
            "dataset": metrics[0]["dataset"],
            "n_images": len(labels),
            "n_patients": len(set(patients)),
            "n_bootstrap": resampling.num_resamples,
            "seed": resampling.seed,
            "trained": trained,
            "training_overlap": [read["protocol"].get("training_overlap") for read in metrics],
            "protocol_differences": differing,
            "findings": results,
            "mean": mean,
            "findings_left_out": left_out,
        }
    )


def columns_of(table: pd.DataFrame, kind: str, findings: Sequence[str]) -> np.ndarray:
    """The labels or scores, (images, findings) float64."""
    return table[[f"{kind}_{finding}" for finding in findings]].to_numpy(dtype=np.float64)


def without_trained(
    tables: Sequence[pd.DataFrame], metrics: Sequence[Mapping], names: Sequence[str], choice: str
) -> list[pd.DataFrame]:
    """
    Both tables without the images that one of the models was trained on, where the choice is to exclude them.

    Raises:
        ValueError: when there are such images and the choice is to refuse them, or none is left without them.
    """
    seen = [table["trained_on"] if "trained_on" in table else pd.Series(False, table.index) for table in tables]
    for table_seen, name in zip(seen, names, strict=True):
        if table_seen.any() and choice == "refuse":
            raise ValueError(
                f"{name} counts {table_seen.sum():,} images that its model was trained on, or of its training "
                "patients: leave them out of both with --exclude_trained, or count them with --include_trained, which "
                "the comparison will say."
            )
    if choice != "exclude":
        return list(tables)
    if not any(read["protocol"].get("trained") for read in metrics):
        logger.warning("--exclude_trained has no effect: neither evaluation has met an image of the training.")
    kept = [set(table["image_id"][~table_seen]) for table, table_seen in zip(tables, seen, strict=True)]
    dropped = set().union(*(set(table["image_id"][mask]) for table, mask in zip(tables, seen, strict=True)))
    if any(read["protocol"].get("trained") == "excluded" for read in metrics):
        dropped |= kept[0] ^ kept[1]  # left out when one of them was evaluated
    if not (kept[0] & kept[1]) - dropped:
        raise ValueError("No image is left without those that the models were trained on: evaluate other data.")
    return [table[~table["image_id"].isin(dropped)] for table in tables]


def align(
    first: pd.DataFrame, second: pd.DataFrame, first_name: str, second_name: str, findings: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The second table's rows in the order of the first's.

    Raises:
        ValueError: when an image occurs twice, or images, their patients or their labels are not the same in both.
    """
    for table, name in ((first, first_name), (second, second_name)):
        repeated = int(table["image_id"].duplicated().sum())
        if repeated:
            raise ValueError(f"{repeated} rows of {name} repeat an image_id: evaluate on data that name images once.")
    shared = int(first["image_id"].isin(second["image_id"]).sum())
    if shared < len(first) or shared < len(second):
        raise ValueError(
            f"The results are not of the same images: {first_name} has {len(first):,}, {second_name} {len(second):,}, "
            f"and {shared:,} are in both. Evaluate both models on the same images, or pass --exclude_trained where "
            "one was evaluated so."
        )
    second = second.set_index("image_id").loc[first["image_id"]].reset_index()
    patients = [table["patient_id"].astype(str).fillna("").to_numpy() for table in (first, second)]
    moved = int((patients[0] != patients[1]).sum())
    if moved:
        raise ValueError(
            f"{moved:,} of the {len(first):,} images belong to other patients in {second_name} than in {first_name}: "
            "evaluate both models on the same data."
        )
    labels = [columns_of(table, "label", findings) for table in (first, second)]
    differ = ~((labels[0] == labels[1]) | (np.isnan(labels[0]) & np.isnan(labels[1])))
    if differ.any():
        counts = ", ".join(
            f"{finding} {count:,}" for finding, count in zip(findings, differ.sum(axis=0), strict=True) if count
        )
        raise ValueError(
            f"The labels of the two results differ (of {len(first):,} images: {counts}): evaluate both models with "
            "the same labels."
        )
    return first, second


def protocol_differences(first: Mapping, second: Mapping) -> dict[str, list]:
    """What two evaluations did otherwise: by key of the protocol the two values, None where one does not say."""
    protocols = [{"dataset": read["dataset"], **read["protocol"]} for read in (first, second)]
    keys = dict.fromkeys((*protocols[0], *protocols[1]))
    return {
        key: [protocol.get(key) for protocol in protocols]
        for key in keys
        if key not in NOT_OF_SCORES and protocols[0].get(key) != protocols[1].get(key)
    }
