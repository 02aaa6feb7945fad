"""The networks and the losses. Importing this package makes transformers know its models and pipeline."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .base_tier import TierCLIPOutput
from .configuration_siglip_tier import TierSiglipConfig
from .configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .exported_tier import TierExportedConfig, TierExportedModel
from .heat_map_tier import HeatMap
from .modeling_classification_tier import TierCLIPForImageClassification, TierDualEncoderForImageClassification
from .modeling_dual_tier import TierDualEncoderModel
from .modeling_siglip_tier import TierSiglipModel
from .modeling_tier import TierCLIPModel
from .pipeline_tier import TASK, CxrZeroShotClassificationPipeline

# exist_ok: a checkpoint loaded earlier with trust_remote_code may have registered its own copy.
for config_class, model_class in (
    (TierCLIPConfig, TierCLIPModel),
    (TierSiglipConfig, TierSiglipModel),
    (TierDualEncoderConfig, TierDualEncoderModel),
    (TierExportedConfig, TierExportedModel),
):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(config_class, model_class, exist_ok=True)
AutoModelForImageClassification.register(TierCLIPConfig, TierCLIPForImageClassification, exist_ok=True)
AutoModelForImageClassification.register(TierDualEncoderConfig, TierDualEncoderForImageClassification, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=CxrZeroShotClassificationPipeline, pt_model=AutoModel)

__all__ = [
    "CxrZeroShotClassificationPipeline",
    "HeatMap",
    "TierCLIPConfig",
    "TierCLIPForImageClassification",
    "TierCLIPModel",
    "TierCLIPOutput",
    "TierDualEncoderConfig",
    "TierDualEncoderForImageClassification",
    "TierDualEncoderModel",
    "TierExportedConfig",
    "TierExportedModel",
    "TierSiglipConfig",
    "TierSiglipModel",
]
