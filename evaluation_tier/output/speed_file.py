"""Writing and reading speed.json: how fast each model of an evaluation embedded images, see `models/speed.py`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation_tier.output.metrics_file import is_count
from evaluation_tier.output.writing import write_beside

NAME = "speed.json"

MAX_BYTES = 2**20


def write_speeds(path: str | Path, speeds: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write what `Speed.describe` says of each model, by name."""
    text = json.dumps({"models": speeds}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_speeds(folder: str | Path) -> dict[str, dict[str, Any]]:
    """
    What `write_speeds` wrote into a folder; {} without the file, as before it existed.

    Raises:
        ValueError: the file is too large, damaged or of another layout.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} exceeds {MAX_BYTES >> 20} MB: delete it, or evaluate the model again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: delete it, or evaluate the model again.") from error
    speeds = content.get("models") if isinstance(content, dict) else None
    if not isinstance(speeds, dict) or not all(map(is_speed, speeds.values())):
        raise ValueError(f"{path} lacks a valid speed of each model: delete it, or evaluate the model again.")
    return speeds


def combined_speed(folder: str | Path) -> dict[str, Any]:
    """
    The speed of the models of an evaluation one after another: `images_per_second`, None if it is not known for each,
    and the `devices` that it was measured on, with the type of the numbers if known, such as "NVIDIA H200, float32".
    """
    speeds = list(read_speeds(folder).values())
    seconds = [1 / speed["images_per_second"] if speed["images_per_second"] else None for speed in speeds]
    known = [speed for speed in speeds if speed["images_per_second"]]
    devices = dict.fromkeys(", ".join(filter(None, (speed["device"], speed["dtype"]))) for speed in known)
    return {
        "images_per_second": None if None in seconds or not seconds else 1 / sum(seconds),
        "devices": list(devices),
    }


def is_speed(value: Any) -> bool:
    """Whether a JSON value is what `Speed.describe` returns."""
    if not isinstance(value, dict):
        return False
    speed = value.get("images_per_second")
    positive = type(speed) in (int, float) and math.isfinite(speed) and speed > 0
    texts = all(isinstance(value.get(key), kinds) for key, kinds in (("device", str), ("dtype", (str, type(None)))))
    return (speed is None or positive) and texts and is_count(value.get("images"))
