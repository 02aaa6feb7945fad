"""The YAML head of a model card, which the Hub reads."""

import re
from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData

from evaluation_tier.analyses.grounding.map_names import kind_of, shown_map
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.tables import column_name

CARD_METRICS = {  # key of metrics.json: its name on the Hub
    "auroc": "roc_auc",
    "auprc": "average_precision",
    "mcc": "matthews_correlation",
    "f1": "f1",
}

CARD_PARTS = {  # key of metrics.json: task type and name
    "retrieval": ("feature-extraction", "Retrieval of images and reports"),
    "grounding": ("zero-shot-object-detection", "Grounding of findings"),
}


def card_data(
    model_name: str, metrics: Mapping | None, license: str | None, classifier: bool = False
) -> ModelCardData:
    """The card's YAML head, with one `EvalResult` per measured number.

    The numbers are AUROC, AUPRC, MCC and F1 of each finding and of their mean, the recalls of retrieval, and the
    pointing game and pixel AUROC of grounding.
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
    """Names, types and values of the results of retrieval or grounding in a card's head."""
    if key == "retrieval":
        directions = {"image_to_text": "image to text", "text_to_image": "text to image"}
        return [
            (f"R@{name.removeprefix('recall_at_')}, {direction}", "recall", value)
            for of, direction in directions.items()
            for name, value in (part.get(of) or {}).items()
            if re.fullmatch(r"recall_at_\d+", name)
        ]
    maps = (part.get("mean") or {}).get("maps") or {}
    shown = shown_map(maps)
    numbers, kind = maps.get(shown) or {}, kind_of(shown)
    of = "" if kind == "cosine" else f" of {kind}s"
    types = {"pointing": "accuracy", "pixel_auroc": "roc_auc"}
    return [(f"{column_name(name)}{of}, mean", types[name], (numbers.get(name) or {}).get("mean")) for name in types]
