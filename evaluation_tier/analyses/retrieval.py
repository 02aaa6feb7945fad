"""Retrieval: whether a model finds the report of a radiograph among all reports, and the radiograph of a report.

Reports repeat ("No acute disease."). A report that says the same as the one looked for counts as found. How ties are
decided is in `ranks.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.ranks import TIE, Ranks, chance_ranks, median_rank, ranks, recall_at
from evaluation_tier.analyses.words import WORD
from evaluation_tier.models.contract import normalize
from evaluation_tier.models.embedding import Embedders, Outputs
from evaluation_tier.models.families import family_of, scores_itself
from evaluation_tier.models.images import check_any_readable
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.single_pass import ImageRows, evaluate_models
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, chunks
from processing_tier.records.schema import select_text
from processing_tier.reports.deidentification import clean_text
from processing_tier.reports.duplicates import duplicate_groups


def read_texts(dataset: datasets.Dataset, text: str = "both", deidentified: str = "keep") -> list[str]:
    """The text of each record, as a training with the same two options reads it; `""` if it is missing.

    Args:
        text: `"impression"`, `"findings"` or `"both"`, see `processing_tier.records.schema.select_text`.
        deidentified: `"keep"`, `"remove"` or `"replace"`, see `processing_tier.reports.deidentification.clean_text`.

    Raises:
        ValueError: for a data set that lacks these columns or whose texts lack words, or an unknown option.
    """
    sections = ("impression", "findings")
    missing = [section for section in sections if section not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set has no column {missing[0]!r}: name it with --columns, or use one with reports."
        )
    records = dataset.with_format(None).select_columns(list(sections))
    texts = [clean_text(select_text(record, text), deidentified) for record in records]
    if not any(map(WORD.search, texts)):
        raise ValueError(f"No record has a word in its {text!r} text: choose another text or other data.")
    return texts


def check_embeds_texts(model: PreTrainedModel) -> None:
    """ValueError for a classifier, and for a model that compares images and texts by more than their embeddings."""
    if is_classifier(model):
        raise ValueError(f"A {type(model).__name__} does not embed texts, which retrieval needs: use a TIER model.")
    if scores_itself(model):
        raise ValueError(
            f"A {type(model).__name__} scores by more than one embedding of each image, which retrieval does not "
            "support: leave it out of --analyses."
        )


def evaluate_retrieval(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int = 32, **options: Any
) -> dict:
    """
    R@k and median rank of finding each image's text among all texts, and each text's image among all images.

    With several processes, see `evaluate_models`.

    Args:
        model: of images and texts, as `load_model` gives it.
        dataset: in the schema of `processing_tier.records`.
        batch_size: images, and texts, embedded at once.
        options: the other fields of [`Retrieval`].

    Returns:
        See [`Retrieval.results`].
    """
    check_embeds_texts(model)
    retrieval = Retrieval(dataset, batch_size=batch_size, **options)
    evaluate_models({"": (model, processor)}, [dataset], [retrieval], batch_size)
    return retrieval.results()


@dataclass
class Retrieval:
    """
    Retrieval in both directions, as an [`Analysis`] of one model and the [`Consumer`] of its images.

    Every record is a query both ways. The gallery of texts has each text once, that of images each image. Texts that
    say the same (see `duplicate_groups`) stand for one another: any of them, or the image of any of them, is a hit.
    Records whose text lacks words, and images that do not decode, are left out of both sides.

    Args:
        dataset: in the schema of `processing_tier.records`.
        text: see `read_texts`; so is `deidentified`.
        ks: the numbers of items that R@k looks at.
        resampling: of the patients of the queries, for the 95 % intervals; the gallery stays.
        batch_size: texts embedded at once.
        chunk_size: queries compared with the gallery at once, see `ranks`.
        dataset_name: name of the data in the results.

    Raises:
        ValueError: for a classifier, no usable pair, or what `read_texts` refuses.
    """

    dataset: datasets.Dataset
    text: str = "both"
    deidentified: str = "keep"
    ks: Sequence[int] = (1, 5, 10)
    resampling: Resampling = PATIENT_BOOTSTRAP
    batch_size: int = 32
    chunk_size: int = 256
    dataset_name: str = ""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"R@k needs numbers of at least 1, but ks is {tuple(self.ks)}.")
        self.texts = read_texts(self.dataset, self.text, self.deidentified)
        self.groups = duplicate_groups(self.texts)
        self.rows = np.flatnonzero(self.groups >= 0)  # with a text
        self.patches = False
        self.embedders: Embedders = {}

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> "list[Retrieval]":
        check_embeds_texts(model)
        self.images = ImageRows(len(self.dataset))
        self.embed_texts = partial(family_of(model, processor).embed_texts, batch_size=self.batch_size)
        return [self]

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        self.images.put(rows, outputs["image"])

    def finish(self, own: np.ndarray) -> None:
        image_embeds = self.images.merge(own)[self.rows]
        self.readable = ~np.isnan(image_embeds).any(axis=1)
        check_any_readable(self.readable, "report")
        self.image_embeds = image_embeds[self.readable]
        # Each text once: were copies to stand side by side in the gallery, a wrong one would fill the first k places
        self.distinct, self.first, self.text_of_image = np.unique(
            [self.texts[i] for i in self.rows[self.readable]], return_index=True, return_inverse=True
        )
        self.text_embeds = normalize(self.embed_texts(self.distinct.tolist()))
        del self.embed_texts, self.images  # the model is no longer needed

    def results(self) -> dict:
        """
        After the pass.

        Returns:
            `"image_to_text"` and `"text_to_image"`, each with `recall_at_<k>` in [0, 1] and `median_rank` from 1.
            Each number also has `<name>_ci95`, `<name>_chance` (a random ranking) and `<name>_most_frequent` (a model
            that ignores the query and ranks the most repeated item first).
        """
        records = self.dataset.select(self.rows)
        image_ids, patient_ids = np.array(records["image_id"][:]), np.array(records["patient_id"][:])[self.readable]
        groups = self.groups[self.rows][self.readable]
        _, group_of_image, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        frequency = sizes[group_of_image].astype(np.float32)[:, None]
        draws = self.resampling.draw(patient_ids)
        directions = {}
        for direction, queries, gallery, gallery_groups, gallery_frequency in (
            ("image_to_text", self.image_embeds, self.text_embeds, groups[self.first], frequency[self.first]),
            ("text_to_image", self.text_embeds[self.text_of_image], self.image_embeds, groups, frequency),
        ):
            rank = partial(ranks, query_groups=groups, gallery_groups=gallery_groups, chunk_size=self.chunk_size)
            baselines = {
                "chance": chance_ranks(groups, gallery_groups),
                "most_frequent": rank(np.ones_like(frequency), gallery_frequency),
            }
            directions[direction] = describe_direction(rank(queries, gallery), baselines, self.ks, draws)
        return {
            "dataset": self.dataset_name,
            "protocol": {
                "text": self.text,
                "deidentified": self.deidentified,
                "hits": "every text that says the same, and the images of all of them",
                "galleries": "each text once; each image",
                "ties": f"by lot, in expectation; cosines nearer than {TIE:g} are tied",
                **self.resampling.describe(
                    patient_ids.tolist(), "95 % percentile bootstrap over the patients of the queries"
                ),
                "n_without_text": len(self.texts) - len(self.rows),
                "images_skipped": image_ids[~self.readable].tolist(),
            },
            "n_images": len(groups),
            "n_texts": len(self.distinct),
            "n_most_frequent_text": int(sizes.max()),
            **directions,
            "versions": installed_versions(),
        }


def describe_direction(measured: Ranks, baselines: dict[str, Ranks], ks: Sequence[int], draws: np.ndarray) -> dict:
    """The numbers of one direction, each with its interval and its baselines, see [`Retrieval.results`]."""

    def numbers(of: Ranks, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        recalls = {f"recall_at_{k}": recall_at(of, k, weights) for k in ks}
        return {**recalls, "median_rank": median_rank(of, weights)}

    parts = chunks(*draws.shape)
    resampled = [numbers(measured, draws[part].astype(np.float64)) for part in parts]
    result = {}
    for name, value in numbers(measured).items():
        result[name] = value.item()
        result[f"{name}_ci95"] = percentile_interval(np.concatenate([draw[name] for draw in resampled])).tolist()
    for baseline, baseline_ranks in baselines.items():
        result |= {f"{name}_{baseline}": value.item() for name, value in numbers(baseline_ranks).items()}
    return result
