"""Grounding: how well the similarity maps of a model match the regions that radiologists marked.

A *map* is a float array (height, width), higher where the model sees a finding more, NaN where it never saw the image
(outside the image processor's crop). A *region* is a bool array (height, width): the union of all boxes and masks of
one finding, or of one sentence, on one image. Both are in the pixels of the image as it is stored, so no number
depends on the size at which a model reads it.

The metrics of one map are in `map_metrics.py`, the means over regions in `averages.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.averages import average_regions
from evaluation_tier.analyses.grounding.map_metrics import FIXED_THRESHOLDS, METRICS
from evaluation_tier.analyses.grounding.maps import PatchMaps, check_gives_maps
from evaluation_tier.analyses.grounding.measurements import BEST, best_thresholds, measure_regions
from evaluation_tier.analyses.grounding.regions import read_cases
from evaluation_tier.models.families import map_processor_of
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.single_pass import evaluate_models
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling
from processing_tier.prompts.loader import Prompts
from processing_tier.records.schema import check_disjoint_patients


def evaluate_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    batch_size: int = 32,
    **options: Any,
) -> dict:
    """
    How well a model's maps match the marked regions, compared with baselines, with intervals.

    Metrics, for each region (one finding, or one sentence, on one image), then averaged: see in `map_metrics`
    `pointing_game`, `pixel_auroc`, `contrast_to_noise` (`cnr` as published, and `signed_cnr`), `overlap` and
    `top_percent_overlap`.
    `miou_cosine` is the mean IoU at the thresholds 0.1 to 0.5 of the map as it is (BioViL: Boecking et al., ECCV
    2022); `miou_scaled` and `dice_scaled` are means at the same of the map scaled to 0..1, and `miou_centred` of the
    map scaled to -1..1 (AFLoc's protocol, by which KAF-Ground reports its mIoU); `iou_best` and `dice_best` are taken
    at the best of 0.05, 0.10 to 0.95 of the scaled map, one per finding and per map or baseline, as CheXlocalize does
    (Saporta et al. 2022). It is chosen on `threshold_dataset`; without one on the evaluated regions themselves, and
    they are then called `iou_best_optimistic` and `dice_best_optimistic`.

    Maps: see [`PatchMaps`]; a classifier has its class activation maps only. Baselines: `average` (and
    `average_positive`, which goes with the map `positive`), the same map for every image; `prior`, the mean region of
    the finding in the other patients; `centre`, a Gaussian; `random`, a random point, for the pointing game.

    With several processes, see `evaluate_models`.

    Args:
        dataset: with `image`, `image_id`, `patient_id` and `boxes` or `masks`, in the schema of
            `processing_tier.records`.
        prompts: name or path of a prompt file, or the prompts themselves.
        batch_size: images embedded at once.
        options: the other fields of [`Grounding`].

    Returns:
        Of JSON's own types, undefined numbers None:

        - `findings` (by name), the `mean` over those of at least 5 patients, and `all_regions` each have `n_images`,
          `n_regions`, `n_patients`, `area` (mean share of the image), `maps` and `baselines` (name to metric to `mean`
          and `ci95`), and `differences` (map to baseline to the same of map minus baseline). A finding also has the
          best `thresholds` of each map and baseline, and `curves`: mean IoU and Dice at every threshold.
        - `regions`: one entry per region with its `row` in `dataset`, its place `case` among `read_cases`, and the
          metrics of the maps.
        - `undefined`: how many regions lack a metric; `protocol`, `dataset`, `n_images`, `n_regions`, `versions`.

    Raises:
        ValueError: for a model without maps, data without boxes and masks, boxes beyond their images (more than 5 %),
            masks of another size than their image, missing prompts, findings that a classifier never learnt, or
            patients who are in both data sets.
    """
    check_gives_maps(model)
    grounding = Grounding(dataset, prompts, **options)
    evaluate_models({"": (model, processor)}, grounding.evaluated, [grounding], batch_size)
    return grounding.results()


@dataclass
class Grounding:
    """
    The maps of one model on the marked regions, as an [`Analysis`].

    Args:
        dataset: with `image`, `image_id`, `patient_id` and `boxes` or `masks`.
        prompts: name or path of a prompt file, or the prompts themselves.
        findings: names as in boxes and masks; by default all of them, or all that a classifier knows.
        phrases: take the sentences that boxes carry in place of the positive prompts (MS-CXR).
        threshold_dataset: where the best thresholds are chosen; of other patients.
        tolerance: see `pointing_game`, in pixels of the stored image.
        resampling: of patients, for the 95 % intervals. Differences are resampled as such, so their intervals are
            paired. Fewer than 5 patients give none.
        dataset_name: name of the data in the results.
    """

    dataset: datasets.Dataset
    prompts: str | Path | Mapping[str, Prompts] = "report"
    findings: Sequence[str] | None = None
    phrases: bool = False
    threshold_dataset: datasets.Dataset | None = None
    tolerance: int = 0
    resampling: Resampling = PATIENT_BOOTSTRAP
    dataset_name: str = ""

    def __post_init__(self) -> None:
        self.cases = [read_cases(self.dataset, self.findings, self.phrases)]  # by data set
        self.names = sorted({case.finding for case in self.cases[0]})
        if self.threshold_dataset is not None:
            check_disjoint_patients(evaluated=self.dataset, thresholds=self.threshold_dataset)
            others = read_cases(self.threshold_dataset, None, self.phrases)
            self.cases.append([case for case in others if case.finding in self.names])
            if not self.cases[1]:
                raise ValueError("The data that choose the thresholds have no box or mask of the evaluated findings.")

    @property
    def evaluated(self) -> list[datasets.Dataset]:
        """The data sets whose images are mapped; the last one chooses the thresholds."""
        return [self.dataset, *([] if self.threshold_dataset is None else [self.threshold_dataset])]

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list[PatchMaps]:
        check_gives_maps(model)
        self.image_processor = map_processor_of(model, processor)
        self.has_head = is_classifier(model)
        if self.has_head:
            self.keep_learnt(model.config.label2id)
        sentences = {} if self.has_head else find_prompts(self.prompts, self.names)
        self.maps = [
            PatchMaps(model, processor, len(dataset), cases, sentences)
            for dataset, cases in zip(self.evaluated, self.cases, strict=True)
        ]
        return self.maps

    def keep_learnt(self, labels: Collection[str]) -> None:
        """Leave out the findings that a classifier with these labels never learnt; ValueError if they were asked."""
        if self.phrases:
            raise ValueError("A classifier does not read the sentences of boxes: leave out the phrases (--phrases).")
        unknown = [finding for finding in self.names if finding not in labels]
        if unknown and (self.findings is not None or len(unknown) == len(self.names)):
            raise ValueError(
                f"The classifier was not trained on {unknown[0]!r}: it knows {', '.join(map(repr, labels))}."
            )
        self.names = [finding for finding in self.names if finding in labels]
        self.cases = [[case for case in cases if case.finding in labels] for cases in self.cases]

    def results(self) -> dict:
        """After the pass: see `evaluate_grounding`."""
        measured = [
            measure_regions(maps, dataset, self.image_processor, self.tolerance)
            for maps, dataset in zip(self.maps, self.evaluated, strict=True)
        ]
        optimistic = self.threshold_dataset is None
        metric_names = (*METRICS, *(f"{name}_optimistic" if optimistic else name for name in BEST))
        chosen = best_thresholds(measured[-1])
        averages = average_regions(measured[0], self.names, self.cases[0], chosen, metric_names, self.resampling)
        prompts = "none (trained heads)" if self.has_head else prompts_name(self.prompts)
        protocol = {
            "prompts": "the sentences of the boxes" if self.phrases else prompts,
            "best_thresholds": f"highest mean on {'the evaluated regions' if optimistic else 'a split apart'}",
            "phrases": self.phrases,
            "tolerance": self.tolerance,
            "fixed_thresholds": FIXED_THRESHOLDS,
            **self.resampling.describe(measured[0].patients, "95 % percentile bootstrap over patients"),
            **measured[0].left_out,
        }
        return to_json(
            {"dataset": self.dataset_name, "protocol": protocol, **averages, "versions": installed_versions()}
        )
