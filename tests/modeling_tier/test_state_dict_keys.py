"""The names of all tensors stay, so that earlier checkpoints load. Names inside a tower are its library's."""

import pytest
from model_checks import BERT, RESNET
from transformers import AutoConfig, AutoModel, CLIPModel, CLIPVisionModel

from modeling_tier import (
    TierCLIPConfig,
    TierCLIPForImageClassification,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)

DUAL_IMAGE_HEAD = {
    "visual_projection.0.weight",
    "visual_projection.1.weight",
    "visual_projection.1.bias",
    "visual_projection.1.running_mean",
    "visual_projection.1.running_var",
    "visual_projection.1.num_batches_tracked",
    "visual_projection.3.weight",
    "visual_projection.3.bias",
}
DUAL_TEXT_HEAD = {
    "text_projection.0.weight",
    "text_projection.0.bias",
    "text_projection.2.weight",
    "text_projection.2.bias",
    "text_projection.3.weight",
    "text_projection.3.bias",
}
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def tower_keys(prefix: str, config: dict, **options) -> set[str]:
    """The names that transformers gives the tensors of a tower, under ours for the tower."""
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    tower = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **sizes), **options)
    return {f"{prefix}.{name}" for name in tower.state_dict()}


@pytest.fixture
def dual_config() -> TierDualEncoderConfig:
    return TierDualEncoderConfig(text_config=dict(BERT), vision_config=dict(RESNET), projection_dim=24, num_labels=3)


def test_clip(make_tier, clip):
    keys = set(make_tier().state_dict())
    assert isinstance(clip, CLIPModel) and keys == set(clip.state_dict())
    own = {name for name in keys if not name.startswith(("vision_model.", "text_model."))}
    assert own == {"logit_scale", "visual_projection.weight", "text_projection.weight"}


def test_dual_encoder(dual_config):
    towers = tower_keys("vision_model", RESNET) | tower_keys("text_model", BERT, add_pooling_layer=False)
    keys = set(TierDualEncoderModel(dual_config).state_dict())
    assert keys == towers | DUAL_IMAGE_HEAD | DUAL_TEXT_HEAD | {"logit_scale"}


def test_classifiers(dual_config, tiny_sizes):
    keys = set(TierDualEncoderForImageClassification(dual_config).state_dict())
    assert keys == tower_keys("vision_model", RESNET) | DUAL_IMAGE_HEAD | CLASSIFIER
    config = TierCLIPConfig(**tiny_sizes, num_labels=3)
    tower = {f"vision_model.{name}" for name in CLIPVisionModel(config.vision_config).state_dict()}
    keys = set(TierCLIPForImageClassification(config).state_dict())
    assert keys == tower | {"visual_projection.weight"} | CLASSIFIER
