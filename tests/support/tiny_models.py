"""A CLIP model of two tiny towers with random weights, saved where a command reads it."""

from pathlib import Path

import torch

from modeling_tier import TierCLIPConfig, TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer


def save_tiny_clip(folder: Path, seed: int, **changes) -> Path:
    """Save model and processor; `changes` are of the configuration."""
    tokenizer = train_tokenizer(["Small left pleural effusion.", "No pneumothorax. The heart is enlarged."], 600)
    processor = TierProcessor(TierImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = TierCLIPConfig(
        text_config={**tower, **special, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
        **changes,
    )
    torch.manual_seed(seed)
    TierCLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
