"""The pipeline `cxr-zero-shot-classification`: findings of chest radiographs from sentences alone."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Pipeline, PreTrainedModel
from transformers.utils import logging

from .encoding_tier import EncodingMixin
from .findings_tier import SIDES, report_calibration, resolve_findings
from .heat_map_tier import HeatMap, Picture, to_lists
from .maps_tier import cosine_map, map_kinds, mean_direction, similarity_map
from .pipeline_images_tier import ON_ERROR, is_one_image, picture_source, read_picture
from .score_levels_tier import LEVELS, default_level, level_differences, pool_patches
from .texts_tier import (
    check_family,
    check_tokenizer,
    embed_texts,
    is_padded_to_the_end,
    model_inputs,
    text_tower_state,
    tokenize,
    word_positions,
)

logger = logging.get_logger(__name__)

TASK = "cxr-zero-shot-classification"
OPTIONS = ("findings", "return_heatmaps", "timeout", "on_error")
RETURN_HEATMAPS = (False, True, "lists")
ANY_MODEL = "evaluation_tier.predict.loading.load_pipeline of tier-clip scores any model in the same way."
MAX_CACHED_TEXTS = 4096


class CxrZeroShotClassificationPipeline(EncodingMixin, Pipeline):
    """
    Scores findings on chest radiographs. The score of a finding says how much closer the image is to sentences with
    the finding than to sentences without it:

    ```python
    >>> pipe = pipeline("cxr-zero-shot-classification", model=folder, trust_remote_code=True)
    >>> pipe("chest.dcm", findings=["Pleural Effusion", "Cardiomegaly"])
    [{'label': 'Pleural Effusion', 'score': 0.81, 'calibrated': True, 'threshold': 0.4, 'present': True}, ...]
    ```

    A score is `sigmoid(scale * (cosine to the positive sentences - cosine to the negative ones) + bias)`: the softmax
    over the two, with the scale and bias in the model's configuration. A finding without them gets 1 and 0; such
    scores are CheXzero's (zero_shot.py:258-261). They rank images and lie near 0.5, but they are not probabilities.
    The sentences of a side form one ensemble: embedded, normalised, averaged, normalised again.

    The `score_level` of a finding says whose cosines these are: those of the whole image, or of its patches, pooled
    into one number (see `score_levels_tier.py`). A finding that the configuration does not hold has the model's
    `default_level`, as in the evaluation's default protocol.

    Args:
        model ([`TierCLIPModel`], [`TierSiglipModel`], [`TierDualEncoderModel`], [`CLIPModel`] or [`SiglipModel`]):
            The model; the last two give no heat-maps.
        tokenizer: Its tokenizer.
        image_processor ([`TierImageProcessor`]): Reads the images, and maps heat-maps to their pixels.
        processor ([`TierProcessor`], *optional*): Both, in place of the two.
    """

    # None: load each one that exists, so that a processor suffices, or its two parts.
    _load_processor = None
    _load_image_processor = None
    _load_tokenizer = None
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if not hasattr(model, "config"):
            raise ValueError(
                f"The pipeline {TASK} takes models of transformers, not a {type(model).__name__}. {ANY_MODEL}"
            )
        device_map = getattr(model, "hf_device_map", None)
        if device_map:  # the base class moves inputs to the first module's place, and "disk" is not a device
            model.hf_device_map = {"": next((place for place in device_map.values() if place != "disk"), "cpu")}
        super().__init__(model=model, **kwargs)
        if device_map:
            model.hf_device_map = device_map
        if self.tokenizer is None or not hasattr(self.image_processor, "read"):
            raise ValueError(
                f"The pipeline {TASK} needs a tokenizer and a TierImageProcessor, not {type(self.tokenizer).__name__} "
                f"and {type(self.image_processor).__name__}: save a TierProcessor with the model, or pass processor=. "
                f"{ANY_MODEL}"
            )
        if getattr(self.model, "_hf_peft_config_loaded", False):  # from a folder with an adapter, or by `load_adapter`
            raise ValueError(
                "The model has a LoRA adapter, but its calibration was measured without it. Merge the adapter "
                "(peft's merge_and_unload, then save_pretrained), and pass the folder of the merged model."
            )
        check_family(self.model.config)
        if is_padded_to_the_end(self.model.config):
            check_tokenizer(self.model.config, self.tokenizer)
        if not hasattr(self.model, "get_text_features") or not hasattr(self.model, "get_image_features"):
            raise ValueError(
                f"A {type(self.model).__name__} does not embed images and texts in one space. Use a TIER model."
            )
        self._text_cache: dict[str, torch.Tensor] = {}  # sentence to embedding (dim,)
        self._text_cache_key: tuple | None = None

    def __call__(
        self, images: Any, findings: str | Sequence[str] | Mapping[str, Mapping] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        Scores the findings on each image.

        Args:
            images:
                One image: a path or an `http(s)://` URL of a file (PNG, JPEG, TIFF, DICOM, ...), its bytes, an open
                file, a PIL image, an array `(height, width[, 1 | 3 | 4])`, or an undecoded image of `datasets`. Or
                several: a list, tuple, deque, data set or a column of one gives a list of results. A generator or
                another iterator, a streamed data set and one of torch give an iterator over the results, and images
                are read one by one. A record with the key `"image"` counts as that image.
            findings (`str`, `list[str]` or `dict[str, dict]`, *optional*):
                Names, or names with their own sentences, `{"Edema": {"positive": ["Edema."], "negative": ["Dry."]}}`.
                A side may be one sentence, and `"threshold"`, `"scale"` and `"bias"` are allowed as well, with the
                `"score_level"` at which they were measured. A name alone is looked up, ignoring case, in
                `zero_shot_findings` of the model's configuration. A finding that is missing there, or a missing side,
                gets the sentences `"{}."` and `"No {}."`. By default all findings of the configuration, in
                alphabetical order.
            return_heatmaps (`bool` or `"lists"`, *optional*, defaults to `False`):
                Whether to add maps of where the image resembles the positive sentences more than the negative ones.
                `"lists"` gives each pixel of the original as a number in lists of lists, which takes much memory.
            on_error (`str`, *optional*, defaults to `"raise"`):
                What to do with an image that cannot be read. `"skip"` returns `{"error": reason}` in its place, logs a
                warning, and scores the others.
            timeout (`float`, *optional*, defaults to 30.0):
                Seconds to wait for a response of a server; `None` waits indefinitely.
            batch_size, num_workers (`int`, *optional*): As in any pipeline.

        Returns:
            `list[dict]`, or a list of them for several images. Each finding, in the order of the request, has:
            `label`; `score` (0..1); `calibrated`, whether the score is a probability, with a scale measured on
            labelled images; if the finding has a threshold, `threshold` and `present` (whether the score reaches it);
            and with `return_heatmaps`, `heatmap`, a [`HeatMap`]: its `array` is float32 `(height, width)` in the
            pixels of the original (upright) image, interpolated between the patches, NaN where the model did not see
            the image; `overlay()` is the picture of both, `to_png()` the same as the bytes of a file. With
            `image_pooling="patch_mean"` a patch's value is its contribution: the values of all patches sum to the
            difference of the cosines of the whole image. Otherwise it is the cosine of the patch with the positive
            sentences minus that with the negative ones, in [-2, 2]. See [`similarity_map`]. With `"lists"`, it is a
            list of rows of numbers, with `None` for NaN. `json.dumps` takes all of it as it is.

        Raises:
            ValueError: An image cannot be read (the message names it and its place among several; then no image of a
                list is scored), a list of findings or sentences is empty, or an option does not exist.
        """
        if findings is not None:
            kwargs["findings"] = findings
        if is_one_image(images) or isinstance(images, torch.utils.data.Dataset):
            return super().__call__(images, **kwargs)
        total = f" of {len(images)}" if hasattr(images, "__len__") else ""
        entries = ({"image": image, "place": f"image {i}{total}"} for i, image in enumerate(images, 1))
        if isinstance(images, Iterator):
            return super().__call__(entries, **kwargs)
        if isinstance(images, (list, tuple)):
            entries = list(entries)
        return list(super().__call__(entries, **kwargs)) if total != " of 0" else []

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options.pop("local_files_only", None)  # `pipeline` passes it on
        for name in options:
            if name not in OPTIONS:
                raise ValueError(
                    f"The pipeline {TASK} has no option {name!r}; its options are {', '.join(OPTIONS)}, batch_size, "
                    "num_workers."
                )
        for name, choices in (("return_heatmaps", RETURN_HEATMAPS), ("on_error", ON_ERROR)):
            if name in options and options[name] not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {options[name]!r}.")
        if options.get("return_heatmaps"):
            self.check_gives_maps()
        preprocess_params: dict[str, Any] = {
            name: options[name] for name in ("timeout", "on_error") if name in options
        }
        forward_params = {name: options[name] for name in ("return_heatmaps",) if name in options}
        preprocess_params |= forward_params
        postprocess_params = (
            {"as_lists": options["return_heatmaps"] == "lists"} if "return_heatmaps" in options else {}
        )
        if options.get("findings") is not None:
            forward_params["findings"] = postprocess_params["findings"] = self.resolve_findings(options["findings"])
        return preprocess_params, forward_params, postprocess_params

    def resolve_findings(self, findings: str | Sequence[str] | Mapping[str, Mapping] | None = None) -> dict[str, dict]:
        """The entries that `findings` of a call stands for; see [`findings_tier.resolve_findings`]."""
        stored = getattr(self.model.config, "zero_shot_findings", None) or {}
        resolved = resolve_findings(findings, stored, default_level(self.model))
        by_patches = [name for name, entry in resolved.items() if entry["score_level"] != LEVELS[0]]
        if by_patches and not hasattr(self.model, "encode_images"):
            raise ValueError(
                f"The finding {by_patches[0]!r} has the score_level {resolved[by_patches[0]]['score_level']!r}, but a "
                f"{type(self.model).__name__} does not embed patches. Use a TIER model."
            )
        report_calibration(resolved)
        return resolved

    def check_gives_maps(self) -> None:
        if not hasattr(self.model, "get_patch_map"):
            raise ValueError(f"A {type(self.model).__name__} does not give heat-maps. Use a TIER model.")

    def preprocess(
        self,
        image: Any,
        timeout: float | None = 30.0,
        on_error: str = "raise",
        return_heatmaps: bool | str = False,
    ) -> dict[str, Any]:
        image, picture, error = read_picture(self.image_processor, image, timeout, on_error)
        width, height = picture.info["original_size"]
        inputs = self.image_processor(images=[picture], output_dtype="float32", return_tensors="pt").to(self.dtype)
        outputs = {"pixel_values": inputs["pixel_values"], "size": (height, width), "error": error}
        return outputs | (
            {"source": picture_source(image, picture)} if return_heatmaps not in (False, "lists") else {}
        )

    def _forward(
        self,
        model_inputs: dict[str, Any],
        findings: dict[str, dict] | None = None,
        return_heatmaps: bool | str = False,
    ) -> dict[str, Any]:
        findings = findings or self.resolve_findings()
        positive, negative = self.embed_findings(findings)  # each (findings, dim)
        levels = [entry["score_level"] for entry in findings.values()]
        by_patches = set(levels) != {LEVELS[0]}
        pixel_values = model_inputs["pixel_values"]
        kind = map_kinds(self.model.config)[0] if return_heatmaps else None
        if kind == "direct":
            image_outputs, patches, direct = self.model.encode_direct(pixel_values)
        elif return_heatmaps or by_patches:
            image_outputs, patches = self.model.encode_images(pixel_values)  # patches (images, rows, columns, dim)
        else:
            image_outputs = self.model.get_image_features(pixel_values=pixel_values)
        features = image_outputs.pooler_output.float()  # (images, dim)
        directions = (positive - negative).to(features.device)  # with device_map, each tower may have its own
        differences = F.normalize(features, dim=-1) @ directions.T  # (images, findings)
        if by_patches:
            embeds = F.normalize(patches.to(features.device).float().flatten(1, 2), dim=-1)
            of_level = level_differences(differences, pool_patches(embeds, directions))
            differences = torch.stack([of_level[level][:, i] for i, level in enumerate(levels)], dim=1)
        if not differences.isfinite().all():
            raise ValueError(
                "The model's embeddings are not finite: its weights are damaged, or its training diverged."
            )
        outputs: dict[str, Any] = {
            name: model_inputs[name] for name in ("size", "error", "source") if name in model_inputs
        }
        outputs["differences"] = differences
        # The difference, as the score: on 368 masks of the phantom the AUROC of the pixels of cosine maps, averaged
        # over 8 findings, was 0.83 this way and 0.58 with the positive sentences alone.
        if kind == "direct":
            outputs["maps"] = cosine_map(directions, direct.to(directions.device))
        elif kind is not None:
            outputs["maps"] = similarity_map(positive, patches, kind) - similarity_map(negative, patches, kind)
        return outputs

    def postprocess(
        self, model_outputs: dict[str, Any], findings: dict[str, dict] | None = None, as_lists: bool = False
    ) -> list[dict] | dict[str, str]:
        if model_outputs["error"] is not None:
            return {"error": model_outputs["error"]}
        heatmaps: Sequence | None = None
        if as_lists:
            heatmaps = [*map(to_lists, self.to_pixels(model_outputs["maps"], model_outputs["size"]))]
        elif "maps" in model_outputs:
            heatmaps = self.heat_maps(model_outputs["maps"][0], model_outputs["size"], model_outputs["source"])
        results = []
        for i, (label, entry) in enumerate((findings or self.resolve_findings()).items()):
            logit = entry.get("scale", 1.0) * model_outputs["differences"][0, i].item() + entry.get("bias", 0.0)
            result = {"label": label, "score": 0.5 * (1 + math.tanh(logit / 2))}  # the sigmoid, which cannot overflow
            result["calibrated"] = "scale" in entry
            if "threshold" in entry:
                result |= {"threshold": entry["threshold"], "present": result["score"] >= entry["threshold"]}
            if heatmaps is not None:
                result["heatmap"] = heatmaps[i]
            results.append(result)
        return results

    def heat_maps(self, maps: torch.Tensor, size: tuple[int, int], source: Any) -> list[HeatMap]:
        """
        The heat-maps of one image from its maps on the grid of patches.

        Args:
            maps (`torch.Tensor` of shape `(texts, rows, columns)`): Such as the `patches` of heat-maps, stacked.
            size (`tuple[int, int]`): (height, width) of the original image.
            source: The image, which [`HeatMap.overlay`] draws: a path, the bytes of a file, or a picture.
        """
        picture = Picture(source, self.image_processor)
        return [HeatMap(grid, size, self.model.patch_centers, picture) for grid in maps]

    def to_pixels(self, maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        """The maps (1, texts, rows, columns) of one image in the pixels of its original of (height, width)."""
        post_process = self.image_processor.post_process_similarity_map
        return post_process(maps, [size], self.model.patch_centers)[0].numpy()

    def word_maps(self, image: Any, text: str | Sequence[str], timeout: float | None = 30.0) -> list[Any]:
        """
        Where the model sees each word of a text: `get_similarity_map(per_token=True)` of the same kind as the
        heat-maps, averaged over the tokens of each word. It is the map of the word in its context, not the share that
        the word has in the map of the text; see [`get_similarity_map`] for what trains it.

        Args:
            image: One image, as in a call.
            text (`str` or `Sequence[str]`):
                For example a sentence of a report, or several, for which the image is read and embedded once. A text
                longer than the model's limit is truncated.
            timeout (`float`, *optional*, defaults to 30.0): As in a call.

        Returns:
            `list[dict]`, or a list of them for several texts: for each word and punctuation mark, in order, `word` and
            `heatmap` (a [`HeatMap`]).

        Raises:
            ValueError: The image cannot be read, the text does not hold a word, or the model is not a TIER model.
        """
        self.check_gives_maps()
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            return []
        tokens = tokenize(self.model, self.tokenizer, texts)
        if not tokens.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not say which tokens make a word; no maps of words."
            )
        words = [word_positions(tokens.word_ids(row)) for row in range(len(texts))]
        if not all(words):
            raise ValueError("The text does not hold a word; pass a sentence.")
        inputs = self.preprocess(image, timeout, return_heatmaps=True)
        with torch.no_grad():
            maps = self.model.get_similarity_map(
                **model_inputs(tokens, self.device),
                pixel_values=inputs["pixel_values"].to(self.device),
                per_token=True,
                kind=map_kinds(self.model.config)[0],
            )[0].cpu()  # (texts, tokens, rows, columns)
        results = []
        for row, positions in enumerate(words):
            of_words = torch.stack([maps[row, tokens_of].mean(dim=0) for tokens_of in positions.values()])
            heatmaps = self.heat_maps(of_words, inputs["size"], inputs["source"])
            spans = [tokens.word_to_chars(row, word) for word in positions]
            told = zip(spans, heatmaps, strict=True)
            results.append([{"word": texts[row][start:end], "heatmap": heatmap} for (start, end), heatmap in told])
        return results[0] if isinstance(text, str) else results

    def embed_findings(self, findings: dict[str, dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Positive and negative embeddings of each finding, both `(findings, dim)` and L2-normalised.

        Embeddings of up to 4,096 sentences are kept until the text tower changes.
        """
        texts = list(dict.fromkeys(text for entry in findings.values() for side in SIDES for text in entry[side]))
        key = (self.model, self.tokenizer, self.device, text_tower_state(self.model))
        if key != self._text_cache_key or key[-1] is None:
            self._text_cache, self._text_cache_key = {}, key
        cache = self._text_cache
        missing = [text for text in texts if text not in cache]
        if missing:
            cache.update(zip(missing, embed_texts(self.model, self.tokenizer, missing), strict=True))
        embedding_of = {text: cache[text] for text in texts}
        while len(cache) > MAX_CACHED_TEXTS:
            cache.pop(next(iter(cache)))  # the oldest

        def average(side: str) -> torch.Tensor:
            sentences = [torch.stack([embedding_of[text] for text in entry[side]]) for entry in findings.values()]
            return torch.stack([mean_direction(embeds) for embeds in sentences])

        return average("positive"), average("negative")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model, its code, the processor, and the configuration, which names this pipeline."""
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.image_processor, self.processor.tokenizer = self.image_processor, self.tokenizer
            self.processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> str:
        """Uploads as [`Pipeline.push_to_hub`] does, but to a private repository by default."""
        return super().push_to_hub(repo_id, private=private, **kwargs)


def custom_pipelines() -> dict[str, dict]:
    """The entry in a model's configuration by which `pipeline(model=<folder>)` finds this pipeline."""
    pipeline_class = CxrZeroShotClassificationPipeline
    implementation = f"{pipeline_class.__module__.split('.')[-1]}.{pipeline_class.__name__}"
    return {TASK: {"impl": implementation, "pt": ["AutoModel"]}}


__all__ = ["CxrZeroShotClassificationPipeline"]
