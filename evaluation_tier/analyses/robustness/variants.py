"""Mirrored, degraded and empty images: how they are made, embedded and compared."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.robustness.resampling import resampled_aurocs, with_interval
from evaluation_tier.models.embedding import normalize, read_batches, takes_uint8
from evaluation_tier.statistics.metrics import best_threshold

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
