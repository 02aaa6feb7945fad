"""Zero-shot evaluation: how well sentences alone tell radiographs with a finding from those without.

For each finding there are positive sentences ("There is a left pleural effusion.") and negative ones; every image
and every sentence is embedded once, and an image scores by how much nearer it lies to the positive sentences.
"""

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # the top level hides it without torchvision

import modeling_tier  # noqa: F401 (registers the model with AutoModel)
import processing_tier  # noqa: F401 (registers the processor with AutoProcessor)
from evaluation_tier.calibration import fit_calibration
from evaluation_tier.metrics import auprc, auroc, best_threshold, f1, mcc
from evaluation_tier.report import installed_versions
from evaluation_tier.resampling import bootstrap_auroc
from modeling_tier.pipeline_tier import embed_texts
from processing_tier.prompts import Prompts, load_prompts
from processing_tier.radiograph_tier import read_radiograph
from processing_tier.records import finding_columns

logger = logging.getLogger(__name__)

SCORINGS = ("difference", "softmax")
CLASSIFIERS = ("TierCLIPForImageClassification", "TierDualEncoderForImageClassification")
MAX_UNREADABLE = 0.01  # share of the images that may fail to decode before the evaluation stops
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or a GPU if there is one. ValueError for a name that torch does not know or cannot use."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails with an AssertionError
        raise ValueError(f"The device {name!r} cannot be used here: choose another, for example 'cpu'.") from error


def load_model(name: str | Path, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model (float32, in evaluation mode, on `device`) and its processor.

    TIER models, and any other checkpoint of the CLIP family with its processor, are read; so are TIER's classifiers,
    whose processor is an image processor. Code that lies beside the weights is never run, and pickled weights are
    never opened.

    Args:
        name: a folder that `save_pretrained` wrote or, where there is none, a name on the Hub ("owner/name").

    Raises:
        ValueError: when the model, its config, its weights or its processor are missing or do not fit each other.
    """
    folder = Path(name)
    if folder.is_dir():
        check_folder(folder)
    elif not HUB_NAME.fullmatch(str(name)):
        raise ValueError(
            f"There is no model folder {name}: name one that train_tier.py or save_pretrained wrote, or a model on "
            "the Hub (owner/name)."
        )
    try:
        architectures = AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or [""]
        auto_class = AutoModelForImageClassification if architectures[0] in CLASSIFIERS else AutoModel
        model, info = auto_class.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        if is_classifier(model):
            processor = AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
        else:
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # libraries raise many kinds here; all mean that this is not a usable model
        reason = f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        if folder.is_dir():
            raise ValueError(f"The model in {folder} does not load {reason}.") from error
        raise ValueError(
            f"There is no model folder {name}, and from the Hub it does not load; a private model needs "
            f"`hf auth login` {reason}."
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"The weights of {name} lack {len(info['missing_keys'])} of the model's tensors, "
            f"for example {sorted(info['missing_keys'])[0]}: they belong to another architecture or are incomplete."
        )
    if is_classifier(model):
        return model.to(device).eval(), processor
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"The model {name} is a {type(model).__name__}, which does not embed images and texts in one space: "
            "name a TIER or CLIP model."
        )
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ValueError(
            f"The model {name} has no complete processor (image processor and tokenizer): "
            "save it beside the model with processor.save_pretrained."
        )
    return model.to(device).eval(), processor


def check_folder(folder: Path) -> None:
    """ValueError for a folder without a config or without weights that may be read, with what to do about it."""
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        remedy = f"did you mean {folder / inside[-1]}?" if inside else "name the folder that save_pretrained wrote."
        raise ValueError(f"The folder {folder} holds no model (no config.json): {remedy}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"The folder {folder} holds no weights (no *.safetensors): train the model to its end, or save it with "
            "save_pretrained; pickled weights (*.bin, *.pt) are never read."
        )


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model scores findings by a trained head, and not by sentences."""
    return type(model).__name__ in CLASSIFIERS


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int = 32
) -> np.ndarray:
    """L2-normalised image embeddings, (images, dim) float32; see `run_on_images`."""
    return run_on_images(
        lambda pixels: normalize(model.get_image_features(pixel_values=pixels).pooler_output),
        model.config.projection_dim,
        model,
        processor,
        dataset,
        batch_size,
    )


def classify_images(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    batch_size: int = 32,
) -> np.ndarray:
    """A classifier's logits, (images, findings) float32; see `run_on_images`."""
    columns = [model.config.label2id[finding] for finding in findings]
    return run_on_images(
        lambda pixels: check_finite(model(pixels).logits[:, columns]).cpu().numpy(),
        len(columns),
        model,
        processor,
        dataset,
        batch_size,
    )


def run_on_images(
    compute: Callable[[torch.Tensor], np.ndarray],
    width: int,
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int,
) -> np.ndarray:
    """What `compute` makes of the pixels of each batch, one row per image, each image read once.

    An image that does not decode is logged and gets a row of NaN.

    Args:
        compute: from pixels (batch, ...) on the model's device to (batch, width) float32.
        dataset: with the column `image` (undecoded: bytes or path).

    Raises:
        ValueError: for an empty data set, when more than 1 % of the images do not decode, or when the model's
            results are not finite.
    """
    if not len(dataset):
        raise ValueError("The data set is empty: there is no image to evaluate.")
    image_processor = getattr(processor, "image_processor", processor)
    options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
    read = getattr(image_processor, "read", read_radiograph)  # an image processor of CLIP itself has none

    def read_pixels(image) -> torch.Tensor | ValueError:
        try:
            radiograph = read(image)
        except ValueError as error:
            return error
        return image_processor(images=[radiograph], return_tensors="pt", **options)["pixel_values"]

    results, num_unreadable = [], 0
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(dataset), desc="embedding images", unit="image", delay=3, leave=False, disable=None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, torch.inference_mode(), bar:
        for batch in dataset.select_columns("image").iter(batch_size):
            pixels = list(pool.map(read_pixels, batch["image"]))
            failed = [error for error in pixels if isinstance(error, ValueError)]
            for error in failed:
                logger.warning("Skipped an image. %s", error)
            num_unreadable += len(failed)
            if num_unreadable > MAX_UNREADABLE * len(dataset):
                raise ValueError(
                    f"At least {num_unreadable} of {len(dataset)} images do not decode, more than 1 %: repair or "
                    f"remove them. The last one: {failed[-1]}"
                )
            readable = np.array([not isinstance(error, ValueError) for error in pixels])
            rows = np.full((len(pixels), width), np.nan, dtype=np.float32)
            if readable.any():
                inputs = torch.cat([tensor for tensor in pixels if not isinstance(tensor, ValueError)])
                rows[readable] = compute(inputs.to(model.device))
            results.append(rows)
            bar.update(len(pixels))
    model.train(was_training)
    return np.concatenate(results)


def takes_uint8(model: PreTrainedModel, processor: ProcessorMixin | BaseImageProcessor) -> bool:
    """Whether the model normalises 8-bit pixels itself: the same numbers, a twelfth of the bytes to move."""
    image_processor, config = getattr(processor, "image_processor", processor), model.config
    if not hasattr(config, "pixel_mean") or not hasattr(image_processor, "output_dtype"):
        return False
    same = np.allclose(config.pixel_mean, image_processor.image_mean) and np.allclose(
        config.pixel_std, image_processor.image_std
    )
    resampled_after_normalising = (
        image_processor.geometry == "pad" and image_processor.resize_edge
    )  # CheXzero's pixels
    return same and not resampled_after_normalising


def embed_prompts(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Mapping[str, Prompts], batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative embeddings of each finding, both (findings, dim) float32 and L2-normalised.

    Each sentence is embedded once, normalised, averaged within its ensemble, and the average normalised again
    (TIER, CLIP_Embedding.py:221-232; CheXzero, zero_shot.py:119-124).
    """
    sentences = list(dict.fromkeys(text for prompt in prompts.values() for text in prompt.positive + prompt.negative))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        embeddings = normalize(embed_texts(model, processor.tokenizer, sentences, batch_size))
    model.train(was_training)
    embedding_of = dict(zip(sentences, embeddings, strict=True))

    def average(texts: Sequence[str]) -> np.ndarray:
        mean = np.mean([embedding_of[text] for text in texts], axis=0)
        return mean / np.linalg.norm(mean)

    positive = np.stack([average(prompt.positive) for prompt in prompts.values()])
    negative = np.stack([average(prompt.negative) for prompt in prompts.values()])
    return positive, negative


def normalize(features: torch.Tensor) -> np.ndarray:
    """Features of length 1, as numpy float32. ValueError when some are not finite."""
    features = check_finite(features)
    return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


def check_finite(features: torch.Tensor) -> torch.Tensor:
    """The features as float32. ValueError when some are not finite."""
    features = features.float()
    if not torch.isfinite(features).all():
        raise ValueError("The model's embeddings are not finite: its weights are damaged or the training diverged.")
    return features


def zero_shot_scores(
    image_embeds: np.ndarray, positive: np.ndarray, negative: np.ndarray, scoring: str = "difference"
) -> np.ndarray:
    """Scores, (images, findings) float64; higher means that the finding is more likely.

    Args:
        image_embeds: (images, dim), L2-normalised.
        positive: (findings, dim), L2-normalised.
        negative: likewise.
        scoring: `"difference"`: cosine to the positive minus cosine to the negative prompt, in [-2, 2] (TIER,
            utils.py:376-381); `"softmax"`: e^positive / (e^positive + e^negative) of the raw cosines, without
            logit scale, in [0.12, 0.88] (CheXzero, zero_shot.py:258-261). Both rank one model's images alike;
            averaged over an ensemble they differ.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"The scoring must be one of {', '.join(SCORINGS)}, but is {scoring!r}.")
    # float64: in float32 the sigmoid would merge scores that the difference still tells apart
    difference = image_embeds.astype(np.float64) @ (positive.astype(np.float64) - negative.astype(np.float64)).T
    return difference if scoring == "difference" else 1 / (1 + np.exp(-difference))


def read_labels(dataset: datasets.Dataset, findings: Sequence[str]) -> np.ndarray:
    """The label columns, (images, findings) float64: 1, 0, -1 (uncertain) or NaN (not stated)."""
    columns = [np.array(dataset.with_format(None)[finding][:], dtype=np.float64) for finding in findings]
    return np.stack(columns, axis=1) if columns else np.empty((len(dataset), 0))


def select_findings(
    dataset: datasets.Dataset, asked: Sequence[str] | None = None, min_positives: int = 10
) -> tuple[list[str], dict[str, str]]:
    """The findings to evaluate, and those left out with the reason.

    Args:
        dataset: with one label column per finding.
        asked: names of findings; by default all with at least `min_positives` positives and at least one negative.

    Raises:
        ValueError: for an asked finding that the data set lacks or that lacks a class, or when none is left.
    """
    available = finding_columns(dataset)
    if not available:
        raise ValueError("The data set has no finding column: add one per finding with 1, 0, -1 or an empty cell.")
    for finding in asked or []:
        if finding not in available:
            close = difflib.get_close_matches(finding.lower(), [name.lower() for name in available], n=1)
            hint = [f"did you mean {name!r}? " for name in available if [name.lower()] == close]
            raise ValueError(
                f"The data set has no finding {finding!r}: {''.join(hint)}It has {', '.join(map(repr, available))}."
            )
    labels = read_labels(dataset, available)
    num_positive = dict(zip(available, (labels == 1).sum(axis=0).tolist(), strict=True))
    num_negative = dict(zip(available, (labels == 0).sum(axis=0).tolist(), strict=True))
    counts = ", ".join(f"{name} {num_positive[name]}" for name in available)
    if asked:
        for finding in asked:
            lacking = "positive" if not num_positive[finding] else "negative" if not num_negative[finding] else None
            if lacking:
                raise ValueError(
                    f"The finding {finding!r} has no {lacking} image among the {len(dataset)}: leave it out or choose "
                    f"another split. Positives per finding: {counts}."
                )
            if num_positive[finding] < min_positives:
                logger.warning("%s has only %d positives: its AUROC says little.", finding, num_positive[finding])
        return list(dict.fromkeys(asked)), {}

    left_out = {}
    for finding in available:
        if num_positive[finding] < min_positives:
            left_out[finding] = f"{num_positive[finding]} positive{'' if num_positive[finding] == 1 else 's'}"
        elif not num_negative[finding]:
            left_out[finding] = "no negatives"
    findings = [finding for finding in available if finding not in left_out]
    if not findings:
        raise ValueError(
            f"No finding has {min_positives} positives and a negative among the {len(dataset)} images: lower "
            f"--min_positives or use more images. Positives per finding: {counts}."
        )
    return findings, left_out


def select_learnt_findings(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    asked: Sequence[str] | None,
    min_positives: int,
) -> tuple[list[str], dict[str, str]]:
    """What `select_findings` gives, of the findings that all of these classifiers know.

    Raises:
        ValueError: as `select_findings`, and for a model that is no classifier or an asked finding that one lacks.
    """
    known = set(finding_columns(dataset))
    for name, (model, _) in models.items():
        if not is_classifier(model):
            raise ValueError(f"{name} is no classifier, and has no score in common with one: evaluate it by itself.")
        learnt = model.config.label2id
        for finding in asked or []:
            if finding not in learnt:
                raise ValueError(f"The classifier {name} never learnt {finding!r}: it knows {', '.join(learnt)}.")
        known &= set(learnt)
    unknown = [finding for finding in finding_columns(dataset) if finding not in known]
    if not known:
        raise ValueError(f"The classifier knows none of the data set's findings, which are {', '.join(unknown)}.")
    findings, left_out = select_findings(dataset.remove_columns(unknown), asked, min_positives)
    return findings, left_out | dict.fromkeys(unknown, "never learnt")


def check_members_differ(models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]]) -> None:
    """Refuse an ensemble in which two members have the same weights.

    TIER's loader filled every member of its ensembles with the first checkpoint (CLIP_Embedding.py:194-203), and
    nothing told: the average of copies looks like an ensemble and is none.
    """
    for (first_name, (first, _)), (second_name, (second, _)) in combinations(models.items(), 2):
        first_weights, second_weights = first.state_dict(), second.state_dict()
        if first_weights.keys() == second_weights.keys() and all(
            torch.equal(tensor, second_weights[key].to(tensor.device)) for key, tensor in first_weights.items()
        ):
            raise ValueError(
                f"{first_name} and {second_name} have identical weights: an ensemble needs models that differ."
            )


def zero_shot_auroc(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    prompts: Mapping[str, Prompts],
    scoring: str = "difference",
    batch_size: int = 32,
) -> dict[str, float]:
    """AUROC of each finding and their `"mean"`, without intervals: cheap enough to call during training.

    NaN for a finding that lacks a class; the mean leaves it out. The model returns to the mode it was in.
    """
    image_embeds = embed_images(model, processor, dataset, batch_size)
    positive, negative = embed_prompts(model, processor, {finding: prompts[finding] for finding in findings})
    readable = ~np.isnan(image_embeds).any(axis=1)
    scores = zero_shot_scores(image_embeds[readable], positive, negative, scoring)
    labels = read_labels(dataset, findings)[readable]
    aurocs = {finding: auroc(labels[:, i], scores[:, i]) for i, finding in enumerate(findings)}
    return {**aurocs, "mean": nanmean(aurocs.values())}


def evaluate_zero_shot(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    findings: Sequence[str] | None = None,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    scoring: str = "difference",
    min_positives: int = 10,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    threshold_dataset: datasets.Dataset | None = None,
    dataset_name: str = "",
) -> tuple[dict, pd.DataFrame]:
    """Evaluate one model, or the averaged scores of several, on a data set in the schema of `records.py`.

    Args:
        models: name to (model, processor), as `load_model` gives them: models of images and texts, or classifiers,
            whose scores are their logits.
        dataset: the images, their patients and one label column per finding.
        findings: see `select_findings`; of classifiers, those that all of them know.
        prompts: name or path of a prompt file (see `processing_tier.prompts`), or the prompts themselves. Classifiers
            need none.
        scoring: see `zero_shot_scores`; an ensemble's score is the mean over its members.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`.
        threshold_dataset: where the thresholds of MCC and F1 are chosen (by the highest MCC) and `scale` and `bias`
            are fitted; by default the evaluated images themselves, which flatters MCC and F1, and the protocol says
            so. sigmoid(scale * difference + bias), of the difference of the cosines whatever the scoring, is a
            probability on images like these (see `fit_calibration`).
        dataset_name: what the results call the data.

    Returns:
        The metrics (the layout of `metrics.json`, see `report.py`; undefined numbers are NaN), and the predictions:
        one row per evaluated image with `image_id`, `patient_id`, `score_<finding>` and `label_<finding>`, indexed
        by the image's row in `dataset`.
    """
    check_members_differ(models)
    if n_bootstrap < 1:
        raise ValueError(f"The number of bootstrap resamples must be at least 1, but is {n_bootstrap}.")
    if any(is_classifier(model) for model, _ in models.values()):
        findings, left_out = select_learnt_findings(models, dataset, findings, min_positives)
        if scoring != SCORINGS[0]:
            logger.warning("The scoring %r has no effect on classifiers, which score by their logits.", scoring)
        scoring, prompts_name, prompts = "logit", "none (trained heads)", dict.fromkeys(findings)
    else:
        findings, left_out = select_findings(dataset, findings, min_positives)
        prompts_name = "given sentences" if isinstance(prompts, Mapping) else Path(prompts).stem
        if not isinstance(prompts, Mapping):
            prompts = load_prompts(prompts, findings)
    lacking = [finding for finding in findings if finding not in prompts]
    if lacking:
        raise ValueError(f"There are no prompts for {lacking[0]!r}: add sentences for it or leave the finding out.")
    prompts = {finding: prompts[finding] for finding in findings}

    scores = score_images(models, dataset, prompts, scoring, batch_size)
    labels = read_labels(dataset, findings)
    readable = ~np.isnan(scores).any(axis=1)
    image_ids, patient_ids = np.array(dataset["image_id"][:]), np.array(dataset["patient_id"][:]).astype(str)
    skipped = image_ids[~readable].tolist()
    scores, labels = scores[readable], labels[readable]
    image_ids, patient_ids = image_ids[readable], patient_ids[readable]

    threshold_scores, threshold_labels, threshold_source = scores, labels, "the evaluated images (optimistic)"
    if threshold_dataset is not None:
        missing = [finding for finding in findings if finding not in threshold_dataset.column_names]
        if missing:
            raise ValueError(f"The split that chooses the thresholds has no column {missing[0]!r}.")
        threshold_scores = score_images(models, threshold_dataset, prompts, scoring, batch_size)
        usable = ~np.isnan(threshold_scores).any(axis=1)
        threshold_scores = threshold_scores[usable]
        threshold_labels = read_labels(threshold_dataset, findings)[usable]
        threshold_source = "a split apart"

    threshold_differences = threshold_scores
    if scoring == "softmax":
        threshold_differences = np.log(threshold_scores) - np.log1p(-threshold_scores)

    bootstrap = bootstrap_auroc(labels, scores, patient_ids, n_bootstrap, seed)
    results = {}
    for i, finding in enumerate(findings):
        threshold = best_threshold(threshold_labels[:, i], threshold_scores[:, i])
        scale, bias = fit_calibration(threshold_labels[:, i], threshold_differences[:, i])
        num_positive, num_negative = int((labels[:, i] == 1).sum()), int((labels[:, i] == 0).sum())
        results[finding] = {
            "auroc": auroc(labels[:, i], scores[:, i]),
            "auroc_ci95": bootstrap.interval[i].tolist(),
            "auprc": auprc(labels[:, i], scores[:, i]),
            "mcc": mcc(labels[:, i], scores[:, i], threshold),
            "f1": f1(labels[:, i], scores[:, i], threshold),
            "threshold": threshold,
            "scale": scale,
            "bias": bias,
            "n_positive": num_positive,
            "n_negative": num_negative,
            "n_excluded": len(labels) - num_positive - num_negative,
        }
    mean = {key: nanmean(result[key] for result in results.values()) for key in ("auroc", "auprc", "mcc", "f1")}
    metrics = {
        "dataset": dataset_name,
        "protocol": {
            "prompts": prompts_name,
            "scoring": scoring,
            "thresholds": f"highest MCC on {threshold_source}",
            "intervals": "95 % percentile bootstrap over patients",
            "n_bootstrap": n_bootstrap,
            "seed": seed,
            "n_patients": len(set(patient_ids.tolist())),
            "min_positives": min_positives,
            "findings_left_out": left_out,
            "resamples_dropped": dict(zip(findings, bootstrap.num_dropped.tolist(), strict=True)),
            "images_skipped": skipped,
        },
        "n_images": len(labels),
        "models": list(models),
        "findings": results,
        "mean": {"auroc": mean.pop("auroc"), "auroc_ci95": bootstrap.mean_interval.tolist(), **mean},
        "versions": installed_versions(),
    }
    predictions = pd.DataFrame({"image_id": image_ids, "patient_id": patient_ids}, index=np.flatnonzero(readable))
    for i, finding in enumerate(findings):
        predictions[f"score_{finding}"] = scores[:, i]
    for i, finding in enumerate(findings):
        predictions[f"label_{finding}"] = labels[:, i]
    return metrics, predictions


def score_images(
    models: Mapping[str, tuple[PreTrainedModel, ProcessorMixin]],
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    scoring: str,
    batch_size: int,
) -> np.ndarray:
    """Scores averaged over the models, (images, findings); NaN rows for images that do not decode."""
    members = [
        classify_images(model, processor, dataset, list(prompts), batch_size).astype(np.float64)
        if is_classifier(model)
        else zero_shot_scores(
            embed_images(model, processor, dataset, batch_size), *embed_prompts(model, processor, prompts), scoring
        )
        for model, processor in models.values()
    ]
    return np.mean(members, axis=0)


def nanmean(values) -> float:
    """Mean of the values that are not NaN; NaN, without a warning, when there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
