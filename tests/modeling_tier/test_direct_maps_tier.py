import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from modeling_tier import TierCLIPConfig, TierCLIPModel
from modeling_tier.direct_maps_tier import attended_values, through_norm

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]])


def make_model(pooling="cls"):
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    model = TierCLIPModel(
        TierCLIPConfig(text_config=text, vision_config=vision, projection_dim=16, image_pooling=pooling)
    )
    for parameter in model.parameters():  # biases and norms that are not 0 and 1
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_summands_of_an_attention():
    attention = make_model().vision_model.encoder.layers[0].self_attn
    states = torch.randn(2, 17, 32)
    summands = attended_values(attention, states)
    torch.testing.assert_close(summands.sum(dim=1) + attention.out_proj.bias, attention(states)[0][:, 0])


@torch.no_grad()
def test_the_summands_of_a_norm():
    norm = make_model().vision_model.post_layernorm
    parts = torch.randn(2, 5, 32)
    whole = parts.sum(dim=1)
    torch.testing.assert_close(through_norm(norm, parts, whole).sum(dim=1) + norm.bias, norm(whole))


@torch.no_grad()
def test_patches_and_the_rest_sum_to_the_image_embedding():
    """Without MLPs the embedding is that of the patches, of the class token, and of the biases."""
    model, images = make_model(), make_images()
    for layer in model.vision_model.encoder.layers:
        for parameter in layer.mlp.parameters():
            torch.nn.init.zeros_(parameter)
    outputs = model.get_image_features(images, output_hidden_states=True)
    direct = model.get_direct_map(images).flatten(1, 2).sum(dim=1)  # (images, dim)
    vision = model.vision_model
    rest = outputs.hidden_states[0][:, 0]
    for layer, states in zip(vision.encoder.layers, outputs.hidden_states, strict=False):
        own = attended_values(layer.self_attn, layer.layer_norm1(states))[:, 0]
        rest = rest + own + layer.self_attn.out_proj.bias
    whole = outputs.last_hidden_state[:, 0]
    rest = through_norm(vision.post_layernorm, rest[:, None], whole)[:, 0] + vision.post_layernorm.bias
    rest = model.visual_projection(rest) / outputs.pooler_output.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(direct + rest, F.normalize(outputs.pooler_output, dim=-1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_maps_of_texts():
    model, images = make_model(), make_images()
    maps = model.get_similarity_map(IDS, images, kind="direct")
    assert maps.shape == (2, 2, 4, 4)
    texts = F.normalize(model.get_text_features(IDS).pooler_output, dim=-1)
    expected = torch.einsum("ircd,td->itrc", model.get_direct_map(images), texts)
    torch.testing.assert_close(maps, expected)
    assert model.get_similarity_map(IDS, images, kind="direct", per_token=True).shape == (2, 2, 4, 4, 4)
    large = model.get_similarity_map(IDS, make_images(48), interpolate_pos_encoding=True, kind="direct")
    assert large.shape == (2, 2, 6, 6)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_checkpoint_of_clip_has_them(tmp_path, attention):
    model, images = make_model(), make_images()
    model.to_clip().save_pretrained(tmp_path)
    assert type(CLIPModel.from_pretrained(tmp_path)) is CLIPModel
    loaded = TierCLIPModel.from_pretrained(tmp_path, attn_implementation=attention).eval()
    torch.testing.assert_close(loaded.get_direct_map(images), model.get_direct_map(images), rtol=0, atol=1e-5)


def test_models_without_them_say_so():
    with pytest.raises(ValueError, match='"patch_mean" does not have kind="direct", which needs the class token'):
        make_model("patch_mean").get_similarity_map(IDS, make_images(), kind="direct")
