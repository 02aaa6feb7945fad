"""The model card: the results of an evaluation and the facts of the training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from evaluation_tier.output.card_head import card_data
from evaluation_tier.output.dataset_names import is_synthetic
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.output.result_tables import evaluation_tables, has_common_findings
from evaluation_tier.output.tables import (
    DASH,
    NOT_MEASURED,
    format_interval,
    format_number,
    markdown_cell,
    markdown_table,
)
from evaluation_tier.output.writing import write_beside
from modeling_tier.checkpoints.tensor_files import read_json
from modeling_tier.findings_tier import check_findings, describe_measurement

# model_cards/ lies beside the packages in a clone; the wheel carries it inside this package
CARD_FOLDER = next(parent / "model_cards" for parent in Path(__file__).parents if (parent / "model_cards").is_dir())
CARD_TEMPLATE = CARD_FOLDER / "tier_template.md"

CONFIG_KEYS = {
    **dict.fromkeys(("text_config", "vision_config", "id2label", "zero_shot_findings"), dict),
    "architectures": list,
}  # of config.json, as cards and thresholds read them

TRAINING_FILE = "training_facts.json"  # beside the weights, so that a later evaluation renders the whole card

FACTS_OF_CLASSIFIERS = ("label_fraction", "trained_part")

FACTS_OF_CONTRASTIVE_MODELS = ("text", "entropy_weights")

CARD_PROTOCOL = {  # key of the protocol in metrics.json: its name on the card
    "benchmark": "Benchmark",
    "split": "split",
    "views": "views",
    "name": "protocol",
    "prompts": "prompts",
    "scoring": "scoring",
    "no_finding": '"No Finding" scored by',
    "score_level": "score level",
}

TRAINING_FACTS = {  # key: its name on the card, in this order; `write_model_card` refuses other keys
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

MODEL_FACTS = {  # key of config.json: its name on the card
    "token_entropy_weight": "Weight of the token entropy",
    "patch_entropy_weight": "Weight of the patch entropy",
    "evidence_entropy_weight": "Weight of the evidence entropy",
    "evidence_patches": "Patches of evidence without a penalty",
    "entropy_temperature": "Entropy temperature",
    "entropy_normalization": "Entropies divided by ln K",
    "entropy_tokens": "Tokens in the entropies",
    "image_pooling": "Image embedding",
}


def read_config(path: Path) -> dict:
    """A model's config.json; a ValueError if the parts that a card states, or that hold thresholds, are damaged."""
    config = read_json(path)
    for key, kind in CONFIG_KEYS.items():
        if not isinstance(config.get(key), kind | None):
            raise ValueError(f"{path}: {key} must not be {config[key]!r:.80}. Save the model again.")
    if not all(isinstance(name, str) for name in (config.get("id2label") or {}).values()):
        raise ValueError(f"{path}: id2label has a name that is not text. Save the model again.")
    check_findings(config.get("zero_shot_findings") or {})
    try:
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path}: a number is not finite, a text is not valid Unicode, or values are nested too deeply. "
            "Save the model again."
        ) from None
    return config


def describe_calibration(findings: Mapping[str, Mapping]) -> str:
    """Which findings of a model's configuration are calibrated, and on which images; `""` without any."""
    calibrated = [finding for finding, entry in findings.items() if "scale" in entry]
    if not calibrated:
        return ""
    sources = dict.fromkeys(describe_measurement(findings[finding].get("measured_on")) for finding in calibrated)
    text = f"They were measured on {'; '.join(sources)}."
    lacking = [finding for finding in findings if finding not in calibrated]
    return f"{text} Not calibrated: {', '.join(lacking)}." if lacking else text


class ModelFacts(NamedTuple):
    """The statements of a card about a model, from its config.json."""

    architecture: str
    is_classifier: bool
    facts: dict[str, object]  # by their names on the card


def describe_model(config: Mapping) -> ModelFacts:
    """The facts of a CLIP model, a dual encoder, or a classifier on the image tower of either."""
    vision = config.get("vision_config") or {}
    is_classifier = str((config.get("architectures") or [""])[0]).endswith("ForImageClassification")
    if config.get("model_type") == "tier_dual_encoder":
        text_type = (config.get("text_config") or {}).get("model_type")
        architecture = f"a dual encoder of two towers, {vision.get('model_type')} for images and {text_type} for text,"
        facts = {"Image size (pixels)": config.get("image_size")}
        if not is_classifier:
            facts["Frozen text layers"] = config.get("frozen_text_layers")
    else:
        architecture = "a SigLIP model" if config.get("model_type") == "tier_siglip" else "a CLIP model"
        facts = {"Image size (pixels)": vision.get("image_size"), "Patch size (pixels)": vision.get("patch_size")}
    width = (config.get("text_config") or {}).get("projection_size")  # SigLIP's
    facts["Embedding width"] = config.get("projection_dim", width)
    if is_classifier:
        facts["Findings"] = ", ".join((config.get("id2label") or {}).values())
        facts[MODEL_FACTS["image_pooling"]] = config.get("image_pooling")
    else:
        has_evidence = bool(config.get("evidence_entropy_weight"))
        keys = [key for key in MODEL_FACTS if has_evidence or not key.startswith("evidence")]
        facts |= {MODEL_FACTS[key]: config.get(key) for key in keys}
    return ModelFacts(architecture, is_classifier, facts)


def keep_training_facts(folder: Path, training: Mapping | None) -> Mapping:
    """The facts of the training, which are written beside the weights; without any given, those kept there."""
    kept = folder / TRAINING_FILE
    if training is None:
        training = read_json(kept) if kept.is_file() else {}
    unknown = sorted(set(training) - set(TRAINING_FACTS))
    if unknown:
        raise ValueError(f"Unknown training fact {unknown[0]!r}: use {', '.join(TRAINING_FACTS)}.")
    if not isinstance(training.get("dataset"), str | None):
        raise ValueError(f"{kept}: dataset must be a name, not {training['dataset']!r:.80}.")
    if training:
        facts = json.dumps(to_json(training), indent=2) + "\n"
        write_beside(kept, lambda partial: partial.write_text(facts, encoding="utf-8"))
    return training


def state(value: Any) -> str:
    """A fact as a card states it."""
    return NOT_MEASURED if value is None or value == "" else f"{value:,}" if type(value) is int else str(value)


def write_model_card(
    folder: str | Path,
    metrics: Mapping | None = None,
    training: Mapping | None = None,
    model_name: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the model card, README.md, into a model folder.

    All numbers are filled in: results come from `metrics`, the model's settings from the folder's config.json.
    Missing numbers read "not measured".

    Args:
        folder: holds config.json.
        metrics: as `evaluate_zero_shot` returns it or `metrics.json` holds it.
        training: facts of the training, with keys of `TRAINING_FACTS`. They are kept in the folder; by default the
            card uses the facts that are kept there.
        model_name: a Hub name ("owner/name"), or the model's name on the card; by default the folder's name.
        license: SPDX identifier of the licence of the weights; the terms of the training data may restrict it.

    Raises:
        ValueError: the folder does not hold a model, or a key of `training` is unknown.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} does not hold a model: config.json is missing.")
    training = keep_training_facts(folder, training)
    config = read_config(folder / "config.json")
    model = describe_model(config)
    model_name = model_name or folder.resolve().name
    data = to_json(metrics) if metrics else None
    names = {"training": training.get("dataset"), "evaluation": (data or {}).get("dataset")}
    of_other_kind = FACTS_OF_CONTRASTIVE_MODELS if model.is_classifier else FACTS_OF_CLASSIFIERS
    text = card_template(CARD_TEMPLATE).render(
        card_data=card_data(model_name, data, license, model.is_classifier).to_yaml(line_break="\n").strip(),
        model_name=model_name,
        source=model_name if "/" in model_name else f"path/to/{model_name}",
        license=license,
        architecture=model.architecture,
        facts=[(label, state(value)) for label, value in model.facts.items()],
        classifier=model.is_classifier,
        calibration=describe_calibration(config.get("zero_shot_findings") or {}),
        training=[
            (label, state(training.get(key))) for key, label in TRAINING_FACTS.items() if key not in of_other_kind
        ],
        regularized=bool(config.get("token_entropy_weight") or config.get("patch_entropy_weight")),
        has_evidence=bool(config.get("evidence_entropy_weight")),
        **{f"{which}_data": state(name) for which, name in names.items()},
        **{f"synthetic_{which}": is_synthetic(name) for which, name in names.items()},
        metrics=data,
        protocol=describe_protocol(data["protocol"]) if data else "",
        further=further_tables(data) if data else [],
        has_subgroups=any(map(has_common_findings, ((data or {}).get("subgroups") or {}).values())),
        not_measured=NOT_MEASURED,
    )
    return write_beside(folder / "README.md", lambda partial: partial.write_text(text, encoding="utf-8"))


def card_template(path: Path) -> jinja2.Template:
    """The template of a card; a misspelt name in it is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": markdown_cell, "number": format_number, "interval": format_interval}
    return environment.from_string(path.read_text(encoding="utf-8"))


def describe_protocol(protocol: Mapping) -> str:
    """An evaluation in one sentence, and how its data differ from the benchmark's."""
    parts = [f"{name} {protocol[key]}" for key, name in CARD_PROTOCOL.items() if protocol.get(key) is not None]
    text = ", ".join(parts)
    told = protocol.get("training_overlap")
    if told and protocol.get("trained") != "included":  # the card has a separate sentence about included images
        text += f", training images: {told}"
    told = protocol.get("exposure")
    if told and not protocol.get("exposure_overlap"):  # likewise
        text += f", published training data: {told}"
    return " ".join([f"{text[:1].upper()}{text[1:]}.", *protocol.get("benchmark_differs", [])]) if parts else ""


def further_tables(metrics: Mapping) -> list[tuple[str, ...]]:
    """Heading, note and Markdown of the tables that follow the results in a card, if they were measured."""
    sections = evaluation_tables(metrics)
    tables = [table for table in sections.get("subgroups", []) if not table.name.endswith("-findings")]
    tables += [table for key in ("radiologists", "retrieval") for table in sections.get(key, [])[:1]]
    tables += [  # their titles alone do not name the analysis
        table._replace(title=f"{key.capitalize()}: {table.title[0].lower()}{table.title[1:]}")
        for key, number in {"grounding": None, "deletion": 1, "sparsity": 1, "robustness": None}.items()
        for table in sections.get(key, [])[:number]
        if table.name != "grounding-findings"
    ]
    texts = [(markdown_cell(table.title), markdown_cell(table.note), markdown_table(table)) for table in tables]
    return [tuple(text.replace(DASH, NOT_MEASURED) for text in of_table) for of_table in texts]
