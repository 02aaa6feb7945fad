from types import SimpleNamespace

import pytest
from marked_scenes import BrightPatches

from processing_tier import TierImageProcessor


@pytest.fixture
def bright(brightness):
    """The model with a processor of images of 32 pixels, black 0 and white 1."""

    def make(geometry: str = "pad", **options):
        options = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "geometry": geometry, **options}
        image_processor = TierImageProcessor(size={"height": 32, "width": 32}, **options)
        processor = SimpleNamespace(image_processor=image_processor, tokenizer=brightness[1].tokenizer)
        return BrightPatches().train(), processor

    return make
