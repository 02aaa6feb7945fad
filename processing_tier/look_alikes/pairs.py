"""Pairs of images that look alike, and of images with the same report, as rows of a table."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from processing_tier.look_alikes.images import Images, Source
from processing_tier.look_alikes.neighbours import near_pairs

MAX_PAIRS = 500_000  # that are listed; bounds the memory

RELATIONS = ("two data sets", "two splits", "two patients of a split", "one patient")  # the first that applies


class Pairs(NamedTuple):
    """Pairs of images."""

    first: np.ndarray  # (pairs,) int64: numbers of images
    second: np.ndarray
    value: np.ndarray  # (pairs,) int64: bits in which the hashes differ, or words of the report
    relation: np.ndarray  # (pairs,) int64: of `RELATIONS`
    is_cut: bool = False  # whether there are more than `MAX_PAIRS`


def find_look_alikes(images: Images, sources: Sequence[Source]) -> Pairs:
    """All pairs of images of which a hash of one is near a hash of the other."""
    if not len(images.hashes):
        return relate([], [], [], images, sources)
    unique, group = np.unique(images.hashes, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(group.reshape(-1)))
    members = np.split(images.owner[order], ends[:-1])
    found: dict[tuple[int, int], int] = {}
    near, distance = near_pairs(unique, MAX_PAIRS)
    for first, second, bits in list_pairs(members, near, distance):
        if first != second:
            pair = min(first, second), max(first, second)
            found[pair] = min(bits, found.get(pair, bits))
        if len(found) > MAX_PAIRS:
            break
    ordered = sorted(found)[:MAX_PAIRS]
    firsts, seconds = [pair[0] for pair in ordered], [pair[1] for pair in ordered]
    related = relate(firsts, seconds, [found[pair] for pair in ordered], images, sources)
    return related._replace(is_cut=len(found) > MAX_PAIRS or len(near) > MAX_PAIRS)


def list_pairs(members: list[np.ndarray], near: np.ndarray, distance: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Two images and the bits in which they differ: those with equal hashes first."""
    for images in members:
        if len(images) > 1:
            for first, second in combinations(images.tolist(), 2):
                yield first, second, 0
    for (one, other), bits in zip(near.tolist(), distance.tolist(), strict=True):
        for first in members[one].tolist():
            for second in members[other].tolist():
                yield first, second, bits


def find_same_reports(images: Images, sources: Sequence[Source]) -> Pairs:
    """
    For each report that two sources share, its first image in the first of these and its first image in each other
    one; see [`duplicate_groups`] for what counts as the same.
    """
    first_seen: dict[int, int] = {}
    firsts, seconds, words, start = [], [], [], 0
    for source in sources:
        reports, rows = np.unique(source.reports, return_index=True)
        for report, row in zip(reports.tolist(), rows.tolist(), strict=True):
            if report and report in first_seen:
                firsts.append(first_seen[report])
                seconds.append(start + row)
                words.append(int(source.words[row]))
            elif report:
                first_seen[report] = start + row
        start += len(source.records)
    return relate(firsts, seconds, words, images, sources)


def relate(
    first: Sequence[int], second: Sequence[int], value: Sequence[int], images: Images, sources: Sequence[Source]
) -> Pairs:
    """The pairs with their relations."""
    first, second, value = (np.array(numbers, dtype=np.int64) for numbers in (first, second, value))
    datasets = np.array([source.dataset for source in sources])[images.source]
    patients = np.concatenate([source.patients for source in sources])
    differ = [column[first] != column[second] for column in (datasets, images.source, patients)]
    return Pairs(first, second, value, np.select(differ, range(len(differ)), len(differ)))


def shared_patients(sources: Sequence[Source]) -> int:
    """How many patients are in two splits of one data set."""
    names = {source.dataset for source in sources}
    shared = 0
    for name in names:
        apart = [np.unique(source.patients) for source in sources if source.dataset == name]
        shared += int((np.unique(np.concatenate(apart), return_counts=True)[1] > 1).sum())
    return shared
