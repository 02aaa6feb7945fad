"""Zero-shot evaluation: how well sentences alone tell radiographs with a finding from those without.

For each finding there are positive sentences ("There is a left pleural effusion.") and negative ones. Every image and
every sentence is embedded once. An image scores by how much nearer it lies to the positive sentences. The scores of
one model are in `image_scores.py`.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.models.cache import hash_model
from evaluation_tier.models.contract import COSINE
from evaluation_tier.models.embedding import Outputs, embed_batches
from evaluation_tier.models.families import check_level, own_level, similarity_of
from evaluation_tier.models.images import MAX_UNREADABLE
from evaluation_tier.models.loading import check_comparable, check_members_differ, is_classifier
from evaluation_tier.models.model_size import model_size
from evaluation_tier.models.single_pass import Models, evaluate_models
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.scoring.findings import (
    is_scored_by_others,
    name_split,
    read_attributes,
    read_labels,
    select_findings,
    select_learnt_findings,
    warn_of_missing_classes,
    warn_of_no_interval,
)
from evaluation_tier.scoring.image_scores import ImageScores, Levels, add_levels, score_by_others
from evaluation_tier.scoring.protocols import AUTO, Protocol, choose_protocol, find_prompts, prompts_name
from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings
from evaluation_tier.statistics.groups import group_by_frequency, summarize_groups
from evaluation_tier.statistics.metrics import auroc, nanmean
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.subgroups import summarize_subgroups
from evaluation_tier.statistics.summary import metric_entry, summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice
from modeling_tier.score_levels_tier import LEVELS, default_level
from processing_tier.prompts.loader import Prompts

logger = logging.getLogger(__name__)


def evaluate_zero_shot(
    models: Models,
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    protocol: str | Protocol = "report",
    batch_size: int = 32,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> tuple[dict, pd.DataFrame]:
    """
    Evaluate one model, or the averaged scores of several.

    With several processes, see `evaluate_models`.

    Args:
        models: name to (model, processor), as `load_model` gives them, or to a function that returns these, so that
            no two members of an ensemble are in memory at once. Models of images and texts, or classifiers, whose
            scores are their logits.
        dataset: in the schema of `processing_tier.records`.
        findings: see `select_findings`; of classifiers, those that all of them know.
        protocol: a name of `evaluation_tier.scoring.protocols.PROTOCOLS`, or what `choose_protocol` gives.
        batch_size: images embedded at once.
        cache_dir: where embeddings are kept between evaluations, see `evaluation_tier.models.cache`.
        options: the other fields of [`ZeroShot`].

    Returns:
        See [`ZeroShot.results`].
    """
    protocol = protocol if isinstance(protocol, Protocol) else choose_protocol(protocol)
    zero_shot = ZeroShot(dataset, findings, protocol, **options)
    evaluate_models(models, zero_shot.evaluated, [zero_shot], batch_size, cache_dir)
    return zero_shot.results()


@dataclass
class ZeroShot:
    """
    Scores of findings and their metrics, as an [`Analysis`] of one model or of an ensemble.

    Args:
        dataset: the images, their patients and one label column per finding.
        asked: the findings to evaluate, see `select_findings`; of classifiers, those that all of them know.
        protocol: how findings are scored; all score levels but `"global"` need models that embed patches.
        min_positives: that a finding needs.
        resampling: for the 95 % intervals; its kind is the protocol's.
        threshold_dataset: where the thresholds are chosen (by the protocol's rule) and `scale` and `bias` are fitted.
            By default these are the evaluated images themselves, which makes MCC and F1 optimistic; the results say
            so.
            sigmoid(scale * difference + bias), of the difference of the cosines whatever the scoring, is a
            probability on images like these (see `fit_calibration`).
        replaced_prompts: finding to prompts that replace the protocol's (see `test_sets/loader.py`).
        dataset_name: what the results call the data.
        groups: of findings by their frequency among the evaluated images, with means of their own, see
            `group_by_frequency`.

    Raises:
        ValueError: for an unknown finding or prompt, members with the same weights or of different kinds, and
            for too many images that do not decode.
    """

    dataset: datasets.Dataset
    asked: Sequence[str] | None
    protocol: Protocol
    min_positives: int = 10
    resampling: Resampling = PATIENT_BOOTSTRAP
    threshold_dataset: datasets.Dataset | None = None
    replaced_prompts: Mapping[str, Prompts] | None = None
    dataset_name: str = ""
    groups: Mapping[str, float] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict, init=False)  # name of each model to the hash of its weights
    sizes: dict[str, dict] = field(default_factory=dict, init=False)  # name of each model to its `model_size`
    own_levels: set[str] = field(default_factory=set, init=False)  # the default levels of the models
    similarities: dict[str, str] = field(default_factory=dict, init=False)  # name of each model to that of its unit

    def __post_init__(self) -> None:
        self.resampling = replace(self.resampling, kind=self.protocol.resampling)
        self.findings: list[str] = []
        self.left_out: dict[str, str] = {}  # with the reason
        self.learnt: dict[str, list[str]] = {}  # the findings of each classifier
        self.prompts: Mapping[str, Prompts] | None = None
        self.totals: list[Levels] = []  # of all members but the last, by data set
        self.total_findings: list[str] = []  # their columns
        self.last: list[ImageScores] = []  # of the last member

    @property
    def evaluated(self) -> list[datasets.Dataset]:
        """The data sets whose images are scored; the last one chooses the thresholds."""
        return [self.dataset, *([] if self.threshold_dataset is None else [self.threshold_dataset])]

    @property
    def score_level(self) -> str:
        """The level that is evaluated, the same for all members: their default if they share one, else the whole
        image, unless the protocol names a level."""
        if self.protocol.score_level != AUTO:
            return self.protocol.score_level
        return next(iter(self.own_levels)) if len(self.own_levels) == 1 else LEVELS[0]

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list[ImageScores]:
        self.add_last_member()
        self.weights[name] = hash_model(model)
        self.sizes[name] = model_size(model)
        check_members_differ(self.weights)
        self.similarities[name] = similarity_of(model)
        check_comparable(self.similarities)
        self.choose_findings(name, model)
        self.own_levels.add(own_level(model))
        if self.protocol.score_level != AUTO:
            level = self.protocol.score_level
            check_level(f"The score level {level!r} of {name}", model, level)
        self.last = [
            ImageScores(model, processor, data, self.findings, self.prompts, self.protocol.scoring)
            for data in self.evaluated
        ]
        return self.last

    def choose_findings(self, name: str, model: PreTrainedModel) -> None:
        """The findings and the prompts, known from the first model; each classifier may know fewer findings."""
        if is_classifier(model):
            self.learnt[name] = list(model.config.label2id)
        if self.learnt and len(self.learnt) < len(self.weights):
            other = next(iter(self.weights)) if is_classifier(model) else name
            raise ValueError(
                f"{other} is not a classifier. Classifiers and zero-shot models cannot be mixed: evaluate it alone."
            )
        if self.learnt:
            chosen = select_learnt_findings(self.learnt, self.dataset, self.asked, self.min_positives)
            self.findings, self.left_out = chosen
        elif not self.findings:
            self.findings, self.left_out = select_findings(self.dataset, self.asked, self.min_positives)
            self.prompts = find_prompts(self.protocol.prompts, self.findings, self.replaced_prompts)
        chooses = self.evaluated[-1]
        missing = [finding for finding in self.findings if finding not in chooses.column_names]
        if missing:
            raise ValueError(
                f"{name_split(chooses)}, where thresholds are chosen, has no labels of {missing[0]!r}: add the "
                "column, leave the finding out (--findings), or choose another split (--threshold_split)."
            )

    def add_last_member(self) -> None:
        """Add the scores of the last member to those before it, so that an ensemble needs no more memory than two."""
        if not self.last:
            return
        new = [scores.levels for scores in self.last]
        columns = [self.total_findings.index(finding) for finding in self.findings] if self.totals else []
        self.totals = (
            [add_levels(total, levels, columns) for total, levels in zip(self.totals, new, strict=True)]
            if self.totals
            else new
        )
        self.total_findings, self.last = list(self.findings), []

    def results(self) -> tuple[dict, pd.DataFrame]:
        """
        After the pass of the last model.

        Returns:
            The metrics (the layout of `metrics.json`, see `output/metrics_file.py`; undefined numbers are NaN), and
            the predictions: one row per evaluated image with `image_id`, `patient_id`, `score_<finding>` and
            `label_<finding>`, indexed by the image's row in `dataset`. Where all models embed patches,
            `metrics["score_levels"]` compares the levels by their mean AUROC, see `compare_levels`.
        """
        self.add_last_member()
        scores = [{level: values / len(self.weights) for level, values in total.items()} for total in self.totals]
        readable = [~np.isnan(levels[LEVELS[0]]).any(axis=1) for levels in scores]
        for mask in readable:  # the total over all processes counts
            if (~mask).sum() > MAX_UNREADABLE * len(mask):
                raise ValueError(
                    f"{(~mask).sum()} of {len(mask)} images do not decode, more than 1 %: repair or remove them."
                )
        scores = [
            {level: values[mask] for level, values in levels.items()}
            for levels, mask in zip(scores, readable, strict=True)
        ]
        labels = [read_labels(data, self.findings)[mask] for data, mask in zip(self.evaluated, readable, strict=True)]
        described = self.describe()
        by_others = [i for i, finding in enumerate(self.findings) if is_scored_by_others(finding, described)]
        if by_others:
            score_by_others(scores, self.findings, by_others)
        metrics = self.measure(described, scores, labels, readable[0])
        rows = np.flatnonzero(readable[0])
        ids = self.dataset.select_columns(["image_id", "patient_id"]).with_format(None)
        columns = {
            "image_id": np.array(ids["image_id"][:])[rows],
            "patient_id": np.array(ids["patient_id"][:])[rows].astype(str),
            **{f"score_{finding}": scores[0][self.score_level][:, i] for i, finding in enumerate(self.findings)},
            **{f"label_{finding}": labels[0][:, i] for i, finding in enumerate(self.findings)},
        }
        return metrics, pd.DataFrame(columns, index=rows)

    def describe(self) -> dict:
        """The description of the scores in the results."""
        if self.learnt:
            if self.protocol.name != "report":
                logger.warning(
                    "The protocol %r has no effect on classifiers, which score by their logits.", self.protocol.name
                )
            return {"name": "classifier", "prompts": "none (trained heads)", "scoring": "logit"}
        replaced = self.replaced_prompts or {}
        return {
            "name": self.protocol.name,
            "source": self.protocol.source,
            "prompts": prompts_name(self.protocol.prompts),
            "scoring": self.protocol.scoring,
            "no_finding": self.protocol.no_finding,
            "score_level": self.score_level,
            **({"similarities": self.similarities} if set(self.similarities.values()) != {COSINE} else {}),
            **({"prompts_replaced": [name for name in self.findings if name in replaced]} if replaced else {}),
        }

    def measure(
        self, described: dict, scores: Sequence[Levels], labels: Sequence[np.ndarray], readable: np.ndarray
    ) -> dict:
        """The metrics, from scores and labels of the images of each data set that decode."""
        warn_of_missing_classes(self.findings, labels[-1], self.evaluated[-1])
        image_ids, patient_ids = np.array(self.dataset["image_id"][:]), np.array(self.dataset["patient_id"][:])
        patient_ids = patient_ids[readable]
        evaluated = labels[0], scores[0][self.score_level], patient_ids, self.findings
        summary = summarize(
            *evaluated,
            thresholds=ThresholdChoice(self.protocol.rule, labels[-1], scores[-1][self.score_level]),
            probabilities=[
                described["scoring"] not in ("difference", "logit") and not is_scored_by_others(finding, described)
                for finding in self.findings
            ],
            resampling=self.resampling,
        )
        attributes = read_attributes(self.dataset, np.flatnonzero(readable))
        subgroups = summarize_subgroups(*evaluated, attributes, resampling=self.resampling)
        members = group_by_frequency(labels[0], self.findings, self.groups)
        groups = summarize_groups(*evaluated, members, resampling=self.resampling)
        warn_of_no_interval(summary["no_interval"])
        intervals = "95 % percentile bootstrap over patients"
        if self.resampling.kind == "chexzero":
            intervals = "95 % bootstrap over images, bounds and centre as CheXzero's"
        how_sure = self.resampling.describe(patient_ids.tolist(), intervals)
        alike = "the evaluated images (optimistic)" if self.threshold_dataset is None else "a split apart"
        metrics = {
            "dataset": self.dataset_name,
            "protocol": {
                **described,
                "thresholds": self.protocol.rule.describe(alike),
                "intervals": how_sure.pop("intervals"),
                "no_interval": summary["no_interval"],
                **how_sure,
                "min_positives": self.min_positives,
                **({"groups": self.groups} if self.groups else {}),
                "findings_left_out": self.left_out,
                "resamples_dropped": summary["resamples_dropped"],
                "images_skipped": image_ids[~readable].tolist(),
            },
            "n_images": len(labels[0]),
            "models": list(self.weights),
            "weights": self.weights,
            "sizes": self.sizes,
            "findings": summary["findings"],
            "mean": summary["mean"],
            **({"groups": groups} if groups else {}),
            "versions": installed_versions(),
        }
        if len(scores[0]) > 1:
            metrics["score_levels"] = compare_levels(labels[0], scores[0], patient_ids, self.resampling)
        return metrics | ({"subgroups": subgroups} if subgroups else {})


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


# More than 7 parameters: what a training has at hand, and the parts of a protocol
def zero_shot_auroc(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    prompts: Mapping[str, Prompts],
    scoring: str = "difference",
    score_level: str = AUTO,
    batch_size: int = 32,
    embedded: Iterable[tuple[np.ndarray, Outputs]] | None = None,
) -> dict[str, float]:
    """AUROC of each finding and their `"mean"`, without intervals: cheap enough to call during training.

    By default it is the AUROC of the default protocol, so that the checkpoint that a training chooses by it is the one
    that an evaluation finds the best.

    Args:
        score_level: of `LEVELS`, or `"auto"`: the model's own, see `default_level`.
        embedded: what `embed_batches` would yield, where it is at hand.

    Returns:
        NaN for a finding that lacks a class; the mean leaves it out. The model returns to the mode it was in.
    """
    asked = {finding: prompts[finding] for finding in findings}
    scores = ImageScores(model, processor, dataset, findings, asked, scoring)
    if embedded is None:
        embedded = embed_batches(model, processor, dataset, batch_size)
    for rows, outputs in embedded:
        scores.add(rows, outputs)
    of_level = scores.levels[default_level(model) if score_level == AUTO else score_level]
    readable = ~np.isnan(of_level).any(axis=1)
    labels = read_labels(dataset, findings)[readable]
    aurocs = {finding: auroc(labels[:, i], of_level[readable, i]) for i, finding in enumerate(findings)}
    return {**aurocs, "mean": nanmean(aurocs.values())}
