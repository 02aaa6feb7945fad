"""Which family an evaluated model is of, and which optional parts of the contract it has."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import CLIPModel

from evaluation_tier.models.clip import ClipFamily
from evaluation_tier.models.contract import COSINE, EvaluatedModel, MappedModel, meets_contract
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.remote_code import RemoteFamily, is_remote
from evaluation_tier.models.siglip import Siglip2Family
from modeling_tier.score_levels_tier import LEVELS, default_level
from modeling_tier.texts_tier import FAMILIES as KINDS

# By `config.model_type`; all other kinds that `check_family` accepts embed as CLIP does
FAMILIES = {"siglip2": Siglip2Family}


def family_of(model: Any, processor: Any = None) -> EvaluatedModel:
    """
    The model as an evaluation sees it.

    Args:
        model: of transformers, or one that meets the contract itself.
        processor: of a model of transformers; only reading images and embedding texts need it.
    """
    if meets_contract(model):
        return model
    kind = getattr(model.config, "model_type", None)
    usual = RemoteFamily if is_remote(model) and kind not in KINDS else ClipFamily
    return FAMILIES.get(kind, usual)(model, processor)


def has_patches(model: Any) -> bool:
    """Whether a model embeds patches in the space of the texts."""
    if meets_contract(model):
        return hasattr(model, "embed_patches")
    of_known_kind = not is_remote(model) or model.config.model_type in KINDS
    return of_known_kind and hasattr(model, "get_patch_features") and not is_classifier(model)


def can_project_patches(model: Any) -> bool:
    """Whether a model's patches can be embedded where the texts are: if it does so itself, or is CLIP's."""
    return has_patches(model) or isinstance(model, CLIPModel) and not is_classifier(model)


def has_own_maps(model: Any) -> bool:
    """Whether a model that meets the contract itself gives maps over the picture."""
    return meets_contract(model) and has_patches(model) and hasattr(model, "map_processor")


def map_processor_of(model: Any, processor: Any) -> Any:
    """What maps a grid of patches back to the pixels of the file, by `post_process_similarity_map`."""
    if meets_contract(model):
        return cast(MappedModel, model).map_processor
    return getattr(processor, "image_processor", processor)


def own_level(model: Any) -> str:
    """See `default_level`; the whole image for a model that meets the contract itself."""
    return LEVELS[0] if meets_contract(model) else default_level(model)


def scores_itself(model: Any) -> bool:
    """Whether a model compares images and texts by a similarity of its own."""
    return meets_contract(model) and hasattr(model, "score")


def similarity_of(model: Any) -> str:
    """The unit of what a model compares images and texts by: `"cosine"`, or the name of its own."""
    return model.similarity if scores_itself(model) else COSINE


def levels_of(model: Any) -> Sequence[str]:
    """The score levels of a model; `"both"` only where image and patches are compared with texts in one unit."""
    if not has_patches(model):
        return LEVELS[:1]
    return [level for level in LEVELS if similarity_of(model) == COSINE or not level.startswith("both")]


def check_level(what: str, model: Any, level: str) -> None:
    """ValueError for a score level that a model does not have; `what` begins the sentence and names the level."""
    if level in levels_of(model):
        return
    if not has_patches(model):
        raise ValueError(
            f"{what} needs embeddings of patches, which {type(model).__name__} does not give: use {LEVELS[0]!r}."
        )
    raise ValueError(
        f"{what} is the mean of cosines of patches and of {similarity_of(model)}, which has no unit: use "
        f"{LEVELS[0]!r} or {level.replace('both', 'patches')!r}."
    )


def check_is_of_transformers(model: Any, analysis: str, needs: str) -> None:
    """ValueError for a model that meets the contract itself where an analysis needs more than the contract."""
    if meets_contract(model):
        raise ValueError(
            f"{analysis} needs {needs}, which {type(model).__name__} does not offer: evaluate it without this "
            "analysis, or name a TIER or CLIP model."
        )
