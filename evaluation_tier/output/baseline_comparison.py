"""The files of a comparison of any number of evaluations with a baseline: tables, a figure, a page to sort."""

from collections.abc import Mapping
from pathlib import Path

from evaluation_tier.figures import forest
from evaluation_tier.output.comparison import draw_forest, format_p, format_speed, write_texts
from evaluation_tier.output.dataset_names import describe_dataset, is_synthetic
from evaluation_tier.output.page import FOR_RESEARCH, SYNTHETIC, Section, render_page
from evaluation_tier.output.tables import DASH, Table, column_name, format_cell, format_estimate
from evaluation_tier.statistics.comparison import choose_p
from evaluation_tier.statistics.resampling import MIN_PATIENTS


def baseline_tables(comparison: Mapping) -> dict[str, list[Table]]:
    """The tables of a comparison: one row per model, the differences from the baseline, and the compared evaluations.

    Args:
        comparison: as `compare_with_baseline` returns it.
    """
    return {
        "models": [models_table(comparison)],
        "differences": [differences_table(comparison)],
        "compared": [compared_table(comparison)],
    }


def models_table(comparison: Mapping, with_findings: bool = True) -> Table:
    """One row per model: its size, its mean AUROC and, if asked for, that of each finding."""
    results, findings = comparison["results"], comparison["findings"]
    facts = {
        "Parameters": {name: format_millions(result["parameters"]) for name, result in results.items()},
        "Pixels": {name: describe_size(result["image_size"]) for name, result in results.items()},
        "Images/s": {name: format_speed(result["images_per_second"]) for name, result in results.items()},
    }
    facts = {header: cells for header, cells in facts.items() if set(cells.values()) != {DASH}}
    rows = []
    for name, result in results.items():
        parts = [result["mean"], *(result["findings"][finding] for finding in findings if with_findings)]
        estimates = (format_estimate(part["auroc"], part["auroc_ci95"]) for part in parts)
        rows.append((name, *(cells[name] for cells in facts.values()), *estimates))
    header = ("Model", *facts, f"Mean of {len(findings)} (95 % CI)")
    header += tuple(f"{finding} (95 % CI)" for finding in findings if with_findings)
    note = (
        f"AUROC of each model on the same {comparison['n_images']:,} images of {comparison['n_patients']:,} patients. "
        f"Intervals: {describe_intervals(comparison)}. Two models may differ for certain although their intervals "
        "overlap: the table of differences tells."
    )
    if "Images/s" in facts:
        note += " " + describe_speeds(results)
    if comparison["findings_left_out"]:
        left_out = (f"{name} ({reason})" for name, reason in comparison["findings_left_out"].items())
        note += f" Left out: {', '.join(left_out)}."
    return Table("models", "AUROC of the models", note, header, tuple(rows), "l" + "r" * (len(header) - 1))


def differences_table(comparison: Mapping) -> Table:
    """One row for the mean and for each finding of every model: its AUROC and its gain over the baseline."""
    results, baseline = comparison["results"], comparison["baseline"]
    independent = comparison["n_patients"] == comparison["n_images"]
    gains = {name: result["gain"] for name, result in results.items() if "gain" in result}
    rows = []
    for finding in (None, *comparison["findings"]):
        for name, gain in gains.items():
            part = (gain["mean"] if finding is None else gain["findings"][finding])["auroc"]
            estimate = format_estimate(part["difference"], part["difference_ci95"])
            own = format_estimate(part["first"]), format_estimate(part["second"])
            p_values = format_p(choose_p(part, independent)), format_p(part["p_holm"])
            what = f"Mean of {len(comparison['findings'])}" if finding is None else finding
            rows.append((what, name, *own, estimate, *p_values))
    header = ("Finding", "Model", "AUROC, baseline", "AUROC", "Difference (95 % CI)", "p", "p, Holm")
    note = (
        f"Each model minus the baseline, {baseline}, on the same resamples; a difference above 0 is in favour of the "
        f"model. Intervals: {describe_intervals(comparison)}."
    )
    if comparison["n_patients"] >= MIN_PATIENTS:
        note += " p, of no difference: " + (
            "DeLong's test for a finding, the resamples for the mean."
            if independent
            else "from the resamples, since DeLong's test would take the images of one patient as independent."
        )
        number = f"{len(gains)} model{'' if len(gains) == 1 else 's'}"
        note += (
            f" Holm: corrected for the {number} that are compared with the baseline in the same number (the mean, or "
            "one finding), which are one family of tests; not corrected for the number of findings."
        )
    return Table("differences", "Differences from the baseline", note, header, tuple(rows), "llrrrrr")


def compared_table(comparison: Mapping) -> Table:
    """The models of each evaluation, and where its protocol differs from the baseline's."""
    rows = []
    for name, result in comparison["results"].items():
        differing = {
            column_name(key): f"{format_cell(own)} (baseline: {format_cell(other)})"
            for key, (other, own) in result["protocol_differences"].items()
        }
        knowledge = (format_cell(result[key]) for key in ("training_overlap", "exposure"))
        rows.append((name, format_cell(result["models"]), format_cell(differing), *knowledge))
    any_differs = any(result["protocol_differences"] for result in comparison["results"].values())
    note = f"The baseline is {comparison['baseline']}. The protocols " + (
        "differ from the baseline's as told: scores may differ for that reason." if any_differs else "are the same."
    )
    header = ("Name", "Models", "Differences of the protocol", "Training images", "Published training data")
    return Table("compared", "What was compared", note, header, tuple(rows), "lllll")


def describe_intervals(comparison: Mapping) -> str:
    if comparison["n_patients"] < MIN_PATIENTS:
        return f"none, since they need images of at least {MIN_PATIENTS} patients"
    return f"percentiles of {comparison['n_bootstrap']:,} resamples of the patients, the same for all models"


def format_millions(parameters: int | None) -> str:
    """A number of parameters as "86.2 M"; a dash if it was not recorded."""
    return DASH if parameters is None else f"{parameters / 1e6:,.1f} M"


def describe_size(sizes: list[int | None]) -> str:
    """Height and width of a square image, of each model of an ensemble if they differ."""
    return ", ".join(map(format_cell, sizes)) or DASH


def describe_speeds(results: Mapping[str, Mapping]) -> str:
    """What the images per second are, and of which device."""
    models_of: dict[str, list[str]] = {}
    for name, result in results.items():
        if result["images_per_second"] is not None:
            models_of.setdefault(" and ".join(result["devices"]), []).append(name)
    note = "Images/s: how many images a model embeds in a second, without reading and decoding them, on "
    if len(models_of) == 1:
        note += f"{next(iter(models_of))}."
    else:
        note += "; ".join(f"{device} ({', '.join(names)})" for device, names in models_of.items())
        note += ": compare only those of the same device."
    if sum(map(len, models_of.values())) < len(results):
        note += " A dash there: all embeddings came from the cache, or the evaluation is older than this measurement."
    return note


def find_notices(comparison: Mapping) -> list[str]:
    """Sentences that a reader of the page must not miss."""
    notices = []
    for name, result in comparison["results"].items():
        if result["protocol_differences"]:
            names = ", ".join(map(column_name, result["protocol_differences"]))
            notices.append(
                f"The protocols of {comparison['baseline']} and {name} differ ({names}): scores may differ for that "
                "reason."
            )
        if comparison["trained"] == "include" and "flatter" in (result["training_overlap"] or ""):
            notices.append(f"{name}: {result['training_overlap']}.")
        if result["exposure_overlap"]:
            notices.append(f"The evaluated data may be training data of {name}: {result['exposure']}.")
    return notices + ([SYNTHETIC] if is_synthetic(comparison["dataset"]) else [])


def write_baseline_comparison(folder: str | Path, comparison: Mapping) -> list[Path]:
    """Write a comparison into a folder: `comparison.json`, `.md`, `.tex`, `.html` and, with matplotlib, `.png`.

    Args:
        folder: created if it does not exist.
        comparison: as `compare_with_baseline` returns it.

    Returns:
        The files written.
    """
    folder, tables = Path(folder), baseline_tables(comparison)
    results, baseline = comparison["results"], comparison["baseline"]
    alt = f"Forest plot of the differences of {len(results) - 1} models from {baseline}; the table holds the numbers."
    caption = (
        f"AUROC of each model minus that of {baseline} with its 95 % interval, first the means, then each finding; 0 "
        "means no difference."
    )
    written, figures = draw_forest(folder, lambda path: forest.plot_gains(comparison, path), alt, caption)
    own = results[baseline]["mean"]
    page = render_page(
        f"{len(results)} models on {describe_dataset(comparison['dataset']) or 'unnamed data'}",
        f"The models on the same {comparison['n_images']:,} images of {comparison['n_patients']:,} patients, each "
        f"beside the baseline, {baseline}. Press the heading of a column to sort by it. A dash ({DASH}) means not "
        "measured. In brackets: 95 % confidence intervals.",
        [
            (f"Mean AUROC of {baseline} (95 % CI)", format_estimate(own["auroc"], own["auroc_ci95"])),
            ("Findings", f"{len(comparison['findings']):,}"),
            ("Images", f"{comparison['n_images']:,}"),
        ],
        [
            Section("models", "Models", tables["models"], []),
            Section("differences", "Differences from the baseline", tables["differences"], figures),
            Section("compared", "What was compared", tables["compared"], []),
        ],
        find_notices(comparison),
        [FOR_RESEARCH],
    )
    return written + write_texts(folder, comparison, tables, page)
