"""Writing, reading and checking predictions.parquet."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from pyarrow.types import is_floating, is_integer

from evaluation_tier.output.writing import write_beside

MAX_PREDICTIONS = 200_000_000  # values; 1.6 GB


def write_predictions(path: str | Path, predictions: pd.DataFrame) -> Path:
    """Write `predictions.parquet`: one row per evaluated image."""
    return write_beside(path, lambda partial: predictions.to_parquet(partial, index=False))


def read_predictions(folder: str | Path, metrics: Mapping) -> pd.DataFrame:
    """The images, patients, labels and scores of the findings of `metrics`, from `predictions.parquet`.

    Raises:
        ValueError: the file is missing, damaged, too large or of another evaluation than `metrics`, or labels or
            scores are not numbers.
    """
    path = Path(folder) / "predictions.parquet"
    if not path.is_file():
        raise ValueError(f"The folder {folder} does not hold predictions.parquet: name a folder that tier-eval wrote.")
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
            columns += ["trained_on"] * ("trained_on" in schema.names)  # whether the model was trained on the image
            return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise ValueError(f"{path} cannot be read as Parquet: evaluate the model again.") from error
    except MemoryError as error:  # a damaged length, mostly
        raise ValueError(f"{path} is damaged, or does not fit into memory: evaluate the model again.") from error
    if num_rows * len(columns) > MAX_PREDICTIONS:
        raise ValueError(f"{path} holds more than {MAX_PREDICTIONS:,} values: it is too large for a report.")
    if belongs:
        raise ValueError(f"The column {of_text[0]!r} of {path} does not hold numbers: evaluate the model again.")
    what = (
        f"it lacks the column {missing[0]!r}"
        if missing
        else f"it has {num_rows:,} rows for {metrics['n_images']:,} images"
    )
    raise ValueError(f"{path} does not belong to the metrics.json beside it ({what}): evaluate the model again.")
