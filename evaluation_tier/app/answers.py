"""Answers of the page: one model's scores and maps of one image, without anything that a browser needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from evaluation_tier.app.models import ShownModel
from evaluation_tier.app.questions import Upload
from evaluation_tier.predict.inputs import choose_findings
from evaluation_tier.predict.run import describe
from modeling_tier import HeatMap
from processing_tier.radiograph_tier import IN_MEMORY


@dataclass(frozen=True)
class ShownFinding:
    """
    A finding or a free sentence.

    Args:
        entry: its sentences, and its calibration if it has one.
        result: of the pipeline, without the heat-map.
        heatmap: of the finding; None for a model without maps.
        words: of the first positive sentence, each `word` with its `heatmap`; empty without maps of words.
    """

    entry: Mapping[str, Any]
    result: Mapping[str, Any]
    heatmap: HeatMap | None
    words: Sequence[Mapping[str, Any]]

    @property
    def sentence(self) -> str:
        """The sentence whose words can be clicked."""
        return self.entry["positive"][0]


@dataclass(frozen=True)
class Answer:
    """What one model says of an image, whose `picture` is of mode "L" and upright."""

    model: ShownModel
    picture: Image.Image
    findings: Sequence[ShownFinding]


def answer(
    model: ShownModel, upload: Upload, chosen: Sequence[str], sentences: Mapping[str, Mapping[str, str]]
) -> Answer:
    """
    Score free sentences, then findings, on an image, which is kept in memory only.

    Args:
        chosen: names of findings; those that this model does not hold are scored with the default sentences.
        sentences: see `evaluation_tier.app.questions.read_sentences`.

    Raises:
        ValueError: nothing is asked, or the image cannot be read.
    """
    if not chosen and not sentences:
        raise ValueError("Choose a finding, or write a sentence.")
    entries: dict[str, Any] = dict(choose_findings(chosen, None, model.findings)) if chosen else {}
    entries = model.pipe.resolve_findings({**sentences, **entries})
    with_maps = bool(model.limits)
    try:
        results: Any = model.pipe(upload.content, entries, return_heatmaps=with_maps)
    except ValueError as error:
        raise ValueError(str(error).replace(IN_MEMORY, upload.name, 1)) from error
    heatmaps = [result.pop("heatmap", None) for result in results]
    words: list[list[dict[str, Any]]] = [[] for _ in results]
    if "word" in model.limits:
        words = model.pipe.word_maps(upload.content, [entry["positive"][0] for entry in entries.values()])
    shown = [ShownFinding(*parts) for parts in zip(entries.values(), results, heatmaps, words, strict=True)]
    picture = heatmaps[0].picture.image if with_maps else model.pipe.image_processor.read(upload.content)
    return Answer(model, picture, shown)


def as_json(answers: Sequence[Answer], upload: Upload) -> dict[str, Any]:
    """
    The answers as predictions.json of `tier-predict` tells them, one per model, with the maps of findings and words,
    each at most 32 numbers wide and high.
    """
    models = []
    for given in answers:
        limits, entries = given.model.limits, {shown.result["label"]: shown.entry for shown in given.findings}
        head = describe(
            given.model.name,
            given.model.pipe.model,
            entries,
            dict.fromkeys(entries, limits["finding"]) if limits else {},
        )
        note, versions = head.pop("note"), head.pop("versions")
        results = [
            {**shown.result, **({"heatmap": shown.heatmap, "words": list(shown.words)} if shown.heatmap else {})}
            for shown in given.findings
        ]
        models.append({**head, **({"word_limit": limits["word"]} if "word" in limits else {}), "results": results})
    return {"note": note, "image": upload.name, "models": models, "versions": versions}
