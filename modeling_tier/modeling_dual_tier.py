"""The paper's own architecture: any image backbone and any text encoder, joined by projection heads (TIER)."""

import inspect
import math
from dataclasses import fields

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    BertConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_tier import TierDualEncoderConfig, located
from .losses_tier import attended_tokens, counted_tokens
from .modeling_tier import TierCLIPOutput, TierModelMixin


class TierDualEncoderModel(TierModelMixin, PreTrainedModel):
    r"""
    An image backbone (ResNet, ConvNeXt, ViT, DINOv2, Swin, ...) and a text encoder (BERT, RoBERTa, CLIP's, ...), each
    with a projection head into one space (authors' code at ce1e171: Modeling/modules.py:26-46 for images,
    modeling_cxrbert.py:34-53 for texts). The head of the texts is applied to every token, the first of which, [CLS],
    stands for the text (in CLIP's encoder, which reads forward only, the end token does); the head of the images to
    every patch, the mean of which stands for the image.

    Everything that takes `pixel_values` takes them as float (batch, 3, height, width), already normalised, or as uint8
    (batch, 1, height, width) with values 0..255, which are normalised here with `pixel_mean` and `pixel_std`. A
    backbone with one channel sees the first of the three.

    The loss is over the global batch, but the batch norms of one process see its own images alone in training;
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes them see all, on GPUs.

    Args:
        config ([`TierDualEncoderConfig`]): The configuration.
        vision_model ([`PreTrainedModel`], *optional*): The image backbone; made from the configuration by default.
        text_model ([`PreTrainedModel`], *optional*): The text encoder; likewise.

    Raises:
        ValueError: a tower that is no image backbone or no such text encoder, or a class token that
            `image_pooling="cls"` asks for and the backbone has not.
    """

    config_class = TierDualEncoderConfig  # explicit: from an annotation alone it may come out as a string
    base_model_prefix = "tier_dual_encoder"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False  # else a batch with "labels" multiplies the loss by gradient_accumulation_steps
    supports_gradient_checkpointing = True
    # As far as the towers have it: each checks for itself.
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
        # One object each: what is set in the one place (the implementation of attention) is then set in the other.
        self.config.vision_config, self.config.text_config = self.vision_model.config, self.text_model.config
        check_image_tower(self.vision_model, config.image_pooling)
        check_text_tower(self.text_model)

        dim = config.projection_dim
        self.visual_projection = make_visual_projection(config)
        self.text_projection = nn.Sequential(
            nn.Linear(hidden_size(config.text_config), dim),
            nn.GELU(),
            nn.LayerNorm(dim, eps=1e-12),
            nn.Linear(dim, dim),
        )
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()
        self.freeze_text_layers()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):  # the heads; as torch does, which is what the authors have
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def train(self, mode: bool = True):
        """As [`torch.nn.Module.train`], but a frozen batch norm (under LoRA, say) keeps its statistics as well."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.requires_grad:
                module.eval()
        return self

    def freeze_text_layers(self) -> None:
        """Keeps the embeddings and the first `frozen_text_layers` layers of the text encoder as they are."""
        if self.config.frozen_text_layers:
            freeze_layers(self.text_model, self.config.frozen_text_layers)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Loads a saved model; see [`PreTrainedModel.from_pretrained`]. The frozen layers are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        model.freeze_text_layers()
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str, text: str, image_size: int | None = None, **config
    ) -> "TierDualEncoderModel":
        """
        Joins two pretrained towers by projection heads of random weights, in float32.

        Args:
            vision (`str`): Folder or name of a checkpoint; of one with two towers (CLIP), the image tower.
            text (`str`): Likewise, the text encoder. CXR-BERT's is read as the BERT that it is.
            image_size (`int`, *optional*): Edge in pixels of other images than the image tower's; see
                [`resize_image_positions`].
            config: Fields of [`TierDualEncoderConfig`].

        Raises:
            ValueError: a checkpoint is not known to transformers, lacks weights, or is no such tower.
        """
        towers = {}
        for name, folder in (("vision", vision), ("text", text)):
            towers[f"{name}_model"] = load_tower(folder, name)
        config = cls.config_class(
            vision_config=towers["vision_model"].config, text_config=towers["text_model"].config, **config
        )
        model = cls(config, **towers).eval()
        if image_size is not None:
            model.resize_image_positions(image_size)
        return model

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As [`PreTrainedModel.set_attn_implementation`]; an image backbone without attention stays as it is."""
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the text encoder.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, tokens)`): [CLS], words, [SEP] and padding of each text.
            attention_mask (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                0 for padding. Without it, the padding is told by `pad_token_id` and `eos_token_id` of the text
                encoder's configuration.
            position_ids, token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                As the text encoder takes them; one that knows no token types does without.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the projected [CLS], or the end token of a
            CLIP text encoder, not normalised.
        """
        self.check_text_length(input_ids)
        if token_type_ids is not None and getattr(self.config.text_config, "type_vocab_size", 0):
            kwargs["token_type_ids"] = token_type_ids
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        if attention_mask is None:
            attention_mask = self.infer_attention_mask(input_ids)
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        pooled = outputs.pooler_output if self.reads_forward else outputs.last_hidden_state[:, 0]  # (texts, hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.text_projection(pooled),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    @property
    def reads_forward(self) -> bool:
        """Whether the text encoder is CLIP's: there the end token, not the first one, has seen the whole text."""
        return isinstance(self.text_model, CLIPTextModel)

    def infer_attention_mask(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """The attention mask of texts that came without one; an encoder that reads forward needs none."""
        text_config = self.config.text_config
        if self.reads_forward:
            return None
        return attended_tokens(input_ids, text_config.pad_token_id, text_config.eos_token_id)

    def encode_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """
        One pass of the backbone and of its head.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `tuple`: what [`get_image_features`] returns, and the patches (batch, rows, columns, dim), not normalised.
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
        features = outputs.last_hidden_state
        if features.ndim == 4:  # (batch, hidden, rows, columns)
            rows, columns = features.shape[-2:]
            features = features.flatten(2)
        else:  # (batch, class token and the like + patches, hidden)
            patch_size = self.config.vision_config.patch_size
            rows, columns = patch_grid(features.shape[1], *pixel_values.shape[-2:], patch_size)
            features = features.transpose(1, 2)
        prefix = features.shape[-1] - rows * columns
        if self.config.image_pooling != "cls":
            features, prefix = features[..., prefix:], 0
        projected = self.visual_projection(features.unsqueeze(-1)).squeeze(-1)  # (batch, dim, prefix + patches)
        patches = projected[..., prefix:]
        pooled = projected[..., 0] if self.config.image_pooling == "cls" else patches.mean(dim=-1)  # (batch, dim)
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pooled,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        return outputs, patches.transpose(1, 2).unflatten(1, (rows, columns))

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Runs the image backbone.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` is the backbone's own, `pooler_output` (batch, dim) the
            global image embedding that `config.image_pooling` asks for, projected, not normalised.
        """
        return self.encode_images(pixel_values, interpolate_pos_encoding, **kwargs)[0]

    def get_patch_map(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """What `get_patch_features` returns, in the rows and columns of the image: (batch, rows, columns, dim)."""
        return self.encode_images(pixel_values, interpolate_pos_encoding)[1]

    def get_patch_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """
        Embeds each patch in the space of the texts.

        Args:
            pixel_values (`torch.Tensor`): See the class.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            `torch.Tensor` of shape `(batch, patches, dim)`: Projected, not normalised; patches row by row.
        """
        return self.get_patch_map(pixel_values, interpolate_pos_encoding).flatten(1, 2)

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
        text_groups: torch.LongTensor | None = None,
        image_views: int = 1,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | TierCLIPOutput:
        """
        Compares every text with every image and, with `return_loss=True`, text i with image i for the loss.

        Args:
            input_ids (`torch.LongTensor` of shape `(texts, tokens)`): See `get_text_features`.
            pixel_values (`torch.Tensor`): See the class.
            attention_mask, position_ids, token_type_ids (`torch.Tensor` of shape `(texts, tokens)`, *optional*):
                See `get_text_features`.
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
            ValueError: `return_loss=True` with different numbers of texts and images.
        """
        text_outputs = self.get_text_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            return_dict=True,
            **kwargs,
        )
        vision_outputs, patches = self.encode_images(pixel_values, interpolate_pos_encoding, **kwargs)
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
        local = {
            "token_embeds": self.text_projection(text_outputs.last_hidden_state),  # (batch, tokens, dim)
            "patch_embeds": patches.flatten(1, 2),  # (batch, patches, dim)
            "token_mask": counted_tokens(input_ids, attention_mask, eos_token_id, self.config.entropy_tokens),
        }
        if return_entropy_sums:
            return TierCLIPOutput(**self.compute_entropy_sums(**local), **outputs)
        terms = self.compute_loss(image_embeds, text_embeds, **local, text_groups=text_groups, image_views=image_views)
        return TierCLIPOutput(**terms, **outputs)


def layer_depths(tower: PreTrainedModel) -> dict[nn.Parameter, float]:
    """
    How deep in a tower each of its parameters lies: 0 before the first layer (embeddings), 1 in the first layer, and
    so on; infinity after the last one. The layers of a hierarchical backbone are its stages.

    Raises:
        ValueError: the tower has no list of its layers.
    """
    config = tower.config
    count = getattr(config, "num_hidden_layers", None) or len(getattr(config, "depths", ()))
    lists = (module for module in tower.modules() if isinstance(module, nn.ModuleList))
    layers = next((module for module in lists if len(module) == count), None)
    if layers is None:
        raise ValueError(f"{type(tower).__name__} has no list of its layers, by which they could be told apart.")
    depths = {parameter: number for number, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    parameters = list(tower.parameters())
    first = next(i for i, parameter in enumerate(parameters) if parameter in depths)
    return {p: depths.get(p, 0 if i < first else math.inf) for i, p in enumerate(parameters)}


def freeze_layers(tower: PreTrainedModel, count: int) -> None:
    """
    Keeps the first layers of a tower, and what comes before them (embeddings), from being trained.

    Raises:
        ValueError: there are not so many, or no list of them.
    """
    depths = layer_depths(tower)
    layers = int(max(depth for depth in depths.values() if depth < math.inf))
    if not 0 <= count <= layers:
        raise ValueError(f"{count} layers of {type(tower).__name__} cannot be frozen: it has {layers}.")
    for parameter, depth in depths.items():
        if depth <= count:
            parameter.requires_grad_(False)


def hidden_size(config: PreTrainedConfig) -> int:
    """Channels of a tower's last hidden state."""
    size = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if size is None:
        raise ValueError(
            f"The configuration of {config.model_type!r} does not say how wide its last hidden state is (hidden_size "
            "or hidden_sizes); choose another model."
        )
    return size


def patch_grid(tokens: int, height: int, width: int, patch_size: int) -> tuple[int, int]:
    """
    Rows and columns of the patches among `tokens`; what is left over comes before them (class token, registers).

    Args:
        tokens (`int`): Length of the sequence that the backbone returns.
        height (`int`), width (`int`): Of the image, in pixels.
        patch_size (`int`): Edge of the first patches in pixels; hierarchical backbones (Swin) merge them by twos.
    """
    rows, columns = height // patch_size, width // patch_size
    while rows * columns > tokens:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return rows, columns


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that transformers has for a tower's configuration."""
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"transformers has no plain model for {type(config).__name__}; choose another tower.")
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


def without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    """The option that leaves out a pooler, where there is one: nothing here would ever train it."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def has_attention(model_class: type[PreTrainedModel]) -> bool:
    """Whether there is a choice of how attention is computed; convolutional backbones refuse to be asked."""
    return model_class._supports_sdpa or model_class._supports_flash_attn


def make_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower of random weights."""
    model_class = tower_class(config)
    if not has_attention(model_class):
        config._attn_implementation = None  # whatever was asked for the other tower
    return AutoModel.from_config(config, dtype=torch.get_default_dtype(), **without_pooler(model_class))


def make_visual_projection(config: TierDualEncoderConfig) -> nn.Sequential:
    """The projection head of the patches, of random weights."""
    dim = config.projection_dim
    return nn.Sequential(
        nn.Conv2d(hidden_size(config.vision_config), dim, kernel_size=1, bias=False),
        nn.BatchNorm2d(dim),
        nn.ReLU(),
        nn.Conv2d(dim, dim, kernel_size=1),
    )


def load_tower(name: str, kind: str) -> PreTrainedModel:
    """The `"vision"` or `"text"` tower of a checkpoint, in float32 and with all of its weights."""
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(**located(name))
        if config_dict.get("model_type") == "cxr-bert":
            config = cxr_bert_config(config_dict)
        else:
            config = AutoConfig.from_pretrained(**located(name), trust_remote_code=False)
            config = getattr(config, f"{kind}_config", config)
        options = without_pooler(tower_class(config))
        tower, info = AutoModel.from_pretrained(
            **located(name),
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are told below
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except ValueError:
        raise
    except Exception as error:  # files that are not there, damaged or cut short fail in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"No {kind} model can be loaded from {name!r}: {reason}") from error
    wrong = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = sorted(info["missing_keys"]) + sorted(wrong)
    if missing:
        raise ValueError(
            f"The checkpoint {name!r} lacks {len(missing)} of the tensors of {type(tower).__name__}, for example "
            f"{missing[0]}; it is incomplete or of another architecture."
        )
    return tower


def cxr_bert_config(settings: dict) -> BertConfig:
    """The BERT in CXR-BERT, which is one with a projection head, by remote code; from its config.json."""
    known = {field.name for field in fields(BertConfig)} - {"architectures"}
    return BertConfig(**{key: value for key, value in settings.items() if key in known})


def check_image_tower(vision_model: PreTrainedModel, image_pooling: str) -> None:
    """Refuses a tower that does not see whole images, or has no class token where `image_pooling` asks for it."""
    if vision_model.main_input_name != "pixel_values":
        raise ValueError(
            f"vision_config describes a {type(vision_model).__name__}, which takes no pixel_values; choose an image "
            "backbone."
        )
    if hasattr(vision_model.config, "mask_ratio"):
        raise ValueError(
            f"vision_config describes a {type(vision_model).__name__}, which hides patches at random; choose a "
            "backbone that shows them all (a ViT reads the same weights)."
        )
    names = [name for name, _ in vision_model.named_parameters()]
    if image_pooling == "cls" and not any(name.endswith(("cls_token", "class_embedding")) for name in names):
        raise ValueError(
            f'image_pooling="cls" needs a class token, which {type(vision_model).__name__} has not; use "patch_mean".'
        )


def check_text_tower(text_model: PreTrainedModel) -> None:
    """Refuses a tower that neither reads both ways nor is CLIP's."""
    # [CLS] comes first, so that it knows the text only if reading goes both ways, as models of masked words do.
    config = text_model.config
    if isinstance(text_model, CLIPTextModel):
        return
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise ValueError(
            f"text_config describes a {type(text_model).__name__}, which is no bidirectional text encoder; choose one "
            "like BERT or RoBERTa, or CLIP's."
        )


TierDualEncoderModel.register_for_auto_class("AutoModel")

__all__ = ["TierDualEncoderModel"]
