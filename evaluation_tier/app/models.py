"""The models of the page, each with the findings that it offers and the fixed ends of its colour scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from evaluation_tier.app.samples import Sample
from evaluation_tier.models.loading import short_names
from evaluation_tier.predict.inputs import choose_findings
from evaluation_tier.predict.loading import Pipeline, load_pipeline, stored_findings


@dataclass(frozen=True)
class ShownModel:
    """
    A model as the page shows it.

    Args:
        name: as the user named it on the command line; visitors see `title`.
        title: without the path on this machine.
        pipe: scores images, and gives the maps of findings and words.
        findings: the entries of all findings that the page offers, by name.
        limits: the values of the strongest colours, `"finding"` and `"word"`; empty for a model without maps.
    """

    name: str | Path
    title: str
    pipe: Pipeline
    findings: dict[str, dict[str, Any]]
    limits: dict[str, float]


def load_shown_models(
    names: Sequence[str | Path], device: str | None, samples: Sequence[Sample], trust_remote_code: bool = False
) -> list[ShownModel]:
    """
    Load the models and measure their colour scales on the samples.

    A scale stays the same for all images, so that a weak map looks weak. Each model has its own, since contributions
    and cosines differ from model to model by orders of magnitude.

    Raises:
        ValueError: a model does not load, or it is of a kind that does not score sentences.
    """
    transformers_logging.disable_progress_bar()  # those of loading weights
    titles = short_names(names)
    pipes = {name: load_pipeline(name, device, trust_remote_code) for name in names}
    return [make_shown_model(name, titles[name], pipe, samples) for name, pipe in pipes.items()]


def make_shown_model(name: str | Path, title: str, pipe: Pipeline, samples: Sequence[Sample]) -> ShownModel:
    findings = pipe.resolve_findings(choose_findings(None, None, stored_findings(name)))
    limits: dict[str, float] = {}
    if gives_maps(pipe):
        for sample in samples:
            scored: Any = pipe(sample.upload.content, findings, return_heatmaps=True)
            grow(limits, "finding", [finding["heatmap"] for finding in scored])
            try:
                words = pipe.word_maps(sample.upload.content, sample.impression)
            except ValueError:  # a tokenizer that does not say which tokens make a word, or no maps of words
                continue
            grow(limits, "word", [word["heatmap"] for word in words])
    return ShownModel(name, title, pipe, findings, limits)


def gives_maps(pipe: Pipeline) -> bool:
    try:
        pipe.check_gives_maps()
    except ValueError:
        return False
    return True


def grow(limits: dict[str, float], kind: str, heatmaps: Sequence[Any]) -> None:
    limits[kind] = max([limits.get(kind, 0.0), *(heatmap.limit for heatmap in heatmaps)])
