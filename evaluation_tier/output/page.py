"""The page of an evaluation: its tables and figures in a single, self-contained HTML file of at most 2 MB.

Figures are embedded. The page does not contain external links, and a single script, which sorts its tables and opens
what is folded when it is printed. The same files give the same bytes.
"""

import base64
import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import pandas as pd

from evaluation_tier.figures import calibration, curves, forest, style
from evaluation_tier.output.csv_tables import csv_table
from evaluation_tier.output.dataset_names import describe_dataset, is_synthetic
from evaluation_tier.output.links import leads_outside
from evaluation_tier.output.metrics_file import read_metrics
from evaluation_tier.output.page_figures import Figure, read_figures
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.result_tables import evaluation_tables, has_common_findings
from evaluation_tier.output.tables import DASH, Table, format_estimate, latex_tables, markdown_tables
from evaluation_tier.output.writing import write_beside

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("report_template.html")

SCRIPT = Path(__file__).with_name("report_script.js")

SYNTHETIC = "The radiographs are synthetic, drawn by a program: these results say nothing about patients."

FOR_RESEARCH = "For research only. Not a medical device: do not use these numbers to make decisions about a person."

MAX_PAGE_BYTES = 2_000_000  # so that it can be mailed

MAX_ALT_BYTES = 1_500  # of the words of a figure

RADIOGRAPHS = ("grounding", "similarity", "errors")  # sections whose figures show them, as wide as the page

PIXELS = 1.5  # of a figure for each of the page: its text is then as large as that of the page

MAX_OPEN = 4  # figures of a section, and ...

MAX_OPEN_ROWS = 20  # ... rows of a table that are shown without a click

SECTIONS = {  # in the order of the page: heading, and how the names of its figures begin
    "results": ("Results", ("findings.png", "roc.png", "precision_recall.png")),
    "overlap": ("Overlap with the training data", ()),
    "thresholds": ("At a threshold", ()),
    "calibration": ("Calibration", ("calibration.png",)),
    "score_levels": ("Kinds of score", ()),
    "subgroups": ("Subgroups", ("subgroups.png",)),
    "radiologists": ("Radiologists", ()),
    "retrieval": ("Retrieval", ("retrieval",)),
    "grounding": ("Grounding", ("grounding",)),
    "deletion": ("Deletion", ()),
    "similarity": ("Where the model looks", ("similarity_",)),
    "errors": ("The worst errors", ("errors.png",)),
    "sparsity": ("Sparsity", ("sparsity",)),
    "robustness": ("Robustness", ("robustness",)),
    "transfer": ("At another hospital", ("transfer.png",)),
    "learning_curve": ("How few images", ("learning_curve.png",)),
    "training": ("Training", ("training_curves.png",)),
    "protocol": ("Protocol", ()),
}


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
    """The page of an evaluation, with the figures in `folder` that fit into `MAX_PAGE_BYTES`."""
    files = find_figures(folder)
    text = len(render_with(metrics, tables, {}, []).encode())
    figures, left_out = read_figures(files, metrics, MAX_PAGE_BYTES - text - MAX_ALT_BYTES * len(files))
    for path in left_out:
        logger.warning("The page leaves out %s: it would exceed %d MB.", path.name, MAX_PAGE_BYTES // 1_000_000)
    return render_with(metrics, tables, figures, left_out)


def render_with(
    metrics: Mapping,
    tables: Mapping[str, Sequence[Table]],
    figures: Mapping[Path, Figure],
    left_out: Sequence[Path],
) -> str:
    """The page with these figures, which names those that are left out."""
    sections = []
    for name, (title, prefixes) in SECTIONS.items():
        shown = [figure for prefix in prefixes for path, figure in figures.items() if path.name.startswith(prefix)]
        if tables.get(name) or shown:
            sections.append(Section(name.replace("_", "-"), title, tables.get(name, []), shown))

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
        section.name in RADIOGRAPHS and section.figures for section in sections
    ):
        footer.append("This page shows radiographs of patients: share it only as the terms of the data allow.")
    if left_out:
        names = ", ".join(path.name for path in left_out)
        footer.append(f"Left out, so that this page can be mailed, and in the folder of the evaluation: {names}.")
    return render_page(
        f"Evaluation on {describe_dataset(metrics['dataset']) or 'unnamed data'}{benchmark}",
        lead,
        key_numbers,
        sections,
        notices,
        footer,
    )


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
    environment.filters["csv"] = lambda table: f"data:text/csv;charset=utf-8,{quote(csv_table(table))}"
    script = SCRIPT.read_text(encoding="utf-8")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        lead=lead,
        key_numbers=key_numbers,
        sections=sections,
        notices=notices,
        footer=footer,
        max_open=MAX_OPEN,
        max_open_rows=MAX_OPEN_ROWS,
        scale=PIXELS,
        radiographs=RADIOGRAPHS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),  # the only one to run
    )
