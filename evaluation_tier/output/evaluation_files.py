"""The files of one evaluation, put in place together: either all of them are written, or the earlier ones stay."""

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

import datasets
import pandas as pd

from evaluation_tier.figures import training
from evaluation_tier.figures.of_evaluation import draw_figures
from evaluation_tier.output import metrics_file, model_card, page, saved_thresholds, speed_file
from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.predictions import write_predictions
from evaluation_tier.scoring import protocols
from evaluation_tier.scoring.findings import is_scored_by_others
from processing_tier.prompts.loader import Prompts

logger = logging.getLogger(__name__)

# Files that only some evaluations write, by the part of metrics.json that tells of them; similarity maps come on top,
# one for each finding
OPTIONAL_FILES = {
    "findings": (
        *("findings.png", "roc.png", "precision_recall.png", "calibration.png", "subgroups.png"),
        *("training_curves.png", "similarity_of_models.png", "errors.png"),
    ),
    "grounding": ("grounding.png", "grounding_regions.parquet"),
    "sparsity": ("sparsity.png", "sparsity_relative.png"),
    "robustness": ("robustness.png",),
    "transfer": ("transfer.png",),
    "learning_curve": ("learning_curve.png",),
}


class Evaluation(NamedTuple):
    """The evaluated data and models, and the results."""

    metrics: dict
    predictions: pd.DataFrame
    dataset: datasets.Dataset
    threshold_dataset: datasets.Dataset | None
    prompts: Mapping[str, Prompts]  # by finding; those of grounding too
    load: Callable[[str], tuple]  # a model and its processor, by its name in the metrics
    speeds: Mapping[str, dict]  # by the same name, see `Speed.describe`


def write_evaluation(args: argparse.Namespace, evaluation: Evaluation) -> list[Path]:
    """
    Write the files of an evaluation, and those in the model's folder; returns all paths.

    The files are made in a temporary folder and moved when all of them are complete. Then the remaining files of an
    earlier evaluation are deleted.
    """
    folder = Path(args.output_dir)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=existing) as made:
        files = make_files(args, evaluation, Path(made))
        written = [folder / path.name for path in files]
        for path in written:
            if path.is_dir():
                raise ValueError(
                    f"{path} is a folder, but the evaluation writes a file there: choose another --output_dir."
                )
        of_model = []
        if args.save_thresholds:
            of_model.append(save_thresholds(args, evaluation))
        if args.model_card:  # last: it says whether the model is calibrated
            of_model.append(model_card.write_model_card(args.models[0], evaluation.metrics))
        stale = set(find_optional_files(folder)) - set(written)
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(files, written, strict=True):
            os.replace(source, target)
    for path in stale:
        path.unlink()
    return written + of_model


def save_thresholds(args: argparse.Namespace, evaluation: Evaluation) -> Path:
    """Keep the thresholds in the model's config; those of findings that the pipeline can score."""
    metrics, fitted_on = evaluation.metrics, evaluation.threshold_dataset
    kept = {
        finding: result
        for finding, result in metrics["findings"].items()
        if not is_scored_by_others(finding, metrics["protocol"])
    }
    measured_on = {
        "dataset": metrics["dataset"],
        "split": args.threshold_split or metrics["protocol"]["split"],
        "images": metrics["n_images"] if fitted_on is None else len(fitted_on),
        "date": date.today().isoformat(),
    }
    return saved_thresholds.write_thresholds(
        args.models[0], {**metrics, "findings": kept}, evaluation.prompts, measured_on
    )


def find_optional_files(folder: Path) -> list[Path]:
    """The files that an earlier evaluation wrote into a folder and that another may not write again."""
    if not (folder / "metrics.json").is_file():
        return []
    try:
        metrics = metrics_file.read_metrics(folder)
    except ValueError:  # damaged: whose similarity maps these are is not known
        metrics = {"findings": {}}
    names = [name for part, names in OPTIONAL_FILES.items() if part in metrics for name in names]
    names += [f"similarity_{name}.png" for name in file_names(metrics["findings"]).values()]
    return [folder / name for name in names if (folder / name).is_file()]


def make_files(args: argparse.Namespace, evaluation: Evaluation, folder: Path) -> list[Path]:
    """Fill a folder with the files of an evaluation."""
    metrics, predictions = evaluation.metrics, evaluation.predictions
    files = []
    if args.figures:
        no_finding = None
        if metrics["protocol"]["scoring"] != "logit":
            sentences = protocols.choose_protocol(args.protocol).prompts  # a user's own file may lack them
            no_finding = protocols.find_prompts(sentences, ["No Finding"])["No Finding"]
        files += draw_figures(
            evaluation.load, evaluation.dataset, evaluation.prompts, no_finding, metrics, predictions, folder
        )
        training_log = Path(args.models[0]) / "trainer_state.json"
        if len(args.models) == 1 and training_log.is_file():
            try:
                files.append(training.plot_training_curves(training_log, folder / "training_curves.png"))
            except ValueError as error:  # no reason to lose the evaluation
                logger.warning("The training curves are not drawn. %s", error)
    files.append(write_predictions(folder / "predictions.parquet", predictions))
    if "grounding" in metrics:
        regions = pd.DataFrame(metrics["grounding"].pop("regions"))
        files.append(write_predictions(folder / "grounding_regions.parquet", regions))
    files.append(speed_file.write_speeds(folder / speed_file.NAME, evaluation.speeds))
    files.append(metrics_file.write_metrics(folder / "metrics.json", metrics))
    return files + page.write_page(folder, draw=args.figures)
