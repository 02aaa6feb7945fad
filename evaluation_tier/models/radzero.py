"""RadZero (Park et al., NeurIPS 2025): XrayDINOv2 with two more layers, MPNet, and text-conditioned pooling.

Read from the layout that its training saves, without the owner's code: github.com/deepnoid-ai/RadZero at 656ae5f,
exp/cxr_pt/model/modeling.py and losses.py, exp/cxr_pt/configs/radzero.yaml. The files of `Deepnoid/RadZero` on the Hub
were not at hand; if their names differ, loading says so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.contract import COSINE, WINDOW, PatchEmbeds, to_unit_length
from evaluation_tier.models.quiet import errors_only
from modeling_tier.configuration_tier import located
from processing_tier import TierImageProcessor
from processing_tier.radiograph_tier import read_radiograph

ALIGN, LOSS = "align_transformer.", "loss_fns.RadZeroLoss."

FILES = ["*.json", "*.txt", "*.safetensors"]

# Of MPNet's layer norm in all-mpnet-base-v2, if the config does not say so; MPNetConfig's default is another
EPS = 1e-5


def is_radzero(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of RadZero's class `CxrAlignModel`, which does not state a `model_type`."""
    return "align_transformer_config" in config


def load_radzero(name: str | Path, device: str | torch.device) -> "RadZero":
    """
    Args:
        name: a folder, or a name on the Hub.

    Raises:
        ValueError: for another design, a missing or an unexpected tensor.
    """
    folder = Path(name)
    if not folder.is_dir():
        place = located(name)
        repository = place.pop("pretrained_model_name_or_path")
        folder = Path(snapshot_download(repository, **place, allow_patterns=FILES, ignore_patterns=["data/*"]))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}
    tensors = {key: value.float() for key, value in tensors.items()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except Exception as error:  # libraries raise many kinds here
        raise ValueError(
            f"The model {name} has no complete processor (image processor and tokenizer): save those of "
            "StanfordAIMI/dinov2-base-xray-224 and sentence-transformers/all-mpnet-base-v2 beside it."
        ) from error
    edge = config["vision_config"].get("img_size")
    if edge:  # as the owner's processing.py, adapt_img_size
        image_processor.size = {"height": edge, "width": edge}
    return RadZero(str(name), config, tensors, tokenizer, image_processor).to(device).eval()


class RadZero(nn.Module):
    """
    RadZero as an [`EvaluatedModel`] with patches, maps and a score of its own. The image is its class token.

    Args:
        name: in error messages.
        config: the content of config.json.
        tensors: by the owner's names, float32.
    """

    decoding, similarity = WINDOW, COSINE

    def __init__(self, name: str, config: dict, tensors: dict[str, torch.Tensor], tokenizer: Any, processor: Any):
        super().__init__()
        check_design(name, config)
        self.settings, self.tokenizer, self.image_processor = config, tokenizer, processor
        loss, layers = loss_of(config), config["align_transformer_config"]
        self.with_class_token = loss.get("use_vision_cls_token", True)
        left = Tensors(name, tensors)
        vision = Dinov2Config.from_dict({**config["vision_config"], "model_type": "dinov2"})
        self.vision_model = left.take_tower("vision_model.", Dinov2Model, vision)
        self.text_model = left.take_tower("text_model.", MPNetModel, text_config(config["text_config"], left))
        self.layers = None
        if layers["num_hidden_layers"]:
            deeper = Dinov2Config.from_dict({**layers, "model_type": "dinov2"})
            self.layers = left.take_tower(f"{ALIGN}transformer_layers.", Dinov2Model, deeper, "encoder.").encoder
        self.align_norm = left.take_norm(f"{ALIGN}layer_norm.") if layers.get("use_layer_norm") else None
        self.norm = left.take_norm(f"{LOSS}layer_norm.") if loss.get("use_layer_norm", True) else None
        self.loss_temperature = left.take(f"{LOSS}loss_temperature")  # a logarithm
        has_own = loss.get("attn_temperature") is not None
        self.attn_temperature = left.take(f"{LOSS}attn_temperature") if has_own else None
        left.check([], list(left.tensors))

    @property
    def device(self) -> torch.device:
        return self.loss_temperature.device

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the square that it sees."""
        return self.image_processor.size["height"]

    @property
    def map_processor(self) -> TierImageProcessor:
        """The geometry of its image processor: the picture is squashed to a square."""
        return TierImageProcessor(size=dict(self.image_processor.size), geometry="squash", resize_edge=None)

    @property
    def patch_centers(self) -> tuple[float, float]:
        patch = self.vision_model.config.patch_size
        return patch / 2, patch

    @property
    def preprocessing(self) -> str:
        return json.dumps(["radzero", self.image_processor.to_dict()], sort_keys=True, default=str)

    @property
    def identity(self) -> str:
        return json.dumps([hash_weights(self), self.settings, self.preprocessing], sort_keys=True)

    def read_image(self, image: Any) -> Image.Image:
        return read_radiograph(image)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        spread = Image.fromarray(spread_levels(np.asarray(image)))
        return self.image_processor(images=[spread], return_tensors="pt")["pixel_values"]

    def embed_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Class token and patches, (batch, 1 + patches, dim)."""
        tokens = self.vision_model(pixels).last_hidden_state
        for norm_or_layers in (self.layers, self.align_norm, self.norm):
            if norm_or_layers is not None:
                tokens = norm_or_layers(tokens)
                tokens = tokens if isinstance(tokens, torch.Tensor) else tokens.last_hidden_state
        return to_unit_length(tokens)

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(pixels)[:, 0]

    def embed_patches(self, pixels: torch.Tensor) -> PatchEmbeds:
        tokens = self.embed_tokens(pixels)
        return PatchEmbeds(tokens[:, 0], tokens[:, 1:])

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """The mean of a text's tokens, normalised."""
        parts = []
        for start in range(0, len(texts), batch_size):
            part = list(texts[start : start + batch_size])
            inputs = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt").to(self.device)
            mask = inputs["attention_mask"]
            states = self.text_model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            parts.append(to_unit_length(mean if self.norm is None else self.norm(mean)))
        return torch.cat(parts)

    def score(self, images: torch.Tensor, patches: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """
        The cosine of a text and of the tokens pooled by their similarity to it (losses.py, `SimilarityLogit` with
        `sim_op` "cos"). The owner's logits are this, divided by the temperature of the loss, which changes no order.
        """
        tokens = torch.cat([images[:, None], patches], dim=1) if self.with_class_token else patches
        temperature = self.loss_temperature if self.attn_temperature is None else self.attn_temperature
        weights = F.softmax(texts @ tokens.mT / temperature.exp(), dim=-1)  # (batch, texts, tokens)
        return (F.normalize(weights @ tokens, dim=-1) * texts).sum(dim=-1)


def spread_levels(levels: np.ndarray) -> np.ndarray:
    """
    Grey levels, uint8, from 0 to 255: `cv2.normalize` with `NORM_MINMAX` (inference/dataset.py), to the bit on 8 bits.
    OpenCV multiplies and adds in one step with a single rounding, so the factors are float32 and the sum is float64.
    """
    low, high = int(levels.min()), int(levels.max())
    scale = 255 * (1 / (high - low)) if high > low else 0.0
    factor, shift = (np.float64(np.float32(value)) for value in (scale, -low * scale))
    return np.rint((levels * factor + shift).astype(np.float32)).clip(0, 255).astype(np.uint8)


def loss_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of its loss, which score too; the owner's config keeps them twice."""
    loss = config.get("loss") or config.get("kwargs", {}).get("loss") or {}
    return loss.get("RadZeroLoss") or {}


def check_design(name: str, config: Mapping[str, Any]) -> None:
    """ValueError for one of the owner's ablations, which score in another way."""
    logits = config.get("compute_logits_type") or config.get("kwargs", {}).get("compute_logits_type")
    text = config["text_config"]
    for what, value, expected in (
        ("vision_config.model_type", config["vision_config"].get("model_type"), "dinov2"),
        ("text_config.model_type", text.get("model_type"), "mpnet"),
        ("text_config.use_text_projection", text.get("use_text_projection", False), False),
        ("text_config.use_cls_token", text.get("use_cls_token", False), False),
        ("align_transformer_config.model_type", config["align_transformer_config"]["model_type"], "align_transformer"),
        ("compute_logits_type", logits, "radzero"),
        ("loss.RadZeroLoss.sim_op", loss_of(config).get("sim_op", "dot"), "cos"),
    ):
        if value != expected:
            raise ValueError(
                f"The RadZero model {name} has {what} {value!r}; only the published design is known, with "
                f"{expected!r}: evaluate it with --adapter."
            )


class Tensors:
    """The tensors of a checkpoint by name, which its parts take in turn. ValueError where they do not fit."""

    def __init__(self, name: str, tensors: Mapping[str, torch.Tensor]):
        self.name, self.tensors = name, dict(tensors)

    def check(self, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        for found, what in ((missing, "lack"), (unexpected, "have beyond RadZero's")):
            if found:
                raise ValueError(
                    f"The weights of {self.name} {what} {len(found)} tensors, for example {sorted(found)[0]}: they "
                    "belong to another architecture or are incomplete."
                )

    def size(self, key: str, axis: int) -> int:
        self.check([] if key in self.tensors else [key], [])
        return self.tensors[key].shape[axis]

    def take(self, key: str) -> nn.Parameter:
        self.check([] if key in self.tensors else [key], [])
        return nn.Parameter(self.tensors.pop(key))

    def take_norm(self, prefix: str) -> nn.LayerNorm:
        norm = nn.LayerNorm(self.size(f"{prefix}weight", 0))
        norm.weight, norm.bias = self.take(f"{prefix}weight"), self.take(f"{prefix}bias")
        return norm

    def take_tower(
        self, prefix: str, model_class: type[PreTrainedModel], config: PreTrainedConfig, inside: str = ""
    ) -> PreTrainedModel:
        """A model with the tensors of this prefix; `inside` is the prefix of the model's part that they are of."""
        keys = [key for key in self.tensors if key.startswith(prefix)]
        state = {inside + key.removeprefix(prefix): self.tensors.pop(key) for key in keys}
        with errors_only():  # the check below says it better
            # from_pretrained, because it knows the names of tensors of older versions of transformers
            model, info = model_class.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
        missing = [prefix + key.removeprefix(inside) for key in info["missing_keys"] if key.startswith(inside)]
        self.check(missing, [prefix + key.removeprefix(inside) for key in info["unexpected_keys"]])
        if info["mismatched_keys"]:
            self.check([prefix + str(min(info["mismatched_keys"])[0])], [])
        return model


def text_config(config: Mapping[str, Any], tensors: Tensors) -> MPNetConfig:
    """
    MPNet's config. The owner's holds only the name of the encoder that it started from, so sizes are the tensors'.
    """
    if "hidden_size" in config:
        return MPNetConfig.from_dict({**config, "model_type": "mpnet"})
    encoder, words = "text_model.encoder.", "text_model.embeddings.word_embeddings.weight"
    return MPNetConfig(
        vocab_size=tensors.size(words, 0),
        hidden_size=tensors.size(words, 1),
        num_hidden_layers=len({key.split(".")[3] for key in tensors.tensors if key.startswith(f"{encoder}layer.")}),
        num_attention_heads=tensors.size(f"{encoder}relative_attention_bias.weight", 1),
        relative_attention_num_buckets=tensors.size(f"{encoder}relative_attention_bias.weight", 0),
        intermediate_size=tensors.size(f"{encoder}layer.0.intermediate.dense.weight", 0),
        max_position_embeddings=tensors.size("text_model.embeddings.position_embeddings.weight", 0),
        layer_norm_eps=EPS,
    )
