"""The card of an exported folder: what it is, how to run it, and how much the export changed it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation_tier.output.card_head import card_data
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.model_card import CARD_FOLDER, card_template
from evaluation_tier.output.tables import Table, format_cell, format_number, markdown_cell, markdown_table
from evaluation_tier.output.writing import write_beside

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def write_card(folder: Path, name: str, told: Mapping[str, Any]) -> Path:
    """
    Writes README.md.

    Args:
        folder: the exported folder.
        name: of the folder.
        told: what `export.json` holds, see `evaluation_tier/export/run.py`.
    """
    change = told.get("change")
    template = card_template(CARD_FOLDER / "export_template.md")
    template.environment.filters |= {
        "data": lambda name: markdown_cell(describe_dataset(name)),
        "value": format_cell,
    }
    text = template.render(
        card_data=card_data(name, None, None).to_yaml(line_break="\n").strip(),
        name=name,
        runtime=RUNTIMES[told["format"]],
        change=change,
        table=markdown_table(change_table(change)) if change else "",
        **{key: value for key, value in told.items() if key != "change"},
    )
    return write_beside(folder / "README.md", lambda partial: partial.write_text(text, encoding="utf-8"))


def change_table(change: Mapping[str, Any]) -> Table:
    """A row for each finding."""
    labelled = "mean" in change
    rows = []
    for finding, of in change["findings"].items():
        aurocs: tuple[str, ...] = ()
        if labelled:
            before_and_after = (format_number(of[f"auroc_{when}"], 4) for when in ("before", "after"))
            aurocs = (str(of["n_positive"]), *before_and_after, f"{of['auroc_change']:+.4f}")
        rows.append((finding, *aurocs, format_cell(of["largest_score_change"]), format_cell(of["score_sd"])))
    titles = ("Positives", "AUROC before", "after", "change") if labelled else ()
    header = ("Finding", *titles, "Largest change of a score", "SD of the scores")
    return Table("change", "Change", "", header, tuple(rows), "l" + "r" * (len(header) - 1))
