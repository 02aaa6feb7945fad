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
import logging
import os
import tempfile
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from command_line import Parser, check_writable, find_existing, one_sentence_errors

if TYPE_CHECKING:
    import datasets
    import pandas as pd


logger = logging.getLogger(__name__)

MAX_COUNT = 2**31 - 1  # of images, resamples and the like
ANALYSES = ("grounding", "retrieval", "sparsity", "robustness")
# What an evaluation writes only where it was asked for, by the part of metrics.json that tells of it; there is also a
# similarity map for each finding
OCCASIONAL = {
    "findings": (
        *("findings.png", "roc.png", "precision_recall.png", "calibration.png", "subgroups.png"),
        *("training_curves.png", "similarity_of_models.png"),
    ),
    "grounding": ("grounding.png", "grounding_regions.parquet"),
    "sparsity": ("sparsity.png", "sparsity_relative.png"),
    "robustness": ("robustness.png",),
}


def build_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="model folder, or a name on the Hub (owner/name, or owner/name@revision); several are one "
        "ensemble, their scores averaged",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        help='"phantom" (synthetic), an image folder, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), NAME:FOLDER for '
        "an archive as its owner ships it, what tier-prepare wrote, or a data set on the Hub (owner/name)",
    )
    data.add_argument(
        "--split",
        help='split to evaluate; "held_out" is the part that the training of the model set aside (default: '
        "validation, or the usual one of the benchmark; of data without splits held_out, else all images)",
    )
    trained = data.add_mutually_exclusive_group()
    trained.add_argument(
        "--exclude_trained",
        dest="trained",
        action="store_const",
        const="exclude",
        default="refuse",
        help="leave out images that the model was trained on, and other images of its training patients, which are "
        "otherwise refused",
    )
    trained.add_argument(
        "--include_trained",
        dest="trained",
        action="store_const",
        const="include",
        help="count them; metrics.json, page and card say so",
    )
    data.add_argument("--image_root", metavar="FOLDER", help="folder that a table's image paths start from")
    data.add_argument(
        "--columns", nargs="+", metavar="NAME=COLUMN", default=[], help="a table's own column names: image=Path ..."
    )
    data.add_argument("--sheet", help="sheet of an Excel table that has several")
    data.add_argument(
        "--label_values",
        nargs="+",
        metavar="WORD=LABEL",
        help="words that a table has for findings: yes=1 no=0 unclear=-1 unknown= (1 present, 0 absent, -1 uncertain, "
        "nothing not stated)",
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
        help='"report" (sentences of reports), "chexzero", "tier", "tier-padchest", "tier-covid" or "plain" (default: '
        "%(default)s)",
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
        "--output_dir",
        metavar="FOLDER",
        help="where to write (default: runs/evaluation/MODEL-DATA-SPLIT, by their names)",
    )
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an evaluation of another model, of other data or of another split in --output_dir",
    )
    run.add_argument(
        "--figures",
        action="store_true",
        help="also draw curves, calibration, one similarity map per finding (several models side by side, too), what "
        "--analyses found, and the model's training curves where it has them",
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
        raise ValueError('no data are named: give --data "phantom", a folder, or a table.')
    for name in ("min_positives", "n_bootstrap", "batch_size", "max_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, but is {value}.")
        if value is not None and value > MAX_COUNT:
            raise ValueError(f"--{name} must be at most {MAX_COUNT:,}, but is {value}.")
    for name in ("split", "threshold_split", "output_dir", "cache_dir", "prompts", "image_root", "radiologists"):
        if getattr(args, name) == "":
            raise ValueError(f"--{name} is empty: leave it out, or name one.")
    if args.radiologists is not None and not Path(args.radiologists).is_dir():
        raise ValueError(f"--radiologists {args.radiologists}: name the folder that holds the radiologists' labels.")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, but is {args.seed}.")
    if args.columns:
        from processing_tier.records.table_options import parse_columns  # which takes a while to import

        args.columns = parse_columns(args.columns)
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


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped option answer at once
    from transformers.utils import logging

    from evaluation_tier.figures import style
    from evaluation_tier.models.processes import is_main_process, joined_processes

    logging.disable_progress_bar()  # those of loading weights
    if args.figures:
        style.import_matplotlib()
    with joined_processes(args.device) as device:
        evaluation = evaluate(args, device)
        if is_main_process():
            evaluation.metrics.update(analyse(args, evaluation))
            written = write(args, evaluation)
            print_results(args, evaluation.metrics, written)


class Evaluation(NamedTuple):
    """What was evaluated and what came of it, the same in every process."""

    metrics: dict
    predictions: "pd.DataFrame"
    dataset: "datasets.Dataset"
    threshold_dataset: "datasets.Dataset | None"
    prompts: dict  # by finding, also of those that only boxes and masks mark
    models: dict  # name to (model, processor), or to a function that loads these
    radiologists: "pd.DataFrame | None"  # the labels of --radiologists

    def load(self, name: str | None = None) -> tuple:
        """A model, by default the first one, and its processor."""
        member = self.models[name or next(iter(self.models))]
        return member() if callable(member) else member


def evaluate(args: argparse.Namespace, device) -> Evaluation:
    """Read models and data, and score the findings."""
    from evaluation_tier.models import loading, trained_on
    from evaluation_tier.models.processes import fail_together
    from evaluation_tier.output import folder
    from evaluation_tier.scoring import protocols, zeroshot
    from evaluation_tier.test_sets import loader
    from processing_tier import readers
    from processing_tier.records.labels import parse_label_values
    from processing_tier.records.schema import check_disjoint_patients, select_views
    from processing_tier.records.table_options import TableOptions

    # 1. Models and data
    benchmark = loader.load_benchmark(args.benchmark) if args.benchmark else None
    views = args.views or (benchmark.views if benchmark else "frontal")
    min_positives = args.min_positives or (benchmark.min_positives if benchmark else 10)
    split = args.split or (next(iter(benchmark.splits)) if benchmark else None)
    if args.threshold_split and args.threshold_split == split:
        raise ValueError(f"--threshold_split is the evaluated split {split!r}: name another or leave it out.")
    protocol = protocols.choose_protocol(args.protocol, args.prompts, args.scoring, args.no_finding)
    if args.save_thresholds and (protocol.scoring == "sigmoid" or args.score_level != "global"):
        raise ValueError(
            "--save_thresholds is for scores as the pipeline makes them: leave out --score_level, and choose a "
            "protocol with negative sentences."
        )
    for name in args.models:
        loading.check_name(name)
    names = loading.short_names(args.models)
    table = TableOptions(args.columns or None, args.image_root, args.sheet, parse_label_values(args.label_values))
    with fail_together():
        lists = trained_on.read_lists(names)
        split = split or trained_on.choose_split(args.data, table, lists)
    if args.threshold_split == split:
        raise ValueError(f"--threshold_split is the evaluated split {split!r}: name another or leave it out.")
    name, origin = readers.dataset_name(args.data), readers.origin_name(args.data)
    identity = {"models": list(names.values()), "dataset": name, "split": split, "benchmark": args.benchmark}
    identity["protocol"] = protocol.name
    args.output_dir = folder.choose_folder(args.output_dir, identity, args.overwrite)
    overlaps: dict[str, tuple] = {}  # split to what the protocol says of it, and which images are of the training

    def read(split: str):
        if benchmark:
            data = loader.benchmark_data(benchmark, args.data, split)
            dataset = readers.read_records(data, split, table)
        else:
            dataset = trained_on.read_split(args.data, split, table, lists)
        dataset = select_views(dataset, views, split)
        dataset = loader.apply_benchmark(benchmark, dataset, split) if benchmark else dataset
        dataset = dataset.select(range(min(args.max_images or len(dataset), len(dataset))))
        dataset, *overlaps[split] = trained_on.check_overlap(lists, dataset, origin, split, args.trained)
        return dataset

    with fail_together():
        models = {names[name]: partial(loading.load_model, name, device) for name in args.models}
        if len(models) == 1:
            model, processor = loading.load_model(args.models[0], device)
            models = {names[args.models[0]]: (model, processor)}
            if args.save_thresholds and (
                loading.is_classifier(model) or not hasattr(model.config, "zero_shot_findings")
            ):
                raise ValueError(
                    f"--save_thresholds needs a TIER model, and {args.models[0]} holds a {type(model).__name__}."
                )
        dataset = read(split)
        read_splits = {split: dataset}
        threshold_dataset = None
        if args.threshold_split:
            threshold_dataset = read_splits[args.threshold_split] = read(args.threshold_split)
            check_disjoint_patients(**read_splits)
        differs = [
            sentence
            for name, data in (read_splits.items() if benchmark else ())
            for sentence in loader.published_differences(benchmark, data, name)
        ]
        replaced = loader.benchmark_prompts(benchmark, args.protocol) if benchmark and not args.prompts else {}
        marked, radiologists = check_analyses(args, models, dataset, threshold_dataset)
        prompts = protocols.find_prompts(protocol.prompts, marked, replaced)
    for sentence in differs:
        logger.warning(sentence)

    # 2. Evaluation
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
        dataset_name=name,
        protocol=args.protocol,
        no_finding=args.no_finding,
        replaced_prompts=replaced,
        score_level=args.score_level,
        cache_dir=args.cache_dir,
    )
    named = {"benchmark": benchmark.name, "benchmark_differs": differs} if benchmark else {}
    overlap, seen = overlaps[split]
    commits = {names[name]: commit for name in args.models if (commit := loading.hub_commit(name))}
    metrics |= {"commits": commits} if commits else {}
    metrics["protocol"] = {**named, "split": split, "views": views, **overlap, **metrics["protocol"]}
    if seen.any():
        predictions["trained_on"] = seen[predictions.index]
    if args.threshold_split:
        metrics["protocol"]["thresholds"] = protocol.rule.describe(f"the split {args.threshold_split!r}")
        if "trained" in overlaps[args.threshold_split][0]:
            metrics["protocol"]["threshold_overlap"] = overlaps[args.threshold_split][0]["training_overlap"]
    if args.trained != "refuse" and not any("trained" in of_split for of_split, _ in overlaps.values()):
        logger.warning("--%s_trained has no effect: no evaluated image is of the training.", args.trained)
    if metrics["protocol"]["scoring"] != "logit":
        prompts |= protocols.find_prompts(protocol.prompts, list(metrics["findings"]), replaced)
    return Evaluation(metrics, predictions, dataset, threshold_dataset, prompts, models, radiologists)


def check_analyses(
    args: argparse.Namespace,
    models: dict,
    dataset: "datasets.Dataset",
    threshold_dataset: "datasets.Dataset | None",
) -> tuple[list[str], "pd.DataFrame | None"]:
    """Refuse, before the evaluation, what --analyses and --radiologists could not do after it.

    Returns:
        The findings that grounding is to be measured of, and the radiologists' labels, as far as they are asked for.
    """
    from evaluation_tier.analyses import radiologists, retrieval, sparsity
    from evaluation_tier.analyses.grounding import maps, regions
    from evaluation_tier.analyses.robustness import evaluation
    from processing_tier.readers.chexpert import read_radiologists

    for name, member in models.items() if args.analyses else ():  # one at a time; only sparsity takes several
        model, processor = member() if callable(member) else member
        if "grounding" in args.analyses:
            maps.check_gives_maps(model)
        if "retrieval" in args.analyses:
            retrieval.check_embeds_texts(model)
        if "sparsity" in args.analyses:
            sparsity.check_models({name: (model, processor)})
        if "robustness" in args.analyses:
            evaluation.check_has_sentences(model)
    if {"retrieval", "sparsity"} & set(args.analyses):
        retrieval.read_texts(dataset)
    marked = []
    if "grounding" in args.analyses:
        marked = sorted({case.finding for case in regions.read_cases(dataset)})
        if threshold_dataset is not None:
            regions.read_cases(threshold_dataset)
    if args.radiologists is None:
        return marked, None
    readers = read_radiologists(args.radiologists)
    radiologists.check_readers(dataset["study_id"][:], readers)
    return marked, readers


def analyse(args: argparse.Namespace, evaluation: Evaluation) -> dict:
    """What --analyses and --radiologists ask for, by name."""
    from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
    from evaluation_tier.analyses.radiologists import compare_evaluation
    from evaluation_tier.analyses.retrieval import evaluate_retrieval
    from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
    from evaluation_tier.analyses.sparsity import evaluate_sparsity
    from evaluation_tier.scoring.findings import is_scored_by_others

    metrics, dataset = evaluation.metrics, evaluation.dataset
    results = {}
    if evaluation.radiologists is not None:
        study_ids = dataset.select(evaluation.predictions.index)["study_id"]
        results["radiologists"] = compare_evaluation(
            metrics, evaluation.predictions, study_ids[:], evaluation.radiologists
        )
    options = {"n_bootstrap": args.n_bootstrap, "seed": args.seed, "batch_size": args.batch_size}
    options["dataset_name"] = metrics["dataset"]
    for name in ANALYSES:
        if name not in args.analyses:
            continue
        if name == "sparsity":
            models = {model: evaluation.load(model) for model in evaluation.models}
            results[name] = evaluate_sparsity(models, dataset, **options)
            continue
        model, processor = evaluation.load()
        if name == "retrieval":
            results[name] = evaluate_retrieval(model, processor, dataset, **options)
            continue
        if name == "grounding":
            results[name] = evaluate_grounding(
                model,
                processor,
                dataset,
                evaluation.prompts,
                threshold_dataset=evaluation.threshold_dataset,
                **options,
            )
        else:
            findings = [
                finding
                for finding in metrics["findings"]
                if not is_scored_by_others(finding, metrics["protocol"])  # no sentence of theirs gives such a score
            ]
            min_positives = metrics["protocol"]["min_positives"]
            results[name] = evaluate_robustness(
                model, processor, dataset, findings, evaluation.prompts, min_positives, **options
            )
        results[name]["protocol"]["prompts"] = metrics["protocol"]["prompts"]
    return results


def write(args: argparse.Namespace, evaluation: Evaluation) -> list[Path]:
    """Write the files; those of an earlier evaluation stay until all are made, and what is not made again goes."""
    from evaluation_tier.output import model_card, thresholds
    from evaluation_tier.scoring.findings import is_scored_by_others

    folder = Path(args.output_dir)
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=find_existing(folder)) as made:
        files = make_files(args, evaluation, Path(made))
        written = [folder / path.name for path in files]
        for path in written:
            if path.is_dir():
                raise ValueError(f"{path} is a folder, where a file is to be written: choose another --output_dir.")
        of_model = []
        metrics = evaluation.metrics
        if args.save_thresholds:
            kept = {
                finding: result
                for finding, result in metrics["findings"].items()
                if not is_scored_by_others(finding, metrics["protocol"])  # which the pipeline cannot do
            }
            fitted_on = evaluation.threshold_dataset
            measured_on = {
                "dataset": metrics["dataset"],
                "split": args.threshold_split or metrics["protocol"]["split"],
                "images": metrics["n_images"] if fitted_on is None else len(fitted_on),
                "date": date.today().isoformat(),
            }
            of_model.append(
                thresholds.write_thresholds(
                    args.models[0], {**metrics, "findings": kept}, evaluation.prompts, measured_on
                )
            )
        if args.model_card:  # last: it says whether the model is calibrated
            of_model.append(model_card.write_model_card(args.models[0], metrics))
        stale = set(find_occasional(folder)) - set(written)
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(files, written, strict=True):
            os.replace(source, target)
    for path in stale:
        path.unlink()
    return written + of_model


def find_occasional(folder: Path) -> list[Path]:
    """The files in a folder that an earlier evaluation wrote there, and that another may not write again."""
    from evaluation_tier.output import metrics_file
    from evaluation_tier.output.file_names import file_names

    if not (folder / "metrics.json").is_file():
        return []
    try:
        metrics = metrics_file.read_metrics(folder)
    except ValueError:  # damaged: whose similarity maps these are is not known
        metrics = {"findings": {}}
    names = [name for part, names in OCCASIONAL.items() if part in metrics for name in names]
    names += [f"similarity_{name}.png" for name in file_names(metrics["findings"]).values()]
    return [folder / name for name in names if (folder / name).is_file()]


def make_files(args: argparse.Namespace, evaluation: Evaluation, folder: Path) -> list[Path]:
    """Fill a folder with what an evaluation writes."""
    import pandas as pd

    from evaluation_tier.figures import training
    from evaluation_tier.figures.of_evaluation import draw_figures
    from evaluation_tier.output import metrics_file, page
    from evaluation_tier.output.predictions import write_predictions
    from evaluation_tier.scoring import protocols

    metrics, predictions, dataset, _, prompts, _, _ = evaluation
    files = []
    if args.figures:
        no_finding = None
        if metrics["protocol"]["scoring"] != "logit":
            sentences = protocols.choose_protocol(args.protocol).prompts  # a file of one's own may have none
            no_finding = protocols.find_prompts(sentences, ["No Finding"])["No Finding"]
        files += draw_figures(evaluation.load, dataset, prompts, no_finding, metrics, predictions, folder)
        training_log = Path(args.models[0]) / "trainer_state.json"
        if len(args.models) == 1 and training_log.is_file():
            files.append(training.plot_training_curves(training_log, folder / "training_curves.png"))
    files.append(write_predictions(folder / "predictions.parquet", predictions))
    if "grounding" in metrics:
        regions = pd.DataFrame(metrics["grounding"].pop("regions"))
        files.append(write_predictions(folder / "grounding_regions.parquet", regions))
    files.append(metrics_file.write_metrics(folder / "metrics.json", metrics))
    return files + page.write_report(folder, draw=args.figures)


def print_results(args: argparse.Namespace, metrics: dict, written: Sequence[Path]) -> None:
    """What the user sees."""
    from evaluation_tier.output import model_card, tables
    from processing_tier.escaping import printable

    protocol = metrics["protocol"]
    kind = "Classifier" if protocol["scoring"] == "logit" else "Zero-shot"
    print(
        f"\n{kind} on {printable(model_card.describe_dataset(metrics['dataset']))}, split {protocol['split']!r}: ",
        end="",
    )
    print(f"{metrics['n_images']:,} images of {protocol['n_patients']:,} patients\n")
    print(model_card.format_table(metrics))
    if "score_levels" in metrics:
        levels = ", ".join(
            f"{level} {tables.format_number(result['auroc'])} ({tables.format_interval(result['auroc_ci95'])})"
            for level, result in metrics["score_levels"].items()
        )
        print(f"\nMean AUROC by score level (95 % CI): {levels}")
    if protocol["findings_left_out"]:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in protocol["findings_left_out"].items())
        print(f"\nLeft out: {printable(reasons)}")
    if protocol["images_skipped"]:
        print(f"\nSkipped, did not decode: {printable(', '.join(protocol['images_skipped']))}")
    print("\nModel:", *map(printable, args.models), sep="\n  ")
    print("\nWritten:", *map(printable, written), sep="\n  ")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    with one_sentence_errors("eval_zeroshot.py"):
        run(parse(argv))


if __name__ == "__main__":
    main()
