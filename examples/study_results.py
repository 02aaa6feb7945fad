"""The numbers of a study: read from the files of its cells, compared over the seeds, and written as tables."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats  # scikit-learn brings it
from study_runs import Cell, Failure, Study

from evaluation_tier.output.tables import DASH, Table, format_number, markdown_tables, text_table
from evaluation_tier.output.writing import write_beside
from processing_tier.readers import dataset_name

MIN_PAIRS = 3  # of seeds, for an interval


def map_measures(title: str, maps: str, kind: str) -> dict[str, dict[str, tuple[str, ...]]]:
    place = f"grounding.all_regions.maps.{maps}"
    return {
        title: {
            f"pointing_{kind}": (f"{place}.pointing.mean",),
            f"pixel_auroc_{kind}": (f"{place}.pixel_auroc.mean",),
            f"miou_{kind}": (f"{place}.miou_scaled.mean",),
            f"deletion_{kind}": (f"deletion.mean.maps.{kind}.difference_sd.mean",),
        }
    }


# By table: measure to its places in metrics.json, whose mean it is. "a|b" is the first of the two that is there, "*"
# the only entry. All regions count once; a classifier's contributions are its class activations.
MEASURES: dict[str, dict[str, tuple[str, ...]]] = {
    "Scores and retrieval": {
        "auroc": ("mean.auroc",),
        "auroc_global": ("score_levels.global.auroc",),
        "recall_at_5": ("retrieval.image_to_text.recall_at_5", "retrieval.text_to_image.recall_at_5"),
        "recall_at_10": ("retrieval.image_to_text.recall_at_10", "retrieval.text_to_image.recall_at_10"),
    },
    **map_measures("Maps of contributions", "difference_contribution|class_activation", "contribution"),
    **map_measures("Maps of cosines", "difference", "cosine"),
    "Words and time": {
        "word_pointing": ("words.maps.own.pointing.mean",),
        "word_pixel_auroc": ("words.maps.own.pixel_auroc.mean",),
        "gini": ("sparsity.models.*.words.all.gini",),
        "token_entropy": ("sparsity.models.*.token_entropy",),
        "patch_entropy": ("sparsity.models.*.patch_entropy",),
        "training_seconds": ("training.train_runtime",),
    },
}

HEADERS = {
    "auroc": "AUROC",
    "auroc_global": "AUROC, global",
    "recall_at_5": "Recall@5",
    "recall_at_10": "Recall@10",
    "pointing": "Pointing",
    "pixel_auroc": "Pixel AUROC",
    "miou": "mIoU",
    "deletion": "Deletion (SD)",
    "word_pointing": "Pointing, words",
    "word_pixel_auroc": "Pixel AUROC, words",
    "gini": "Gini",
    "token_entropy": "Token entropy",
    "patch_entropy": "Patch entropy",
    "training_seconds": "Training (s)",
}

NOTE = (
    "Row {reference}: mean over the seeds. Other rows: the form minus {reference} with the same seed, mean and 95 % "
    "interval (Student's t over the seeds; none for fewer than {pairs} seeds). * marks an interval without 0. Of 20 "
    "intervals, chance alone marks one."
)


def find_number(metrics: Mapping, path: str) -> float:
    """A number in nested mappings by its keys, joined by dots; NaN where it is missing or None."""
    value: Any = metrics
    for keys in path.split("."):
        if not isinstance(value, Mapping) or not value:
            return math.nan
        names = list(value)[:1] if keys == "*" else keys.split("|")
        value = next((value[name] for name in names if name in value), None)
    return float(value) if isinstance(value, (int, float)) else math.nan


def measure(metrics: Mapping) -> dict[str, float]:
    """Every measure of `MEASURES`; NaN for one that does not exist for this model or these data."""
    return {
        name: float(np.mean([find_number(metrics, path) for path in paths]))
        for table in MEASURES.values()
        for name, paths in table.items()
    }


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_results(study: Study) -> pd.DataFrame:
    """
    Every number of every cell, one per row.

    Returns:
        Columns `data` (of the training), `evaluated` (data of the measurement), `form`, the two weights that the form
        names (NaN where it does not), `seed`, `done` (whether the measurement exists), `measure` and `value`.
    """
    rows = []
    for cell in study.cells:
        options = study.forms[cell.form]
        described = {"form": cell.form}
        described |= {name: options.get(name, math.nan) for name in ("token_entropy_weight", "patch_entropy_weight")}
        for evaluated, metrics in read_cell(study, cell).items():
            row = {"data": cell.source.name, "evaluated": evaluated, **described, "seed": cell.seed}
            row["done"] = bool(metrics)
            rows += [{**row, "measure": name, "value": value} for name, value in measure(metrics).items()]
    return pd.DataFrame(rows)


def read_cell(study: Study, cell: Cell) -> dict[str, dict]:
    """The files of a cell by the name of the evaluated data; empty for what is not finished."""
    if not cell.is_trained:
        return dict.fromkeys(evaluated_data(study, cell), {})
    metrics = read_json(study.measured_folder(cell) / "metrics.json")
    if metrics:
        log = read_json(cell.folder / "model" / "trainer_state.json").get("log_history", [])
        metrics |= read_json(study.words_folder(cell) / "metrics.json")
        metrics["training"] = next((entry for entry in reversed(log) if "train_runtime" in entry), {})
    parts = {cell.source.name: metrics}
    for data in () if cell.source.is_phantom else study.grounding_data:
        parts[dataset_name(data)] = read_json(study.measured_folder(cell, data) / "metrics.json")
    return parts


def evaluated_data(study: Study, cell: Cell) -> list[str]:
    others = () if cell.source.is_phantom else study.grounding_data
    return [cell.source.name, *map(dataset_name, others)]


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """
    The mean of paired differences with its 95 % interval, by Student's t with one degree of freedom fewer than pairs.
    It takes the seeds as independent and the differences as normal. NaN bounds for fewer than `MIN_PAIRS` pairs.
    """
    count = len(differences)
    if count == 0:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(differences))
    if count < MIN_PAIRS:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def compare(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """
    Each form minus the reference, paired over the seeds that both have.

    Args:
        cells: see `read_results`.
        reference: name of a form.

    Returns:
        One row per `data`, `evaluated`, `form` and `measure`, in the order of the cells: the weights, `n_seeds` that
        are paired, `mean` and `reference_mean` of the two over them, `difference`, `low` and `high`.
    """
    keys = ["data", "evaluated", "measure"]
    references = {
        key: group.set_index("seed")["value"] for key, group in cells[cells["form"] == reference].groupby(keys)
    }
    rows = []
    weights = ["token_entropy_weight", "patch_entropy_weight"]
    for (data, evaluated, form, name), group in cells.groupby(["data", "evaluated", "form", "measure"], sort=False):
        if form == reference:
            continue
        pairs = pd.concat([group.set_index("seed")["value"], references[data, evaluated, name]], axis=1).dropna()
        own, other = pairs.to_numpy().T
        difference, low, high = paired_interval(own - other)
        row = {"data": data, "evaluated": evaluated, "form": form, **group[weights].iloc[0].to_dict(), "measure": name}
        means = {"mean": own.mean(), "reference_mean": other.mean()} if len(pairs) else {}
        rows.append({**row, "n_seeds": len(pairs), **means, "difference": difference, "low": low, "high": high})
    columns = ["data", "evaluated", "form", *weights, "measure", "n_seeds"]
    columns += ["mean", "reference_mean", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def format_difference(difference: float, low: float, high: float, digits: int) -> str:
    """`+0.012 (-0.003, +0.027)`, with * behind an interval without 0."""
    if math.isnan(difference):
        return DASH
    number = f"{difference:+.{digits}f}"
    if math.isnan(low):
        return number
    return f"{number} ({low:+.{digits}f}, {high:+.{digits}f}){'*' if low > 0 or high < 0 else ''}"


def make_tables(cells: pd.DataFrame, differences: pd.DataFrame, reference: str, num_seeds: int) -> list[Table]:
    """The tables of the page: one for each entry of `MEASURES` and each evaluation that has such numbers."""
    tables = []
    note = NOTE.format(reference=reference, pairs=MIN_PAIRS)
    for (data, evaluated), of_data in cells.groupby(["data", "evaluated"], sort=False):
        chosen = differences[(differences["data"] == data) & (differences["evaluated"] == evaluated)]
        chosen = chosen.set_index(["form", "measure"])
        for title, places in MEASURES.items():
            values = of_data[of_data["measure"].isin(places)].dropna(subset="value")
            names = [name for name in places if name in set(values["measure"])]
            if not names:
                continue
            rows = []
            for form, of_form in of_data.groupby("form", sort=False):
                done = of_form.loc[of_form["done"], "seed"].nunique()
                counts = values[values["form"] == form].groupby("measure")["seed"].nunique()
                if done == num_seeds and counts.empty:
                    continue  # the form does not have these measures, as a classifier has no words
                done = min(done, counts.min()) if len(counts) else 0
                weights = [of_form[f"{name}_entropy_weight"].iloc[0] for name in ("token", "patch")]
                row = [form, *(DASH if math.isnan(weight) else f"{weight:g}" for weight in weights)]
                row.append(str(num_seeds) if done == num_seeds else f"{done} of {num_seeds}")
                for name in names:
                    digits = 0 if name == "training_seconds" else 3
                    if form == reference:
                        number = values.loc[(values["form"] == form) & (values["measure"] == name), "value"].mean()
                        row.append(format_number(number, digits, DASH))
                    else:
                        difference, low, high = chosen.loc[(form, name), ["difference", "low", "high"]]
                        row.append(format_difference(difference, low, high, digits))
                rows.append(tuple(row))
            where = f"trained on {data}" + (f", evaluated on {evaluated}" if evaluated != data else "")
            header = ("Form", "Token weight", "Patch weight", "Seeds", *map(header_of, names))
            label = f"{title} {data} {evaluated}".lower().replace(" ", "-")
            tables.append(Table(label, f"{title}, {where}", note, header, tuple(rows), "l" + "r" * (len(header) - 1)))
    return tables


def header_of(name: str) -> str:
    return HEADERS[name.removesuffix("_contribution").removesuffix("_cosine")]


def failed_lines(failures: Mapping[Cell, Failure]) -> list[str]:
    """One sentence for each failed cell."""
    return [
        f"Failed: {cell.form} on {cell.source.name}, seed {cell.seed}, {step}: {reason} ({log})"
        for cell, (step, reason, log) in failures.items()
    ]


def write_results(
    folder: Path, cells: pd.DataFrame, differences: pd.DataFrame, tables: Sequence[Table], failed: Iterable[str]
) -> list[Path]:
    """Write cells.parquet, differences.parquet and study.md; returns their paths."""
    text = "\n".join([markdown_tables({"": tables}), *(f"- {line}" for line in failed), ""])
    return [
        write_beside(folder / "cells.parquet", partial(cells.to_parquet, index=False)),
        write_beside(folder / "differences.parquet", partial(differences.to_parquet, index=False)),
        write_beside(folder / "study.md", lambda partial_file: partial_file.write_text(text, encoding="utf-8")),
    ]


def print_tables(tables: Sequence[Table]) -> None:
    for table in tables:
        print(f"\n{table.title}\n{text_table(table.header, table.rows, table.align)}")
    if tables:
        print(f"\n{tables[0].note}")
