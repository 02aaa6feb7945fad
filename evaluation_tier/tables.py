"""The numbers of `metrics.json` as tables, for the terminal, in Markdown and in LaTeX.

A table is built once, as text cells, and then written in any of the formats, so that no two of them differ.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

NOT_MEASURED = "not measured"
DASH = "–"  # stands for "not measured" where a table has no room for words

# What the columns are called; a key that is not here is written with spaces for its underscores.
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "mcc": "MCC",
    "f1": "F1",
    "ece": "ECE",
    "brier": "Brier score",
    "iou": "IoU",
    "miou": "mIoU",
    "cnr": "CNR",
    "fpr": "False positive rate",
    "tpr": "True positive rate",
    "n_images": "Images",
    "n_patients": "Patients",
    "n_bootstrap": "Bootstrap resamples",
    "images_skipped": "Images that did not decode",
    "resamples_dropped": "Resamples dropped",
    "n_positive": "Positives",
    "n_negative": "Negatives",
    "n_excluded": "Excluded",
    "n_uncertain": "Uncertain",
    "n_missing": "Not stated",
}
# Sections whose modules decide what they hold: heading, and what the numbers mean in one sentence.
OPEN_SECTIONS = {
    "retrieval": (
        "Retrieval",
        "How often the report of an image is among the first k of all reports (R@k), and the image of a report "
        "likewise; the median rank is 1 when at least half come first.",
    ),
    "grounding": (
        "Grounding",
        "How well the place that the model points at for a finding agrees with what a reader marked there.",
    ),
    "sparsity": (
        "Sparsity",
        "How few patches a word attends to, and how few words a patch: an entropy of 0 is a single one, ln K is all "
        "K alike.",
    ),
    "robustness": (
        "Robustness",
        "How far the results move with the wording of the prompts and with changes of the image that leave its "
        "findings as they are.",
    ),
}
MAX_LIST = 8  # numbers of a list that a cell holds; longer ones are curves, which figures show


class Table(NamedTuple):
    """A table as text.

    Args:
        name: letters, digits and hyphens; the label in LaTeX and the anchor in HTML.
        title: its caption.
        note: what the numbers mean, in plain sentences.
        header: of each column.
        rows: text cells; the first of each row names the row.
        align: per column "l", "r", or "p" for text of many words.
        has_summary: whether the last row sums up the others.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    has_summary: bool = False


# Cells


def format_number(value: float | None, digits: int = 3, missing: str = NOT_MEASURED) -> str:
    """A number as text; `missing` for None and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def format_interval(interval) -> str:
    """An interval as "0.912 - 0.954"; "not measured" when a bound is missing."""
    low, high = (None, None) if interval is None else interval
    bounds = format_number(low), format_number(high)
    return NOT_MEASURED if NOT_MEASURED in bounds else " - ".join(bounds)


def format_estimate(value: float | None, interval=None, digits: int = 3) -> str:
    """A number with its interval as "0.934 (0.912, 0.954)", without one as "0.934"; a dash when there is no number."""
    number = format_number(value, digits, DASH)
    low, high = (None, None) if interval is None else interval
    bounds = format_number(low, digits, DASH), format_number(high, digits, DASH)
    return number if number == DASH or DASH in bounds else f"{number} ({bounds[0]}, {bounds[1]})"


def format_cell(value) -> str:
    """Whatever JSON holds as one cell: counts with commas, other numbers with 3 digits, null as a dash."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_cell(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_LIST:
            return f"{len(value):,} values"
        return ", ".join(map(format_cell, value)) or "none"
    return " ".join(str(value).split())


def column_name(key: str) -> str:
    """What a key of `metrics.json` is called in a table: "n_positive" becomes "Positives"."""
    words = key.replace("_", " ").strip()
    return NAMES.get(key.lower(), words[:1].upper() + words[1:])


def anchor(text: str) -> str:
    """Text as the name of a table: lower-case letters and digits, hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"


# Tables of an evaluation


def evaluation_tables(metrics: Mapping) -> dict[str, list[Table]]:
    """The tables of an evaluation by the section of the report that they belong to; only of what was measured.

    Args:
        metrics: as `evaluate_zero_shot` returns it or `metrics.json` holds it.
    """
    sections = {
        "results": [results_table(metrics)],
        "thresholds": [operating_table(metrics), thresholds_table(metrics)],
        "calibration": [calibration_table(metrics)],
        "score_levels": [score_levels_table(metrics)],
        "subgroups": subgroup_tables(metrics),
        "radiologists": radiologist_tables(metrics),
    }
    for key, (title, note) in OPEN_SECTIONS.items():
        if isinstance(metrics.get(key), Mapping):
            sections[key] = nested_tables(title, metrics[key], note)
    sections["protocol"] = [protocol_table(metrics)]
    sections = {key: [table for table in tables if table is not None] for key, tables in sections.items()}
    return {key: tables for key, tables in sections.items() if tables}


def finding_table(metrics: Mapping, name: str, title: str, note: str, columns: Mapping[str, str]) -> Table | None:
    """One row per finding and one for their mean; columns that no finding has are left out.

    Args:
        columns: key of a finding's results to the column's header. A number that has an interval, under the same key
            and `_ci95`, is written with it.
    """
    findings, mean = metrics["findings"], metrics.get("mean") or {}
    columns = {key: header for key, header in columns.items() if any(key in result for result in findings.values())}
    if not columns:
        return None
    with_interval = {
        key for key in columns if any(result.get(f"{key}_ci95") is not None for result in findings.values())
    }

    def cell(result: Mapping, key: str) -> str:
        value = result.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}"
        digits = 4 if key.startswith("threshold") else 3  # differences of cosines are small
        return format_estimate(value, result.get(f"{key}_ci95"), digits)

    rows = [(finding, *(cell(result, key) for key in columns)) for finding, result in findings.items()]
    has_mean = any(key in mean for key in columns)
    if has_mean:
        cells = (cell(mean, key) if key in mean else "" for key in columns)
        rows.append((f"Mean of {len(findings)}", *cells))
    headers = (f"{header} (95 % CI)" if key in with_interval else header for key, header in columns.items())
    return Table(name, title, note, ("Finding", *headers), tuple(rows), "l" + "r" * len(columns), has_mean)


def results_table(metrics: Mapping) -> Table:
    """Positives, negatives, AUROC and AUPRC of each finding."""
    results = metrics["findings"].values()
    split = any("n_uncertain" in result or "n_missing" in result for result in results)
    left_out = {"n_uncertain": "Uncertain", "n_missing": "Not stated"} if split else {"n_excluded": "Excluded"}
    columns = {"n_positive": "Positives", "n_negative": "Negatives", **left_out, "auroc": "AUROC", "auprc": "AUPRC"}
    note = (
        "AUROC is how often an image with the finding scores above one without it: 0.5 is chance, 1 is perfect. AUPRC "
        "is the average precision: chance is the share of positives. Images whose label is uncertain or not stated "
        "say nothing of a score and are left out."
    )
    return finding_table(metrics, "results", "Results of each finding", note, columns)


def operating_table(metrics: Mapping) -> Table | None:
    """Sensitivity, specificity, MCC and F1 of each finding at its threshold."""
    columns = {"threshold": "Threshold", "sensitivity": "Sensitivity", "specificity": "Specificity", "mcc": "MCC"}
    columns["f1"] = "F1"
    note = (
        "A finding is called present when its score reaches the threshold. Sensitivity is the share of the positives "
        "that are found, specificity that of the negatives that are left alone; MCC is the correlation of call and "
        "label, F1 the harmonic mean of precision and sensitivity. Thresholds: "
        f"{metrics['protocol'].get('thresholds', 'not stated')}."
    )
    return finding_table(metrics, "operating-points", "At the chosen threshold", note, columns)


def thresholds_table(metrics: Mapping) -> Table | None:
    """The thresholds by the criteria that chose them."""
    findings = {
        finding: result | {f"threshold_{key}": value for key, value in (result.get("thresholds") or {}).items()}
        for finding, result in metrics["findings"].items()
    }
    columns = {
        "threshold_mcc": "Highest MCC",
        "threshold_f1": "Highest F1",
        "threshold_youden": "Highest Youden index",
    }
    note = "Scores from which a finding is called present, by the criterion that chose them."
    return finding_table({"findings": findings}, "thresholds", "Thresholds by criterion", note, columns)


def calibration_table(metrics: Mapping) -> Table | None:
    """Brier score and calibration error of each finding."""
    columns = {"brier": "Brier score", "ece": "ECE"}
    note = (
        "A score becomes a probability by a scale and a bias, fitted where the thresholds were chosen. The Brier "
        "score is the mean squared distance of the probability from the label, and ECE, the expected calibration "
        "error, how far the probabilities lie from the observed shares on average: 0 is perfect in both."
    )
    return finding_table(metrics, "calibration", "Calibration", note, columns)


def score_levels_table(metrics: Mapping) -> Table | None:
    """Mean AUROC of each kind of score."""
    levels = metrics.get("score_levels")
    if not levels:
        return None
    note = "The same images scored by the whole image and by its patches."
    if all(isinstance(value, Mapping) for value in levels.values()):
        return matrix_table("score-levels", "Kinds of score", note, levels, "Score")
    rows = tuple((column_name(level), format_cell(value)) for level, value in levels.items())
    return Table("score-levels", "Kinds of score", note, ("Score", "AUROC, mean"), rows, "lr")


def subgroup_tables(metrics: Mapping) -> list[Table]:
    """The AUROC of each subgroup, per attribute: the mean over the findings, and each finding, with the gaps.

    The layout is that of [`resampling.subgroup_metrics`], by attribute.
    """
    tables = []
    for attribute, result in (metrics.get("subgroups") or {}).items():
        groups = order_groups(result.get("groups") or {})
        if not groups:
            continue
        name = column_name(attribute)
        in_mean = result.get("findings_in_mean") or []
        note = f"Mean AUROC over the findings that every group has ({', '.join(in_mean) or 'none'}). "
        note += "The gap, the highest minus the lowest, is above 0 by chance alone: read it beside the intervals."
        left_out, unknown = result.get("left_out") or {}, result.get("n_unknown")
        if left_out:
            note += f" Left out: {'; '.join(f'{group} ({reason})' for group, reason in left_out.items())}."
        if unknown:
            note += f" Images of unknown group: {unknown:,}."
        rows = []
        for group, numbers in groups.items():
            mean = numbers.get("mean") or {}
            estimate = format_estimate(mean.get("auroc"), mean.get("auroc_ci95"))
            rows.append((group, format_cell(numbers.get("n_images")), estimate))
        gap = result.get("mean_gap")
        if gap:
            rows.append(("Gap", "", format_estimate(gap.get("gap"), gap.get("gap_ci95"))))
        header = (name, "Images", "AUROC, mean (95 % CI)")
        slug = f"subgroups-{anchor(attribute)}"
        tables.append(Table(slug, f"By {name.lower()}", note, header, tuple(rows), "lrr", bool(gap)))

        rows, gaps = [], result.get("gap") or {}
        for finding in metrics["findings"]:
            cells = [format_number((group.get("auroc") or {}).get(finding), missing=DASH) for group in groups.values()]
            gap = gaps.get(finding) or {}
            if set(cells) != {DASH}:
                rows.append((finding, *cells, format_estimate(gap.get("gap"), gap.get("gap_ci95"))))
        if rows:
            note = "AUROC of each finding in each group that has enough cases of it."
            header = ("Finding", *groups, "Gap (95 % CI)")
            title = f"Each finding by {name.lower()}"
            tables.append(Table(f"{slug}-findings", title, note, header, tuple(rows), "l" + "r" * (len(groups) + 1)))
    return tables


def order_groups(groups: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Groups by name, but "<18" first and ">=80" last."""
    return dict(
        sorted(groups.items(), key=lambda item: (not item[0].startswith("<"), item[0].startswith(">"), item[0]))
    )


def radiologist_tables(metrics: Mapping) -> list[Table]:
    """The model beside the readers' mean, and each reader.

    The layout is that of [`radiologists.compare_with_radiologists`].
    """
    result = metrics.get("radiologists") or {}
    findings = result.get("findings") or {}
    if not findings:
        return []
    parts = dict(findings)
    if result.get("mean"):
        parts[f"Mean of {len(findings)}"] = result["mean"]
    rows, readers = [], []
    for finding, part in parts.items():
        cells = []
        for key in ("mcc", "f1"):
            cells += [format_number(part[rater].get(key), missing=DASH) for rater in ("model", "readers_mean")]
            cells.append(format_estimate(part["difference"].get(key), part["difference"].get(f"{key}_ci95")))
        rows.append((finding, *cells))
        for name, reader in (("Model", part["model"]), *part["readers"].items()):
            numbers = (
                format_number(reader.get(key), missing=DASH) for key in ("mcc", "f1", "tpr", "fpr", "precision")
            )
            readers.append((finding, name, *numbers))
    header = ("Finding", "MCC, model", "MCC, readers", "Difference (95 % CI)")
    header += ("F1, model", "F1, readers", "Difference (95 % CI)")
    note = (
        f"The model at its threshold beside the mean of {len(result['readers'])} radiologists who read the same "
        f"{result['n_studies']:,} studies; a difference above 0 is in the model's favour, and an interval that holds "
        "0 leaves it open."
    )
    has_mean = len(parts) > len(findings)
    table = Table("radiologists", "Model and radiologists", note, header, tuple(rows), "lrrrrrr", has_mean)
    header = ("Finding", "Reader", "MCC", "F1", "Sensitivity", "False positive rate", "Precision")
    note = "The model at its threshold and each radiologist, against the reference labels."
    return [table, Table("readers", "Each radiologist", note, header, tuple(readers), "llrrrrr")]


def protocol_table(metrics: Mapping) -> Table:
    """How the numbers were made: the protocol, the models and the software."""
    skipped = {"resamples_dropped"}  # one number per finding; those that are not 0 follow
    rows = [("Data", format_cell(metrics["dataset"])), ("Images", format_cell(metrics["n_images"]))]
    for key, value in metrics["protocol"].items():
        if key == "images_skipped":  # how many, never which: their names may identify patients
            value = len(value)
        if key not in skipped:
            rows.append((column_name(key), value if isinstance(value, str) else format_cell_of_all(value)))
    dropped = {name: n for name, n in (metrics["protocol"].get("resamples_dropped") or {}).items() if n}
    if dropped:
        rows.append((NAMES["resamples_dropped"], format_cell(dropped)))
    models = metrics.get("models") or []
    rows.append(("Model" if len(models) == 1 else "Models, scores averaged", format_cell_of_all(models)))
    rows.append(("Software", ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())))
    note = "Numbers of two evaluations compare only where these agree."
    return Table("protocol", "Protocol", note, ("What", "How"), tuple(rows), "lp")


def format_cell_of_all(value) -> str:
    """As `format_cell`, but the whole of a list; whole numbers without commas, since some are seeds."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_cell, value)) or "none"
    return str(value) if type(value) is int else format_cell(value)


def nested_tables(title: str, value: Mapping, note: str = "") -> list[Table]:
    """Tables of numbers nested in mappings whose layout is not known beforehand.

    What holds numbers becomes a table of two columns; mappings of the same depth become one table, a row each; what
    lies deeper becomes tables of its own, which are called by the path to them.
    """
    tables = []
    for path, mapping in leaf_mappings(value):
        name = anchor(" ".join((title, *path)))
        if any(table.name == name for table in tables):
            name += "-2"  # numbers and mappings of one place
        heading = ", ".join((title, *map(column_name, path)))
        # of two levels: a row per key of the upper one
        if mapping and all(isinstance(item, Mapping) for item in mapping.values()):
            tables.append(matrix_table(name, heading, note, mapping))
        else:
            rows = []
            for key, item in mapping.items():
                if not is_interval_key(key, mapping):
                    interval = mapping.get(f"{key}_ci95")
                    text = format_cell(item) if interval is None else format_estimate(item, interval)
                    rows.append((column_name(key), text))
            tables.append(Table(name, heading, note, ("Measure", "Value"), tuple(rows), "lr"))
        note = ""  # said once
    return tables


def leaf_mappings(value: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping]]:
    """The mappings that one table can show, with the keys that lead to each."""
    plain = {key: item for key, item in value.items() if not isinstance(item, Mapping)}
    flat = {key: item for key, item in value.items() if isinstance(item, Mapping) and is_flat(item)}
    if plain:
        yield path, plain
    # mappings with the same keys are the rows of one table
    if len(flat) > 1 and len({key for item in flat.values() for key in item}) <= 1.5 * max(map(len, flat.values())):
        yield path, flat
        flat = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and (key in flat or not is_flat(item)):
            yield from leaf_mappings(item, (*path, str(key)))


def is_flat(value: Mapping) -> bool:
    """Whether a mapping holds no further mapping."""
    return not any(isinstance(item, Mapping) for item in value.values())


def is_interval_key(key: str, mapping: Mapping) -> bool:
    """Whether a key holds the interval of another one."""
    return key.endswith("_ci95") and key.removesuffix("_ci95") in mapping


def matrix_table(name: str, title: str, note: str, mapping: Mapping[str, Mapping], first: str = "") -> Table:
    """A row for each mapping, a column for each of their keys; intervals stand behind their numbers."""
    keys = list(dict.fromkeys(key for item in mapping.values() for key in item))
    keys = [key for key in keys if not is_interval_key(key, dict.fromkeys(keys))]
    rows = []
    for row, item in mapping.items():
        cells = []
        for key in keys:
            interval = item.get(f"{key}_ci95")
            cells.append(format_cell(item.get(key)) if interval is None else format_estimate(item.get(key), interval))
        rows.append((column_name(str(row)), *cells))
    headers = (
        f"{column_name(key)} (95 % CI)"
        if any(f"{key}_ci95" in item for item in mapping.values())
        else column_name(key)
        for key in keys
    )
    return Table(name, title, note, (first, *headers), tuple(rows), "l" + "r" * len(keys))


# Formats


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, has_summary: bool = False) -> str:
    """A table for the terminal, with rules of hyphens under the header and above a summary."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if side == "r" else text.ljust(width)
            for text, width, side in zip(row, widths, align, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [line(header), rule, *map(line, rows)]
    if has_summary:
        lines.insert(-1, rule)
    return "\n".join(lines)


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it is, within a table."""
    text = re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word an underscore is one


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown, without its title and note."""
    lines = [table.header, ["---:" if side == "r" else "---" for side in table.align]]
    rows = [[markdown_cell(cell) for cell in row] for row in table.rows]
    if table.has_summary:
        rows[-1] = [f"**{cell}**" if cell else "" for cell in rows[-1]]
    lines += rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_cell(text: str) -> str:
    """Text with LaTeX's special characters escaped; numbers get a minus, and "95 %" no line break."""
    text = " ".join(str(text).split())
    text = "".join(LATEX_ESCAPES.get(character, character) for character in text).replace(r" \%", r"~\%")
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)


def latex_table(table: Table) -> str:
    r"""A `table` environment with the rules of the package booktabs; `\label{tab:<name>}`."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_cell, cells)) + r" \\"

    rows = [line(row) for row in table.rows]
    if table.has_summary:
        rows.insert(-1, r"\midrule")
    caption = latex_cell(f"{table.title}. {table.note}".strip())
    columns = table.align.replace("p", r"p{0.7\linewidth}")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown_tables(sections: Mapping[str, Sequence[Table]]) -> str:
    """All tables with their titles and notes as one Markdown text."""
    parts = [
        f"## {markdown_cell(table.title)}\n\n"
        + (f"{markdown_cell(table.note)}\n\n" if table.note else "")
        + markdown_table(table)
        for tables in sections.values()
        for table in tables
    ]
    return "\n".join(parts)


def latex_tables(sections: Mapping[str, Sequence[Table]]) -> str:
    """All tables as one LaTeX text, to be input or copied from."""
    parts = ["% Needs \\usepackage{booktabs}; wide tables may need a smaller font.\n"]
    parts += [latex_table(table) for tables in sections.values() for table in tables]
    return "\n".join(parts)
