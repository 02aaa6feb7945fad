"""
TIER (Modeling/CLIP_Embedding.py of apalepu13/TIER_Regularized_CLIP at ce1e171): BioViL's image tower under `cnn.`,
CXR-BERT under `transformer.`.
"""

import math
import re
from collections.abc import Mapping

import torch
from transformers import BertConfig, ResNetConfig

from ..configuration_tier import TierDualEncoderConfig
from ..modeling_dual_tier import TierDualEncoderModel
from .layout import count_parts, fill, shape_of

TEXT_HEAD = {"0": "dense_to_hidden", "2": "LayerNorm", "3": "dense_to_output"}
# The authors' names of the weights (train.py:95-96), and ours
WEIGHTS = {"lam_words": "token_entropy_weight", "lam_patches": "patch_entropy_weight"}
# Tensors that the original code saves though its embeddings do not depend on them
UNUSED = re.compile(r"cnn\.encoder\.encoder\.fc\.\w+|transformer\.(cls\.predictions\..+|.+\.position_ids)")


def load_tier(tensors: dict[str, torch.Tensor], arguments: Mapping | None = None) -> TierDualEncoderModel:
    """
    The model of a TIER checkpoint. The file holds the text head twice: inside CXR-BERT and separately. The entropy
    weights of its training become the configuration's.
    """
    tensors = dict(tensors)
    for name in [name for name in tensors if name.startswith("cls_projection_head.")]:
        first = tensors.get(f"transformer.{name}")
        if first is not None and not torch.equal(first, tensors.pop(name)):
            raise ValueError(f"The tensors {name} and transformer.{name} of the checkpoint differ, but TIER has one.")
    bert = bert_config(tensors, "transformer.bert.")
    config = TierDualEncoderConfig(
        vision_config=resnet_config(tensors, "cnn.encoder.encoder."),
        text_config=bert,
        projection_dim=shape_of(tensors, "cnn.projector.model.0.weight", 4)[0],
        image_size=224,
        frozen_text_layers=min(8, bert.num_hidden_layers),
        **entropy_weights(arguments or {}),
    )
    return fill(
        lambda: TierDualEncoderModel(config),
        tensors,
        lambda ours: {"logit_scale": ("logit_scale",), **dual_names(ours, "cnn.", "transformer.")},
        UNUSED,
    )


def entropy_weights(arguments: Mapping) -> dict:
    """
    Fields of the configuration from the `args` of a checkpoint; empty if the arguments lack the weights.

    A comment in the authors' code (Modeling/utils.py:88-89) says that `lam_words` weights the entropy of each patch
    over the words. The code below the comment does the opposite, and this function follows the code: `lam_words`
    weights the entropy of each word over the patches. The authors' loss counts all tokens, including padding.

    Raises:
        ValueError: A weight is not a number of at least 0.
    """
    fields = {}
    for theirs, ours in WEIGHTS.items():
        if theirs in arguments:
            value = arguments[theirs]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"The args of the checkpoint have {theirs}={value!r}, not a number of at least 0.")
            fields[ours] = float(value)
    return {**fields, "entropy_tokens": "all"} if fields else {}


def dual_names(ours: list[str], image: str, text: str) -> dict[str, tuple[str, ...]]:
    """The original name of each tensor of a [`TierDualEncoderModel`] but the logit scale, and our name."""
    names: dict[str, tuple[str, ...]] = {}
    for own in ours:
        module, _, rest = own.partition(".")
        if module == "vision_model":
            names[f"{image}encoder.encoder.{torchvision_name(rest)}"] = (own,)
        elif module == "visual_projection":
            names[f"{image}projector.model.{rest}"] = (own,)
        elif module == "text_model":
            names[f"{text}bert.{rest}"] = (own,)
        elif module == "text_projection":
            layer, _, part = rest.partition(".")
            names[f"{text}cls_projection_head.{TEXT_HEAD[layer]}.{part}"] = (own,)
    return names


def torchvision_name(name: str) -> str:
    """torchvision's name for a tensor of `ResNetModel`."""
    module, _, part = name.rpartition(".")
    module, _, role = module.rpartition(".")
    kind = {"convolution": "conv", "normalization": "bn"}[role]
    if module == "embedder.embedder":
        return f"{kind}1.{part}"
    place = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)", module)
    stage, block, layer = place.groups()
    inner = f"{kind}{int(layer) + 1}" if layer else f"downsample.{0 if kind == 'conv' else 1}"
    return f"layer{int(stage) + 1}.{block}.{inner}.{part}"


def resnet_config(tensors: Mapping[str, torch.Tensor], prefix: str) -> ResNetConfig:
    """torchvision's ResNet of bottlenecks (stride in the 3x3 convolution), sizes from the tensors."""
    depths = [count_parts(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
    return ResNetConfig(
        embedding_size=shape_of(tensors, f"{prefix}conv1.weight", 4)[0],
        hidden_sizes=[shape_of(tensors, f"{prefix}layer{stage}.0.conv3.weight", 4)[0] for stage in (1, 2, 3, 4)],
        depths=depths,
        layer_type="bottleneck",
    )


def bert_config(tensors: Mapping[str, torch.Tensor], prefix: str) -> BertConfig:
    """BERT's sizes from the tensors. As in CXR-BERT, heads are 64 wide and the rest is BERT's default."""
    vocab_size, hidden = shape_of(tensors, f"{prefix}embeddings.word_embeddings.weight", 2)
    if hidden % 64:
        raise ValueError(f"A width of {hidden} cannot be divided into heads of 64, so this is not a CXR-BERT.")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=count_parts(tensors, f"{prefix}encoder.layer."),
        num_attention_heads=hidden // 64,
        intermediate_size=shape_of(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_position_embeddings=shape_of(tensors, f"{prefix}embeddings.position_embeddings.weight", 2)[0],
        type_vocab_size=shape_of(tensors, f"{prefix}embeddings.token_type_embeddings.weight", 2)[0],
    )
