"""
Measures of the maps of a model that tier-eval does not have.

    python examples/measure_maps.py boxes runs/mine FOLDER runs/mine-boxes
    python examples/measure_maps.py words runs/phantom phantom runs/phantom-words --split test
    python examples/measure_maps.py sides runs/phantom phantom runs/phantom-sides --split test

"boxes" is its analysis grounding on all splits of a data set together, and without labels. "words" asks whether the
words that name a finding point at it, and "sides" whether the model tells left from right, both on the phantom, whose
words are known. Writes metrics.json with the part `grounding`, `words` or `sides` into the last folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages, when they are not installed

from command_line import Parser, one_sentence_errors  # noqa: E402
from evaluation_tier.output.writing import check_writable  # noqa: E402

COMMAND = Path(__file__).name


def measure(what: str, model_name: str, data: str, split: str | None = None) -> dict:
    """
    The numbers without those of each region.

    Args:
        what: `"boxes"`, see `evaluate_grounding`, `"words"`, see `evaluate_word_grounding`, or `"sides"`, see
            `evaluate_sides`.
        model_name: see `load_model`.
        data: see `read_records`.
        split: by default all of them.
    """
    # Imported here, so that --help and a mistyped option answer at once
    import datasets

    from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
    from evaluation_tier.analyses.sides import evaluate_sides
    from evaluation_tier.analyses.word_grounding import evaluate_word_grounding
    from evaluation_tier.models.loading import load_model
    from processing_tier.readers import dataset_name, list_splits, read_records

    splits = list_splits(data) if split is None else [split]
    records = datasets.concatenate_datasets([read_records(data, name) for name in splits])
    model, processor = load_model(model_name)
    if what == "words":
        return {"words": evaluate_word_grounding(model, processor, records)}
    if what == "sides":
        return {"sides": evaluate_sides(model, processor, records)}
    results = evaluate_grounding(model, processor, records, dataset_name=dataset_name(data))
    del results["regions"]
    return {"grounding": results}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors(COMMAND):
        parser = Parser(COMMAND, __doc__)
        parser.add_argument("what", choices=("boxes", "words", "sides"), help="what to measure: boxes, words or sides")
        parser.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hub")
        parser.add_argument("data", metavar="DATA", help="data with boxes or masks, as for tier-eval")
        parser.add_argument("output_dir", metavar="FOLDER", help="where to write metrics.json")
        parser.add_argument("--split", help="split to measure (default: all together)")
        args = parser.parse(argv)
        check_writable(Path(args.output_dir), "FOLDER")
        results = measure(args.what, args.model, args.data, args.split)
        from evaluation_tier.output.metrics_file import write_metrics

        print(write_metrics(Path(args.output_dir) / "metrics.json", results))


if __name__ == "__main__":
    main()
