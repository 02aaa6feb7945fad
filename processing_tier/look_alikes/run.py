"""`tier-prepare --check`: look-alikes and leaks among data sets, from arguments to the printed lines."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from processing_tier.look_alikes.images import read_images, read_sources
from processing_tier.look_alikes.pairs import find_look_alikes, find_same_reports
from processing_tier.look_alikes.report import describe, write_pairs
from processing_tier.records.labels import parse_label_values
from processing_tier.records.table_options import TableOptions, parse_columns

FILE = "look_alikes.csv"


def check(
    data: Sequence[str],
    table: TableOptions,
    splits: Sequence[str] | None = None,
    views: str = "frontal",
    num_workers: int | None = None,
    output_dir: str | os.PathLike | None = None,
) -> list[str]:
    """
    Find images that look alike and equal reports among splits, patients and data sets, and count borders and marks.

    Args:
        data, splits, views: see [`read_sources`].
        table: how the readers read tables.
        num_workers: processes; by default one for each core that this process may use.
        output_dir: folder of `look_alikes.csv`, which lists the pairs; by default it is not written.

    Returns:
        The lines to print.

    Raises:
        `ValueError`: what [`read_sources`] and [`read_images`] raise.
    """
    sources = read_sources(data, table, splits, views)
    images = read_images(sources, num_workers)
    look_alikes, reports = find_look_alikes(images, sources), find_same_reports(images, sources)
    lines = describe(images, sources, look_alikes, reports)
    if output_dir is not None:
        path = Path(output_dir, FILE)
        write_pairs(path, images, sources, look_alikes, reports)
        lines += ["", f"Wrote {path}, which names patients and images: keep it as safe as the data."]
    return lines


def run_check(args: argparse.Namespace) -> list[str]:
    """[`check`] with the arguments of `tier-prepare`."""
    labels = parse_label_values(args.label_values)
    table = TableOptions(parse_columns(args.columns), args.image_root, args.sheet, labels)
    return check(args.check, table, args.splits, args.views, args.num_workers, args.output_dir)
