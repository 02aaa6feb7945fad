"""Options that say which model is trained."""

from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    """
    Options that say which model is trained. `None` keeps the value of the checkpoint; random weights take the default
    of [`TierCLIPConfig`].
    """

    model: str = field(
        default="tiny",
        metadata={
            "help": "Model to start from: a folder, owner/name on the Hub, or a preset with random weights. The "
            "presets are nano, tiny, small, vit-b-32, vit-b-16, resnet-50-bert, resnet-tiny and resnet-fine. A "
            "checkpoint is of CLIP, SigLIP or TIER; owner/name@revision names a revision on the Hub."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --model: a pretrained image backbone, such as microsoft/rad-dino or a model of timm. "
            "It is trained with --text_model under new projection heads, as in the paper."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": "Pretrained text encoder to join to --vision_model, such as BERT."}
    )
    frozen_text_layers: int | None = field(
        default=None,
        metadata={
            "help": "Freeze the embeddings and this many first layers of a pretrained text tower. The paper freezes 8 "
            "of 12."
        },
    )
    frozen_vision_layers: int | None = field(
        default=None,
        metadata={
            "help": "Freeze the embeddings and this many first layers of a pretrained image tower. In a convolutional "
            "tower, a stage counts as a layer."
        },
    )
    adapter_layers: int | None = field(
        default=None,
        metadata={
            "help": "Train this many new transformer layers on top of the pretrained image tower of a dual encoder "
            "(--vision_model). It is for --freeze_image_tower, with 2 for example."
        },
    )
    image_head_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Probability, below 1, that training leaves out a channel before the image head of a dual "
            "encoder. 0.5 keeps heads on frozen towers from learning few reports by heart."
        },
    )
    text_lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA matrices of this rank, for example 8, in the attention of a frozen text tower "
            "(--freeze_text_tower). The final model holds them merged. Needs peft: pip install 'tier-clip[lora]'."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer for random weights: a folder or a name. By default, one is trained on the training "
            "reports."
        },
    )
    vocab_size: int = field(default=4000, metadata={"help": "Most tokens of a tokenizer that is trained here."})
    text_warmup_epochs: int = field(
        default=0,
        metadata={"help": "Random weights: first train the text tower on text alone, for this many epochs."},
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Edge in pixels of the square that the model sees. A checkpoint can take another size: its "
            "position embeddings are interpolated."
        },
    )
    geometry: str | None = field(
        default=None,
        metadata={"help": "How an image becomes a square: pad, crop or squash. Random weights use pad by default."},
    )
    image_pooling: str | None = field(
        default=None,
        metadata={
            "help": "Global image embedding: patch_mean (TIER's) or cls (CLIP's). Random weights use patch_mean by "
            "default."
        },
    )
    text_pooling: str | None = field(
        default=None,
        metadata={
            "help": "What represents a text of --text_model: cls (the first token), eos (the last one) or mean (of "
            "all). By default as the files of sentence-transformers in the checkpoint say, else cls."
        },
    )
    token_entropy_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the entropy of each word over the patches. By default 0.2, or the checkpoint's own "
            "weights if one of the two is not 0. With both weights 0, the model is a plain CLIP."
        },
    )
    patch_entropy_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the entropy of each patch over the words. The default is chosen as for "
            "--token_entropy_weight."
        },
    )
    evidence_entropy_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the evidence entropy: the evidence for each text shall come from few patches. 0 by "
            "default, or the checkpoint's own weight. It needs --image_pooling patch_mean."
        },
    )
    evidence_patches: float | None = field(
        default=None,
        metadata={
            "help": "Patches that evidence may come from without a penalty, at least 1. By default 1, or the "
            "checkpoint's own number."
        },
    )
    entropy_temperature: float | None = field(
        default=None,
        metadata={"help": "Divides the cosines before the softmax of the entropies. The paper uses 1."},
    )
    entropy_normalization: bool | None = field(
        default=None, metadata={"help": "Divide each entropy by its maximum, ln K."}
    )
    entropy_tokens: str | None = field(
        default=None,
        metadata={"help": "Tokens that the entropies count: words, attended or all. The authors' code counts all."},
    )

    def __post_init__(self) -> None:
        from training_tier.options import checks, compatibility  # here, so that --help needs no torch

        checks.check_values(self)
        compatibility.check_model(self)

    def config_overrides(self) -> dict:
        """The fields of the model's configuration that were given."""
        names = (
            "image_pooling",
            "text_pooling",
            "token_entropy_weight",
            "patch_entropy_weight",
            "evidence_entropy_weight",
            "evidence_patches",
            "entropy_temperature",
            "entropy_normalization",
            "entropy_tokens",
            "frozen_text_layers",
            "adapter_layers",
            "image_head_dropout",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
