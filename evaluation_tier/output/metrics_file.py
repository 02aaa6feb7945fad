"""Writing, reading and checking metrics.json."""

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from evaluation_tier.output.writing import write_beside

MAX_METRICS_BYTES = 64 * 2**20

# Required and optional keys of metrics.json
METRICS_KEYS = {"dataset": str, "protocol": dict, "n_images": int, "findings": dict, "mean": dict}

OPTIONAL_KEYS = {
    "models": list,
    "dtype": str,
    **dict.fromkeys(
        (
            "versions",
            "weights",
            "sizes",
            "commits",
            "adapters",
            "remote_code",
            "groups",
            "score_levels",
            "subgroups",
            "radiologists",
        ),
        dict,
    ),
    **dict.fromkeys(("retrieval", "grounding", "deletion", "sparsity", "robustness"), dict),
    **dict.fromkeys(("transfer", "learning_curve"), dict),
}

PROTOCOL_KEYS = {
    **dict.fromkeys(("n_patients", "n_bootstrap", "seed"), int),
    **dict.fromkeys(("images_skipped", "benchmark_differs", "exposure_overlap"), list),
    **dict.fromkeys(("findings_left_out", "resamples_dropped"), dict),
    **dict.fromkeys(("training_overlap", "threshold_overlap", "trained", "exposure"), str),
}


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy", "tier-clip"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a clone that is not installed
            versions[name] = "not installed"
    return versions


def to_json(value: Any) -> Any:
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


def read_metrics(folder: str | Path) -> dict:
    """What `write_metrics` wrote into a folder.

    Raises:
        ValueError: the folder lacks `metrics.json`, or the file is too large, damaged or of another layout.
    """
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        raise ValueError(f"The folder {folder} does not hold metrics.json: name a folder that tier-eval wrote.")
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
                raise ValueError(f"{path} lacks a valid {key!r}: evaluate the model again.")
    for finding, result in metrics["findings"].items():
        for key in ("auroc", "auroc_ci95", "auprc", "n_positive", "n_negative"):
            if not isinstance(result, dict) or key not in result:
                raise ValueError(f"{path} lacks {key!r} of {finding!r}: evaluate the model again.")
    for name, size in (metrics.get("sizes") or {}).items():
        if not isinstance(size, dict) or not all(is_count(size.get(key)) for key in ("parameters", "image_size")):
            raise ValueError(f"{path} lacks a valid size of {name!r}: evaluate the model again.")
    parts = {**metrics["findings"], "mean": metrics["mean"], "score_levels": metrics.get("score_levels") or {}}
    for part, result in parts.items():
        for key, value in result.items():
            if not holds_numbers(value) or key.endswith("_ci95") and not is_interval(value):
                raise ValueError(
                    f"{path} has {str(value)[:40]!r} for {key!r} of {part!r}, which is not a number: evaluate the "
                    "model again."
                )
    return metrics


def holds_numbers(value: Any) -> bool:
    """Whether a JSON value is a number or null, or a list or an object of such values only."""
    if isinstance(value, (list, dict)):
        return all(map(holds_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, (int, float))


def is_count(value: Any) -> bool:
    """Whether a JSON value is null or a whole number from 0."""
    return value is None or type(value) is int and value >= 0


def is_interval(value: Any) -> bool:
    """Whether a JSON value is null or a list of two."""
    return value is None or isinstance(value, list) and len(value) == 2
