"""Evaluate a TIER or CLIP model zero-shot on chest radiographs, or a classifier of train_tier.py by its logits.

    python eval_zeroshot.py runs/demo --data phantom --split validation --figures
    python eval_zeroshot.py runs/mine --data FOLDER --findings Cardiomegaly "Pleural Effusion"
    python eval_zeroshot.py owner/name --data phantom --split test
    python eval_zeroshot.py runs/mine --benchmark chexpert-5 --data chexpert:FOLDER --protocol chexzero
    accelerate launch eval_zeroshot.py runs/mine --data FOLDER
    python eval_zeroshot.py runs/seed1 runs/seed2 --data labels.csv --image_root images --columns image=Path

Prints a table and writes metrics.json, predictions.parquet, tables.md, tables.tex and report.html, a page to look at
(and figures, and the model card, when asked). Two results of the same images: compare_results.py.
Exit code 0, or 2 with one sentence on what is wrong; then nothing was written.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import datasets
    import pandas as pd


ANALYSES = ("grounding", "retrieval", "sparsity", "robustness")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as a ValueError, and which option was meant."""

    def error(self, message: str):
        raise ValueError(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; positional ones may stand between options."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown and not unknown[0].startswith("-"):
            raise ValueError(f"unknown argument {unknown[0]}: see --help.")
        if unknown:
            known = re.findall(r"--\w+", self.format_usage())
            close = difflib.get_close_matches(
                unknown[0].split("=")[0].replace("-", "_").replace("__", "--", 1), known, n=1
            )
            hint = f"did you mean {close[0]}?" if close else "see --help."
            raise ValueError(f"unknown option {unknown[0]}: {hint}")
        return args


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="model folder, or a name on the Hub (owner/name); several are one ensemble, their scores averaged",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        help='"phantom" (synthetic), an image folder, a .csv or .parquet table, NAME:FOLDER for an archive as its '
        "owner ships it, what tier-prepare wrote, or a data set on the Hub (owner/name)",
    )
    data.add_argument("--split", help="split to evaluate (default: validation, or the usual one of the benchmark)")
    data.add_argument("--image_root", metavar="FOLDER", help="folder that a table's image paths start from")
    data.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", default=[], help="a table's own column names: image=Path ..."
    )
    data.add_argument(
        "--views",
        choices=("frontal", "all"),
        help="images to evaluate by their view (default: frontal, or what the benchmark takes)",
    )
    data.add_argument("--max_images", type=int, metavar="N", help="evaluate the first N images only")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--findings", nargs="+", metavar="NAME", help="findings to evaluate (default: all with enough positives)"
    )
    protocol.add_argument(
        "--min_positives",
        type=int,
        metavar="N",
        help="positives that a finding needs (default: 10, or what the benchmark asks)",
    )
    protocol.add_argument(
        "--protocol",
        default="report",
        metavar="NAME",
        help='"report" (sentences of reports), "chexzero", "tier", "tier-padchest" or "plain" (default: %(default)s)',
    )
    protocol.add_argument(
        "--benchmark",
        metavar="NAME",
        help='a published test set, such as "chexpert-5": its findings, images and expected counts; any other name '
        "lists them",
    )
    protocol.add_argument(
        "--prompts",
        help="in place of the protocol's: the name of its prompts (as the protocols are called) or a YAML file",
    )
    protocol.add_argument(
        "--scoring",
        choices=("difference", "softmax", "sigmoid"),
        help="in place of the protocol's: cosine to the positive minus to the negative sentences (TIER), their "
        "softmax (CheXzero), or the sigmoid of the positive one",
    )
    protocol.add_argument(
        "--no_finding",
        choices=("prompts", "others"),
        help='in place of the protocol\'s: score "No Finding" by its own sentences, or by the other findings',
    )
    protocol.add_argument(
        "--score_level",
        default="global",
        metavar="LEVEL",
        help='what is scored: the image as a whole ("global"), its patches ("patches-max", "patches-topk", '
        '"patches-lse") or the mean of both ("both-max", ...); all are compared anyway (default: %(default)s)',
    )
    protocol.add_argument(
        "--threshold_split",
        metavar="SPLIT",
        help="choose the thresholds of MCC and F1 there (default: on the evaluated split, which flatters them)",
    )
    protocol.add_argument(
        "--n_bootstrap", type=int, default=1000, metavar="N", help="resamples for the 95 %% intervals (default: 1000)"
    )
    protocol.add_argument("--seed", type=int, default=0, help="of the resampling (default: 0)")
    more = parser.add_argument_group("more than AUROC")
    more.add_argument(
        "--analyses",
        nargs="+",
        choices=ANALYSES,
        default=[],
        metavar="NAME",
        help='"grounding" (maps against boxes or masks), "retrieval", "sparsity" (of words and patches, all models '
        'that are named side by side), "robustness" (to wording, negation, sides, empty and degraded images); the '
        "last three read the reports",
    )
    more.add_argument(
        "--radiologists",
        metavar="FOLDER",
        help="of the labels of CheXpert's test set: compare the model with its three radiologists",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=int, default=32, help="images embedded at once (default: 32)")
    run.add_argument("--device", help='"cpu", "cuda", "cuda:1", "mps" (default: a GPU if there is one)')
    run.add_argument(
        "--cache_dir", metavar="FOLDER", help="keep embeddings there, and take those of the same images and weights"
    )
    run.add_argument(
        "--output_dir", default="runs/evaluation", metavar="FOLDER", help="where to write (default: %(default)s)"
    )
    run.add_argument(
        "--figures",
        action="store_true",
        help="also draw curves, calibration, one similarity map per finding, what --analyses found, and the model's "
        "training curves where it has them",
    )
    run.add_argument("--model_card", action="store_true", help="also write the results into the model's README.md")
    run.add_argument(
        "--save_thresholds",
        action="store_true",
        help="also keep prompts, thresholds and calibration of the findings in the model's config.json, where the "
        "pipeline cxr-zero-shot-classification finds them; they are fitted on --threshold_split where it is given, "
        "else on the evaluated split, which should then be one for validation",
    )
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked as far as that needs neither model nor data."""
    args = build_parser().parse(argv)
    if not args.models:
        raise ValueError("no model is named: give the folder that train_tier.py wrote, or a name on the Hub.")
    if len(set(args.models)) < len(args.models):
        raise ValueError("a model is named twice: an ensemble needs models that differ.")
    if not args.data:
        raise ValueError('no data are named: give --data "phantom", a folder, or a .csv or .parquet table.')
    for name in ("min_positives", "n_bootstrap", "batch_size", "max_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}.")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {args.seed}.")
    for pair in args.columns:
        if not all(pair.partition("=")):
            raise ValueError(f"--columns takes NAME=COLUMN, for example image=Path, but got {pair!r}.")
    for name in ("model_card", "save_thresholds"):
        if getattr(args, name) and len(args.models) > 1:
            raise ValueError(f"--{name} is for one model: evaluate an ensemble without it.")
        if getattr(args, name) and not Path(args.models[0]).is_dir():
            raise ValueError(
                f"--{name} writes into a model folder, and there is none {args.models[0]}: make one of a model on the "
                "Hub by `hf download NAME --local-dir FOLDER`."
            )
    of_one = [name for name in args.analyses if name != "sparsity"]
    if of_one and len(args.models) > 1:
        raise ValueError(f"--analyses {of_one[0]} is for one model: evaluate an ensemble without it.")
    for name in ("output_dir", "cache_dir"):
        if getattr(args, name) is not None:
            check_writable(Path(getattr(args, name)), f"--{name}")
    return args


def check_writable(folder: Path, option: str) -> None:
    """ValueError when the folder could not be written; known before any work, without making it."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {folder} cannot be written: choose another {option}.")


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped option answer at once
    from transformers.utils import logging

    from evaluation_tier import plots
    from evaluation_tier.processes import is_main_process, joined_processes

    logging.disable_progress_bar()  # those of loading weights
    if args.figures:
        plots.import_matplotlib()
    with joined_processes(args.device) as device:
        evaluation = evaluate(args, device)
        if is_main_process():
            results = analyse(args, evaluation)
            evaluation.metrics.update(results)
            write(args, evaluation)


class Evaluation(NamedTuple):
    """What was evaluated and what came of it, the same in every process."""

    metrics: dict
    predictions: "pd.DataFrame"
    dataset: "datasets.Dataset"
    threshold_dataset: "datasets.Dataset | None"
    prompts: dict  # by finding
    models: dict  # name to (model, processor), or to a function that loads these

    def load(self, name: str) -> tuple:
        member = self.models[name]
        return member() if callable(member) else member


def evaluate(args: argparse.Namespace, device) -> Evaluation:
    """Read models and data, and score the findings."""
    from evaluation_tier import benchmarks, loading, protocols, zeroshot
    from evaluation_tier.processes import fail_together
    from processing_tier import readers
    from processing_tier.records import select_views

    # 1. Models and data
    benchmark = benchmarks.load_benchmark(args.benchmark) if args.benchmark else None
    split = args.split or (next(iter(benchmark.splits)) if benchmark else "validation")
    views = args.views or (benchmark.views if benchmark else "frontal")
    min_positives = args.min_positives or (benchmark.min_positives if benchmark else 10)
    if args.threshold_split == split:
        raise ValueError(f"--threshold_split is the evaluated split {split!r}: name another or leave it out.")
    protocol = protocols.choose_protocol(args.protocol, args.prompts, args.scoring, args.no_finding)
    if args.save_thresholds and (protocol.scoring == "sigmoid" or args.score_level != "global"):
        raise ValueError(
            "--save_thresholds is for scores as the pipeline makes them: leave out --score_level, and choose a "
            "protocol with negative sentences."
        )
    for name in args.models:
        loading.check_name(name)
    columns = dict(pair.split("=", 1) for pair in args.columns) or None

    def read(split: str):
        data = benchmarks.benchmark_data(benchmark, args.data, split) if benchmark else args.data
        dataset = readers.read_records(data, split, columns=columns, image_root=args.image_root)
        dataset = select_views(dataset, views, split)
        dataset = benchmarks.apply_benchmark(benchmark, dataset, split) if benchmark else dataset
        return dataset.select(range(min(args.max_images or len(dataset), len(dataset))))

    with fail_together():
        models = {name: partial(loading.load_model, name, device) for name in args.models}
        if len(models) == 1:
            model, processor = loading.load_model(args.models[0], device)
            models = {args.models[0]: (model, processor)}
            if args.save_thresholds and (
                loading.is_classifier(model) or not hasattr(model.config, "zero_shot_findings")
            ):
                raise ValueError(
                    f"--save_thresholds needs a TIER model, and {args.models[0]} holds a {type(model).__name__}."
                )
        dataset = read(split)
        threshold_dataset = read(args.threshold_split) if args.threshold_split else None

    # 2. Evaluation
    replaced = benchmarks.benchmark_prompts(benchmark, args.protocol) if benchmark and not args.prompts else {}
    metrics, predictions = zeroshot.evaluate_zero_shot(
        models,
        dataset,
        findings=args.findings,
        prompts=args.prompts,
        scoring=args.scoring,
        min_positives=min_positives,
        n_bootstrap=args.n_bootstrap,
        seed=args.seed,
        batch_size=args.batch_size,
        threshold_dataset=threshold_dataset,
        dataset_name=readers.dataset_name(args.data),
        protocol=args.protocol,
        no_finding=args.no_finding,
        replaced_prompts=replaced,
        score_level=args.score_level,
        cache_dir=args.cache_dir,
    )
    named = {"benchmark": benchmark.name} if benchmark else {}
    metrics["protocol"] = {**named, "split": split, "views": views, **metrics["protocol"]}
    if args.threshold_split:
        metrics["protocol"]["thresholds"] = f"highest MCC on the split {args.threshold_split!r}"
    prompts = {}
    if metrics["protocol"]["scoring"] != "logit":
        prompts = zeroshot.find_prompts(protocol, list(metrics["findings"]), replaced)
    return Evaluation(metrics, predictions, dataset, threshold_dataset, prompts, models)


def analyse(args: argparse.Namespace, evaluation: Evaluation) -> dict:
    """What --analyses and --radiologists ask for, by name."""
    from evaluation_tier.grounding import evaluate_grounding
    from evaluation_tier.radiologists import compare_evaluation
    from evaluation_tier.retrieval import evaluate_retrieval
    from evaluation_tier.robustness import evaluate_robustness
    from evaluation_tier.sparsity import evaluate_sparsity
    from processing_tier.readers.chexpert import read_radiologists

    metrics, dataset = evaluation.metrics, evaluation.dataset
    results = {}
    if args.radiologists:
        readers = read_radiologists(args.radiologists)
        study_ids = dataset.select(evaluation.predictions.index)["study_id"]
        results["radiologists"] = compare_evaluation(metrics, evaluation.predictions, study_ids[:], readers)
    options = {"n_bootstrap": args.n_bootstrap, "seed": args.seed, "batch_size": args.batch_size}
    options["dataset_name"] = metrics["dataset"]
    prompts = protocol_prompts(args)
    for name in ANALYSES:
        if name not in args.analyses:
            continue
        if name == "sparsity":
            models = {model: evaluation.load(model) for model in args.models}
            results[name] = evaluate_sparsity(models, dataset, **options)
            continue
        model, processor = evaluation.load(args.models[0])
        if name == "grounding":
            results[name] = evaluate_grounding(
                model, processor, dataset, prompts, threshold_dataset=evaluation.threshold_dataset, **options
            )
        elif name == "retrieval":
            results[name] = evaluate_retrieval(model, processor, dataset, **options)
        else:
            findings = list(metrics["findings"])
            results[name] = evaluate_robustness(model, processor, dataset, findings, prompts, **options)
    return results


def protocol_prompts(args: argparse.Namespace):
    """The prompts of the protocol, or what --prompts puts in their place."""
    from evaluation_tier.protocols import choose_protocol

    return choose_protocol(args.protocol, args.prompts, args.scoring, args.no_finding).prompts


def write(args: argparse.Namespace, evaluation: Evaluation) -> None:
    """Write the files and print the table."""
    import pandas as pd

    from evaluation_tier import html_report, plots, report
    from evaluation_tier.zeroshot import is_scored_by_others
    from processing_tier.prompts import load_prompts

    metrics, predictions, dataset, _, prompts, _ = evaluation
    # 3. Files; metrics.json when all is there that it is of, then the page made from it
    folder = Path(args.output_dir)
    written = []
    for path in html_report.find_figures(folder):
        path.unlink()  # of an earlier evaluation, which the page would show beside the new numbers
    if args.figures:
        model, processor = evaluation.load(args.models[0])
        if hasattr(model, "get_similarity_map"):
            written += plots.plot_similarity_maps(
                model, processor, dataset, prompts, predictions, folder, metrics["dataset"]
            )
        if "grounding" in metrics:
            grounding = metrics["grounding"]
            sentences = load_prompts(protocol_prompts(args), list(grounding["findings"]))
            path = folder / "grounding.png"
            written.append(plots.plot_grounding(model, processor, dataset, sentences, grounding, path))
        for name, plot in (("sparsity", plots.plot_sparsity), ("robustness", plots.plot_robustness)):
            if name in metrics:
                written.append(plot(metrics[name], folder / f"{name}.png"))
        training_log = Path(args.models[0]) / "trainer_state.json"
        if len(args.models) == 1 and training_log.is_file():
            written.append(plots.plot_training_curves(training_log, folder / "training_curves.png"))
    written.append(report.write_predictions(folder / "predictions.parquet", predictions))
    if "grounding" in metrics:
        regions = pd.DataFrame(metrics["grounding"].pop("regions"))
        written.append(report.write_predictions(folder / "grounding_regions.parquet", regions))
    written.append(report.write_metrics(folder / "metrics.json", metrics))
    written += html_report.write_report(folder, draw=args.figures)
    if args.save_thresholds:
        kept = {
            finding: result
            for finding, result in metrics["findings"].items()
            if not is_scored_by_others(finding, metrics["protocol"])  # which the pipeline cannot do
        }
        written.append(report.write_thresholds(args.models[0], {**metrics, "findings": kept}, prompts))
    if args.model_card:  # last: it says whether the model is calibrated
        written.append(report.write_model_card(args.models[0], metrics))

    # 4. What the user sees
    protocol = metrics["protocol"]
    kind = "Classifier" if protocol["scoring"] == "logit" else "Zero-shot"
    print(f"\n{kind} on {report.describe_dataset(metrics['dataset'])}, split {protocol['split']!r}: ", end="")
    print(f"{metrics['n_images']:,} images of {protocol['n_patients']:,} patients\n")
    print(report.format_table(metrics))
    if "score_levels" in metrics:
        levels = ", ".join(
            f"{level} {report.format_number(value)}" for level, value in metrics["score_levels"].items()
        )
        print(f"\nMean AUROC by score level: {levels}")
    if protocol["findings_left_out"]:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in protocol["findings_left_out"].items())
        print(f"\nLeft out: {reasons}")
    if protocol["images_skipped"]:
        print(f"\nSkipped, did not decode: {', '.join(protocol['images_skipped'])}")
    print("\nModel:", *args.models, sep="\n  ")
    print("\nWritten:", *written, sep="\n  ")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    try:
        run(parse(argv))
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
            print(f"eval_zeroshot.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
