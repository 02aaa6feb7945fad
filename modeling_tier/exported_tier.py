"""A model whose towers were exported to ONNX or OpenVINO (`tier-export`), with the methods of the model it was."""

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from .base_tier import TierCLIPOutput, TierModelMixin
from .configuration_siglip_tier import TierSiglipConfig
from .configuration_tier import TierCLIPConfig, TierDualEncoderConfig
from .maps_tier import map_kinds

TOWERS = ("image", "text")
FILES = {"onnx": ("onnx",), "openvino": ("xml", "bin")}  # of each tower by format, as suffixes; the first is loaded
BACKENDS = tuple(FILES)
RUNS = {"onnx": ("onnx",), "openvino": ("openvino", "onnx")}  # the formats that a backend reads
CONFIGS = {config.model_type: config for config in (TierCLIPConfig, TierSiglipConfig, TierDualEncoderConfig)}
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]  # the inputs of a graph by name, to its outputs in order


@strict
class TierExportedConfig(PreTrainedConfig):
    r"""
    Configuration of a [`TierExportedModel`]. `tier-export` writes it.

    Args:
        graph_format (`str`, *optional*, defaults to `"onnx"`): `"onnx"` or `"openvino"`: the kind of the files.
        int8 (`bool`, *optional*, defaults to `False`):
            Whether the image tower computes in 8-bit integers, calibrated on images.
        files (`dict[str, dict]`, *optional*): For each file of a tower its size (`"bytes"`) and its `"sha256"`.
        model (`dict`, *optional*): The configuration of the model that was exported.
        num_parameters (`int`, *optional*, defaults to 0): Its number of parameters.
        text_length (`int`, *optional*, defaults to 1): The longest text that it takes, in tokens.
        text_inputs (`list[str]`, *optional*): The inputs of the text tower.
        patch_centers (`list[float]`, *optional*): See [`trace_patch_centers`].
        logit_scale, logit_bias (`float`, *optional*, default to 0.0): The model's parameters; the bias is SigLIP's.
        versions (`dict[str, str]`, *optional*): Of the packages that made the files.
        kwargs: The fields of [`PreTrainedConfig`].

    Raises:
        ValueError: The format, the files or the model are not such.
    """

    model_type = "tier_exported"

    graph_format: str = "onnx"
    int8: bool = False
    files: dict | None = None
    model: dict | None = None
    num_parameters: int = 0
    text_length: int = 1
    text_inputs: list[str] | None = None
    patch_centers: list[float] | None = None
    logit_scale: float = 0.0
    logit_bias: float = 0.0
    versions: dict | None = None

    def check(self) -> None:
        """Raises ValueError unless the configuration is one that `tier-export` wrote."""
        if self.graph_format not in FILES:
            raise ValueError(f"graph_format must be one of {', '.join(FILES)}, not {self.graph_format!r}.")
        for name in file_names(self.graph_format):
            told = (self.files or {}).get(name)
            told = told if isinstance(told, dict) else {}
            if type(told.get("bytes")) is not int or not isinstance(told.get("sha256"), str):
                raise ValueError(
                    f"The exported model's config.json does not tell size and hash of {name}; export it again."
                )
        if not isinstance(self.model, dict) or self.model.get("model_type") not in CONFIGS:
            raise ValueError("The exported model's config.json does not hold the model's own; export it again.")
        if len(self.patch_centers or ()) != 2:
            raise ValueError("The exported model's config.json lacks patch_centers; export it again.")

    def model_config(self) -> PreTrainedConfig:
        """The configuration of the model that was exported."""
        return CONFIGS[self.model["model_type"]].from_dict(dict(self.model))


class Graph(nn.Module):
    """
    One exported tower.

    Args:
        run: Runs it.
        identity (`str`): Changes with whatever decides its outputs.
    """

    def __init__(self, run: Run, identity: str):
        super().__init__()
        self.run = run
        # A parameter, so that whatever knows a model by its weights (a cache, an ensemble) knows this one too
        digest = torch.tensor([*hashlib.sha256(identity.encode()).digest()], dtype=torch.float32)
        self.digest = nn.Parameter(digest, requires_grad=False)

    def forward(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        device = next(iter(inputs.values())).device
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in inputs.items()}
        return [torch.from_numpy(array).to(device) for array in self.run(arrays)]


class TierExportedModel(TierModelMixin, PreTrainedModel):
    r"""
    The two towers of a TIER model as graphs that ONNX Runtime or OpenVINO runs on the CPU. It embeds images, patches,
    texts and tokens as the model did, and so it gives the same scores and maps; it cannot be trained. `config` is the
    configuration of the model that was exported, `exported` that of the export.

    Args:
        config ([`TierExportedConfig`]): The configuration.
        runs (`dict[str, Run]`): What runs each tower.
        backend (`str`): `"onnx"` (ONNX Runtime) or `"openvino"`.
    """

    config_class = TierExportedConfig  # explicit: an annotation alone may become a string
    base_model_prefix = "tier_exported"
    input_modalities = ("image", "text")

    def __init__(self, config: TierExportedConfig, runs: Mapping[str, Run], backend: str):
        super().__init__(config)
        self.exported, self.backend = config, backend
        self.config = config.model_config()
        self.patch_centers = (config.patch_centers[0], config.patch_centers[1])
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale), requires_grad=False)
        version = backend_version(backend)
        for tower in TOWERS:
            hashes = [config.files[name]["sha256"] for name in file_names(config.graph_format, (tower,))]
            setattr(self, f"{tower}_model", Graph(runs[tower], " ".join([backend, version, *hashes])))

    @classmethod
    def from_pretrained(
        cls, *args: Any, image_size: int | None = None, backend: str | None = None, **kwargs: Any
    ) -> Any:
        """
        Loads what `tier-export` wrote.

        Args:
            args: Its folder, or a name on the Hub.
            image_size (`int`, *optional*): None but the model's own.
            backend (`str`, *optional*):
                `"onnx"` (ONNX Runtime) or `"openvino"`, which also runs files in the format ONNX. By default the one
                that the model was exported for.
            kwargs:
                Those that select files on the Hub (`revision`, `token`, ...), and `output_loading_info`. What places
                or converts weights has no effect.

        Raises:
            ValueError: A file is truncated or not the one that was exported, the backend does not run such files, or
                the image size is another one.
            ImportError: The package of the backend is missing.
        """
        folder = args[0] if args else kwargs["pretrained_model_name_or_path"]
        place = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        config = kwargs.get("config")
        if not isinstance(config, TierExportedConfig):
            config = TierExportedConfig.from_pretrained(folder, **place)
        config.check()
        backend = backend or config.graph_format
        check_backend(backend, config.graph_format)
        paths = {}
        for name in file_names(config.graph_format):
            paths[name] = Path(find_file(folder, name, place))
            check_file(paths[name], config.files[name])
        main = {tower: paths[file_names(config.graph_format, (tower,))[0]] for tower in TOWERS}
        model = cls(config, {tower: start(backend, path) for tower, path in main.items()}, backend).eval()
        model.name_or_path = os.fspath(folder)
        if image_size not in (None, model.image_size):
            raise ValueError(f"An exported model takes images of {model.image_size} pixels, not of {image_size}.")
        loading_info: dict[str, Any] = {
            "missing_keys": set(),
            "unexpected_keys": set(),
            "mismatched_keys": set(),
            "error_msgs": [],
        }
        return (model, loading_info) if kwargs.get("output_loading_info") else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError: the files are complete where they are."""
        raise ValueError(f"An exported model is not saved again; copy its folder {self.name_or_path}.")

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Of the model that was exported; none can be trained."""
        return 0 if only_trainable else self.exported.num_parameters

    @property
    def image_size(self) -> int:
        """Edge in pixels of the images that it takes."""
        return getattr(self.config, "image_size", None) or self.config.vision_config.image_size

    def check_text_length(self, input_ids: torch.Tensor) -> None:
        limit = self.exported.text_length
        if input_ids.shape[-1] > limit:
            raise ValueError(
                f"Texts of {input_ids.shape[-1]} tokens are longer than the {limit} that this model reads; tokenize "
                f"them with truncation=True, max_length={limit}."
            )

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """
        Runs the text tower.

        Args:
            input_ids, attention_mask (`torch.Tensor` of shape `(texts, tokens)`): As the tokenizer returns them.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` (texts, dim) is the text embedding, not normalised, and
            `last_hidden_state` (texts, tokens, dim) has the tokens, already projected as [`project_tokens`] would.

        Raises:
            ValueError: A text is too long, or the attention mask is missing.
        """
        self.check_text_length(input_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs = {name: inputs[name] for name in self.exported.text_inputs}
        missing = [name for name, tensor in inputs.items() if tensor is None]
        if missing:
            raise ValueError(f"{missing[0]} is missing: pass the texts as the tokenizer returns them.")
        embeds, tokens = self.text_model(**{name: tensor.long() for name, tensor in inputs.items()})
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=embeds)

    def project_tokens(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        return last_hidden_state

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Runs the image tower: `pooler_output` (batch, dim) is the image embedding, not normalised."""
        return self.encode_images(pixel_values, **kwargs)[0]

    def encode_images(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """As [`TierCLIPModel.encode_images`], of images of the model's own size only."""
        return self.run_image_tower(pixel_values, interpolate_pos_encoding)[:2]

    def encode_direct(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor, torch.Tensor]:
        if "direct" not in map_kinds(self.config):
            return super().encode_direct(pixel_values, interpolate_pos_encoding)
        return self.run_image_tower(pixel_values, interpolate_pos_encoding)

    def run_image_tower(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> tuple[Any, ...]:
        """What `encode_direct` returns; without the direct map of a model that does not have one."""
        pixel_values = self.normalize_pixels(pixel_values).float()
        size = self.image_size
        if interpolate_pos_encoding or tuple(pixel_values.shape[-2:]) != (size, size):
            raise ValueError(
                f"An exported model takes images of {size} x {size} pixels only, not of "
                f"{' x '.join(map(str, pixel_values.shape[-2:]))} or interpolated ones."
            )
        embeds, *maps = self.image_model(pixel_values=pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=maps[0].flatten(1, 2), pooler_output=embeds), *maps

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> TierCLIPOutput:
        """Compares every text with every image. ValueError with `return_loss=True`: it cannot be trained."""
        if return_loss:
            raise ValueError("An exported model does not have a loss; train the model that it was exported from.")
        texts = self.get_text_features(input_ids, attention_mask)
        images = self.get_image_features(pixel_values)
        text_embeds, image_embeds = (F.normalize(output.pooler_output, dim=-1) for output in (texts, images))
        logits = image_embeds @ text_embeds.T * self.logit_scale.exp() + self.exported.logit_bias
        return TierCLIPOutput(
            logits_per_image=logits, logits_per_text=logits.T, text_embeds=text_embeds, image_embeds=image_embeds
        )


def file_names(graph_format: str, towers: tuple[str, ...] = TOWERS) -> list[str]:
    """The names of the files of some towers; the first one of a tower is what a backend loads."""
    return [f"{tower}.{suffix}" for tower in towers for suffix in FILES[graph_format]]


def check_backend(backend: str, graph_format: str) -> None:
    """Raises ValueError for a backend that does not exist or does not run files of this format."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}.")
    if graph_format not in RUNS[backend]:
        raise ValueError(
            f"The model was exported to {graph_format}, which the backend {backend!r} does not run: leave the backend "
            f"out, or export the model with --to {backend}."
        )


def find_file(folder: str | os.PathLike, name: str, place: Mapping[str, Any]) -> str:
    """The path of a file, downloaded if it is on the Hub. ValueError if it is missing."""
    try:
        return cached_file(os.fspath(folder), name, **place)
    except OSError as error:
        raise ValueError(f"The exported model {folder} lacks the file {name}: export it again.") from error


def check_file(path: Path, told: Mapping[str, Any]) -> None:
    """Raises ValueError for a file of another size or hash than the one that was exported."""
    size = path.stat().st_size
    if size != told["bytes"]:
        raise ValueError(
            f"{path} has {size:,} bytes, not the {told['bytes']:,} of the export: copy the folder again, or "
            "export the model again."
        )
    if hash_file(path) != told["sha256"]:
        raise ValueError(f"{path} is not the file that was exported (another SHA-256): export the model again.")


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def start(backend: str, path: Path) -> Run:
    """What runs a graph on the CPU, with as many threads as torch uses. ValueError if the backend cannot read it."""
    begin = {"onnx": start_onnx, "openvino": start_openvino}[backend]
    try:
        return begin(path, torch.get_num_threads())
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the runtimes raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{backend} {backend_version(backend)} does not read {path} ({reason}); export it again."
        ) from error


def start_onnx(path: Path, threads: int) -> Run:
    onnxruntime = import_backend("onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors, which are raised as well
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))


def start_openvino(path: Path, threads: int) -> Run:
    openvino = import_backend("openvino")
    # float32 where the graph is not of integers: by default the rounding depends on the machine (bfloat16 with AMX)
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", how)

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        results = compiled(dict(inputs))
        return [np.array(results[output]) for output in compiled.outputs]  # copies: the runtime reuses its memory

    return run


def import_backend(backend: str) -> Any:
    """The package of a backend. ImportError, which says how to install it, if it is missing."""
    try:
        if backend == "onnx":
            import onnxruntime

            return onnxruntime
        # OpenVINO reports each import to a server unless this package, which it tries to import, is absent
        sys.modules.setdefault("openvino_telemetry", None)
        import openvino

        return openvino
    except ImportError as error:
        package = {"onnx": "onnxruntime", "openvino": "openvino"}[backend]
        raise ImportError(
            f"The backend {backend!r} needs the package {package}: pip install 'tier-clip[{backend}]'.", name=package
        ) from error


def backend_version(backend: str) -> str:
    """The version of a backend's package."""
    return import_backend(backend).__version__


TierExportedConfig.register_for_auto_class()
TierExportedModel.register_for_auto_class("AutoModel")

__all__ = ["TierExportedConfig", "TierExportedModel"]
