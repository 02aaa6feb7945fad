"""Which model is trained."""

from dataclasses import dataclass, field

from modeling_tier.configuration_tier import ENTROPY_TOKENS, IMAGE_POOLINGS
from processing_tier.image_processing_tier import GEOMETRIES
from training_tier.options.checks import check_choice, check_ranges
from training_tier.start.presets import PRESETS


@dataclass
class ModelArguments:
    """
    Parameters that say which model is trained. `None` keeps what a checkpoint has, and for random weights the default
    of [`TierCLIPConfig`].
    """

    model: str = field(
        default="tiny",
        metadata={
            "help": f"Random weights of a preset ({', '.join(PRESETS)}), or a CLIP or TIER checkpoint to start from: "
            "a folder, or a name on the Hub (owner/name, or owner/name@revision)."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --model: a pretrained image backbone (folder or name, such as microsoft/resnet-50) to "
            "train with --text_model under new projection heads, as the paper does."
        },
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "The pretrained text encoder that --vision_model is joined to, BERT or the like."},
    )
    frozen_text_layers: int | None = field(
        default=None,
        metadata={
            "help": "Keep the embeddings and so many of the first layers of a pretrained text encoder as they are "
            "(the paper's 8 of 12); 0 for none."
        },
    )
    frozen_vision_layers: int | None = field(
        default=None,
        metadata={"help": "The same of a pretrained image tower; of a convolutional one, so many of its stages."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer (folder or name) for random weights; else one is trained on the training reports."
        },
    )
    vocab_size: int = field(default=4000, metadata={"help": "Upper bound on the tokens of a tokenizer trained here."})
    text_warmup_epochs: int = field(
        default=0,
        metadata={
            "help": "Passes over the reports in which the text tower learns from text alone; random weights only."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Edge in pixels of the square the model sees. That of a checkpoint can be changed: its position "
            "embeddings are interpolated."
        },
    )
    geometry: str | None = field(
        default=None,
        metadata={"help": f"How a picture becomes a square: {', '.join(GEOMETRIES)}; pad for random weights."},
    )
    image_pooling: str | None = field(
        default=None,
        metadata={
            "help": 'Global image embedding: "patch_mean" (TIER\'s; default for random weights) or "cls" (CLIP\'s).'
        },
    )
    token_entropy_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight (>= 0) of the entropy of each word over the patches. Where not given: 0.2, or that of a "
            "checkpoint one of whose two weights is not 0. Both 0 are plain CLIP."
        },
    )
    patch_entropy_weight: float | None = field(
        default=None,
        metadata={"help": "Weight (>= 0) of the entropy of each patch over the words. Where not given: likewise."},
    )
    entropy_temperature: float | None = field(
        default=None, metadata={"help": "Divides the cosines before the softmax of the entropies; 1 is the paper's."}
    )
    entropy_normalization: bool | None = field(
        default=None, metadata={"help": "Divide each entropy by its maximum, ln K."}
    )
    entropy_tokens: str | None = field(
        default=None, metadata={"help": "Tokens the entropies count: words, attended or all (the authors' code)."}
    )

    def __post_init__(self):
        check_choice("geometry", self.geometry, (None, *GEOMETRIES))
        check_choice("image_pooling", self.image_pooling, (None, *IMAGE_POOLINGS))
        check_choice("entropy_tokens", self.entropy_tokens, (None, *ENTROPY_TOKENS))
        check_ranges(self)
        if (self.vision_model is None) != (self.text_model is None):
            raise ValueError("vision_model and text_model go together; name both, or a --model.")
        if self.vision_model is not None:
            for name in ("model", "tokenizer", "text_warmup_epochs"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name} has no effect with vision_model and text_model; leave it out.")
        for name in ("frozen_text_layers", "frozen_vision_layers"):
            if getattr(self, name) and self.vision_model is None and self.model in PRESETS:
                raise ValueError(
                    f"{name}={getattr(self, name)} would keep the random weights of {self.model!r} as they are; it is "
                    "for pretrained ones."
                )
        if self.text_warmup_epochs and self.model not in PRESETS:
            raise ValueError(
                f"text_warmup_epochs={self.text_warmup_epochs} is for random weights (--model {', '.join(PRESETS)}); "
                "leave it out."
            )

    def config_overrides(self) -> dict:
        """The fields of the model's configuration that were given."""
        names = (
            "image_pooling",
            "token_entropy_weight",
            "patch_entropy_weight",
            "entropy_temperature",
            "entropy_normalization",
            "entropy_tokens",
            "frozen_text_layers",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
