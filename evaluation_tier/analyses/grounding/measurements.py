"""All metrics of all maps, separately for each marked region."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.analyses.grounding.baselines import PRIOR_SIDE, centre_map, position_priors
from evaluation_tier.analyses.grounding.map_metrics import dilate, measure_map
from evaluation_tier.analyses.grounding.map_names import COSINES, PLACES, baseline_names, map_names
from evaluation_tier.analyses.grounding.maps import PatchMaps
from evaluation_tier.analyses.grounding.regions import Case, Region, read_region
from evaluation_tier.models.images import check_any_readable
from processing_tier.progress import progress

logger = logging.getLogger(__name__)

BEST = ("iou_best", "dice_best")

MAX_OUTSIDE = 0.05  # share of the boxes that may reach beyond their image


class Measurements(NamedTuple):
    """Every case of a data set that could be measured, one row each."""

    kinds: tuple[str, ...]  # of maps
    cases: list[Case]
    image_ids: list[str]
    patients: np.ndarray  # (cases,) str
    areas: np.ndarray  # (cases,): share of the image
    num_marks: np.ndarray  # (cases,): boxes and masks
    chance: np.ndarray  # (cases,): how often a random point hits
    values: np.ndarray  # (cases, maps and baselines, metrics)
    curves: np.ndarray  # (cases, maps and baselines, 2, thresholds)
    left_out: dict[str, Any]  # and how many images the average map is of

    @property
    def maps(self) -> tuple[str, ...]:
        return map_names(self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """Maps and baselines, in the order of the columns."""
        return (*self.maps, *baseline_names(self.kinds))


def run_threads(function: Callable, items: Iterable, description: str) -> Iterator:
    """The results of a function for each item, in order; numpy and torch let several threads run at once."""
    items = list(items)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = pool.map(function, items)
        yield from progress(results, description, "image", len(items))
    finally:
        pool.shutdown(cancel_futures=True)


def measure_regions(
    maps: PatchMaps, dataset: datasets.Dataset, image_processor: BaseImageProcessor, tolerance: int = 0
) -> Measurements:
    """All metrics of all maps and baselines, separately for each case; see `evaluate_grounding`.

    Args:
        maps: after its pass.
        dataset: that `maps` are of.
        image_processor: maps grids back to the pixels of the stored image.
        tolerance: see `pointing_game`.
    """
    dataset = dataset.with_format(None)
    marks = dataset.select_columns([name for name in ("boxes", "masks") if name in dataset.column_names])
    grids = maps.grids()
    check_any_readable(np.array([row in maps.sizes for row in maps.cases_of]), "box or mask")
    cases_of = {row: list(group) for row, group in itertools.groupby(grids, key=lambda case: case.row)}
    coverage, num_marks, left_out = survey_regions(cases_of, maps.sizes, marks)
    measured = list(coverage)
    all_patients, image_ids = dataset["patient_id"][:], dataset["image_id"][:]
    patients = [all_patients[case.row] for case in measured]
    priors = position_priors(np.stack(list(coverage.values())), [case.finding for case in measured], patients)
    prior_of = dict(zip(measured, priors, strict=True))
    of_model = [name for name in (*map_names(maps.kinds), *baseline_names(maps.kinds)) if name not in PLACES]
    to_pixels = image_processor.post_process_similarity_map

    def measure_image(row: int) -> list[tuple]:
        height, width = maps.sizes[row]
        results = []
        for case in (case for case in cases_of[row] if case in prior_of):
            mask = read_region(marks[row], case, height, width).mask
            hit_mask = dilate(mask, tolerance)
            similarities = torch.from_numpy(np.stack([grids[case][name] for name in of_model]))[None]
            similarities = to_pixels(similarities, [(height, width)], maps.patch_centers)[0].numpy()
            prior = torch.from_numpy(prior_of[case])[None, None]
            prior = F.interpolate(prior, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
            measures = [
                measure_map(similarity, mask, hit_mask, is_cosine=name in COSINES)
                for name, similarity in zip(of_model, similarities, strict=True)
            ]
            measures += [measure_map(m, mask, hit_mask, is_cosine=False) for m in (prior, centre_map(height, width))]
            values, curves = zip(*measures, strict=True)
            results.append((mask.mean(), hit_mask.mean(), np.stack(values), np.stack(curves)))
        return results

    results = list(itertools.chain.from_iterable(run_threads(measure_image, cases_of, "measuring maps")))
    areas, chance, values, curves = (np.stack(column) for column in zip(*results, strict=True))
    skipped = sorted({image_ids[case.row] for case in maps.cases if case not in grids})
    return Measurements(
        maps.kinds,
        measured,
        [image_ids[case.row] for case in measured],
        np.array(patients),
        areas,
        np.array([num_marks[case] for case in measured]),
        chance,
        values,
        curves,
        {"reference_images": maps.num_reference, "images_skipped": skipped, **left_out},
    )


def survey_regions(
    cases_of: Mapping[int, Sequence[Case]], sizes: Mapping[int, tuple[int, int]], marks: datasets.Dataset
) -> tuple[dict[Case, np.ndarray], dict[Case, int], dict[str, int]]:
    """Check all regions before measuring any.

    Args:
        cases_of: row of the data set to the cases of its image.
        sizes: row to (height, width) of its image.
        marks: the columns `boxes` and `masks`.

    Returns:
        For each case whose region has a pixel inside its image, the share of each of 32 x 32 places that the region
        covers, and the number of its boxes and masks; then the protocol's statement about the others.

    Raises:
        ValueError: when more than 5 % of the boxes reach beyond their image, or all regions are left out.
    """

    def read_regions(row: int) -> tuple[list[Region], list[np.ndarray | None]]:
        regions = [read_region(marks[row], case, *sizes[row]) for case in cases_of[row]]
        covers = [
            F.adaptive_avg_pool2d(torch.from_numpy(region.mask)[None].float(), PRIOR_SIDE)[0].numpy()
            if region.mask.any()
            else None
            for region in regions
        ]
        # masks are read again where they are needed: those of all images would not fit in memory
        return [region._replace(mask=None) for region in regions], covers

    coverage, num_marks = {}, {}
    total_marks = num_outside = num_empty = 0
    found = zip(cases_of.values(), run_threads(read_regions, cases_of, "reading regions"), strict=True)
    for asked, (regions, covers) in found:
        for case, region, cover in zip(asked, regions, covers, strict=True):
            total_marks += region.num_marks
            num_outside += region.num_outside
            num_empty += cover is None
            if cover is not None:
                coverage[case], num_marks[case] = cover, region.num_marks
    if num_outside > MAX_OUTSIDE * total_marks:
        raise ValueError(
            f"{num_outside} of {total_marks} boxes and masks are empty or reach beyond their image, more than 5 %. "
            "Boxes must be in pixels of the stored image: scale them (the reader chestxray14 has the option "
            "image_size) or repair them."
        )
    if num_outside or num_empty:
        logger.warning(
            "%d boxes reach beyond their image and are cut; %d regions lie outside it and are left out.",
            num_outside,
            num_empty,
        )
    if not coverage:
        raise ValueError("All regions lie outside their images: repair the boxes and masks.")
    return coverage, num_marks, {"boxes_beyond_image": num_outside, "regions_without_area": num_empty}


def best_thresholds(measurements: Measurements) -> dict[str, np.ndarray]:
    """For each finding and map, which of `SCALED_THRESHOLDS` has the highest mean IoU, and which the highest Dice.

    Returns:
        (maps and baselines, 2) int for each finding; the lowest on a tie, -1 where nothing is defined.
    """
    best = {}
    findings = np.array([case.finding for case in measurements.cases])
    for finding in sorted(set(findings)):
        curves = measurements.curves[findings == finding]  # (cases, maps, 2, thresholds)
        defined = ~np.isnan(curves).any(axis=(2, 3))[:, :, None, None]
        means = np.where(defined, curves, 0).sum(axis=0)  # as good as means for what is highest
        best[finding] = np.where(defined.any(axis=0)[..., 0], means.argmax(axis=-1), -1)
    return best
