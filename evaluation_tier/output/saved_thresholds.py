"""Writes prompts, thresholds and calibration of the findings into a model's config, where the pipeline reads them."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation_tier.output.model_card import read_config
from evaluation_tier.output.writing import write_beside
from modeling_tier.findings_tier import check_findings

logger = logging.getLogger(__name__)


def write_thresholds(
    folder: str | Path, metrics: Mapping, prompts: Mapping, measured_on: Mapping[str, str | int]
) -> Path:
    """Keep prompts, score level, threshold and calibration of each finding in a model's config.json, where the
    pipeline looks.

    The findings of earlier evaluations are kept, unless they are of the same names. A finding whose scale is 0 or
    undefined gets no calibration, and a warning says so.

    Args:
        folder: the model's.
        metrics: as `evaluate_zero_shot` returns it for this model alone.
        prompts: those that it was evaluated with, of each finding (`processing_tier.prompts.loader.Prompts`).
        measured_on: the images that thresholds and calibration come from: `dataset`, `split`, `images`, `date`.
    """
    entries = {}
    for finding, result in metrics["findings"].items():
        entry: dict[str, Any] = {
            "positive": list(prompts[finding].positive),
            "negative": list(prompts[finding].negative),
            "score_level": metrics["protocol"]["score_level"],
        }
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
