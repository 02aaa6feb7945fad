import pytest
from small_trainings import TINIEST, TINIEST_DUAL

from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom.dataset import make_phantom
from training_tier.start.presets import PRESETS


@pytest.fixture(autouse=True)
def tiniest_presets(monkeypatch):
    """Presets small enough for training in a test."""
    monkeypatch.setitem(PRESETS, "tiniest", TINIEST)
    monkeypatch.setitem(PRESETS, "tiniest-dual", TINIEST_DUAL)


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(48, seed=0, image_size=64)


@pytest.fixture(scope="session")
def processor(phantom):
    tokenizer = train_tokenizer(phantom["impression"][:] + phantom["findings"][:], vocab_size=700)
    return TierProcessor(TierImageProcessor(size=32), tokenizer)
