"""Which options exclude `cache_features`, which keeps the outputs of frozen towers. See `compatibility.py`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # these modules import this one
    from training_tier.options.compatibility import Launch
    from training_tier.options.parsing import Options


def rules_on_features(options: "Options", launch: "Launch") -> Iterator[str]:
    task, model, data, training, _ = options
    if data.cache_features is None or task.task == "classification":  # without effect there
        return
    if not task.freeze_image_tower:
        yield (
            "cache_features needs a frozen image tower, whose outputs never change; add --freeze_image_tower true, or "
            "leave cache_features out."
        )
    yield from rules_on_augmented_features(data.augmentation)
    if data.streaming:
        yield "cache_features reads all images beforehand, which streaming avoids; use one of them."
    if data.image_cache is not None:
        yield "image_cache has no effect with cache_features, which reads each image once; leave it out."
    text_tower_runs = not task.freeze_text_tower or model.text_lora_rank is not None or data.sample_sentences
    if training.group_texts and not text_tower_runs:
        yield "group_texts has no effect with cache_features and a frozen text tower, which never runs; leave it out."
    if launch.fsdp or launch.deepspeed:
        yield "cache_features trains only what is on top of the towers, without FSDP and DeepSpeed; leave them out."


def rules_on_augmented_features(augmentation: str) -> Iterator[str]:
    if augmentation != "none":
        yield (
            f"cache_features keeps one output for each image, but augmentation={augmentation!r} changes the images in "
            "each epoch; add --augmentation none, or leave cache_features out."
        )


def rules_on_features_of_texts(
    entropy_tokens: str, token_entropy_weight: float, patch_entropy_weight: float
) -> Iterator[str]:
    if entropy_tokens == "all" and (token_entropy_weight or patch_entropy_weight):
        yield (
            "cache_features does not keep the padding of texts, which entropy_tokens='all' counts as words; choose "
            "other entropy_tokens, or leave cache_features out."
        )
