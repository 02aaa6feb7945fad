import pytest

from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom import make_phantom
from training_tier.presets import PRESETS

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


@pytest.fixture(autouse=True)
def tiniest_preset(monkeypatch):
    """A preset small enough for training in a test."""
    monkeypatch.setitem(PRESETS, "tiniest", TINIEST)


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(48, seed=0, image_size=64)


@pytest.fixture(scope="session")
def processor(phantom):
    tokenizer = train_tokenizer(phantom["impression"][:] + phantom["findings"][:], vocab_size=700)
    return TierProcessor(TierImageProcessor(size=32), tokenizer)
