"""Sides: whether a model tells a left from a right finding, by sentences of the report and their mirror images."""

from collections.abc import Mapping

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.averages import bootstrap_means
from evaluation_tier.analyses.grounding.maps import check_gives_maps_of_sentences
from evaluation_tier.analyses.word_grounding import find_questions, sentence_maps
from evaluation_tier.models.embedding import inference
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling
from modeling_tier import CxrZeroShotClassificationPipeline
from modeling_tier.texts_tier import embed_texts
from processing_tier.phantom.wording import FINDING_WORDS
from processing_tier.progress import progress
from processing_tier.reports.sides import mirror, named_side

MEASURES = ("preferred", "half", "mirrored_half")


def evaluate_sides(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    finding_words: Mapping[str, set[str]] = FINDING_WORDS,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    For each marked finding whose sentence names one side: does the model prefer the sentence to the one with the other
    side, and do their maps lie on the sides that they name?

    Args:
        model: with similarity maps of sentences.
        processor: the model's.
        dataset, finding_words: See [`evaluate_word_grounding`].
        resampling: of patients, for the 95 % intervals.

    Returns:
        Of JSON's own types, undefined numbers None: `all_regions` and `findings`, by name, each with `n_regions` and
        the measures, in [0, 1], each `mean` and `ci95`: `preferred`, the share of regions where the image has a higher
        cosine with its sentence than with the mirrored one (chance: 0.5); `half` and `mirrored_half`, the share where
        the sentence's map, or the mirrored one's, is highest on the side of the report.

    Raises:
        ValueError: for a model without maps, data without marks, or reports without a sentence that names a finding
            and one side.
    """
    check_gives_maps_of_sentences(model)
    questions = [(question, mirror(question.sentence)) for question in find_questions(dataset, finding_words)]
    asked = [(question, mirrored) for question, mirrored in questions if mirrored is not None]
    if not asked:
        raise ValueError("No report names a marked finding and one side (left or right): use other data.")
    pipe = CxrZeroShotClassificationPipeline(model=model, processor=processor)
    records, rows = dataset.with_format(None), []
    with inference(model):
        for question, mirrored in progress(asked, "mirroring sentences", "sentence"):
            sentences = (question.sentence, mirrored)
            inputs = pipe.preprocess(records[question.case.row]["image"])
            pixels = inputs["pixel_values"].to(pipe.device)
            image = model.get_image_features(pixel_values=pixels).pooler_output[0].float()
            own, other = (embed_texts(model, processor.tokenizer, sentences) @ image).tolist()
            side = named_side(question.sentence)
            halves = [lies_on(heat, side) for heat in sentence_maps(pipe, inputs, sentences)]
            rows.append([own > other, *halves])
    names = sorted({question.case.finding for question, _ in asked})
    groups = np.array([names.index(question.case.finding) for question, _ in asked])
    patients = np.array([records[question.case.row]["patient_id"] for question, _ in asked])
    means, intervals = bootstrap_means(np.array(rows, dtype=float), groups, len(names), patients, resampling)
    parts = [
        {name: {"mean": means[i, j], "ci95": intervals[i, j]} for j, name in enumerate(MEASURES)}
        for i in (*range(len(names)), len(names) + 1)
    ]
    sizes = [*np.bincount(groups).tolist(), len(groups)]
    *of_findings, of_all = [{"n_regions": size, **part} for size, part in zip(sizes, parts, strict=True)]
    return to_json({"all_regions": of_all, "findings": dict(zip(names, of_findings, strict=True))})


def lies_on(heat: np.ndarray, side: str) -> bool:
    """Whether a map (height, width) is highest on a side of the patient, whose left is on the image's right."""
    column = int(np.nanargmax(heat)) % heat.shape[1]
    return (column + 0.5 > heat.shape[1] / 2) == (side == "left")
