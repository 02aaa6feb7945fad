"""How few images do I need? Classifiers that learn from few patients, against zero-shot scores.

For 10, 30, 100, 300, ... patients of another split, drawn several times, a linear probe and a k-NN classifier learn
each finding from the frozen embeddings of the images, and score the evaluated images. Every image is embedded once. On
request, the image tower learns too, from the same patients. The draws are nested: the 30 patients of a draw are its 10
and 20 others. The evaluated images choose nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import numpy as np
import pandas as pd
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.probes import Learned, choose_inverse_penalty, knn_scores, probe_scores
from evaluation_tier.models.embedding import Embedders, Outputs
from evaluation_tier.models.families import scores_itself
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.single_pass import ImageRows
from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings, percentile_interval
from evaluation_tier.statistics.metrics import auroc, nanmean
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, draw_resamples
from processing_tier.progress import progress

DRAWS = 5

# The scores (tested, findings) of a classifier that learns from these rows with a seed, and the settings it has chosen
Method = Callable[[np.ndarray, int], tuple[np.ndarray, dict[str, float]]]


class FineTuning(Protocol):
    """Trains image towers. The command brings one, because this package does not know those that train."""

    @property
    def steps(self) -> int:
        """Of each training."""

    def check(self, model: str) -> None:
        """ValueError for a model whose image tower it cannot train."""

    def score(
        self, model: str, drawn: datasets.Dataset, findings: Sequence[str], tested: datasets.Dataset, seed: int
    ) -> np.ndarray:
        """The logits (tested, findings) of the model's image tower and a new head, both trained on `drawn`."""


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
        fine_tuning: trains the image tower too, if given.
        model: to fine-tune, as the user named it.
    """

    evaluated: Sequence[datasets.Dataset]
    split: str
    num_seen: int = 0
    resampling: Resampling = PATIENT_BOOTSTRAP
    fine_tuning: FineTuning | None = None
    model: str = ""

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
            findings), `findings` (by name, each draw's AUROC), `n_one_class` (findings without both classes, mean),
            and of the linear probe `inverse_penalties` (of each draw). With fine-tuning also `fine_tuning_steps`.
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
        readable = np.flatnonzero(~np.isnan(images).any(axis=1))
        if not len(readable):
            raise ValueError(f"No image of the split {self.split!r} of --learning_curve decodes: name another one.")
        patients = np.array(train["patient_id"][:]).astype(str)
        learned = Learned(images, read_labels(train, findings), patients)[readable]
        labels = np.stack([predictions[f"label_{name}"].to_numpy() for name in findings], axis=1)
        methods = self.make_methods(learned, train.select(readable), predictions.index.to_numpy(), findings)
        points = measure_points(methods, learned, labels, self.resampling.seed)
        zero_shot = self.measure_zero_shot(predictions, findings, labels)
        described = {name: [describe(point, findings) for point in points[name]] for name in points}
        return {
            "dataset": metrics["dataset"],
            "split": self.split,
            "n_images": len(learned.patients),
            "n_patients": len(set(learned.patients)),
            "n_seen": self.num_seen,
            "n_draws": DRAWS,
            **({} if self.fine_tuning is None else {"fine_tuning_steps": self.fine_tuning.steps}),
            "findings": findings,
            "zero_shot": zero_shot,
            "methods": described,
            "reaches_zero_shot": {name: find_reached(described[name], zero_shot["auroc"]) for name in described},
        }

    def make_methods(
        self, learned: Learned, records: datasets.Dataset, tested_rows: np.ndarray, findings: Sequence[str]
    ) -> dict[str, Method]:
        """
        The classifiers by name.

        Args:
            learned: to draw from.
            records: of the same images.
            tested_rows: the evaluated images, rows of the first data set.
            findings: to learn.
        """
        tested = self.embeddings[0].image.values[tested_rows]

        def probe(rows: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, float]]:
            inverse_penalty = choose_inverse_penalty(learned[rows], seed)
            return probe_scores(learned[rows], tested, inverse_penalty), {"inverse_penalties": inverse_penalty}

        def vote(rows: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, float]]:
            return knn_scores(learned[rows], tested), {}

        methods: dict[str, Method] = {"linear_probe": probe, "knn": vote}
        if self.fine_tuning is None:
            return methods
        train, images = self.fine_tuning, self.evaluated[0].select(tested_rows)

        def fine_tune(rows: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, float]]:
            scores = np.zeros((len(tested), len(findings)))  # chance, for a finding without both classes
            learnable = np.flatnonzero(learned[rows].has_both_classes())
            if len(learnable):
                names = [findings[i] for i in learnable]
                scores[:, learnable] = train.score(self.model, records.select(rows), names, images, seed)
            return scores, {}

        return {**methods, "fine_tuning": fine_tune}

    def measure_zero_shot(self, predictions: pd.DataFrame, findings: Sequence[str], labels: np.ndarray) -> dict:
        """The mean AUROC of the evaluation's own scores over the findings, with its interval."""
        scores = np.stack([predictions[f"score_{name}"].to_numpy() for name in findings], axis=1)
        draws = draw_resamples(predictions["patient_id"].tolist(), self.resampling.num_resamples, self.resampling.seed)
        point = bootstrap(labels, scores, np.ones((1, len(labels))))["auroc"][0]
        mean, resampled = mean_over_findings(point, bootstrap(labels, scores, draws)["auroc"])
        return {"auroc": mean, "auroc_ci95": percentile_interval(resampled).tolist()}


def choose_sizes(num_patients: int) -> list[int]:
    """10, 30, 100, 300, ... patients, and last all of them."""
    sizes, size = [], 10
    while size < num_patients:
        sizes.append(size)
        size = 3 * size if str(size)[0] == "1" else size // 3 * 10
    return [*sizes, num_patients]


def measure_points(
    methods: Mapping[str, Method], learned: Learned, labels: np.ndarray, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """
    By method, for each number of patients: `n_patients`, `n_images`, `aurocs` and `one_class` (draws, findings), and
    `chosen`, by setting a list of what the method has chosen in each draw.
    """
    units, unit_of_image = np.unique(learned.patients, return_inverse=True)
    orders = [np.random.default_rng([seed, draw]).permutation(len(units)) for draw in range(DRAWS)]
    sizes = choose_sizes(len(units))
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    with progress(description="learning curve", unit="draw", total=(len(sizes) - 1) * DRAWS + 1) as bar:
        for size in sizes:
            draws = [np.flatnonzero(np.isin(unit_of_image, order[:size])) for order in orders]
            if size == len(units):  # all draws are the same
                draws = draws[:1]
            found: dict[str, list] = {name: [] for name in methods}
            for draw, rows in enumerate(draws):
                for name, score in methods.items():
                    scores, settings = score(rows, seed + draw)
                    found[name].append(([auroc(labels[:, i], scores[:, i]) for i in range(labels.shape[1])], settings))
                bar.update()
            known = {
                "n_patients": size,
                "n_images": float(np.mean([len(rows) for rows in draws])),
                "one_class": np.array([~learned[rows].has_both_classes() for rows in draws]),
            }
            for name, of_draws in found.items():
                chosen = {key: [settings[key] for _, settings in of_draws] for key in of_draws[0][1]}
                points[name].append(
                    {**known, "aurocs": np.array([values for values, _ in of_draws]), "chosen": chosen}
                )
    return points


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
        **point["chosen"],
    }


def find_reached(points: Sequence[Mapping], zero_shot: float) -> int | None:
    """The first number of patients from which on the mean of the draws is at least the zero-shot AUROC."""
    reached = None
    for point in reversed(points):
        if point["auroc"] < zero_shot:
            break
        reached = point["n_patients"]
    return reached
