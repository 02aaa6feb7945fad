"""The networks and the losses. Importing this package makes the auto classes of transformers know its models."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForZeroShotImageClassification

from .configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .modeling_classification_tier import TierCLIPForImageClassification
from .modeling_dual_tier import TierDualEncoderModel
from .modeling_tier import TierCLIPModel, TierCLIPOutput

# exist_ok: a checkpoint loaded earlier with trust_remote_code may have registered its own copy.
for config_class, model_class in ((TierCLIPConfig, TierCLIPModel), (TierDualEncoderConfig, TierDualEncoderModel)):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(config_class, model_class, exist_ok=True)
AutoModelForImageClassification.register(TierCLIPConfig, TierCLIPForImageClassification, exist_ok=True)

__all__ = ["TierCLIPConfig", "TierCLIPForImageClassification", "TierCLIPModel", "TierCLIPOutput", "TierDualEncoderConfig", "TierDualEncoderModel"]
