"""One evaluation from arguments to files: a single pass over the images of each model feeds scores and analyses.

Reading is in `inputs.py`, the pass in `models/single_pass.py`, the files in `output/evaluation_files.py`.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd
import torch

from evaluation_tier.analyses import radiologists
from evaluation_tier.analyses.deletion import Deletion
from evaluation_tier.analyses.grounding.evaluation import Grounding
from evaluation_tier.analyses.grounding.maps import check_gives_maps, check_gives_maps_of_sentences
from evaluation_tier.analyses.grounding.regions import read_cases
from evaluation_tier.analyses.learning_curve import FineTuning, LearningCurve, check_embeds_images
from evaluation_tier.analyses.retrieval import Retrieval, check_embeds_texts
from evaluation_tier.analyses.robustness.alignment import read_cxr_align
from evaluation_tier.analyses.robustness.evaluation import Robustness, check_has_sentences
from evaluation_tier.analyses.sparsity import Sparsity, check_embeds_patches
from evaluation_tier.analyses.transfer import (
    WANTED_SENSITIVITY,
    Source,
    check_same_model,
    check_scores,
    match_findings,
    measure_transfer,
    read_source,
)
from evaluation_tier.figures import style
from evaluation_tier.inputs import Inputs, read_inputs
from evaluation_tier.models import loading
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.cache import hash_model
from evaluation_tier.models.exposure import describe_exposures
from evaluation_tier.models.processes import fail_together, is_main_process, joined_processes
from evaluation_tier.models.remote_code import describe_code, is_remote
from evaluation_tier.models.single_pass import evaluate_models, evaluate_together
from evaluation_tier.options import ANALYSES
from evaluation_tier.output.console import format_results
from evaluation_tier.output.evaluation_files import Evaluation, write_evaluation
from evaluation_tier.scoring.findings import is_scored_by_others, select_findings
from evaluation_tier.scoring.protocols import prompts_name
from evaluation_tier.scoring.zeroshot import ZeroShot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.progress import library_bars
from processing_tier.prompts.loader import Prompts
from processing_tier.readers.chexpert import read_radiologists

Analyses = dict[str, Grounding | Deletion | Retrieval | Sparsity | Robustness]  # by the names of --analyses


@dataclass(frozen=True)
class EvaluationResult:
    """
    What an evaluation has measured and written.

    Attributes:
        output_dir: the folder of the files; `report.html` in it is the page to look at.
        metrics: the content of `metrics.json`, see docs/metrics.md.
        predictions: scores and labels, a row for each image.
        files: all that was written, also into the model's folder.
        summary: the table and the paths, which `tier-eval` prints.
    """

    output_dir: Path
    metrics: dict
    predictions: pd.DataFrame
    files: list[Path]
    summary: str

    def __str__(self) -> str:
        return self.summary


def run(args: argparse.Namespace, fine_tuning: FineTuning | None = None) -> list[EvaluationResult]:
    """
    Evaluate and write the files: one result, or with --each one for each model; none in all processes but the main
    one. `fine_tuning` is for --learning_curve.
    """
    if args.figures:
        style.import_matplotlib()
    with joined_processes(args.device) as device, library_bars():
        each = evaluate_each(args, device, fine_tuning) if args.each else None
        evaluations = each or [(args, evaluate(args, device, fine_tuning))]
        if not is_main_process():
            return []
        return [write_result(of_one, evaluation) for of_one, evaluation in evaluations]


def write_result(args: argparse.Namespace, evaluation: Evaluation) -> EvaluationResult:
    """Write the files of one evaluation."""
    files = write_evaluation(args, evaluation)
    summary = format_results(args.models, evaluation.metrics, files)
    return EvaluationResult(Path(args.output_dir), evaluation.metrics, evaluation.predictions, files, summary)


def evaluate(args: argparse.Namespace, device: torch.device, fine_tuning: FineTuning | None = None) -> Evaluation:
    """Score the findings, and measure what --analyses and --radiologists ask for; the latter in the main process."""
    inputs = read_inputs(args, device)
    with fail_together():
        measured = prepare(args, inputs, fine_tuning)
    speeds = evaluate_models(inputs.models, measured.evaluated, measured.all, args.batch_size, args.cache_dir)
    return finish(args, inputs, measured, speeds)


def evaluate_each(
    args: argparse.Namespace, device: torch.device, fine_tuning: FineTuning | None = None
) -> list[tuple[argparse.Namespace, Evaluation]]:
    """`evaluate` for each model alone, with its arguments, from one reading of the images."""
    inputs = read_inputs(args, device)
    apart = {}
    with fail_together():
        for name, shown in inputs.names.items():
            own = argparse.Namespace(**{**vars(args), "models": [name], "output_dir": args.output_dir[shown]})
            apart[shown] = (own, inputs.alone(name), prepare(own, inputs.alone(name), fine_tuning))
    evaluated = next(iter(apart.values()))[2].evaluated
    analyses = {shown: measured.all for shown, (_, _, measured) in apart.items()}
    speeds = evaluate_together(inputs.models, evaluated, analyses, args.batch_size, args.cache_dir)
    return [
        (own, finish(own, of_one, measured, {shown: speeds[shown]}))
        for shown, (own, of_one, measured) in apart.items()
    ]


class Measured(NamedTuple):
    """What is measured on the images."""

    zero_shot: ZeroShot
    analyses: Analyses
    readers: pd.DataFrame | None  # labels of radiologists
    source: Source | None  # of the thresholds of --transfer
    curve: LearningCurve | None

    @property
    def all(self) -> list:
        return [self.zero_shot, *self.analyses.values(), *([] if self.curve is None else [self.curve])]

    @property
    def evaluated(self) -> Sequence[datasets.Dataset]:
        """The data sets of the pass."""
        return self.zero_shot.evaluated if self.curve is None else self.curve.evaluated


def prepare(args: argparse.Namespace, inputs: Inputs, fine_tuning: FineTuning | None = None) -> Measured:
    """The scores and analyses that the arguments ask for, checked before any image is embedded."""
    check_models(args, inputs)
    if fine_tuning is not None:
        fine_tuning.check(args.models[0])
    analyses = make_analyses(args, inputs)
    readers = read_labels_of_radiologists(args, inputs)
    source = read_transfer_source(args, inputs)
    zero_shot = ZeroShot(
        inputs.dataset,
        args.findings,
        inputs.protocol,
        min_positives=inputs.min_positives,
        resampling=Resampling(args.n_bootstrap, args.seed, inputs.protocol.resampling),
        threshold_dataset=inputs.threshold_dataset,
        replaced_prompts=inputs.replaced_prompts,
        dataset_name=inputs.dataset_name,
        groups=inputs.groups,
    )
    curve = None
    if inputs.learning is not None:
        learned, num_seen = inputs.learning
        evaluated = [*zero_shot.evaluated, learned]
        resampling = Resampling(args.n_bootstrap, args.seed)
        fine_tuned = fine_tuning, str(args.models[0])
        curve = LearningCurve(evaluated, args.learning_curve, num_seen, resampling, *fine_tuned)
    return Measured(zero_shot, analyses, readers, source, curve)


def finish(args: argparse.Namespace, inputs: Inputs, measured: Measured, speeds: dict[str, dict]) -> Evaluation:
    """The results, after the pass of the last model, which told the `speeds`."""
    metrics, predictions = measured.zero_shot.results()
    describe_inputs(args, inputs, metrics)
    if inputs.seen.any():
        predictions["trained_on"] = inputs.seen[predictions.index]
    if is_main_process():
        metrics |= finish_analyses(inputs, measured, metrics, predictions)
        if measured.source is not None:
            metrics["transfer"] = carry_over(args, inputs, measured.source, metrics, predictions)
        if measured.curve is not None:
            metrics["learning_curve"] = measured.curve.results(metrics, predictions)
    prompts: dict[str, Prompts] = {}  # of findings that only boxes and masks mark, too
    if metrics["protocol"]["scoring"] != "logit":
        if "grounding" in args.analyses:
            prompts |= inputs.find_prompts(find_marked(inputs.dataset, inputs.phrases))
        prompts |= inputs.find_prompts(list(metrics["findings"]))
    return Evaluation(metrics, predictions, inputs.dataset, inputs.threshold_dataset, prompts, inputs.load, speeds)


def check_models(args: argparse.Namespace, inputs: Inputs) -> None:
    """Refuse, before any image is embedded, a model that an analysis cannot measure."""
    for name in inputs.models if args.analyses or args.learning_curve else ():  # one at a time; sparsity takes several
        model, _ = inputs.load(name)
        if args.learning_curve:
            check_embeds_images(name, model)
        if "grounding" in args.analyses:
            check_gives_maps(model)
        if "deletion" in args.analyses:
            check_gives_maps_of_sentences(model)
        if "retrieval" in args.analyses:
            check_embeds_texts(model)
        if "sparsity" in args.analyses:
            check_embeds_patches(name, model)
        if "robustness" in args.analyses:
            check_has_sentences(model)


def make_analyses(args: argparse.Namespace, inputs: Inputs) -> Analyses:
    """The analyses that --analyses asks for, by name, in the order of the results."""
    dataset = inputs.dataset
    options: dict[str, Any] = {
        "resampling": Resampling(args.n_bootstrap, args.seed),
        "dataset_name": inputs.dataset_name,
    }
    analyses: Analyses = {}
    for name in ANALYSES:
        if name not in args.analyses:
            continue
        if name == "grounding":
            has_head = any(loading.is_classifier(inputs.load(of_model)[0]) for of_model in inputs.models)
            marked = find_marked(dataset, inputs.phrases)
            prompts = {} if has_head else inputs.find_prompts(marked)
            asked = None if inputs.grounded is None else [finding for finding in inputs.grounded if finding in marked]
            what = {
                "findings": asked or None,
                "phrases": inputs.phrases,
                "threshold_dataset": inputs.threshold_dataset,
            }
            analyses[name] = Grounding(dataset, prompts, **what, **options)
        elif name == "retrieval":
            analyses[name] = Retrieval(dataset, batch_size=args.batch_size, **options)
        elif name == "sparsity":
            analyses[name] = Sparsity(dataset, **options)
        else:
            findings = find_worded(args, inputs, name)
            prompts = inputs.find_prompts(findings)
            if name == "deletion":
                how = inputs.protocol.scoring, inputs.min_positives
                analyses[name] = Deletion(dataset, findings, prompts, *how, **options)
            else:
                reports = None if args.cxr_align is None else read_cxr_align(args.cxr_align)
                analyses[name] = Robustness(
                    dataset, findings, prompts, inputs.min_positives, reports=reports, **options
                )
    return analyses


def find_worded(args: argparse.Namespace, inputs: Inputs, analysis: str) -> list[str]:
    """The evaluated findings that their own sentences score; ValueError, which names the analysis, without one."""
    asked = args.findings or select_findings(inputs.dataset, None, inputs.min_positives)[0]
    how = {"no_finding": inputs.protocol.no_finding}
    findings = [name for name in dict.fromkeys(asked) if not is_scored_by_others(name, how)]
    if not findings:
        raise ValueError(
            f"{analysis.capitalize()} asks for findings by their sentences, but {asked[0]!r} is scored by the other "
            "findings: name more in --findings, or pass --no_finding prompts."
        )
    return findings


def find_marked(dataset: datasets.Dataset, phrases: bool = False) -> list[str]:
    """The findings that boxes and masks mark; with `phrases`, boxes with a sentence."""
    return sorted({case.finding for case in read_cases(dataset, None, phrases)})


def read_labels_of_radiologists(args: argparse.Namespace, inputs: Inputs) -> pd.DataFrame | None:
    if args.radiologists is None:
        return None
    readers = read_radiologists(args.radiologists)
    radiologists.check_readers(inputs.dataset["study_id"][:], readers)
    return readers


def read_transfer_source(args: argparse.Namespace, inputs: Inputs) -> Source | None:
    if args.transfer is None:
        return None
    source = read_source(args.transfer, inputs.dataset, inputs.dataset_name)
    check_same_model(source, {shown: hash_model(inputs.load(shown)[0]) for shown in inputs.models})
    if source.metrics["protocol"]["scoring"] != "logit":  # before any image is embedded; the rest is known afterwards
        asked = {"prompts": prompts_name(inputs.protocol.prompts), "scoring": inputs.protocol.scoring}
        check_scores(source, asked, list(asked))
    return source


def carry_over(
    args: argparse.Namespace, inputs: Inputs, source: Source, metrics: Mapping, predictions: pd.DataFrame
) -> dict:
    """The results of --transfer."""
    find_prompts = None if metrics["protocol"]["scoring"] == "logit" else inputs.find_prompts
    return measure_transfer(
        source,
        metrics,
        predictions,
        inputs.dataset,
        match_findings(source, list(metrics["findings"]), find_prompts),
        args.sensitivity or WANTED_SENSITIVITY,
        Resampling(args.n_bootstrap, args.seed),
    )


def describe_inputs(args: argparse.Namespace, inputs: Inputs, metrics: dict) -> None:
    """Add facts that only the command knows: benchmark, split, views, overlap with training, commits."""
    commits = {inputs.names[name]: commit for name in args.models if (commit := loading.hub_commit(name))}
    metrics |= {"commits": commits} if commits else {}
    metrics |= {"dtype": "bfloat16"} if args.bf16 else {}
    adapters = {inputs.names[name]: name.describe() for name in args.models if isinstance(name, AdapterName)}
    metrics |= {"adapters": adapters} if adapters else {}
    if args.trust_remote_code:
        loaded = {shown: inputs.load(shown)[0] for shown in inputs.models}
        ran = {shown: describe_code(model) for shown, model in loaded.items() if is_remote(model)}
        metrics |= {"remote_code": ran} if ran else {}
    before, after = {**inputs.described, **describe_exposures(inputs.exposures)}, {}
    if "threshold_overlap" in before:
        after["threshold_overlap"] = before.pop("threshold_overlap")
    metrics["protocol"] = {**before, **metrics["protocol"], **after}
    if args.threshold_split:
        metrics["protocol"]["thresholds"] = inputs.protocol.rule.describe(f"the split {args.threshold_split!r}")


def finish_analyses(inputs: Inputs, measured: Measured, metrics: dict, predictions: pd.DataFrame) -> dict:
    """The results of the analyses, by name, after the pass of the last model."""
    results = {}
    if measured.readers is not None:
        study_ids = inputs.dataset.select(predictions.index)["study_id"]
        results["radiologists"] = radiologists.compare_evaluation(metrics, predictions, study_ids[:], measured.readers)
    for name, analysis in measured.analyses.items():
        results[name] = analysis.results()
        if name in ("grounding", "deletion", "robustness") and not results[name]["protocol"].get("phrases"):
            results[name]["protocol"]["prompts"] = metrics["protocol"]["prompts"]
    return results
