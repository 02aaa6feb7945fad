"""What most tests of this folder read: six phantoms, and a processor of small images."""

import pytest

from processing_tier import TierImageProcessor
from processing_tier.phantom.dataset import make_phantom


@pytest.fixture(scope="module")
def records():
    return make_phantom(6, seed=0, image_size=64)


@pytest.fixture(scope="module")
def image_processor():
    return TierImageProcessor(size=32)
