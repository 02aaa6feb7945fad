from tiny_models import save_tiny_clip
from torch import nn

from evaluation_tier.models.loading import load_model
from evaluation_tier.models.model_size import model_size


def test_sizes(tmp_path):
    model, _ = load_model(save_tiny_clip(tmp_path / "clip", 0))
    assert model_size(model) == {
        "parameters": model.num_parameters(),
        "image_size": model.config.vision_config.image_size,
    }
    # as of a user's model that is not a module itself, and of one that is
    assert model_size(nn.Module()) == {"parameters": None, "image_size": None}
    assert model_size(nn.Linear(3, 2)) == {"parameters": 8, "image_size": None}
