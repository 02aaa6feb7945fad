"""Deletion: how far a finding's score falls when the hottest patches of its map are blanked.

A map that tells where the score comes from names the patches without which it falls. This needs neither boxes nor
masks, so it works on any labelled images; it says whether a map is faithful to the model, not whether the model is
right. The pixels of the hottest 10 % of the patches are replaced by those of the mean image, and the same is done with
as many random patches (the deletion of Petsiuk et al., RISE, BMVC 2018, at one fraction and against chance).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.averages import bootstrap_means
from evaluation_tier.analyses.grounding.maps import check_gives_maps_of_sentences
from evaluation_tier.models.contract import to_unit_length
from evaluation_tier.models.embedding import Embedders, Outputs, embed_prompts
from evaluation_tier.models.grey_levels import GreyLevels
from evaluation_tier.models.images import check_any_readable
from evaluation_tier.models.processes import is_main_process, merge_entries, merge_rows
from evaluation_tier.models.single_pass import evaluate_models
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.scoring.findings import read_labels, select_findings
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from evaluation_tier.scoring.scores import prompt_directions
from evaluation_tier.statistics.resampling import MIN_PATIENTS, PATIENT_BOOTSTRAP, Resampling
from modeling_tier.maps_tier import cosine_map, map_kinds, similarity_map
from processing_tier.progress import progress
from processing_tier.prompts.loader import Prompts

SHARE = 0.1  # of the patches that is blanked, at least one

NUM_RANDOM = 4  # random sets of patches for each image, whose mean drop is compared

GREY = "grey levels"  # of the model's input, uint8 (batch, height, width)


def evaluate_deletion(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    batch_size: int = 32,
    **options: Any,
) -> dict:
    """
    How far the score of a finding falls on images with it, when the hottest patches of its map are blanked.

    With several processes, see `evaluate_models`.

    Args:
        model: with maps, see `check_gives_maps_of_sentences`.
        processor: the model's.
        dataset: in the schema of `processing_tier.records`.
        findings: see [`Deletion`]; so are `prompts`.
        batch_size: images embedded at once.
        options: the other fields of [`Deletion`].

    Returns:
        See [`Deletion.results`].
    """
    check_gives_maps_of_sentences(model)
    deletion = Deletion(dataset, findings, prompts, **options)
    evaluate_models({"": (model, processor)}, [dataset], [deletion], batch_size)
    return deletion.results()


@dataclass
class Deletion:
    """
    Deletion with each kind of map of one model, as an [`Analysis`].

    Args:
        dataset: in the schema of `processing_tier.records`.
        findings: see `select_findings`.
        prompts: name or path of a prompt file, or the prompts themselves.
        scoring: see `zero_shot_scores`; `"sigmoid"` leaves out the negative sentences.
        min_positives: that a finding needs.
        max_images: of each finding, evenly spaced among the images with it; bounds the time.
        resampling: of patients; its seed is that of the random patches too.
        dataset_name: name of the data in the results.

    Raises:
        ValueError: for a model without maps, fewer than one image, or as `select_findings` and `find_prompts` say.
    """

    dataset: datasets.Dataset
    findings: Sequence[str] | None = None
    prompts: str | Path | Mapping[str, Prompts] = "report"
    scoring: str = "difference"
    min_positives: int = 10
    max_images: int = 50
    resampling: Resampling = PATIENT_BOOTSTRAP
    dataset_name: str = ""

    def __post_init__(self) -> None:
        if self.max_images < 1:
            raise ValueError(f"max_images must be at least 1, but is {self.max_images}.")
        self.chosen, self.left_out = select_findings(self.dataset, self.findings, self.min_positives)
        self.sentences = find_prompts(self.prompts, self.chosen)
        self.asked: dict[int, list[int]] = {}  # row to the findings, ascending
        for i, column in enumerate(read_labels(self.dataset, self.chosen).T):
            positive = np.flatnonzero(column == 1)
            spaced = np.linspace(0, len(positive) - 1, min(len(positive), self.max_images)).round().astype(int)
            for row in positive[spaced].tolist():
                self.asked.setdefault(row, []).append(i)

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> list["DeletedScores"]:
        check_gives_maps_of_sentences(model)
        directions = prompt_directions(*embed_prompts(model, processor, self.sentences), self.scoring)
        self.deleted = DeletedScores(
            model, processor, torch.from_numpy(directions), len(self.dataset), self.asked, self.resampling.seed
        )
        return [self.deleted]

    def results(self) -> dict:
        """
        After the pass: of JSON's own types, undefined numbers None.

        - `findings` (by name), their `mean` (of those of at least 5 patients) and `all_pairs` of image and finding:
          `n_pairs`, `n_patients`, `score` before the deletion, `random`, by how much it falls when random patches are
          blanked, and `maps`. For each kind of map: `hottest`, by how much the score falls when its hottest patches
          are blanked; `difference`, that minus `random`, from the same image; and `difference_sd`, in standard
          deviations of the finding's score over all images, which compares models. Each is `mean` and `ci95`.
        - `protocol`, `dataset`, `n_images`, `versions`.
        """
        pairs = self.deleted.pairs
        check_any_readable(np.isin(list(self.asked), [row for row, _ in pairs]), "finding")
        groups = np.array([finding for _, finding in pairs])
        all_patients = self.dataset["patient_id"][:]
        patients = np.array([all_patients[row] for row, _ in pairs])
        columns = tabulate(self.deleted)
        keys, values = list(columns), np.stack(list(columns.values()), axis=1)
        means, intervals = bootstrap_means(values, groups, len(self.chosen), patients, self.resampling)

        def describe(which: int, members: np.ndarray) -> dict:
            group: dict[str, Any] = {"n_pairs": int(members.sum()), "n_patients": len(set(patients[members]))}
            for key, mean, interval in zip(keys, means[which], intervals[which], strict=True):
                place = group
                for step in key[:-1]:
                    place = place.setdefault(step, {})
                place[key[-1]] = {"mean": mean, "ci95": interval}
            return group

        findings = {finding: describe(i, groups == i) for i, finding in enumerate(self.chosen)}
        in_mean = [i for i, finding in enumerate(self.chosen) if findings[finding]["n_patients"] >= MIN_PATIENTS]
        return to_json(
            {
                "dataset": self.dataset_name,
                "protocol": {
                    "prompts": prompts_name(self.prompts),
                    "scoring": self.scoring,
                    "share_blanked": SHARE,
                    "blanked_with": "the mean image",
                    "random_sets": NUM_RANDOM,
                    "max_images_per_finding": self.max_images,
                    **self.resampling.describe(patients.tolist(), "95 % percentile bootstrap over patients"),
                    "min_positives": self.min_positives,
                    "findings_left_out": self.left_out,
                },
                "n_images": len({row for row, _ in pairs}),
                "findings": findings,
                "mean": {
                    "findings": [self.chosen[i] for i in in_mean],
                    **describe(len(self.chosen), np.isin(groups, in_mean)),
                },
                "all_pairs": describe(len(self.chosen) + 1, np.ones(len(groups), dtype=bool)),
                "versions": installed_versions(),
            }
        )


class Blanked(NamedTuple):
    """One image with some of its patches blanked, to be scored."""

    image: int  # its place in the batch
    finding: int  # -1 for random patches, which all findings share
    column: int  # of the scores
    patches: np.ndarray  # (rows, columns) bool


class DeletedScores:
    """
    One model's scores of images with a finding, whole and with patches blanked: a [`Consumer`] of its pass.

    Patches are blanked when all images are read, because the mean image is that of all of them.

    Args:
        model: with maps.
        processor: the model's.
        directions: (findings, dim), see `prompt_directions`.
        num_images: of the data set.
        asked: row to its findings.
        seed: of the random patches.

    Attributes:
        scores: (images, findings) of all images; NaN for an image that does not decode.
        kinds: of the model's maps.
        pairs: (row, finding) to the scores of the image, of it without random patches (their mean), and without the
            hottest patches of each kind of map.
    """

    rows: np.ndarray | None = None  # all, for the mean image and the spread of the scores
    patches = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        directions: torch.Tensor,
        num_images: int,
        asked: Mapping[int, Sequence[int]],
        seed: int,
    ):
        self.model: PreTrainedModel | None = model  # until the pass is over
        self.grey_levels = GreyLevels(model, processor)
        self.directions = directions.to(model.device, torch.float32)
        self.kinds = map_kinds(model.config)
        self.asked, self.seed = asked, seed
        self.scores = np.full((num_images, len(directions)), np.nan)
        self.batches: list[tuple[list[int], np.ndarray]] = []  # rows with a finding, and their grey levels
        self.total: np.ndarray | None = None  # sum of the grey levels of the images, (height, width)
        self.count = 0
        self.pairs: dict[tuple[int, int], np.ndarray] = {}
        self.embedders: Embedders = {GREY: lambda batch: {GREY: self.grey_levels.of_pixels(batch.pixels)}}

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        self.scores[rows] = (outputs["image"] @ self.directions.T).cpu().numpy()
        levels = outputs[GREY].cpu().numpy()
        total = levels.sum(axis=0, dtype=np.float64)  # whole numbers: no rounding
        self.total = total if self.total is None else self.total + total
        self.count += len(rows)
        kept = [i for i, row in enumerate(rows.tolist()) if row in self.asked]
        if kept:
            self.batches.append((rows[kept].tolist(), levels[kept]))

    def finish(self, own: np.ndarray) -> None:
        self.scores = merge_rows(self.scores, own)
        shares = merge_entries({} if self.total is None else {int(own[0]): (self.total, self.count)}).values()
        mean = (sum(total for total, _ in shares) / sum(count for _, count in shares)).round().astype(np.uint8)
        bar = progress(self.batches, "blanking patches", "step", silent=not is_main_process())
        for rows, levels in bar:
            self.pairs |= self.score_batch(rows, levels, mean)
        self.pairs = merge_entries(self.pairs)
        self.batches, self.embedders, self.model = [], {}, None

    def score_batch(self, rows: list[int], levels: np.ndarray, mean: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        """The `pairs` of some images, (images, height, width) grey levels."""
        pixels = self.grey_levels.to_pixels(list(levels))
        if "direct" in self.kinds:
            outputs, patch_map, direct_map = self.model.encode_direct(pixels)
        else:
            outputs, patch_map = self.model.encode_images(pixels)
        whole = self.score(outputs.pooler_output)
        maps = [
            cosine_map(self.directions, direct_map).cpu().numpy()
            if kind == "direct"
            else similarity_map(self.directions, patch_map, kind).cpu().numpy()
            for kind in self.kinds
        ]
        grid = maps[0].shape[-2:]
        values = {(row, finding): np.zeros(2 + len(maps)) for row in rows for finding in self.asked[row]}
        for i, row in enumerate(rows):
            for finding in self.asked[row]:
                values[row, finding][0] = whole[i, finding]
        blanked = []
        for i, row in enumerate(rows):
            rng = np.random.default_rng([self.seed, row])
            orders = [rng.permutation(grid[0] * grid[1]) for _ in range(NUM_RANDOM)]
            blanked += [Blanked(i, -1, 1, first_patches(order, grid)) for order in orders]
            for finding in self.asked[row]:
                for kind, of_kind in enumerate(maps):
                    heat = of_kind[i, finding].ravel()[orders[0]]  # in random order, which decides ties
                    hottest = orders[0][np.argsort(-heat, kind="stable")]
                    blanked.append(Blanked(i, finding, 2 + kind, first_patches(hottest, grid)))
        for start in range(0, len(blanked), max(len(rows), 1)):
            part = blanked[start : start + len(rows)]
            centers = self.model.patch_centers
            pictures = [blank(levels[item.image], item.patches, mean, centers) for item in part]
            features = self.model.get_image_features(pixel_values=self.grey_levels.to_pixels(pictures)).pooler_output
            for item, scores in zip(part, self.score(features), strict=True):
                row = rows[item.image]
                for finding in self.asked[row] if item.finding < 0 else [item.finding]:
                    share = NUM_RANDOM if item.finding < 0 else 1
                    values[row, finding][item.column] += scores[finding] / share
        return values

    def score(self, features: torch.Tensor) -> np.ndarray:
        """Scores (images, findings) of image embeddings that are not normalised."""
        return (to_unit_length(features) @ self.directions.T).cpu().numpy().astype(np.float64)


def tabulate(deleted: DeletedScores) -> dict[tuple[str, ...], np.ndarray]:
    """All averaged numbers, (pairs,), by their place in [`Deletion.results`]."""
    scores = np.stack(list(deleted.pairs.values()))  # (pairs, whole + random + kinds)
    spread = np.nanstd(deleted.scores, axis=0)[[finding for _, finding in deleted.pairs]]  # (pairs,)
    columns: dict[tuple[str, ...], np.ndarray] = {("score",): scores[:, 0], ("random",): scores[:, 0] - scores[:, 1]}
    for kind, without_hottest in zip(deleted.kinds, scores[:, 2:].T, strict=True):
        hottest = scores[:, 0] - without_hottest
        difference = hottest - columns["random",]
        columns["maps", kind, "hottest"] = hottest
        columns["maps", kind, "difference"] = difference
        relative = np.divide(difference, spread, out=np.full_like(difference, np.nan), where=spread > 0)
        columns["maps", kind, "difference_sd"] = relative
    return columns


def first_patches(order: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The first 10 % of the patches in an order, at least one, as (rows, columns) bool."""
    chosen = np.zeros(grid[0] * grid[1], dtype=bool)
    chosen[order[: max(1, round(SHARE * len(order)))]] = True
    return chosen.reshape(grid)


def blank(levels: np.ndarray, patches: np.ndarray, filling: np.ndarray, centers: tuple[float, float]) -> np.ndarray:
    """
    A grey image whose pixels in the chosen patches are those of another one. A pixel belongs to the nearest patch.

    Args:
        levels (`np.ndarray`): (height, width).
        patches (`np.ndarray`): (rows, columns) bool, the patches of the image.
        filling (`np.ndarray`): (height, width).
        centers (`tuple[float, float]`): Where the patches lie, `model.patch_centers`.
    """
    first, step = centers
    rows, columns = (
        np.ceil((np.arange(side) + 0.5 - first) / step - 0.5).clip(0, number - 1).astype(int)
        for side, number in zip(levels.shape, patches.shape, strict=True)
    )
    return np.where(patches[rows[:, None], columns], filling, levels)
