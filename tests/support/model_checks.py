"""Tiny models of every kind of tower, and what is compared of two models."""

import torch

BOS, EOS = 97, 98  # of the texts for small CLIP models; EOS pads too, as in CLIP's own tokenizer
TERMS = ("contrastive_loss", "token_entropy", "patch_entropy")
WEIGHTS = {"token_entropy_weight": 0.3, "patch_entropy_weight": 0.7}
SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 20, "pad_token_id": EOS}
CLIP_TEXT = {**TEXT, "bos_token_id": BOS, "eos_token_id": EOS}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
BERT = {"model_type": "bert", **TEXT}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
VIT = {"model_type": "vit", **VISION}
MODELS = ("cls", "patch_mean", "resnet", "vit")


def assert_equal_outputs(computed, expected, atol: float) -> None:
    for name in ("loss", *TERMS, "logits_per_image", "image_embeds", "text_embeds"):
        torch.testing.assert_close(computed[name], expected[name], rtol=0, atol=atol, msg=lambda m: f"{name}: {m}")  # noqa: B023


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, return_loss=True).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
