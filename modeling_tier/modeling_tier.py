"""CLIP with text-image entropy regularization (TIER): the model, and what it returns."""

import copy
import os
import shutil
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_tier import TierCLIPConfig
from .global_batch_tier import mean_over_processes
from .losses_tier import (
    REFERENCE_EPS,
    contrastive_loss,
    counted_tokens,
    entropy_sums,
    token_patch_similarity,
    total_loss,
    views_contrastive_loss,
)
from .maps_tier import similarity_map
from .pipeline_tier import custom_pipelines


@dataclass
class TierCLIPOutput(CLIPOutput):
    r"""
    What [`CLIPOutput`] has, where `loss` is `contrastive_loss + token_entropy_weight * token_entropy +
    patch_entropy_weight * patch_entropy`, and the fields below, all of them only with `return_loss=True`. Under
    `torch.distributed`, the mean of each scalar over the processes is its value for the global batch.

    Args:
        contrastive_loss (`torch.Tensor`): Scalar, nats; CLIP's own loss.
        token_entropy (`torch.Tensor`): Scalar, nats; mean entropy of a token's distribution over patches.
        patch_entropy (`torch.Tensor`): Scalar, nats; mean entropy of a patch's distribution over tokens.
        token_embeds (`torch.Tensor` of shape `(batch, tokens, dim)`): Projected tokens, L2-normalised, float32.
        patch_embeds (`torch.Tensor` of shape `(batch, patches, dim)`): Projected patches, L2-normalised, float32.
        entropy_sums (`torch.Tensor` of shape `(2,)`):
            Only with `return_entropy_sums=True`, nats: the entropies of the tokens and of the patches of these pairs,
            each summed; `token_entropy` and `patch_entropy` are the sums of all pairs divided by the counts of all.
        entropy_counts (`torch.Tensor` of shape `(2,)`): Likewise; the numbers of those tokens and patches.
    """

    contrastive_loss: torch.Tensor | None = None
    token_entropy: torch.Tensor | None = None
    patch_entropy: torch.Tensor | None = None
    token_embeds: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    entropy_sums: torch.Tensor | None = None
    entropy_counts: torch.Tensor | None = None


TRAINED_ON = ("trained_on.json", "_trained_on.json")  # which images and patients a model has seen, as hashes


def copy_trained_on(model: PreTrainedModel, save_directory: str | os.PathLike) -> None:
    """
    Keeps beside a model the list of its training images that lies in the folder it was loaded from, unless the model
    is being pushed to a public repository: ids of patients can be guessed and hashed.
    """
    if getattr(model, "_is_pushed_publicly", False):
        return
    for name in TRAINED_ON:
        source, target = (os.path.join(folder, name) for folder in (model.name_or_path, save_directory))
        if model.name_or_path and os.path.isfile(source) and not os.path.exists(target):
            shutil.copyfile(source, target)


class TierModelMixin:
    """What both architectures share: how pixels come in, the loss, the similarity maps, and how they are saved."""

    entropy_scale = 1.0  # in training; set below 1 by a warm-up, and never saved

    def normalize_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, 1, height, width) to what the image processor would have made of it; float passes through."""
        if pixel_values is None:
            raise ValueError("pixel_values are missing: give the images as the image processor makes them.")
        is_uint8 = pixel_values.dtype == torch.uint8
        channels = (1, 3) if is_uint8 else (3, getattr(self.config.vision_config, "num_channels", 3))
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] not in channels
            or not (is_uint8 or pixel_values.is_floating_point())
        ):
            raise ValueError(
                "pixel_values must be float of shape (batch, 3, height, width) or uint8 of shape (batch, 1, height, "
                f"width), not {tuple(pixel_values.shape)} of {pixel_values.dtype}; the image processor makes them so."
            )
        if not is_uint8:
            return pixel_values
        mean = torch.tensor(self.config.pixel_mean, device=pixel_values.device).view(-1, 1, 1)
        std = torch.tensor(self.config.pixel_std, device=pixel_values.device).view(-1, 1, 1)
        return (pixel_values.float() / 255 - mean) / std  # (batch, 3, height, width)

    def check_text_length(self, input_ids: torch.Tensor) -> None:
        """
        Raises:
            ValueError: there are no texts, or they are longer than the positions that the text tower knows.
        """
        if input_ids is None:
            raise ValueError("input_ids are missing: give the texts as the tokenizer makes them.")
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
    def entropy_weights(self) -> tuple[float, float]:
        """Weights of the token and of the patch entropy: the configuration's, in training times `entropy_scale`."""
        scale = self.entropy_scale if self.training else 1.0
        return scale * self.config.token_entropy_weight, scale * self.config.patch_entropy_weight

    def compute_loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        token_embeds: torch.Tensor,
        patch_embeds: torch.Tensor,
        token_mask: torch.Tensor,
        text_groups: torch.Tensor | None = None,
        image_views: int = 1,
    ) -> dict[str, torch.Tensor]:
        """
        The loss of matched pairs, its three terms, and the local embeddings, L2-normalised: all that
        [`TierCLIPOutput`] adds to CLIP's.

        Args:
            image_embeds, text_embeds (`torch.Tensor` of shape `(batch, dim)`): L2-normalised.
            token_embeds (`torch.Tensor` of shape `(batch, tokens, dim)`): Projected, not normalised.
            patch_embeds (`torch.Tensor` of shape `(batch, patches, dim)`): Likewise.
            token_mask (`torch.Tensor` of shape `(batch, tokens)`): bool; which tokens the entropies count.
            text_groups (`torch.Tensor` of shape `(batch,)`, *optional*): See [`contrastive_loss`].
            image_views (`int`, *optional*, defaults to 1):
                Views of each image, which are so many times more images than texts; see [`views_contrastive_loss`].
                Each entropy is then the mean over all pairs of a text and a view of its image.
        """
        device = text_embeds.device  # with device_map, each tower may have its own
        if text_groups is not None:
            text_groups = text_groups.to(device)
        image_embeds, logit_scale = image_embeds.to(device), self.logit_scale.to(device)
        if image_views == 1:
            clip_loss = contrastive_loss(image_embeds, text_embeds, logit_scale, text_groups)
        else:
            clip_loss = views_contrastive_loss(image_embeds, text_embeds, logit_scale, image_views, text_groups)
            token_embeds, token_mask = token_embeds.repeat(image_views, 1, 1), token_mask.repeat(image_views, 1)
        local = self.compute_entropy_sums(token_embeds.to(device), patch_embeds.to(device), token_mask.to(device))
        token_entropy, patch_entropy = mean_over_processes(
            local.pop("entropy_sums"), local.pop("entropy_counts")
        ).unbind()
        return {
            "loss": total_loss(clip_loss, (token_entropy, patch_entropy), self.entropy_weights),
            "contrastive_loss": clip_loss,
            "token_entropy": token_entropy,
            "patch_entropy": patch_entropy,
            **local,
        }

    def compute_entropy_sums(
        self, token_embeds: torch.Tensor, patch_embeds: torch.Tensor, token_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        What [`TierCLIPOutput`] calls so, and the local embeddings, L2-normalised; the arguments are those of
        [`compute_loss`].
        """
        config = self.config
        device = token_embeds.device
        with torch.autocast(device.type, enabled=False):
            token_embeds = nn.functional.normalize(token_embeds.float(), dim=-1)
            patch_embeds = nn.functional.normalize(patch_embeds.to(device).float(), dim=-1)
            sums, counts = entropy_sums(
                token_patch_similarity(token_embeds, patch_embeds, config.entropy_temperature),
                token_mask.to(device),
                normalize=config.entropy_normalization,
                eps=REFERENCE_EPS if config.entropy_tokens == "all" else 0.0,
            )
        return {
            "entropy_sums": sums,
            "entropy_counts": counts,
            "token_embeds": token_embeds,
            "patch_embeds": patch_embeds,
        }

    def get_similarity_map(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        per_token: bool = False,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """
        Cosine of each text with each patch of each image: where the model sees what the text says.

        With `image_pooling="cls"` nothing in the contrastive loss aligns patches with texts; expect less of such maps.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): Token ids.
            pixel_values (`torch.Tensor`): See the class; (images, ...).
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.
            per_token (`bool`, *optional*, defaults to `False`): One map per token instead of one per text.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(images, texts, rows, columns)`, or `(images, texts, tokens, rows, columns)` with
            `per_token`: In [-1, 1]; rows from the top, columns from the left of the image as the model got it.
        """
        text_outputs = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        if per_token:
            text_embeds = self.text_projection(text_outputs.last_hidden_state)  # (texts, tokens, dim)
        else:
            text_embeds = text_outputs.pooler_output  # (texts, dim)
        patch_map = self.get_patch_map(pixel_values, interpolate_pos_encoding)  # (images, rows, columns, dim)
        return similarity_map(nn.functional.normalize(text_embeds.float(), dim=-1), patch_map)

    def resize_image_positions(self, image_size: int) -> None:
        """
        Makes this a model of images of another size: the position embeddings of the patches are interpolated once and
        for all, just as `interpolate_pos_encoding=True` does for every batch, by the image tower's own function
        (CLIP's is bicubic). Names of parameters stay the same. A convolutional tower has no positions and takes the
        new size as it is.

        Args:
            image_size (`int`): Edge of the square in pixels; a multiple of the patch size.

        Raises:
            ValueError: the patches do not fill a square of that size, or the tower cannot interpolate what depends on
                the size.
        """
        tower = self.vision_model
        patch_size = getattr(tower.config, "patch_size", 1)
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(
                f"image_size={image_size} is no multiple of the {patch_size}-pixel patches of this model; use for "
                f"example {max(1, round(image_size / patch_size)) * patch_size}."
            )
        config = copy.deepcopy(tower.config)
        config.image_size = image_size
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in type(tower)._from_config(config).named_parameters()}
        changed = [name for name, tensor in tower.named_parameters() if shapes[name] != tensor.shape]
        if changed:
            prefix, _, name = changed[0].partition(".")
            if len(changed) > 1 or prefix != "embeddings" or not hasattr(tower.embeddings, "interpolate_pos_encoding"):
                raise ValueError(
                    f"image_size={image_size}: {type(tower).__name__} cannot interpolate its {changed[0]}; keep "
                    f"{tower.config.image_size} pixels."
                )
            old = tower.embeddings
            state, table = old.state_dict(), shapes[changed[0]]  # (..., class token and the like + patches, hidden)
            with torch.no_grad():
                tokens = state[name].new_empty(1, *table[-2:])
                state[name] = old.interpolate_pos_encoding(tokens, image_size, image_size).reshape(table)
            new = type(old)(config).to(device=state[name].device, dtype=state[name].dtype).train(old.training)
            new.load_state_dict(state)
            for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
                parameter.requires_grad_(before.requires_grad)
            tower.embeddings = new
        for config in (self.config, self.config.vision_config, tower.config):
            if hasattr(config, "image_size"):
                config.image_size = image_size

    @classmethod
    def from_pretrained(cls, *args, image_size: int | None = None, **kwargs):
        """
        Loads a checkpoint; see [`PreTrainedModel.from_pretrained`].

        Args:
            image_size (`int`, *optional*): Edge in pixels of other images than the checkpoint's; see
                [`resize_image_positions`].
        """
        loaded = super().from_pretrained(*args, **kwargs)
        if image_size is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
            model.resize_image_positions(image_size)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
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
        copy_trained_on(self, save_directory)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs) -> str:
        """
        Uploads as [`PreTrainedModel.push_to_hub`] does, but makes the repository private unless told otherwise: the
        weights carry what they were trained on, and the terms of most collections of radiographs forbid passing that
        on. A repository that exists keeps the visibility it has.

        Args:
            repo_id (`str`): Name on the Hub.
            private (`bool`, *optional*, defaults to `True`):
                `False` for a public repository, which gets no list of the training images (`trained_on.json`).
            kwargs: What [`PreTrainedModel.push_to_hub`] takes.
        """
        self._is_pushed_publicly = not private
        try:
            return super().push_to_hub(repo_id, private=private, **kwargs)
        finally:
            del self._is_pushed_publicly


class TierCLIPModel(TierModelMixin, CLIPModel):
    r"""
    [`CLIPModel`] with the two entropy terms of TIER in its loss. It has no parameter that `CLIPModel` lacks, and with
    both weights 0 and `image_pooling="cls"` its loss and its logits are equal to CLIP's bit by bit.

    Everything that takes `pixel_values` takes them as float (batch, 3, height, width), already normalised, or as uint8
    (batch, 1, height, width) with values 0..255, which are normalised here with `pixel_mean` and `pixel_std`.

    Args:
        config ([`TierCLIPConfig`]): The configuration.
    """

    config_class = TierCLIPConfig  # explicit: from an annotation alone it may come out as a string
    accepts_loss_kwargs = False  # else a batch with "labels" multiplies the loss by gradient_accumulation_steps

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the text tower.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): BOS, words, EOS and padding of each text.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*): 0 for padding.
            position_ids (`torch.Tensor`, *optional*): As in CLIP.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the text embedding, projected, not
            normalised.
        """
        self.check_text_length(input_ids)
        return super().get_text_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the image tower.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (batch, dim) is the global image embedding that
            `config.image_pooling` asks for, projected, not normalised.
        """
        pixel_values = self.normalize_pixels(pixel_values)
        check_image_size(pixel_values, self.vision_model.embeddings, interpolate_pos_encoding)
        # without super(), so that the classifier, which has no text tower, uses this method too
        vision_outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        pooled = vision_outputs.pooler_output  # (batch, hidden), of the class token
        if self.config.image_pooling == "patch_mean":
            # The projection is linear and has no bias: that of the mean is the mean of those of the patches.
            pooled = self.vision_model.post_layernorm(vision_outputs.last_hidden_state[:, 1:]).mean(dim=1)
        vision_outputs.pooler_output = self.visual_projection(pooled)  # (batch, dim)
        return vision_outputs

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """
        Embeds each patch in the space of the texts.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(batch, patches, dim)`: Projected, not normalised; patches row by row.
        """
        vision_outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        return self.project_patches(vision_outputs.last_hidden_state)

    def project_patches(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(batch, 1 + patches, hidden) to (batch, patches, dim), as CLIP norms and projects its class token."""
        return self.visual_projection(self.vision_model.post_layernorm(last_hidden_state[:, 1:]))

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
        text_groups: torch.LongTensor | None = None,
        image_views: int = 1,
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
                Whether to compute the loss, its three terms and the local embeddings. Under `torch.distributed` all
                the processes have to do so together.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            return_entropy_sums (`bool`, *optional*, defaults to `False`):
                Return `entropy_sums` and `entropy_counts` instead of the loss: of some pairs of a larger batch.
            text_groups (`torch.LongTensor` of shape `(texts,)`, *optional*):
                Equal for pairs whose reports say the same, which are then no negatives of one another in the loss.
            image_views (`int`, *optional*, defaults to 1):
                Views of each image, see [`views_contrastive_loss`]; `pixel_values` then has all first views in the
                order of the texts, then all second ones, and so on.
            return_dict (`bool`, *optional*): `False` for a tuple of the fields that are not `None`.

        Returns:
            [`TierCLIPOutput`]

        Raises:
            ValueError: `return_loss=True` with different numbers of texts and images, a text of more tokens than the
                text tower has positions, or `pixel_values` of another shape or size than the model takes.
        """
        outputs = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **kwargs,
        )
        if not return_loss and not return_entropy_sums:
            return TierCLIPOutput(**outputs)

        local = {
            "token_embeds": self.text_projection(outputs.text_model_output.last_hidden_state),  # (batch, tokens, dim)
            "patch_embeds": self.project_patches(
                outputs.vision_model_output.last_hidden_state
            ),  # (batch, patches, dim)
            "token_mask": counted_tokens(
                input_ids, attention_mask, self.config.text_config.eos_token_id, self.config.entropy_tokens
            ),
        }
        if return_entropy_sums:
            return TierCLIPOutput(**self.compute_entropy_sums(**local), **outputs)
        terms = self.compute_loss(
            outputs.image_embeds, outputs.text_embeds, **local, text_groups=text_groups, image_views=image_views
        )
        return TierCLIPOutput(**terms, **outputs)

    def get_patch_map(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """What `get_patch_features` returns, in the rows and columns of the image: (batch, rows, columns, dim)."""
        patch_size = self.config.vision_config.patch_size
        rows, columns = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
        return self.get_patch_features(pixel_values, interpolate_pos_encoding).unflatten(1, (rows, columns))

    def to_clip(self) -> CLIPModel:
        """
        Makes a plain `CLIPModel` with a copy of the weights and identical logits.

        Returns:
            `CLIPModel`: On the same device, in the same dtype and mode.

        Raises:
            ValueError: `image_pooling="patch_mean"`, which CLIP does not know.
        """
        if self.config.image_pooling != "cls":
            raise ValueError(
                f'A model with image_pooling="{self.config.image_pooling}" has no CLIPModel of identical logits: CLIP '
                "takes the image embedding from the class token, which the loss of this model never trained."
            )
        config = self.config.to_dict()
        config = CLIPConfig(**{field.name: config[field.name] for field in fields(CLIPConfig) if field.name in config})
        model = CLIPModel._from_config(config, attn_implementation=self.config._attn_implementation)
        model.load_state_dict(self.state_dict())
        return model.to(device=self.device, dtype=self.dtype).train(self.training)


def check_image_size(pixel_values: torch.Tensor, embeddings: nn.Module, interpolate_pos_encoding: bool) -> None:
    """
    Raises:
        ValueError: the images are of another size than CLIP's `embeddings` know positions for, or, with interpolation,
            smaller than one patch.
    """
    height, width = pixel_values.shape[-2:]
    size, patch_size = embeddings.image_size, embeddings.patch_size
    if interpolate_pos_encoding and min(height, width) < patch_size:
        raise ValueError(
            f"pixel_values of {height}x{width} pixels are smaller than one {patch_size}x{patch_size} patch of this "
            f"model; enlarge the images, best to {size}x{size}."
        )
    if not interpolate_pos_encoding and (height != size or width != size):
        raise ValueError(
            f"pixel_values of {height}x{width} pixels do not fit this model, which takes {size}x{size}; let its image "
            "processor make them, or pass interpolate_pos_encoding=True."
        )


TierCLIPModel.register_for_auto_class("AutoModel")

__all__ = ["TierCLIPModel", "TierCLIPOutput"]
