"""Evaluate a TIER or CLIP model zero-shot on chest radiographs, or a classifier of tier-train by its logits.

    tier-eval runs/demo --data phantom --split validation --figures
    tier-eval runs/mine --data FOLDER --findings Cardiomegaly "Pleural Effusion"
    tier-eval owner/name --data phantom --split test
    tier-eval runs/mine --benchmark chexpert-5 --data chexpert:FOLDER --protocol chexzero
    tier-eval --each runs/mine owner/name --adapter my_file.py:make --data FOLDER --output_dir runs/compared
    accelerate launch eval_zeroshot.py runs/mine --data FOLDER
    tier-eval runs/seed1 runs/seed2 --data labels.csv --image_root images --columns image=Path

Prints a table and writes metrics.json, speed.json, predictions.parquet, tables.md, tables.tex and report.html (figures
and the model card on request). To compare two results on the same images, use tier-compare.
The exit code is 0, or 2 after one sentence about the fault; in that case, nothing is written.
"""

import argparse
from collections.abc import Sequence

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.options import add_options, check_options

COMMAND = command_name("tier-eval", __file__)


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    add_options(parser)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, after all checks that do not need models or data."""
    args = build_parser().parse(argv)
    check_options(args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        args = parse(argv)
        # Imported here, so that --help and a mistyped option answer at once
        from evaluation_tier.run import run
        from training_tier.fine_tuning import make_fine_tuning

        if results := run(args, make_fine_tuning(args)):  # the main process alone has some
            print("\n".join(result.summary for result in results))


if __name__ == "__main__":
    main()
