"""Robustness: whether zero-shot results depend on the wording, and on images and words as they should.

Five probes: six wordings of one question; a finding against its negation; left against right; images that show
nothing; images of lower resolution and stronger compression. With CXR-Align a sixth: reports against their negated and
their shortened form. Intervals are 95 % percentile bootstraps over patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.robustness.alignment import TEXTS, Variants, compare_reports, match_images
from evaluation_tier.analyses.robustness.sides import SIDE_PROMPTS, compare_sides
from evaluation_tier.analyses.robustness.variants import (
    MIRRORED,
    ORIGINAL,
    VariantEmbeddings,
    compare_degradations,
    score_empty_images,
)
from evaluation_tier.analyses.robustness.wording import WORDINGS, as_prompts, compare_negations, compare_wordings
from evaluation_tier.models.embedding import embed_prompts, embed_sentences
from evaluation_tier.models.families import check_is_of_transformers
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.single_pass import evaluate_models
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.scoring.findings import read_labels, select_findings
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from evaluation_tier.scoring.scores import zero_shot_scores
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling
from processing_tier.prompts.loader import Prompts, normalize_finding
from processing_tier.reports.sides import SIDED


def evaluate_robustness(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    batch_size: int = 32,
    **options: Any,
) -> dict:
    """
    How one model's zero-shot results change with the wording, and whether they react to negation, sides and images.

    Each image is decoded once and embedded nine times: as it is, mirrored, and in the seven [`DEGRADATIONS`]. With
    several processes, see `evaluate_models`.

    Args:
        model: of images and texts, as `load_model` gives it; a classifier has no sentences to vary.
        processor: the model's.
        dataset: in the schema of `processing_tier.records`. `findings`, `impression` and `report` tell the sides.
        findings: see [`Robustness`]; so are `prompts`.
        batch_size: images embedded at once.
        options: the other fields of [`Robustness`].

    Returns:
        `dict`: of JSON's own types, `None` where a number is undefined.

        - `wordings`: AUROC by wording, with its `mean`, `min`, `max` and `sd` (n - 1) over the wordings, per finding
          and for the mean over findings, there with `auroc_ci95` by wording.
        - `negation`: by finding (and their mean) and wording, the share of the images with the finding that lie
          nearer to the sentence with it (`on_positives`), of those without that lie nearer to the sentence without
          (`on_negatives`), and the mean of both (`balanced`, chance 0.5). Ties count half.
        - `laterality`: on images with the finding whose report states one side (see [`stated_side`]), the share that
          lies nearer to that side's sentence, averaged over both sides (`accuracy`, chance 0.5, whatever side is the
          more frequent); the same of mirrored images, whose side is the other (`mirrored_accuracy`); the share of
          images whose preference mirroring turns round (`swapped`: 1 for a model that sees sides, 0 for one that
          always says the same).
        - `empty_images`: scores of black, grey (the mean level), white and noise images and of the mean image as a
          quantile of the real images' scores, and whether they reach the threshold of the highest MCC; those that do
          are `defects`. `threshold_quantile` is the share of real images below that threshold.
        - `degradations`: AUROC of degraded images, and by how much it is below that of the originals (`drop`),
          with an interval over paired resamples.
        - `report_alignment`, with `reports` only: of the images that have some, the share that lies nearer to its
          report than to the negated one (`over_negated`), to the shortened one (`over_shortened`), and to both
          (`over_both`); of `all`, and by the finding that the reports were changed in. Ties count half; `n_ties`
          images have one.
    """
    check_has_sentences(model)
    robustness = Robustness(dataset, findings, prompts, **options)
    evaluate_models({"": (model, processor)}, [dataset], [robustness], batch_size)
    return robustness.results()


@dataclass
class Robustness:
    """
    Five or six probes of one model, as an [`Analysis`].

    Args:
        dataset: in the schema of `processing_tier.records`.
        findings: see `select_findings`. "No Finding" keeps the wording of `prompts`.
        prompts: the sentences that score empty and degraded images: name or path of a prompt file, or the prompts.
        min_positives: that a finding needs.
        resampling: of patients, the same for all that is compared; its seed is the noise image's too.
        dataset_name: name of the data in the results.
        reports: see `read_cxr_align`.

    Raises:
        ValueError: for a classifier, for reports of other images, or as `select_findings` and `find_prompts` say.
    """

    dataset: datasets.Dataset
    findings: Sequence[str] | None = None
    prompts: str | Path | Mapping[str, Prompts] = "report"
    min_positives: int = 10
    resampling: Resampling = PATIENT_BOOTSTRAP
    dataset_name: str = ""
    reports: Mapping[str, Variants] | None = None

    def __post_init__(self) -> None:
        self.chosen, self.left_out = select_findings(self.dataset, self.findings, self.min_positives)
        self.sentences = find_prompts(self.prompts, self.chosen)
        self.worded = [name for name in self.chosen if normalize_finding(name) != "no finding"]
        self.sided = [name for name in self.chosen if normalize_finding(name) in SIDED]
        self.aligned: list[Variants] = []
        if self.reports is not None:
            image_ids = self.dataset.with_format(None)["image_id"][:]
            self.aligned_rows = match_images(self.reports, image_ids)
            self.aligned = [self.reports[image_ids[row]] for row in self.aligned_rows]

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list[VariantEmbeddings]:
        check_has_sentences(model)
        self.embeddings = VariantEmbeddings(model, processor, len(self.dataset), self.resampling.seed)
        embed = partial(embed_prompts, model, processor)
        self.by_prompts = embed(self.sentences)
        self.by_wording = {
            wording: embed({name: as_prompts(wordings, name) for name in self.worded})
            for wording, wordings in WORDINGS.items()
            if self.worded
        }
        self.by_side = embed({name: as_prompts(SIDE_PROMPTS, name) for name in self.sided}) if self.sided else ()
        if self.aligned:
            texts = [getattr(variants, name) for variants in self.aligned for name in TEXTS]
            self.by_report = embed_sentences(model, processor, texts).reshape(len(self.aligned), len(TEXTS), -1)
        return [self.embeddings]

    def results(self) -> dict:
        """After the pass: see [`evaluate_robustness`]."""
        readable = ~np.isnan(self.embeddings.images[ORIGINAL]).any(axis=1)
        images = {name: embeds[readable] for name, embeds in self.embeddings.images.items()}
        records = self.dataset.select(np.flatnonzero(readable))
        labels = read_labels(records, self.chosen)
        patient_ids = np.array(records["patient_id"][:])
        draws = self.resampling.draw(patient_ids)
        scores = {name: zero_shot_scores(embeds, *self.by_prompts) for name, embeds in images.items()}
        empty = {
            name: zero_shot_scores(embed[None], *self.by_prompts)[0] for name, embed in self.embeddings.empty.items()
        }
        worded_scores = {
            wording: zero_shot_scores(images[ORIGINAL], *sentences) for wording, sentences in self.by_wording.items()
        }
        worded = self.worded, labels[:, [self.chosen.index(name) for name in self.worded]], worded_scores, draws
        sided_labels = labels[:, [self.chosen.index(name) for name in self.sided]]
        side_scores = {
            name: zero_shot_scores(images[name], *self.by_side) for name in (ORIGINAL, MIRRORED) if self.by_side
        }
        return to_json(
            {
                "dataset": self.dataset_name,
                "protocol": {
                    "prompts": prompts_name(self.prompts),
                    "wordings": WORDINGS,
                    "side_prompts": SIDE_PROMPTS,
                    **self.resampling.describe(patient_ids.tolist(), "95 % percentile bootstrap over patients"),
                    "min_positives": self.min_positives,
                    "findings_left_out": self.left_out,
                },
                "n_images": len(labels),
                "wordings": compare_wordings(*worded),
                "negation": compare_negations(*worded),
                "laterality": compare_sides(records, self.sided, sided_labels, side_scores, draws),
                "empty_images": score_empty_images(self.chosen, labels, scores[ORIGINAL], empty),
                "degradations": compare_degradations(self.chosen, labels, scores, draws),
                **({"report_alignment": self.compare_reports(patient_ids, draws, readable)} if self.aligned else {}),
                "versions": installed_versions(),
            }
        )

    def compare_reports(self, patient_ids: np.ndarray, draws: np.ndarray, readable: np.ndarray) -> dict:
        """The `report_alignment`, from patients and resamples of the images that are `readable`, (images,) bool."""
        kept = readable[self.aligned_rows]
        rows = self.aligned_rows[kept]
        columns = (np.cumsum(readable) - 1)[rows]  # among the readable ones
        findings = np.array([variants.finding for variants in self.aligned])[kept]
        embeds = self.embeddings.images[ORIGINAL][rows], self.by_report[kept]
        return compare_reports(*embeds, findings, patient_ids[columns], draws[:, columns], self.min_positives)


def check_has_sentences(model: PreTrainedModel) -> None:
    """ValueError for a classifier, and for a model whose input is not a square image."""
    if is_classifier(model):
        raise ValueError(f"A {type(model).__name__} does not read sentences: name a model of images and texts.")
    check_is_of_transformers(model, "Robustness", "to change the pixels after preprocessing")
    if getattr(model.config, "model_type", None) == "siglip2":
        raise ValueError(f"A {type(model).__name__} takes images of any shape: name a model that takes square images.")
