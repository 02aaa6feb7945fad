"""
Trains a CLIP model with text-image entropy regularization (TIER) on chest radiographs and their reports, or a
classifier of findings on the image tower of such a model.

    tier-train                                        # on the embedded synthetic data
    tier-train indiana --data FOLDER                  # a recipe; options override it
    tier-train linear-probe --data FOLDER --model runs/indiana --label_fraction 0.1
    tier-train --data PREPARED --eval_split validation --streaming       # from the shards of tier-prepare
    tier-train --vision_model microsoft/resnet-50 --text_model NAME --frozen_text_layers 8    # as in the paper
    tier-train --data FOLDER --search_trials 30       # search the entropy weights by short trainings
    accelerate launch train_tier.py --data FOLDER     # on all GPUs
    torchrun --nproc_per_node 2 train_tier.py --data FOLDER    # on CPUs, where accelerate starts a single process

Writes the best checkpoint, its processor, a model card and the log (trainer_state.json) into --output_dir.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from command_line import Parser, command_name, one_sentence_errors
from training_tier.options.help import HELP, HELP_ALL, add_options

COMMAND = command_name("tier-train", __file__)
STARTED = [COMMAND] if COMMAND == "tier-train" else ["python", COMMAND]


def build_help_parser() -> Parser:
    """A parser for --help and --version. The full parser imports torch and transformers, which takes seconds."""
    parser = Parser(
        prog=COMMAND,
        usage="%(prog)s [RECIPE] [--option VALUE ...]",
        description=__doc__.replace("tier-train ", f"{' '.join(STARTED)} "),
        epilog=f"Every option with its whole text: {COMMAND} --help_all",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
    )
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("training_tier").setLevel(logging.INFO)
    with one_sentence_errors(COMMAND, every_process=True):
        argv = sys.argv[1:] if argv is None else list(argv)
        if asked := [word for word in argv if word in (*HELP, "--version")]:
            build_help_parser().parse_args(asked[:1])

        # imported here, so that --help and --version answer at once
        from accelerate import PartialState

        from training_tier.loop.stopping import TrainingStopped
        from training_tier.options.parsing import build_full_parser, parse_options
        from training_tier.run import run

        if any(word in HELP_ALL for word in argv):
            build_full_parser(COMMAND).print_help()
            raise SystemExit(0)
        options = parse_options(argv, COMMAND)
        try:
            for line in run(options, [*STARTED, *argv]).search:
                print(line)
            PartialState().destroy_process_group()  # without it, several processes can hang at their end
        except TrainingStopped as stop:
            if not stop.in_all_processes or os.environ.get("RANK", "0") == "0":
                print(f"{COMMAND}: {stop}", file=sys.stderr)
            raise SystemExit(stop.exit_code) from None


if __name__ == "__main__":
    main()
