"""
Turns an archive into a prepared data set: Parquet shards with embedded images, which `datasets` and [`read_hub`] read.

    <output>/prepare.json      the options and a fingerprint of the records; a later run must have the same
    <output>/data/train-00000-of-00012.parquet ...
    <output>/quarantine.csv    images that cannot be read, and why
    <output>/summary.json      counts
    <output>/sheet.jpg         some of the images
    <output>/README.md         the card; it is written last, so a folder with a card is complete

One worker process writes a shard, and renames it when it is complete, so that a killed run can resume. The footer of a
shard holds its part of the quarantine list: it is the only state. The records, the seed and the number of images
per shard alone decide the contents of each shard.

Incomplete files are in a folder of the run, `.tier-prepare-<part>-<random>`, because a scheduler may start a job again
while it still runs. A run that finishes a part deletes the folders of other runs of that part.
"""

import csv
import errno
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from processing_tier.escaping import spreadsheet_cell
from processing_tier.prepare.claim import WORK_PREFIX, check_output, write
from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.plan import Plan, describe_source, make_plan
from processing_tier.prepare.pool import make_shards, start_method
from processing_tier.prepare.shards import (
    QUARANTINE_COLUMNS,
    count_unreadable,
    initialize_worker,
    is_whole,
    list_quarantine,
)
from processing_tier.prepare.summary import draw_sheet, make_card, summarize

logger = logging.getLogger(__name__)


def prepare(
    options: PrepareOptions,
    output_dir: str | os.PathLike,
    num_workers: int | None = None,
    max_failed: float = 0.01,
    shard_index: int = 0,
    shard_count: int = 1,
) -> dict | None:
    """
    Make a prepared data set, or resume after an interruption.

    Args:
        options ([`PrepareOptions`]): what to make.
        output_dir (`str` or `os.PathLike`): a new or empty folder, or one that was begun with the same options.
        num_workers (`int`, *optional*): worker processes; by default one for each core that this process may use.
        max_failed (`float`, *optional*, defaults to 0.01):
            Share of the images that may fail to decode. Images whose pixels are all equal do not count.
        shard_index (`int`, *optional*, defaults to 0), shard_count (`int`, *optional*, defaults to 1):
            Which part of the shards this job makes. The last job to end writes the card.

    Returns:
        `dict` or `None`: the summary, or `None` while shards of other jobs are missing.

    Raises:
        `ValueError`: what [`read_records`] raises, a patient in two splits, an output that is something else or was
            begun with other options, a split that `datasets` cannot load, no record left by the filters, more failures
            than `max_failed` allows, or a worker process that died. After the last two, finished shards are kept.
        `OSError`: the disk is full or fails. Finished shards are kept.
    """
    output_dir = Path(os.path.abspath(output_dir))
    check_output(output_dir)
    work_dir = output_dir / f"{WORK_PREFIX}{shard_index}-of-{shard_count}-{secrets.token_hex(8)}"
    try:
        return run(options, output_dir, work_dir, num_workers, max_failed, shard_index, shard_count)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, most likely because memory ran out; run again with a smaller --num_workers "
            "(finished shards are kept)."
        ) from None
    except OSError as error:
        is_gone = work_dir.name in str(error) and not work_dir.exists() or error.errno == errno.ESTALE  # of NFS
        if not is_gone:
            raise
        logger.warning("Another run has made the same part of %s in the meantime.", output_dir)
        path = output_dir / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def run(
    options: PrepareOptions,
    output_dir: Path,
    work_dir: Path,
    num_workers: int | None,
    max_failed: float,
    shard_index: int,
    shard_count: int,
) -> dict | None:
    context = start_method()
    # In a separate process, so that the memory of all records is free again before the images are read
    with ProcessPoolExecutor(1, context, initialize_worker) as executor:
        plan = executor.submit(make_plan, options, output_dir, work_dir, shard_index, shard_count).result()
    failures = list(list_quarantine(output_dir, (shard for shard in plan.shards if shard not in plan.todo)))
    allowed = int(max_failed * plan.total)
    left = allowed - count_unreadable(failures)
    failures += make_shards(plan, output_dir, work_dir, options, context, num_workers, left)
    is_done = all(is_whole(output_dir / "data" / shard.name, shard) for shard in plan.shards)
    if is_done:  # including the work of other jobs
        failures = list(list_quarantine(output_dir, plan.shards))
    if count_unreadable(failures) > allowed:
        write_quarantine(output_dir, work_dir, failures)
        first = next(failure for failure in failures if not failure.get("blank"))
        raise ValueError(
            f"{count_unreadable(failures)} images cannot be read, more than the {allowed} of {plan.total} that "
            f"--max_failed {max_failed} allows; the first is {first['file']}: {first['reason']} "
            f"Repair the files listed in {output_dir}/quarantine.csv or raise --max_failed, and run again."
        )
    summary = write_rest(options, plan, output_dir, work_dir, failures) if is_done else None
    # Delete the folders of other runs of this part. It comes last, so that none of them has to write the card
    part = "*" if shard_count == 1 else f"{shard_index}-of-{shard_count}-*"
    for path in output_dir.glob(WORK_PREFIX + part):
        shutil.rmtree(path, ignore_errors=True)
    return summary


def write_quarantine(output_dir: Path, work_dir: Path, failures: Iterable[dict]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, QUARANTINE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({key: spreadsheet_cell(value) for key, value in failure.items()} for failure in failures)
    write(output_dir / "quarantine.csv", work_dir, text.getvalue())


def write_rest(options: PrepareOptions, plan: Plan, output_dir: Path, work_dir: Path, failures: list[dict]) -> dict:
    """
    Count the output and write every file that is not a shard; returns the summary.

    Raises:
        `ValueError`: no image of a split can be read.
    """
    write_quarantine(output_dir, work_dir, failures)
    for split, counts in plan.counts.items():
        failed = [failure for failure in failures if failure["split"] == split]
        if len(failed) == counts["kept"]:  # `datasets` cannot open data with an empty split
            raise ValueError(
                f"split {split!r}: none of {len(failed)} images can be read; the first is {failed[0]['file']}: "
                f"{failed[0]['reason']} quarantine.csv in {output_dir} lists them; repair the files and run "
                "again, or prepare only the other splits in another folder."
            )
    files: dict[str, list[Path]] = {split: [] for split in plan.counts}
    for shard in plan.shards:
        files[shard.split].append(output_dir / "data" / shard.name)
    splits = {
        split: {
            **summarize(files[split]),
            "quarantined": sum(failure["split"] == split for failure in failures),
            "blank": sum(failure["split"] == split and failure.get("blank", False) for failure in failures),
            "not_frontal": counts["not_frontal"],
            "without_text": counts["without_text"],
        }
        for split, counts in plan.counts.items()
    }
    summary = {**options.recorded(), "splits": splits}
    write(output_dir / "summary.json", work_dir, json.dumps(summary, indent=2) + "\n")
    write(output_dir / "sheet.jpg", work_dir, draw_sheet([file for split in files.values() for file in split]))
    write(output_dir / "README.md", work_dir, make_card(summary, files, describe_source(options.data)))
    return summary
