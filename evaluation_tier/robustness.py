"""Robustness: how much zero-shot results depend on wording, and what images and words they should depend on.

Five probes: six wordings of one question; a finding against its negation; left against right; images that show
nothing; images of lower resolution and stronger compression. Intervals are 95 % percentile bootstraps over patients.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.embedding import embed_prompts, normalize, read_batches, takes_uint8
from evaluation_tier.loading import is_classifier
from evaluation_tier.metrics import best_threshold
from evaluation_tier.protocols import find_prompts, prompts_name
from evaluation_tier.report import installed_versions, to_json
from evaluation_tier.resampling import (
    MIN_PATIENTS,
    bootstrap,
    check_num_resamples,
    chunks,
    describe_intervals,
    draw_resamples,
    percentile_interval,
)
from evaluation_tier.scoring import zero_shot_scores
from evaluation_tier.zeroshot import read_labels, select_findings
from processing_tier.prompts import Prompts, normalize_name
from processing_tier.reports import extract_sections, split_sentences

# Six ways to ask for a finding: with it, without it. The first is CheXzero's (zero_shot.py:119-124); the others are
# ways in which radiologists and the field's prompt sets write.
WORDINGS = {
    "name": ("{}", "no {}"),
    "there is": ("There is {}.", "There is no {}."),
    "evidence": ("Findings consistent with {}.", "No evidence of {}."),
    "seen": ("{} is seen.", "No {} is seen."),
    "presence": ("{} is present.", "{} is absent."),
    "radiograph": ("Chest radiograph with {}.", "Chest radiograph without {}."),
}
SIDE_PROMPTS = ("Left {}.", "Right {}.")
# Findings that have a side, and how reports name them. "No finding" and what is in the midline have none.
SIDED = {
    "pleural effusion": r"effusions?",
    "effusion": r"effusions?",
    "pneumothorax": r"\w*pneumothora(?:x|ces)",
    "atelectasis": r"atelecta\w+",
    "consolidation": r"consolidati\w+",
    "pneumonia": r"pneumonias?",
    "lung opacity": r"opacit(?:y|ies)",
    "nodule/mass": r"(?:nodules?|mass(?:es)?)",
    "nodule": r"nodules?",
    "mass": r"mass(?:es)?",
    "granuloma": r"granulomas?",
    "fracture": r"fractures?",
}
LEFT = re.compile(r"\b(?:left|lt|l[ul]l|lingular?)\b", re.IGNORECASE)
RIGHT = re.compile(r"\b(?:right|rt|r[uml]l)\b", re.IGNORECASE)
BOTH = re.compile(r"\b(?:bi(?:lateral|basilar|basal|apical)\w*|both|bases|apices|lungs)\b", re.IGNORECASE)
DEVICE = re.compile(
    r"\b(?:picc|catheters?|lines?|tubes?|ports?|pacemakers?)\b", re.IGNORECASE
)  # has a side of its own
DOUBTED = re.compile(r"\b(?:may be|possibl[ey]|probabl[ey])\b", re.IGNORECASE)  # wherever it stands
NO_SIDE = re.compile(r"\b(?:left|right) lateral\b", re.IGNORECASE)  # a view of the patient
DENIED = re.compile(  # before the finding
    r"\b(?:no(?! (?:significant |interval )*change)|not|without|negative|free|absen\w+|den(?:y|ies)|exclude\w*"
    r"|rule\w* out|resol\w+|clear\w*|unlikely|former|previous\w*|questionable|versus|vs)\b",
    re.IGNORECASE,
)
UNDONE = re.compile(  # after it
    r"\b(?:not|no longer|resol\w+|absen\w+|excluded|cleared|unlikely|questionable|versus|vs)\b", re.IGNORECASE
)

RESOLUTIONS = (2, 4, 8)  # divisors of the model's input size
JPEG_QUALITIES = (90, 50, 20, 10)


def lower_resolution(image: Image.Image, divisor: int) -> Image.Image:
    """A picture resized to 1/`divisor` of its width and height and back (bicubic, as the image processor resizes)."""
    small = (max(1, image.width // divisor), max(1, image.height // divisor))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def compress(image: Image.Image, quality: int) -> Image.Image:
    """A grey picture after a JPEG file of this quality (1 to 95, libjpeg's scale)."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file) as compressed:
        return compressed.convert("L")


DEGRADATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{f"resolution 1/{divisor}": partial(lower_resolution, divisor=divisor) for divisor in RESOLUTIONS},
    **{f"JPEG quality {quality}": partial(compress, quality=quality) for quality in JPEG_QUALITIES},
}
ORIGINAL, MIRRORED = "original", "mirrored"


class Embeddings(NamedTuple):
    """Embeddings of a data set's images and of what was made of them; all L2-normalised float32."""

    images: dict[str, np.ndarray]  # by "original", "mirrored" and the names of DEGRADATIONS: (images, dim)
    empty: dict[str, np.ndarray]  # of images that show nothing: (dim,)
    rows: np.ndarray  # the rows of the data set that decode, those of `images`


def evaluate_robustness(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    min_positives: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dataset_name: str = "",
) -> dict:
    """
    How one model's zero-shot results change with the wording, and whether they depend on what they should.

    Each image is decoded once and embedded nine times: as it is, mirrored, and in the seven [`DEGRADATIONS`].

    Args:
        model: of images and texts, as `load_model` gives it; a classifier has no sentences to vary.
        processor: the model's.
        dataset: in the schema of `records.py`. `findings`, `impression` and `report` tell the sides.
        findings: see `select_findings`. "No Finding" is asked in no wording but that of `prompts`.
        prompts: the sentences that score empty and degraded images: name or path of a prompt file, or the prompts.
        n_bootstrap: resamples of patients, the same for all that is compared.
        seed: of the resamples and of the noise image.

    Returns:
        `dict`: of JSON's own types, `None` where a number is undefined.

        - `wordings`: AUROC by wording, with its `mean`, `min`, `max` and `sd` (n - 1) over the wordings, per finding
          and for the mean over findings, there with `auroc_ci95` by wording.
        - `negation`: by finding (and their mean) and wording, the share of the images with the finding that lie
          nearer to the sentence with it (`on_positives`), of those without that lie nearer to the sentence without
          (`on_negatives`), and the mean of both (`balanced`, chance 0.5). Ties count half.
        - `laterality`: on images with the finding whose report states one side (see [`stated_side`]), the share that
          lies nearer to that side's sentence, averaged over both sides (`accuracy`, chance 0.5, whatever side is the
          more frequent); the same of mirrored images, whose side is the other (`mirrored_accuracy`); the share of
          images whose preference mirroring turns round (`swapped`: 1 for a model that sees sides, 0 for one that
          always says the same).
        - `empty_images`: scores of black, grey (the mean level), white and noise images and of the mean image as a
          quantile of the real images' scores, and whether they reach the threshold of the highest MCC; those that do
          are `defects`. `threshold_quantile` is the share of real images below that threshold.
        - `degradations`: AUROC of degraded images, and by how much it is below that of the originals (`drop`),
          with an interval over paired resamples.

    Raises:
        ValueError: for a classifier, fewer than one resample, or as `select_findings` and `read_batches` say.
    """
    check_has_sentences(model)
    check_num_resamples(n_bootstrap)
    findings, left_out = select_findings(dataset, findings, min_positives)
    described, prompts = prompts_name(prompts), find_prompts(prompts, findings)

    embeddings = embed_variants(model, processor, dataset, batch_size, seed)
    readable = dataset.select(embeddings.rows)
    labels = read_labels(readable, findings)
    patient_ids = np.array(readable["patient_id"][:])
    draws = draw_resamples(patient_ids, n_bootstrap, seed)

    by_prompts = embed_prompts(model, processor, prompts)
    scores = {name: zero_shot_scores(images, *by_prompts) for name, images in embeddings.images.items()}
    empty = {name: zero_shot_scores(image[None], *by_prompts)[0] for name, image in embeddings.empty.items()}

    worded = [i for i, finding in enumerate(findings) if normalize_name(finding) != "no finding"]
    worded_scores = {}
    for wording, (positive, negative) in WORDINGS.items():
        sentences = {
            findings[i]: Prompts([phrase(positive, findings[i])], [phrase(negative, findings[i])]) for i in worded
        }
        if sentences:
            by_wording = embed_prompts(model, processor, sentences)
            worded_scores[wording] = zero_shot_scores(embeddings.images[ORIGINAL], *by_wording)
    worded_findings, worded_labels = [findings[i] for i in worded], labels[:, worded]
    return to_json(
        {
            "dataset": dataset_name,
            "protocol": {
                "prompts": described,
                "wordings": WORDINGS,
                "side_prompts": SIDE_PROMPTS,
                "intervals": describe_intervals(patient_ids.tolist(), "95 % percentile bootstrap over patients"),
                "n_bootstrap": n_bootstrap,
                "seed": seed,
                "n_patients": len(set(patient_ids.tolist())),
                "min_positives": min_positives,
                "findings_left_out": left_out,
            },
            "n_images": len(labels),
            "wordings": compare_wordings(worded_findings, worded_labels, worded_scores, draws),
            "negation": compare_negations(worded_findings, worded_labels, worded_scores, draws),
            "laterality": compare_sides(model, processor, readable, findings, labels, embeddings.images, draws),
            "empty_images": score_empty_images(findings, labels, scores[ORIGINAL], empty),
            "degradations": compare_degradations(findings, labels, scores, draws),
            "versions": installed_versions(),
        }
    )


def check_has_sentences(model: PreTrainedModel) -> None:
    """ValueError for a classifier, and for a model whose input is no square that could be varied."""
    if is_classifier(model):
        raise ValueError(f"A {type(model).__name__} has no sentences to vary: name a model of images and texts.")
    if getattr(model.config, "model_type", None) == "siglip2":
        raise ValueError(f"A {type(model).__name__} takes images of any shape: name a model of square images.")


def embed_variants(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int, seed: int
) -> Embeddings:
    """Embed each image, its mirror image and its degradations, and images that show nothing.

    What is changed is the model's input, after resizing, in 256 grey levels: the same change whatever the size of
    the files, and a stronger one than the same quality of a large file.
    """
    image_processor = getattr(processor, "image_processor", processor)
    options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
    squares = [Image.new("L", (64, 64), level) for level in (0, 255)]
    # Pixels are linear in the grey level, whatever the processor normalises with: two uniform images tell how
    ends = image_processor(images=squares, return_tensors="pt", **options)["pixel_values"].to(model.device).float()
    black, contrast = ends[0, :, :1, :1], (ends[1] - ends[0])[:, :1, :1]  # (channels, 1, 1)

    def embed(pixels: torch.Tensor) -> np.ndarray:
        return normalize(model.get_image_features(pixel_values=pixels).pooler_output)

    def to_pixels(levels: Sequence[np.ndarray | Image.Image], dtype: torch.dtype) -> torch.Tensor:
        levels = torch.from_numpy(np.stack([np.asarray(image) for image in levels])).to(model.device)
        return (black + levels[:, None] / 255 * contrast).to(dtype)

    images: dict[str, list[np.ndarray]] = {name: [] for name in (ORIGINAL, MIRRORED, *DEGRADATIONS)}
    all_rows, total = [], 0.0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows, pixels in read_batches(model, processor, dataset, batch_size):
            levels = ((pixels - black) / contrast * 255).mean(dim=1).round().clamp(0, 255)  # (batch, height, width)
            levels = levels.to(torch.uint8).cpu().numpy()
            pictures = [Image.fromarray(image) for image in levels]
            images[ORIGINAL].append(embed(pixels))
            images[MIRRORED].append(embed(pixels.flip(-1)))
            for name, degrade in DEGRADATIONS.items():
                images[name].append(embed(to_pixels([degrade(picture) for picture in pictures], pixels.dtype)))
            all_rows.append(rows)
            total = total + levels.sum(axis=0, dtype=np.float64)
        rows = np.concatenate(all_rows)
        mean = (total / len(rows)).round().astype(np.uint8)
        empty = {
            "black": np.zeros_like(mean),
            "grey": np.full_like(mean, round(float(mean.mean()))),
            "white": np.full_like(mean, 255),
            "noise": np.random.default_rng(seed).integers(256, size=mean.shape, dtype=np.uint8),
            "mean image": mean,
        }
        empty_embeds = embed(to_pixels(list(empty.values()), pixels.dtype))
    model.train(was_training)
    return Embeddings(
        {name: np.concatenate(parts) for name, parts in images.items()},
        dict(zip(empty, empty_embeds, strict=True)),
        rows,
    )


def with_interval(statistic: Callable[[np.ndarray], np.ndarray], draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of all images (values,), and its 95 % intervals over resamples (values, 2).

    Args:
        statistic: from (resamples, images), how often each image was drawn, to (resamples, values).
        draws: see `draw_resamples`.
    """
    point = statistic(np.ones((1, draws.shape[1])))[0]
    if not len(draws):
        return point, np.full((len(point), 2), np.nan)
    resampled = np.concatenate([statistic(draws[part]) for part in chunks(*draws.shape)])
    return point, np.array([percentile_interval(each) for each in resampled.T])


def resampled_aurocs(draws: np.ndarray, labels: np.ndarray, scores: Iterable[np.ndarray]) -> np.ndarray:
    """AUROC by each of several scores (images, findings), the mean over the findings last:
    (resamples, scores, findings + 1)."""
    aurocs = np.stack([bootstrap(labels, each, draws)["auroc"] for each in scores], axis=1)
    return np.concatenate([aurocs, aurocs.mean(axis=-1, keepdims=True)], axis=-1)


def resampled_share(draws: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of resampled values (samples, ...) over the samples `where`, (resamples, ...); NaN where there is none."""
    draws = draws.astype(np.float64)
    weight = np.tensordot(draws, where.astype(np.float64), axes=1)
    total = np.tensordot(draws, np.where(where, values, 0.0), axes=1)
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def phrase(template: str, finding: str) -> str:
    """A template filled with a finding's name as sentences write it ("Nodule/Mass": "nodule or mass")."""
    text = template.replace("{}", finding.replace("_", " ").replace("/", " or ").lower())
    return text[0].upper() + text[1:]


def compare_wordings(
    findings: Sequence[str], labels: np.ndarray, scores: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict:
    """The `wordings` of [`evaluate_robustness`], from scores (images, findings) by wording."""
    if not findings:
        return {"findings": {}, "mean": None}
    values, intervals = with_interval(
        lambda draws: resampled_aurocs(draws, labels, scores.values()).reshape(len(draws), -1), draws
    )
    values = values.reshape(len(scores), len(findings) + 1)
    intervals = intervals.reshape(len(scores), len(findings) + 1, 2)
    results = [
        {
            "auroc": dict(zip(scores, column, strict=True)),
            "mean": column.mean(),
            "min": column.min(),
            "max": column.max(),
            "sd": column.std(ddof=1),
        }
        for column in values.T
    ]
    mean = results.pop() | {"auroc_ci95": dict(zip(scores, intervals[:, -1], strict=True))}
    return {"findings": dict(zip(findings, results, strict=True)), "mean": mean}


def compare_negations(
    findings: Sequence[str], labels: np.ndarray, scores: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict:
    """The `negation` of [`evaluate_robustness`], from scores (images, findings) by wording."""
    if not findings:
        return {"chance": 0.5, "findings": {}, "mean": {}}
    present = np.stack([np.sign(each) for each in scores.values()], axis=1) / 2 + 0.5  # (images, wordings, findings)
    is_positive = np.broadcast_to((labels == 1)[:, None], present.shape)
    is_negative = np.broadcast_to((labels == 0)[:, None], present.shape)

    def statistic(draws: np.ndarray) -> np.ndarray:
        on_positives = resampled_share(draws, present, is_positive)
        on_negatives = resampled_share(draws, 1 - present, is_negative)
        shares = np.stack([on_positives, on_negatives, (on_positives + on_negatives) / 2], axis=1)
        return np.concatenate([shares, shares.mean(axis=-1, keepdims=True)], axis=-1).reshape(len(draws), -1)

    values, intervals = with_interval(statistic, draws)
    values = values.reshape(3, len(scores), -1)
    intervals = intervals.reshape(3, len(scores), -1, 2)[2]
    results = [
        {
            wording: {
                "on_positives": values[0, i, j],
                "on_negatives": values[1, i, j],
                "balanced": values[2, i, j],
                "balanced_ci95": intervals[i, j],
            }
            for i, wording in enumerate(scores)
        }
        for j in range(len(findings) + 1)
    ]
    mean = results.pop()
    return {"chance": 0.5, "findings": dict(zip(findings, results, strict=True)), "mean": mean}


def stated_side(text: str, finding: str) -> str | None:
    """
    The one side on which a report says that a finding is.

    Sentences, and their parts between semicolons, that name the finding count, but for those that deny or doubt it
    ("no", "resolved", "versus", "possible") or name a device such as a catheter, whose side it may be.
    A sentence that names both sides, or all sentences together that do, tell none: what belongs to what would be a
    guess. "LLL", "RML" and the like are sides; "left lateral", a view, is none.

    Args:
        text (`str`): sections of the report, such as findings and impression.
        finding (`str`): one of [`SIDED`], in any case.

    Returns:
        `"left"` or `"right"`, the patient's, or `None`.
    """
    named = SIDED.get(normalize_name(finding))
    if named is None:
        return None
    named = re.compile(rf"\b{named}\b", re.IGNORECASE)
    sides = set()
    for sentence in (part for whole in split_sentences(text) for part in whole.split(";")):
        sentence = NO_SIDE.sub("", sentence)
        if DEVICE.search(sentence) or DOUBTED.search(sentence):
            continue
        name = named.search(sentence)
        if not name or DENIED.search(sentence, 0, name.start()) or UNDONE.search(sentence, name.end()):
            continue
        if LEFT.search(sentence) or BOTH.search(sentence):
            sides.add("left")
        if RIGHT.search(sentence) or BOTH.search(sentence):
            sides.add("right")
    return sides.pop() if len(sides) == 1 else None


def report_texts(dataset: datasets.Dataset) -> list[str]:
    """Findings and impression of each report, from its sections or, where both are empty, from the whole text."""
    columns = {
        name: dataset[name][:] if name in dataset.column_names else [""] * len(dataset)
        for name in ("findings", "impression", "report")
    }
    texts = []
    for findings, impression, report in zip(*columns.values(), strict=True):
        if not findings and not impression and report:
            findings, impression = extract_sections(report).values()
        texts.append(f"{findings or ''}\n\n{impression or ''}")
    return texts


def compare_sides(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    labels: np.ndarray,
    images: Mapping[str, np.ndarray],
    draws: np.ndarray,
) -> dict:
    """The `laterality` of [`evaluate_robustness`]; pairs of an image and a finding are pooled over the findings."""
    sided = [i for i, finding in enumerate(findings) if normalize_name(finding) in SIDED]
    texts = report_texts(dataset)
    pairs = [
        (row, column, side)
        for column, i in enumerate(sided)
        for row in np.flatnonzero(labels[:, i] == 1).tolist()
        if (side := stated_side(texts[row], findings[i]))
    ]
    if not pairs:
        return {"chance": 0.5, "findings": {}, "all": None}
    rows, columns, sides = (np.array(values) for values in zip(*pairs, strict=True))
    sentences = {findings[i]: Prompts(*([phrase(side, findings[i])] for side in SIDE_PROMPTS)) for i in sided}
    left_and_right = embed_prompts(model, processor, sentences)
    left, mirrored_left = (  # 1 where the left sentence is nearer, 0 where the right one is
        np.sign(zero_shot_scores(images[name], *left_and_right)[rows, columns]) / 2 + 0.5
        for name in (ORIGINAL, MIRRORED)
    )
    is_left = sides == "left"
    told = [findings[i] for column, i in enumerate(sided) if column in columns]
    groups = {finding: columns == sided.index(findings.index(finding)) for finding in told}
    groups["all"] = np.ones(len(rows), dtype=bool)

    def statistic(draws: np.ndarray) -> np.ndarray:
        draws = draws[:, rows]
        values = []
        for group in groups.values():
            on_left, on_right = group & is_left, group & ~is_left
            values += [
                (resampled_share(draws, left, on_left) + resampled_share(draws, 1 - left, on_right)) / 2,
                (resampled_share(draws, 1 - mirrored_left, on_left) + resampled_share(draws, mirrored_left, on_right))
                / 2,
                resampled_share(draws, np.abs(left - mirrored_left), group),
            ]
        return np.stack(values, axis=1)

    values, intervals = with_interval(statistic, draws)
    results = {}
    patients = np.array(dataset["patient_id"]).astype(str)[rows]
    for i, (finding, group) in enumerate(groups.items()):
        results[finding] = {"n_left": (group & is_left).sum(), "n_right": (group & ~is_left).sum()}
        each_side = min(len(np.unique(patients[group & side])) for side in (is_left, ~is_left))
        num_patients = (each_side, each_side, len(np.unique(patients[group])))
        for j, name in enumerate(("accuracy", "mirrored_accuracy", "swapped")):
            interval = intervals[3 * i + j] if num_patients[j] >= MIN_PATIENTS else np.full(2, np.nan)
            results[finding] |= {name: values[3 * i + j], f"{name}_ci95": interval}
    pooled = results.pop("all")
    return {"chance": 0.5, "findings": results, "all": pooled}


def score_empty_images(
    findings: Sequence[str], labels: np.ndarray, scores: np.ndarray, empty: Mapping[str, np.ndarray]
) -> dict:
    """The `empty_images` of [`evaluate_robustness`], from the scores of the real images (images, findings)."""
    results, defects = {}, []
    for i, finding in enumerate(findings):
        real = scores[:, i]
        threshold = best_threshold(labels[:, i], real)
        results[finding] = {"threshold_quantile": (real < threshold).mean(), "images": {}}
        for name, scored in empty.items():
            quantile = ((real < scored[i]).mean() + (real <= scored[i]).mean()) / 2  # ties count half
            positive = bool(scored[i] >= threshold)
            results[finding]["images"][name] = {"score": scored[i], "quantile": quantile, "positive": positive}
            if positive:
                defects.append({"finding": finding, "image": name, "quantile": quantile})
    return {"findings": results, "defects": defects}


def compare_degradations(
    findings: Sequence[str], labels: np.ndarray, scores: Mapping[str, np.ndarray], draws: np.ndarray
) -> dict:
    """The `degradations` of [`evaluate_robustness`], from scores (images, findings) by name of the image."""
    names = [ORIGINAL, *DEGRADATIONS]

    def statistic(draws: np.ndarray) -> np.ndarray:
        values = resampled_aurocs(draws, labels, (scores[name] for name in names))
        return np.concatenate([values, values[:, :1] - values], axis=1).reshape(len(draws), -1)

    values, intervals = with_interval(statistic, draws)
    values = values.reshape(2, len(names), -1)
    intervals = intervals.reshape(2, len(names), -1, 2)
    results = {}
    for i, name in enumerate(names):
        cells = [
            {"auroc": auroc, "auroc_ci95": interval}
            if name == ORIGINAL
            else {"auroc": auroc, "drop": drop, "drop_ci95": drop_interval}
            for auroc, interval, drop, drop_interval in zip(
                values[0, i], intervals[0, i], values[1, i], intervals[1, i], strict=True
            )
        ]
        mean = cells.pop()
        results[name] = {"findings": dict(zip(findings, cells, strict=True)), "mean": mean}
    return results
