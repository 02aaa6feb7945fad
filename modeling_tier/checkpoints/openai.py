"""OpenAI CLIP's names (clip/model.py of openai/CLIP), which CheXzero and OpenCLIP share."""

BLOCK = {  # of a transformer, without the projections of queries, keys and values
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip_names(vision_layers: int, text_layers: int, text: str = "") -> dict[str, tuple[str, ...]]:
    """
    OpenAI's name of each tensor of CLIP, and our name. OpenAI's tensors with the rows of queries, keys and values have
    three names of ours.

    Args:
        vision_layers (`int`), text_layers (`int`): Depth of the towers.
        text (`str`, *optional*, defaults to `""`): Prefix of the names of the text tower.
    """
    ours = {
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.proj": "visual_projection.weight",
        f"{text}token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        f"{text}positional_embedding": "text_model.embeddings.position_embedding.weight",
        f"{text}text_projection": "text_projection.weight",
    }
    modules = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        f"{text}ln_final": "text_model.final_layer_norm",
    }
    names: dict[str, tuple[str, ...]] = {theirs: (own,) for theirs, own in ours.items()}
    for tower, transformer, depth in (
        ("vision_model", "visual.transformer", vision_layers),
        ("text_model", f"{text}transformer", text_layers),
    ):
        for i in range(depth):
            block, layer = f"{transformer}.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            modules |= {f"{block}.{theirs}": f"{layer}.{own}" for theirs, own in BLOCK.items()}
            for part in ("weight", "bias"):
                names[f"{block}.attn.in_proj_{part}"] = tuple(f"{layer}.self_attn.{x}_proj.{part}" for x in "qkv")
    for theirs, own in modules.items():
        names |= {f"{theirs}.{part}": (f"{own}.{part}",) for part in ("weight", "bias")}
    return names
