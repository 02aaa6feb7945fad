"""A SigLIP model of two tiny towers with random weights and its processor, as its owners release them."""

from pathlib import Path

import torch
from transformers import Siglip2Tokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

TOWER = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
LETTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789.,"


def make_tokenizer(**options) -> Siglip2Tokenizer:
    """SigLIP 2's, with letters for words. (SigLIP's own needs the package sentencepiece.)"""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *LETTERS])}
    options = {"padding_side": "right", "model_input_names": ["input_ids"], "model_max_length": 64, **options}
    return Siglip2Tokenizer(vocab=vocab, merges=[], **options)


def siglip_sizes(positions: int = 64, **vision) -> dict:
    """Keyword arguments of a SiglipConfig whose model computes in milliseconds: 16 patches."""
    text = {**TOWER, "vocab_size": 44, "max_position_embeddings": positions, "projection_size": 24}
    return {
        "text_config": text,
        "vision_config": {**TOWER, "hidden_size": 24, "image_size": 32, "patch_size": 8, **vision},
    }


def make_siglip(seed: int = 0, **sizes) -> SiglipModel:
    torch.manual_seed(seed)
    model = SiglipModel(SiglipConfig(**siglip_sizes(**sizes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases are all ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.7)  # as in the releases: above ln 100
        model.logit_bias.fill_(-12.0)
    return model


def save_siglip(folder: Path, seed: int = 0) -> SiglipModel:
    """Saves model and processor; `do_convert_rgb` is null, as in Google's releases."""
    model = make_siglip(seed)
    model.save_pretrained(folder)
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32}, do_convert_rgb=None, resample=2)
    SiglipProcessor(image_processor, make_tokenizer()).save_pretrained(folder)
    return model
