"""Compare evaluations of the same images: two of them, or any number with a baseline.

    tier-compare runs/a-evaluation runs/b-evaluation
    tier-compare runs/a-evaluation runs/b-evaluation --output_dir runs/a-and-b
    tier-compare CheXzero=runs/a BioViL=runs/b ours=runs/c --baseline ours --output_dir runs/all
    tier-compare predictions.csv --radiologists cheXpert-test-set-labels --threshold_table validation.csv

A result is a folder that tier-eval wrote (metrics.json, predictions.parquet). Two folders, A and B: prints what B
gains on A for each finding and on average, with paired intervals and p-values. More folders, names (NAME=FOLDER) or
--baseline: prints one table of all models, and what each gains on the baseline, with Holm's correction over the
models. With --output_dir, also writes the tables as JSON, Markdown, LaTeX, a figure and an HTML page.
With --radiologists, A is a table of predictions by any program (columns study_id, score_Edema and so on). It is
compared with the three radiologists of CheXpert's test set.
Exit code 0, or 2 with one sentence about the fault; in that case, nothing is written.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from command_line import Parser, command_name, one_sentence_errors
from evaluation_tier.options import add_trained_options
from evaluation_tier.output.writing import check_writable

COMMAND = command_name("tier-compare", __file__)


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="folder of an evaluation, or NAME=FOLDER to choose its name in the tables (default: the folder's name)",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="name of the result that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--n_bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples of patients (default: 1000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the bootstrap (default: 0)")
    parser.add_argument("--output_dir", metavar="FOLDER", help="where to write (default: print only)")
    add_trained_options(
        parser,
        exclude="exclude from all results the images that any of the models was trained on; by default they are "
        "refused",
        include="count these images; the comparison says so",
    )
    readers = parser.add_argument_group("predictions of any program, against radiologists")
    readers.add_argument(
        "--radiologists", metavar="FOLDER", help="labels of CheXpert's test set; A is then a table of predictions"
    )
    readers.add_argument(
        "--threshold_table",
        metavar="FILE",
        help="predictions and labels (label_Edema, ...) of a validation set, to choose thresholds on (default: the "
        "predictions themselves, which is optimistic)",
    )
    readers.add_argument(
        "--protocol",
        metavar="NAME",
        help='protocol of tier-eval that sets thresholds and intervals: "tier" chooses a separate threshold '
        'for F1, "chexzero" uses that of MCC (default: chexzero)',
    )
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped option answer at once
    from evaluation_tier.output.baseline_comparison import (
        compared_table,
        differences_table,
        models_table,
        write_baseline_comparison,
    )
    from evaluation_tier.output.comparison import comparison_tables, write_comparison
    from evaluation_tier.output.tables import text_table
    from evaluation_tier.statistics.baseline_comparison import compare_with_baseline, has_name, name_results
    from evaluation_tier.statistics.comparison import compare_evaluations
    from evaluation_tier.statistics.resampling import Resampling

    if args.n_bootstrap < 1:
        raise ValueError(f"--n_bootstrap must be at least 1, but is {args.n_bootstrap}.")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {args.seed}.")
    if args.output_dir is not None:
        check_writable(Path(args.output_dir), "--output_dir")
    if args.radiologists is not None:
        compare_with_readers(args)
        return
    for name in ("threshold_table", "protocol"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} has no effect without --radiologists.")
    if len(args.results) == 1:
        raise ValueError(
            "B is missing: name a second evaluation, or pass --radiologists if A is a table of predictions."
        )
    resampling = Resampling(args.n_bootstrap, args.seed)
    if len(args.results) == 2 and args.baseline is None and not any(map(has_name, args.results)):
        first, second = args.results
        comparison = compare_evaluations(first, second, resampling, args.trained)
        tables, write = [*chain(*comparison_tables(comparison).values())], write_comparison
    else:
        comparison = compare_with_baseline(name_results(args.results), args.baseline, resampling, args.trained)
        shown = models_table(comparison, with_findings=False), differences_table(comparison)
        tables, write = [*shown, compared_table(comparison)], write_baseline_comparison
    for table in tables:
        print(f"\n{table.title}\n\n{text_table(table.header, table.rows, table.align, table.num_summary)}")
        print(f"\n{table.note}")
    if args.output_dir is not None:
        print("\nWritten:", *write(args.output_dir, comparison), sep="\n  ")


def compare_with_readers(args: argparse.Namespace) -> None:
    """Compare a table of predictions with CheXpert's radiologists; print the result and write it if asked to."""
    from evaluation_tier.analyses.outside_predictions import compare_predictions
    from evaluation_tier.output.metrics_file import write_metrics
    from evaluation_tier.output.result_tables import evaluation_tables
    from evaluation_tier.output.tables import latex_tables, markdown_tables, text_table
    from evaluation_tier.output.writing import write_beside
    from evaluation_tier.scoring.protocols import choose_protocol

    if len(args.results) > 1:
        raise ValueError("--radiologists compares one table of predictions: leave out B.")
    if args.baseline is not None:
        raise ValueError("--baseline has no effect with --radiologists: leave it out.")
    if args.trained != "refuse":
        raise ValueError(f"--{args.trained}_trained has no effect with --radiologists: leave it out.")
    protocol = choose_protocol(args.protocol or "chexzero")
    metrics = compare_predictions(
        args.results[0],
        args.radiologists,
        protocol,
        args.threshold_table,
        num_resamples=args.n_bootstrap,
        seed=args.seed,
    )
    sections = evaluation_tables(metrics)
    for table in sections["radiologists"]:
        print(f"\n{table.title}\n\n{text_table(table.header, table.rows, table.align, table.num_summary)}")
        print(f"\n{table.note}")
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        written = [write_metrics(folder / "radiologists.json", metrics)]
        for name, text in (("md", markdown_tables(sections)), ("tex", latex_tables(sections))):
            path = folder / f"radiologists.{name}"
            written.append(write_beside(path, partial(Path.write_text, data=text, encoding="utf-8")))
        print("\nWritten:", *written, sep="\n  ")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        run(build_parser().parse(argv))


if __name__ == "__main__":
    main()
