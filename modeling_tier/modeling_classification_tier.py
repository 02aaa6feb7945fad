"""Classifiers of findings, trained on labels: the image tower of a TIER model under a multi-label head."""

import copy
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPPreTrainedModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .adapter_layers_tier import ZeroLinear, make_adapter
from .base_tier import TierModelMixin
from .configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .maps_tier import similarity_map
from .modeling_dual_tier import TierDualEncoderModel
from .modeling_tier import TierCLIPModel
from .pooling_tier import ADDS_UP
from .saving_tier import SavingMixin
from .towers_tier import check_image_tower, hidden_size, make_tower, make_visual_projection

PROBLEM_TYPE = "multi_label_classification"


def masked_bce(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    Binary cross-entropy over the stated labels.

    Args:
        logits (`torch.Tensor` of shape `(batch, findings)`): Any real numbers.
        labels (`torch.Tensor` of shape `(batch, findings)`):
            1 present, 0 absent (or a probability in between). The loss leaves out -1 (uncertain), NaN (not stated) and
            -100 (the Trainer's mark for labels that do not count).
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Divisor of the sum; by default the number of stated labels.

    Returns:
        `torch.Tensor`: Scalar, nats, float32; 0 with a gradient of 0 if every label is unstated.
    """
    stated = labels >= 0  # False for NaN
    # not by multiplication: a NaN target would make the gradient NaN
    targets = torch.where(stated, labels, 0).to(torch.float32)
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    count = stated.sum() if num_items_in_batch is None else num_items_in_batch
    return torch.where(stated, losses, 0).sum() / torch.as_tensor(count, device=logits.device).clamp(min=1)


class ImageTowerClassifier(SavingMixin):
    """
    Methods of both classifiers. A subclass has `vision_model`, `visual_projection`, `classifier`, `encode_images`, and
    `get_image_features`, whose `pooler_output` (batch, dim) is the global image embedding.

    The head reads that embedding scaled to length sqrt(dim), so that its entries are about 1 for every model. The
    embedding lies in the space shared with texts: a head whose weights are differences of text embeddings is the
    zero-shot classifier.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = True  # see the loss in forward
    resize_image_positions = TierModelMixin.resize_image_positions
    patch_centers = TierModelMixin.patch_centers  # of class activation maps
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$", "position_ids$"]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        output_loading_info: bool = False,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> "PreTrainedModel | tuple[PreTrainedModel, dict]":
        """
        Loads a saved classifier, or the image tower of a saved model of images and texts under a new head. For
        `image_size`, see [`resize_image_positions`].

        Raises:
            ValueError: The image tower in the checkpoint is incomplete or does not match its config. (The library
                would continue with random weights.) Callers that pass `output_loading_info=True` check this
                themselves.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            keys = [key if isinstance(key, str) else key[0] for key in info[problem]]
            keys = sorted(key for key in keys if not key.startswith("classifier."))
            if keys and not output_loading_info:
                raise ValueError(
                    f"The checkpoint {str(pretrained_model_name_or_path)!r} does not hold the image tower of a "
                    f"{cls.__name__}: {len(keys)} {problem.replace('_', ' ')}, for example {keys[0]}."
                )
        if image_size is not None:
            model.resize_image_positions(image_size)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_image_tower(cls, model: PreTrainedModel, findings: Sequence[str]) -> PreTrainedModel:
        """
        A classifier with a copy of the image tower of a model in memory, and a head that starts at 0.

        Args:
            model ([`PreTrainedModel`]): With the same configuration class, such as a [`TierCLIPModel`].
            findings (`Sequence[str]`): Names of the labels, in their order.

        Returns:
            [`PreTrainedModel`]: On the same device, in the same dtype and mode.
        """
        config = copy.deepcopy(model.config)
        config.id2label = dict(enumerate(findings))
        config.label2id = {finding: i for i, finding in enumerate(findings)}
        config.zero_shot_findings = None
        classifier = cls._from_config(config, attn_implementation=model.config._attn_implementation)
        classifier.vision_model.load_state_dict(model.vision_model.state_dict())
        classifier.visual_projection.load_state_dict(model.visual_projection.state_dict())
        if getattr(model, "image_adapter", None) is not None:
            classifier.image_adapter.load_state_dict(model.image_adapter.state_dict())
        return classifier.to(device=model.device, dtype=model.dtype).train(model.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier:
            init.zeros_(module.weight)  # a single linear layer can start at 0

    @torch.no_grad()
    def set_zero_shot_head(self, positive: torch.Tensor, negative: torch.Tensor, scale: float) -> None:
        """
        Turns the head into the zero-shot classifier: each logit is
        `scale * (cos(image, positive) - cos(image, negative))`. With the model's own logit scale, the sigmoid of a
        logit is CLIP's softmax over the two texts.

        Args:
            positive (`torch.Tensor` of shape `(findings, dim)`): Text embeddings with each finding, L2-normalised.
            negative (`torch.Tensor` of shape `(findings, dim)`): Text embeddings without it, likewise.
            scale (`float`): For example `logit_scale.exp()` of the model that embedded the texts.
        """
        self.classifier.weight.copy_(scale * (positive - negative) / math.sqrt(positive.shape[-1]))
        self.classifier.bias.zero_()

    def freeze_image_tower(self) -> None:
        """Freezes everything but the head, for a linear probe."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageTowerClassifier":
        super().train(mode)
        for module in (self.vision_model, self.visual_projection):
            # without eval mode, the statistics of batch norms would change: they are buffers, not parameters
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | ImageClassifierOutput:
        """
        Scores each finding independently.

        Args:
            pixel_values (`torch.Tensor`): As [`TierCLIPModel`] takes them: float (batch, 3, height, width), or uint8
                (batch, 1, height, width).
            labels (`torch.Tensor` of shape `(batch, findings)`, *optional*): See [`masked_bce`].
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Passed by the Trainer: the number of labels other than -100 in all batches that one step accumulates,
                on all processes. With it, the loss does not depend on how the labels are split into batches. Mark
                unstated labels as -100 there; the Trainer would count -1 and NaN, and the loss would be too small.
            kwargs: What `get_image_features` takes, such as `interpolate_pos_encoding` or `output_hidden_states`.

        Returns:
            [`ImageClassifierOutput`]: `logits` (batch, findings), whose sigmoid is the probability, and with `labels`
            the `loss`; see [`masked_bce`].

        Raises:
            ValueError: The labels do not have the shape (batch, findings).
        """
        vision_outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        logits = self.score_embeddings(vision_outputs.pooler_output)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"labels must have one column per finding, {tuple(logits.shape)}, not the shape "
                    f"{tuple(labels.shape)}; write 1, 0, -1 or NaN in each."
                )
            loss = masked_bce(logits, labels, num_items_in_batch)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=vision_outputs.hidden_states,
            attentions=vision_outputs.get("attentions"),
        )

    def score_embeddings(self, image_features: torch.Tensor) -> torch.Tensor:
        """The logits (batch, findings) of global image embeddings (batch, dim), projected, not normalised."""
        image_embeds = nn.functional.normalize(image_features, dim=-1)  # (batch, dim)
        return self.classifier(math.sqrt(image_embeds.shape[-1]) * image_embeds)

    @property
    def head_directions(self) -> torch.Tensor:
        """(findings, dim), float32: their dot products with a normalised image embedding are the logits minus bias."""
        weight = self.classifier.weight.float()
        return math.sqrt(weight.shape[-1]) * weight

    def check_adds_up(self) -> None:
        """
        Raises:
            ValueError: The logits are not sums over the patches, so there is no class activation map.
        """
        if self.config.image_pooling not in ADDS_UP:
            raise ValueError(
                f'A {type(self).__name__} with image_pooling="{self.config.image_pooling}" does not have class '
                "activation maps, because its logits are not sums over the patches: train a classifier on a model "
                f'with image_pooling="{ADDS_UP[0]}".'
            )

    def get_class_activation_map(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """
        What each patch adds to the logit of each finding: the class activation map of Zhou et al. (CVPR 2016).

        With `image_pooling="patch_mean"` the head reads the mean of the patches u, scaled to length sqrt(dim), so
        `logit - bias = sum over p of sqrt(dim) * w . u_p / (P |mean of u|)`, with the finding's weights w. These
        summands are the map. Of a zero-shot head (see [`set_zero_shot_head`]) they are, up to its scale, the
        contributions to the difference of the two texts.

        Args:
            pixel_values (`torch.Tensor`): See [`forward`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(images, findings, rows, columns)`: float32; sums over the patches to the logits
            minus the biases. Rows from the top, columns from the left of the image as the model received it; the
            patches look at the places `patch_centers`, which `post_process_similarity_map` takes with the maps.

        Raises:
            ValueError: The model pools its images otherwise.
        """
        self.check_adds_up()
        patch_map = self.encode_images(pixel_values, interpolate_pos_encoding)[1]  # (images, rows, columns, dim)
        return similarity_map(self.head_directions, patch_map, "contribution")

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, configuration and code. The configuration names only this class, which cannot embed texts."""
        self.config.auto_map = {}
        vars(self.config).pop("custom_pipelines", None)
        super().save_pretrained(save_directory, *args, **kwargs)


def check_problem_type(config: TierCLIPConfig | TierDualEncoderConfig) -> None:
    """Sets the problem type, so that the stock pipeline applies the sigmoid. Raises ValueError for another one."""
    if config.problem_type not in (None, PROBLEM_TYPE):
        raise ValueError(
            f"problem_type must be {PROBLEM_TYPE!r} (findings can occur together), not {config.problem_type!r}."
        )
    config.problem_type = PROBLEM_TYPE


class TierCLIPForImageClassification(ImageTowerClassifier, CLIPPreTrainedModel):
    r"""
    The image tower of a [`TierCLIPModel`] (or of a plain CLIP model), its projection, and a linear layer with one
    logit per finding. `config.id2label` names the findings.

    Args:
        config ([`TierCLIPConfig`]): The configuration; its text fields have no effect.
    """

    config_class = TierCLIPConfig  # explicit: an annotation alone may become a string
    get_image_features = TierCLIPModel.get_image_features
    encode_images = TierCLIPModel.encode_images
    project_patches = TierCLIPModel.project_patches
    normalize_pixels = TierCLIPModel.normalize_pixels

    def __init__(self, config: TierCLIPConfig):
        super().__init__(config)
        check_problem_type(config)
        self.vision_model = CLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.visual_projection:  # as in CLIPModel
            std = self.config.vision_config.hidden_size**-0.5 * self.config.initializer_factor
            init.normal_(module.weight, std=std)


class TierDualEncoderForImageClassification(ImageTowerClassifier, PreTrainedModel):
    r"""
    The image backbone of a [`TierDualEncoderModel`], its projection, and a linear layer with one logit per finding.
    `config.id2label` names the findings.

    Args:
        config ([`TierDualEncoderConfig`]): The configuration; its text fields have no effect.
    """

    config_class = TierDualEncoderConfig  # explicit, as above
    base_model_prefix = TierDualEncoderModel.base_model_prefix
    supports_gradient_checkpointing = True
    # The backbone checks what it supports.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    get_image_features = TierDualEncoderModel.get_image_features
    encode_images = TierDualEncoderModel.encode_images
    run_image_tower = TierDualEncoderModel.run_image_tower
    project_features = TierDualEncoderModel.project_features
    normalize_pixels = TierDualEncoderModel.normalize_pixels

    def __init__(self, config: TierDualEncoderConfig):
        super().__init__(config)
        check_problem_type(config)
        self.vision_model = make_tower(config.vision_config)
        self.config.vision_config = self.vision_model.config  # one object, as in TierDualEncoderModel
        check_image_tower(self.vision_model, config.image_pooling)
        self.image_adapter = make_adapter(hidden_size(config.vision_config), config.adapter_layers)
        self.visual_projection = make_visual_projection(config)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # the projection, as in TierDualEncoderModel
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, ZeroLinear):
            module.reset_parameters()


TierCLIPForImageClassification.register_for_auto_class("AutoModelForImageClassification")
TierDualEncoderForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["TierCLIPForImageClassification", "TierDualEncoderForImageClassification"]
