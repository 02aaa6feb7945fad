"""
Everything that brings pixels and reports in: image processor, decoders, readers, the record schema, prompts, the
phantom and `tier-prepare`. This package does not depend on the models.

The files `*_tier.py` are shipped: `save_pretrained` copies them into a model's folder.
"""

from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # transformers 5.10 to 5.17 hide the

# name at the top level where torchvision is missing, though the class does not need it
from .image_processing_tier import TierImageProcessor
from .processing_siglip_tier import TierSiglipProcessor
from .processing_tier import TierProcessor
from .radiograph_tier import read_radiograph
from .tokenizer_training import train_tokenizer

# The saved files name the class, and a class registered under any key is found by its name. The key is the class
# itself, not a model config, because this package does not depend on the models.
AutoImageProcessor.register(TierImageProcessor, image_processor_classes={"pil": TierImageProcessor}, exist_ok=True)
AutoProcessor.register(TierProcessor, TierProcessor, exist_ok=True)
AutoProcessor.register(TierSiglipProcessor, TierSiglipProcessor, exist_ok=True)

__all__ = ["TierImageProcessor", "TierProcessor", "TierSiglipProcessor", "read_radiograph", "train_tokenizer"]
