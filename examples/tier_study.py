"""
Does the entropy penalty help? Trains each form of it on each data set with each seed, measures all of them, and
compares each form with the training without a penalty, paired over the seeds. Method and results: docs/tier_study.md.

    python examples/tier_study.py --output_dir runs/study
    python examples/tier_study.py --output_dir runs/study --data phantom FOLDER --seeds 0 1 2 3 4 --jobs 2
    python examples/tier_study.py --output_dir runs/study --data FOLDER --grounding_data BOXES --forms paper both-5

A *cell* is one form on one data set with one seed. Run the same command again after an interruption: a finished cell
is not trained again, an unfinished one starts again. Writes cells.parquet (every number), differences.parquet (form
minus none, with intervals) and study.md (the tables of the page) into --output_dir. The exit code is 0; 1 if a cell
failed, which the tables say; 2 after one sentence about bad input.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from command_line import Parser, one_sentence_errors  # noqa: E402
from evaluation_tier.output.writing import check_writable  # noqa: E402

COMMAND = Path(__file__).name

REFERENCE = "none"  # all other forms are compared with it

WEIGHTS = (0.01, 0.1, 0.2, 0.5, 5)  # the authors searched 0 to 0.5; 5 lies beyond


def weights(token: float, patch: float, evidence: float = 0) -> dict[str, Any]:
    return {"token_entropy_weight": token, "patch_entropy_weight": patch, "evidence_entropy_weight": evidence}


FREE_PATCHES = {"demo-phantom": 55, "indiana": 14}  # 28 % of their 196 and 49 patches

# A form of the penalty: options of tier-train over the recipe of the data. "none" sets the weight of every term to 0,
# whatever the recipe has, and each other form names all weights that it needs. A value may depend on the recipe.
FORMS: dict[str, dict[str, Any]] = {
    REFERENCE: weights(0, 0),
    "paper": {**weights(0.2, 0.2), "entropy_temperature": 1, "entropy_tokens": "all"},
    **{f"token-{weight}": weights(weight, 0) for weight in WEIGHTS},
    **{f"patch-{weight}": weights(0, weight) for weight in WEIGHTS},
    **{f"both-{weight}": weights(weight, weight) for weight in WEIGHTS},
    "sharp": {**weights(0.1, 0), "entropy_temperature": 0.1, "entropy_warmup_steps": 0.3},
    **{
        f"evidence-{weight}": {
            **weights(0, 0, weight),
            "evidence_patches": FREE_PATCHES,
            "entropy_warmup_steps": 0.3,
        }
        for weight in (0.1, 0.3)
    },
    "ceiling": {"task": "classification"},  # the same image tower, taught by the labels
}


def build_parser() -> Parser:
    parser = Parser(COMMAND, __doc__)
    parser.add_argument("--output_dir", required=True, metavar="FOLDER", help="where trainings and results are kept")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["phantom"],
        metavar="DATA",
        help='"phantom" (recipe demo-phantom, evaluated on its split test), or radiographs with reports, as for '
        "tier-train (recipe indiana, evaluated on their split validation); default: phantom",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=list(FORMS),
        metavar="NAME",
        help=f"forms of the penalty, compared with {REFERENCE!r}, which is always trained (default: all): "
        f"{', '.join(FORMS)}",
    )
    parser.add_argument(
        "--grounding_data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="data with boxes or masks, all splits of it, on which the models trained on radiographs are measured too",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="options of tier-train for every training, such as num_train_epochs=2; a form overrides them",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="cells that run at the same time; the cores are divided among them (default: %(default)s)",
    )
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, after the checks that need no data; `options` becomes a mapping."""
    args = build_parser().parse(argv)
    for name in args.forms:
        if name not in FORMS:
            raise ValueError(f"the form {name!r} is not known: choose from {', '.join(FORMS)}.")
    args.forms = [name for name in FORMS if name in (REFERENCE, *args.forms)]
    args.seeds = list(dict.fromkeys(args.seeds))
    if min(args.seeds) < 0:
        raise ValueError(f"--seeds must not be negative, but {min(args.seeds)} is.")
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, but is {args.jobs}.")
    for word in args.options:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--options takes NAME=VALUE, not {word!r}: write for example num_train_epochs=2.")
    args.options = dict(word.split("=", 1) for word in args.options)
    check_writable(Path(args.output_dir), "--output_dir")
    return args


def run(args: argparse.Namespace) -> int:
    """Run the cells that are not finished, write the results and print the tables; returns the exit code."""
    # Imported here, so that --help and a mistyped option answer at once
    from study_results import compare, failed_lines, make_tables, print_tables, read_results, write_results
    from study_runs import Study, run_cells

    from training_tier.loop.locking import locked

    forms = {name: FORMS[name] for name in args.forms}
    study = Study.of(Path(args.output_dir), args.data, forms, args.options, args.seeds, args.grounding_data)
    with locked(study.folder):
        study.check_and_describe()
        failures = run_cells(study, args.jobs, max(1, (os.cpu_count() or 1) // args.jobs))
        cells = read_results(study)
        differences = compare(cells, REFERENCE)
        tables = make_tables(cells, differences, REFERENCE, len(args.seeds))
        failed = failed_lines(failures)
        written = write_results(study.folder, cells, differences, tables, failed)
    print_tables(tables)
    for line in [*failed, "", "Written:", *(f"  {path}" for path in written)]:
        print(line)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad, SystemExit(1) see above."""
    with one_sentence_errors(COMMAND, interrupted="interrupted; run the same command again to continue."):
        args = parse(argv)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its processes too, as Ctrl-C does
        if code := run(args):
            raise SystemExit(code)


if __name__ == "__main__":
    main()
