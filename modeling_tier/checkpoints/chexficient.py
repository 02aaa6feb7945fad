"""
Loads CheXficient (StanfordAIMI/CheXficient, and models_clip.py of cwangrun/CheXficient at 93b55e9): DINOv2 without
registers for images, a BERT for texts, one linear layer above each.

The class token stands for an image (dinov2/models/vision_transformer.py:324-329), the last attended token for a text
(models_clip.py:165-168).
"""

import re
from collections.abc import Mapping

import torch
from transformers import Dinov2Config

from ..configuration_tier import TierDualEncoderConfig
from ..modeling_dual_tier import TierDualEncoderModel
from .layout import fill, shape_of
from .tier import bert_config
from .vit import vit_names, vit_sizes

VISION, BERT = "image_encoder.model.", "text_encoder.model."
CHEXFICIENT_MAX_LENGTH = 256  # tokens (max_bert_length in configs.py)
# Tensors that the original code saves although its embeddings do not depend on them: what chose the training data,
# and BERT's pooler
UNUSED = re.compile(
    r"prototypes|prototype_usage|step_count|batch_\w+|pending_\w+|text_encoder\.model\.(pooler\..+|embeddings\.position_ids)"
)


def load_chexficient(tensors: Mapping[str, torch.Tensor]) -> TierDualEncoderModel:
    """The model of CheXficient's tensors."""
    sizes = vit_sizes(tensors, VISION)
    inner = shape_of(tensors, f"{VISION}blocks.0.mlp.fc1.weight", 2)[0]
    config = TierDualEncoderConfig(
        vision_config=Dinov2Config(**sizes, mlp_ratio=inner // sizes["hidden_size"], layer_norm_eps=1e-6),
        text_config=bert_config(tensors, BERT),
        projection_dim=shape_of(tensors, "image_projection.projection.weight", 2)[0],
        image_head="linear",
        text_head="linear",
        head_bias=True,
        image_pooling="cls",
        text_pooling="eos",
    )
    return fill(lambda: TierDualEncoderModel(config), tensors, chexficient_names, UNUSED)


def chexficient_names(ours: list[str]) -> dict[str, tuple[str, ...]]:
    """CheXficient's name of each tensor, and ours."""
    names: dict[str, tuple[str, ...]] = {"logit_scale": ("logit_scale",), **vit_names(ours, "vision_model.", VISION)}
    for own in ours:
        module, _, rest = own.partition(".")
        if module == "text_model":
            names[BERT + rest] = (own,)
        elif module in ("visual_projection", "text_projection"):
            kind = "image" if module == "visual_projection" else "text"
            names[f"{kind}_projection.projection.{rest.removeprefix('0.')}"] = (own,)
    return names
