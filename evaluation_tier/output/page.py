"""The page of an evaluation: its tables and figures in a single, self-contained HTML file.

Figures are embedded; the page does not contain external links, and no script, except of a page with a sortable table.
The same files give the same bytes.
"""

import base64
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from PIL import Image, UnidentifiedImageError

from evaluation_tier.figures import calibration, curves, forest, style
from evaluation_tier.output.dataset_names import describe_dataset, is_synthetic
from evaluation_tier.output.file_names import file_names
from evaluation_tier.output.links import leads_outside
from evaluation_tier.output.metrics_file import read_metrics
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.result_tables import evaluation_tables, has_common_findings
from evaluation_tier.output.tables import DASH, Table, format_estimate, latex_tables, markdown_tables
from evaluation_tier.output.writing import write_beside

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report_template.html")

SORT_SCRIPT = Path(__file__).with_name("sort_tables.js")

SYNTHETIC = "The radiographs are synthetic, drawn by a program: these results say nothing about patients."

FOR_RESEARCH = "For research only. Not a medical device: do not use these numbers to make decisions about a person."

MAX_FIGURE_BYTES = 16 * 2**20

MAX_PAGE_BYTES = 96 * 2**20  # of figures; browsers and mail still accept such a page

SECTIONS = {  # in the order of the page: heading, and how the names of its figures begin
    "results": ("Results", ("findings.png", "roc.png", "precision_recall.png")),
    "thresholds": ("At a threshold", ()),
    "calibration": ("Calibration", ("calibration.png",)),
    "score_levels": ("Kinds of score", ()),
    "subgroups": ("Subgroups", ("subgroups.png",)),
    "radiologists": ("Radiologists", ()),
    "retrieval": ("Retrieval", ("retrieval",)),
    "grounding": ("Grounding", ("grounding",)),
    "deletion": ("Deletion", ()),
    "similarity": ("Where the model looks", ("similarity_",)),
    "sparsity": ("Sparsity", ("sparsity",)),
    "robustness": ("Robustness", ("robustness",)),
    "transfer": ("At another hospital", ("transfer.png",)),
    "learning_curve": ("How few images", ("learning_curve.png",)),
    "training": ("Training", ("training_curves.png",)),
    "protocol": ("Protocol", ()),
}

FIGURES_OF_ANALYSES = {  # alternative text and caption
    "grounding.png": (
        "Radiographs with a marked region, each next to the model's map; the tables hold the numbers.",
        "The regions with the best, the median and the worst IoU of the map that the title names. Left: the "
        "radiograph with the marked region. Right: the map, the outline of the area above the threshold, and the "
        "highest pixel, which hits or misses.",
    ),
    "sparsity.png": (
        "Curves of the sorted similarities of words and patches, and points for each class of words; the tables hold "
        "the numbers.",
        "Top: similarities of a word (left) and of a whole text (right) to the patches of its image, sorted from the "
        "highest down, with mean and one standard deviation. A steeper curve is sparser. Bottom: Gini index and share "
        "near zero of each class of words, with 95 % intervals.",
    ),
    "sparsity_relative.png": (
        "Curves of the sorted shares of the similarity of whole texts to the patches, one per model.",
        "Each patch's share of a text's total similarity, sorted from the highest down, with mean and one standard "
        "deviation. The dashed line shows patches that are all alike.",
    ),
    "similarity_of_models.png": (
        "Radiographs, each next to the heat-map of every model.",
        "For each finding, a radiograph with it, and for each model the map of the finding's sentences minus that of "
        '"No Finding". Both are scaled to the 1st and 99th percentile of all images.',
    ),
    "robustness.png": (
        "Panels of wordings, negation, left and right, images that show nothing, degraded images and, with CXR-Align, "
        "changed reports; the tables hold the numbers.",
        "How scores change with other wordings and degraded images, whether they respect a negation and the side that "
        "a sentence names, and the scores of images that show nothing. Dashed lines mark chance or no difference; "
        "bars are 95 % intervals.",
    ),
    "learning_curve.png": (
        "AUROC of classifiers by the number of training patients, with the zero-shot AUROC as a line.",
        "Mean AUROC over the findings of classifiers that learn from few patients. Lines: mean of several draws of "
        "patients; bands: from the lowest to the highest draw. Dashed: zero-shot, with its 95 % interval.",
    ),
    "transfer.png": (
        "Four panels: sensitivity, specificity, calibration error and AUROC of each finding; the tables hold the "
        "numbers.",
        "Thresholds and calibration of other data on these images. Grey rings: on the data that they were fitted on. "
        "Blue: here, with 95 % intervals. The dashed line marks the wanted sensitivity. In brackets: positives. "
        "Right: AUROC of the same positives against healthy and against sick controls.",
    ),
}


class Figure(NamedTuple):
    """A PNG file as the page embeds it."""

    base64: str
    width: int
    height: int
    alt: str
    caption: str


class Section(NamedTuple):
    """A part of the page: its anchor, heading, tables and figures."""

    name: str
    title: str
    tables: Sequence[Table]
    figures: Sequence[Figure]


def write_page(folder: str | Path, draw: bool = True) -> list[Path]:
    """Make the tables, the figures and the page of an evaluation from its files.

    Reads `metrics.json` and, if it exists, `predictions.parquet`, which the curves need. Writes `tables.md`,
    `tables.tex`, `report.html` and, with matplotlib, `findings.png`, `roc.png`, `precision_recall.png`,
    `calibration.png` and `subgroups.png` if their numbers were measured. The page also shows the other figures in the
    folder (similarity maps, training curves, grounding, sparsity).

    Args:
        folder: what `eval_zeroshot.py` wrote.
        draw: also draw figures; the page shows the figures in the folder in any case.

    Returns:
        The files written.

    Raises:
        ValueError: the folder lacks `metrics.json`, or its files are damaged or do not belong together.
    """
    folder = Path(folder)
    metrics = read_metrics(folder)
    predictions = read_predictions(folder, metrics) if (folder / "predictions.parquet").is_file() else None
    try:
        tables = evaluation_tables(metrics)
        written = draw_page_figures(folder, metrics, predictions) if draw else []
        page = render_evaluation(folder, metrics, tables)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # deeper than read_metrics checks
        raise ValueError(
            f"{folder / 'metrics.json'} is not in the format of an evaluation ({type(error).__name__}: {error}): "
            "evaluate the model again."
        ) from error
    for name, text in (
        ("tables.md", markdown_tables(tables)),
        ("tables.tex", latex_tables(tables)),
        ("report.html", page),
    ):
        written.append(write_beside(folder / name, partial(Path.write_text, data=text, encoding="utf-8")))
    return written


def find_figures(folder: Path) -> list[Path]:
    """The figures in a folder that its page shows, in the page's order."""
    files = []
    for path in sorted(folder.glob("*.png")):
        if path.is_file() and not leads_outside(path, folder):
            files.append(path)
        else:
            logger.warning("The page leaves out %s: it is not a file of this folder.", path.name)
    prefixes = [prefix for _, prefixes in SECTIONS.values() for prefix in prefixes]
    return [path for prefix in prefixes for path in files if path.name.startswith(prefix)]


def draw_page_figures(folder: Path, metrics: Mapping, predictions: pd.DataFrame | None) -> list[Path]:
    """Draw the figures that `metrics` and `predictions` allow; without matplotlib, warn and draw nothing."""
    try:
        style.import_matplotlib()
    except ValueError as error:
        logger.warning("The report is written without new figures. %s", error)
        return []
    written = [forest.plot_findings(metrics, folder / "findings.png")]
    if predictions is not None:
        written.append(curves.plot_roc(metrics, predictions, folder / "roc.png"))
        written.append(curves.plot_precision_recall(metrics, predictions, folder / "precision_recall.png"))
        if any(result.get("scale") is not None for result in metrics["findings"].values()):
            written.append(calibration.plot_calibration(metrics, predictions, folder / "calibration.png"))
    if any(map(has_common_findings, (metrics.get("subgroups") or {}).values())):
        written.append(forest.plot_subgroups(metrics, folder / "subgroups.png"))
    return written


def render_evaluation(folder: Path, metrics: Mapping, tables: Mapping[str, Sequence[Table]]) -> str:
    """The page of an evaluation, with the figures in `folder`."""
    files = find_figures(folder)
    sections, size = [], 0
    for name, (title, prefixes) in SECTIONS.items():
        figures = []
        for path in (path for prefix in prefixes for path in files if path.name.startswith(prefix)):
            figure = read_figure(path, *describe_figure(path, metrics))
            size += len(figure.base64) if figure else 0
            if figure and size > MAX_PAGE_BYTES:
                logger.warning("The page leaves out %s: its figures exceed %d MB.", path.name, MAX_PAGE_BYTES >> 20)
            elif figure:
                figures.append(figure)
        if tables.get(name) or figures:
            sections.append(Section(name.replace("_", "-"), title, tables.get(name, []), figures))

    protocol, mean = metrics["protocol"], metrics.get("mean") or {}
    split = f", split {protocol['split']}" if protocol.get("split") else ""
    benchmark = f", benchmark {protocol['benchmark']}" if protocol.get("benchmark") else ""
    notices = []
    if protocol.get("trained") == "included":
        notices.append(f"These results count training images: {protocol['training_overlap']}.")
    if protocol.get("exposure_overlap"):
        notices.append(f"The evaluated data may be training data: {protocol['exposure']}.")
    if protocol.get("benchmark_differs"):
        notices.append(" ".join(protocol["benchmark_differs"]))
    if is_synthetic(metrics["dataset"]):
        notices.append(SYNTHETIC)
    if "optimistic" in str(protocol.get("thresholds")):
        notices.append(
            "The thresholds were chosen on the evaluated images themselves, so sensitivity, specificity, MCC and F1 "
            "are optimistic."
        )
    key_numbers = [
        ("Mean AUROC (95 % CI)", format_estimate(mean.get("auroc"), mean.get("auroc_ci95"))),
        ("Findings", f"{len(metrics['findings']):,}"),
        ("Images", f"{metrics['n_images']:,}"),
    ]
    if "n_patients" in protocol:
        key_numbers.append(("Patients", f"{protocol['n_patients']:,}"))
    lead = (
        f"How well a model tells radiographs with a finding from those without it{split}. A dash ({DASH}) means not "
        "measured. In brackets: 95 % confidence intervals, which show how much a number may vary with other patients."
    )
    footer = [FOR_RESEARCH]
    if not is_synthetic(metrics["dataset"]) and any(
        section.name in ("similarity", "grounding") and section.figures for section in sections
    ):
        footer.append("This page shows radiographs of patients: share it only as the terms of the data allow.")
    return render_page(
        f"Evaluation on {describe_dataset(metrics['dataset']) or 'unnamed data'}{benchmark}",
        lead,
        key_numbers,
        sections,
        notices,
        footer,
    )


def describe_figure(path: Path, metrics: Mapping) -> tuple[str, str]:
    """The alternative text and the caption of a figure."""
    findings = metrics["findings"]
    ranked = sorted(
        (name for name in findings if findings[name].get("auroc") is not None),
        key=lambda name: -findings[name]["auroc"],
    )
    extremes = ""
    if len(ranked) > 1:
        best, worst = (f"{name} ({findings[name]['auroc']:.3f})" for name in (ranked[0], ranked[-1]))
        extremes = f" {best} has the highest AUROC, {worst} the lowest."
    readers = " Diamonds are radiologists." if metrics.get("radiologists") else ""
    if path.name == "findings.png":
        alt = f"Forest plot of the AUROC of {count(len(findings))} with their intervals.{extremes}"
        return alt, "AUROC of each finding with its 95 % interval. The dashed line is chance."
    if path.name == "roc.png":
        alt = f"ROC curves of {count(len(ranked))}.{extremes}{readers}"
        return alt, f"ROC curves. Curves further to the upper left are better; the diagonal is chance.{readers}"
    if path.name == "precision_recall.png":
        alt = f"Precision-recall curves of {count(len(ranked))}; the table of results holds their areas.{readers}"
        caption = (
            "Precision-recall curves. Curves further to the upper right are better; chance is the share of positives."
        )
        return alt, caption + readers
    if path.name == "calibration.png":
        alt = f"Reliability curves of {count(len(findings))}; the table holds their calibration errors."
        return (
            alt,
            "Observed share of positives against predicted probability. A calibrated model follows the diagonal. "
            "Findings that could not be calibrated are left out.",
        )
    if path.name == "subgroups.png":
        return (
            "Forest plot of the mean AUROC of each subgroup with its interval; the tables hold the numbers.",
            "Mean AUROC of each subgroup with its 95 % interval.",
        )
    if path.name == "training_curves.png":
        return "Curves of the loss, its terms and the AUROC over the epochs.", "The training by epoch."
    if path.name in FIGURES_OF_ANALYSES:
        return FIGURES_OF_ANALYSES[path.name]
    name, names = path.stem.partition("_")[2], file_names(findings)
    subject = next((finding for finding in findings if names[finding] == name), name.replace("_", " "))
    if path.name.startswith("similarity_"):
        return (
            f"A radiograph with {subject}, overlaid with the model's map of the prompts.",
            f"{subject}: the positive image with the highest score, its true mask if it has one, and the model's map. "
            "Red speaks for the finding more than in the average image, blue less; the colour bar names the kind of "
            "map.",
        )
    caption = f"{path.stem.partition('_')[0].capitalize()}: {subject}".removesuffix(": ")
    return f"Figure: {caption}; the tables of the section hold its numbers.", f"{caption}."


def count(number: int) -> str:
    """A number of findings in words."""
    return f"{number} finding{'' if number == 1 else 's'}"


def read_figure(path: Path, alt: str, caption: str) -> Figure | None:
    """A PNG file of the folder; None, with a warning, if it is not a PNG image or too large."""
    if path.stat().st_size > MAX_FIGURE_BYTES:
        logger.warning("The page leaves out %s: it exceeds %d MB.", path.name, MAX_FIGURE_BYTES >> 20)
        return None
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        logger.warning("The page leaves out %s: it is not a PNG image.", path.name)
        return None
    return Figure(base64.b64encode(content).decode("ascii"), width, height, alt, caption)


def render_page(
    title: str,
    lead: str,
    key_numbers: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    notices: Sequence[str] = (),
    footer: Sequence[str] = (),
) -> str:
    """A page of sections, as one HTML text; all text is escaped.

    Args:
        key_numbers: label and value of the numbers at the top.
        notices: sentences that a reader must not miss.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # a line may break between a number and its interval, not inside the interval
    environment.filters["unbroken"] = lambda text: text.replace(", ", ",\u00a0").replace(
        "95 % CI", "95\u00a0%\u00a0CI"
    )
    script = ""
    if any(table.sortable for section in sections for table in section.tables):
        script = SORT_SCRIPT.read_text(encoding="utf-8")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        lead=lead,
        key_numbers=key_numbers,
        sections=sections,
        notices=notices,
        footer=footer,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),  # the only one to run
    )
