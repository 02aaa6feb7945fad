"""Options that cannot go together or have no effect."""

# What says how images are contrasted with texts; of no use to a classifier.
CONTRASTIVE_OPTIONS = (
    "text_warmup_epochs",
    "frozen_text_layers",
    "soft_targets",
    "avoid_duplicates",
    "freeze_text_tower",
    "frozen_vision_layers",
    "text_lr_scale",
    "entropy_warmup_steps",
    "token_entropy_weight",
    "patch_entropy_weight",
    "entropy_temperature",
    "entropy_normalization",
    "entropy_tokens",
    "text",
    "deidentified",
    "sample_sentences",
    "image_views",
    "contrastive_chunk_size",
    "pad_to_multiple_of",
    "group_texts",
)


def without_effect(*arguments) -> list[str]:
    """The options that were given among those in `CONTRASTIVE_OPTIONS`."""
    return [
        name
        for group in arguments
        for name, described in group.__dataclass_fields__.items()
        if name in CONTRASTIVE_OPTIONS and getattr(group, name) != described.default
    ]
