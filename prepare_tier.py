"""
Turns an archive of radiographs into a prepared data set: Parquet shards with embedded images, for training, streaming
and the Hub.

    tier-prepare --data mimic_cxr_jpg:/archives/mimic-cxr-jpg --output_dir prepared/mimic           # 512 px, JPEG
    tier-prepare --data my_data --output_dir prepared/mine --size original --format png             # an image folder
    tier-prepare --data reports.csv --columns image=Path patient_id=Subject --output_dir prepared/table
    tier-prepare --data ... --output_dir ... --shard_index $SLURM_ARRAY_TASK_ID --shard_count 16    # a part per job

Run the same command again to resume after an interruption; the result has the same bytes as an uninterrupted run.
Images that cannot be read are listed in quarantine.csv. Exit code 0, or 2 with one sentence on what is wrong, or 130
after Ctrl-C; finished shards are kept.
"""

import argparse
import sys
from collections.abc import Sequence

from command_line import Parser, command_name, one_sentence_errors

COMMAND = command_name("tier-prepare", __file__)


def build_parser() -> Parser:
    parser = Parser(
        prog=COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME:FOLDER",
        help="an archive (mimic_cxr_jpg:FOLDER; the names are in docs/public_datasets.md), an image folder with "
        "<split>/metadata.csv, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), or what save_to_disk wrote",
    )
    parser.add_argument("--output_dir", required=True, help="a new or empty folder, or one that this command began")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits to prepare (default: all there are)")
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", help="a table's own column names: image=Path impression=Text"
    )
    parser.add_argument("--image_root", metavar="FOLDER", help="folder of the images of a table")
    parser.add_argument("--sheet", help="sheet of an Excel table that has several")
    parser.add_argument(
        "--label_values",
        nargs="+",
        metavar="WORD=LABEL",
        help="words that a table has for findings: yes=1 no=0 unclear=-1 unknown= (1 present, 0 absent, -1 uncertain, "
        "nothing not stated)",
    )
    parser.add_argument(
        "--size",
        default="512",
        help='pixels of the shortest side of the stored images, which are never enlarged, or "original" '
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=("jpeg", "png"), default="jpeg", help="of the stored images (default: %(default)s)"
    )
    parser.add_argument("--quality", type=int, help="of JPEG, 1 to 100 (default: 95)")
    parser.add_argument(
        "--views",
        choices=("frontal", "all"),
        default="frontal",
        help="images to keep by their view (default: %(default)s)",
    )
    parser.add_argument(
        "--text",
        choices=("impression", "findings", "both"),
        help="leave out records without this text; both: with neither (default: keep all)",
    )
    parser.add_argument(
        "--report_style",
        choices=("standard", "chexzero", "tier"),
        default="standard",
        help="sections as the reader gives them, or cut out of the whole report as CheXzero or TIER does "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--shard_images", type=int, default=1000, help="most images in a file of the output (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the records (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, help="processes (default: one for each core of this job)")
    parser.add_argument(
        "--max_failed",
        type=float,
        default=0.01,
        help="share of the images that may fail to decode before the run stops (default: %(default)s)",
    )
    parser.add_argument("--shard_index", type=int, help="which part this job makes, from 0 (default: all of it)")
    parser.add_argument("--shard_count", type=int, help="number of jobs that share the work")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option has a value that nothing can be made of.
    """
    if args.size != "original" and (not args.size.isdecimal() or int(args.size) < 1):
        raise ValueError(f'--size {args.size} is not a number of pixels; use 1 or more, such as 512, or "original".')
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise ValueError(f"--quality {args.quality} must lie between 1 and 100.")
    if args.shard_images < 1:
        raise ValueError(f"--shard_images {args.shard_images} must be at least 1.")
    if args.num_workers is not None and args.num_workers < 1:
        raise ValueError(f"--num_workers {args.num_workers} must be at least 1.")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed} must be at least 0.")
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


def run(args: argparse.Namespace) -> None:
    """Everything that the command does."""
    check_arguments(args)
    # Imported here, so that --help and a mistyped option answer at once
    from processing_tier.prepare.options import PrepareOptions
    from processing_tier.prepare.run import prepare
    from processing_tier.prepare.summary import format_summary
    from processing_tier.records.table_options import parse_columns

    if args.quality is not None and args.format != "jpeg":
        print(f"Note: --quality has no effect on {args.format}.", file=sys.stderr)
    options = PrepareOptions(
        data=args.data,
        columns=parse_columns(args.columns),
        image_root=args.image_root,
        sheet=args.sheet,
        label_values=tuple(args.label_values) if args.label_values else None,
        splits=tuple(args.splits) if args.splits else None,
        views=args.views,
        text=args.text,
        report_style=args.report_style,
        size=None if args.size == "original" else int(args.size),
        format=args.format,
        quality=args.quality or 95,
        shard_images=args.shard_images,
        seed=args.seed,
    )
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
            f"This job's part of {args.output_dir} is done. The job that ends last writes the card; if none did, run "
            "the command once more without --shard_index."
        )
        return
    print("\n".join(format_summary(summary)))
    print(f"Wrote {args.output_dir}; look at its sheet.jpg and quarantine.csv.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND, interrupted="broken off; run the same command again to go on."):
        run(build_parser().parse(argv))


if __name__ == "__main__":
    main()
