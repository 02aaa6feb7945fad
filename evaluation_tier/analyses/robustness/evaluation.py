"""Robustness: how much zero-shot results depend on wording, and what images and words they should depend on.

Five probes: six wordings of one question; a finding against its negation; left against right; images that show
nothing; images of lower resolution and stronger compression. Intervals are 95 % percentile bootstraps over patients.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.robustness.sides import SIDE_PROMPTS, compare_sides
from evaluation_tier.analyses.robustness.variants import (
    ORIGINAL,
    compare_degradations,
    embed_variants,
    score_empty_images,
)
from evaluation_tier.analyses.robustness.wording import WORDINGS, compare_negations, compare_wordings, phrase
from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.scoring.findings import read_labels, select_findings
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from evaluation_tier.scoring.scores import zero_shot_scores
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts, normalize_finding


def evaluate_robustness(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    min_positives: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dataset_name: str = "",
) -> dict:
    """
    How one model's zero-shot results change with the wording, and whether they depend on what they should.

    Each image is decoded once and embedded nine times: as it is, mirrored, and in the seven [`DEGRADATIONS`].

    Args:
        model: of images and texts, as `load_model` gives it; a classifier has no sentences to vary.
        processor: the model's.
        dataset: in the schema of `records.py`. `findings`, `impression` and `report` tell the sides.
        findings: see `select_findings`. "No Finding" is asked in no wording but that of `prompts`.
        prompts: the sentences that score empty and degraded images: name or path of a prompt file, or the prompts.
        n_bootstrap: resamples of patients, the same for all that is compared.
        seed: of the resamples and of the noise image.

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

    Raises:
        ValueError: for a classifier, fewer than one resample, or as `select_findings` and `read_batches` say.
    """
    check_has_sentences(model)
    resampling = Resampling(n_bootstrap, seed)
    findings, left_out = select_findings(dataset, findings, min_positives)
    described, prompts = prompts_name(prompts), find_prompts(prompts, findings)

    embeddings = embed_variants(model, processor, dataset, batch_size, seed)
    readable = dataset.select(embeddings.rows)
    labels = read_labels(readable, findings)
    patient_ids = np.array(readable["patient_id"][:])
    draws = resampling.draw(patient_ids)

    by_prompts = embed_prompts(model, processor, prompts)
    scores = {name: zero_shot_scores(images, *by_prompts) for name, images in embeddings.images.items()}
    empty = {name: zero_shot_scores(image[None], *by_prompts)[0] for name, image in embeddings.empty.items()}

    worded = [i for i, finding in enumerate(findings) if normalize_finding(finding) != "no finding"]
    worded_scores = {}
    for wording, (positive, negative) in WORDINGS.items():
        sentences = {
            findings[i]: Prompts([phrase(positive, findings[i])], [phrase(negative, findings[i])]) for i in worded
        }
        if sentences:
            by_wording = embed_prompts(model, processor, sentences)
            worded_scores[wording] = zero_shot_scores(embeddings.images[ORIGINAL], *by_wording)
    worded_findings, worded_labels = [findings[i] for i in worded], labels[:, worded]
    return to_json(
        {
            "dataset": dataset_name,
            "protocol": {
                "prompts": described,
                "wordings": WORDINGS,
                "side_prompts": SIDE_PROMPTS,
                **resampling.describe(patient_ids.tolist(), "95 % percentile bootstrap over patients"),
                "min_positives": min_positives,
                "findings_left_out": left_out,
            },
            "n_images": len(labels),
            "wordings": compare_wordings(worded_findings, worded_labels, worded_scores, draws),
            "negation": compare_negations(worded_findings, worded_labels, worded_scores, draws),
            "laterality": compare_sides(model, processor, readable, findings, labels, embeddings.images, draws),
            "empty_images": score_empty_images(findings, labels, scores[ORIGINAL], empty),
            "degradations": compare_degradations(findings, labels, scores, draws),
            "versions": installed_versions(),
        }
    )


def check_has_sentences(model: PreTrainedModel) -> None:
    """ValueError for a classifier, and for a model whose input is no square that could be varied."""
    if is_classifier(model):
        raise ValueError(f"A {type(model).__name__} has no sentences to vary: name a model of images and texts.")
    if getattr(model.config, "model_type", None) == "siglip2":
        raise ValueError(f"A {type(model).__name__} takes images of any shape: name a model of square images.")
