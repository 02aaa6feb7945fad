"""
The scores of the pipeline `cxr-zero-shot-classification` for models that it does not take: those that only the
contract of an evaluation (`evaluation_tier/models/contract.py`) knows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn, cast

import torch
from PIL import Image
from torch.utils.data import Dataset

from evaluation_tier.models.contract import EvaluatedModel, MappedModel
from evaluation_tier.models.embedding import embed_pixels
from evaluation_tier.models.families import check_level, family_of, has_own_maps, has_patches, own_level
from evaluation_tier.models.images import stack_pixels
from evaluation_tier.scoring.image_scores import Differences
from modeling_tier import HeatMap
from modeling_tier.findings_tier import report_calibration, resolve_findings
from modeling_tier.heat_map_tier import Picture
from modeling_tier.maps_tier import cosine_map
from modeling_tier.pipeline_images_tier import ON_ERROR, is_one_image, picture_source, read_picture
from processing_tier.prompts.loader import Prompts


class FamilyReader:
    """The `read` that `read_picture` asks an image processor for, by the model's own reading of files."""

    def __init__(self, family: EvaluatedModel):
        self.family = family

    def read(self, image: Any, timeout: float | None = None) -> Image.Image:
        picture = self.family.read_image(image)
        picture.info.setdefault("original_size", picture.size)
        return picture


class ContractPipeline:
    """
    Any model of images and texts that [`load_model`] gives, called as [`CxrZeroShotClassificationPipeline`] is.

    A score is that pipeline's: `sigmoid(scale * difference + bias)`, where the difference is that of the cosines, or
    of the similarity that the model has of its own. Heat-maps are differences of the cosines of the patches, for
    models that say where their patches lie in the picture.

    Args:
        model: of images and texts, with its processor: see [`family_of`].
        processor: None for a model that meets the contract itself.
        stored: findings of the model's configuration, with their sentences, thresholds and calibration.
    """

    def __init__(self, model: Any, processor: Any = None, stored: Mapping[str, dict] | None = None):
        self.model, self.processor, self.stored = model, processor, dict(stored or {})
        self.family = family_of(model, processor)
        self.image_processor = FamilyReader(self.family)
        self.known: tuple[dict[str, Prompts], Differences] | None = None  # of the last sentences

    def __call__(
        self,
        images: Any,
        findings: str | Sequence[str] | Mapping[str, Mapping] | None = None,
        return_heatmaps: bool = False,
        on_error: str = "raise",
        batch_size: int = 1,
    ) -> Any:
        """
        Scores the findings on each image.

        Args:
            images: one image (a path, bytes, an open file, a PIL image, an array) or several. A list gives a list of
                results; a data set of torch and an iterator give an iterator over the results. URLs are not fetched.
            findings: as in a call of the pipeline.
            return_heatmaps: whether to add a [`HeatMap`] to each finding.
            on_error: `"raise"`, or `"skip"`, which returns `{"error": reason}` in place of a bad image.
            batch_size: images embedded at once.

        Returns:
            For each image a list of `label`, `score`, `calibrated`, and where they apply `threshold`, `present` and
            `heatmap`, in the order of the findings.

        Raises:
            ValueError: as the pipeline, and as the methods of the model say.
        """
        if on_error not in ON_ERROR or return_heatmaps not in (False, True):
            raise ValueError(
                f"on_error must be one of {', '.join(map(repr, ON_ERROR))} and return_heatmaps False or True, not "
                f"{on_error!r} and {return_heatmaps!r}."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size!r}.")
        if return_heatmaps:
            self.check_gives_maps()
        resolved = self.resolve_findings(findings)
        is_one = is_one_image(images) and not isinstance(images, Dataset)
        entries = self.entries([images] if is_one else images, is_one)
        results = self.score(entries, resolved, return_heatmaps, on_error, batch_size)
        if is_one:
            return next(results)
        return results if isinstance(images, (Iterator, Dataset)) else list(results)

    @staticmethod
    def entries(images: Any, is_one: bool) -> Iterator[Any]:
        """The images as `read_picture` takes them; of several, each has its place in messages."""
        if is_one or isinstance(images, Dataset):  # a data set names its files
            yield from (images[i] for i in range(len(images)))
            return
        total = f" of {len(images)}" if hasattr(images, "__len__") else ""
        for i, image in enumerate(images, 1):
            yield {"image": image, "place": f"image {i}{total}"}

    def resolve_findings(self, findings: str | Sequence[str] | Mapping[str, Mapping] | None = None) -> dict[str, dict]:
        """The entries that `findings` of a call stands for; see [`findings_tier.resolve_findings`]."""
        resolved = resolve_findings(findings, self.stored, own_level(self.model))
        for name, entry in resolved.items():
            check_level(f"The score_level {entry['score_level']!r} of {name!r}", self.model, entry["score_level"])
        report_calibration(resolved)
        return resolved

    def check_gives_maps(self) -> None:
        """ValueError for a model without heat-maps."""
        if not has_own_maps(self.model):
            raise ValueError(f"{type(self.model).__name__} does not give heat-maps.")

    def word_maps(self, image: Any, text: str | Sequence[str]) -> NoReturn:
        """ValueError: the contract of a model does not show its words."""
        raise ValueError(f"{type(self.model).__name__} does not give maps of words.")

    def score(
        self,
        entries: Iterable[Any],
        findings: Mapping[str, Mapping],
        return_heatmaps: bool,
        on_error: str,
        batch_size: int,
    ) -> Iterator[list[dict[str, Any]] | dict[str, str]]:
        """The result of each image, in order."""
        entries = iter(entries)
        patches = has_patches(self.model)  # as in an evaluation, whether the findings ask for them or not
        differences = self.differences_of(findings)
        reader = self.image_processor
        while batch := [read_picture(reader, entry, None, on_error) for entry in islice(entries, batch_size)]:
            pixels = [self.family.preprocess(picture) for _, picture, _ in batch]
            with torch.inference_mode():
                outputs = embed_pixels(self.model, stack_pixels(pixels, self.family.device), patches)
                levels = differences.of(outputs)
            for i, (image, picture, error) in enumerate(batch):
                if error is not None:
                    yield {"error": error}
                    continue
                results = []
                for j, (label, entry) in enumerate(findings.items()):
                    difference = float(levels[entry["score_level"]][i, j])
                    results.append({"label": label, **judge(difference, entry)})
                if return_heatmaps:
                    maps = self.make_maps(differences, outputs["patches"][i])
                    width, height = picture.info["original_size"]
                    heatmaps = self.heat_maps(maps, (height, width), picture_source(image, picture))
                    for result, heatmap in zip(results, heatmaps, strict=True):
                        result["heatmap"] = heatmap
                yield results

    def differences_of(self, findings: Mapping[str, Mapping]) -> Differences:
        """The sentences of the findings, embedded; those of the last call are kept."""
        prompts = {name: Prompts(entry["positive"], entry["negative"]) for name, entry in findings.items()}
        if self.known is None or self.known[0] != prompts:
            with torch.inference_mode():
                self.known = prompts, Differences(self.model, self.processor, prompts)
        return self.known[1]

    def make_maps(self, differences: Differences, patches: torch.Tensor) -> torch.Tensor:
        """The difference of the cosines of each patch (patches, dim) of an image, (findings, rows, columns)."""
        grid = patches.unflatten(0, (math.isqrt(len(patches)), -1))[None]
        positive, negative = (
            cosine_map(torch.from_numpy(side).to(patches.device), grid)[0]
            for side in (differences.positive, differences.negative)
        )
        return (positive - negative).cpu()

    def heat_maps(self, maps: torch.Tensor, size: tuple[int, int], source: Any) -> list[HeatMap]:
        """The heat-maps of one image of (height, width), from its maps (findings, rows, columns); see the pipeline."""
        mapped = cast(MappedModel, self.model)
        picture = Picture(source, mapped.map_processor)
        return [HeatMap(grid, size, mapped.patch_centers, picture) for grid in maps]


def judge(difference: float, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Score and verdict of a finding, as [`CxrZeroShotClassificationPipeline`] makes them of a difference."""
    logit = entry.get("scale", 1.0) * difference + entry.get("bias", 0.0)
    told: dict[str, Any] = {"score": 0.5 * (1 + math.tanh(logit / 2)), "calibrated": "scale" in entry}
    if "threshold" in entry:
        told |= {"threshold": entry["threshold"], "present": told["score"] >= entry["threshold"]}
    return told
