"""Pooling has one owner: the configuration, the towers, both models and the pipeline follow what it says."""

import pytest
import torch

from modeling_tier import TierCLIPConfig
from modeling_tier.configuration_tier import TierOptions
from modeling_tier.pooling_tier import IMAGE_POOLINGS, NEEDS_CLASS_TOKEN, pool_image


def test_modes():
    patches, class_token = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), torch.tensor([[5.0, 7.0]])
    assert pool_image("cls", patches, class_token).tolist() == [[5.0, 7.0]]
    assert pool_image("patch_mean", patches).tolist() == [[2.0, 4.0]]
    assert torch.equal(pool_image("patch_mean", patches.transpose(1, 2), dim=-1), pool_image("patch_mean", patches))
    assert set(NEEDS_CLASS_TOKEN) <= set(IMAGE_POOLINGS)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="^image_pooling must be one of cls, patch_mean, not 'max'.$"):
        pool_image("max", torch.zeros(1, 2, 3))


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_a_third_mode_needs_no_other_file(make_tier, make_dual, batch, bert_batch, monkeypatch, kind):
    """The mode is patched in where it would be written; configuration, model and pipeline features accept it."""

    def pool(image_pooling, patches, class_token=None, dim=1):
        return patches.amax(dim=dim)

    monkeypatch.setattr(TierOptions, "image_poolings", (*IMAGE_POOLINGS, "max"))
    for module in ("modeling_tier", "modeling_dual_tier"):
        monkeypatch.setattr(f"modeling_tier.{module}.pool_image", pool)
    model = make_tier(image_pooling="max") if kind == "clip" else make_dual(image_pooling="max")
    pixels = (batch if kind == "clip" else bert_batch)["pixel_values"]
    outputs, patch_map = model.encode_images(pixels)
    assert torch.equal(outputs.pooler_output, model.get_image_features(pixels).pooler_output)
    if kind == "dual":
        torch.testing.assert_close(outputs.pooler_output, patch_map.amax(dim=(1, 2)))
    with pytest.raises(ValueError, match="image_pooling must be one of"):
        TierCLIPConfig(image_pooling="maximum")
