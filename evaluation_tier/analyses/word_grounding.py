"""Word grounding: whether the words that name a finding point at it, better than the other words of the sentence.

It needs data on which the words of a finding are known and the finding is marked, such as the phantom. The maps are
those that a person sees: the pipeline's maps of words, and the map of the whole sentence.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.averages import bootstrap_means
from evaluation_tier.analyses.grounding.map_metrics import pixel_auroc, pointing_game, split_pixels
from evaluation_tier.analyses.grounding.maps import check_gives_maps
from evaluation_tier.analyses.grounding.regions import Case, read_cases, read_region
from evaluation_tier.analyses.words import WORD, word_class
from evaluation_tier.models.embedding import inference
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling
from modeling_tier import CxrZeroShotClassificationPipeline
from modeling_tier.maps_tier import map_kinds
from modeling_tier.texts_tier import model_inputs, tokenize
from processing_tier.phantom.wording import FINDING_WORDS
from processing_tier.progress import progress
from processing_tier.reports.sentences import split_sentences

OWN, SENTENCE = "own", "sentence"

MAPS = (SENTENCE, OWN, "other", "function", "punctuation")

MEASURES = ("pointing", "pixel_auroc")


class Question(NamedTuple):
    """A marked finding of an image, and a sentence of the report that names it."""

    case: Case
    sentence: str


def evaluate_word_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    finding_words: Mapping[str, set[str]] = FINDING_WORDS,
    max_regions: int = 100,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    How well the maps of a sentence's words point at the finding that the sentence is about.

    For each marked finding, the first sentence of the report counts that names this finding and no other, and does not
    deny it. Its words are `own` (they name the finding), `function` ("the", "is", "no"), `punctuation` and `other`
    (sides, sizes, organs). Words of a class are averaged over the sentence, then over the regions.

    Args:
        model: with maps, see `check_gives_maps`.
        processor: the model's.
        dataset: in the schema of `processing_tier.records`, with `boxes` or `masks` and reports.
        finding_words: by finding, the lower-case words that name it and no other finding; those of the phantom.
        max_regions: evenly spaced among those that have such a sentence.
        resampling: of patients, for the 95 % intervals.

    Returns:
        Of JSON's own types, undefined numbers None: `maps`, by `"sentence"` and class of words the `pointing` and
        `pixel_auroc` (see `map_metrics`), each `mean` and `ci95`; `differences`, the same of `own` minus each other
        map, from the same sentence; `n_regions`, `n_patients` and `kind` of the maps.

    Raises:
        ValueError: for a model without maps, data without marks, or reports without a sentence that names a finding.
    """
    check_gives_maps(model)
    questions = find_questions(dataset, finding_words)
    spaced = np.linspace(0, len(questions) - 1, min(len(questions), max_regions)).round().astype(int)
    questions = [questions[i] for i in spaced]
    pipe = CxrZeroShotClassificationPipeline(model=model, processor=processor)
    records, values = dataset.with_format(None), []
    with inference(model):
        for question in progress(questions, "mapping words", "sentence"):
            own = finding_words[question.case.finding]
            values.append(measure_words(*map_words(pipe, records[question.case.row], question), own))
    measured = np.stack(values)  # (regions, maps, measures)
    differences = measured[:, 1:2] - np.delete(measured, 1, axis=1)  # `own` minus the others
    columns = np.concatenate([measured, differences], axis=1).reshape(len(measured), -1)
    patients = np.array([records[question.case.row]["patient_id"] for question in questions])
    means, intervals = bootstrap_means(columns, np.zeros(len(columns), dtype=int), 1, patients, resampling)
    entries = [{"mean": mean, "ci95": interval} for mean, interval in zip(means[0], intervals[0], strict=True)]
    size = len(MEASURES)
    parts = [dict(zip(MEASURES, entries[i : i + size], strict=True)) for i in range(0, len(entries), size)]
    return to_json(
        {
            "kind": map_kinds(model.config)[0],
            "n_regions": len(questions),
            "n_patients": len(set(patients)),
            "maps": dict(zip(MAPS, parts[: len(MAPS)], strict=True)),
            "differences": dict(zip([name for name in MAPS if name != OWN], parts[len(MAPS) :], strict=True)),
        }
    )


def find_questions(dataset: datasets.Dataset, finding_words: Mapping[str, set[str]]) -> list[Question]:
    """The marked findings whose report has a sentence about them alone; ValueError without any."""
    records = dataset.with_format(None)
    columns = [name for name in ("findings", "impression") if name in records.column_names]
    sentences: dict[int, list[str]] = {}
    questions = []
    cases = [case for case in read_cases(dataset) if case.finding in finding_words]
    for case in cases:
        if case.row not in sentences:
            record = records[case.row]
            sentences[case.row] = [text for name in columns for text in split_sentences(record[name] or "")]
        about = (text for text in sentences[case.row] if named_findings(text, finding_words) == [case.finding])
        sentence = next(about, None)
        if sentence is not None:
            questions.append(Question(case, sentence))
    if not questions:
        words = ", ".join(sorted(set().union(*finding_words.values())))
        raise ValueError(
            f"The words that name the findings ({words}) are not in any report whose image marks one of these "
            "findings: pass the words of these reports as finding_words."
        )
    return questions


def named_findings(sentence: str, finding_words: Mapping[str, set[str]]) -> list[str]:
    """The findings that a sentence names; none for one that denies."""
    words = {word.lower() for word in WORD.findall(sentence)}
    if any(word_class(word) == "negation" for word in words):
        return []
    return [finding for finding, names in finding_words.items() if words & names]


def map_words(
    pipe: CxrZeroShotClassificationPipeline, record: Mapping[str, Any], question: Question
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], np.ndarray]:
    """The map of the sentence, each of its words with its map, and the region: the arguments of `measure_words`."""
    whole = sentence_maps(pipe, pipe.preprocess(record["image"]), [question.sentence])[0]
    words = [(word["word"], word["heatmap"].array) for word in pipe.word_maps(record["image"], question.sentence)]
    mask = read_region(record, question.case, whole.shape[0], whole.shape[1]).mask
    assert mask is not None  # it is dropped only where regions are counted
    return whole, words, mask


def measure_words(
    whole: np.ndarray, words: Sequence[tuple[str, np.ndarray]], mask: np.ndarray, own: set[str]
) -> np.ndarray:
    """The measures of each of `MAPS`, (maps, measures); NaN for a class that the sentence lacks.

    Args:
        whole: the map of the sentence, (height, width).
        words: each word of the sentence with its map.
        mask: the region of the finding, (height, width).
        own: the words that name the finding.
    """
    maps: dict[str, list[np.ndarray]] = {name: [] for name in MAPS}
    maps[SENTENCE].append(whole)
    for word, heat in words:
        maps[class_of(word, own)].append(heat)
    values = np.full((len(MAPS), len(MEASURES)), np.nan)
    for i, name in enumerate(MAPS):
        if maps[name]:
            of_words = [(pointing_game(heat, mask), pixel_auroc(split_pixels(heat, mask))) for heat in maps[name]]
            values[i] = np.mean(of_words, axis=0)
    return values


def class_of(word: str, own: set[str]) -> str:
    """One of `MAPS` but the sentence."""
    if not WORD.search(word):
        return "punctuation"
    if word.lower() in own:
        return OWN
    return "function" if word_class(word) in ("function", "negation") else "other"


def sentence_maps(
    pipe: CxrZeroShotClassificationPipeline, inputs: Mapping[str, Any], sentences: Sequence[str]
) -> np.ndarray:
    """The maps of sentences in the pixels of an image, (sentences, height, width), of the kind that the pipeline has.

    Args:
        inputs: of the image, from `pipe.preprocess`.
    """
    tokens = tokenize(pipe.model, pipe.tokenizer, sentences)
    maps: torch.Tensor = pipe.model.get_similarity_map(
        pixel_values=inputs["pixel_values"].to(pipe.device),
        **model_inputs(tokens, pipe.device),
        kind=map_kinds(pipe.model.config)[0],
    )
    return pipe.to_pixels(maps.cpu(), inputs["size"])
