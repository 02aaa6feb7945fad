"""What an evaluation leaves behind: `metrics.json`, `predictions.parquet`, a table for the terminal, a model card.

`metrics.json` is the one source of numbers: the table and the card are drawn from it. Its layout:
`{"dataset", "protocol", "n_images", "models": [...], "findings": {name: {"auroc", "auroc_ci95": [lo, hi], "auprc",
"mcc", "f1", "threshold", "scale", "bias", "n_positive", "n_negative", "n_excluded"}}, "mean": {"auroc", "auroc_ci95",
"auprc", "mcc", "f1"}, "versions"}`; an undefined number is null.
"""

import json
import logging
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub import EvalResult, ModelCardData
from pyarrow.types import is_floating, is_integer

from evaluation_tier.result_tables import evaluation_tables, has_common_findings
from evaluation_tier.tables import (
    DASH,
    NOT_MEASURED,
    column_name,
    format_interval,
    format_number,
    markdown_cell,
    markdown_table,
    text_table,
)
from modeling_tier.checkpoints.tensor_files import read_json
from modeling_tier.configuration_tier import check_findings
from modeling_tier.pipeline_tier import describe_measurement

# Beside the packages in a clone and in an installed wheel alike (the wheel carries model_cards/tier_template.md).
CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_cards" / "tier_template.md"
logger = logging.getLogger(__name__)
MAX_METRICS_BYTES = 64 * 2**20
# Of metrics.json, as it is read again: what it must have, what it may have
METRICS_KEYS = {"dataset": str, "protocol": dict, "n_images": int, "findings": dict, "mean": dict}
OPTIONAL_KEYS = {
    "models": list,
    **dict.fromkeys(("versions", "weights", "commits", "score_levels", "subgroups", "radiologists"), dict),
    **dict.fromkeys(("retrieval", "grounding", "sparsity", "robustness"), dict),
}
PROTOCOL_KEYS = {
    **dict.fromkeys(("n_patients", "n_bootstrap", "seed"), int),
    **dict.fromkeys(("images_skipped", "benchmark_differs"), list),
    **dict.fromkeys(("findings_left_out", "resamples_dropped"), dict),
    **dict.fromkeys(("training_overlap", "threshold_overlap", "trained"), str),
}
CONFIG_KEYS = {
    **dict.fromkeys(("text_config", "vision_config", "id2label", "zero_shot_findings"), dict),
    "architectures": list,
}  # of config.json, as cards and thresholds read it
MAX_PREDICTIONS = 200_000_000  # values; 1.6 GB
TRAINING_FILE = "training_facts.json"  # beside the weights, so that a later evaluation renders the whole card

# What a card says of the training, in this order; `write_model_card` refuses any other key.
FACTS_OF_CLASSIFIERS = ("label_fraction", "trained_part")
FACTS_OF_CONTRASTIVE_MODELS = ("text", "entropy_weights")
CARD_METRICS = {  # key of metrics.json: its name on the Hub
    "auroc": "roc_auc",
    "auprc": "average_precision",
    "mcc": "matthews_correlation",
    "f1": "f1",
}
CARD_PROTOCOL = {  # key of the protocol in metrics.json: what the card calls it
    "benchmark": "Benchmark",
    "split": "split",
    "views": "views",
    "name": "protocol",
    "prompts": "prompts",
    "scoring": "scoring",
    "no_finding": '"No Finding" scored by',
    "score_level": "score level",
}
CARD_PARTS = {  # key of metrics.json: task type and name
    "retrieval": ("feature-extraction", "Retrieval of images and reports"),
    "grounding": ("zero-shot-object-detection", "Grounding of findings"),
}
TRAINING_FACTS = {
    "dataset": "Data",
    "n_images": "Images",
    "n_patients": "Patients",
    "text": "Text",
    "label_fraction": "Share of the training patients",
    "trained_part": "Trained part",
    "initialized_from": "Initial weights",
    "earlier_data": "Data of the initial weights",
    "epochs": "Epochs",
    "batch_size": "Batch size",
    "learning_rate": "Peak learning rate",
    "entropy_weights": "Entropy weights",
    "seed": "Seed",
}
MODEL_FACTS = {  # key of config.json: what the card calls it
    "token_entropy_weight": "Weight of the token entropy",
    "patch_entropy_weight": "Weight of the patch entropy",
    "entropy_temperature": "Entropy temperature",
    "entropy_normalization": "Entropies divided by ln K",
    "entropy_tokens": "Tokens in the entropies",
    "image_pooling": "Image embedding",
}


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy", "tier-clip"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a clone that was not installed
            versions[name] = "not installed"
    return versions


def write_beside(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is whole or as it was before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def to_json(value):
    """`value` in JSON's own types: numpy numbers as Python's, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_float(value: float | None) -> float:
    """NaN for None: metrics read back from JSON have None where they had NaN."""
    return float("nan") if value is None else float(value)


def write_metrics(path: str | Path, metrics: Mapping) -> Path:
    """Write `metrics.json`."""
    text = json.dumps(to_json(metrics), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_predictions(path: str | Path, predictions: pd.DataFrame) -> Path:
    """Write `predictions.parquet`: one row per evaluated image."""
    return write_beside(path, lambda partial: predictions.to_parquet(partial, index=False))


def read_metrics(folder: str | Path) -> dict:
    """What `write_metrics` wrote into a folder.

    Raises:
        ValueError: when the folder lacks `metrics.json`, or the file is too large, damaged or of another layout.
    """
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        raise ValueError(f"The folder {folder} holds no metrics.json: name one that eval_zeroshot.py wrote.")
    if path.stat().st_size > MAX_METRICS_BYTES:
        raise ValueError(f"{path} exceeds {MAX_METRICS_BYTES >> 20} MB: it is not the metrics.json of an evaluation.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: evaluate the model again.") from error
    metrics = metrics if isinstance(metrics, dict) else {}
    for of, required, kinds in (
        (metrics, True, METRICS_KEYS),
        (metrics, False, OPTIONAL_KEYS),
        (metrics.get("protocol"), False, PROTOCOL_KEYS),
    ):
        for key, kind in kinds.items():
            if (required or key in of) and not isinstance(of.get(key), kind):
                raise ValueError(f"{path} has no {key!r} as an evaluation writes it: evaluate the model again.")
    for finding, result in metrics["findings"].items():
        for key in ("auroc", "auroc_ci95", "auprc", "n_positive", "n_negative"):
            if not isinstance(result, dict) or key not in result:
                raise ValueError(f"{path} has no {key!r} of {finding!r}: evaluate the model again.")
    parts = {**metrics["findings"], "mean": metrics["mean"], "score_levels": metrics.get("score_levels") or {}}
    for part, result in parts.items():
        for key, value in result.items():
            if not holds_numbers(value) or key.endswith("_ci95") and not is_interval(value):
                raise ValueError(
                    f"{path} has {str(value)[:40]!r} for {key!r} of {part!r}, which is no number: evaluate the model "
                    "again."
                )
    return metrics


def holds_numbers(value) -> bool:
    """Whether JSON's value is a number or null, or a list or an object of nothing else."""
    if isinstance(value, (list, dict)):
        return all(map(holds_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (int, float))


def is_interval(value) -> bool:
    """Whether JSON's value is null or a list of two."""
    return value is None or isinstance(value, list) and len(value) == 2


def read_predictions(folder: str | Path, metrics: Mapping) -> pd.DataFrame:
    """The images, patients, labels and scores of the findings of `metrics`, from `predictions.parquet`.

    Raises:
        ValueError: when the file is missing, damaged, too large, or not of the same evaluation as `metrics`, and when
            labels or scores are no numbers.
    """
    path = Path(folder) / "predictions.parquet"
    if not path.is_file():
        raise ValueError(f"The folder {folder} holds no predictions.parquet: name one that eval_zeroshot.py wrote.")
    columns = [
        "image_id",
        "patient_id",
        *(f"{kind}_{name}" for kind in ("score", "label") for name in metrics["findings"]),
    ]
    try:
        schema, num_rows = pq.read_schema(path), pq.read_metadata(path).num_rows
        missing = [column for column in columns if column not in schema.names]
        of_text = [
            column
            for column in columns[2:]
            if not missing and not (is_floating(schema.field(column).type) or is_integer(schema.field(column).type))
        ]
        belongs = not missing and num_rows == metrics["n_images"]
        if belongs and not of_text and num_rows * len(columns) <= MAX_PREDICTIONS:
            columns += ["trained_on"] * ("trained_on" in schema.names)  # whether the model has seen the image
            return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise ValueError(f"{path} cannot be read as Parquet: evaluate the model again.") from error
    if num_rows * len(columns) > MAX_PREDICTIONS:
        raise ValueError(f"{path} holds more than {MAX_PREDICTIONS:,} values: it is too large for a report.")
    if belongs:
        raise ValueError(f"{path} holds no numbers in the column {of_text[0]!r}: evaluate the model again.")
    what = (
        f"it has no column {missing[0]!r}"
        if missing
        else f"it has {num_rows:,} rows for {metrics['n_images']:,} images"
    )
    raise ValueError(f"{path} does not belong to the metrics.json beside it ({what}): evaluate the model again.")


def write_thresholds(
    folder: str | Path, metrics: Mapping, prompts: Mapping, measured_on: Mapping[str, str | int]
) -> Path:
    """Keep prompts, threshold and calibration of each finding in a model's config.json, where the pipeline looks.

    The findings of earlier evaluations are kept, unless they are of the same names. A finding whose scale is 0 or
    undefined gets no calibration, and a warning says so.

    Args:
        folder: the model's.
        metrics: as `evaluate_zero_shot` returns it for this model alone.
        prompts: those that it was evaluated with, of each finding (`processing_tier.prompts.Prompts`).
        measured_on: the images that thresholds and calibration come from: `dataset`, `split`, `images`, `date`.
    """
    entries = {}
    for finding, result in metrics["findings"].items():
        entry = {"positive": list(prompts[finding].positive), "negative": list(prompts[finding].negative)}
        if result["scale"] > 0:  # neither NaN nor 0: the pipeline ranks images by what it calls probabilities
            entry |= {"scale": result["scale"], "bias": result["bias"]}
        if not math.isnan(result["threshold"]):
            threshold = result["threshold"]  # the score of an image
            difference = (
                threshold if metrics["protocol"]["scoring"] == "difference" else math.log(threshold / (1 - threshold))
            )
            # a little below it, since float32 rounds differently in a batch of another size
            logit = entry.get("scale", 1.0) * (difference - 1e-6) + entry.get("bias", 0.0)
            entry["threshold"] = 0.5 * (1 + math.tanh(logit / 2))
        if entry.keys() & {"scale", "threshold"}:
            entry["measured_on"] = dict(measured_on)
        entries[finding] = entry
    lacking = [finding for finding, entry in entries.items() if "scale" not in entry]
    if lacking:
        logger.warning(
            "Kept without calibration: %s. A calibration needs images with and without the finding, and scores that "
            "are higher where it is present.",
            ", ".join(lacking),
        )
    check_findings(entries)
    path = Path(folder) / "config.json"
    config = read_config(path)
    config["zero_shot_findings"] = {**(config.get("zero_shot_findings") or {}), **entries}
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"  # as transformers writes it
    return write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_config(path: Path) -> dict:
    """A model's config.json; ValueError where what a card states, or thresholds are added to, is damaged."""
    config = read_json(path)
    for key, kind in CONFIG_KEYS.items():
        if not isinstance(config.get(key), kind | None):
            raise ValueError(f"{path}: {key} is {config[key]!r:.80}, which no model has; save the model again.")
    if not all(isinstance(name, str) for name in (config.get("id2label") or {}).values()):
        raise ValueError(f"{path}: id2label names a finding by what is not text; save the model again.")
    check_findings(config.get("zero_shot_findings") or {})
    try:
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path}: a value is not finite, is not text, or lies too deep; save the model again."
        ) from None
    return config


def describe_calibration(findings: Mapping[str, Mapping]) -> str:
    """For a card: which findings of a model's configuration are calibrated, and on which images; `""` for none."""
    calibrated = [finding for finding, entry in findings.items() if "scale" in entry]
    if not calibrated:
        return ""
    sources = dict.fromkeys(describe_measurement(findings[finding].get("measured_on")) for finding in calibrated)
    text = f"They were measured on {'; '.join(sources)}."
    lacking = [finding for finding in findings if finding not in calibrated]
    return f"{text} Not calibrated: {', '.join(lacking)}." if lacking else text


def format_table(metrics: Mapping) -> str:
    """The results as a plain-text table: finding, positives, AUROC with its 95 % interval, and the mean."""
    rows = [
        (finding, f"{result['n_positive']:,}", format_number(result["auroc"]), format_interval(result["auroc_ci95"]))
        for finding, result in metrics["findings"].items()
    ]
    mean = metrics["mean"]
    rows.append((f"Mean of {len(rows)}", "", format_number(mean["auroc"]), format_interval(mean["auroc_ci95"])))
    return text_table(("Finding", "Positives", "AUROC", "95 % CI"), rows, "lrrl", num_summary=1)


def write_model_card(
    folder: str | Path,
    metrics: Mapping | None = None,
    training: Mapping | None = None,
    model_name: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the model card, README.md, into a model folder.

    No number is typed by hand: results come from `metrics`, the model's settings from the folder's config.json.
    What is missing reads "not measured".

    Args:
        folder: holds config.json.
        metrics: as `evaluate_zero_shot` returns it or `metrics.json` holds it.
        training: facts of the training, with keys of `TRAINING_FACTS`; they are kept in the folder, and by default
            those kept there are used.
        model_name: a Hub name ("owner/name"), or what the card calls the model; by default the folder's name.
        license: SPDX identifier of the licence of the weights; they may be bound by the terms of the training data.

    Raises:
        ValueError: when the folder holds no model or a key of `training` is unknown.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"The folder {folder} holds no model (no config.json) that a card could describe.")
    kept = folder / TRAINING_FILE
    if training is None:
        training = read_json(kept) if kept.is_file() else {}
    unknown = sorted(set(training) - set(TRAINING_FACTS))
    if unknown:
        raise ValueError(f"A card has no training fact {unknown[0]!r}: use {', '.join(TRAINING_FACTS)}.")
    if not isinstance(training.get("dataset"), str | None):
        raise ValueError(f"{folder}: the training data of a card have a name, not {training['dataset']!r:.80}.")
    if training:
        facts = json.dumps(to_json(training), indent=2) + "\n"
        write_beside(kept, lambda partial: partial.write_text(facts, encoding="utf-8"))
    config = read_config(folder / "config.json")
    vision = config.get("vision_config") or {}
    architecture = "a CLIP model"
    facts = {"Image size (pixels)": vision.get("image_size"), "Patch size (pixels)": vision.get("patch_size")}
    if config.get("model_type") == "tier_dual_encoder":
        text_type = (config.get("text_config") or {}).get("model_type")
        architecture = f"a dual encoder of two towers, {vision.get('model_type')} for images and {text_type} for text,"
        facts = {
            "Image size (pixels)": config.get("image_size"),
            "Frozen text layers": config.get("frozen_text_layers"),
        }
    facts |= {"Embedding width": config.get("projection_dim")}
    classifier = str((config.get("architectures") or [""])[0]).endswith("ForImageClassification")
    if classifier:
        facts = {label: value for label, value in facts.items() if label != "Frozen text layers"}
        facts["Findings"] = ", ".join((config.get("id2label") or {}).values())
        facts[MODEL_FACTS["image_pooling"]] = config.get("image_pooling")
    else:
        facts |= {label: config.get(key) for key, label in MODEL_FACTS.items()}
    not_of_it = FACTS_OF_CONTRASTIVE_MODELS if classifier else FACTS_OF_CLASSIFIERS
    model_name = model_name or folder.resolve().name

    def state(value) -> str:
        return NOT_MEASURED if value is None or value == "" else f"{value:,}" if type(value) is int else str(value)

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["number"] = format_number
    environment.filters["interval"] = format_interval
    data = to_json(metrics) if metrics else None
    training_data, evaluation_data = training.get("dataset"), (data or {}).get("dataset")
    text = environment.from_string(CARD_TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=card_data(model_name, data, license, classifier).to_yaml(line_break="\n").strip(),
        model_name=model_name,
        source=model_name if "/" in model_name else f"path/to/{model_name}",
        license=license,
        architecture=architecture,
        facts=[(label, state(value)) for label, value in facts.items()],
        classifier=classifier,
        calibration=describe_calibration(config.get("zero_shot_findings") or {}),
        training=[(label, state(training.get(key))) for key, label in TRAINING_FACTS.items() if key not in not_of_it],
        regularized=bool(config.get("token_entropy_weight") or config.get("patch_entropy_weight")),
        training_data=state(training_data),
        evaluation_data=state(evaluation_data),
        synthetic_training=is_synthetic(training_data),
        synthetic_evaluation=is_synthetic(evaluation_data),
        metrics=data,
        protocol=describe_protocol(data["protocol"]) if data else "",
        further=further_tables(data) if data else [],
        has_subgroups=any(map(has_common_findings, ((data or {}).get("subgroups") or {}).values())),
        not_measured=NOT_MEASURED,
    )
    return write_beside(folder / "README.md", lambda partial: partial.write_text(text, encoding="utf-8"))


def describe_protocol(protocol: Mapping) -> str:
    """What an evaluation did, in one sentence, and how its data differ from the benchmark's."""
    parts = [f"{name} {protocol[key]}" for key, name in CARD_PROTOCOL.items() if protocol.get(key) is not None]
    text = ", ".join(parts)
    told = protocol.get("training_overlap")
    if told and protocol.get("trained") != "included":  # what is included has a sentence of its own
        text += f", training images: {told}"
    return " ".join([f"{text[:1].upper()}{text[1:]}.", *protocol.get("benchmark_differs", [])]) if parts else ""


def further_tables(metrics: Mapping) -> list[tuple[str, str, str]]:
    """Heading, note and Markdown of the tables that follow the results in a card, as far as they were measured."""
    sections = evaluation_tables(metrics)
    tables = [table for table in sections.get("subgroups", []) if not table.name.endswith("-findings")]
    tables += [table for key in ("radiologists", "retrieval") for table in sections.get(key, [])[:1]]
    tables += [  # whose titles alone would not say of what they are
        table._replace(title=f"{key.capitalize()}: {table.title[0].lower()}{table.title[1:]}")
        for key, number in {"grounding": 2, "sparsity": 1, "robustness": None}.items()
        for table in sections.get(key, [])[:number]
    ]
    texts = [(markdown_cell(table.title), markdown_cell(table.note), markdown_table(table)) for table in tables]
    return [tuple(text.replace(DASH, NOT_MEASURED) for text in of_table) for of_table in texts]


def is_synthetic(dataset_name: str | None) -> bool:
    """Whether the data are the phantom's, which every command calls "phantom" or "phantom:<options>"."""
    return bool(dataset_name) and dataset_name.partition(":")[0] == "phantom"


def describe_dataset(dataset_name: str) -> str:
    """The data's name for a reader; the phantom is always called synthetic."""
    return f"{dataset_name} (synthetic)" if is_synthetic(dataset_name) else dataset_name


def card_data(
    model_name: str, metrics: Mapping | None, license: str | None, classifier: bool = False
) -> ModelCardData:
    """The card's YAML head, with one `EvalResult` per measured number: of each finding and of their mean the AUROC,
    AUPRC, MCC and F1; of retrieval the recalls; of grounding the pointing game and the pixel AUROC.
    """
    task = "image-classification" if classifier else "zero-shot-image-classification"
    results = []
    if metrics:
        split = metrics["protocol"].get("split")
        numbers = [
            (f"{column_name(key)}, {finding}", metric_type, result.get(key))
            for finding, result in {**metrics["findings"], "mean": metrics["mean"]}.items()
            for key, metric_type in CARD_METRICS.items()
        ]
        task_name = "Classification of findings" if classifier else "Zero-shot classification of findings"
        groups = [(task, task_name, metrics["dataset"], numbers)]
        for key, (part_type, part_name) in CARD_PARTS.items():
            part = metrics.get(key) or {}
            groups.append((part_type, part_name, part.get("dataset") or metrics["dataset"], part_numbers(key, part)))
        for task_type, task_name, dataset, numbers in groups:
            results += [
                EvalResult(
                    task_type=task_type,
                    task_name=task_name,
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "unnamed",
                    dataset_name=describe_dataset(dataset) or "unnamed",
                    dataset_split=split,
                    metric_type=metric_type,
                    metric_name=metric_name,
                    metric_value=float(value),  # a numpy scalar would become a !!python tag in the YAML
                )
                for metric_name, metric_type, value in numbers
                if value is not None
            ]
    return ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        tags=["chest-x-ray", "radiology", "clip", "tier"],
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=model_name.split("/")[-1],
        eval_results=results or None,
    )


def part_numbers(key: str, part: Mapping) -> list[tuple[str, str, float | None]]:
    """Names, types and values of what a card's head says of the retrieval or the grounding of `metrics.json`."""
    if key == "retrieval":
        directions = {"image_to_text": "image to text", "text_to_image": "text to image"}
        return [
            (f"R@{name.removeprefix('recall_at_')}, {direction}", "recall", value)
            for of, direction in directions.items()
            for name, value in (part.get(of) or {}).items()
            if re.fullmatch(r"recall_at_\d+", name)
        ]
    numbers = ((part.get("mean") or {}).get("maps") or {}).get("above_average") or {}
    types = {"pointing": "accuracy", "pixel_auroc": "roc_auc"}
    return [(f"{column_name(name)}, mean", types[name], (numbers.get(name) or {}).get("mean")) for name in types]
