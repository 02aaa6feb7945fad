"""
Checkpoints of other code bases as models of this package, and CLIP models as OpenCLIP writes them.

Files are read by `tensor_files.py`, which runs nothing of what they hold. Sizes are read from the tensors; then every
tensor must be one that the model has, in its shape, and the other way round.

Layouts, read in the original code:

- OpenAI CLIP (clip/model.py of openai/CLIP) and CheXzero, which has the same (model.py of rajpurkarlab/CheXzero);
- OpenCLIP (src/open_clip/model.py of mlfoundations/open_clip), the same again, or with `text.` before the text tower;
- BioViL (hi-ml-multimodal/.../image/model of microsoft/hi-ml), whose image tower has torchvision's names;
- TIER (Modeling/CLIP_Embedding.py of apalepu13/TIER_Regularized_CLIP at ce1e171): BioViL's under `cnn.`, CXR-BERT
  under `transformer.`.
"""

import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BertConfig, CLIPModel, PreTrainedModel, ResNetConfig

from .configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .modeling_dual_tier import TierDualEncoderModel, cxr_bert_config
from .modeling_tier import TierCLIPModel
from .tensor_files import read_json, read_tensors

CLIP_LAYOUT = ("openai", "chexzero", "openclip")
KINDS = (*CLIP_LAYOUT, "clip", "tier", "biovil")
ACTIVATIONS = ("gelu", "quick_gelu")

OPENCLIP_CONFIG = "open_clip_config.json"
OPENCLIP_WEIGHTS = "open_clip_model.safetensors"
# In the order in which OpenCLIP's factory.py prefers them.
WEIGHT_FILES = (
    OPENCLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)

# The released files are called best_<batch>_<learning rate>_original_<step>_<score>.pt (notebooks/zero_shot.ipynb).
CHEXZERO_NAME = re.compile(r"best_\d+_[\de.-]+_original_\d+_[\d.]+\.pt")
CHEXZERO_SHAPE = {"patch": 16, "image": 320, "dim": 768}  # what `--random_init` makes (train.py:129-140)

BLOCK = {  # of a transformer, beside the projections of queries, keys and values
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TRANSPOSED = ("visual.proj", "text_projection")  # plain parameters there, Linear here
TEXT_HEAD = {"0": "dense_to_hidden", "2": "LayerNorm", "3": "dense_to_output"}

# Tensors that the original code saves though its embeddings do not depend on them.
UNUSED = {
    "clip": re.compile(r"input_resolution|context_length|vocab_size|(.+\.)?attn_mask"),
    "tier": re.compile(r"cnn\.encoder\.encoder\.fc\.\w+|transformer\.(cls\.predictions\..+|.+\.position_ids)"),
    "biovil": re.compile(r"encoder\.encoder\.fc\.\w+|cls\.predictions\..+|bert\.embeddings\.position_ids"),
}

# OpenCLIP's vision towers whose heads are not 64 wide (src/open_clip/model_configs: H, g, bigG and e), by width.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
# Keys of OpenCLIP's vision_cfg and text_cfg that the tensors tell, that are read below, or that change no embedding.
OPENCLIP_KEYS = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "context_length"),
    *("vocab_size", "norm_kwargs", "hf_tokenizer_name", "pad_id", "eos_id", "patch_dropout", "output_tokens"),
    *("attn_pooler_queries", "attn_pooler_heads", "hf_model_pretrained"),
}
OPENCLIP_VALUES = {  # the choices among others that are CLIP's
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "block_type": ("default",),
}


@dataclass
class Source:
    """
    A checkpoint as it lies on disk.

    Args:
        path (`Path`): A file, or the folder of a model.
        kind (`str`): One of `KINDS`.
        tensors (`dict[str, torch.Tensor]`): By their original names; empty for a folder of transformers.
        settings (`dict`): `open_clip_config.json`, where there is one.
    """

    path: Path
    kind: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)


# 1. What kind of checkpoint it is


def open_source(path: str | Path, kind: str | None = None) -> Source:
    """
    Read a checkpoint and find out what it is.

    Args:
        path (`str` or `Path`): A file, or the folder of a model (transformers or OpenCLIP).
        kind (`str`, *optional*):
            One of `KINDS`, for a file that does not show it: OpenAI's, CheXzero's and OpenCLIP's tensors have the same
            names and shapes.

    Raises:
        ValueError: there is no such file, it cannot be read safely, or it is none of these or another than `kind`.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {str(path)!r}; name a checkpoint on this machine.")
    if path.is_dir():
        source = open_folder(path)
        if kind not in (None, source.kind):
            raise ValueError(f"{path} is of the kind {source.kind!r}, not {kind!r}; leave the kind out.")
        return source
    tensors, container = read_tensors(path)
    beside = path.parent / OPENCLIP_CONFIG
    settings = read_json(beside) if beside.is_file() and path.name in WEIGHT_FILES else {}
    found = detect_kind(path.name, tensors, container, bool(settings))
    layout = CLIP_LAYOUT if found is None else (found,)
    if found in CLIP_LAYOUT and kind in CLIP_LAYOUT:  # the user may know better than the name of a file
        layout = CLIP_LAYOUT
    if kind not in (None, *layout):
        raise ValueError(f"{path.name} has the tensors of the kind {' or '.join(layout)}, not {kind}.")
    if kind is None and found is None:
        raise ValueError(
            f"{path.name} may be OpenAI's, CheXzero's or OpenCLIP's, which name their tensors alike but take other "
            "pixels; say which with --kind openai, --kind chexzero or --kind openclip."
        )
    return Source(path, kind or found, tensors, settings if (kind or found) == "openclip" else {})


def open_folder(path: Path) -> Source:
    """The kind of model that a folder holds; the tensors of one of transformers are left to `from_pretrained`."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") in ("clip", TierCLIPConfig.model_type):
        return Source(path, "clip")
    if (path / OPENCLIP_CONFIG).is_file():
        weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if weights is None:
            raise ValueError(f"{path} has {OPENCLIP_CONFIG} but no weights ({', '.join(WEIGHT_FILES)}).")
        return Source(path, "openclip", read_tensors(weights)[0], read_json(path / OPENCLIP_CONFIG))
    if config.get("model_type") == TierDualEncoderConfig.model_type:
        raise ValueError(f"{path} is a TierDualEncoderModel already; there is nothing to convert it from or to.")
    if config:
        raise ValueError(f"{path} holds a model of type {config.get('model_type')!r}, not a CLIP model.")
    raise ValueError(
        f"{path} holds no model: neither config.json (transformers) nor {OPENCLIP_CONFIG} (OpenCLIP). Name the "
        "checkpoint file itself, or another folder."
    )


def detect_kind(name: str, tensors: Mapping[str, torch.Tensor], container: str, has_settings: bool) -> str | None:
    """One of `KINDS`; None where the tensors are laid out as CLIP's and nothing tells whose CLIP it is."""
    if "cnn.encoder.encoder.conv1.weight" in tensors:
        return "tier"
    if "encoder.encoder.conv1.weight" in tensors:
        return "biovil"
    if any(key.startswith(("visual.layer", "visual.attnpool", "visual.trunk.")) for key in tensors):
        raise ValueError(
            f"{name} is a CLIP whose image tower is no plain vision transformer (ResNet or timm); only ViT models "
            "can be converted."
        )
    if "visual.conv1.weight" not in tensors:
        if any(key.startswith(("vision_model.", "text_model.")) for key in tensors):
            raise ValueError(f"{name} holds the weights of a model of transformers; name its folder instead.")
        raise ValueError(
            f"{name} is of no kind that can be converted ({', '.join(KINDS)}); its first tensors are called "
            f"{', '.join(list(tensors)[:3])}."
        )
    if container == "torchscript" or "input_resolution" in tensors:
        return "openai"
    if has_settings or container in ("safetensors", "state_dict") or any(key.startswith("text.") for key in tensors):
        return "openclip"
    if CHEXZERO_NAME.fullmatch(name):
        return "chexzero"
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    grid = CHEXZERO_SHAPE["image"] // CHEXZERO_SHAPE["patch"]
    if (
        shapes["visual.conv1.weight"][2:] == (CHEXZERO_SHAPE["patch"],) * 2
        and shapes.get("visual.positional_embedding", ())[:1] == (grid**2 + 1,)
        and shapes.get("visual.proj", ())[1:] == (CHEXZERO_SHAPE["dim"],)
    ):
        return "chexzero"
    return None


# 2. Names and shapes


def clip_names(vision_layers: int, text_layers: int, text: str = "") -> dict[str, tuple[str, ...]]:
    """
    OpenAI's name of each tensor of CLIP, and our name; three of ours where one tensor there has the rows of queries,
    keys and values.

    Args:
        vision_layers (`int`), text_layers (`int`): Depth of the towers.
        text (`str`, *optional*, defaults to `""`): What comes before the names of the text tower.
    """
    ours = {
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.proj": "visual_projection.weight",
        f"{text}token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        f"{text}positional_embedding": "text_model.embeddings.position_embedding.weight",
        f"{text}text_projection": "text_projection.weight",
    }
    modules = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        f"{text}ln_final": "text_model.final_layer_norm",
    }
    names: dict[str, tuple[str, ...]] = {theirs: (own,) for theirs, own in ours.items()}
    for tower, transformer, depth in (
        ("vision_model", "visual.transformer", vision_layers),
        ("text_model", f"{text}transformer", text_layers),
    ):
        for i in range(depth):
            block, layer = f"{transformer}.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            modules |= {f"{block}.{theirs}": f"{layer}.{own}" for theirs, own in BLOCK.items()}
            for part in ("weight", "bias"):
                names[f"{block}.attn.in_proj_{part}"] = tuple(f"{layer}.self_attn.{x}_proj.{part}" for x in "qkv")
    for theirs, own in modules.items():
        names |= {f"{theirs}.{part}": (f"{own}.{part}",) for part in ("weight", "bias")}
    return names


def dual_names(ours: list[str], image: str, text: str) -> dict[str, tuple[str, ...]]:
    """The original name of each tensor of a [`TierDualEncoderModel`] but the logit scale, and our name."""
    names = {}
    for own in ours:
        module, _, rest = own.partition(".")
        if module == "vision_model":
            names[f"{image}encoder.encoder.{torchvision_name(rest)}"] = (own,)
        elif module == "visual_projection":
            names[f"{image}projector.model.{rest}"] = (own,)
        elif module == "text_model":
            names[f"{text}bert.{rest}"] = (own,)
        elif module == "text_projection":
            layer, _, part = rest.partition(".")
            names[f"{text}cls_projection_head.{TEXT_HEAD[layer]}.{part}"] = (own,)
    return names


def torchvision_name(name: str) -> str:
    """torchvision's name for a tensor of `ResNetModel`."""
    module, _, part = name.rpartition(".")
    module, _, role = module.rpartition(".")
    kind = {"convolution": "conv", "normalization": "bn"}[role]
    if module == "embedder.embedder":
        return f"{kind}1.{part}"
    place = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)", module)
    stage, block, layer = place.groups()
    inner = f"{kind}{int(layer) + 1}" if layer else f"downsample.{0 if kind == 'conv' else 1}"
    return f"layer{int(stage) + 1}.{block}.{inner}.{part}"


def to_layout(state: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Our tensors under the original names and in the original shapes."""
    tensors = {}
    for theirs, ours in names.items():
        tensor = torch.cat([state[own] for own in ours]) if len(ours) > 1 else state[ours[0]]
        tensors[theirs] = tensor.t().contiguous() if theirs.endswith(TRANSPOSED) else tensor
    return tensors


def from_layout(tensors: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """The inverse of [`to_layout`]."""
    state = {}
    for theirs, ours in names.items():
        tensor = tensors[theirs].t() if theirs.endswith(TRANSPOSED) else tensors[theirs]
        state.update(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True))
    return state


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], unused: re.Pattern
) -> None:
    """
    Compare a checkpoint with what the model has.

    Raises:
        ValueError: a tensor is missing, is one too many, or has another shape or kind of number; it is named.
    """
    extra = [name for name in tensors if name not in expected and not unused.fullmatch(name)]
    for problem, names in (("lacks", [name for name in expected if name not in tensors]), ("has unknown", extra)):
        refuse_tensors(problem, names)
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise ValueError(
                f"The tensor {name} of the checkpoint has the shape {tuple(tensor.shape)}; the others ask for "
                f"{tuple(like.shape)}."
            )
        if tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"The tensor {name} of the checkpoint holds {tensor.dtype}, not {like.dtype}.")


def refuse_tensors(problem: str, names: list[str]) -> None:
    """ValueError where there are any `names`."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"The checkpoint {problem} tensors: {', '.join(names[:5])}{more}.")


def shape_of(tensors: Mapping[str, torch.Tensor], name: str, dims: int) -> tuple[int, ...]:
    refuse_tensors("lacks", [] if name in tensors else [name])
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"The tensor {name} of the checkpoint has the shape {shape}, not one of {dims} dimensions.")
    return shape


def count_parts(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered modules there are under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


# 3. Models


def load_source(source: Source, activation: str | None = None, text_folder: str | Path | None = None):
    """
    Make the model of a checkpoint, in float32 and evaluation mode.

    Args:
        source ([`Source`]): From [`open_source`].
        activation (`str`, *optional*):
            `"gelu"` (the default, as in OpenCLIP) or `"quick_gelu"`, for an OpenCLIP checkpoint without its
            configuration; its tensors do not tell.
        text_folder (`str` or `Path`, *optional*): BioViL's text tower, the folder of CXR-BERT.

    Returns:
        [`TierCLIPModel`] or, for `"tier"` and `"biovil"`, [`TierDualEncoderModel`].

    Raises:
        ValueError: the checkpoint is not what the model needs, or an option has no effect on it.
    """
    if activation is not None and (source.kind != "openclip" or source.settings):
        raise ValueError(f"The activation is known for this checkpoint ({source.kind}); leave --activation out.")
    if source.kind == "biovil" and text_folder is None:
        raise ValueError("BioViL's file holds the image tower alone; give the folder of CXR-BERT with --text_model.")
    if source.kind != "biovil" and text_folder is not None:
        raise ValueError(f"--text_model has no effect on a checkpoint of the kind {source.kind!r}; leave it out.")
    if source.kind == "clip":
        return load_clip_folder(source.path)
    if source.kind == "tier":
        return load_tier(source.tensors)
    if source.kind == "biovil":
        return load_biovil(source.tensors, Path(text_folder))
    return load_clip(source, activation)


def fill(
    make: Callable[[], PreTrainedModel],
    tensors: Mapping[str, torch.Tensor],
    name_of: Callable[[list[str]], Mapping[str, tuple[str, ...]]],
    unused: re.Pattern,
) -> PreTrainedModel:
    """The model that `make` makes, with the tensors of a checkpoint; sizes are compared before memory is taken."""
    with torch.device("meta"):
        state = make().state_dict()
    names = name_of(list(state))
    check_tensors(tensors, to_layout(state, names), unused)
    model = make()
    # BioViL has no logit scale: there it stays as it was made.
    model.load_state_dict({"logit_scale": model.logit_scale, **from_layout(tensors, names)}, strict=True)
    return model.eval()


def load_clip(source: Source, activation: str | None) -> TierCLIPModel:
    """OpenAI's, CheXzero's or OpenCLIP's."""
    tensors, text = source.tensors, "text." if any(name.startswith("text.") for name in source.tensors) else ""
    config = clip_config(source, text, activation)

    def name_of(_) -> dict[str, tuple[str, ...]]:
        return clip_names(config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers, text)

    return fill(lambda: TierCLIPModel(config), tensors, name_of, UNUSED["clip"])


def clip_config(source: Source, text: str, activation: str | None) -> TierCLIPConfig:
    """Sizes from the tensors (as `build_model` of OpenAI's clip/model.py does), the rest from what kind it is."""
    tensors = source.tensors
    width, _, patch, _ = shape_of(tensors, "visual.conv1.weight", 4)
    positions, _ = shape_of(tensors, "visual.positional_embedding", 2)
    grid = math.isqrt(positions - 1)
    if not grid or grid**2 != positions - 1:
        raise ValueError(
            f"The tensor visual.positional_embedding has {positions} positions, which are not one and a square number."
        )
    vocab_size, text_width = shape_of(tensors, f"{text}token_embedding.weight", 2)
    _, dim = shape_of(tensors, f"{text}text_projection", 2)

    heads, text_heads = width // 64, text_width // 64
    vision_cfg, text_cfg, quick_gelu = {}, {}, True
    if source.settings:
        vision_cfg, text_cfg, quick_gelu = openclip_settings(source.settings)
        heads, text_heads = width // (vision_cfg.get("head_width") or 64), text_cfg.get("heads") or 8
    elif source.kind == "openclip":
        heads, quick_gelu = width // HEAD_WIDTHS.get(width, 64), activation == "quick_gelu"

    def tower(prefix: str, hidden: int, heads: int, cfg: dict) -> dict[str, Any]:
        if not heads or hidden % heads:
            raise ValueError(f"A width of {hidden} cannot be divided among {heads} heads; this is no CLIP checkpoint.")
        return {
            "hidden_size": hidden,
            "intermediate_size": shape_of(tensors, f"{prefix}0.mlp.c_fc.weight", 2)[0],
            "num_hidden_layers": count_parts(tensors, prefix),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if quick_gelu else "gelu",
            "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
            "projection_dim": dim,
        }

    return TierCLIPConfig(
        projection_dim=dim,
        vision_config={
            **tower("visual.transformer.resblocks.", width, heads, vision_cfg),
            "patch_size": patch,
            "image_size": patch * grid,
        },
        text_config={
            **tower(f"{text}transformer.resblocks.", text_width, text_heads, text_cfg),
            "vocab_size": vocab_size,
            "max_position_embeddings": shape_of(tensors, f"{text}positional_embedding", 2)[0],
            # The vocabulary ends with begin and end of text (simple_tokenizer.py), and the original pools the text at
            # its highest id; where the padding begins is never asked.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": vocab_size - 1,
        },
    )


def openclip_settings(settings: dict) -> tuple[dict, dict, bool]:
    """
    `vision_cfg`, `text_cfg` and `quick_gelu` of `open_clip_config.json`.

    Raises:
        ValueError: it asks for something that CLIP has not.
    """
    model = settings.get("model_cfg")
    parts = [model.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(model, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{OPENCLIP_CONFIG} has no model_cfg with a vision_cfg and a text_cfg; it is none of OpenCLIP's."
        )
    for part in parts:
        for key, value in part.items():
            known = key in OPENCLIP_KEYS or value in OPENCLIP_VALUES.get(key, ())
            sound = key not in ("heads", "head_width") or isinstance(value, int) and value > 0
            sound = sound and (key != "norm_kwargs" or not value or isinstance(value, dict) and {"eps"} >= set(value))
            if value and not (known and sound):
                raise ValueError(f"{OPENCLIP_CONFIG} asks for {key}={value!r}, which CLIP has not.")
    return parts[0], parts[1], bool(model.get("quick_gelu"))


def load_clip_folder(path: Path) -> TierCLIPModel:
    """A folder that `save_pretrained` of a CLIP model of transformers, or of ours, wrote."""
    try:
        model, info = TierCLIPModel.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be loaded as a CLIP model: {str(error).splitlines()[0]}") from None
    for key, problem in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has other shapes than config.json says for"),
    ):
        names = sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in info[key])
        names = [name for name in names if not name.endswith("position_ids")]  # saved by transformers before 4.31
        refuse_tensors(problem, names)
    return model.eval()


def load_tier(tensors: dict[str, torch.Tensor]) -> TierDualEncoderModel:
    """The authors' own; the text head is in the file twice, as a part of CXR-BERT and by itself."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.startswith("cls_projection_head.")]:
        first = tensors.get(f"transformer.{name}")
        if first is not None and not torch.equal(first, tensors.pop(name)):
            raise ValueError(
                f"The tensors {name} and transformer.{name} of the checkpoint differ; they are one in TIER."
            )
    bert = bert_config(tensors, "transformer.bert.")
    config = TierDualEncoderConfig(
        vision_config=resnet_config(tensors, "cnn.encoder.encoder."),
        text_config=bert,
        projection_dim=shape_of(tensors, "cnn.projector.model.0.weight", 4)[0],
        image_size=224,
        frozen_text_layers=min(8, bert.num_hidden_layers),
    )
    return fill(
        lambda: TierDualEncoderModel(config),
        tensors,
        lambda ours: {"logit_scale": ("logit_scale",), **dual_names(ours, "cnn.", "transformer.")},
        UNUSED["tier"],
    )


def load_biovil(tensors: dict[str, torch.Tensor], text_folder: Path) -> TierDualEncoderModel:
    """BioViL's image tower and CXR-BERT. Neither has a logit scale: it starts where TIER's does."""
    weights = next((text_folder / name for name in WEIGHT_FILES if (text_folder / name).is_file()), None)
    if weights is None or not (text_folder / "config.json").is_file():
        raise ValueError(f"{text_folder} is no folder with the config.json and the weights of CXR-BERT.")
    settings = read_json(text_folder / "config.json")
    if settings.get("model_type") != "cxr-bert":
        raise ValueError(f"{text_folder} holds a model of type {settings.get('model_type')!r}, not 'cxr-bert'.")
    config = TierDualEncoderConfig(
        vision_config=resnet_config(tensors, "encoder.encoder."),
        text_config=cxr_bert_config(settings),
        projection_dim=shape_of(tensors, "projector.model.0.weight", 4)[0],
        image_size=480,  # hi-ml, image/inference_engine
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    return fill(
        lambda: TierDualEncoderModel(config),
        {**tensors, **read_tensors(weights)[0]},
        lambda ours: dual_names(ours, "", ""),
        UNUSED["biovil"],
    )


def resnet_config(tensors: Mapping[str, torch.Tensor], prefix: str) -> ResNetConfig:
    """torchvision's ResNet of bottlenecks (stride in the 3x3 convolution), sizes from the tensors."""
    depths = [count_parts(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
    return ResNetConfig(
        embedding_size=shape_of(tensors, f"{prefix}conv1.weight", 4)[0],
        hidden_sizes=[shape_of(tensors, f"{prefix}layer{stage}.0.conv3.weight", 4)[0] for stage in (1, 2, 3, 4)],
        depths=depths,
        layer_type="bottleneck",
    )


def bert_config(tensors: Mapping[str, torch.Tensor], prefix: str) -> BertConfig:
    """BERT's sizes from the tensors; heads are 64 wide, and the rest is BERT's default, as in CXR-BERT."""
    vocab_size, hidden = shape_of(tensors, f"{prefix}embeddings.word_embeddings.weight", 2)
    if hidden % 64:
        raise ValueError(f"A width of {hidden} cannot be divided into heads of 64; this is no CXR-BERT.")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=count_parts(tensors, f"{prefix}encoder.layer."),
        num_attention_heads=hidden // 64,
        intermediate_size=shape_of(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_position_embeddings=shape_of(tensors, f"{prefix}embeddings.position_embeddings.weight", 2)[0],
        type_vocab_size=shape_of(tensors, f"{prefix}embeddings.token_type_embeddings.weight", 2)[0],
    )


# 4. Back to OpenCLIP


def to_openclip(model: CLIPModel) -> tuple[dict[str, torch.Tensor], dict]:
    """
    A CLIP model as OpenCLIP has it.

    Args:
        model (`CLIPModel`): Plain CLIP; see [`TierCLIPModel.to_clip`].

    Returns:
        `tuple`: the state dict of `open_clip.CLIP`, and the `model_cfg` of its `open_clip_config.json`.

    Raises:
        ValueError: something that OpenCLIP's CLIP has not.
    """
    vision, text = model.config.vision_config, model.config.text_config
    if vision.hidden_act != text.hidden_act or text.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"OpenCLIP has gelu or quick_gelu in both towers, not {vision.hidden_act} and {text.hidden_act}."
        )
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: an old configuration, pooled as OpenCLIP does
        raise ValueError(
            f"OpenCLIP pools a text at its highest token id, which the end token {text.eos_token_id} of this model "
            f"with a vocabulary of {text.vocab_size} is not."
        )

    def tower(config) -> dict[str, Any]:
        ratio = config.intermediate_size / config.hidden_size
        if int(config.hidden_size * ratio) != config.intermediate_size:  # OpenCLIP rounds down
            ratio = (config.intermediate_size + 0.5) / config.hidden_size
        cfg = {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": ratio}
        return cfg if config.layer_norm_eps == 1e-5 else {**cfg, "norm_kwargs": {"eps": config.layer_norm_eps}}

    model_cfg = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            **tower(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {
            **tower(text),
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
        },
    }
    names = clip_names(vision.num_hidden_layers, text.num_hidden_layers)
    return to_layout(model.state_dict(), names), model_cfg
