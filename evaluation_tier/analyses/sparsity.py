"""Sparsity, TIER's own claim: on how few patches of its image each word of a report rests, and the reverse.

For each radiograph and its own report, S[t, p] is the cosine of token t with patch p. Everything here is measured on
S. It says how concentrated the similarities are, not whether they are concentrated on the right place. The sums over
the images of one model are in `token_patch_sums.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.relative_similarity import name_ranked
from evaluation_tier.analyses.retrieval import read_texts
from evaluation_tier.analyses.sparsity_measures import NEAR_ZERO, STATISTICS
from evaluation_tier.analyses.token_patch_sums import TokenPatchSums
from evaluation_tier.analyses.words import WORD, WORD_CLASSES
from evaluation_tier.models.families import can_project_patches, check_is_of_transformers
from evaluation_tier.models.single_pass import Models, evaluate_models
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.metrics import divide
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, chunks


def evaluate_sparsity(models: Models, dataset: datasets.Dataset, batch_size: int = 32, **options: Any) -> dict:
    """
    How concentrated the similarities of words and patches are, for one model or for several side by side.

    With several processes, see `evaluate_models`.

    Args:
        models: name to (model, processor), as `load_model` gives them, or to a function that returns these: TIER
            models or CLIP's. The others are compared with the first one: name the unregularised one first.
        dataset: in the schema of `processing_tier.records`.
        batch_size: pairs at once.
        options: the other fields of [`Sparsity`].

    Returns:
        See [`Sparsity.results`].
    """
    if not models:
        raise ValueError("The list of models is empty: name at least one.")
    sparsity = Sparsity(dataset, **options)
    evaluate_models(models, [dataset], [sparsity], batch_size)
    return sparsity.results()


@dataclass
class Sparsity:
    """
    Concentration of the similarities, as an [`Analysis`] of one model or of several.

    Each word counts once: its numbers are averaged over its tokens. The mean of all words leaves out punctuation,
    which has a separate row. Records whose text lacks words, and images that do not decode, are left out.

    Args:
        dataset: in the schema of `processing_tier.records`.
        text: see `retrieval.read_texts`; so is `deidentified`.
        temperature: divides the cosines in both entropies, for all models, regardless of their training; 1 is TIER's.
        near_zero: a cosine of a smaller magnitude is near zero.
        resampling: of patients, for the 95 % intervals; the same for all models, so that the intervals of the
            differences are paired.
        dataset_name: name of the data in the results.

    Raises:
        ValueError: for a model without patch embeddings, models with different numbers of patches, no usable pair, or
            what `read_texts` refuses.
    """

    dataset: datasets.Dataset
    text: str = "both"
    deidentified: str = "keep"
    temperature: float = 1.0
    near_zero: float = NEAR_ZERO
    resampling: Resampling = PATIENT_BOOTSTRAP
    dataset_name: str = ""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"The temperature must be above 0, but is {self.temperature}.")
        if not self.near_zero > 0:
            raise ValueError(f"near_zero must be above 0, but is {self.near_zero}.")
        texts = read_texts(self.dataset, self.text, self.deidentified)
        self.texts = {row: words for row, words in enumerate(texts) if WORD.search(words)}
        self.measured: dict[str, TokenPatchSums] = {}
        self.weights: dict[str, dict[str, float]] = {}  # of the entropies in each model's loss

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list[TokenPatchSums]:
        check_embeds_patches(name, model)
        self.measured[name] = TokenPatchSums(model, processor, self.texts, self.temperature, self.near_zero)
        weights = ("token_entropy_weight", "patch_entropy_weight")
        self.weights[name] = {weight: getattr(model.config, weight, 0.0) for weight in weights}
        return [self.measured[name]]

    def results(self) -> dict:
        """
        After the pass of the last model.

        Returns:
            `"models"`, by name: `token_entropy` and `patch_entropy` in nats, over all tokens but special ones as in
            the loss; `"words"`, by class (`"all"`, those of `WORD_CLASSES`, `"punctuation"`), with `n_words` and the
            means of the `STATISTICS`; and `"ranked"`, by class and for `"text"` (the embedding of the whole text), the
            mean and the standard deviation of the similarities sorted from the highest down, each a list of
            `num_patches` numbers, and the `"relative"` ones of whole texts (see [`RelativeSimilarity`]).
            `"differences"`, by name of all but the first: the same numbers minus those of the first model. Beside each
            number stands `<name>_ci95`. Undefined numbers are NaN.
        """
        num_patches = {name: sums.ranked.ranked.shape[-1] for name, sums in self.measured.items()}
        if len(set(num_patches.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in num_patches.items())
            raise ValueError(
                f"Models with different numbers of patches cannot be compared: evaluate each alone ({counts})."
            )
        readable = np.all([~np.isnan(sums.per_image["counts"]).any(axis=1) for sums in self.measured.values()], axis=0)
        records = self.dataset.select(list(self.texts))
        patient_ids, image_ids = np.array(records["patient_id"][:])[readable], np.array(records["image_id"][:])
        values = self.resample(readable, patient_ids)
        first = next(iter(values))
        models = {
            name: {
                "num_patches": num_patches[name],
                "num_texts_cut_off": sums.ranked.num_cut,
                **self.weights[name],
                **name_numbers(values[name], sums.per_image["counts"][readable].sum(axis=0)),
                "ranked": name_ranked(sums.ranked.ranked, sums.ranked.counts, sums.ranked.relative, WORD_CLASSES),
            }
            for name, sums in self.measured.items()
        }
        return {
            "dataset": self.dataset_name,
            "protocol": {
                "text": self.text,
                "deidentified": self.deidentified,
                "temperature": self.temperature,
                "near_zero": self.near_zero,
                "gini_and_hoyer": "of the magnitudes of the cosines",
                **self.resampling.describe(
                    patient_ids.tolist(), "95 % percentile bootstrap over patients, paired between models"
                ),
                "n_without_text": len(self.dataset) - len(self.texts),
                "images_skipped": image_ids[~readable].tolist(),
            },
            "n_images": int(readable.sum()),
            "models": models,
            "differences": {
                name: name_numbers(rows - values[first]) for name, rows in values.items() if name != first
            },
            "versions": installed_versions(),
        }

    def resample(self, readable: np.ndarray, patient_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Each model's numbers, first on all the images, then in each resample; see `means`."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in self.measured}
        draws = self.resampling.draw(patient_ids)
        draws = np.concatenate([np.ones((1, draws.shape[1]), draws.dtype), draws])
        for part in chunks(*draws.shape):
            weights = draws[part].astype(np.float64)
            for name, sums in self.measured.items():
                values[name].append(means({key: rows[readable] for key, rows in sums.per_image.items()}, weights))
        return {name: np.concatenate(rows) for name, rows in values.items()}


def check_embeds_patches(name: str, model: PreTrainedModel) -> None:
    """ValueError for a model that does not embed tokens and patches."""
    check_is_of_transformers(model, "Sparsity", "embeddings of words and patches")
    if not can_project_patches(model):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which does not embed tokens and patches in one space: name a "
            "TIER model or a CLIPModel."
        )


def means(sums: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The means of `TokenPatchSums.per_image` under weights (weightings, images).

    Returns:
        (weightings, 2 + (1 + classes) * statistics): token and patch entropy, then the statistics of all words and of
        each class; NaN for a class that lacks words.
    """
    entropies = divide(weights @ sums["entropy_sums"], weights @ sums["entropy_counts"])
    by_class = np.einsum("wi,ics->wcs", weights, sums["sums"], optimize=True)
    counts = weights @ sums["counts"]
    words = len(WORD_CLASSES)  # all but punctuation
    by_class = np.concatenate([by_class[:, :words].sum(axis=1, keepdims=True), by_class], axis=1)
    counts = np.concatenate([counts[:, :words].sum(axis=1, keepdims=True), counts], axis=1)
    by_class = divide(by_class, counts[:, :, None])
    return np.concatenate([entropies, by_class.reshape(len(weights), -1)], axis=1)


def name_numbers(values: np.ndarray, counts: np.ndarray | None = None) -> dict:
    """The columns of `means` by name, the first row as numbers and the others as their intervals."""

    def number(name: str, column: np.ndarray) -> dict:
        return {name: column[0].item(), f"{name}_ci95": percentile_interval(column[1:]).tolist()}

    results = {**number("token_entropy", values[:, 0]), **number("patch_entropy", values[:, 1]), "words": {}}
    classes = ("all", *WORD_CLASSES, "punctuation")
    if counts is not None:
        counts = np.append(counts[: len(WORD_CLASSES)].sum(), counts)
    for i, name in enumerate(classes):
        results["words"][name] = {} if counts is None else {"n_words": round(counts[i])}
        for j, statistic in enumerate(STATISTICS):
            results["words"][name] |= number(statistic, values[:, 2 + i * len(STATISTICS) + j])
    return results
