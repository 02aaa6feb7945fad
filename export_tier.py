"""Export a model for CPUs: both towers as graphs of ONNX or OpenVINO, also in 8-bit integers.

    tier-export runs/mine --to onnx --output_dir runs/mine-onnx
    tier-export runs/mine --to openvino --int8 --data FOLDER --split validation --output_dir runs/mine-int8
    tier-predict runs/mine-int8 chest.png --output_dir predictions

The folder has all that tier-predict, tier-eval and the pipeline need. --int8 is calibrated on images of --data, for
which no labels are needed. With --data, the command also measures how much the export changes scores and maps, and
with labels the AUROC, prints it and writes it into the folder's card (README.md) and export.json.
The exit code is 0, or 2 after one sentence about the fault; in that case, nothing is written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.options import add_data_options
from evaluation_tier.output.writing import can_write

COMMAND = command_name("tier-export", __file__)
NEED_DATA = ("split", "calibration_split", "image_root", "sheet", "label_values", "views", "max_images", "findings")


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, or a name on the Hub (owner/name or owner/name@revision)"
    )
    parser.add_argument(
        "--to",
        choices=("onnx", "openvino"),
        required=True,
        help="onnx (for ONNX Runtime, and for any other program that reads ONNX) or openvino",
    )
    parser.add_argument(
        "--output_dir", metavar="FOLDER", required=True, help="folder to write; it must not exist, or be empty"
    )
    group = parser.add_argument_group("8-bit integers")
    group.add_argument(
        "--int8",
        action="store_true",
        help="compute the image tower in 8-bit integers: a quarter of the size, and faster where the processor has "
        "instructions for it (AVX-512 VNNI, AMX). Needs --data",
    )
    group.add_argument(
        "--calibration_split",
        metavar="SPLIT",
        help="split whose images set the ranges of the integers (default: that of --split). Training images may do so",
    )
    group.add_argument(
        "--calibration_images",
        type=int,
        metavar="N",
        help="how many of them, spread evenly over the split, at most 1,024 (default: 128)",
    )
    add_data_options(parser.add_argument_group("data"))
    group = parser.add_argument_group("findings to compare")
    group.add_argument(
        "--findings", nargs="+", metavar="NAME", help="findings to compare (default: all with enough positives)"
    )
    group.add_argument(
        "--min_positives", type=int, default=10, metavar="N", help="positives that a finding needs (default: 10)"
    )
    group.add_argument(
        "--prompts",
        default="report",
        metavar="NAME",
        help='sentences of the findings: "report", "tier", "chexzero", or your own YAML file (default: report)',
    )
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, after all checks that do not need the model or the data."""
    args = build_parser().parse(argv)
    output = Path(args.output_dir)
    if args.output_dir == "":
        raise ValueError("--output_dir is empty: give a folder.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output_dir {output} exists and is not an empty folder: name another one.")
    if not can_write(output.absolute().parent):
        raise ValueError(f"--output_dir {output} cannot be written: name another folder.")
    if not args.data:
        given = [name for name in NEED_DATA if getattr(args, name)]
        if args.int8:
            raise ValueError("--int8 is calibrated on your images: give --data and --split (labels are not needed).")
        if given:
            raise ValueError(f"--{given[0]} has no effect without --data.")
    for name in ("calibration_split", "calibration_images"):
        if getattr(args, name) is not None and not args.int8:
            raise ValueError(f"--{name} has no effect without --int8.")
    if args.calibration_images is None:
        args.calibration_images = 128
    if not 8 <= args.calibration_images <= 1024:
        raise ValueError(f"--calibration_images must be from 8 to 1,024, but is {args.calibration_images}.")
    for name in ("min_positives", "max_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, but is {getattr(args, name)}.")
    if args.columns:
        from processing_tier.records.table_options import parse_columns  # which takes a while to import

        args.columns = parse_columns(args.columns)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND, interrupted="interrupted; nothing is written."):
        args = parse(argv)
        from evaluation_tier.export.run import (
            run,
        )  # imported here, so that --help and a mistyped option answer at once

        print(run(args))


if __name__ == "__main__":
    main()
