"""The model card: the results of an evaluation and the facts of the training."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from evaluation_tier.output.metrics_file import to_json, write_beside
from evaluation_tier.output.result_tables import evaluation_tables, has_common_findings
from evaluation_tier.output.tables import (
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
from modeling_tier.findings_tier import check_findings, describe_measurement

# model_cards/ lies beside the packages in a clone; the wheel carries it inside this package
CARD_FOLDER = next(parent / "model_cards" for parent in Path(__file__).parents if (parent / "model_cards").is_dir())
CARD_TEMPLATE = CARD_FOLDER / "tier_template.md"

CONFIG_KEYS = {
    **dict.fromkeys(("text_config", "vision_config", "id2label", "zero_shot_findings"), dict),
    "architectures": list,
}  # of config.json, as cards and thresholds read it

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
