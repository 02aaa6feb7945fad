"""SigLIP with text-image entropy regularization (TIER). `base_tier.py` holds the code shared by the architectures."""

from dataclasses import fields
from typing import Any

import torch
from transformers import SiglipConfig, SiglipModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import SiglipOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .base_tier import TierCLIPOutput, TierModelMixin
from .configuration_siglip_tier import TierSiglipConfig
from .global_batch_tier import Pairs
from .local_features_tier import LocalFeatures
from .sigmoid_loss_tier import sigmoid_loss, sigmoid_loss_share
from .towers_tier import check_image_size


class TierSiglipModel(TierModelMixin, SiglipModel):
    r"""
    [`SiglipModel`] (SigLIP, MedSigLIP, XraySigLIP, and SigLIP 2 of a fixed resolution) with the two entropy terms of
    TIER in its loss. It has no parameter that `SiglipModel` lacks, and with both weights 0 its loss and its logits
    equal SigLIP's to the last bit. `contrastive_loss` of the output is SigLIP's sigmoid loss, see [`sigmoid_loss`].

    SigLIP has no projections: the last layer of each tower, its head, leads into the common space.

    - A token's embedding is its last hidden state through the text tower's head, as that of the whole text is the last
      position's.
    - A patch's embedding is that of an image of this patch alone: with a single patch, the attention of the pooling
      head is 1, and what remains are its value and output projections and its MLP. So the embedding is in the space of
      the texts, which the hidden state is not, and an image is pooled from the values that these embeddings are made
      of. (Zhou, Loy & Dai, "Extract free dense labels from CLIP", ECCV 2022, arXiv:2112.01071, do so with the
      attention pooling of CLIP's ResNets.)

    SigLIP's texts are padded to `max_position_embeddings` and have no attention mask: it was trained so, and pools the
    last position, which most often is padding. `texts_tier.tokenize` makes such texts, and so does the processor.

    Every method accepts `pixel_values` as normalised float (batch, 3, height, width) or as uint8 (batch, 1, height,
    width) with values 0..255. The model normalises the latter with `pixel_mean` and `pixel_std`.

    Args:
        config ([`TierSiglipConfig`]): The configuration.

    Raises:
        ValueError: The image tower lacks SigLIP's pooling head.
    """

    config_class = TierSiglipConfig  # explicit: an annotation alone may become a string
    accepts_loss_kwargs = False  # else a batch with "labels" multiplies the loss by gradient_accumulation_steps
    logit_parameters = ("logit_scale", "logit_bias")

    def __init__(self, config: TierSiglipConfig):
        super().__init__(config)
        if not self.vision_model.use_head:
            raise ValueError("vision_use_head=False leaves out the head that pools SigLIP's images; set it to True.")

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
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): Words, end token and padding of each text.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                As in SigLIP, which was trained without one.
            position_ids (`torch.Tensor`, *optional*): As in SigLIP.
            text_hidden_state (`torch.Tensor` of shape `(texts, tokens, hidden)`, *optional*):
                The `last_hidden_state` that this method returned for these texts. Only the head then runs.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the text embedding, not normalised.
        """
        self.check_text_length(input_ids)
        if text_hidden_state is not None:
            hidden = text_hidden_state.to(self.logit_scale.dtype)
            return BaseModelOutputWithPooling(hidden, pooler_output=self.text_model.head(hidden[:, -1]))
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
            vision_hidden_state (`torch.Tensor` of shape `(batch, patches, hidden)`, *optional*):
                The `last_hidden_state` that this method returned for these images, in place of `pixel_values`. Only
                the head then runs.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (batch, dim) is the image embedding, not normalised.
        """
        if vision_hidden_state is not None:
            hidden = vision_hidden_state.to(self.logit_scale.dtype)
            return BaseModelOutputWithPooling(hidden, pooler_output=self.vision_model.head(hidden))
        return super().get_image_features(
            pixel_values=self.check_pixels(pixel_values, interpolate_pos_encoding),
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )

    def check_pixels(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        """The pixels as the image tower takes them; ValueError if it cannot."""
        pixel_values = self.normalize_pixels(pixel_values)
        check_image_size(pixel_values, self.vision_model.embeddings, interpolate_pos_encoding)
        return pixel_values

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_hidden_state: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """As [`TierCLIPModel.encode_images`]."""
        outputs = self.get_image_features(
            pixel_values, interpolate_pos_encoding, vision_hidden_state, return_dict=True, **kwargs
        )
        patches = self.project_patches(outputs.last_hidden_state)  # (batch, patches, dim)
        config = self.config.vision_config
        size = (config.image_size,) * 2 if pixel_values is None else pixel_values.shape[-2:]
        return outputs, patches.unflatten(1, [edge // config.patch_size for edge in size])

    def project_patches(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(batch, patches, hidden) to (batch, patches, dim): what the pooling head gives for each patch alone."""
        # through the module itself, whose weights may be sharded or offloaded
        alone = self.vision_model.head(last_hidden_state.flatten(0, 1).unsqueeze(1))  # (batch * patches, dim)
        return alone.unflatten(0, last_hidden_state.shape[:2])

    def project_tokens(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        return self.text_model.head(last_hidden_state)

    def contrast(
        self, images: torch.Tensor, texts: torch.Tensor, text_groups: torch.Tensor | None, texts_per_image: int
    ) -> torch.Tensor:
        """[`sigmoid_loss`] with this model's `logit_scale` and `logit_bias`."""
        scale, bias = self.logit_scale.to(texts.device), self.logit_bias.to(texts.device)
        return sigmoid_loss(images, texts, scale, bias, text_groups, texts_per_image)

    def contrast_views(
        self, images: torch.Tensor, texts: torch.Tensor, image_views: int, text_groups: torch.Tensor | None
    ) -> torch.Tensor:
        raise ValueError(
            f"image_views={image_views} does not work with SigLIP, whose loss does not compare images with each "
            "other; use 1."
        )

    def contrast_share(
        self, own: Pairs, all_pairs: Pairs, first: int, *logit_parameters: torch.Tensor
    ) -> torch.Tensor:
        """See [`sigmoid_loss_share`]."""
        return sigmoid_loss_share(own, all_pairs, first, *logit_parameters)

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
            input_ids (`torch.LongTensor` of shape `(texts, tokens)`): Words, end token and padding of each text.
            pixel_values (`torch.Tensor`): See the class.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                As in SigLIP, which was trained without one. The entropies count by the end token and not by the mask.
            position_ids (`torch.LongTensor`, *optional*): As in SigLIP.
            return_loss (`bool`, *optional*), return_entropy_sums (`bool`, *optional*, defaults to `False`),
            text_mean (`torch.Tensor`, *optional*): As in [`TierCLIPModel.forward`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            text_groups (`torch.LongTensor` of shape `(texts,)`, *optional*):
                Equal for texts that say the same, each of which belongs to the images of all; see [`sigmoid_loss`].
            image_views (`int`, *optional*, defaults to 1): Only 1.
            texts_per_image (`int`, *optional*, defaults to 0):
                Texts of each image, see [`sigmoid_loss`]; `input_ids` then has all first texts in the order of the
                images, then all second ones, and so on. 0 for one text per image, each of which counts.
            vision_hidden_state, text_hidden_state (`torch.Tensor`, *optional*):
                What frozen towers gave, as in [`TierCLIPModel.forward`]; the heads run.
            return_dict (`bool`, *optional*): `False` for a tuple of the fields that are not `None`.

        Returns:
            [`TierCLIPOutput`]: `logits_per_image` and `logits_per_text` contain `logit_bias`.

        Raises:
            ValueError: `return_loss=True` with other numbers of texts and images or with several views, a text with
                more tokens than the text tower has positions, or `pixel_values` of a shape or size that the model does
                not take.
        """
        outputs = self.compare(
            self.get_image_features(
                pixel_values, interpolate_pos_encoding, vision_hidden_state, return_dict=True, **kwargs
            ),
            self.get_text_features(
                input_ids, attention_mask, position_ids, text_hidden_state, return_dict=True, **kwargs
            ),
        )
        if not return_loss and not return_entropy_sums:
            return TierCLIPOutput(**outputs)
        local = LocalFeatures(
            texts=outputs.text_embeds,
            tokens=self.project_tokens(outputs.text_model_output.last_hidden_state),
            patches=self.project_patches(outputs.vision_model_output.last_hidden_state),
            token_mask=self.counted_tokens(input_ids),
        )
        if return_entropy_sums:
            sums = self.compute_entropy_sums(local, image_views, text_mean)
            return TierCLIPOutput(**sums, **outputs)
        return self.add_loss(outputs, local, text_groups, image_views, texts_per_image)

    def compare(self, images: BaseModelOutputWithPooling, texts: BaseModelOutputWithPooling) -> SiglipOutput:
        """Normalised embeddings and logits by the operations of `SiglipModel.forward`, in their order."""
        image_embeds, text_embeds = (
            output.pooler_output / output.pooler_output.norm(p=2, dim=-1, keepdim=True) for output in (images, texts)
        )
        device = text_embeds.device
        scale, bias = self.logit_scale.to(device), self.logit_bias.to(device)
        logits_per_text = torch.matmul(text_embeds, image_embeds.t().to(device)) * scale.exp() + bias
        return SiglipOutput(
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=texts,
            vision_model_output=images,
        )

    def counted_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The positions that the entropies count, bool `(texts, tokens)`; see `entropy_tokens`."""
        config = self.config.text_config
        ends = [config.pad_token_id, *as_list(config.eos_token_id)]
        ends = torch.tensor([token for token in ends if token is not None], device=input_ids.device)
        return text_positions(torch.isin(input_ids, ends), self.config.entropy_tokens)

    def to_siglip(self) -> SiglipModel:
        """
        Makes a plain `SiglipModel` with a copy of the weights and identical logits.

        Returns:
            `SiglipModel`: On the same device, in the same dtype and mode.
        """
        config = self.config.to_dict()
        names = [field.name for field in fields(SiglipConfig) if field.name in config]
        config = SiglipConfig(**{name: config[name] for name in names})
        model = SiglipModel._from_config(config, attn_implementation=self.config._attn_implementation)
        model.load_state_dict(self.state_dict())
        return model.to(device=self.device, dtype=self.dtype).train(self.training)


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def text_positions(is_end: torch.Tensor, entropy_tokens: str) -> torch.Tensor:
    """
    The token positions that the entropies count.

    Args:
        is_end (`torch.Tensor` of shape `(texts, tokens)`): bool, True for end tokens and padding.
        entropy_tokens (`str`): `"words"`, `"attended"` or `"all"`, see [`TierSiglipConfig`].

    Returns:
        `torch.Tensor` of shape `(texts, tokens)`: bool.
    """
    if entropy_tokens == "all":
        return torch.ones_like(is_end)
    began = (~is_end).cumsum(-1) > 0  # padding may also come first
    ends = (is_end & began).cumsum(-1)  # 0 in the text, 1 at its end token
    words = began & (ends == 0)
    return words | (is_end & (ends == 1)) if entropy_tokens == "attended" else words


TierSiglipModel.register_for_auto_class("AutoModel")

__all__ = ["TierSiglipModel"]
