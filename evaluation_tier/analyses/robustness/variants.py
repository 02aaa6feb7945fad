"""Mirrored, degraded and empty images: how they are made, embedded and compared."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.robustness.intervals import resampled_aurocs, with_interval
from evaluation_tier.models.contract import to_unit_length
from evaluation_tier.models.embedding import Embedders, Outputs
from evaluation_tier.models.grey_levels import GreyLevels
from evaluation_tier.models.images import Batch
from evaluation_tier.models.processes import merge_entries
from evaluation_tier.models.single_pass import ImageRows
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

ORIGINAL, MIRRORED, GREY_LEVELS = "original", "mirrored", "grey levels"

CODE = sha256(Path(__file__).read_bytes()).hexdigest()  # in the key of the cache: how the variants are made


class VariantEmbeddings:
    """
    One model's embeddings of a data set's images, of their mirror images and of their degradations: a [`Consumer`] of
    its pass.

    The degradation changes the model's input after resizing, in 256 grey levels. It does not depend on the size of the
    files, and is stronger than the same quality of a large file.

    Args:
        model: of images and texts.
        processor: the model's.
        num_images: of the data set.
        seed: of the noise image.

    Attributes:
        images: by "original", "mirrored" and the names of `DEGRADATIONS`, (images, dim) float32, L2-normalised; NaN
            for an image that does not decode.
        empty: likewise of images that show nothing, (dim,).
    """

    rows: np.ndarray | None = None
    patches = False

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, num_images: int, seed: int):
        self.grey_levels = GreyLevels(model, processor)
        self.model: PreTrainedModel | None = model  # until the pass is over
        self.seed = seed
        self.stores = {name: ImageRows(num_images) for name in (ORIGINAL, MIRRORED, *DEGRADATIONS)}
        self.total: np.ndarray | None = None  # sum of the grey levels of the images, (height, width)
        self.count = 0
        self.embedders: Embedders = {f"variants {CODE}": self.embed_variants}

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return to_unit_length(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def embed_variants(self, batch: Batch) -> Outputs:
        """All but the originals, by name, and the grey levels (batch, height, width) that they are made of."""
        pixels: torch.Tensor = batch.pixels
        with torch.inference_mode():
            levels = self.grey_levels.of_pixels(pixels)  # (batch, height, width)
            pictures = [Image.fromarray(image) for image in levels.cpu().numpy()]
            outputs = {MIRRORED: self.embed(pixels.flip(-1)), GREY_LEVELS: levels}
            for name, degrade in DEGRADATIONS.items():
                outputs[name] = self.embed(self.grey_levels.to_pixels([degrade(picture) for picture in pictures]))
        return outputs

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        for name, store in self.stores.items():
            store.put(rows, outputs["image" if name == ORIGINAL else name])
        levels = outputs[GREY_LEVELS].cpu().numpy().sum(axis=0, dtype=np.float64)  # whole numbers: no rounding
        self.total = levels if self.total is None else self.total + levels
        self.count += len(rows)

    def finish(self, own: np.ndarray) -> None:
        shares = merge_entries({} if self.total is None else {int(own[0]): (self.total, self.count)}).values()
        mean = (sum(total for total, _ in shares) / sum(count for _, count in shares)).round().astype(np.uint8)
        empty = {
            "black": np.zeros_like(mean),
            "grey": np.full_like(mean, round(float(mean.mean()))),
            "white": np.full_like(mean, 255),
            "noise": np.random.default_rng(self.seed).integers(256, size=mean.shape, dtype=np.uint8),
            "mean image": mean,
        }
        embeds = self.embed(self.grey_levels.to_pixels(list(empty.values()))).cpu().numpy()
        self.empty = dict(zip(empty, embeds, strict=True))
        self.images = {name: store.merge(own) for name, store in self.stores.items()}
        self.stores, self.embedders, self.model = {}, {}, None


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
