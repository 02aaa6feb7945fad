"""The text that an evaluation prints at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation_tier.output.analysis_tables import curve_sentence, transfer_sentence
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.tables import format_interval, format_number, text_table
from processing_tier.escaping import printable


def format_results(models: Sequence[str], metrics: Mapping, written: Sequence[Path]) -> str:
    """
    The table of findings, the omissions and the paths of the files, for a terminal.

    Args:
        models: as the user named them.
        metrics: of the evaluation.
        written: its files.
    """
    protocol = metrics["protocol"]
    kind = "Classifier" if protocol["scoring"] == "logit" else "Zero-shot"
    parts = [
        f"{kind} on {printable(describe_dataset(metrics['dataset']))}, split {protocol['split']!r}: "
        f"{metrics['n_images']:,} images of {protocol['n_patients']:,} patients",
        format_table(metrics),
        *comment_on_mean(metrics["mean"]),
    ]
    if "score_levels" in metrics:
        levels = ", ".join(
            f"{level} {format_number(result['auroc'])} ({format_interval(result['auroc_ci95'])})"
            for level, result in metrics["score_levels"].items()
        )
        used = f"; the table has {protocol['score_level']}" if "score_level" in protocol else ""
        parts.append(f"Mean AUROC by score level (95 % CI): {levels}{used}")
    if "transfer" in metrics:
        transfer = metrics["transfer"]
        origin = printable(describe_dataset(transfer["fitted_on"]["dataset"]))
        parts.append(
            f"Thresholds of {origin} with a sensitivity of {transfer['wanted_sensitivity']:g}: "
            f"{transfer_sentence(transfer)}"
        )
    if "learning_curve" in metrics:
        curve = metrics["learning_curve"]
        parts.append(f"Learning from {curve['split']!r}. {curve_sentence(curve)}")
    if protocol["findings_left_out"]:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in protocol["findings_left_out"].items())
        parts.append(f"Left out: {printable(reasons)}")
    if protocol["images_skipped"]:
        parts.append(f"Skipped, did not decode: {printable(', '.join(protocol['images_skipped']))}")
    for title, lines in (("Model:", models), ("Written:", written)):
        parts.append("\n  ".join([title, *map(printable, lines)]))
    parts += [f"Look at it in a browser: {printable(path)}" for path in written if Path(path).name == "report.html"]
    return "".join(f"\n{part}\n" for part in parts).removesuffix("\n")


def comment_on_mean(mean: Mapping) -> list[str]:
    """A sentence on a mean AUROC below 0.5, which says whether chance explains it; none for any other."""
    auroc, (_, high) = mean.get("auroc"), mean.get("auroc_ci95") or (None, None)
    if auroc is None or not auroc < 0.5:
        return []
    if high is None or not high < 0.5:
        return ["The mean AUROC is below 0.5, as chance can make it: the model does not rank these images."]
    return [
        "The mean AUROC and its interval are below 0.5: the scores rank the wrong way round. Check that 1 means "
        "present in the labels, and that the positive and the negative sentences are not exchanged."
    ]


def format_table(metrics: Mapping) -> str:
    """The results as a plain-text table: finding, positives, AUROC with its 95 % interval, and the mean."""
    rows = [
        (
            finding,
            f"{result['n_positive']:,}",
            format_number(result["auroc"]),
            format_interval(result["auroc_ci95"]),
        )
        for finding, result in metrics["findings"].items()
    ]
    mean = metrics["mean"]
    rows.append((f"Mean of {len(rows)}", "", format_number(mean["auroc"]), format_interval(mean["auroc_ci95"])))
    return text_table(("Finding", "Positives", "AUROC", "95 % CI"), rows, "lrrl", num_summary=1)
