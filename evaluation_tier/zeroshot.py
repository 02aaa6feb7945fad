"""Zero-shot evaluation: how well sentences alone tell radiographs with a finding from those without.

For each finding there are positive sentences ("There is a left pleural effusion.") and negative ones; every image
and every sentence is embedded once, and an image scores by how much nearer it lies to the positive sentences.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.calibration import fit_calibration
from evaluation_tier.embedding import classify_images, embed_images, embed_prompts
from evaluation_tier.loading import check_members_differ, is_classifier
from evaluation_tier.metrics import auprc, auroc, best_threshold, f1, mcc
from evaluation_tier.report import installed_versions
from evaluation_tier.resampling import bootstrap_auroc
from evaluation_tier.scoring import SCORINGS, zero_shot_scores
from processing_tier.prompts import Prompts, load_prompts
from processing_tier.records import finding_columns

logger = logging.getLogger(__name__)


def evaluate_zero_shot(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    scoring: str = "difference",
    min_positives: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    threshold_dataset: datasets.Dataset | None = None,
    dataset_name: str = "",
) -> tuple[dict, pd.DataFrame]:
    """Evaluate one model, or the averaged scores of several, on a data set in the schema of `records.py`.

    Args:
        models: name to (model, processor), as `load_model` gives them: models of images and texts, or classifiers,
            whose scores are their logits.
        dataset: the images, their patients and one label column per finding.
        findings: see `select_findings`; of classifiers, those that all of them know.
        prompts: name or path of a prompt file (see `processing_tier.prompts`), or the prompts themselves. Classifiers
            need none.
        scoring: see `zero_shot_scores`; an ensemble's score is the mean over its members.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`.
        threshold_dataset: where the thresholds of MCC and F1 are chosen (by the highest MCC) and `scale` and `bias`
            are fitted; by default the evaluated images themselves, which flatters MCC and F1, and the protocol says
            so. sigmoid(scale * difference + bias), of the difference of the cosines whatever the scoring, is a
            probability on images like these (see `fit_calibration`).
        dataset_name: what the results call the data.

    Returns:
        The metrics (the layout of `metrics.json`, see `report.py`; undefined numbers are NaN), and the predictions:
        one row per evaluated image with `image_id`, `patient_id`, `score_<finding>` and `label_<finding>`, indexed
        by the image's row in `dataset`.
    """
    check_members_differ(models)
    if n_bootstrap < 1:
        raise ValueError(f"The number of bootstrap resamples must be at least 1, but is {n_bootstrap}.")
    if any(is_classifier(model) for model, _ in models.values()):
        findings, left_out = select_learnt_findings(models, dataset, findings, min_positives)
        if scoring != SCORINGS[0]:
            logger.warning("The scoring %r has no effect on classifiers, which score by their logits.", scoring)
        scoring, prompts_name, prompts = "logit", "none (trained heads)", dict.fromkeys(findings)
    else:
        findings, left_out = select_findings(dataset, findings, min_positives)
        prompts_name = "given sentences" if isinstance(prompts, Mapping) else Path(prompts).stem
        if not isinstance(prompts, Mapping):
            prompts = load_prompts(prompts, findings)
    lacking = [finding for finding in findings if finding not in prompts]
    if lacking:
        raise ValueError(f"There are no prompts for {lacking[0]!r}: add sentences for it or leave the finding out.")
    prompts = {finding: prompts[finding] for finding in findings}

    scores = score_images(models, dataset, prompts, scoring, batch_size)
    labels = read_labels(dataset, findings)
    readable = ~np.isnan(scores).any(axis=1)
    image_ids, patient_ids = np.array(dataset["image_id"][:]), np.array(dataset["patient_id"][:]).astype(str)
    skipped = image_ids[~readable].tolist()
    scores, labels = scores[readable], labels[readable]
    image_ids, patient_ids = image_ids[readable], patient_ids[readable]

    threshold_scores, threshold_labels, threshold_source = scores, labels, "the evaluated images (optimistic)"
    if threshold_dataset is not None:
        missing = [finding for finding in findings if finding not in threshold_dataset.column_names]
        if missing:
            raise ValueError(f"The split that chooses the thresholds has no column {missing[0]!r}.")
        threshold_scores = score_images(models, threshold_dataset, prompts, scoring, batch_size)
        usable = ~np.isnan(threshold_scores).any(axis=1)
        threshold_scores = threshold_scores[usable]
        threshold_labels = read_labels(threshold_dataset, findings)[usable]
        threshold_source = "a split apart"

    threshold_differences = threshold_scores
    if scoring == "softmax":
        threshold_differences = np.log(threshold_scores) - np.log1p(-threshold_scores)

    bootstrap = bootstrap_auroc(labels, scores, patient_ids, n_bootstrap, seed)
    results = {}
    for i, finding in enumerate(findings):
        threshold = best_threshold(threshold_labels[:, i], threshold_scores[:, i])
        scale, bias = fit_calibration(threshold_labels[:, i], threshold_differences[:, i])
        num_positive, num_negative = int((labels[:, i] == 1).sum()), int((labels[:, i] == 0).sum())
        results[finding] = {
            "auroc": auroc(labels[:, i], scores[:, i]),
            "auroc_ci95": bootstrap.interval[i].tolist(),
            "auprc": auprc(labels[:, i], scores[:, i]),
            "mcc": mcc(labels[:, i], scores[:, i], threshold),
            "f1": f1(labels[:, i], scores[:, i], threshold),
            "threshold": threshold,
            "scale": scale,
            "bias": bias,
            "n_positive": num_positive,
            "n_negative": num_negative,
            "n_excluded": len(labels) - num_positive - num_negative,
        }
    mean = {key: nanmean(result[key] for result in results.values()) for key in ("auroc", "auprc", "mcc", "f1")}
    metrics = {
        "dataset": dataset_name,
        "protocol": {
            "prompts": prompts_name,
            "scoring": scoring,
            "thresholds": f"highest MCC on {threshold_source}",
            "intervals": "95 % percentile bootstrap over patients",
            "n_bootstrap": n_bootstrap,
            "seed": seed,
            "n_patients": len(set(patient_ids.tolist())),
            "min_positives": min_positives,
            "findings_left_out": left_out,
            "resamples_dropped": dict(zip(findings, bootstrap.num_dropped.tolist(), strict=True)),
            "images_skipped": skipped,
        },
        "n_images": len(labels),
        "models": list(models),
        "findings": results,
        "mean": {"auroc": mean.pop("auroc"), "auroc_ci95": bootstrap.mean_interval.tolist(), **mean},
        "versions": installed_versions(),
    }
    predictions = pd.DataFrame({"image_id": image_ids, "patient_id": patient_ids}, index=np.flatnonzero(readable))
    for i, finding in enumerate(findings):
        predictions[f"score_{finding}"] = scores[:, i]
    for i, finding in enumerate(findings):
        predictions[f"label_{finding}"] = labels[:, i]
    return metrics, predictions


def score_images(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    scoring: str,
    batch_size: int,
) -> np.ndarray:
    """Scores averaged over the models, (images, findings); NaN rows for images that do not decode."""
    members = [
        classify_images(model, processor, dataset, list(prompts), batch_size).astype(np.float64)
        if is_classifier(model)
        else zero_shot_scores(
            embed_images(model, processor, dataset, batch_size), *embed_prompts(model, processor, prompts), scoring
        )
        for model, processor in models.values()
    ]
    return np.mean(members, axis=0)


def zero_shot_auroc(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    prompts: Mapping[str, Prompts],
    scoring: str = "difference",
    batch_size: int = 32,
) -> dict[str, float]:
    """AUROC of each finding and their `"mean"`, without intervals: cheap enough to call during training.

    NaN for a finding that lacks a class; the mean leaves it out. The model returns to the mode it was in.
    """
    image_embeds = embed_images(model, processor, dataset, batch_size)
    positive, negative = embed_prompts(model, processor, {finding: prompts[finding] for finding in findings})
    readable = ~np.isnan(image_embeds).any(axis=1)
    scores = zero_shot_scores(image_embeds[readable], positive, negative, scoring)
    labels = read_labels(dataset, findings)[readable]
    aurocs = {finding: auroc(labels[:, i], scores[:, i]) for i, finding in enumerate(findings)}
    return {**aurocs, "mean": nanmean(aurocs.values())}


def select_findings(
    dataset: datasets.Dataset, asked: Sequence[str] | None = None, min_positives: int = 10
) -> tuple[list[str], dict[str, str]]:
    """The findings to evaluate, and those left out with the reason.

    Args:
        dataset: with one label column per finding.
        asked: names of findings; by default all with at least `min_positives` positives and at least one negative.

    Raises:
        ValueError: for an asked finding that the data set lacks or that lacks a class, or when none is left.
    """
    available = finding_columns(dataset)
    if not available:
        raise ValueError("The data set has no finding column: add one per finding with 1, 0, -1 or an empty cell.")
    for finding in asked or []:
        if finding not in available:
            close = difflib.get_close_matches(finding.lower(), [name.lower() for name in available], n=1)
            hint = [f"did you mean {name!r}? " for name in available if [name.lower()] == close]
            raise ValueError(
                f"The data set has no finding {finding!r}: {''.join(hint)}It has {', '.join(map(repr, available))}."
            )
    labels = read_labels(dataset, available)
    num_positive = dict(zip(available, (labels == 1).sum(axis=0).tolist(), strict=True))
    num_negative = dict(zip(available, (labels == 0).sum(axis=0).tolist(), strict=True))
    counts = ", ".join(f"{name} {num_positive[name]}" for name in available)
    if asked:
        for finding in asked:
            lacking = "positive" if not num_positive[finding] else "negative" if not num_negative[finding] else None
            if lacking:
                raise ValueError(
                    f"The finding {finding!r} has no {lacking} image among the {len(dataset)}: leave it out or choose "
                    f"another split. Positives per finding: {counts}."
                )
            if num_positive[finding] < min_positives:
                logger.warning("%s has only %d positives: its AUROC says little.", finding, num_positive[finding])
        return list(dict.fromkeys(asked)), {}

    left_out = {}
    for finding in available:
        if num_positive[finding] < min_positives:
            left_out[finding] = f"{num_positive[finding]} positive{'' if num_positive[finding] == 1 else 's'}"
        elif not num_negative[finding]:
            left_out[finding] = "no negatives"
    findings = [finding for finding in available if finding not in left_out]
    if not findings:
        raise ValueError(
            f"No finding has {min_positives} positives and a negative among the {len(dataset)} images: lower "
            f"--min_positives or use more images. Positives per finding: {counts}."
        )
    return findings, left_out


def select_learnt_findings(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    asked: Sequence[str] | None,
    min_positives: int,
) -> tuple[list[str], dict[str, str]]:
    """What `select_findings` gives, of the findings that all of these classifiers know.

    Raises:
        ValueError: as `select_findings`, and for a model that is no classifier or an asked finding that one lacks.
    """
    known = set(finding_columns(dataset))
    for name, (model, _) in models.items():
        if not is_classifier(model):
            raise ValueError(f"{name} is no classifier, and has no score in common with one: evaluate it by itself.")
        learnt = model.config.label2id
        for finding in asked or []:
            if finding not in learnt:
                raise ValueError(f"The classifier {name} never learnt {finding!r}: it knows {', '.join(learnt)}.")
        known &= set(learnt)
    unknown = [finding for finding in finding_columns(dataset) if finding not in known]
    if not known:
        raise ValueError(f"The classifier knows none of the data set's findings, which are {', '.join(unknown)}.")
    findings, left_out = select_findings(dataset.remove_columns(unknown), asked, min_positives)
    return findings, left_out | dict.fromkeys(unknown, "never learnt")


def read_labels(dataset: datasets.Dataset, findings: Sequence[str]) -> np.ndarray:
    """The label columns, (images, findings) float64: 1, 0, -1 (uncertain) or NaN (not stated)."""
    columns = [np.array(dataset.with_format(None)[finding][:], dtype=np.float64) for finding in findings]
    return np.stack(columns, axis=1) if columns else np.empty((len(dataset), 0))


def nanmean(values) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, when there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
