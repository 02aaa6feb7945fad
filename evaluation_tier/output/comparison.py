"""The files of a comparison of two evaluations: comparison.json, tables, a figure."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from evaluation_tier.figures import forest
from evaluation_tier.output.dataset_names import describe_dataset, is_synthetic
from evaluation_tier.output.page import FOR_RESEARCH, SYNTHETIC, Section, render_page
from evaluation_tier.output.page_figures import Figure, read_figure
from evaluation_tier.output.tables import (
    DASH,
    Table,
    column_name,
    format_cell,
    format_estimate,
    format_number,
    latex_tables,
    markdown_tables,
)
from evaluation_tier.output.writing import write_beside
from evaluation_tier.statistics.comparison import COMPARED, choose_p
from evaluation_tier.statistics.resampling import MIN_PATIENTS

logger = logging.getLogger(__name__)


def comparison_tables(comparison: Mapping) -> dict[str, list[Table]]:
    """The tables of a comparison: the AUROC with its p-values, the other metrics, and the compared evaluations."""
    parts = {**comparison["findings"], f"Mean of {len(comparison['findings'])}": comparison["mean"]}
    independent = comparison["n_patients"] == comparison["n_images"]  # as DeLong's test takes images to be
    rows = []
    for name, part in parts.items():
        auroc, counts = part["auroc"], format_cell(part["n_positive"]) if "n_positive" in part else ""
        numbers = (format_number(auroc[which], missing=DASH) for which in ("first", "second"))
        difference = format_estimate(auroc["difference"], auroc["difference_ci95"])
        rows.append((name, counts, *numbers, difference, format_p(choose_p(auroc, independent))))
    header = ("Finding", "Positives", "AUROC, A", "AUROC, B", "B minus A (95 % CI)", "p")
    names = f"A is {comparison['first']['folder']}, B is {comparison['second']['folder']}"
    note = (
        f"{names}; a difference above 0 is in favour of B. Intervals: percentiles of {comparison['n_bootstrap']:,} "
        "resamples of the patients, the same for both. p, of no difference: "
    )
    if comparison["n_patients"] < MIN_PATIENTS:
        note = (
            f"{names}; a difference above 0 is in favour of B. Intervals and p-values need images of at least "
            f"{MIN_PATIENTS} patients, but these are of {comparison['n_patients']}."
        )
    elif independent:
        note += "DeLong's test for a finding, the resamples for the mean; not corrected for the number of findings."
    else:
        note += "from the resamples, since DeLong's test would take the images of one patient as independent; not "
        note += "corrected for the number of findings."
    if comparison["findings_left_out"]:
        left_out = (f"{name} ({reason})" for name, reason in comparison["findings_left_out"].items())
        note += f" Left out: {', '.join(left_out)}."
    auroc = Table("comparison", "Difference of the AUROC", note, header, tuple(rows), "lrrrrr", 1)

    others = [name for name in COMPARED if name != "auroc"]
    rows = tuple(
        (name, *(format_estimate(part[key]["difference"], part[key]["difference_ci95"]) for key in others))
        for name, part in parts.items()
    )
    header = ("Finding", *(f"{column_name(key)} (95 % CI)" for key in others))
    note = "B minus A. MCC and F1 are at the thresholds that each evaluation chose, the same in all resamples."
    other = Table("comparison-others", "Difference of the other metrics", note, header, rows, "lrrr", 1)

    differences = {"dataset": [comparison["dataset"]] * 2, **comparison["protocol_differences"]}
    rows = [(column_name(key), *map(format_cell, pair)) for key, pair in differences.items()]
    rows.insert(1, ("Models", *(format_cell(comparison[which]["models"]) for which in ("first", "second"))))
    pair = [comparison[which] for which in ("first", "second")]
    if any(result["images_per_second"] for result in pair):
        speeds = (format_speed(result["images_per_second"], result["devices"]) for result in pair)
        rows.append(("Images/s, without reading", *speeds))
    if any(comparison["training_overlap"]):
        rows.append(("Training images", *map(format_cell, comparison["training_overlap"])))
    if any(comparison["exposure"]):
        rows.append(("Published training data", *map(format_cell, comparison["exposure"])))
    same = not comparison["protocol_differences"]
    differing = "are the same" if same else "differ in these: scores may differ for that reason"
    what = Table(
        "compared", "What was compared", f"The protocols {differing}.", ("What", "A", "B"), tuple(rows), "lll"
    )
    return {"auroc": [auroc], "others": [other], "compared": [what]}


def format_p(value: float | None) -> str:
    """A p-value with three digits, "<0.001" below."""
    return "<0.001" if value is not None and value < 0.001 else format_number(value, missing=DASH)


def format_speed(speed: float | None, devices: Sequence[str] = ()) -> str:
    """Images per second with three digits and their devices, as "4,120 (NVIDIA H200)"; a dash if not measured."""
    if speed is None:
        return DASH
    return f"{float(f'{speed:.3g}'):,g}" + (f" ({'; '.join(devices)})" if devices else "")


def find_notices(comparison: Mapping) -> list[str]:
    """Sentences that a reader of the page must not miss."""
    notices = []
    if comparison["protocol_differences"]:
        names = ", ".join(map(column_name, comparison["protocol_differences"]))
        notices.append(f"The protocols of A and B differ ({names}): scores may differ for that reason.")
    if comparison["trained"] == "include":
        for letter, told in zip("AB", comparison["training_overlap"], strict=True):
            notices += [f"{letter}: {told}."] if told and "flatter" in told else []
    return notices + ([SYNTHETIC] if is_synthetic(comparison["dataset"]) else [])


def write_comparison(folder: str | Path, comparison: Mapping) -> list[Path]:
    """Write a comparison into a folder: `comparison.json`, `.md`, `.tex`, `.html` and, with matplotlib, `.png`.

    Args:
        folder: created if it does not exist.
        comparison: as [`compare_evaluations`] returns it.

    Returns:
        The files written.
    """
    folder, tables = Path(folder), comparison_tables(comparison)
    alt = f"Forest plot of the differences of {len(comparison['findings'])} findings; the table holds the numbers."
    caption = "Difference of the AUROC with its 95 % interval; 0 means that the models do not differ."
    written, figures = draw_forest(folder, lambda path: forest.plot_differences(comparison, path), alt, caption)
    auroc = comparison["mean"]["auroc"]
    page = render_page(
        f"Comparison on {describe_dataset(comparison['dataset']) or 'unnamed data'}",
        f"The gain of model B over model A on the same {comparison['n_images']:,} images of "
        f"{comparison['n_patients']:,} patients. A dash ({DASH}) means not measured. In brackets: 95 % "
        "confidence intervals.",
        [
            ("Mean AUROC, B minus A (95 % CI)", format_estimate(auroc["difference"], auroc["difference_ci95"])),
            ("A", format_number(auroc["first"], missing=DASH)),
            ("B", format_number(auroc["second"], missing=DASH)),
        ],
        [
            Section("auroc", "AUROC", tables["auroc"], figures),
            Section("others", "Other metrics", tables["others"], []),
            Section("compared", "What was compared", tables["compared"], []),
        ],
        find_notices(comparison),
        [FOR_RESEARCH],
    )
    return written + write_texts(folder, comparison, tables, page)


def draw_forest(folder: Path, draw: Callable[[Path], Path], alt: str, caption: str) -> tuple[list[Path], list[Figure]]:
    """Draw `comparison.png`; returns the file and the figure of the page, neither without matplotlib."""
    try:
        path = draw(folder / "comparison.png")
    except ValueError as error:  # no matplotlib
        logger.warning("The comparison is written without a figure. %s", error)
        return [], []
    return [path], [read_figure(path, alt, caption)]


def write_texts(folder: Path, comparison: Mapping, tables: Mapping[str, Sequence[Table]], page: str) -> list[Path]:
    """Write `comparison.json`, `.md`, `.tex` and `.html`."""
    text_of = {
        "json": json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        "md": markdown_tables(tables),
        "tex": latex_tables(tables),
        "html": page,
    }
    return [
        write_beside(folder / f"comparison.{kind}", partial(Path.write_text, data=text, encoding="utf-8"))
        for kind, text in text_of.items()
    ]
