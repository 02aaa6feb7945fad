"""One evaluation from arguments to files."""

import argparse
import logging
from functools import partial

import datasets
import pandas as pd
from transformers.utils import logging as transformers_logging

from evaluation_tier.analyses import radiologists as readers_of_chexpert
from evaluation_tier.analyses import retrieval, sparsity
from evaluation_tier.analyses.grounding import maps, regions
from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.radiologists import compare_evaluation
from evaluation_tier.analyses.retrieval import evaluate_retrieval
from evaluation_tier.analyses.robustness import evaluation as robustness
from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
from evaluation_tier.analyses.sparsity import evaluate_sparsity
from evaluation_tier.figures import style
from evaluation_tier.models import loading, trained_on
from evaluation_tier.models.processes import fail_together, is_main_process, joined_processes
from evaluation_tier.options import ANALYSES
from evaluation_tier.output import folder
from evaluation_tier.output.console import format_results
from evaluation_tier.output.evaluation_files import Evaluation, write_evaluation
from evaluation_tier.scoring import protocols, zeroshot
from evaluation_tier.scoring.findings import is_scored_by_others
from evaluation_tier.test_sets import loader
from processing_tier import readers
from processing_tier.readers.chexpert import read_radiologists
from processing_tier.records.labels import parse_label_values
from processing_tier.records.schema import check_disjoint_patients, select_views
from processing_tier.records.table_options import TableOptions

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> str:
    """Evaluate, write the files, and return what to print; `""` in all processes but the main one."""
    transformers_logging.disable_progress_bar()  # those of loading weights
    if args.figures:
        style.import_matplotlib()
    with joined_processes(args.device) as device:
        evaluation, radiologists = evaluate(args, device)
        if not is_main_process():
            return ""
        evaluation.metrics.update(analyse(args, evaluation, radiologists))
        written = write_evaluation(args, evaluation)
        return format_results(args.models, evaluation.metrics, written)


def evaluate(args: argparse.Namespace, device) -> tuple[Evaluation, "pd.DataFrame | None"]:
    """Read models and data, and score the findings."""
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

    def load(name: str) -> tuple:
        member = models[name]
        return member() if callable(member) else member

    return Evaluation(metrics, predictions, dataset, threshold_dataset, prompts, load), radiologists


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
    for name, member in models.items() if args.analyses else ():  # one at a time; only sparsity takes several
        model, processor = member() if callable(member) else member
        if "grounding" in args.analyses:
            maps.check_gives_maps(model)
        if "retrieval" in args.analyses:
            retrieval.check_embeds_texts(model)
        if "sparsity" in args.analyses:
            sparsity.check_models({name: (model, processor)})
        if "robustness" in args.analyses:
            robustness.check_has_sentences(model)
    if {"retrieval", "sparsity"} & set(args.analyses):
        retrieval.read_texts(dataset)
    marked = []
    if "grounding" in args.analyses:
        marked = sorted({case.finding for case in regions.read_cases(dataset)})
        if threshold_dataset is not None:
            regions.read_cases(threshold_dataset)
    if args.radiologists is None:
        return marked, None
    given = read_radiologists(args.radiologists)
    readers_of_chexpert.check_readers(dataset["study_id"][:], given)
    return marked, given


def analyse(args: argparse.Namespace, evaluation: Evaluation, radiologists) -> dict:
    """What --analyses and --radiologists ask for, by name."""
    metrics, dataset = evaluation.metrics, evaluation.dataset
    results = {}
    if radiologists is not None:
        study_ids = dataset.select(evaluation.predictions.index)["study_id"]
        results["radiologists"] = compare_evaluation(metrics, evaluation.predictions, study_ids[:], radiologists)
    options = {"n_bootstrap": args.n_bootstrap, "seed": args.seed, "batch_size": args.batch_size}
    options["dataset_name"] = metrics["dataset"]
    for name in ANALYSES:
        if name not in args.analyses:
            continue
        if name == "sparsity":
            models = {model: evaluation.load(model) for model in metrics["models"]}
            results[name] = evaluate_sparsity(models, dataset, **options)
            continue
        model, processor = evaluation.load(metrics["models"][0])
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
