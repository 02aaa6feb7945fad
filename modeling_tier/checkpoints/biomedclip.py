"""
Loads BiomedCLIP and its kin: OpenCLIP's `CustomTextCLIP` with a plain ViT of timm (`timm_model.py`) and a BERT
(`hf_model.py`), as in src/open_clip of open_clip_torch 3.3.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BertConfig, ViTConfig

from ..configuration_tier import TierDualEncoderConfig
from ..modeling_dual_tier import TierDualEncoderModel
from .layout import fill, shape_of
from .openclip import OPENCLIP_CONFIG
from .refusals import SCORED_AS_IT_IS
from .tier import bert_config
from .vit import vit_names, vit_sizes

TRUNK, HEAD, BERT, PROJECTION = "visual.trunk.", "visual.head.proj.", "text.transformer.", "text.proj."
# What open_clip_config.json of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 says
BIOMEDCLIP = {
    "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"},
    "text_cfg": {
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}
PLAIN_VIT = re.compile(r"vit_(tiny|small|base|large)_patch\d+_\d+(\.\w+)?")  # timm's; 64-wide heads, no extra norm
POOLINGS = {"": "cls", "token": "cls", "avg": "patch_mean"}  # timm_pool: image_pooling. "" is the ViT's own choice
# Keys of vision_cfg and text_cfg that are read here or from the tensors, or do not change an embedding
KEYS = {
    *("timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop"),
    *("timm_drop_path", "image_size", "patch_dropout", "hf_model_name", "hf_tokenizer_name", "hf_proj_type"),
    *("hf_pooler_type", "hf_model_pretrained", "context_length", "vocab_size", "output_tokens", "width"),
}
# Tensors that OpenCLIP saved with older versions of transformers; its loader drops them as well
UNUSED = re.compile(r"text\.transformer\.embeddings\.position_ids")


def tower_settings(settings: Mapping) -> tuple[dict, dict]:
    """
    `vision_cfg` and `text_cfg` of `open_clip_config.json`; BiomedCLIP's without that file.

    Raises:
        ValueError: They ask for something that [`TierDualEncoderModel`] does not have.
    """
    model = settings.get("model_cfg", BIOMEDCLIP)
    vision, text = model["vision_cfg"], model["text_cfg"]

    def refuse(key: str, value: Any, allowed: str) -> None:
        raise ValueError(
            f"{OPENCLIP_CONFIG} asks for {key}={value!r}, which TierDualEncoderModel does not have (it has "
            f"{allowed}); {SCORED_AS_IT_IS}."
        )

    if not PLAIN_VIT.fullmatch(str(vision.get("timm_model_name"))):
        refuse("timm_model_name", vision.get("timm_model_name"), "plain ViTs, such as vit_base_patch16_224")
    # The defaults are those of CLIPVisionCfg and of HFTextEncoder for a BERT
    for part, key, default, choices in (
        (vision, "timm_pool", "avg", tuple(POOLINGS)),
        (vision, "timm_proj", "linear", ("linear",)),
        (text, "hf_proj_type", None, ("linear", "mlp")),
        (text, "hf_pooler_type", "cls_pooler", ("cls_last_hidden_state_pooler",)),
    ):
        if part.get(key, default) not in choices:
            refuse(key, part.get(key, default), " and ".join(map(repr, choices)))
    for part in (vision, text):
        for key, value in part.items():
            if value and key not in KEYS:
                refuse(key, value, "no such setting")
    return vision, text


def load_biomedclip(tensors: Mapping[str, torch.Tensor], settings: Mapping) -> TierDualEncoderModel:
    """The model of OpenCLIP's tensors and of `open_clip_config.json` (empty: BiomedCLIP's)."""
    vision, text = tower_settings(settings)
    is_mlp = text["hf_proj_type"] == "mlp"
    config = TierDualEncoderConfig(
        vision_config=ViTConfig(
            **vit_sizes(tensors, TRUNK),
            intermediate_size=shape_of(tensors, f"{TRUNK}blocks.0.mlp.fc1.weight", 2)[0],
            layer_norm_eps=1e-6,  # timm's
        ),
        text_config=openclip_bert(tensors),
        projection_dim=shape_of(tensors, f"{HEAD}weight", 2)[0],
        image_head="linear",
        text_head="mlp" if is_mlp else "linear",
        head_bias=f"{HEAD}bias" in tensors,
        image_pooling=POOLINGS[vision.get("timm_pool", "avg")],
    )
    return fill(lambda: TierDualEncoderModel(config), tensors, lambda ours: biomedclip_names(ours, is_mlp), UNUSED)


def openclip_bert(tensors: Mapping[str, torch.Tensor]) -> BertConfig:
    """The text tower's configuration; ValueError for a RoBERTa, whose tensors have the same names."""
    config = bert_config(tensors, BERT)
    if config.type_vocab_size != 2:
        raise ValueError(
            f"The text tower has {config.type_vocab_size} token types, as a RoBERTa; only a BERT (2 of them) can be "
            f"converted; {SCORED_AS_IT_IS}."
        )
    return config


def biomedclip_names(ours: list[str], is_mlp: bool) -> dict[str, tuple[str, ...]]:
    """OpenCLIP's name of each tensor, and ours."""
    names: dict[str, tuple[str, ...]] = {"logit_scale": ("logit_scale",), **vit_names(ours, "vision_model.", TRUNK)}
    for own in ours:
        module, _, rest = own.partition(".")
        if module == "visual_projection":
            names[HEAD + rest.removeprefix("0.")] = (own,)
        elif module == "text_model":
            names[BERT + rest] = (own,)
        elif module == "text_projection":
            names[PROJECTION + (rest if is_mlp else rest.removeprefix("0."))] = (own,)
    return names
