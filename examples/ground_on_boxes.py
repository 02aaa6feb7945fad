"""
Measure the maps of a model on all boxes and masks of a data set, whatever their split. (`tier-eval` with the analysis
grounding measures one split and scores its findings first, which needs labels.)

    python examples/ground_on_boxes.py runs/mine FOLDER runs/mine-boxes

Writes metrics.json with the part `grounding` into the last folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from command_line import Parser, check_writable, one_sentence_errors  # noqa: E402

COMMAND = Path(__file__).name


def measure(model: str, data: str, output: Path) -> Path:
    """Write the grounding of a model on all splits of the data, without the numbers of each region."""
    # Imported here, so that --help and a mistyped option answer at once
    import datasets

    from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
    from evaluation_tier.models.loading import load_model
    from evaluation_tier.output.metrics_file import write_metrics
    from processing_tier.readers import dataset_name, list_splits, read_records

    records = datasets.concatenate_datasets([read_records(data, split) for split in list_splits(data)])
    results = evaluate_grounding(*load_model(model), records, dataset_name=dataset_name(data))
    del results["regions"]
    return write_metrics(output / "metrics.json", {"grounding": results})


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        parser = Parser(COMMAND, __doc__)
        parser.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hub")
        parser.add_argument("data", metavar="DATA", help="data with boxes or masks, as for tier-eval")
        parser.add_argument("output_dir", metavar="FOLDER", help="where to write metrics.json")
        args = parser.parse(argv)
        check_writable(Path(args.output_dir), "FOLDER")
        print(measure(args.model, args.data, Path(args.output_dir)))


if __name__ == "__main__":
    main()
