"""Score findings on chest radiographs with a trained model, and show where it sees them.

    tier-predict runs/mine chest.dcm
    tier-predict runs/mine a.png b.jpg --findings Cardiomegaly "Pleural Effusion" --output_dir predictions
    tier-predict runs/mine-onnx folder_of_images --output_dir predictions    # a model that tier-export wrote
    tier-predict owner/name folder --prompts my_sentences.yaml --top_k 3 --output_dir predictions
    tier-predict --adapter my_file.py:make chest.dcm

Images are files (DICOM, PNG, JPEG, TIFF) and folders, which are searched with all their folders. Prints a table. With
--output_dir, also writes predictions.json, predictions.csv and overlays/, a picture of each image with the heat-map of
each finding. Research software, not a medical device: not for clinical use.
A file that cannot be read is reported and skipped. The exit code is 0, or 2 after one sentence about the fault, also
if no file can be read; in that case, nothing is written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.output.writing import check_writable

COMMAND = command_name("tier-predict", __file__)


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, or a name on the Hub (owner/name or owner/name@revision): any model of images and texts "
        "that tier-eval takes (docs/models.md)",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file or folder of radiographs")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="MODEL is FILE.py:FUNCTION, a function of your own Python file that returns a model "
        "(docs/own_model.md). FILE.py:FUNCTION=NAME calls FUNCTION with NAME",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python code that the model brings. Needs a folder, or owner/name@ and the 40 hexadecimal digits "
        "of a commit: read its code before. Without this option such code never runs",
    )
    parser.add_argument(
        "--findings",
        nargs="+",
        metavar="NAME",
        help="findings to score (default: all that the model's configuration holds, or else all that the sentences "
        '"report" have)',
    )
    parser.add_argument(
        "--prompts",
        metavar="NAME",
        help='sentences of the findings: "report", "tier", "chexzero", or your own YAML file (docs/prompts.md). By '
        'default those in the model\'s configuration, with their thresholds and calibration, else "report"',
    )
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="keep only the K findings with the highest scores of each image"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="score from which every finding counts as present, 0 to 1 (default: the thresholds that tier-eval "
        "--save_thresholds wrote into the model; without them, findings have scores only)",
    )
    parser.add_argument("--output_dir", metavar="FOLDER", help="where to write (default: print only)")
    parser.add_argument("--no_overlays", action="store_true", help="write the tables only, without pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace the predictions in --output_dir")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="images scored at once (default: 8)")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx", "openvino"),
        help="what runs the model: torch, or for a folder of tier-export onnx (ONNX Runtime) or openvino, which runs "
        "both of its formats (default: the one that the folder was made for)",
    )
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1", "mps" (default: a GPU if there is one)')
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, after all checks that do not need the model or the images."""
    args = build_parser().parse(argv)
    for name in ("top_k", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}.")
    if ".py:" in args.model and not args.adapter:
        raise ValueError(f"{args.model} looks like a Python file that makes a model: add --adapter.")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be a number from 0 to 1, but is {args.threshold:g}.")
    if args.output_dir is None:
        for name in ("no_overlays", "overwrite"):
            if getattr(args, name):
                raise ValueError(f"--{name} has no effect without --output_dir.")
    elif args.output_dir == "":
        raise ValueError("--output_dir is empty: leave it out, or give a folder.")
    else:
        check_writable(Path(args.output_dir), "--output_dir")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND, interrupted="interrupted; nothing is written."):
        args = parse(argv)
        from evaluation_tier.predict.run import run  # imported here, so that --help answers at once

        print(run(args))


if __name__ == "__main__":
    main()
