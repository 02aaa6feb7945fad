"""Rank the saved checkpoints of a training by their mean AUROC on a split, after the training.

    tier-rank runs/mine --data FOLDER --split validation
    tier-rank runs/mine --benchmark chexpert-5 --data chexpert:FOLDER --split validation --protocol tier --top 5

Accepts the options of tier-eval that select images, findings and protocol, and evaluates each checkpoint-N of
the run with them. Prints the checkpoints from best to worst with 95 % intervals, and the command that evaluates the
best ones as an ensemble (TIER averages its five best on CheXpert's validation set). The ranking flatters the best
checkpoints on these images: evaluate them on others. Exit code 0, or 2 with one sentence about the fault; in that
case, nothing is written.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.options import add_options, check_options
from evaluation_tier.output.writing import check_writable

NOT_FOR_RANKING = (
    "output_dir",
    "figures",
    "model_card",
    "save_thresholds",
    "analyses",
    "cxr_align",
    "phrases",
    "radiologists",
    "transfer",
    "sensitivity",
    "learning_curve",
    "fine_tuning_steps",
    "adapter",
    "each",
)

COMMAND = command_name("tier-rank", __file__)
EVALUATION = command_name("tier-eval", "eval_zeroshot.py")


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__, epilog=f"Other options: see {EVALUATION} --help.")
    parser.add_argument("run", metavar="RUN", help="folder of the training, with checkpoint-100, checkpoint-200, ...")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="checkpoints in the ensemble (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE", help="JSON file to write the ranking to (default: print only)")
    return parser


def parse_evaluation(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one checkpoint's evaluation."""
    parser = Parser(COMMAND, __doc__)
    add_options(parser)
    args = parser.parse(argv)
    check_options(args)
    return args


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[int, argparse.Namespace]]:
    """The arguments, and by step the arguments of each checkpoint's evaluation."""
    args, rest = build_parser().parse_known_args(argv)
    for name in NOT_FOR_RANKING:
        if any(given.split("=")[0] == f"--{name}" for given in rest):
            raise ValueError(f"--{name} has no effect on a ranking: pass it to the evaluation of the best checkpoint.")
    if args.top < 1:
        raise ValueError(f"--top must be at least 1, but is {args.top}.")
    if args.output is not None:
        check_writable(Path(args.output).parent, "--output")
    if not Path(args.run).is_dir():
        raise ValueError(f"The folder {args.run} does not exist: name the --output_dir of a training.")
    # Imported here, so that --help and a mistyped option answer at once
    from training_tier.loop.checkpoints import list_checkpoints

    checkpoints = list_checkpoints(args.run)
    if not checkpoints:
        raise ValueError(
            f"The folder {args.run} does not hold any checkpoint-N: train with a --save_total_limit that keeps them."
        )
    return args, {step: parse_evaluation([str(path), *rest]) for step, path in checkpoints.items()}


def run(args: argparse.Namespace, evaluations: dict[int, argparse.Namespace]) -> None:
    # Imported here, so that --help and a mistyped option answer at once
    from evaluation_tier.models.processes import is_main_process, joined_processes
    from evaluation_tier.run import evaluate
    from processing_tier.progress import library_bars

    ranked, protocol = [], {}
    with joined_processes(next(iter(evaluations.values())).device) as device, library_bars():
        for step, given in evaluations.items():
            metrics = evaluate(given, device).metrics
            protocol = {"dataset": metrics["dataset"], "n_images": metrics["n_images"], **metrics["protocol"]}
            findings = {name: result["auroc"] for name, result in metrics["findings"].items()}
            mean = {name: metrics["mean"][name] for name in ("auroc", "auroc_ci95")}
            ranked.append({"checkpoint": Path(given.models[0]).name, "step": step, **mean, "findings": findings})
        ranked.sort(key=lambda entry: (-entry["auroc"] if not math.isnan(entry["auroc"]) else 2, entry["step"]))
        if is_main_process():
            report(args, ranked, protocol)


def report(args: argparse.Namespace, ranked: Sequence[dict], protocol: dict) -> None:
    """Print the ranking, and write it if asked to."""
    from evaluation_tier.output.metrics_file import to_json
    from evaluation_tier.output.tables import format_estimate, text_table
    from evaluation_tier.output.writing import write_beside

    rows = [
        (str(place), entry["checkpoint"], format_estimate(entry["auroc"], entry["auroc_ci95"]))
        for place, entry in enumerate(ranked, 1)
    ]
    print(f"\nMean AUROC of {len(ranked[0]['findings'])} findings on {protocol['dataset']}, split ", end="")
    print(f"{protocol['split']!r}, {protocol['n_images']:,} images, protocol {protocol['name']}\n")
    print(text_table(("Rank", "Checkpoint", "AUROC, mean (95 % CI)"), rows, "rlr", 0))
    best = " ".join(str(Path(args.run) / entry["checkpoint"]) for entry in ranked[: args.top])
    print(f"\nThese images chose the checkpoints. Evaluate the best on other images:\n  {EVALUATION} {best} ...")
    if args.output is not None:
        content = json.dumps(to_json({"ranking": ranked, "protocol": protocol}), indent=2, allow_nan=False) + "\n"
        write_beside(Path(args.output), lambda partial: partial.write_text(content, encoding="utf-8"))
        print(f"\nWritten:\n  {args.output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        run(*parse(argv))


if __name__ == "__main__":
    main()
