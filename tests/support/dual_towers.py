"""Configurations of small towers of every kind for the dual encoder, and the grid of patches each one makes."""

CLS, SEP, PAD = 2, 3, 0
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**TOWER, "image_size": 64, "patch_size": 16}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET = {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **STAGES}
BACKBONES = {  # and the grid of patches that each makes of 64 x 64 pixels
    "resnet": ({"embedding_size": 8, "layer_type": "basic", **STAGES}, 8),
    "convnext": ({**STAGES, "num_stages": 2, "patch_size": 4}, 8),
    "vit": (VIT, 4),
    "deit": (VIT, 4),  # a second token before the patches
    "dinov2_with_registers": ({**VIT, "mlp_ratio": 1, "num_register_tokens": 4}, 4),
    "swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64}, 8),
    "clip_vision_model": (VIT, 4),
}
ENCODERS = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 16},  # knows no token types
    "clip_text_model": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}


def text_config(model_type: str = "bert", **options) -> dict:
    sizes = {**TOWER, "num_hidden_layers": 3, "vocab_size": 50, "max_position_embeddings": 24}
    return {"model_type": model_type, **sizes, **ENCODERS.get(model_type, {}), **options}


def vision_config(model_type: str = "resnet", **options) -> dict:
    return {"model_type": model_type, **BACKBONES[model_type][0], **options}
