"""The paper's own architecture (TIER): any image backbone and any text encoder, joined by projection heads."""

import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .adapter_layers_tier import ZeroLinear, make_adapter
from .base_tier import TierCLIPOutput, TierModelMixin
from .configuration_tier import TierDualEncoderConfig
from .local_features_tier import LocalFeatures
from .losses_tier import attended_tokens, counted_tokens
from .pooling_tier import NEEDS_CLASS_TOKEN, pool_end, pool_image, pool_text
from .tower_features_tier import TowerFeatures, read_features
from .towers_tier import (
    check_image_tower,
    check_text_tower,
    freeze_layers,
    has_attention,
    hidden_size,
    load_towers,
    make_text_projection,
    make_tower,
    make_visual_projection,
)


class TierDualEncoderModel(TierModelMixin, PreTrainedModel):
    r"""
    An image backbone (ResNet, ConvNeXt, ViT, DINOv2, Swin, ...) and a text encoder (BERT, RoBERTa, CLIP's, ...), each
    with a projection head into one space (authors' code at ce1e171: Modeling/modules.py:26-46 for images,
    modeling_cxrbert.py:34-53 for texts). The text head projects every token; by default [CLS] represents the text (in
    CLIP's encoder, which reads forward only, the end token does). The image head projects every patch; by default the
    mean of the patches represents the image. Other heads and poolings of the configuration hold the weights of other
    projects' models (BiomedCLIP, CheXficient).

    Every method accepts `pixel_values` as normalised float (batch, 3, height, width) or as uint8 (batch, 1, height,
    width) with values 0..255. The model normalises the latter with `pixel_mean` and `pixel_std`. A backbone with one
    channel sees the first of the three.

    The loss is over the global batch, but in training the batch norms of a process see only its own images. On GPUs,
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes them see all.

    Args:
        config ([`TierDualEncoderConfig`]): The configuration.
        vision_model ([`PreTrainedModel`], *optional*): The image backbone; made from the configuration by default.
        text_model ([`PreTrainedModel`], *optional*): The text encoder; likewise.

    Raises:
        ValueError: A tower is not an image backbone or not such a text encoder, or the backbone lacks the class token
            that `image_pooling` needs.
    """

    config_class = TierDualEncoderConfig  # explicit: an annotation alone may become a string
    base_model_prefix = "tier_dual_encoder"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False  # else a batch with "labels" multiplies the loss by gradient_accumulation_steps
    supports_gradient_checkpointing = True
    # Each tower checks what it supports.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: TierDualEncoderConfig,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.vision_model = make_tower(config.vision_config) if vision_model is None else vision_model
        self.text_model = make_tower(config.text_config) if text_model is None else text_model
        # The same objects, so that a setting (the implementation of attention) reaches the tower.
        self.config.vision_config, self.config.text_config = self.vision_model.config, self.text_model.config
        check_image_tower(self.vision_model, config.image_pooling)
        check_text_tower(self.text_model)

        self.image_adapter = make_adapter(hidden_size(config.vision_config), config.adapter_layers)
        self.visual_projection = make_visual_projection(config)
        self.text_projection = make_text_projection(config)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()
        self.freeze_text_layers()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):  # the heads, as torch and the authors initialise them
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def train(self, mode: bool = True) -> "TierDualEncoderModel":
        """As [`torch.nn.Module.train`], but a frozen batch norm (for example under LoRA) keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def freeze_text_layers(self) -> None:
        """Freezes the embeddings and the first `frozen_text_layers` layers of the text encoder."""
        if self.config.frozen_text_layers:
            freeze_layers(self.text_model, self.config.frozen_text_layers)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a saved model; see [`PreTrainedModel.from_pretrained`]. The frozen layers are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        model.freeze_text_layers()
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str, text: str, image_size: int | None = None, **config: Any
    ) -> "TierDualEncoderModel":
        """
        Joins two pretrained towers by projection heads of random weights, in float32.

        Args:
            vision (`str`): Folder or name of a checkpoint. From one with two towers (CLIP), the image tower is taken.
            text (`str`): Likewise, for the text encoder. CXR-BERT is read as a BERT.
            image_size (`int`, *optional*): Edge in pixels, where it differs from the image tower's; see
                [`resize_image_positions`].
            config: Fields of [`TierDualEncoderConfig`]. Without `text_pooling`, a text encoder of
                sentence-transformers is pooled as its own files say.

        Raises:
            ValueError: transformers does not know a checkpoint, or a checkpoint lacks weights or is not such a tower.
        """
        config, towers = load_towers(vision, text, **config)
        model = cls(config, **towers).eval()
        if image_size is not None:
            model.resize_image_positions(image_size)
        return model

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """As [`PreTrainedModel.set_attn_implementation`], but it skips an image backbone without attention."""
        if isinstance(attn_implementation, str) and not has_attention(type(self.vision_model)):
            attn_implementation = {"": attn_implementation, "text_config": attn_implementation}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        text_hidden_state: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the text encoder.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): [CLS], words, [SEP] and padding of each text.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                0 for padding. Without it, `pad_token_id` and `eos_token_id` of the text encoder's configuration tell
                the padding.
            position_ids, token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                As the text encoder takes them; an encoder without token types ignores them.
            text_hidden_state (`torch.Tensor` of shape `(texts, tokens, hidden)`, *optional*):
                The `last_hidden_state` that this method returned for these texts. The encoder then does not run.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the projected token that `text_pooling`
            selects, or the end token of a CLIP text encoder, not normalised.
        """
        self.check_text_length(input_ids)
        if attention_mask is None:
            attention_mask = self.infer_attention_mask(input_ids)
        if text_hidden_state is not None:
            hidden = text_hidden_state.to(self.text_projection[0].weight.dtype)
            pooled = self.pool_text_tokens(hidden, input_ids, attention_mask)
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.text_projection(pooled))
        if token_type_ids is not None and getattr(self.config.text_config, "type_vocab_size", None):
            kwargs["token_type_ids"] = token_type_ids
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        pooled = self.pool_text_tokens(outputs.last_hidden_state, input_ids, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.text_projection(pooled),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def pool_text_tokens(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The hidden state of the token that stands for each text, (texts, hidden); see [`get_text_features`]."""
        if self.reads_forward:
            return pool_end(hidden, input_ids, self.config.text_config.eos_token_id)
        return pool_text(self.config.text_pooling, hidden, attention_mask)

    @property
    def reads_forward(self) -> bool:
        """Whether the text encoder is CLIP's, in which the end token, not the first one, has seen the whole text."""
        return isinstance(self.text_model, CLIPTextModel)

    def infer_attention_mask(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """The attention mask of texts that came without one; `None` for an encoder that reads forward."""
        text_config = self.config.text_config
        if self.reads_forward:
            return None
        return attended_tokens(input_ids, text_config.pad_token_id, text_config.eos_token_id)

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_hidden_state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """
        As [`TierCLIPModel.encode_images`], with the backbone and its projection head. `vision_hidden_state` has the
        shape that the backbone gives.
        """
        if vision_hidden_state is None:
            outputs, features = self.run_image_tower(pixel_values, interpolate_pos_encoding, **kwargs)
        else:
            hidden, size = vision_hidden_state.to(self.visual_projection[0].weight.dtype), self.config.image_size
            outputs, features = BaseModelOutput(hidden), read_features(self.vision_model, hidden, size, size)
        pooled, patches = self.project_features(features)
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pooled,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        return outputs, patches

    def run_image_tower(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> tuple[ModelOutput, TowerFeatures]:
        """
        The backbone alone: its own output, and what the projection head gets of it. Nothing here is trained while the
        image tower is frozen.
        """
        pixel_values = self.normalize_pixels(pixel_values)
        if getattr(self.config.vision_config, "num_channels", 3) == 1:
            pixel_values = pixel_values[:, :1]
        pixel_values = pixel_values.to(self.visual_projection[0].weight.dtype)
        size, own_size = self.config.image_size, getattr(self.config.vision_config, "image_size", None)
        if interpolate_pos_encoding or own_size not in (None, size, [size, size], (size, size)):
            # Backbones without the option take images of any size.
            takes = inspect.signature(self.vision_model.forward).parameters
            kwargs |= {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        return outputs, read_features(self.vision_model, outputs.last_hidden_state, *pixel_values.shape[-2:])

    def project_features(self, features: TowerFeatures) -> tuple[torch.Tensor, torch.Tensor]:
        """
        All that comes after the image tower: adapter layers, projection head and pooling.

        Args:
            features ([`TowerFeatures`]): Of [`run_image_tower`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The global image embedding (batch, dim) and the patches (batch, rows,
            columns, dim), projected, not normalised.
        """
        if self.image_adapter is not None:
            features = TowerFeatures(self.image_adapter(features.tokens), features.rows, features.columns)
        # A class token goes through the head only if it is used: the head's batch norm sees all that goes through.
        is_used = self.config.image_pooling in NEEDS_CLASS_TOKEN
        tokens = (features.tokens if is_used else features.patches).transpose(1, 2)  # (batch, hidden, tokens)
        # of whole channels: the mean over the patches would undo a draw for each patch
        tokens = nn.functional.dropout1d(tokens, self.config.image_head_dropout, self.training)
        if self.config.image_head == "tier":  # of 1x1 convolutions
            projected = self.visual_projection(tokens.unsqueeze(-1)).squeeze(-1)  # (batch, dim, tokens)
        else:
            projected = self.visual_projection(tokens.mT).mT
        class_token, patches = (projected[..., 0], projected[..., 1:]) if is_used else (None, projected)
        pooled = pool_image(self.config.image_pooling, patches, class_token, dim=-1)  # (batch, dim)
        return pooled, patches.transpose(1, 2).unflatten(1, (features.rows, features.columns))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_hidden_state: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the image backbone.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            vision_hidden_state (`torch.Tensor`, *optional*):
                The `last_hidden_state` that this method returned for these images, in place of `pixel_values` of the
                model's own size. The backbone then does not run.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is the backbone's own; `pooler_output` (batch, dim) is
            the global image embedding that `config.image_pooling` selects, projected, not normalised.
        """
        return self.encode_images(pixel_values, interpolate_pos_encoding, vision_hidden_state, **kwargs)[0]

    # Longer than 60 lines: the arguments
    # More than 7 parameters: the Trainer passes the columns that this signature names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_entropy_sums: bool = False,
        text_mean: torch.Tensor | None = None,
        text_groups: torch.LongTensor | None = None,
        image_views: int = 1,
        texts_per_image: int = 0,
        vision_hidden_state: torch.Tensor | None = None,
        text_hidden_state: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | TierCLIPOutput:
        """
        Compares every text with every image and, with `return_loss=True`, text i with image i for the loss.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids (`torch.Tensor` of shape `(texts, tokens)`):
                See [`get_text_features`].
            kwargs: The other arguments, and the errors, are those of [`TierCLIPModel.forward`].

        Returns:
            [`TierCLIPOutput`]
        """
        text_outputs = self.get_text_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            text_hidden_state=text_hidden_state,
            return_dict=True,
            **kwargs,
        )
        vision_outputs, patches = self.encode_images(
            pixel_values, interpolate_pos_encoding, vision_hidden_state, **kwargs
        )
        if attention_mask is None:
            attention_mask = self.infer_attention_mask(input_ids)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
        image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)
        device = text_embeds.device  # with device_map, each tower may have its own
        logits_per_text = text_embeds @ image_embeds.to(device).t() * self.logit_scale.to(device).exp()
        outputs = TierCLIPOutput(
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )
        if not return_loss and not return_entropy_sums:
            return outputs
        eos_token_id = self.config.text_config.eos_token_id if self.reads_forward else None  # CLIP's is always right
        local = LocalFeatures(
            texts=text_embeds,
            tokens=self.text_projection(text_outputs.last_hidden_state),
            patches=patches.flatten(1, 2),
            token_mask=counted_tokens(input_ids, attention_mask, eos_token_id, self.config.entropy_tokens),
        )
        if return_entropy_sums:
            sums = self.compute_entropy_sums(local, image_views, text_mean)
            return TierCLIPOutput(**sums, **outputs)
        return self.add_loss(outputs, local, text_groups, image_views, texts_per_image)


TierDualEncoderModel.register_for_auto_class("AutoModel")

__all__ = ["TierDualEncoderModel"]
