"""Models that the user's own Python file makes: `--adapter my_file.py:make` (docs/own_model.md)."""

import hashlib
import importlib.util
import inspect
import logging
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation_tier.models.contract import WINDOW, PatchEmbeds
from processing_tier import TierImageProcessor
from processing_tier.image_processing_tier import GEOMETRIES
from processing_tier.radiograph_tier import read_radiograph

logger = logging.getLogger(__name__)

PATTERN = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)(=(?P<argument>.+))?", re.DOTALL)

METHODS = ("preprocess", "embed_images", "embed_texts")  # that a user's model needs


class AdapterName(str):
    """
    The value of --adapter, `FILE.py:FUNCTION` or `FILE.py:FUNCTION=NAME`, as the name of a model.

    Raises:
        ValueError: for any other text.
    """

    def __init__(self, text: str):
        match = PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"--adapter takes FILE.py:FUNCTION or FILE.py:FUNCTION=NAME, but is {text!r}.")
        self.file = Path(match["file"])
        self.function = match["function"]
        self.argument: str | None = match["argument"]

    def shown(self, length: int) -> str:
        """Its name in results, with the last `length` parts of the paths of file and argument, see `short_names`."""
        named = f"{Path(*self.file.parts[-length:]).as_posix()}:{self.function}"
        return named if self.argument is None else f"{named}={Path(*Path(self.argument).parts[-length:]).as_posix()}"

    def describe(self) -> dict[str, str]:
        """What metrics.json says of it."""
        return {"file": self.file.name, "sha256": hash_file(self.file), "function": self.function}


def hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_adapter(name: AdapterName, device: str | torch.device) -> "UserModel":
    """
    The model that the named function returns.

    A parameter `device` of the function gets the device; without it, the model stays on the CPU. Any other parameter
    gets the text after `=`.

    Raises:
        ValueError: for a missing file or function, or a result that does not have the methods of a model.
    """
    if not name.file.is_file():
        raise ValueError(f"--adapter {name}: the file {name.file} does not exist.")
    spec = importlib.util.spec_from_file_location(f"adapter_{hash_file(name.file)}", name.file)
    module = importlib.util.module_from_spec(spec)
    call(name, "the file", spec.loader.exec_module, module)
    make = getattr(module, name.function, None)
    if not callable(make):
        defined = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"--adapter {name}: {name.file.name} has no function {name.function!r}; it has "
            f"{', '.join(defined) or 'none'}."
        )
    parameters = inspect.signature(make).parameters
    takes_name = [key for key in parameters if key != "device"]
    if name.argument is not None and not takes_name:
        raise ValueError(f"--adapter {name}: {name.function}() does not take a name; leave out '={name.argument}'.")
    if name.argument is None and takes_name and parameters[takes_name[0]].default is inspect.Parameter.empty:
        raise ValueError(f"--adapter {name}: {name.function}() takes a name; pass it as {name}=NAME.")
    options: dict[str, Any] = {"device": torch.device(device)} if "device" in parameters else {}
    if not options and torch.device(device).type != "cpu":
        logger.warning(
            "--adapter %s stays on the CPU: give %s() a parameter `device` to use %s.", name, name.function, device
        )
    given = options if name.argument is None else {takes_name[0]: name.argument, **options}
    made = call(name, f"{name.function}()", make, **given)
    for method in METHODS:
        if not callable(getattr(made, method, None)):
            raise ValueError(
                f"--adapter {name}: {name.function}() returned a {type(made).__name__} without the method {method!r}; "
                f"a model has {', '.join(METHODS)}."
            )
    return UserModel(made, name, options.get("device", torch.device("cpu")))


def call(name: AdapterName, what: str, function: Callable, /, *args: Any, **kwargs: Any) -> Any:
    """The function's result; ValueError, with the place in the user's file, if it fails."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # the user's code may raise anything
        file = os.path.abspath(name.file)  # as importing calls it
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        place = f", line {lines[-1]}" if lines else ""
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--adapter {name}: {what} failed ({type(error).__name__}: {reason}{place}).") from error


class UserModel(torch.nn.Module):
    """
    The model of a user's file as an [`EvaluatedModel`]: it checks what the user's methods return.

    Args:
        made: has `preprocess(image) -> (...)`, one image's pixels, from a PIL image of mode "RGB";
            `embed_images(pixels) -> (batch, dim)`; `embed_texts(texts) -> (texts, dim)`; of any length. Tensors or
            arrays. Optional are `embed_patches(pixels) -> ((batch, dim), (batch, patches, dim))`,
            `score(images, patches, texts) -> (batch, texts)` and `identity`, see `EvaluatedModel`, and, for maps,
            `map_geometry`, see [`read_geometry`].
        name: of the model.
        device: where it takes pixels.
    """

    decoding = WINDOW

    def __init__(self, made: Any, name: AdapterName, device: torch.device):
        super().__init__()
        self.made, self.name, self.device = made, name, device
        self.code = f"{hash_file(name.file)}:{name.function}={name.argument}"
        # Two models of one class of the file score alike: their mean has a unit
        self.similarity = f"the score of {type(made).__name__} in {name.file.name} ({hash_file(name.file)[:8]})"
        self.pixel_shape: tuple[int, ...] | None = None
        self.dim: int | None = None
        # The optional parts exist only if the user's model has them: an evaluation looks for their names
        if hasattr(made, "embed_patches"):
            self.embed_patches = self.check_patches
        if hasattr(made, "score"):
            self.score = self.check_score
        self.num_patches: int | None = None  # known where the model gives maps; so is the next
        self.image_size: int | None = None
        if hasattr(made, "map_geometry"):
            self.map_processor, step = read_geometry(name, made)
            self.patch_centers = step / 2, float(step)
            self.image_size = self.map_processor.size["height"]
            self.num_patches = (self.image_size // step) ** 2
        self.eval()

    @property
    def preprocessing(self) -> str:
        return str(id(self))

    @property
    def identity(self) -> str | None:
        said = getattr(self.made, "identity", None)
        return None if said is None else f"{self.code}:{said}"

    def __str__(self) -> str:  # tells models apart that have no identity
        return self.code

    def read_image(self, image: Any) -> Image.Image:
        return read_radiograph(image)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        pixels = self.ask("preprocess", image.convert("RGB"))
        if not isinstance(pixels, (torch.Tensor, np.ndarray)):
            raise self.wrong("preprocess", f"a {type(pixels).__name__}", "a tensor, the pixels of one image")
        pixels = torch.as_tensor(pixels)
        self.pixel_shape = self.pixel_shape or tuple(pixels.shape)
        if tuple(pixels.shape) != self.pixel_shape:
            raise self.wrong("preprocess", f"{shape(pixels)} after {self.pixel_shape}", "one shape for all images")
        return pixels[None]

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.check("embed_images", self.ask("embed_images", pixels), (len(pixels),))

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        parts = [list(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return torch.cat([self.check("embed_texts", self.ask("embed_texts", part), (len(part),)) for part in parts])

    def check_patches(self, pixels: torch.Tensor) -> PatchEmbeds:
        made = self.ask("embed_patches", pixels)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise self.wrong(
                "embed_patches", f"a {type(made).__name__}", "two tensors, of images and of their patches"
            )
        images = self.check("embed_patches", made[0], (len(pixels),))
        num_patches = made[1].shape[1] if getattr(made[1], "ndim", 0) == 3 else 1
        patches = self.check("embed_patches", made[1], (len(pixels), num_patches))
        if self.num_patches not in (None, num_patches):
            raise self.wrong("embed_patches", f"{num_patches} patches", f"the {self.num_patches} of map_geometry")
        return PatchEmbeds(images, patches)

    def check_score(self, images: torch.Tensor, patches: torch.Tensor | None, texts: torch.Tensor) -> torch.Tensor:
        scores = torch.as_tensor(self.ask("score", images, patches, texts)).float()
        if scores.shape != (len(images), len(texts)):
            raise self.wrong("score", shape(scores), f"(images, texts), here {(len(images), len(texts))}")
        if not torch.isfinite(scores).all():
            raise self.wrong("score", "NaN or infinity", "finite numbers")
        return scores

    def ask(self, method: str, *args: Any) -> Any:
        """What the user's method returns."""
        return call(self.name, method, getattr(self.made, method), *args)

    def check(self, method: str, features: Any, leading: tuple[int, ...]) -> torch.Tensor:
        """Features (*leading, dim) at unit length, on the device. ValueError for another shape, NaN or zeros."""
        wanted = f"({', '.join(map(str, leading))}, dim)"
        if not isinstance(features, (torch.Tensor, np.ndarray)):
            raise self.wrong(method, f"a {type(features).__name__}", f"a tensor {wanted}")
        features = torch.as_tensor(features).detach().to(self.device).float()
        if features.ndim != len(leading) + 1 or tuple(features.shape[:-1]) != leading:
            raise self.wrong(method, shape(features), wanted)
        self.dim = self.dim or features.shape[-1]
        if features.shape[-1] != self.dim:
            raise self.wrong(method, f"{features.shape[-1]} dimensions after {self.dim}", "one space for all")
        unit = features / features.norm(dim=-1, keepdim=True)
        if not torch.isfinite(unit).all():
            raise self.wrong(method, "embeddings that are zero or not finite", "finite ones")
        return unit

    def wrong(self, method: str, got: str, wanted: str) -> ValueError:
        return ValueError(f"--adapter {self.name}: {method} returned {got}; return {wanted}.")


def read_geometry(name: AdapterName, made: Any) -> tuple[TierImageProcessor, int]:
    """
    What maps the patches of a user's model back to the picture, and the side of a patch in pixels.

    Args:
        made: its `map_geometry` is a dict of `geometry`, how `preprocess` makes a square of a picture (`"pad"`,
            `"crop"` or `"squash"`, see [`TierImageProcessor`]), `image_size`, the side of this square in pixels, and
            `patch_size`. `embed_patches` returns the patches row by row.

    Raises:
        ValueError: for other values, or a model without patches.
    """
    stated = made.map_geometry
    keys = ("geometry", "image_size", "patch_size")
    if not isinstance(stated, dict) or set(stated) != set(keys):
        raise ValueError(f"--adapter {name}: map_geometry is {stated!r}; give a dict of {', '.join(keys)}.")
    geometry, size, step = (stated[key] for key in keys)
    if geometry not in GEOMETRIES:
        raise ValueError(f"--adapter {name}: the geometry {geometry!r} is none of {', '.join(GEOMETRIES)}.")
    if type(size) is not int or type(step) is not int or not 0 < step <= size or size % step:
        raise ValueError(
            f"--adapter {name}: map_geometry has the image_size {size!r} and the patch_size {step!r}; give whole "
            "numbers of pixels, of which the second divides the first."
        )
    if not hasattr(made, "embed_patches"):
        raise ValueError(f"--adapter {name}: map_geometry has no effect without the method embed_patches.")
    return TierImageProcessor(size={"height": size, "width": size}, geometry=geometry, resize_edge=None), step


def shape(tensor: torch.Tensor) -> str:
    return f"the shape {tuple(tensor.shape)}"
