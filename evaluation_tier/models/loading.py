"""Models and their processors, from folders and from the Hub."""

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # the top level hides it without torchvision

import modeling_tier  # noqa: F401 (registers the model with AutoModel)
import processing_tier  # noqa: F401 (registers the processor with AutoProcessor)
from evaluation_tier.models.adapters import AdapterName, UserModel, load_adapter
from evaluation_tier.models.contract import meets_contract
from evaluation_tier.models.openclip import OpenClip, check_open_clip, folder_of_file, is_open_clip, load_open_clip
from evaluation_tier.models.quiet import errors_only
from evaluation_tier.models.radzero import RadZero, is_radzero, load_radzero
from evaluation_tier.models.remote_code import check_own_code, check_pinned, check_remote, is_remote
from modeling_tier.checkpoints.biovil import CXR_BERT_TYPE
from modeling_tier.checkpoints.model_folder import check_model_folder, check_not_adapter
from modeling_tier.checkpoints.openclip import OPENCLIP_CONFIG
from modeling_tier.configuration_tier import located
from modeling_tier.exported_tier import TierExportedConfig, TierExportedModel, check_backend
from modeling_tier.texts_tier import check_family, check_tokenizer, is_padded_to_the_end
from processing_tier.hub_names import check_hub_name

TO_CONVERT = {"chexficient": "CheXficient", CXR_BERT_TYPE: "BioViL"}  # by a part of the model_type of their config

CLASSIFIERS = ("TierCLIPForImageClassification", "TierDualEncoderForImageClassification")


def choose_device(name: str | None = None) -> torch.device:
    """The named device, by default a GPU if there is one. ValueError for a device that torch cannot use."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # a number there and back: "meta" and devices without a backend make tensors that hold nothing
        torch.ones(1, device=name).item()
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the second: torch built without CUDA
        raise ValueError(f"The device {name!r} cannot be used here: choose another, for example 'cpu'.") from error


def load_model(
    name: str | Path,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    backend: str | None = None,
) -> tuple[PreTrainedModel | UserModel | RadZero | OpenClip, ProcessorMixin | None]:
    """The model (float32, in evaluation mode, on `device`) and its processor; None for one that has its own.

    TIER models and those of the kinds that `check_family` knows, with their processors, are read. TIER's classifiers
    are read too; their processor is an image processor. So are RadZero and, by their library, OpenCLIP's models.
    Pickled weights are never opened.

    Args:
        name: a folder that `save_pretrained` wrote, or else a name on the Hub ("owner/name", or
            "owner/name@revision" for a branch, a tag or a commit), an `AdapterName`, or the file of an OpenCLIP
            folder's weights.
        trust_remote_code: run the code that a model brings, from a folder or a commit. By default, it never runs.
        backend: `"torch"`, `"onnx"` or `"openvino"`, which runs the model; by default the one that it was saved for.

    Raises:
        ValueError: when the model, its config, its weights or its processor are missing or do not fit each other, or
            the backend does not run such a model.
    """
    if isinstance(name, AdapterName):
        if backend is not None:
            raise ValueError(
                f"--backend has no effect on --adapter {name}, whose file runs its model itself: leave it out."
            )
        adapted = load_adapter(name, device)
        if trust_remote_code:
            check_remote(name, adapted)
        return adapted, None
    name = folder_of_file(name)
    check_name(name)
    if trust_remote_code:
        check_pinned(str(name))
        check_own_code(str(name))
    config = read_config(name)
    check_backend_runs(name, config, backend)
    if not trust_remote_code:
        check_is_read(name, config)
    load = load_radzero if is_radzero(config) else load_open_clip if is_open_clip(name, config) else None
    if load is not None:
        loaded = load(name, device)
        if trust_remote_code:
            check_remote(str(name), loaded)
        return loaded, None
    model, processor = read_files(name, trust_remote_code, backend if is_exported(config) else None)
    if trust_remote_code:
        check_remote(str(name), model)
    if is_classifier(model):
        return in_fast_layout(model.to(device).eval()), processor
    check_embeds_both(name, model)
    if not is_remote(model):
        check_family(model.config)
    check_processor(name, model, processor)
    return in_fast_layout(model.to(device).eval()), processor


def in_fast_layout(model: PreTrainedModel) -> PreTrainedModel:
    """
    The model, changed in place: a convolutional tower keeps its weights channels last, which is faster (measured in
    docs/speed.md). Only rounding changes.
    """
    convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    if any(module.kernel_size > module.stride for module in convolutions):  # those of patches do not overlap
        model.to(memory_format=torch.channels_last)
    return model


def in_bfloat16(name: str | Path, model: PreTrainedModel | UserModel | RadZero | OpenClip) -> PreTrainedModel:
    """
    The model, changed in place, with its weights in bfloat16.

    Raises:
        ValueError: the model meets the contract itself, which may not support that, or it was exported.
    """
    if meets_contract(model) or isinstance(model, TierExportedModel):
        raise ValueError(f"--bf16 is for models of transformers, but {name} is not one: leave --bf16 out.")
    return model.to(torch.bfloat16)


def read_config(name: str | Path) -> dict:
    """The content of a model's config.json; an empty one if it cannot be read, which loading the model explains."""
    try:
        return PreTrainedConfig.get_config_dict(**located(name))[0]
    except Exception:  # libraries raise many kinds here
        return {}


def check_is_read(name: str | Path, config: Mapping) -> None:
    """ValueError for a published model that tier-convert reads first, by its config.json."""
    kind = str(config.get("model_type")).lower()
    family = next((TO_CONVERT[part] for part in TO_CONVERT if part in kind), None)
    if family is not None:
        raise ValueError(
            f"The model {name} is {family}'s: `tier-convert {name} FOLDER` reads it without its owner's code; then "
            "name that FOLDER."
        )


def is_exported(config: Mapping) -> bool:
    """Whether a config.json is that of a folder which `tier-export` wrote."""
    return config.get("model_type") == TierExportedConfig.model_type


def check_backend_runs(name: str | Path, config: Mapping, backend: str | None) -> None:
    """ValueError for a backend that does not run the model, by its config.json."""
    if backend is None:
        return
    if is_exported(config):
        if backend == "torch":
            raise ValueError(f"The model {name} was exported, and torch does not run it: leave --backend out.")
        check_backend(backend, config.get("graph_format"))
    elif backend != "torch":
        raise ValueError(
            f"The backend {backend!r} runs exported models, and {name} is not one: export it with tier-export "
            f"--to {backend}, or leave --backend out."
        )


def read_files(
    name: str | Path, trust_remote_code: bool, backend: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of transformers and its processor. ValueError when they do not load, or tensors are missing."""
    folder, place = Path(name), {**located(name), "trust_remote_code": trust_remote_code}
    options = {"dtype": torch.float32, "use_safetensors": True, "ignore_mismatched_sizes": True}  # see check_complete
    options |= {"backend": backend} if backend else {}
    try:
        config = AutoConfig.from_pretrained(**place)
        auto_class = AutoModelForImageClassification if (config.architectures or [""])[0] in CLASSIFIERS else AutoModel
        with errors_only():  # `check_complete` says in one sentence what the library tells in a table
            model, info = auto_class.from_pretrained(**place, **options, output_loading_info=True)
        if is_classifier(model):
            processor = AutoImageProcessor.from_pretrained(**place, backend="pil")
        else:
            processor = AutoProcessor.from_pretrained(**place)
    except Exception as error:  # libraries raise many kinds here; all mean that this is not a usable model
        if isinstance(error, ImportError) and error.name in ("onnxruntime", "openvino"):
            raise
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ValueError(
                f"The model {name} needs code of its own, which does not run unasked: read it, then pass "
                "--trust_remote_code with a folder or owner/name@commit."
            ) from error
        reason = f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        if folder.is_dir():
            raise ValueError(f"The model in {folder} does not load {reason}.") from error
        raise ValueError(
            f"The model folder {name} does not exist, and the model does not load from the Hub; a private "
            f"model needs `hf auth login` {reason}."
        ) from error
    check_complete(name, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    return model, processor


def check_complete(
    name: str | Path, missing: Collection[str], left_over: Collection[str], misshapen: Collection[tuple]
) -> None:
    """ValueError for weights that lack tensors of the model, or hold others than its own, or ones of other shapes."""
    if any(".lora_" in tensor for tensor in left_over):
        raise ValueError(
            f"{name} is a checkpoint of a training with --text_lora_rank, which keeps LoRA beside the tower: name the "
            "folder of the finished training, whose model holds it merged."
        )
    if missing:
        raise ValueError(
            f"The weights of {name} lack {len(missing)} of the model's tensors, for example {sorted(missing)[0]}: "
            "they belong to another architecture or are incomplete."
        )
    left_over = [tensor for tensor in left_over if not tensor.endswith("position_ids")]  # of old versions of CLIP
    if left_over:
        raise ValueError(
            f"The weights of {name} hold {len(left_over)} tensors that the model does not have, for example "
            f"{sorted(left_over)[0]}: config.json belongs to another model."
        )
    if misshapen:
        tensor, shape, wanted = min(misshapen)
        raise ValueError(
            f"The weights of {name} hold {len(misshapen)} tensors of other shapes than the model's, for example "
            f"{tensor}, {tuple(shape)} in place of {tuple(wanted)}: config.json belongs to another model."
        )


def check_embeds_both(name: str | Path, model: PreTrainedModel) -> None:
    """ValueError for a model that is not of images and texts."""
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"The model {name} is a {type(model).__name__}, which does not embed images and texts in one space: "
            "name a TIER or CLIP model."
        )


def check_processor(name: str | Path, model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """ValueError for a processor of images and texts that lacks a part, or has the tokenizer of another model."""
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ValueError(
            f"The model {name} has no complete processor (image processor and tokenizer): "
            "save it beside the model with processor.save_pretrained."
        )
    if is_padded_to_the_end(model.config):
        check_tokenizer(model.config, processor.tokenizer)


def hub_commit(name: str | Path) -> str | None:
    """The commit of a loaded model that was named on the Hub; None for a folder."""
    if "/" not in str(name) or os.path.isdir(name) or isinstance(name, AdapterName):
        return None
    place = located(name)
    repository, revision = place["pretrained_model_name_or_path"], place.get("revision")
    for file in ("config.json", OPENCLIP_CONFIG):
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
    return None


def short_names(names: Sequence[str | Path]) -> dict[str | Path, str]:
    """
    Names of models in results: of a folder the last two parts of its path, which do not reveal this machine, or more
    parts if two names are equal; a name on the Hub stays unchanged.
    """
    parts: dict[str | Path, tuple[str, ...]] = {}
    for name in names:
        if isinstance(name, AdapterName):
            parts[name] = max(name.file.parts, Path(name.argument or "").parts, key=len)
            continue
        path = Path(name)
        whole = path.is_absolute() or ".." in path.parts or not path.parts
        parts[name] = (Path(os.path.abspath(path)) if whole else path).parts if path.is_dir() else (str(name),)
    for length in range(2, 2 + max(map(len, parts.values()), default=0)):
        shown = {
            name: name.shown(length - 1) if isinstance(name, AdapterName) else Path(*path[-length:]).as_posix()
            for name, path in parts.items()
        }
        if len(set(shown.values())) == len(shown):
            return shown
    first, second = next(pair for pair in combinations(shown, 2) if shown[pair[0]] == shown[pair[1]])
    raise ValueError(f"{first} and {second} name the same model: leave one of the two out.")


def check_name(name: str | Path) -> None:
    """ValueError for a name that is neither a model folder nor a possible name on the Hub; does not load the model."""
    if isinstance(name, AdapterName):
        return
    if Path(name).is_dir():
        check_folder(Path(name))
        return
    check_hub_name(name, "model folder")
    if "/" not in str(name):
        raise ValueError(
            f"The model folder {name} does not exist: name one that tier-train or save_pretrained wrote, or a "
            "model on the Hub (owner/name)."
        )


def check_folder(folder: Path) -> None:
    """ValueError for a folder without a config or without weights that may be read, with what to do about it."""
    check_not_adapter(folder)
    if is_open_clip(folder, read_config(folder)):
        check_open_clip(folder, folder)
        return
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        remedy = f"did you mean {folder / inside[-1]}?" if inside else "name the folder that save_pretrained wrote."
        raise ValueError(f"The folder {folder} does not hold a model (config.json is missing): {remedy}")
    if not any(folder.glob("*.safetensors")) and not is_exported(read_config(folder)):
        raise ValueError(
            f"The folder {folder} does not hold weights (*.safetensors): finish its training, or save the model with "
            "save_pretrained; pickled weights (*.bin, *.pt) are never read here. tier-convert reads those of "
            "published models (docs/models.md)."
        )
    check_model_folder(folder)


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model scores findings by a trained head, and not by sentences."""
    return type(model).__name__ in CLASSIFIERS


def check_comparable(similarities: Mapping[str, str]) -> None:
    """Refuse an ensemble whose members measure how alike image and text are in different units.

    Members whose scores are cosines may be mixed, whatever their families. Each counts by how far its scores spread.

    Args:
        similarities: name of each member to its unit, see `evaluation_tier.models.families.similarity_of`.
    """
    (first, unit), *others = similarities.items()
    for name, other in others:
        if other != unit:
            raise ValueError(
                f"{first} scores by {unit} and {name} by {other}, and the mean of the two has no unit: evaluate them "
                "one by one with --each."
            )


def check_members_differ(weights: Mapping[str, str]) -> None:
    """Refuse an ensemble in which two members have the same weights.

    TIER's loader silently filled every member of its ensembles with the first checkpoint (CLIP_Embedding.py:194-203).
    The average of copies looks like an ensemble, but is one model.

    Args:
        weights: name of each member to the hash of its weights, see `evaluation_tier.models.cache.hash_weights`.
    """
    for (first_name, first), (second_name, second) in combinations(weights.items(), 2):
        if first == second:
            raise ValueError(
                f"{first_name} and {second_name} have identical weights: an ensemble needs models that differ."
            )
