"""The figures of a page: what they show in words, and their pixels in few bytes."""

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from evaluation_tier.output.file_names import file_names

logger = logging.getLogger(__name__)

MAX_FIGURE_BYTES = 16 * 2**20

MAX_FIGURE_PIXELS = 50_000_000

SIZES = (
    (1600, 82),
    (1200, 70),
    (900, 55),
)  # widest pixels and quality, tried in this order until a page is small enough

FIGURES = {  # alternative text and caption, where these do not depend on the results
    "subgroups.png": (
        "Forest plot of the mean AUROC of each subgroup with its interval; the tables hold the numbers.",
        "Mean AUROC of each subgroup with its 95 % interval, over the findings that all groups of the attribute have, "
        "and of all images over the same findings.",
    ),
    "training_curves.png": (
        "Curves of the loss, its terms and the AUROC over the epochs.",
        "The training by epoch. The dashed line is the epoch whose weights were kept.",
    ),
    "errors.png": (
        "Radiographs that the model called wrongly, each with its finding and score.",
        "Images on the wrong side of the threshold: first missed findings, then false alarms, the farthest among the "
        "images of the other label first, at most two of a finding. The row is that of predictions.parquet, counted "
        "from 0. Green: the true region of a missed finding, if it is marked.",
    ),
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
        "a sentence names, and the scores of images that show nothing. Dashed lines mark chance or no difference; of "
        "the share that mirroring turns, a model that is blind to sides. Bars are 95 % intervals.",
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
    """A figure as the page embeds it, a WebP picture."""

    base64: str
    width: int
    height: int
    alt: str
    caption: str


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
        return alt, (
            "ROC curve of each finding, its AUROC with the 95 % interval, the band that 95 % of the resamples of "
            f"patients keep to, and the point of the threshold. The diagonal is chance.{readers}"
        )
    if path.name == "precision_recall.png":
        alt = f"Precision-recall curves of {count(len(ranked))}; the table of results holds their areas.{readers}"
        caption = (
            "Precision-recall curve of each finding, its AUPRC, and the point of the threshold. The dashed line is "
            "the prevalence, the share of positives, which chance reaches."
        )
        return alt, caption + readers
    if path.name == "calibration.png":
        alt = f"Reliability curves of {count(len(findings))}; the table holds their calibration errors."
        return (
            alt,
            "Observed share of positives against predicted probability, on equal axes. A calibrated model follows the "
            "diagonal. Below: how many images have each probability. Findings that could not be calibrated are left "
            "out.",
        )
    if path.name in FIGURES:
        return FIGURES[path.name]
    name, names = path.stem.partition("_")[2], file_names(findings)
    subject = next((finding for finding in findings if names[finding] == name), name.replace("_", " "))
    if path.name.startswith("similarity_"):
        return (
            f"Radiographs with and without {subject}, and below each the model's map of the prompts.",
            f"{subject}: of the true and false positives the image with the highest score, of the true and false "
            "negatives the one with the lowest, and their true masks if they have some. Below: the maps, all with one "
            "colour scale. Red speaks for the finding more than in the average image, blue less, and where the map is "
            "0, nothing is drawn. Thin lines are the borders of the patches.",
        )
    caption = f"{path.stem.partition('_')[0].capitalize()}: {subject}".removesuffix(": ")
    return f"Figure: {caption}; the tables of the section hold its numbers.", f"{caption}."


def count(number: int) -> str:
    """A number of findings in words."""
    return f"{number} finding{'' if number == 1 else 's'}"


def read_figure(
    path: Path, alt: str, caption: str, max_width: int = SIZES[0][0], quality: int = SIZES[0][1]
) -> Figure | None:
    """A PNG file of the folder; None, with a warning, if it is not a PNG image or too large."""
    if path.stat().st_size > MAX_FIGURE_BYTES:
        logger.warning("The page leaves out %s: it exceeds %d MB.", path.name, MAX_FIGURE_BYTES >> 20)
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_FIGURE_PIXELS:
                logger.warning(
                    "The page leaves out %s: it has more than %s pixels.", path.name, f"{MAX_FIGURE_PIXELS:,}"
                )
                return None
            picture = on_white(image)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        logger.warning("The page leaves out %s: it is not a PNG image.", path.name)
        return None
    if picture.width > max_width:
        height = max(round(picture.height * max_width / picture.width), 1)
        picture = picture.resize((max_width, height), Image.Resampling.LANCZOS)
    # curves are smallest without loss, radiographs with it
    content = min((encode(picture, lossless=True), encode(picture, quality=quality)), key=len)
    width, height = picture.size
    return Figure(base64.b64encode(content).decode("ascii"), width, height, alt, caption)


def on_white(image: Image.Image) -> Image.Image:
    """The picture without transparency."""
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def encode(picture: Image.Image, **options: object) -> bytes:
    """The bytes of a WebP file."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def read_figures(paths: Sequence[Path], metrics: Mapping, max_bytes: int) -> tuple[dict[Path, Figure], list[Path]]:
    """
    The figures of these files, together at most `max_bytes` in base64: smaller pictures where they do not fit, and if
    even these are too many, the first ones.

    Returns:
        The figures by file, and the files that do not fit.
    """
    figures: dict[Path, Figure] = {}
    for max_width, quality in SIZES:
        read = ((path, read_figure(path, *describe_figure(path, metrics), max_width, quality)) for path in paths)
        figures = {path: figure for path, figure in read if figure}
        if sum(len(figure.base64) for figure in figures.values()) <= max_bytes:
            return figures, []
        paths = list(figures)  # the others were warned of
    kept, size = {}, 0
    for path, figure in figures.items():
        size += len(figure.base64)
        if size <= max_bytes:
            kept[path] = figure
    return kept, [path for path in figures if path not in kept]
