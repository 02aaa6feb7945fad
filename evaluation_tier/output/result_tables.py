"""The numbers of `metrics.json` as tables, with a note that explains them."""

from collections.abc import Mapping
from typing import Any

from evaluation_tier.output.analysis_tables import (
    deletion_tables,
    grounding_tables,
    learning_curve_tables,
    retrieval_tables,
    robustness_tables,
    sparsity_tables,
    transfer_tables,
)
from evaluation_tier.output.tables import DASH, Table, anchor, column_name, format_cell, format_estimate, format_number
from evaluation_tier.statistics.thresholds import f1_threshold


def evaluation_tables(metrics: Mapping) -> dict[str, list[Table]]:
    """The tables of an evaluation by section of the report; a section without numbers is left out.

    Args:
        metrics: as `evaluate_zero_shot` returns it or `metrics.json` holds it.
    """
    sections = {
        "results": [results_table(metrics), groups_table(metrics)],
        "overlap": [overlap_table(metrics)],
        "thresholds": [operating_table(metrics), thresholds_table(metrics)],
        "calibration": [calibration_table(metrics)],
        "score_levels": [score_levels_table(metrics)],
        "subgroups": subgroup_tables(metrics),
        "radiologists": radiologist_tables(metrics),
    }
    parts = {
        "retrieval": retrieval_tables,
        "grounding": grounding_tables,
        "deletion": deletion_tables,
        "sparsity": sparsity_tables,
        "robustness": robustness_tables,
        "transfer": transfer_tables,
        "learning_curve": learning_curve_tables,
    }
    sections |= {key: tables_of(metrics[key]) for key, tables_of in parts.items() if metrics.get(key)}
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
        digits = 4 if "threshold" in key else 3  # differences of cosines are small
        return format_estimate(value, result.get(f"{key}_ci95"), digits)

    rows = [(finding, *(cell(result, key) for key in columns)) for finding, result in findings.items()]
    has_mean = any(key in mean for key in columns)
    if has_mean:
        cells = (cell(mean, key) if key in mean else "" for key in columns)
        rows.append((f"Mean of {len(findings)}", *cells))
    headers = (f"{header} (95 % CI)" if key in with_interval else header for key, header in columns.items())
    return Table(name, title, note, ("Finding", *headers), tuple(rows), "l" + "r" * len(columns), int(has_mean))


def results_table(metrics: Mapping) -> Table:
    """Positives, negatives, AUROC and AUPRC of each finding."""
    results = metrics["findings"].values()
    split = any("n_uncertain" in result or "n_missing" in result for result in results)
    left_out = {"n_uncertain": "Uncertain", "n_missing": "Not stated"} if split else {"n_excluded": "Excluded"}
    columns = {"n_positive": "Positives", "n_negative": "Negatives", **left_out, "auroc": "AUROC", "auprc": "AUPRC"}
    note = (
        "AUROC is how often an image with the finding scores above one without it: 0.5 is chance, 1 is perfect. AUPRC "
        "is the average precision: chance is the share of positives. Images whose label is uncertain or not stated "
        "are left out."
    )
    return finding_table(metrics, "results", "Results of each finding", note, columns)


def groups_table(metrics: Mapping) -> Table | None:
    """The means over the findings of each group."""
    groups = metrics.get("groups") or {}
    if not groups:
        return None
    bounds = metrics["protocol"].get("groups") or {}
    rows = [
        (
            column_name(name),
            format_cell(len(part.get("findings") or ())),
            format_estimate(part.get("auroc"), part.get("auroc_ci95")),
            format_estimate(part.get("auprc"), part.get("auprc_ci95")),
        )
        for name, part in groups.items()
    ]
    limits = ", ".join(f"{name} from {format_cell(bound)}" for name, bound in bounds.items())
    members = "; ".join(f"{name}: {', '.join(part.get('findings') or ())}" for name, part in groups.items())
    note = (
        f"Means over the findings of each group, by their share of positives among the evaluated images ({limits}). "
        f"{members}."
    )
    header = ("Group", "Findings", "AUROC, mean (95 % CI)", "AUPRC, mean (95 % CI)")
    return Table("groups", "Frequent and rare findings", note, header, tuple(rows), "lrrr")


def operating_table(metrics: Mapping) -> Table | None:
    """Sensitivity, specificity, MCC and F1 of each finding at its threshold."""
    columns = {"threshold": "Threshold", "sensitivity": "Sensitivity", "specificity": "Specificity", "mcc": "MCC"}
    results = metrics["findings"].values()
    if any(format_cell(f1_threshold(result)) != format_cell(result.get("threshold")) for result in results):
        columns["f1_threshold"] = "Threshold of F1"
    columns |= {"f1": "F1", "accuracy_threshold": "Threshold of accuracy", "accuracy": "Accuracy"}
    note = (
        "A finding is called present when its score reaches the threshold. Sensitivity is the share of positives "
        "called present, specificity the share of negatives called absent. MCC is the correlation of call and label, "
        "F1 the harmonic mean of precision and sensitivity. Thresholds: "
        f"{metrics['protocol'].get('thresholds', 'not stated')}."
    )
    return finding_table(metrics, "operating-points", "At the chosen threshold", note, columns)


def thresholds_table(metrics: Mapping) -> Table | None:
    """The threshold that each criterion chooses."""
    findings = {
        finding: result | {f"threshold_{key}": value for key, value in (result.get("thresholds") or {}).items()}
        for finding, result in metrics["findings"].items()
    }
    columns = {
        "threshold_mcc": "Highest MCC",
        "threshold_f1": "Highest F1",
        "threshold_youden": "Highest Youden index",
    }
    note = "The score from which a finding is called present, by criterion."
    return finding_table({"findings": findings}, "thresholds", "Thresholds by criterion", note, columns)


def calibration_table(metrics: Mapping) -> Table | None:
    """Brier score and calibration error of each finding."""
    columns = {"brier": "Brier score", "ece": "ECE"}
    note = (
        "A scale and a bias, fitted on the split that chose the thresholds, turn a score into a probability. The "
        "Brier score is the mean squared distance of the probability from the label. ECE, the expected calibration "
        "error, is the mean distance of the probabilities from the observed shares. 0 is perfect for both. Intervals "
        "take scale and bias as given. A finding whose score ranks images the wrong way has the same probability for "
        "all images."
    )
    lacking = [
        name
        for name, result in metrics["findings"].items()
        if "scale" in result and format_cell(result["scale"]) == DASH
    ]
    if lacking:
        note += (
            f" Not calibrated: {', '.join(lacking)}. Calibration needs both classes on the split of the thresholds, "
            "and scores that differ."
        )
    return finding_table(metrics, "calibration", "Calibration", note, columns)


def score_levels_table(metrics: Mapping) -> Table | None:
    """Mean AUROC of each kind of score."""
    levels = metrics.get("score_levels")
    if not levels:
        return None
    note = "The same images, scored by the whole image and by its patches."
    if used := metrics["protocol"].get("score_level"):
        note += f" The results of the findings have the score level {used}."
    numbers = {  # older evaluations have the AUROC alone
        level: value if isinstance(value, Mapping) else {"auroc": value} for level, value in levels.items()
    }
    rows = tuple(
        (column_name(level), format_estimate(value.get("auroc"), value.get("auroc_ci95")))
        for level, value in numbers.items()
    )
    with_interval = any("auroc_ci95" in value for value in numbers.values())
    header = ("Score", f"AUROC, mean{' (95 % CI)' if with_interval else ''}")
    return Table("score-levels", "Kinds of score", note, header, rows, "lr")


def subgroup_tables(metrics: Mapping) -> list[Table]:
    """The AUROC of each subgroup, per attribute: the mean over the findings, and each finding, with the gaps.

    The layout is that of [`subgroup_metrics`], by attribute.
    """
    tables = []
    for attribute, result in (metrics.get("subgroups") or {}).items():
        groups = order_groups(result.get("groups") or {})
        if not groups:
            continue
        name, in_mean = column_name(attribute), result.get("findings_in_mean") or []
        note = f"Mean AUROC over the findings that every group has ({', '.join(in_mean)}). "
        note += (
            "The gap is the highest minus the lowest value, so it is above 0 by chance alone. Its interval is that of "
            "the difference of these two groups."
        )
        if len(groups) > 2:
            note += (
                " The interval ignores that they were chosen as the farthest apart: read it with the "
                "intervals of the groups."
            )
        left_out, unknown = result.get("left_out") or {}, result.get("n_unknown")
        aside = ""
        if left_out:
            aside += f" Left out: {'; '.join(f'{group} ({reason})' for group, reason in left_out.items())}."
        if unknown:
            aside += f" Images without a known group: {unknown:,}."
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
        if in_mean:
            title = f"By {name.lower()}"
            tables.append(Table(slug, title, note + aside, header, tuple(rows), "lrr", 1 if gap else 0))

        rows, gaps = [], result.get("gap") or {}
        for finding in metrics["findings"]:
            cells = [format_number((group.get("auroc") or {}).get(finding), missing=DASH) for group in groups.values()]
            gap = gaps.get(finding) or {}
            if set(cells) != {DASH}:
                rows.append((finding, *cells, format_estimate(gap.get("gap"), gap.get("gap_ci95"))))
        if rows:
            note = "AUROC of each finding in each group that has enough cases."
            if not in_mean:
                note += f" No finding has enough cases in every group, so there are no means to compare.{aside}"
            header = ("Finding", *groups, "Gap (95 % CI)")
            title = f"Each finding by {name.lower()}"
            tables.append(Table(f"{slug}-findings", title, note, header, tuple(rows), "l" + "r" * (len(groups) + 1)))
    return tables


def has_common_findings(result: Mapping) -> bool:
    """Whether the groups of an attribute share a finding, so that they can be compared."""
    return bool(result.get("groups") and result.get("findings_in_mean"))


def order_groups(groups: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Groups by name, but "<18" first and ">=80" last."""
    return dict(
        sorted(groups.items(), key=lambda item: (not item[0].startswith("<"), item[0].startswith(">"), item[0]))
    )


def radiologist_tables(metrics: Mapping) -> list[Table]:
    """The model and the readers' mean, and each reader.

    The layout is that of [`compare_with_radiologists`].
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
    rule = result.get("thresholds", "not stated")
    note = (
        f"The model at its threshold beside the mean of {len(result['readers'])} radiologists who read the same "
        f"{result['n_studies']:,} studies. A difference above 0 favours the model; an interval that contains 0 leaves "
        f"the question open. Thresholds: {rule}."
    )
    num_means = len(parts) - len(findings)
    table = Table("radiologists", "Model and radiologists", note, header, tuple(rows), "lrrrrrr", num_means)
    header = ("Finding", "Reader", "MCC", "F1", "Sensitivity", "False positive rate", "Precision")
    note = f"The model at its threshold and each radiologist, against the reference labels. Thresholds: {rule}."
    return [table, Table("readers", "Each radiologist", note, header, tuple(readers), "llrrrrr")]


OVERLAP = {  # key of the protocol: its title
    "training_overlap": "Evaluated images",
    "n_trained_images": "Images that the model was trained on",
    "n_trained_patients_images": "Other images of its training patients",
    "trained": "These images were",
    "threshold_overlap": "Images that chose the thresholds",
    "exposure": "Published training data",
    "exposure_overlap": "Models that may have seen the evaluated data",
}


def overlap_table(metrics: Mapping) -> Table | None:
    """What is known of training images among the evaluated ones."""
    rows = [
        (title, value if isinstance(value, str) else format_cell_of_all(value))
        for key, title in OVERLAP.items()
        if (value := metrics["protocol"].get(key)) is not None
    ]
    note = (
        "Images that a model has seen in its training flatter it. An image is recognized by the content of its file, "
        "a patient by id and data set."
    )
    title = "Overlap with the training data"
    return Table("overlap", title, note, ("What", "Known"), tuple(rows), "lp") if rows else None


def protocol_table(metrics: Mapping) -> Table:
    """How the numbers were made: the protocol, the models and the software."""
    # the first has a number per finding, and the row below those above 0
    skipped = {"resamples_dropped", *OVERLAP}
    rows = [("Data", format_cell(metrics["dataset"])), ("Images", format_cell(metrics["n_images"]))]
    for key, value in metrics["protocol"].items():
        if key == "images_skipped":  # how many, never which: their names may identify patients
            value = len(value)
        elif key == "benchmark_differs":
            value = " ".join(value)
        if key not in skipped:
            rows.append((column_name(key), value if isinstance(value, str) else format_cell_of_all(value)))
    dropped = {name: n for name, n in (metrics["protocol"].get("resamples_dropped") or {}).items() if n}
    if dropped:
        rows.append(("Resamples dropped", format_cell(dropped)))
    models = metrics.get("models") or []
    rows.append(("Model" if len(models) == 1 else "Models, scores averaged", format_cell_of_all(models)))
    rows.append(("Software", ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())))
    note = "Compare two evaluations only if these agree."
    return Table("protocol", "Protocol", note, ("What", "How"), tuple(rows), "lp")


def format_cell_of_all(value: Any) -> str:
    """As `format_cell`, but the complete list, and whole numbers without commas, since some are seeds."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_cell, value)) or "none"
    return str(value) if type(value) is int else format_cell(value)
