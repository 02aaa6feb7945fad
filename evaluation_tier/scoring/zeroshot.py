"""Zero-shot evaluation: how well sentences alone tell radiographs with a finding from those without.

For each finding there are positive sentences ("There is a left pleural effusion.") and negative ones; every image
and every sentence is embedded once, and an image scores by how much nearer it lies to the positive sentences.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.embedding import MAX_UNREADABLE, embed_batches, embed_images, embed_prompts, has_patches
from evaluation_tier.models.loading import check_members_differ, is_classifier
from evaluation_tier.models.processes import fail_together, gather_rows, own_rows
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.scoring.findings import (
    NO_FINDING,
    is_scored_by_others,
    name_split,
    read_attributes,
    read_labels,
    select_findings,
    select_learnt_findings,
    warn_of_missing_classes,
    warn_of_no_interval,
)
from evaluation_tier.scoring.protocols import Protocol, choose_protocol, find_prompts, prompts_name
from evaluation_tier.scoring.scores import (
    LEVELS,
    NEVER_ABNORMAL,
    level_differences,
    no_finding_scores,
    pool_patches,
    prompt_directions,
    scores_from_differences,
    zero_shot_scores,
)
from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings
from evaluation_tier.statistics.metrics import auroc, nanmean
from evaluation_tier.statistics.resampling import Resampling, find_too_few
from evaluation_tier.statistics.subgroups import summarize_subgroups
from evaluation_tier.statistics.summary import metric_entry, summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice
from processing_tier.prompts.loader import Prompts, normalize_finding

logger = logging.getLogger(__name__)

Member = tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor]


def evaluate_zero_shot(
    models: Mapping[str, Member | Callable[[], Member]],
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] | None = None,
    scoring: str | None = None,
    min_positives: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    threshold_dataset: datasets.Dataset | None = None,
    dataset_name: str = "",
    protocol: str = "report",
    no_finding: str | None = None,
    replaced_prompts: Mapping[str, Prompts] | None = None,
    score_level: str = "global",
    cache_dir: str | Path | None = None,
) -> tuple[dict, pd.DataFrame]:
    """Evaluate one model, or the averaged scores of several, on a data set in the schema of `records.py`.

    Where `torch.distributed` runs, every process must call this with the same arguments: each embeds its part of the
    images, and all return the same.

    Args:
        models: name to (model, processor), as `load_model` gives them, or to a function that returns these, so that
            no two members of an ensemble are in memory at once. Models of images and texts, or classifiers, whose
            scores are their logits.
        dataset: the images, their patients and one label column per finding.
        findings: see `select_findings`; of classifiers, those that all of them know.
        prompts: in place of the protocol's: name or path of a prompt file (see `processing_tier.prompts`), or the
            prompts themselves. Classifiers need none.
        scoring: in place of the protocol's, see `zero_shot_scores`; an ensemble's score is the mean over its members.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`.
        threshold_dataset: where the thresholds are chosen (by the protocol's rule) and `scale` and `bias` are
            fitted; by default the evaluated images themselves, which flatters MCC and F1, and the protocol says
            so. sigmoid(scale * difference + bias), of the difference of the cosines whatever the scoring, is a
            probability on images like these (see `fit_calibration`).
        dataset_name: what the results call the data.
        protocol: of `evaluation_tier.scoring.protocols.PROTOCOLS`.
        no_finding: in place of the protocol's way to score "No Finding", see `Protocol`.
        replaced_prompts: finding to prompts that take the place of the protocol's (see `test_sets/loader.py`).
        score_level: of `evaluation_tier.scoring.scores.LEVELS`; all but `"global"` need models that embed patches.
        cache_dir: where embeddings are kept between evaluations, see `evaluation_tier.models.cache`.

    Returns:
        The metrics (the layout of `metrics.json`, see `report.py`; undefined numbers are NaN), and the predictions:
        one row per evaluated image with `image_id`, `patient_id`, `score_<finding>` and `label_<finding>`, indexed
        by the image's row in `dataset`. Where all models embed patches, `metrics["score_levels"]` compares the levels
        by their mean AUROC, see `compare_levels`.

    Raises:
        ValueError: for a protocol, level, scoring, finding or prompt that there is not, members with the same weights
            or of different kinds, and what the readers of images and the models raise.
    """
    protocol = choose_protocol(protocol, prompts, scoring, no_finding)
    resampling = Resampling(n_bootstrap, seed, protocol.resampling)
    if score_level not in LEVELS:
        raise ValueError(f"The score level must be one of {', '.join(LEVELS)}, but is {score_level!r}.")
    evaluated = [dataset] if threshold_dataset is None else [dataset, threshold_dataset]

    # 1. Scores
    scores, findings, left_out, are_logits, weights = score_models(
        models, evaluated, findings, min_positives, protocol, replaced_prompts, score_level, batch_size, cache_dir
    )
    readable = [~np.isnan(levels[LEVELS[0]]).any(axis=1) for levels in scores]
    for mask in readable:  # also where no process alone has too many
        if (~mask).sum() > MAX_UNREADABLE * len(mask):
            raise ValueError(
                f"{(~mask).sum()} of {len(mask)} images do not decode, more than 1 %: repair or remove them."
            )
    labels = [read_labels(data, findings)[mask] for data, mask in zip(evaluated, readable, strict=True)]
    scores = [
        {level: values[mask] for level, values in levels.items()}
        for levels, mask in zip(scores, readable, strict=True)
    ]
    described = {"name": protocol.name, "source": protocol.source, "prompts": prompts_name(protocol.prompts)}
    described |= {"scoring": protocol.scoring, "no_finding": protocol.no_finding, "score_level": score_level}
    if are_logits:
        described = {"name": "classifier", "prompts": "none (trained heads)", "scoring": "logit"}
        if protocol.name != "report":
            logger.warning("The protocol %r has no effect on classifiers, which score by their logits.", protocol.name)
    elif replaced_prompts:
        described["prompts_replaced"] = [finding for finding in findings if finding in replaced_prompts]
    by_others = [i for i, finding in enumerate(findings) if is_scored_by_others(finding, described)]
    if by_others:
        score_by_others(scores, findings, by_others)

    # 2. Metrics
    image_ids, patient_ids = np.array(dataset["image_id"][:]), np.array(dataset["patient_id"][:])
    skipped = image_ids[~readable[0]].tolist()
    image_ids, patient_ids = image_ids[readable[0]], patient_ids[readable[0]]
    levels = scores[0]
    scores = [levels[score_level] for levels in scores]
    threshold_source = "the evaluated images (optimistic)" if threshold_dataset is None else "a split apart"
    warn_of_missing_classes(findings, labels[-1], evaluated[-1])
    threshold_scores, threshold_labels = scores[-1], labels[-1]
    scores, labels = scores[0], labels[0]
    summary = summarize(
        labels,
        scores,
        patient_ids,
        findings,
        thresholds=ThresholdChoice(protocol.rule, threshold_labels, threshold_scores),
        probabilities=[
            protocol.scoring != "difference" and not are_logits and i not in by_others for i in range(len(findings))
        ],
        resampling=resampling,
    )
    subgroups = summarize_subgroups(
        labels,
        scores,
        patient_ids,
        findings,
        read_attributes(dataset, np.flatnonzero(readable[0])),
        resampling=resampling,
    )
    warn_of_no_interval(summary["no_interval"])
    intervals = "95 % percentile bootstrap over patients"
    if resampling.kind == "chexzero":
        intervals = "95 % bootstrap over images, bounds and centre as CheXzero's"
    how_sure = resampling.describe(patient_ids.tolist(), intervals)
    metrics = {
        "dataset": dataset_name,
        "protocol": {
            **described,
            "thresholds": protocol.rule.describe(threshold_source),
            "intervals": how_sure.pop("intervals"),
            "no_interval": summary["no_interval"],
            **how_sure,
            "min_positives": min_positives,
            "findings_left_out": left_out,
            "resamples_dropped": summary["resamples_dropped"],
            "images_skipped": skipped,
        },
        "n_images": len(labels),
        "models": list(models),
        "weights": weights,
        "findings": summary["findings"],
        "mean": summary["mean"],
        "versions": installed_versions(),
    }
    if len(levels) > 1:
        metrics["score_levels"] = compare_levels(labels, levels, patient_ids, resampling)
    if subgroups:
        metrics["subgroups"] = subgroups
    predictions = pd.DataFrame(
        {"image_id": image_ids, "patient_id": patient_ids.astype(str)}, index=np.flatnonzero(readable[0])
    )
    for i, finding in enumerate(findings):
        predictions[f"score_{finding}"] = scores[:, i]
    for i, finding in enumerate(findings):
        predictions[f"label_{finding}"] = labels[:, i]
    return metrics, predictions


def score_models(
    models: Mapping[str, Member | Callable[[], Member]],
    evaluated: Sequence[datasets.Dataset],
    asked: Sequence[str] | None,
    min_positives: int,
    protocol: Protocol,
    replaced_prompts: Mapping[str, Prompts] | None,
    score_level: str,
    batch_size: int,
    cache_dir: str | Path | None,
) -> tuple[list[dict[str, np.ndarray]], list[str], dict[str, str], bool, dict[str, str]]:
    """Scores averaged over the models, of which one at a time is in memory; see `evaluate_zero_shot`.

    Returns:
        For each data set level to (images, findings) float64, with rows of NaN for images that do not decode; the
        findings; those left out with the reason; whether the scores are logits of classifiers; and the SHA-256 of
        each model's weights.
    """
    findings: list[str] = []
    totals: list[dict[str, np.ndarray]] = []
    weights: dict[str, str] = {}
    learnt: dict[str, list[str]] = {}  # what each classifier knows
    for i, (name, member) in enumerate(models.items()):
        with fail_together():
            model, processor = member() if callable(member) else member
            weights[name] = hash_weights(model)
            check_members_differ(weights)
            earlier = findings
            if is_classifier(model):
                learnt[name] = list(model.config.label2id)
            if learnt and len(learnt) <= i:
                other = next(iter(models)) if is_classifier(model) else name
                raise ValueError(
                    f"{other} is no classifier, and has no score in common with one: evaluate it by itself."
                )
            if learnt:
                findings, left_out = select_learnt_findings(learnt, evaluated[0], asked, min_positives)
                prompts = None
            elif i == 0:
                findings, left_out = select_findings(evaluated[0], asked, min_positives)
                prompts = find_prompts(protocol.prompts, findings, replaced_prompts)
            missing = [finding for finding in findings if finding not in evaluated[-1].column_names]
            if missing:
                raise ValueError(
                    f"{name_split(evaluated[-1])}, where thresholds are chosen, has no labels of {missing[0]!r}: add "
                    "the column, leave the finding out (--findings), or choose another split (--threshold_split)."
                )
            if score_level != LEVELS[0] and not has_patches(model):
                raise ValueError(
                    f"The score level {score_level!r} needs embeddings of patches, and {name} is a "
                    f"{type(model).__name__}: use 'global'."
                )
            parts = [
                score_part(model, processor, data, findings, prompts, protocol.scoring, batch_size, cache_dir)
                for data in evaluated
            ]
        model = processor = member = None
        scores = [
            {level: gather_rows(values, own_rows(len(values), batch_size)) for level, values in levels.items()}
            for levels in parts
        ]
        columns = [earlier.index(finding) for finding in findings] if i else []
        totals = (
            scores
            if i == 0
            else [
                {level: values[:, columns] + new[level] for level, values in total.items() if level in new}
                for total, new in zip(totals, scores, strict=True)
            ]
        )
    averages = [{level: values / len(models) for level, values in total.items()} for total in totals]
    return averages, findings, left_out, bool(learnt), weights


def compare_levels(
    labels: np.ndarray,
    levels: Mapping[str, np.ndarray],
    patient_ids: np.ndarray,
    resampling: Resampling,
) -> dict[str, dict]:
    """The mean AUROC over the findings by each level, `auroc` and `auroc_ci95`, on the resamples of the other numbers.

    Args:
        labels: (images, findings).
        levels: name to scores (images, findings).
    """
    draws = resampling.draw(patient_ids, labels)
    if resampling.kind != "chexzero" and find_too_few(labels, patient_ids).all():
        draws = draws[:0]
    results = {}
    for level, scores in levels.items():
        point = bootstrap(labels, scores, np.ones((1, len(labels))))["auroc"][0]
        mean, resampled = mean_over_findings(point, bootstrap(labels, scores, draws)["auroc"])
        interval = metric_entry("auroc", mean, resampled, resampling)
        results[level] = {key: interval[key] for key in ("auroc", "auroc_ci95")}
    return results


def score_part(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    prompts: Mapping[str, Prompts] | None,
    scoring: str,
    batch_size: int,
    cache_dir: str | Path | None,
) -> dict[str, np.ndarray]:
    """One model's scores of the images that are this process's part: level to (images, findings) float64.

    Rows of NaN are images that do not decode and those of other processes. Embeddings are not kept: of the patches of
    a batch only the pooled differences remain.
    """
    if not len(dataset):
        raise ValueError("The data set is empty: there is no image to evaluate.")
    levels = LEVELS if has_patches(model) else LEVELS[:1]
    scores = {level: np.full((len(dataset), len(findings)), np.nan) for level in levels}
    own = own_rows(len(dataset), batch_size)
    if not len(own):
        return scores
    part = dataset if len(own) == len(dataset) else dataset.select(own)
    if is_classifier(model):
        columns = [model.config.label2id[finding] for finding in findings]
    else:
        directions = prompt_directions(*embed_prompts(model, processor, prompts), scoring)  # (findings, dim)
        patch_directions = torch.from_numpy(directions).to(model.device, torch.float32)
    for rows, outputs in embed_batches(
        model, processor, part, batch_size, cache_dir=cache_dir, num_images=len(dataset)
    ):
        if is_classifier(model):
            scores[LEVELS[0]][own[rows]] = outputs["logits"][:, columns].cpu().numpy()
            continue
        differences = outputs["image"].cpu().numpy().astype(np.float64) @ directions.T
        pooled = pool_patches(outputs["patches"], patch_directions) if "patches" in outputs else {}
        pooled = {pool: values.cpu().numpy().astype(np.float64) for pool, values in pooled.items()}
        for level, values in level_differences(differences, pooled).items():
            scores[level][own[rows]] = scores_from_differences(values, scoring)
    return scores


def score_by_others(
    scores: Sequence[Mapping[str, np.ndarray]], findings: Sequence[str], columns: Sequence[int]
) -> None:
    """Put `no_finding_scores` into these columns of the scores of every level, in place.

    Args:
        scores: of the evaluated images, and of those that choose the thresholds where they are others: level to
            (images, findings). The last ones are the reference of the standardisation.
    """
    left_out = (*NO_FINDING, *NEVER_ABNORMAL)
    others = [i for i, finding in enumerate(findings) if normalize_finding(finding) not in left_out]
    if not others:
        raise ValueError(
            f"{findings[columns[0]]!r} is scored by the other findings, and none is evaluated: add some, or score it "
            "by its prompts (--no_finding prompts)."
        )
    for level, reference in scores[-1].items():
        reference = reference[:, others].copy()
        for levels in scores:
            levels[level][:, columns] = no_finding_scores(levels[level][:, others], reference)[:, None]


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
