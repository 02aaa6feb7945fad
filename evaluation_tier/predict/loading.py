"""Loads any model for predictions: `load_pipeline`, which `tier-predict` and every page that shows predictions use."""

from pathlib import Path
from typing import TypeAlias

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.clip import ClipFamily
from evaluation_tier.models.families import family_of
from evaluation_tier.models.loading import choose_device, is_classifier, is_exported, load_model, read_config
from evaluation_tier.models.openclip import folder_of_file
from evaluation_tier.predict.contract_pipeline import ContractPipeline
from modeling_tier import CxrZeroShotClassificationPipeline
from processing_tier import TierImageProcessor

Pipeline: TypeAlias = CxrZeroShotClassificationPipeline | ContractPipeline


def load_pipeline(
    name: str | Path, device: str | None = None, trust_remote_code: bool = False, backend: str | None = None
) -> Pipeline:
    """
    Any model of images and texts that an evaluation takes, ready to score findings on images.

    ```python
    >>> pipe = load_pipeline("radzero-folder")
    >>> pipe("chest.dcm", ["Pleural Effusion", "Cardiomegaly"], return_heatmaps=True)
    [{'label': 'Pleural Effusion', 'score': 0.51, 'calibrated': False, 'heatmap': {...}}, ...]
    ```

    Args:
        name: a folder; the file of weights of an OpenCLIP folder; a name on the Hub (`owner/name` or
            `owner/name@revision`); or `AdapterName("my_file.py:make")`, whose file runs.
        device: by default a GPU if there is one.
        trust_remote_code: see [`load_model`]; so is `backend`.

    Returns:
        The pipeline `cxr-zero-shot-classification` of TIER, CLIP, SigLIP and exported models. For all others
        [`ContractPipeline`], which is called in the same way and returns the same.

    Raises:
        ValueError: the model does not load, or it is a classifier.
    """
    name = folder_of_file(name)
    model, processor = load_model(name, choose_device(device), trust_remote_code, backend)
    if is_classifier(model):
        raise ValueError(
            f"The model {name} is a {type(model).__name__}, which scores the findings that it was trained on and not "
            "sentences: evaluate it on labelled data with tier-eval, or name a model of images and texts."
        )
    image_processor = getattr(processor, "image_processor", None)
    if type(family_of(model, processor)) is ClipFamily:
        try:
            if not hasattr(image_processor, "read"):  # CLIP's own does not read files
                image_processor = TierImageProcessor.from_clip(image_processor)
        except ValueError:  # it does not make squares, or is of another class
            return ContractPipeline(model, processor, stored_findings(name))
        return CxrZeroShotClassificationPipeline(
            model, tokenizer=processor.tokenizer, image_processor=image_processor, device=model.device
        )
    return ContractPipeline(model, processor, stored_findings(name))


def stored_findings(name: str | Path) -> dict[str, dict]:
    """The findings in a model's config.json, with their sentences, thresholds and calibration; empty without any."""
    if isinstance(name, AdapterName):
        return {}
    config = read_config(name)
    if is_exported(config):  # which holds the configuration of the model that it was
        config = config.get("model") or {}
    return config.get("zero_shot_findings") or {}
