import pytest

from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom.dataset import make_phantom
from training_tier.start.presets import PRESETS

TINIEST = {
    "projection_dim": 16,
    "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
}
DUAL = {
    "projection_dim": 16,
    "image_size": 32,
    "text_config": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}


@pytest.fixture(autouse=True)
def tiniest_presets(monkeypatch):
    """Presets small enough for training in a test."""
    monkeypatch.setitem(PRESETS, "tiniest", TINIEST)
    monkeypatch.setitem(PRESETS, "tiniest-dual", DUAL)


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(48, seed=0, image_size=64)


@pytest.fixture(scope="session")
def processor(phantom):
    tokenizer = train_tokenizer(phantom["impression"][:] + phantom["findings"][:], vocab_size=700)
    return TierProcessor(TierImageProcessor(size=32), tokenizer)
