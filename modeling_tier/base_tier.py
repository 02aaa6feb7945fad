"""Shared by all architectures: the output, the checks of pixels and texts, the loss, and similarity maps."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from .contrastive_loss_tier import contrastive_loss, summed_cross_entropy, views_contrastive_loss
from .evidence_tier import evidence_entropy_sum
from .global_batch_tier import Pairs, mean_over_processes, mean_row, world_size
from .local_features_tier import LocalFeatures
from .losses_tier import REFERENCE_EPS, entropy_sums, token_patch_similarity, total_loss
from .maps_tier import check_map_kind, cosine_map, map_kinds, similarity_map
from .patch_centers_tier import trace_patch_centers
from .pipeline_tier import custom_pipelines
from .saving_tier import SavingMixin
from .towers_tier import resize_positions


@dataclass
class TierCLIPOutput(CLIPOutput):
    r"""
    The fields of [`CLIPOutput`] and those below, which are set only with `return_loss=True`. Then `loss` is
    `contrastive_loss + token_entropy_weight * token_entropy + patch_entropy_weight * patch_entropy`, plus
    `evidence_entropy_weight * evidence_entropy` where that weight is not 0. Under `torch.distributed`, the mean of
    each scalar over the processes is its value for the global batch.

    Args:
        contrastive_loss (`torch.Tensor`): Scalar, nats; CLIP's own loss.
        token_entropy (`torch.Tensor`): Scalar, nats; mean entropy of a token's distribution over patches.
        patch_entropy (`torch.Tensor`): Scalar, nats; mean entropy of a patch's distribution over tokens.
        evidence_entropy (`torch.Tensor`, *optional*):
            Scalar, nats; see `evidence_tier.py`. `None` where `evidence_entropy_weight` is 0.
        token_embeds (`torch.Tensor` of shape `(texts, tokens, dim)`): Projected tokens, L2-normalised, float32.
        patch_embeds (`torch.Tensor` of shape `(images, patches, dim)`): Projected patches, L2-normalised, float32.
        entropy_sums (`torch.Tensor` of shape `(3,)`):
            Only with `return_entropy_sums=True`, nats: the entropies of the tokens, of the patches and of the evidence
            of these pairs, each summed. Summed over all pairs and divided by the counts, they are `token_entropy`,
            `patch_entropy` and `evidence_entropy`. The third is 0 without `text_mean`.
        entropy_counts (`torch.Tensor` of shape `(3,)`):
            Likewise; the numbers of those tokens, of those patches, and of the pairs (0 where
            `evidence_entropy_weight` is 0).
    """

    contrastive_loss: torch.Tensor | None = None
    token_entropy: torch.Tensor | None = None
    patch_entropy: torch.Tensor | None = None
    evidence_entropy: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    entropy_sums: torch.Tensor | None = None
    entropy_counts: torch.Tensor | None = None


class TierModelMixin(SavingMixin):
    """
    Methods of [`TierCLIPModel`], [`TierSiglipModel`] and [`TierDualEncoderModel`]. Each of them has
    `get_text_features`, `get_image_features` and `encode_images`.
    """

    logit_parameters: tuple[str, ...] = ("logit_scale",)  # that the contrastive loss learns beside the embeddings
    entropy_scale = 1.0  # in training; set below 1 by a warm-up, and never saved

    def normalize_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turns uint8 (batch, 1, height, width) into the image processor's float output; float passes through."""
        if pixel_values is None:
            raise ValueError("pixel_values are missing: pass the images as the image processor returns them.")
        is_uint8 = pixel_values.dtype == torch.uint8
        channels = (1, 3) if is_uint8 else (3, getattr(self.config.vision_config, "num_channels", 3))
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] not in channels
            or not (is_uint8 or pixel_values.is_floating_point())
        ):
            raise ValueError(
                "pixel_values must be float of shape (batch, 3, height, width) or uint8 of shape (batch, 1, height, "
                f"width), not {tuple(pixel_values.shape)} of {pixel_values.dtype}. The image processor returns such "
                "pixels."
            )
        if not is_uint8:
            return pixel_values
        mean = torch.tensor(self.config.pixel_mean, device=pixel_values.device).view(-1, 1, 1)
        std = torch.tensor(self.config.pixel_std, device=pixel_values.device).view(-1, 1, 1)
        return (pixel_values.float() / 255 - mean) / std  # (batch, 3, height, width)

    def check_text_length(self, input_ids: torch.Tensor) -> None:
        """
        Raises:
            ValueError: The texts are missing or longer than the text tower's positions.
        """
        if input_ids is None:
            raise ValueError("input_ids are missing: pass the texts as the tokenizer returns them.")
        embeddings = getattr(self.text_model, "embeddings", None)
        table = getattr(embeddings, "position_embedding", None)  # CLIP's
        table = getattr(embeddings, "position_embeddings", None) if table is None else table  # BERT's and its kin's
        if table is None:  # relative positions
            return
        limit = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)  # RoBERTa's
        if input_ids.shape[-1] > limit:
            raise ValueError(
                f"Texts of {input_ids.shape[-1]} tokens are longer than the {limit} that this model reads; tokenize "
                f"them with truncation=True, max_length={limit}."
            )

    @property
    def entropy_weights(self) -> tuple[float, float, float]:
        """
        Weights of the entropies of tokens, patches and evidence: the configuration's, times `entropy_scale` in
        training.
        """
        config, scale = self.config, self.entropy_scale if self.training else 1.0
        weights = (config.token_entropy_weight, config.patch_entropy_weight, config.evidence_entropy_weight)
        return tuple(scale * weight for weight in weights)

    def add_loss(
        self,
        outputs: CLIPOutput,
        local: LocalFeatures,
        text_groups: torch.Tensor | None = None,
        image_views: int = 1,
        texts_per_image: int = 0,
    ) -> TierCLIPOutput:
        """
        The outputs of matched pairs with the loss, its terms, and the local embeddings.

        Args:
            outputs ([`CLIPOutput`]): With `image_embeds` and `text_embeds`, L2-normalised.
            local ([`LocalFeatures`]): Of the same texts and images.
            text_groups (`torch.Tensor` of shape `(texts,)`, *optional*): See [`contrastive_loss`].
            image_views (`int`, *optional*, defaults to 1):
                Views of each image; see [`views_contrastive_loss`]. Each entropy is the mean over all pairs of a text
                and a view of its image.
            texts_per_image (`int`, *optional*, defaults to 0):
                See [`contrastive_loss`]. Each entropy is the mean over all pairs of a text and its image.

        Raises:
            ValueError: Several views and several texts of an image at once.
        """
        if image_views > 1 and texts_per_image:
            raise ValueError(
                f"image_views={image_views} and texts_per_image={texts_per_image} do not work together; leave one of "
                "them out."
            )
        device = outputs.text_embeds.device  # with device_map, each tower may have its own
        if text_groups is not None:
            text_groups = text_groups.to(device)
        images, texts = outputs.image_embeds.to(device), outputs.text_embeds
        if image_views == 1:
            clip_loss = self.contrast(images, texts, text_groups, texts_per_image)
        else:
            clip_loss = self.contrast_views(images, texts, image_views, text_groups)
        local = LocalFeatures(*(tensor.to(device) for tensor in local))
        text_mean = mean_row(texts) if self.config.evidence_entropy_weight else None
        terms = self.compute_entropy_sums(local, image_views, text_mean)
        sums, counts = terms.pop("entropy_sums"), terms.pop("entropy_counts")
        entropies = mean_over_processes(sums, counts).unbind()
        return TierCLIPOutput(
            loss=total_loss(clip_loss, entropies, self.entropy_weights),
            contrastive_loss=clip_loss,
            token_entropy=entropies[0],
            patch_entropy=entropies[1],
            evidence_entropy=None if text_mean is None else entropies[2],
            **terms,
            **outputs,
        )

    def contrast(
        self, images: torch.Tensor, texts: torch.Tensor, text_groups: torch.Tensor | None, texts_per_image: int
    ) -> torch.Tensor:
        """[`contrastive_loss`] with this model's `logit_scale`."""
        return contrastive_loss(images, texts, self.logit_scale.to(texts.device), text_groups, texts_per_image)

    def contrast_views(
        self, images: torch.Tensor, texts: torch.Tensor, image_views: int, text_groups: torch.Tensor | None
    ) -> torch.Tensor:
        """[`views_contrastive_loss`] with this model's `logit_scale`."""
        return views_contrastive_loss(images, texts, self.logit_scale.to(texts.device), image_views, text_groups)

    def contrast_share(self, own: Pairs, all_pairs: Pairs, first: int, logit_scale: torch.Tensor) -> torch.Tensor:
        """
        The part of some pairs in the contrastive loss of all, times the number of processes; see
        [`summed_cross_entropy`]. After `first` come the parameters `logit_parameters`.
        """
        total = summed_cross_entropy(own, all_pairs, first, logit_scale)
        return total * (world_size() / (2.0 * len(all_pairs.images)))

    def compute_entropy_sums(
        self, local: LocalFeatures, image_views: int, text_mean: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """
        The fields of [`TierCLIPOutput`] that come from single pairs: sums, counts and local embeddings.

        Args:
            local ([`LocalFeatures`]), image_views: As in [`add_loss`].
            text_mean (`torch.Tensor` of shape `(dim,)`, *optional*):
                Mean of all texts of the global batch, see [`mean_row`]; needed for the sum of the evidence entropies.
        """
        config = self.config
        device = local.tokens.device
        with torch.autocast(device.type, enabled=False):
            token_embeds, patch_embeds = (
                nn.functional.normalize(embeds.to(device).float(), dim=-1) for embeds in (local.tokens, local.patches)
            )
            # Not `_replace`, which older versions of torch.compile (2.8) do not trace
            pairs = LocalFeatures(local.texts, token_embeds, patch_embeds, local.token_mask).for_views(image_views)
            sums, counts = entropy_sums(
                token_patch_similarity(pairs.tokens, pairs.patches, config.entropy_temperature),
                pairs.token_mask.to(device),
                normalize=config.entropy_normalization,
                eps=REFERENCE_EPS if config.entropy_tokens == "all" else 0.0,
            )
            evidence = sums.new_zeros(())
            if text_mean is not None:
                if not config.token_entropy_weight and not config.patch_entropy_weight:
                    sums = sums.detach()  # else the backward pass would carry zeros through them
                texts, patches = pairs.texts.to(device).float(), local.patches.to(device).float()
                evidence = evidence_entropy_sum(texts, patches, text_mean.to(device), config.evidence_patches)
            num_pairs = counts.new_tensor(len(pairs.texts) if config.evidence_entropy_weight else 0)
        return {
            "entropy_sums": torch.cat([sums, evidence.view(1)]),
            "entropy_counts": torch.cat([counts, num_pairs.view(1)]),
            "token_embeds": pairs.tokens,
            "patch_embeds": pairs.patches,
        }

    @cached_property
    def patch_centers(self) -> tuple[float, float]:
        """
        Where the patches look: pixels from the upper (and left) edge of the model's input to the centre of the first
        patch, and from each centre to the next; see [`trace_patch_centers`]. `post_process_similarity_map` needs it.
        """
        size = getattr(self.config, "image_size", None) or self.config.vision_config.image_size
        return trace_patch_centers(self, size)

    def project_tokens(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(texts, tokens, hidden) to (texts, tokens, dim), as the text embedding is projected."""
        return self.text_projection(last_hidden_state)

    def get_patch_map(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """What `get_patch_features` returns, in the rows and columns of the image: (batch, rows, columns, dim)."""
        return self.encode_images(pixel_values, interpolate_pos_encoding)[1]

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        """
        Embeds each patch in the space of the texts.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(batch, patches, dim)`: Projected, not normalised; patches row by row.
        """
        return self.encode_images(pixel_values, interpolate_pos_encoding, **kwargs)[1].flatten(1, 2)

    def get_direct_map(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """
        What each patch adds to the normalised image embedding through the class token: the patch's values in the
        attention of all layers, through the last norm and the projection; see [`direct_contributions`]. Its product
        with a text is a summand of their cosine. The sum over the patches is not the whole cosine: the rest comes from
        the MLPs, the class token itself and the biases.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(images, rows, columns, dim)`: float32.

        Raises:
            ValueError: Not a [`TierCLIPModel`] that pools its images by the class token.
        """
        return self.encode_direct(pixel_values, interpolate_pos_encoding)[2]

    def encode_direct(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor, torch.Tensor]:
        """What `encode_images` returns, and [`get_direct_map`] from the same pass; ValueError as there."""
        raise ValueError(
            f'A {type(self).__name__} with image_pooling="{self.config.image_pooling}" does not have kind="direct", '
            'which needs the class token of a TierCLIPModel with image_pooling="cls"; pass '
            f'kind="{map_kinds(self.config)[0]}".'
        )

    def get_similarity_map(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        per_token: bool = False,
        interpolate_pos_encoding: bool = False,
        kind: str = "cosine",
    ) -> torch.Tensor:
        """
        Where the model sees the content of each text in each image; see [`similarity_map`].

        With `image_pooling="cls"` nothing in the contrastive loss aligns patches with texts: their cosines say little.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): Token ids.
            pixel_values (`torch.Tensor`): See the class; (images, ...).
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.
            per_token (`bool`, *optional*, defaults to `False`):
                One map per token instead of one per text: of the token's last hidden state, projected as a text is.
                It depends on the words around it, in CLIP's text tower on those before it only. The contrastive loss
                trains the embedding of the whole text; only the entropy terms see the tokens. The maps of the tokens
                do not sum to the map of the text.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            kind (`str`, *optional*, defaults to `"cosine"`):
                `"cosine"` of the text with each patch, in [-1, 1], or `"contribution"` of each patch: these sum over
                the patches to the cosine of the text with the image (with `per_token`, of the token's normalised
                embedding with the image). Only `image_pooling="patch_mean"` has contributions. `"direct"` is what each
                patch adds to that cosine through the class token alone, see [`get_direct_map`].

        Returns:
            `torch.Tensor` of shape `(images, texts, rows, columns)`, or `(images, texts, tokens, rows, columns)` with
            `per_token`: float32; rows from the top, columns from the left of the image as the model received it. The
            patches look at the places `patch_centers`: pass it to `post_process_similarity_map` with the maps.

        Raises:
            ValueError: The kind does not exist, or the model does not have it.
        """
        check_map_kind(kind, self.config)
        text_outputs = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        if per_token:
            text_embeds = self.project_tokens(text_outputs.last_hidden_state)  # (texts, tokens, dim)
        else:
            text_embeds = text_outputs.pooler_output  # (texts, dim)
        if kind == "direct":
            direct_map = self.get_direct_map(pixel_values, interpolate_pos_encoding)
            return cosine_map(nn.functional.normalize(text_embeds.float(), dim=-1), direct_map.to(text_embeds.device))
        patch_map = self.get_patch_map(pixel_values, interpolate_pos_encoding)  # (images, rows, columns, dim)
        return similarity_map(nn.functional.normalize(text_embeds.float(), dim=-1), patch_map, kind)

    def resize_image_positions(self, image_size: int) -> None:
        """
        Changes the image size of this model for good; see [`resize_positions`]. A convolutional tower has no positions
        and takes any size.

        Args:
            image_size (`int`): Edge of the square in pixels; a multiple of the patch size.

        Raises:
            ValueError: The patches do not fill a square of that size, or the tower cannot interpolate.
        """
        resize_positions(self.vision_model, image_size)
        for config in (self.config, self.config.vision_config, self.vision_model.config):
            if hasattr(config, "image_size"):
                config.image_size = image_size

    @classmethod
    def from_pretrained(cls, *args: Any, image_size: int | None = None, **kwargs: Any) -> Any:
        """
        Loads a checkpoint; see [`PreTrainedModel.from_pretrained`].

        Args:
            image_size (`int`, *optional*): Edge in pixels, where it differs from the checkpoint's; see
                [`resize_image_positions`].
        """
        loaded = super().from_pretrained(*args, **kwargs)
        if image_size is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
            model.resize_image_positions(image_size)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, configuration and code so that the auto classes and the pipelines for this model find it."""
        reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        auto_map = getattr(self.config, "auto_map", None) or {}
        # register_for_auto_class keeps one name only, and the zero-shot pipeline asks for the second
        self.config.auto_map = auto_map | {
            "AutoModel": reference,
            "AutoModelForZeroShotImageClassification": reference,
        }
        self.config.custom_pipelines = custom_pipelines()
        super().save_pretrained(save_directory, *args, **kwargs)
