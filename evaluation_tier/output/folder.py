"""The output folder of an evaluation, and the rules for replacing its files."""

from collections.abc import Mapping
from pathlib import Path

from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.metrics_file import read_metrics


def choose_folder(asked: str | Path | None, identity: Mapping, overwrite: bool) -> Path:
    """
    The folder to write into: the one that was asked for, or one of the names of model, data and split.

    Args:
        asked: the folder that the user names, if any.
        identity: `models` (a list), `dataset`, `split`, `benchmark` (None without one) and `protocol` (its name).
        overwrite: whether it may replace one of another identity.

    Raises:
        ValueError: the folder holds an evaluation of another model, of other data, of another split or by another
            protocol.
    """
    folder = Path("runs", "evaluation", default_name(identity)) if asked is None else Path(asked)
    if overwrite or not (folder / "metrics.json").is_file():
        return folder
    try:
        metrics = read_metrics(folder)
    except ValueError:
        raise ValueError(
            f"{folder} holds a metrics.json that cannot be read: choose another --output_dir, or pass --overwrite."
        ) from None
    protocol = metrics["protocol"]
    there = {"models": metrics.get("models") or [], "dataset": metrics["dataset"]}
    there |= {key: protocol.get(key) for key in ("split", "benchmark")}
    there["protocol"] = protocol.get("name", identity["protocol"])
    if there["protocol"] == "classifier":  # which has no other
        there["protocol"] = identity["protocol"]
    if any(there[key] != identity[key] for key in there):
        raise ValueError(
            f"{folder} holds an evaluation of {', '.join(map(str, there['models'])) or 'a model'} on "
            f"{there['dataset'] or 'unnamed data'}, split {there['split']!r}, protocol {there['protocol']!r}, not of "
            f"{', '.join(identity['models'])} on {identity['dataset']}, split {identity['split']!r}, protocol "
            f"{identity['protocol']!r}: choose another --output_dir, or pass --overwrite."
        )
    return folder


def default_name(identity: Mapping) -> str:
    """The name of the folder, such as `demo-phantom-test`."""
    models = [model.removeprefix("runs/") for model in identity["models"]]
    parts = [models[0], identity["benchmark"] or identity["dataset"], identity["split"]]
    if len(models) > 1:
        parts[0] = " ".join(models)
    return "-".join(file_names([part])[part] for part in parts)
