"""The networks and the losses. Importing this package makes the auto classes of transformers know its models."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

from .configuration_tier import TierCLIPConfig
from .modeling_tier import TierCLIPModel, TierCLIPOutput

# exist_ok: a checkpoint loaded earlier with trust_remote_code may have registered its own copy.
AutoConfig.register(TierCLIPConfig.model_type, TierCLIPConfig, exist_ok=True)
AutoModel.register(TierCLIPConfig, TierCLIPModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(TierCLIPConfig, TierCLIPModel, exist_ok=True)

__all__ = ["TierCLIPConfig", "TierCLIPModel", "TierCLIPOutput"]
