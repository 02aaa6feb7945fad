"""
Prepares an archive of radiographs for training, streaming and the Hub: it writes Parquet shards with embedded images.

    tier-prepare --data mimic_cxr_jpg:/archives/mimic-cxr-jpg --output_dir prepared/mimic           # 512 px, JPEG
    tier-prepare --data my_data --output_dir prepared/mine --size original --format png             # an image folder
    tier-prepare --data reports.csv --columns image=Path patient_id=Subject --output_dir prepared/table
    tier-prepare --data ... --output_dir ... --shard_index $SLURM_ARRAY_TASK_ID --shard_count 16    # one job of 16
    tier-prepare --check my_data padchest:/archives/padchest --output_dir checked    # look-alikes and leaks

To resume after an interruption, run the same command again: the result has the same bytes as an uninterrupted run.
quarantine.csv lists the images that cannot be read. The exit code is 0, 2 with one sentence about bad input, or 130
after Ctrl-C. Finished shards are kept.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.output.writing import check_writable

COMMAND = command_name("tier-prepare", __file__)


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    add_data_options(parser.add_argument_group("data"))
    add_selection_options(parser.add_argument_group("which records to keep"))
    add_output_options(parser.add_argument_group("output"))
    add_work_options(parser.add_argument_group("work"))
    return parser


def add_data_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data",
        metavar="NAME:FOLDER",
        help="an archive (mimic_cxr_jpg:FOLDER; the names are in docs/public_datasets.md), an image folder with "
        "<split>/metadata.csv, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), or a folder that save_to_disk wrote",
    )
    group.add_argument(
        "--check",
        nargs="+",
        metavar="DATA",
        help="in place of --data: prepare nothing, but look for images that look alike and for the same reports in "
        "two splits, patients or data sets, and count borders and marks",
    )
    group.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to prepare (default: all)")
    group.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", help="your table's column names: image=Path impression=Text"
    )
    group.add_argument("--image_root", metavar="FOLDER", help="folder that a table's image paths start from")
    group.add_argument("--sheet", help="sheet of an Excel table that has several")
    group.add_argument(
        "--label_values",
        nargs="+",
        metavar="WORD=LABEL",
        help="words that your table has for findings: yes=1 no=0 unclear=-1 unknown= (1 present, 0 absent, -1 "
        "uncertain, empty not stated)",
    )


def add_selection_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--views",
        choices=("frontal", "all"),
        default="frontal",
        help="keep only frontal images, or all (default: %(default)s)",
    )
    group.add_argument(
        "--text",
        choices=("impression", "findings", "both"),
        help="leave out records without this text; both: records with neither text (default: keep all records)",
    )
    group.add_argument(
        "--report_style",
        choices=("standard", "chexzero", "tier"),
        default="standard",
        help="keep the reader's sections, or extract them from the whole report as CheXzero or TIER does "
        "(default: %(default)s)",
    )


def add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output_dir",
        help="a new or empty folder, or the folder of a run to resume; with --check, where to write look_alikes.csv",
    )
    group.add_argument(
        "--size",
        default="512",
        help='shortest side of the stored images in pixels, or "original"; images are never enlarged '
        "(default: %(default)s)",
    )
    group.add_argument(
        "--format", choices=("jpeg", "png"), default="jpeg", help="format of the stored images (default: %(default)s)"
    )
    group.add_argument("--quality", type=int, help="JPEG quality, 1 to 100 (default: 95)")
    group.add_argument(
        "--shard_images", type=int, default=1000, help="largest number of images in a file (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the order of the records (default: %(default)s)")


def add_work_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_workers", type=int, help="number of processes (default: one per core of this job)")
    group.add_argument(
        "--max_failed",
        type=float,
        default=0.01,
        help="stop when more than this share of the images cannot be decoded (default: %(default)s)",
    )
    group.add_argument("--shard_index", type=int, help="this job's part of the shards, from 0 (default: all shards)")
    group.add_argument("--shard_count", type=int, help="number of jobs that share the work")


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option has an impossible value.
    """
    if args.check is not None:
        check_arguments_of_check(args)
    elif missing := [f"--{name}" for name in ("data", "output_dir") if getattr(args, name) is None]:
        raise ValueError(f"the following arguments are required: {', '.join(missing)}")
    if args.size != "original" and (not args.size.isdecimal() or int(args.size) < 1):
        raise ValueError(f'--size {args.size} is not a number of pixels; use 1 or more, such as 512, or "original".')
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise ValueError(f"--quality {args.quality} must lie between 1 and 100.")
    for name, least in (("shard_images", 1), ("num_workers", 1), ("seed", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least {least}.")
    if not 0 <= args.max_failed <= 1:
        raise ValueError(f"--max_failed {args.max_failed} is a share; it must lie between 0 and 1.")
    if (args.shard_index is None) != (args.shard_count is None):
        raise ValueError("--shard_index and --shard_count go together; give both or neither.")
    if args.shard_count is not None and not 0 <= args.shard_index < args.shard_count:
        raise ValueError(
            f"--shard_index {args.shard_index} must lie between 0 and --shard_count - 1 = {args.shard_count - 1}."
        )
    if args.splits and len(set(args.splits)) < len(args.splits):
        raise ValueError("--splits names a split twice; name each once.")


def check_arguments_of_check(args: argparse.Namespace) -> None:
    """ValueError for options that --check does not use, and for a folder that cannot be written."""
    used = ("check", "splits", "columns", "image_root", "sheet", "label_values", "views", "output_dir", "num_workers")
    defaults = build_parser().parse_args([])
    for name, value in vars(args).items():
        if name not in used and value != getattr(defaults, name):
            raise ValueError(f"--{name} has no effect with --check; leave it out.")
    if args.output_dir is not None:
        check_writable(Path(args.output_dir), "--output_dir")


def run(args: argparse.Namespace) -> None:
    """Prepare the data and print a summary, or check them."""
    check_arguments(args)
    if args.check is not None:
        from processing_tier.look_alikes.run import run_check

        print("\n".join(run_check(args)))
        return
    # Imported here, so that --help and typing errors are answered at once
    from processing_tier.prepare.options import make_options
    from processing_tier.prepare.run import prepare
    from processing_tier.prepare.summary import format_summary

    if args.quality is not None and args.format != "jpeg":
        print(f"Note: --quality has no effect on {args.format}.", file=sys.stderr)
    options = make_options(args)
    print(f"Reading the records of {args.data}")
    summary = prepare(
        options,
        args.output_dir,
        args.num_workers,
        args.max_failed,
        args.shard_index or 0,
        args.shard_count or 1,
    )
    if summary is None:
        print(
            f"This job's part of {args.output_dir} is done. The last job to end writes the card. If none did, run the "
            "command again without --shard_index and --shard_count."
        )
        return
    print("\n".join(format_summary(summary)))
    print(f"Wrote {args.output_dir}; look at sheet.jpg and quarantine.csv in it.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. On bad input, print one sentence to stderr and exit with code 2."""
    with one_sentence_errors(COMMAND, interrupted="interrupted; run the same command again to resume."):
        run(build_parser().parse(argv))


if __name__ == "__main__":
    main()
