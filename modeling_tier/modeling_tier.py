"""CLIP with text-image entropy regularization (TIER). `base_tier.py` holds the code shared with the dual encoder."""

from dataclasses import fields
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .base_tier import TierCLIPOutput, TierModelMixin
from .configuration_tier import TierCLIPConfig
from .direct_maps_tier import direct_contributions, through_norm
from .local_features_tier import LocalFeatures
from .losses_tier import counted_tokens
from .pooling_tier import pool_end, pool_image
from .towers_tier import check_image_size


class TierCLIPModel(TierModelMixin, CLIPModel):
    r"""
    [`CLIPModel`] with the two entropy terms of TIER in its loss. It has no parameter that `CLIPModel` lacks, and with
    both weights 0 and `image_pooling="cls"` its loss and its logits equal CLIP's to the last bit.

    Every method accepts `pixel_values` as normalised float (batch, 3, height, width) or as uint8 (batch, 1, height,
    width) with values 0..255. The model normalises the latter with `pixel_mean` and `pixel_std`.

    Args:
        config ([`TierCLIPConfig`]): The configuration.
    """

    config_class = TierCLIPConfig  # explicit: an annotation alone may become a string
    accepts_loss_kwargs = False  # else a batch with "labels" multiplies the loss by gradient_accumulation_steps

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        text_hidden_state: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the text tower.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): BOS, words, EOS and padding of each text.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.
            position_ids (`torch.Tensor`, *optional*): As in CLIP.
            text_hidden_state (`torch.Tensor` of shape `(texts, tokens, hidden)`, *optional*):
                The `last_hidden_state` that this method returned for these texts. The tower then does not run.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the text embedding, projected, not
            normalised.
        """
        self.check_text_length(input_ids)
        kwargs.pop("vision_hidden_state", None)  # CLIPModel.forward passes the same options to both towers
        if text_hidden_state is not None:
            hidden = text_hidden_state.to(self.text_projection.weight.dtype)
            end = pool_end(hidden, input_ids, self.config.text_config.eos_token_id)
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.text_projection(end))
        return super().get_text_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_hidden_state: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the image tower.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            vision_hidden_state (`torch.Tensor` of shape `(batch, 1 + patches, hidden)`, *optional*):
                The `last_hidden_state` that this method returned for these images, in place of `pixel_values`. The
                tower then does not run.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (batch, dim) is the global image embedding that
            `config.image_pooling` asks for, projected, not normalised.
        """
        kwargs.pop("text_hidden_state", None)  # CLIPModel.forward passes the same options to both towers
        if vision_hidden_state is not None:
            hidden = vision_hidden_state.to(self.visual_projection.weight.dtype)
            class_token = self.vision_model.post_layernorm(hidden[:, 0])
            vision_outputs = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=class_token)
        else:
            pixel_values = self.normalize_pixels(pixel_values)
            check_image_size(pixel_values, self.vision_model.embeddings, interpolate_pos_encoding)
            # without super(), so that the classifier, which has no text tower, uses this method too
            vision_outputs = self.vision_model(
                pixel_values=pixel_values,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
                **kwargs,
            )
        patches = self.vision_model.post_layernorm(vision_outputs.last_hidden_state[:, 1:])  # (batch, patches, hidden)
        # Pooled before the projection, which is linear without bias: the mean of the projected patches is the same.
        pooled = pool_image(self.config.image_pooling, patches, class_token=vision_outputs.pooler_output)
        vision_outputs.pooler_output = self.visual_projection(pooled)  # (batch, dim)
        return vision_outputs

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_hidden_state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """
        Runs the image tower once, for the image embedding and for the patches.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            vision_hidden_state (`torch.Tensor`, *optional*):
                In place of `pixel_values` of the model's own size; see [`get_image_features`].

        Returns:
            `tuple`: what [`get_image_features`] returns, and the patches (batch, rows, columns, dim), not normalised.
        """
        vision_outputs = self.get_image_features(
            pixel_values, interpolate_pos_encoding, vision_hidden_state, return_dict=True, **kwargs
        )
        patches = self.project_patches(vision_outputs.last_hidden_state)  # (batch, patches, dim)
        config = self.config.vision_config
        size = (config.image_size,) * 2 if pixel_values is None else pixel_values.shape[-2:]
        return vision_outputs, patches.unflatten(1, [edge // config.patch_size for edge in size])

    def encode_direct(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor, torch.Tensor]:
        if self.config.image_pooling != "cls":
            return super().encode_direct(pixel_values, interpolate_pos_encoding)
        outputs, patches = self.encode_images(pixel_values, interpolate_pos_encoding, output_hidden_states=True)
        parts = direct_contributions(self.vision_model, outputs.hidden_states)
        parts = through_norm(self.vision_model.post_layernorm, parts, outputs.last_hidden_state[:, 0])
        length = outputs.pooler_output.float().norm(dim=-1)[:, None, None]
        direct = self.visual_projection(parts).float() / length  # (images, patches, dim)
        return outputs, patches, direct.unflatten(1, patches.shape[1:3])

    def project_patches(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(batch, 1 + patches, hidden) to (batch, patches, dim), as CLIP norms and projects its class token."""
        return self.visual_projection(self.vision_model.post_layernorm(last_hidden_state[:, 1:]))

    # Longer than 60 lines: the library's own arguments, each documented
    # More than 7 parameters: the Trainer passes the columns that this signature names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
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
            input_ids (`torch.LongTensor` of shape `(texts, tokens)`): BOS, words, EOS and padding of each text.
            pixel_values (`torch.Tensor`): See the class.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                0 for padding. Without it, every token up to the first EOS counts as attended in the entropies.
            position_ids (`torch.LongTensor`, *optional*): As in CLIP.
            return_loss (`bool`, *optional*):
                Whether to compute the loss, its terms and the local embeddings. Under `torch.distributed` all
                processes must do so together.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            return_entropy_sums (`bool`, *optional*, defaults to `False`):
                Return `entropy_sums` and `entropy_counts` instead of the loss, for some pairs of a larger batch.
            text_mean (`torch.Tensor` of shape `(dim,)`, *optional*):
                With `return_entropy_sums=True`: the mean of `text_embeds` over that larger batch. Without it, the sum
                of the evidence entropies is 0.
            text_groups (`torch.LongTensor` of shape `(texts,)`, *optional*):
                Equal for texts that say the same; the loss does not treat their pairs as negatives of one another.
            image_views (`int`, *optional*, defaults to 1):
                Views of each image, see [`views_contrastive_loss`]; `pixel_values` then has all first views in the
                order of the texts, then all second ones, and so on.
            texts_per_image (`int`, *optional*, defaults to 0):
                Texts of each image, each a positive of its own in the loss, see [`contrastive_loss`]; `input_ids` then
                has all first texts in the order of the images, then all second ones, and so on. Texts that say the
                same count once. 0 for one text per image, each of which counts.
            vision_hidden_state (`torch.Tensor` of shape `(images, 1 + patches, hidden)`, *optional*):
                The `last_hidden_state` of the image tower for these images, in place of `pixel_values`. The tower then
                does not run, so it must be frozen; what is on top of it is trained as with the pixels.
            text_hidden_state (`torch.Tensor` of shape `(texts, tokens, hidden)`, *optional*):
                Likewise of the text tower for `input_ids`, which are needed beside it. The rows of padding count only
                with `entropy_tokens="all"`.
            return_dict (`bool`, *optional*): `False` for a tuple of the fields that are not `None`.

        Returns:
            [`TierCLIPOutput`]

        Raises:
            ValueError: `return_loss=True` with other numbers of texts and images, or with several views and several
                texts of an image; a text with more tokens than the
                text tower has positions, or `pixel_values` of a shape or size that the model does not take.
        """
        outputs = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            interpolate_pos_encoding=interpolate_pos_encoding,
            vision_hidden_state=vision_hidden_state,
            text_hidden_state=text_hidden_state,
            return_dict=True,
            **kwargs,
        )
        if not return_loss and not return_entropy_sums:
            return TierCLIPOutput(**outputs)
        local = LocalFeatures(
            texts=outputs.text_embeds,
            tokens=self.text_projection(outputs.text_model_output.last_hidden_state),
            patches=self.project_patches(outputs.vision_model_output.last_hidden_state),
            token_mask=counted_tokens(
                input_ids, attention_mask, self.config.text_config.eos_token_id, self.config.entropy_tokens
            ),
        )
        if return_entropy_sums:
            sums = self.compute_entropy_sums(local, image_views, text_mean)
            return TierCLIPOutput(**sums, **outputs)
        return self.add_loss(outputs, local, text_groups, image_views, texts_per_image)

    def to_clip(self) -> CLIPModel:
        """
        Makes a plain `CLIPModel` with a copy of the weights and identical logits.

        Returns:
            `CLIPModel`: On the same device, in the same dtype and mode.

        Raises:
            ValueError: The model pools its images otherwise than CLIP does.
        """
        if self.config.image_pooling != "cls":
            raise ValueError(
                f'A model with image_pooling="{self.config.image_pooling}" cannot become a CLIPModel with identical '
                "logits: CLIP takes the image embedding from the class token, which this model's loss never trained."
            )
        config = self.config.to_dict()
        config = CLIPConfig(**{field.name: config[field.name] for field in fields(CLIPConfig) if field.name in config})
        model = CLIPModel._from_config(config, attn_implementation=self.config._attn_implementation)
        model.load_state_dict(self.state_dict())
        return model.to(device=self.device, dtype=self.dtype).train(self.training)


TierCLIPModel.register_for_auto_class("AutoModel")

__all__ = ["TierCLIPModel"]
