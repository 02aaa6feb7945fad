"""How few images do I need? Probes of the frozen embeddings, trained on few patients, against zero-shot scores.

For 10, 30, 100, 300, ... patients of another split, drawn several times, a linear probe and a k-NN classifier learn
each finding from the embeddings of the images, and score the evaluated images. Every image is embedded once. The draws
are nested: the 30 patients of a draw are its 10 and 20 others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.models.embedding import Embedders, Outputs
from evaluation_tier.models.families import scores_itself
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.single_pass import ImageRows
from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings, percentile_interval
from evaluation_tier.statistics.metrics import auroc, nanmean
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, draw_resamples

DRAWS = 5

INVERSE_PENALTY = 0.01  # of the logistic regression, on standardised embeddings; see docs/learning_curve.md

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the weighted k-NN of Wu et al. 2018 (1805.01978), with DINO's k (2104.14294)

METHODS = ("linear_probe", "knn")


class Embeddings:
    """The embeddings of the images of a data set, as a [`Consumer`]; `wanted` is false where they are not needed."""

    patches = False
    embedders: Embedders = {}

    def __init__(self, dataset: datasets.Dataset, wanted: bool = True):
        self.rows = None if wanted else np.empty(0, dtype=np.int64)
        self.image = ImageRows(len(dataset)) if wanted else None

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        if self.image is not None:
            self.image.put(rows, outputs["image"].float())

    def finish(self, own: np.ndarray) -> None:
        if self.image is not None:
            self.image.values = self.image.merge(own)


def check_embeds_images(name: str, model: PreTrainedModel) -> None:
    """ValueError for a model without one embedding of each image."""
    if is_classifier(model) or scores_itself(model):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which has no embedding for other classifiers to learn from: leave "
            "out --learning_curve, or use a model of images and texts."
        )


@dataclass
class LearningCurve:
    """
    The curve, as an [`Analysis`] of one model.

    Args:
        evaluated: the data sets of the pass; the first is evaluated, the last is the one to learn from.
        split: its name.
        num_seen: how many of its images the model was trained on.
        resampling: number and seed for the interval of the zero-shot score; the seed is that of the draws, too.
    """

    evaluated: Sequence[datasets.Dataset]
    split: str
    num_seen: int = 0
    resampling: Resampling = PATIENT_BOOTSTRAP

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list[Embeddings]:
        check_embeds_images(name, model)
        last = len(self.evaluated) - 1
        self.embeddings = [Embeddings(data, i in (0, last)) for i, data in enumerate(self.evaluated)]
        return self.embeddings

    def results(self, metrics: Mapping, predictions: pd.DataFrame) -> dict:
        """
        After the pass of the model.

        Args:
            metrics, predictions: as `ZeroShot.results` returns them, of the first data set.

        Returns:
            `split`, `n_images`, `n_patients` and `n_seen` of the images to learn from, `n_draws`, `findings`,
            `zero_shot` (`auroc`, `auroc_ci95`), and under `methods` for each method a list of points: `n_patients`,
            `n_images` (mean), `auroc` (mean of the draws), `lowest`, `highest`, `draws` (each draw's mean over the
            findings), `findings` (by name, each draw's AUROC), `n_one_class` (findings without both classes, mean).
            `reaches_zero_shot`: the first number of patients from which on every point is at least as good.

        Raises:
            ValueError: the split lacks the evaluated findings.
        """
        train = self.evaluated[-1]
        findings = [name for name in metrics["findings"] if name in train.column_names]
        if not findings:
            raise ValueError(
                f"The split {self.split!r} of --learning_curve has no labels of {', '.join(metrics['findings'])}: "
                "name a split with labels."
            )
        images = self.embeddings[-1].image.values
        readable = ~np.isnan(images).any(axis=1)
        if not readable.any():
            raise ValueError(f"No image of the split {self.split!r} of --learning_curve decodes: name another one.")
        learned = Learned(images[readable], read_labels(train, findings)[readable])
        patients = np.array(train["patient_id"][:])[readable].astype(str)
        tested = self.embeddings[0].image.values[predictions.index]
        labels = np.stack([predictions[f"label_{name}"].to_numpy() for name in findings], axis=1)
        points = measure_points(learned, patients, tested, labels, self.resampling.seed)
        zero_shot = self.measure_zero_shot(predictions, findings, labels)
        methods = {name: [describe(point, findings) for point in points[name]] for name in METHODS}
        return {
            "dataset": metrics["dataset"],
            "split": self.split,
            "n_images": len(patients),
            "n_patients": len(set(patients)),
            "n_seen": self.num_seen,
            "n_draws": DRAWS,
            "findings": findings,
            "zero_shot": zero_shot,
            "methods": methods,
            "reaches_zero_shot": {name: find_reached(methods[name], zero_shot["auroc"]) for name in METHODS},
        }

    def measure_zero_shot(self, predictions: pd.DataFrame, findings: Sequence[str], labels: np.ndarray) -> dict:
        """The mean AUROC of the evaluation's own scores over the findings, with its interval."""
        scores = np.stack([predictions[f"score_{name}"].to_numpy() for name in findings], axis=1)
        draws = draw_resamples(predictions["patient_id"].tolist(), self.resampling.num_resamples, self.resampling.seed)
        point = bootstrap(labels, scores, np.ones((1, len(labels))))["auroc"][0]
        mean, resampled = mean_over_findings(point, bootstrap(labels, scores, draws)["auroc"])
        return {"auroc": mean, "auroc_ci95": percentile_interval(resampled).tolist()}


@dataclass
class Learned:
    """Images to learn from."""

    images: np.ndarray  # (images, dim)
    labels: np.ndarray  # (images, findings): 1, 0, -1 or NaN

    def __getitem__(self, rows: np.ndarray) -> "Learned":
        return Learned(self.images[rows], self.labels[rows])


def choose_sizes(num_patients: int) -> list[int]:
    """10, 30, 100, 300, ... patients, and last all of them."""
    sizes, size = [], 10
    while size < num_patients:
        sizes.append(size)
        size = 3 * size if str(size)[0] == "1" else size // 3 * 10
    return [*sizes, num_patients]


def measure_points(
    learned: Learned, patients: np.ndarray, tested: np.ndarray, labels: np.ndarray, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """By method, for each number of patients: `n_patients`, `n_images`, `aurocs` and `one_class` (draws, findings)."""
    units, unit_of_image = np.unique(patients, return_inverse=True)
    orders = [np.random.default_rng([seed, draw]).permutation(len(units)) for draw in range(DRAWS)]
    sizes = choose_sizes(len(units))
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with tqdm(total=len(sizes) * DRAWS, desc="Learning curve", unit=" draws", disable=None) as bar:
        for size in sizes:
            draws = [np.flatnonzero(np.isin(unit_of_image, order[:size])) for order in orders]
            if size == len(units):  # all draws are the same
                draws = draws[:1]
            found: dict[str, list] = {name: [] for name in METHODS}
            for rows in draws:
                drawn = learned[rows]
                for name, score in zip(METHODS, (probe_scores, knn_scores), strict=True):
                    scores = score(drawn, tested)
                    found[name].append([auroc(labels[:, i], scores[:, i]) for i in range(labels.shape[1])])
                bar.update()
            one_class = [
                [not {0, 1} <= set(column[(column == 0) | (column == 1)]) for column in learned.labels[rows].T]
                for rows in draws
            ]
            for name in METHODS:
                known = {"n_patients": size, "n_images": float(np.mean([len(rows) for rows in draws]))}
                points[name].append({**known, "aurocs": np.array(found[name]), "one_class": np.array(one_class)})
    return points


def probe_scores(drawn: Learned, tested: np.ndarray) -> np.ndarray:
    """
    The logits of a logistic regression for each finding, (tested, findings); 0 for all images if the drawn ones lack a
    class, so that its AUROC is that of chance.
    """
    scaler = StandardScaler().fit(drawn.images)
    images, tested = scaler.transform(drawn.images), scaler.transform(tested)
    scores = np.zeros((len(tested), drawn.labels.shape[1]))
    for i, column in enumerate(drawn.labels.T):
        known = (column == 0) | (column == 1)
        if len(set(column[known])) == 2:
            probe = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(images[known], column[known])
            scores[:, i] = probe.decision_function(tested)
    return scores


def knn_scores(drawn: Learned, tested: np.ndarray) -> np.ndarray:
    """
    For each finding the share of the nearest images that have it, weighted by exp(cosine / `TEMPERATURE`), (tested,
    findings); 0 if the drawn images lack a class.
    """
    scores = np.zeros((len(tested), drawn.labels.shape[1]))
    for i, column in enumerate(drawn.labels.T):
        known = (column == 0) | (column == 1)
        if len(set(column[known])) == 2:
            search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, known.sum()), metric="cosine")
            distances, nearest = search.fit(drawn.images[known]).kneighbors(tested)
            weights = np.exp(-distances / TEMPERATURE)
            scores[:, i] = (weights * column[known][nearest]).sum(axis=1) / weights.sum(axis=1)
    return scores


def describe(point: Mapping, findings: Sequence[str]) -> dict[str, Any]:
    """A point of the curve in the results; the mean over the findings leaves out those that cannot be measured."""
    means = [nanmean(row) for row in point["aurocs"]]
    return {
        "n_patients": point["n_patients"],
        "n_images": point["n_images"],
        "auroc": float(np.mean(means)),
        "lowest": min(means),
        "highest": max(means),
        "draws": means,
        "findings": {name: point["aurocs"][:, i].tolist() for i, name in enumerate(findings)},
        "n_one_class": float(point["one_class"].sum(axis=1).mean()),
    }


def find_reached(points: Sequence[Mapping], zero_shot: float) -> int | None:
    """The first number of patients from which on the mean of the draws is at least the zero-shot AUROC."""
    reached = None
    for point in reversed(points):
        if point["auroc"] < zero_shot:
            break
        reached = point["n_patients"]
    return reached
