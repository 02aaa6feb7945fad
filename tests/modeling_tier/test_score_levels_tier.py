"""Score levels: pooling of patches, and the level of each kind of model."""

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from modeling_tier import TierCLIPForImageClassification, TierCLIPModel
from modeling_tier.score_levels_tier import LEVELS, POOLS, default_level, level_differences, pool_patches


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def test_pools_by_hand():
    patches = torch.tensor([[[1.0, 0.0]] * 18 + [[0.6, 0.8], [0.0, 1.0]]])  # (1, 20, 2)
    directions = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    pooled = pool_patches(patches, directions)
    assert pooled["max"].tolist() == [[2.0, 1.0]]
    assert pooled["topk"][0].tolist() == pytest.approx([1.8, 1.0])  # the highest 2 of 20
    values = np.array([0.0] * 18 + [1.6, 2.0])
    assert pooled["lse"][0, 0].item() == pytest.approx(0.1 * np.log(np.exp(values / 0.1).mean()), rel=1e-6)


def test_pools_of_equal_patches_are_the_difference_itself():
    vector = unit(1, 8)
    directions = unit(3, 8, seed=1)
    for values in pool_patches(vector.expand(2, 49, 8), directions).values():
        torch.testing.assert_close(values, (vector @ directions.T).expand(2, 3), rtol=0, atol=1e-6)


def test_pools_do_not_depend_on_the_order_of_patches():
    patches, directions = unit(4, 49, 8), unit(3, 8, seed=1)
    shuffled = pool_patches(patches[:, torch.randperm(49, generator=torch.Generator().manual_seed(0))], directions)
    for pool, values in pool_patches(patches, directions).items():
        torch.testing.assert_close(shuffled[pool], values, rtol=0, atol=1e-6)


def test_levels():
    levels = level_differences(np.array([[1.0]]), {pool: np.array([[3.0]]) for pool in POOLS})
    assert list(levels) == list(LEVELS)
    assert [values.item() for values in levels.values()] == [1, 3, 3, 3, 2, 2, 2]
    assert list(level_differences(np.array([[1.0]]), {})) == ["global"]


def test_the_arithmetic_of_numpy_and_torch_is_the_same():
    whole, pooled = unit(3, 5), {pool: unit(3, 5, seed=i) for i, pool in enumerate(POOLS, 1)}
    of_arrays = level_differences(whole.numpy(), {pool: values.numpy() for pool, values in pooled.items()})
    for level, values in level_differences(whole, pooled).items():
        np.testing.assert_array_equal(values.numpy(), of_arrays[level])


def test_the_level_follows_the_image_embedding(models):
    assert {name: default_level(model) for name, model in models.items()} == {
        "clip": "patches-lse",
        "dual": "patches-lse",
    }
    clip = models["clip"]
    classifier = TierCLIPForImageClassification.from_image_tower(clip, ["Edema"])
    assert default_level(classifier) == "global"
    clip.config.image_pooling = "cls"
    assert default_level(clip) == "global"
    # a CLIPModel pools by its class token, whatever the configuration of a TIER model says
    config = CLIPConfig(
        text_config=clip.config.text_config.to_dict(),
        vision_config=clip.config.vision_config.to_dict(),
        projection_dim=24,
        image_pooling="patch_mean",
    )
    assert default_level(CLIPModel(config)) == "global" and not isinstance(CLIPModel(config), TierCLIPModel)
