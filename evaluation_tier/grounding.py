"""Grounding: how well the similarity maps of a model lie on the regions that radiologists marked.

A *map* is a float array (height, width), higher where the model sees a finding more, NaN where it never saw the image
(what the image processor's crop cuts off). A *region* is a bool array (height, width): the union of all boxes and
masks of one finding, or of one sentence, on one image. Both are in the pixels of the image as it is stored, so no
number depends on the size at which a model reads it.

The metrics of one map are in `map_metrics.py`.
"""

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.embedding import check_finite, embed_prompts, read_batches
from evaluation_tier.loading import is_classifier
from evaluation_tier.map_metrics import FIXED_THRESHOLDS, METRICS, SCALED_THRESHOLDS, dilate, measure_map
from evaluation_tier.metrics import divide
from evaluation_tier.protocols import find_prompts, prompts_name
from evaluation_tier.report import installed_versions, to_json
from evaluation_tier.resampling import (
    MIN_PATIENTS,
    check_num_resamples,
    count_units,
    describe_intervals,
    number_units,
    percentile_interval,
)
from modeling_tier.maps_tier import similarity_map
from processing_tier.masks import finding_mask
from processing_tier.prompts import Prompts
from processing_tier.records import check_disjoint_patients

logger = logging.getLogger(__name__)

MAPS = ("positive", "difference", "above_average")
BASELINES = ("average_positive", "average", "prior", "centre")
COSINES = (*MAPS, *BASELINES[:2])  # thresholds of cosines say nothing of the others
BEST = ("iou_best", "dice_best")
REFERENCE_IMAGES = 100  # whose average map is taken; more change it little
PRIOR_SIDE = 32  # places of the position prior along each side of an image
MAX_OUTSIDE = 0.05  # share of the boxes that may reach beyond their image


class Case(NamedTuple):
    """What is asked of one image: a finding, or one sentence about it."""

    row: int  # of the data set
    finding: str
    phrase: str  # "" where the finding's own sentences are asked


class Region(NamedTuple):
    """Where the answer to a case lies."""

    mask: np.ndarray | None  # bool (height, width); None where only the counts are kept
    num_marks: int  # boxes and masks that it consists of
    num_outside: int  # boxes that reach beyond the image


def boxes_to_mask(boxes: Sequence[Mapping], height: int, width: int) -> np.ndarray:
    """The union of boxes: a pixel is inside where its centre is.

    Args:
        boxes: dicts with `x`, `y` (top left corner), `w` and `h`, in pixels.

    Returns:
        bool (height, width).
    """
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        top, bottom = (min(max(math.ceil(edge - 0.5), 0), height) for edge in (box["y"], box["y"] + box["h"]))
        left, right = (min(max(math.ceil(edge - 0.5), 0), width) for edge in (box["x"], box["x"] + box["w"]))
        mask[top:bottom, left:right] = True
    return mask


def is_outside(box: Mapping, height: int, width: int) -> bool:
    """Whether a box reaches beyond its image by more than a pixel, or is no box at all."""
    right, bottom = box["x"] + box["w"], box["y"] + box["h"]
    return box["w"] <= 0 or box["h"] <= 0 or min(box["x"], box["y"], width - right, height - bottom) < -1


def read_cases(dataset: datasets.Dataset, findings: Sequence[str] | None = None, phrases: bool = False) -> list[Case]:
    """What the boxes and masks of a data set let one ask, image by image, in their order.

    Args:
        dataset: with the column `boxes` or `masks`.
        findings: names as in those columns; by default all of them.
        phrases: ask each sentence that boxes carry by itself (MS-CXR), and nothing that has none.

    Raises:
        ValueError: for a data set without boxes and masks, an unknown finding, or boxes without sentences.
    """
    columns = [column for column in ("boxes", "masks") if column in dataset.column_names]
    if not columns:
        raise ValueError(
            "The data set has neither boxes nor masks: grounding is measured on one that has, such as ms_cxr, "
            "chexlocalize, rsna or the phantom."
        )
    cases: dict[Case, None] = {}
    for row, record in enumerate(dataset.with_format(None).select_columns(columns)):
        for column in columns:
            for mark in record[column] or ():
                phrase = (mark.get("phrase") or "") if phrases else ""
                if phrase or not phrases:
                    cases[Case(row, mark["finding"], phrase)] = None
    there = sorted({case.finding for case in cases})
    if not there:
        raise ValueError(
            f"None of the {len(dataset)} images has a box{' with a sentence' if phrases else ' or a mask'}: "
            "use another split or data set."
        )
    for finding in findings or ():
        if finding not in there:
            raise ValueError(f"No box or mask is of {finding!r}: there are some of {', '.join(map(repr, there))}.")
    return [case for case in cases if findings is None or case.finding in findings]


def read_region(record: Mapping, case: Case, height: int, width: int) -> Region:
    """The union of what the boxes and masks of a record mark as one case.

    Raises:
        ValueError: for a mask of another size than the image.
    """
    masks = [] if case.phrase else [m for m in record.get("masks") or () if m["finding"] == case.finding]
    boxes = [
        box
        for box in record.get("boxes") or ()
        if box["finding"] == case.finding and (not case.phrase or box["phrase"] == case.phrase)
    ]
    for mask in masks:
        if (mask["height"], mask["width"]) != (height, width):
            raise ValueError(
                f"Image {case.row} of the data set (counted from 0) has {height}x{width} pixels (height x width), but "
                f"a mask of it {mask['height']}x{mask['width']}: resize both alike, as tier-prepare does."
            )
    region = boxes_to_mask(boxes, height, width)
    drawn = finding_mask(masks, case.finding)
    if drawn is not None:
        region |= drawn
    return Region(region, len(boxes) + len(masks), sum(is_outside(box, height, width) for box in boxes))


def check_gives_maps(model: PreTrainedModel) -> None:
    """ValueError for a model without similarity maps."""
    if is_classifier(model) or not hasattr(model, "get_patch_map"):
        raise ValueError(
            f"A {type(model).__name__} gives no similarity maps of sentences: grounding needs a TIER model "
            "(TierCLIPModel or TierDualEncoderModel)."
        )


def compute_grids(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompts],
    batch_size: int = 32,
) -> tuple[dict[Case, np.ndarray], int]:
    """The maps of each case on the model's own grid of patches; every image goes through the model once.

    - `positive`: the patch's cosine to the positive sentences (averaged and normalised, as `embed_prompts` does), or
      to the case's phrase; see `similarity_map`.
    - `difference`: minus its cosine to the negative sentences of the finding; what the pipeline draws.
    - `above_average`: the difference minus that of the average image; what the figures of `plots.py` draw.
    - `average_positive`, `average`: positive and difference of the average image.

    The average image is that of up to 100 images of the data set, evenly spaced, whatever their labels. Where an
    evaluated image is one of them, its own map is part of the average that is taken from it.

    Args:
        dataset: with the column `image`.
        cases: as `read_cases` gives them.
        prompts: of each finding.

    Returns:
        (5, rows, columns) float32 for each case whose image decodes, in the order of `MAPS` and the two averages; and
        the number of images that the average was taken over.

    Raises:
        ValueError: for a model without maps, and as `read_batches`.
    """
    check_gives_maps(model)
    texts = {
        (case.finding, case.phrase): Prompts([case.phrase], prompts[case.finding].negative)
        if case.phrase
        else prompts[case.finding]
        for case in cases
    }
    place = {key: i for i, key in enumerate(texts)}
    embeds = np.stack(embed_prompts(model, processor, texts))  # (2, texts, dim)
    embeds = torch.from_numpy(embeds).to(model.device)
    cases_of = {row: list(group) for row, group in itertools.groupby(cases, key=lambda case: case.row)}
    reference = np.linspace(0, len(dataset) - 1, min(len(dataset), REFERENCE_IMAGES)).round().astype(int)
    rows = np.union1d(reference, np.array(list(cases_of), dtype=int))
    is_reference = np.isin(rows, reference)

    cosines, total, num_reference = {}, 0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        part, num_images = dataset.select(rows), len(dataset)
        for indices, pixels in read_batches(model, processor, part, batch_size, "mapping images", num_images):
            patch_maps = check_finite(model.get_patch_map(pixels))  # (images, rows, columns, dim)
            in_average = torch.from_numpy(is_reference[indices]).to(patch_maps.device)
            total = total + F.normalize(patch_maps[in_average], dim=-1).double().sum(dim=0)
            num_reference += int(in_average.sum())
            for row, patch_map in zip(rows[indices].tolist(), patch_maps, strict=True):
                asked = cases_of.get(row, [])
                if asked:
                    those = embeds[:, [place[case.finding, case.phrase] for case in asked]]
                    grids = similarity_map(those, patch_map[None])[0].transpose(0, 1).cpu().numpy()
                    cosines.update(zip(asked, grids, strict=True))
        average = torch.einsum("sfd,rcd->fsrc", embeds.double(), total / max(num_reference, 1)).float().cpu().numpy()
    model.train(was_training)

    grids = {}
    for case, (positive, negative) in cosines.items():
        average_positive, average_negative = average[place[case.finding, case.phrase]]
        usual = average_positive - average_negative
        grids[case] = np.stack([positive, positive - negative, positive - negative - usual, average_positive, usual])
    return grids, num_reference


def centre_map(height: int, width: int) -> np.ndarray:
    """A Gaussian in the middle of the image whose standard deviations are a quarter of its height and width."""
    rows, columns = (np.square(((np.arange(side) + 0.5) / side - 0.5) / 0.25) for side in (height, width))
    return np.exp(-0.5 * (rows[:, None] + columns)).astype(np.float32)


def position_priors(coverage: np.ndarray, findings: Sequence[str], patients: Sequence[str]) -> np.ndarray:
    """For each case, where the finding lies on average in the other patients.

    Args:
        coverage: (cases, side, side): share of each place of the image that the region covers.
        findings, patients: (cases,).

    Returns:
        (cases, side, side); NaN where no other patient has the finding.
    """
    priors = np.full_like(coverage, np.nan)
    findings, patients = np.asarray(findings), np.asarray(patients)
    for i, (finding, patient) in enumerate(zip(findings, patients, strict=True)):
        others = (findings == finding) & (patients != patient)
        if others.any():
            priors[i] = coverage[others].mean(axis=0)
    return priors


class Measurements(NamedTuple):
    """Every case of a data set that could be measured, one row each."""

    cases: list[Case]
    image_ids: list[str]
    patients: np.ndarray  # (cases,) str
    areas: np.ndarray  # (cases,): share of the image
    num_marks: np.ndarray  # (cases,): boxes and masks
    chance: np.ndarray  # (cases,): how often a random point hits
    values: np.ndarray  # (cases, maps and baselines, metrics)
    curves: np.ndarray  # (cases, maps and baselines, 2, thresholds)
    left_out: dict[str, Any]  # and how many images the average map is of


def run_threads(function: Callable, items: Iterable, description: str) -> Iterator:
    """The results of a function for each item, in order; numpy and torch let several threads run at once."""
    items = list(items)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results = pool.map(function, items)
        yield from tqdm(results, description, len(items), leave=False, delay=3, disable=None, unit="image")
    finally:
        pool.shutdown(cancel_futures=True)


def measure_cases(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    cases: Sequence[Case],
    tolerance: int = 0,
    batch_size: int = 32,
) -> Measurements:
    """All metrics of all maps and baselines, each case on its own; see `evaluate_grounding`."""
    dataset = dataset.with_format(None)
    grids, num_reference = compute_grids(model, processor, dataset, cases, prompts, batch_size)
    image_processor = processor.image_processor
    groups = {row: list(group) for row, group in itertools.groupby(grids, key=lambda case: case.row)}
    images = dataset.select_columns("image")
    marks = dataset.select_columns([name for name in ("boxes", "masks") if name in dataset.column_names])

    def read_regions(row: int) -> tuple[tuple[int, int], list[Region], list[np.ndarray | None]]:
        width, height = image_processor.read(images[row]["image"]).info["original_size"]
        regions = [read_region(marks[row], case, height, width) for case in groups[row]]
        covers = [
            F.adaptive_avg_pool2d(torch.from_numpy(region.mask)[None].float(), PRIOR_SIDE)[0].numpy()
            if region.mask.any()
            else None
            for region in regions
        ]
        # masks are read again where they are needed: those of all images would not fit in memory
        return (height, width), [region._replace(mask=None) for region in regions], covers

    sizes, coverage, num_marks = {}, {}, {}
    total_marks = num_outside = num_empty = 0
    found = zip(groups.items(), run_threads(read_regions, groups, "reading regions"), strict=True)
    for (row, asked), (size, regions, covers) in found:
        sizes[row] = size
        for case, region, cover in zip(asked, regions, covers, strict=True):
            total_marks += region.num_marks
            num_outside += region.num_outside
            num_empty += cover is None
            if cover is not None:
                coverage[case], num_marks[case] = cover, region.num_marks
    if num_outside > MAX_OUTSIDE * total_marks:
        raise ValueError(
            f"{num_outside} of {total_marks} boxes and masks have no area or reach beyond their image, more than 5 %: "
            "boxes must be in pixels of the image as it is stored; scale them (the reader chestxray14 has the option "
            "image_size) or repair them."
        )
    if num_outside or num_empty:
        logger.warning(
            "%d boxes reach beyond their image and are cut; %d regions have no pixel inside it and are left out.",
            num_outside,
            num_empty,
        )
    if not coverage:
        raise ValueError("No region has a pixel inside its image: repair the boxes and masks.")
    measured = list(coverage)
    all_patients = dataset["patient_id"][:]
    patients = [all_patients[case.row] for case in measured]
    priors = position_priors(np.stack(list(coverage.values())), [case.finding for case in measured], patients)
    prior_of = dict(zip(measured, priors, strict=True))

    def measure_image(row: int) -> list[tuple]:
        height, width = sizes[row]
        results = []
        for case in groups[row]:
            if case not in prior_of:
                continue
            mask = read_region(marks[row], case, height, width).mask
            hit_mask = dilate(mask, tolerance)
            maps = torch.from_numpy(grids[case])[None]
            maps = image_processor.post_process_similarity_map(maps, [(height, width)])[0].numpy()
            prior = torch.from_numpy(prior_of[case])[None, None]
            prior = F.interpolate(prior, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
            measures = [measure_map(similarity, mask, hit_mask) for similarity in maps]
            measures += [measure_map(m, mask, hit_mask, is_cosine=False) for m in (prior, centre_map(height, width))]
            values, curves = zip(*measures, strict=True)
            results.append((mask.mean(), hit_mask.mean(), np.stack(values), np.stack(curves)))
        return results

    results = list(itertools.chain.from_iterable(run_threads(measure_image, groups, "measuring maps")))
    areas, chance, values, curves = (np.stack(column) for column in zip(*results, strict=True))
    image_ids = dataset["image_id"][:]
    skipped = sorted({image_ids[case.row] for case in cases if case not in grids})
    return Measurements(
        measured,
        [image_ids[case.row] for case in measured],
        np.array(patients),
        areas,
        np.array([num_marks[case] for case in measured]),
        chance,
        values,
        curves,
        {
            "reference_images": num_reference,
            "images_skipped": skipped,
            "boxes_beyond_image": num_outside,
            "regions_without_area": num_empty,
        },
    )


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


def evaluate_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    findings: Sequence[str] | None = None,
    phrases: bool = False,
    threshold_dataset: datasets.Dataset | None = None,
    tolerance: int = 0,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dataset_name: str = "",
) -> dict:
    """How well a model's maps lie on the marked regions, beside what needs no model, with intervals.

    Metrics, for each region (one finding, or one sentence, on one image), then averaged: see in `map_metrics`
    `pointing_game`, `pixel_auroc`, `contrast_to_noise` (`cnr` as published, and `signed_cnr`), `overlap` and
    `top_percent_overlap`.
    `miou_cosine` is the mean IoU at the thresholds 0.1 to 0.5 of the map as it is (BioViL: Boecking et al., ECCV
    2022); `miou_scaled` and `dice_scaled` are means at the same of the map scaled to 0..1; `iou_best` and `dice_best`
    are taken at the best of 0.05, 0.10 to 0.95 of the scaled map, one per finding and per map or baseline, as
    CheXlocalize does (Saporta et al. 2022). It is chosen on `threshold_dataset`; without one on the evaluated regions
    themselves, and they are then called `iou_best_optimistic` and `dice_best_optimistic`.

    Maps: see `compute_grids`. Baselines: `average` (and `average_positive`, which goes with the map `positive`), the
    same map for every image; `prior`, the mean region of the finding in the other patients; `centre`, a Gaussian;
    `random`, a random point, for the pointing game.

    Args:
        dataset: with `image`, `image_id`, `patient_id` and `boxes` or `masks`, in the schema of `records.py`.
        prompts: name or path of a prompt file, or the prompts themselves.
        findings: names as in boxes and masks; by default all of them.
        phrases: take the sentences that boxes carry in place of the positive prompts (MS-CXR).
        threshold_dataset: where the best thresholds are chosen; of other patients.
        tolerance: see `pointing_game`, in pixels of the stored image.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`. Differences are resampled as
            such, so their intervals are paired. Fewer than 5 patients give none.
        dataset_name: what the results call the data.

    Returns:
        Of JSON's own types, undefined numbers None:

        - `findings` (by name), the `mean` over those of at least 5 patients, and `all_regions` each have `n_images`,
          `n_regions`, `n_patients`, `area` (mean share of the image), `maps` and `baselines` (name to metric to `mean`
          and `ci95`), and `differences` (map to baseline to the same of map minus baseline). A finding also has the
          best `thresholds` of each map and baseline, and `curves`: mean IoU and Dice at every threshold.
        - `regions`: one entry per region with its `row` in `dataset`, its place `case` among `read_cases`, and the
          metrics of the maps.
        - `undefined`: how many regions lack a metric; `protocol`, `dataset`, `n_images`, `n_regions`, `versions`.

    Raises:
        ValueError: for a model without maps, data without boxes and masks, boxes beyond their images (more than 5 %),
            masks of another size than their image, missing prompts, or patients who are in both data sets.
    """
    check_gives_maps(model)
    check_num_resamples(n_bootstrap)
    cases = read_cases(dataset, findings, phrases)
    names = sorted({case.finding for case in cases})
    described, prompts = prompts_name(prompts), find_prompts(prompts, names)
    if threshold_dataset is not None:
        check_disjoint_patients(evaluated=dataset, thresholds=threshold_dataset)
    measured = measure_cases(model, processor, dataset, prompts, cases, tolerance, batch_size)

    optimistic = threshold_dataset is None
    chosen, metric_names = best_thresholds(measured), (*METRICS, *(f"{name}_optimistic" for name in BEST))
    if not optimistic:
        others = read_cases(threshold_dataset, None, phrases)
        others = [case for case in others if case.finding in names]
        if not others:
            raise ValueError("The data that choose the thresholds have no box or mask of the evaluated findings.")
        apart = measure_cases(model, processor, threshold_dataset, prompts, others, tolerance, batch_size)
        chosen, metric_names = best_thresholds(apart), (*METRICS, *BEST)

    summary = summarize(measured, names, cases, chosen, metric_names, n_bootstrap, seed)
    protocol = {
        "prompts": "the sentences of the boxes" if phrases else described,
        "best_thresholds": f"highest mean on {'the evaluated regions' if optimistic else 'a split apart'}",
        "phrases": phrases,
        "tolerance": tolerance,
        "fixed_thresholds": FIXED_THRESHOLDS,
        "intervals": describe_intervals(measured.patients, "95 % percentile bootstrap over patients"),
        "n_bootstrap": n_bootstrap,
        "seed": seed,
        "n_patients": len(set(measured.patients)),
        **measured.left_out,
    }
    return to_json({"dataset": dataset_name, "protocol": protocol, **summary, "versions": installed_versions()})


def summarize(
    measured: Measurements,
    names: Sequence[str],
    cases: Sequence[Case],
    chosen: Mapping[str, np.ndarray],
    metric_names: Sequence[str],
    n_bootstrap: int,
    seed: int,
) -> dict:
    """The numbers of `evaluate_grounding`: of each finding in `names`, of their mean, of all regions, and of each."""
    keys, values = tabulate(measured, chosen, metric_names)
    groups = np.array([names.index(case.finding) for case in measured.cases])
    means, intervals = bootstrap_means(values, groups, len(names), measured.patients, n_bootstrap, seed)
    patients, rows = measured.patients, np.array([case.row for case in measured.cases])

    def describe(which: int, members: np.ndarray) -> dict:
        group = {
            "n_images": len(set(rows[members])),
            "n_regions": int(members.sum()),
            "n_patients": len(set(patients[members])),
            "area": measured.areas[members].mean() if members.any() else float("nan"),
        }
        for key, mean, interval in zip(keys, means[which], intervals[which], strict=True):
            *path, metric = key
            place = group
            for step in path:
                place = place.setdefault(step, {})
            place[metric] = {"mean": mean, "ci95": interval}
        return group

    results = {finding: describe(i, groups == i) for i, finding in enumerate(names)}
    in_mean = [finding for finding in names if results[finding]["n_patients"] >= MIN_PATIENTS]
    for i, finding in enumerate(names):
        curves = measured.curves[groups == i]
        for j, name in enumerate((*MAPS, *BASELINES)):
            known = curves[~np.isnan(curves[:, j]).any(axis=(1, 2)), j]
            steps = chosen[finding][j] if finding in chosen else (-1, -1)
            thresholds = [SCALED_THRESHOLDS[step] if step >= 0 else None for step in steps]
            results[finding].setdefault("thresholds", {})[name] = dict(zip(("iou", "dice"), thresholds, strict=True))
            if len(known):
                means_at = dict(zip(("iou", "dice"), known.mean(axis=0), strict=True))
                results[finding].setdefault("curves", {})[name] = {"thresholds": SCALED_THRESHOLDS, **means_at}
    undefined = {
        name: {
            metric: int(number)
            for metric, number in zip(METRICS, numbers, strict=True)
            if number and (metric != "miou_cosine" or name in COSINES)
        }
        for name, numbers in zip((*MAPS, *BASELINES), np.isnan(measured.values).sum(axis=0), strict=True)
    }
    place_of = {case: i for i, case in enumerate(cases)}
    column = {key: i for i, key in enumerate(keys)}
    regions = [
        {
            "row": case.row,
            "case": place_of[case],
            "image_id": measured.image_ids[i],
            "finding": case.finding,
            "n_marks": measured.num_marks[i],
            "area": measured.areas[i],
            "maps": {
                name: {metric: values[i, column["maps", name, metric]] for metric in metric_names} for name in MAPS
            },
        }
        for i, case in enumerate(measured.cases)
    ]
    return {
        "n_images": len(set(rows)),
        "n_regions": len(rows),
        "findings": results,
        "mean": {"findings": in_mean, **describe(len(names), np.isin(groups, [names.index(f) for f in in_mean]))},
        "all_regions": describe(len(names) + 1, np.ones(len(rows), dtype=bool)),
        "undefined": {name: numbers for name, numbers in undefined.items() if numbers},
        "regions": regions,
    }


def tabulate(
    measured: Measurements, chosen: Mapping[str, np.ndarray], metric_names: Sequence[str]
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Everything that is averaged: where it stands in the results of `evaluate_grounding`, and (cases, columns)."""
    names = (*MAPS, *BASELINES)
    num_cases = len(measured.cases)
    best = np.full((num_cases, len(names), len(BEST)), np.nan)
    for i, case in enumerate(measured.cases):
        for j, k in itertools.product(range(len(names)), range(len(BEST))):
            if case.finding in chosen and chosen[case.finding][j, k] >= 0:
                best[i, j, k] = measured.curves[i, j, k, chosen[case.finding][j, k]]
    values = dict(zip(names, np.concatenate([measured.values, best], axis=2).transpose(1, 2, 0), strict=True))
    columns = {
        ("maps" if name in MAPS else "baselines", name, metric): column
        for name in names
        for metric, column in zip(metric_names, values[name], strict=True)
        if metric != "miou_cosine" or name in COSINES
    }
    columns["baselines", "random", "pointing"] = measured.chance
    for name in MAPS:
        rivals = {"average": values["average_positive" if name == "positive" else "average"]}
        rivals |= {rival: values[rival] for rival in ("prior", "centre")}
        for rival, rival_values in rivals.items():
            for metric, difference in zip(metric_names, values[name] - rival_values, strict=True):
                if metric != "miou_cosine" or rival == "average":
                    columns["differences", name, rival, metric] = difference
        columns["differences", name, "random", "pointing"] = values[name][0] - measured.chance
    return list(columns), np.stack(list(columns.values()), axis=1)


def bootstrap_means(
    values: np.ndarray, groups: np.ndarray, num_groups: int, patients: np.ndarray, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means of each group of cases, the mean of those means, the mean of all cases, and 95 % percentile intervals.

    Patients are resampled, so that all cases of one patient stand or fall together; all columns share the resamples. A
    resample that leaves a group without a defined value is dropped for that group, and for the mean over the groups.
    That mean leaves out groups in which fewer than 5 patients have a defined value.

    Args:
        values: (cases, columns); NaN where undefined, which no mean counts.
        groups: (cases,) int, in 0..num_groups - 1.
        patients: (cases,), anything that numpy can compare.

    Returns:
        Means (num_groups + 2, columns) and intervals (num_groups + 2, columns, 2), NaN where nothing is defined, or
        fewer than 5 patients have a defined value.
    """
    num_patients, patient_of_case = number_units(patients)
    num_columns = values.shape[1]
    drawn = np.random.default_rng(seed).integers(num_patients, size=(num_resamples, num_patients))
    weights = count_units(drawn, num_patients).astype(np.float64)
    weights = np.concatenate([np.ones((1, num_patients)), weights])  # the first row is the data itself

    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    sums, counts = np.zeros((2, num_patients, num_columns))
    sum_of_means, num_means = np.zeros((len(weights), num_columns)), np.zeros(num_columns)
    means, intervals = np.empty((num_groups + 2, num_columns)), np.empty((num_groups + 2, num_columns, 2))

    def keep(place: int, found: np.ndarray, num_known: np.ndarray) -> None:
        means[place] = found[0]
        for column, number in enumerate(num_known):
            enough = number >= MIN_PATIENTS
            intervals[place, column] = percentile_interval(found[1:, column]) if enough else np.nan

    for group in range(num_groups):
        members = groups == group
        group_sums, group_counts = np.zeros((2, num_patients, num_columns))
        np.add.at(group_sums, patient_of_case[members], filled[members])
        np.add.at(group_counts, patient_of_case[members], known[members])
        num_known = (group_counts > 0).sum(axis=0)
        found = divide(weights @ group_sums, weights @ group_counts)
        keep(group, found, num_known)
        sum_of_means[:, num_known >= MIN_PATIENTS] += found[:, num_known >= MIN_PATIENTS]
        num_means += num_known >= MIN_PATIENTS
        sums += group_sums
        counts += group_counts
    num_known = (counts > 0).sum(axis=0)
    keep(num_groups, divide(sum_of_means, np.broadcast_to(num_means, sum_of_means.shape)), num_known)
    keep(num_groups + 1, divide(weights @ sums, weights @ counts), num_known)
    return means, intervals
