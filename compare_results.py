"""Compare two evaluations of the same images: what model B gains on model A, finding by finding and on average.

    tier-compare runs/a-evaluation runs/b-evaluation
    tier-compare runs/a-evaluation runs/b-evaluation --output_dir runs/a-and-b

Each folder is what eval_zeroshot.py wrote (metrics.json, predictions.parquet). Prints tables with paired intervals
and p-values; with --output_dir also writes them as JSON, Markdown, LaTeX, a figure and a page to look at. Exit code
0, or 2 with one sentence on what is wrong; then nothing was written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, check_writable, one_sentence_errors


def build_parser() -> Parser:
    parser = Parser(
        prog="tier-compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="A", help="folder of the evaluation that the other is compared with")
    parser.add_argument("second", metavar="B", help="folder of the other evaluation; differences are B minus A")
    parser.add_argument(
        "--n_bootstrap", type=int, default=1000, metavar="N", help="resamples of the patients (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (default: 0)")
    parser.add_argument("--output_dir", metavar="FOLDER", help="where to write (default: print only)")
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--exclude_trained",
        dest="trained",
        action="store_const",
        const="exclude",
        default="refuse",
        help="leave out of both the images that one of the models was trained on, which are otherwise refused",
    )
    trained.add_argument(
        "--include_trained",
        dest="trained",
        action="store_const",
        const="include",
        help="count them; the comparison says so",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped option answer at once
    from evaluation_tier.compare import compare_results, comparison_tables, write_comparison
    from evaluation_tier.tables import text_table

    if args.n_bootstrap < 1:
        raise ValueError(f"--n_bootstrap must be at least 1, but is {args.n_bootstrap}.")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {args.seed}.")
    if args.output_dir is not None:
        check_writable(Path(args.output_dir), "--output_dir")
    comparison = compare_results(args.first, args.second, args.n_bootstrap, args.seed, args.trained)
    for tables in comparison_tables(comparison).values():
        for table in tables:
            print(f"\n{table.title}\n\n{text_table(table.header, table.rows, table.align, table.num_summary)}")
            print(f"\n{table.note}")
    if args.output_dir is not None:
        print("\nWritten:", *write_comparison(args.output_dir, comparison), sep="\n  ")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors("compare_results.py"):
        run(build_parser().parse(argv))


if __name__ == "__main__":
    main()
